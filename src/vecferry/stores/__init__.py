"""Where vectors are kept: the `Store` protocol, and the values that pass through it.

A store is one collection with its keys, its texts and its vectors. A migration gives it a second
*side*: the vectors of the new model beside those of the old. One of the two serves; the application
writes to it, and the migration keeps the other one current.

There are two shapes. A table (`pgvector`) holds both sides in one row. Everything else holds whole
points, so that the new side is a collection of its own, kept like the first by `mirror.MirrorStore`
over a small `backend.Backend`: one file per store, all of the same shape. In both, the state of a
row can be read from the store itself: a vector is current if it is the one that was written for the
text of the row, known by a checksum over both, or by the text in the same point.
`tests/stores/test_contract.py` runs over every store.
"""
