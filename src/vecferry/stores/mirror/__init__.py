"""A store whose new side is a collection of its own, over any `backend.Backend`.

The application's collection is the old side; the new one, `NAME_vecferry_2`, gets every point with
its text and payload, and a vector of the new model. Whichever serves is the one that the
application writes to, through `put` and `remove`, which note each write in the journal of the
control database before they make it; the other one follows. A point is current if its text and
payload are those of the point that serves, so a comparison of both finds whatever no journal saw.
"""

from vecferry.stores.mirror.group_store import GroupStore
from vecferry.stores.mirror.store import MirrorStore

__all__ = ["GroupStore", "MirrorStore"]
