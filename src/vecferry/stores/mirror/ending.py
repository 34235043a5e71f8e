"""How the new collection comes to stand under the old name once the old one goes.

No store drops one collection and gives its name to another in one step, and in between a client may make one of
that name, as many do where they find none. Whatever is under the old name then is dropped only if it is known to be the
old collection, by a mark that goes with it, or if it is empty.
"""

from __future__ import annotations

from typing import Protocol

from vecferry.errors import StoreSchemaError
from vecferry.stores.backend import Aliased, Backend, Renamable


class Ending(Protocol):
    """How names change from the switch to the end of a migration, for one collection or for a group."""

    def is_collection(self, name: str) -> bool:
        """Return whether there is a collection of that name; an alias is none."""

    def last_number(self) -> int:
        """Return the highest number that a new collection must not have again, since one is known by it; 0 for none."""

    def has_begun(self, old: str, new: str) -> bool:
        """Return whether a `finalize` was killed after it had dropped an old collection; it can only be repeated."""

    def has_taken_over(self, new: str) -> bool:
        """Return whether the new collection was renamed to the target's name."""

    def point_alias(self, collection: str) -> None:
        """Point the alias by which clients know the collection; where the target is none, there is nothing to point."""

    def drop_old(self, old: str, new: str) -> None:
        """Drop the old collection and let the target's name stand for the new one. Repeating is safe."""


class MirrorEnding:
    """The end of a migration whose old collection has the target's name.

    Stores that rename let the old collection go under `retired` before they drop it. Stores with aliases mark it with
    the alias `retired`, and the new one with `successor`, which stays until the target's name is an alias too.
    """

    def __init__(self, backend: Backend, target: str) -> None:
        self._backend, self._target = backend, target
        self.retired, self.successor = f"{target}_vecferry_old", f"{target}_vecferry_ending"

    def last_number(self) -> int:
        return 0

    def has_begun(self, old: str, new: str) -> bool:  # noqa: ARG002  # the old one's mark says it
        return not self.is_there(old)

    def has_taken_over(self, new: str) -> bool:
        backend = self._backend
        if not isinstance(backend, Renamable) or backend.exists(new) or not backend.exists(self._target):
            return False
        return backend.created_as(self._target) == new

    def point_alias(self, collection: str) -> None:
        backend = self._backend
        if isinstance(backend, Aliased) and backend.is_alias(self._target):
            backend.point_alias(self._target, collection)

    def is_there(self, old: str) -> bool:
        """Return whether the old collection stands under its name, and not one that a client has made meanwhile."""
        backend = self._backend
        if not self.is_collection(old):
            return False
        if old != self._target:
            return True
        if isinstance(backend, Aliased):
            return not backend.is_alias(self.successor) or backend.resolve(self.retired) == old
        return not backend.exists(self.retired)

    def is_collection(self, name: str) -> bool:
        backend = self._backend
        return backend.exists(name) and not (isinstance(backend, Aliased) and backend.is_alias(name))

    def drop_old(self, old: str, new: str) -> None:
        """Drop the old collection and let the target's name stand for the new one. Repeating is safe.

        A process that is killed in between leaves it so until this is repeated, and goes on from what it finds. Raises
        StoreSchemaError for a collection that somebody else has made under the target's name, unless it is empty, and
        with nothing dropped where the new one is gone.
        """
        if not self._backend.exists(new):
            what = f"there is no collection {new}, which serves"
            raise StoreSchemaError(what, "Go back to the old vectors: vecferry migrate rollback --accept-outdated")
        if isinstance(self._backend, Aliased):
            self._mark_old(self._backend, old, new)
        elif isinstance(self._backend, Renamable) and self.is_there(old) and self._backend.exists(new):
            self._backend.rename(old, self.retired)
        if self.is_there(old):
            self._backend.drop(old)
        self._drop_empty(new)
        self._take_over(new)

    def _mark_old(self, backend: Aliased, old: str, new: str) -> None:
        if old == self._target and self.is_collection(old) and not backend.is_alias(self.successor):
            backend.point_alias(self.retired, old)
            backend.point_alias(self.successor, new)

    def _drop_empty(self, new: str) -> None:
        """Drop an empty collection of a client's under the target's name. Raises StoreSchemaError if it has points."""
        if new == self._target or not self.is_collection(self._target):
            return
        if count := self._backend.count(self._target):
            what = f"a client has made a collection {self._target} meanwhile, with {count} points"
            raise StoreSchemaError(what, f"Put them into {new}, drop {self._target}, and finalize again.")
        self._backend.drop(self._target)

    def _take_over(self, new: str) -> None:
        """Give the target's name to the new collection: by an alias, or a new name where the store has none."""
        backend = self._backend
        if isinstance(backend, Aliased):
            if not backend.is_alias(self._target):
                backend.point_alias(self._target, new)
            backend.drop_alias(self.successor)
        elif isinstance(backend, Renamable):
            if new != self._target:
                backend.rename(new, self._target)
            backend.drop(self.retired)
