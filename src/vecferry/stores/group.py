"""Many collections of one store as one, so that they are migrated together: one ledger, one progress, one switch.

A group is called by its pattern, `file-*`, or by its list, `{docs,faq}`. Its members are the collections that match
now: one that an application makes later is a member too, from the next look on. What stands after the group's name
stands after each member's: `file-*_vecferry_2` is `file-a_vecferry_2`, `file-b_vecferry_2`. A point's id is the name of
its member, a slash, and its id there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import TypeVar

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.backend import Aliased, Backend, BackendHit, Noticing, OptionalVectors, Point, Renamable
from vecferry.stores.filters import EVERY_ROW, Selection

T = TypeVar("T")
OURS = re.compile(r"_vecferry_(?:\d+|old|ending)$")
"""How the collections are called that a migration makes."""
MAGIC = re.compile(r"[*?\[]")
NAMED = 3
"""So many members are named in a message; of more, the number."""


@dataclass(frozen=True)
class Member:
    """A collection of a group, or a pattern of several, as a shell's. Fields: where not those of the whole store."""

    name: str
    text: str | None = None
    vector: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Part:
    """Members of a group that are alike: their names match the pattern, as a shell's, and one backend reads them."""

    pattern: str
    backend: Backend


def group_name(patterns: Sequence[str]) -> str:
    """Return what a group is called, by which its migration is found again: `file-*`, or `{docs,faq}`, in any order."""
    return patterns[0] if len(patterns) == 1 else f"{{{','.join(sorted(set(patterns)))}}}"


def member_id(member: str, point: str) -> str:
    """Return the id in a group of a member's point."""
    return f"{member}/{point}"


def named(names: Collection[str]) -> str:
    """Name a few, for people: `file-a, file-b, file-c and 197 more`."""
    more = len(names) - NAMED
    return ", ".join([*names][:NAMED]) + (f" and {more:,} more" if more > 0 else "")


class GroupBackend:
    """`Backend` and `Grouped`; made by `group_of`, so that it is `OptionalVectors` and `Noticing` as its members.

    A member whose collection is not there on a side has no points there; it is made with its first one.
    """

    def __init__(self, parts: Sequence[Part], name: str | None = None, only: str | None = None) -> None:
        """Take collections for one. name: by default that of the parts. only: the member that alone is asked for."""
        self._parts = tuple(parts)
        self._name = name or group_name([part.pattern for part in parts])
        self._only = only
        self._known: dict[str, str] = {}

    @property
    def _first(self) -> Backend:
        return self._parts[0].backend

    @property
    def name(self) -> str:
        return self._name

    @property
    def has_aliases(self) -> bool:
        return isinstance(self._first, Aliased)

    @property
    def kind(self) -> str:
        return self._first.kind

    @property
    def text_field(self) -> str:
        return self._first.text_field

    @property
    def outputs(self) -> Outputs:
        return self._first.outputs

    def another(self) -> GroupBackend:
        made = {id(part.backend): part.backend.another() for part in self._parts}
        parts = [replace(part, backend=made[id(part.backend)]) for part in self._parts]
        return type(self)(parts, self._name, self._only)

    def close(self) -> None:
        for backend in {id(part.backend): part.backend for part in self._parts}.values():
            backend.close()

    def within(self, member: str) -> GroupBackend:
        return type(self)(self._parts, self._name, member)

    # --- members ----------------------------------------------------------------------------------

    def backend_of(self, member: str) -> Backend | None:
        if OURS.search(member) or self._only not in (None, member):
            return None
        return next((part.backend for part in self._parts if fnmatchcase(member, part.pattern)), None)

    def name_of(self, collection: str, member: str) -> str:
        return member + self._ending(collection)

    def _ending(self, collection: str) -> str:
        assert collection.startswith(self._name), f"{collection} is no side of {self._name}"
        return collection.removeprefix(self._name)

    def names(self) -> dict[str, str]:
        return self._first.names()

    def _candidates(self, ending: str) -> Collection[str]:
        """Return names that are there, those of members on that side among them."""
        if self._only is None:
            return self.names()
        return [name for name in {self._only, self._only + ending} if self._first.exists(name)]

    def members(self, collection: str) -> dict[str, str]:
        """Return those that are there. One that has taken its member's name at the end of a migration is there too."""
        ending = self._ending(collection)
        names = self._candidates(ending)
        there = {name.removesuffix(ending): name for name in names if self._is_on(ending, name)}
        if ending:
            left = (name for name in names if name not in there and self.backend_of(name) is not None)
            there |= {member: member for member in left if self._has_taken_over(member, ending)}
        return dict(sorted(there.items()))

    def _has_taken_over(self, member: str, ending: str) -> bool:
        backend = self.backend_of(member)
        if backend is None or not isinstance(backend, Renamable):
            return False
        with suppress(StoreSchemaError, StoreFailed):  # it is gone
            return backend.created_as(member) == member + ending
        return False

    def _on(self, collection: str, member: str, work: Callable[[Backend, str], T], missing: T) -> T:
        """Do `work` on a member's collection; return `missing` where it has none on that side."""
        backend, ending = self.backend_of(member), self._ending(collection)
        if backend is None:
            return missing
        try:
            return work(backend, member + ending)
        except (StoreSchemaError, StoreFailed):
            if backend.exists(member + ending):  # it may just have been made
                return work(backend, member + ending)
        return work(backend, member) if ending and self._has_taken_over(member, ending) else missing

    def _of_all(self, collection: str, work: Callable[[Backend, str], T], missing: T) -> Iterator[tuple[str, T]]:
        """Yield the result of `work` for each member that is there."""
        for member in self.members(collection):
            yield member, self._on(collection, member, work, missing)

    # --- collections ------------------------------------------------------------------------------

    def exists(self, collection: str) -> bool:
        """Return whether any member is there under that name; one that was seen before is looked for first."""
        known = self._known.get(collection)
        if known is not None and self._first.exists(known):
            return True
        ending = self._ending(collection)
        first = next((name for name in self._candidates(ending) if self._is_on(ending, name)), None)
        self._known.pop(collection, None)
        if first is not None:
            self._known[collection] = first
        return first is not None

    def _is_on(self, ending: str, name: str) -> bool:
        return name.endswith(ending) and self.backend_of(name.removesuffix(ending)) is not None

    def dimension(self, collection: str) -> int | None:
        """Return that of the first member that says it; `check` compares all."""
        sizes = self._of_all(collection, lambda backend, name: backend.dimension(name), None)
        return next((size for _, size in sizes if size is not None), None)

    def count(self, collection: str) -> int:
        return sum(count for _, count in self._of_all(collection, lambda backend, name: backend.count(name), 0))

    def check(self, like: str, outputs: Outputs) -> None:
        """Raise StoreSchemaError, which names them, for members of which no copy can be, or that differ in dimension.

        So for a name in a list that is none, and for a member that stands under its own name where the others are
        behind aliases since the last migration.
        """
        members = self.members(like)
        for pattern in (part.pattern for part in self._parts):
            if not MAGIC.search(pattern) and pattern not in members:
                raise StoreSchemaError(f"there is no collection {pattern}", "Names are spelled as in the store.")
        self._refuse(like, {name: "its name has a slash" for name in members if "/" in name})
        self._refuse(like, dict.fromkeys(self._aliases(like, members), "it is an alias"))
        self._refuse(like, dict.fromkeys(self._plain(like, members), "it was made since the last migration"))
        refusals = dict(self._of_all(like, lambda backend, name: _refusal(backend, name, outputs), ""))
        self._refuse(like, {member: reason for member, reason in refusals.items() if reason})
        sizes = dict(self._of_all(like, lambda backend, name: backend.dimension(name), None))
        known = [size for size in sizes.values() if size is not None]
        usual = max(sorted(set(known)), key=known.count, default=None)
        others = {name: f"{size} numbers" for name, size in sizes.items() if size not in (None, usual)}
        self._refuse(like, others, f", where most have vectors of {usual} numbers")

    def _refuse(self, like: str, reasons: dict[str, str], more: str = "") -> None:
        if reasons:
            total = len(self.members(like))
            what = named([f"{member}: {reason}" for member, reason in reasons.items()])
            remedy = "Narrow the pattern, or list the collections that belong together; the others by themselves."
            raise StoreSchemaError(
                f"{len(reasons)} of {total} collections of {self._name} do not fit{more}: {what}", remedy
            )

    def _aliases(self, like: str, members: Collection[str]) -> list[str]:
        """Return members that go by an alias: pointed anew, it does not say any more where their old vectors are."""
        names = {} if self._ending(like) or not isinstance(self._first, Aliased) else self.names()
        return [name for name in members if names.get(name, name) != name]

    def _plain(self, like: str, members: Collection[str]) -> list[str]:
        """Return members that are collections under their own names, where that side's have another name."""
        if not self._ending(like) or not isinstance(self._first, Aliased):
            return []
        names = self.names()
        return [name for name in names if names[name] == name and self.backend_of(name) and name not in members]

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        """Create the first member's: so the side is there. The others are made with their first point."""
        for member in self.members(like):
            return self.make(collection, member, like, dimension, outputs)
        raise StoreSchemaError(f"there is no collection {self._name}", "Names are spelled as in the store.")

    def make(self, collection: str, member: str, like: str, dimension: int, outputs: Outputs) -> None:
        """Leave an empty collection of that member, made like its own on another side."""
        self._create(collection, member, self.name_of(like, member), dimension, outputs)

    def _create(self, collection: str, member: str, like: str, dimension: int, outputs: Outputs) -> None:
        backend, name = self._required(member), self.name_of(collection, member)
        try:
            backend.create(name, like=like, dimension=dimension, outputs=outputs)
        except (StoreSchemaError, StoreFailed):
            if not backend.exists(name):  # another writer was faster
                raise

    def _required(self, member: str) -> Backend:
        if (backend := self.backend_of(member)) is None or "/" in member:
            raise StoreSchemaError(f"{member!r} is no collection of {self._name}", "An id is MEMBER/ID.")
        return backend

    def drop(self, collection: str) -> None:
        """Drop those of that name, and never one that has taken its member's."""
        for member, name in self.members(collection).items():
            if name == self.name_of(collection, member):
                self._required(member).drop(name)

    # --- points -----------------------------------------------------------------------------------

    def ids(self, collection: str) -> Iterator[str]:
        for member, ids in self._of_all(collection, lambda backend, name: list(backend.ids(name)), list[str]()):
            yield from (member_id(member, each) for each in ids)

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        members = _by_member(ids).items()
        return [point for member, own in members for point in self._get(collection, member, own, vectors=vectors)]

    def _get(self, collection: str, member: str, ids: Sequence[str], *, vectors: bool) -> list[Point]:
        points = self._on(
            collection, member, lambda backend, name: backend.get(name, ids, vectors=vectors), list[Point]()
        )
        return [replace(point, id=member_id(member, point.id)) for point in points]

    def put(self, collection: str, points: Sequence[Point]) -> None:
        """Write points, member by member; a collection that is not there is made as its other side, or as another's.

        Raises StoreSchemaError, with nothing written, for a point of no member.
        """
        by_id = {point.id: point for point in points}
        members = _by_member([*by_id])
        for member in members:
            self._required(member)
        for member, ids in members.items():
            self._put(collection, member, [replace(by_id[member_id(member, each)], id=each) for each in ids])

    def _put(self, collection: str, member: str, points: Sequence[Point]) -> None:
        def write(backend: Backend, name: str) -> bool:
            backend.put(name, points)
            return True

        if not self._on(collection, member, write, missing=False):
            self._make_for(collection, member, points)
            self._on(collection, member, write, missing=False)

    def _make_for(self, collection: str, member: str, points: Sequence[Point]) -> None:
        backend = self._required(member)
        if any(backend.exists(f"{member}_vecferry_{mark}") for mark in ("old", "ending")):
            what = f"the old collection of {member} is being dropped"
            raise StoreSchemaError(what, "Finish that first: vecferry migrate finalize")
        vectors = [point.vectors for point in points if point.vectors is not None]
        dimension = len(vectors[0].dense) if vectors else self.dimension(collection)
        if dimension is None:
            raise StoreSchemaError(f"nobody knows the dimension of {member}", "Put a point with a vector first.")
        outputs = DENSE
        for each in vectors:
            outputs |= each.outputs
        self._create(collection, member, self._model_of(collection, member), dimension, outputs)

    def _model_of(self, collection: str, member: str) -> str:
        """Return what a collection for this member is made like: its own on another side, or another member's."""
        if self._required(member).exists(member):
            return member
        names = self.names()
        own = [name for name in names if OURS.sub("", name) == member]
        if not (like := min(own, default=None) or next(iter(self.members(collection).values()), None)):
            raise StoreSchemaError(f"there is no collection {self._name}", "Names are spelled as in the store.")
        return like

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        for member, own in _by_member(ids).items():
            self._delete(collection, member, own)

    def _delete(self, collection: str, member: str, ids: Sequence[str]) -> None:
        self._on(collection, member, lambda backend, name: backend.delete(name, ids), None)

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        """Search each member, and merge their answers by score."""
        nothing = list[BackendHit]()
        answers = self._of_all(collection, lambda backend, name: backend.search(name, vector, k, selection), nothing)
        hits = [_hit_within(member, hit) for member, own in answers for hit in own]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    # --- indexes ----------------------------------------------------------------------------------

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        return self._indexes(collection, like, lambda backend, *names: backend.build_indexes(*names))

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        return self._indexes(collection, like, lambda backend, *names: backend.missing_indexes(*names))

    def _indexes(
        self, collection: str, like: str, work: Callable[[Backend, str, str], tuple[str, ...]]
    ) -> tuple[str, ...]:
        """Do `work` for each member that is there on both sides; name what it returns with the member's name."""
        models = self.members(like)
        done = (
            (member, work(self._required(member), name, models[member]))
            for member, name in self.members(collection).items()
            if member in models and models[member] != name
        )
        return tuple(chain.from_iterable((f"{member}/{index}" for index in indexes) for member, indexes in done))


class WithOptionalVectors(GroupBackend):
    """A group in which a point may be without a vector."""

    def without_vector(self, collection: str, ids: Sequence[str]) -> set[str]:
        members = _by_member(ids).items()
        return {bare for member, own in members for bare in self._without_vector(collection, member, own)}

    def _without_vector(self, collection: str, member: str, ids: Sequence[str]) -> set[str]:
        bare = self._on(collection, member, lambda backend, name: _bare(backend, name, ids), set[str]())
        return {member_id(member, each) for each in bare}

    def count_without_vector(self, collection: str) -> int:
        return sum(count for _, count in self._of_all(collection, _count_without_vector, 0))


class WithNotices(GroupBackend):
    """A group of collections of which an operator should know something."""

    def notices(self, collection: str) -> tuple[str, ...]:
        """Return what is true of the members, each notice once."""
        notices = (
            notice.replace(self.name_of(collection, member), collection)
            for member, notices in self._of_all(collection, _notices, tuple[str, ...]())
            for notice in notices
        )
        return tuple(dict.fromkeys(notices))


class WithBoth(WithOptionalVectors, WithNotices):
    """A group of which both is true."""


def group_of(parts: Sequence[Part]) -> GroupBackend:
    """Return the backend of a group. parts: their patterns and backends, all of one store; the first that matches."""
    first = parts[0].backend
    kinds = {
        (False, False): GroupBackend,
        (True, False): WithOptionalVectors,
        (False, True): WithNotices,
        (True, True): WithBoth,
    }
    return kinds[isinstance(first, OptionalVectors), isinstance(first, Noticing)](parts)


def _hit_within(member: str, hit: BackendHit) -> BackendHit:
    """Return a member's hit with the ids of the group."""
    id_ = member_id(member, hit.id)
    return BackendHit(id_, hit.score, hit.point and replace(hit.point, id=id_))


def _by_member(ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the ids inside of each member, by its name."""
    members: dict[str, list[str]] = {}
    for each in dict.fromkeys(ids):
        member, _, own = each.partition("/")
        members.setdefault(member, []).append(own)
    return members


def _refusal(backend: Backend, name: str, outputs: Outputs) -> str:
    """Return why there can be no collection like this one; empty if there can."""
    try:
        backend.check(name, outputs)
    except StoreSchemaError as exc:
        return exc.message
    return ""


def _bare(backend: Backend, name: str, ids: Sequence[str]) -> set[str]:
    assert isinstance(backend, OptionalVectors)
    return backend.without_vector(name, ids)


def _count_without_vector(backend: Backend, name: str) -> int:
    assert isinstance(backend, OptionalVectors)
    return backend.count_without_vector(name)


def _notices(backend: Backend, name: str) -> tuple[str, ...]:
    assert isinstance(backend, Noticing)
    return backend.notices(name)
