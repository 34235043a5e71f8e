"""What stored vectors were made from: a sample is encoded with the old model and compared with what is stored.

A file says which text and which model; whether that is so, only the vectors know. A cosine of 0.99 or more for 95 % of
the rows confirms it. Otherwise the likely causes are tried one after the other on the rows that do not fit, the best is
kept, and others are tried on top of it: another text of the row (LlamaIndex's metadata, a title before it), a prefix,
lower case, a text that was cut, vectors that were filled up with zeros.
"""

from __future__ import annotations

from vecferry.migrate.provenance.examination import closest, examine, provenance_of
from vecferry.migrate.provenance.values import Making, Provenance, Verdict

__all__ = ["Making", "Provenance", "Verdict", "closest", "examine", "provenance_of"]
