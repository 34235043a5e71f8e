"""Which side of a store the vectors of a model may ask, by what the ledger has recorded."""

from __future__ import annotations

from vecferry.precisions import Mark, Role
from vecferry.stores.protocol import Store


def side_asked(store: Store, mark: Mark, role: Role = "query") -> str:
    """Return the mark of the side that such vectors may be used with, as `Store.search` takes it.

    One of the same form comes first; where none is recorded, or none may be asked, it is `mark` itself, which the store
    takes or refuses.
    """
    record, serving = store.ledger.find(store.target), store.ledger.serving(store.target)
    recorded = [] if record is None else [record.spec.fingerprint, record.spec.old_fingerprint]
    recorded += [] if serving is None else [serving.fingerprint]
    marks = [Mark.parse(text) for text in recorded if text is not None]
    possible = [each for each in marks if not mark.refusal(each, role)]
    return str(min(possible, key=lambda each: each.form != mark.form, default=mark))
