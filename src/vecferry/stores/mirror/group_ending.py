"""The end of a migration of a group: each member's own, one after the other, so that it can be stopped between two."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.backend import Aliased, Backend, Grouped, Renamable
from vecferry.stores.mirror.ending import MirrorEnding

NUMBER = re.compile(r"_vecferry_(\d+)$")


class GroupEnding:
    """`Ending` of a group. What has become of a member is read from its own names, not from those of others.

    So a process that is killed in the middle leaves some members with the new collection under their names and some
    with the old; all are read rightly, and what is left is done by the next one.
    """

    def __init__(self, group: Backend, target: str) -> None:
        assert isinstance(group, Grouped)
        self._group, self._target = group, target
        self._backend: Backend = group
        self._taken_over: set[str] = set()
        self._ended: set[tuple[str, frozenset[str]]] = set()

    def is_collection(self, name: str) -> bool:
        return self._backend.exists(name)

    def last_number(self) -> int:
        """Return the number of the last migration that is written on a member: a ledger may have been forgotten."""
        members = self._members(self._backend.names(), self._target)
        return max((int(made[1]) for member in members if (made := NUMBER.search(self._created_as(member)))), default=0)

    def has_begun(self, old: str, new: str) -> bool:
        names = self._backend.names()
        olds = [self._group.name_of(old, member) for member in self._members(names, old)]
        if not any(names.get(name) == name for name in olds):
            return True
        members = self._members(names, new) | self._members(names, f"{self._target}_vecferry_old")
        return any(self._has_begun(member, old, new, names) for member in members) or self._has_renamed(names, new)

    def _has_begun(self, member: str, old: str, new: str, names: Mapping[str, str]) -> bool:
        """Return whether a mark of `MirrorEnding` is on the member, or its name stands for the new collection."""
        ending = self._ending(member)
        if ending.successor in names:
            return names.get(ending.retired) != self._group.name_of(old, member)
        if isinstance(self._own(member), Aliased):
            return self._group.name_of(old, member) == member and names.get(member) == self._group.name_of(new, member)
        return ending.retired in names

    def _has_renamed(self, names: Mapping[str, str], new: str) -> bool:
        left = self._members(names, self._target) - self._members(names, new)
        return any(self._is_renamed(member, new) for member in left)

    def _is_renamed(self, member: str, new: str) -> bool:
        """Return whether the member's new collection, which is not there under its own name, has the member's."""
        return self._created_as(member) == self._group.name_of(new, member)

    def _created_as(self, member: str) -> str:
        """Return under which name the collection was created that has the member's; empty if nobody knows."""
        backend = self._own(member)
        if isinstance(backend, Renamable):
            with suppress(StoreSchemaError, StoreFailed):  # it is gone
                return backend.created_as(member) or ""
        return ""

    def has_taken_over(self, new: str) -> bool:
        """Return whether no collection has the new side's name any more, since members have taken their own."""
        if new in self._taken_over:  # which stays so
            return True
        if self._backend.exists(new) or not self._has_renamed(self._backend.names(), new):
            return False
        self._taken_over.add(new)
        return True

    def point_alias(self, collection: str) -> None:
        if not self._group.has_aliases:
            return
        names = self._backend.names()
        for member in self._members(names, self._target):
            backend = self._own(member)
            if isinstance(backend, Aliased) and names[member] != member:
                backend.point_alias(member, self._group.name_of(collection, member))

    def drop_old(self, old: str, new: str) -> None:
        for member in self.left(old, new):
            self.end(member, old, new)

    def left(self, old: str, new: str) -> Iterator[str]:
        """Yield the members whose old collection is there, or whose new one has not their name yet."""
        names = self._backend.names()
        for member in sorted(self._members(names, old) | self._members(names, new) | self._retired(names)):
            if (member, frozenset((old, new))) not in self._ended:
                yield member

    def end(self, member: str, old: str, new: str) -> None:
        """Drop the member's old collection, and give its name to the new one. Repeating is safe.

        A member that the application has dropped meanwhile gets no empty collection in its place.
        """
        backend, ending = self._own(member), self._ending(member)
        old_name, new_name = self._group.name_of(old, member), self._group.name_of(new, member)
        if new == self._target or backend.exists(new_name):
            clients = (member, old_name, ending.retired, ending.successor)
            if any(map(backend.exists, clients)) or backend.count(new_name):
                ending.drop_old(old_name, new_name)
            else:
                backend.drop(new_name)
        elif self._is_renamed(member, new):
            ending.drop_old(new_name, member)
        self._ended.add((member, frozenset((old, new))))  # which change places when all have taken their names

    def without_new(self, old: str, new: str) -> tuple[str, ...]:
        """Return the members that have a collection on the old side and none on the new."""
        names = self._backend.names()
        lacking = self._members(names, old) - self._members(names, new) - self._retired(names)
        own = {member: self._group.name_of(old, member) for member in sorted(lacking)}
        return tuple(
            member for member, name in own.items() if names[name] == name and not self._is_renamed(member, new)
        )

    def _retired(self, names: Mapping[str, str]) -> set[str]:
        return self._members(names, f"{self._target}_vecferry_old")

    def _members(self, names: Mapping[str, str], collection: str) -> set[str]:
        """Return the members that have a collection of that side's name."""
        ending = collection.removeprefix(self._target)
        found = {name.removesuffix(ending) for name in names if name.endswith(ending)}
        return {member for member in found if self._group.backend_of(member) is not None}

    def _own(self, member: str) -> Backend:
        backend = self._group.backend_of(member)
        assert backend is not None, member
        return backend

    def _ending(self, member: str) -> MirrorEnding:
        return MirrorEnding(self._own(member), member)
