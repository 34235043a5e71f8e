"""A `MirrorStore` over a group of collections."""

from __future__ import annotations

import time
from dataclasses import replace

from vecferry.embeddings import Float32, Outputs
from vecferry.errors import CutoverRefused, StoreSchemaError
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.group import GroupBackend, member_id
from vecferry.stores.mirror.group_ending import GroupEnding
from vecferry.stores.mirror.reading import MirrorReader
from vecferry.stores.mirror.sides import MirrorSides, Sides
from vecferry.stores.mirror.store import MirrorStore
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.text_source import TextSource
from vecferry.stores.values import Hit, Key, Patience, Side, StoreTraits
from vecferry.stores.waiting import patiently


class GroupStore(MirrorStore):
    """`Store` and `StoreGroup`. Members are ended one by one, and writers wait for a few of them at a time."""

    def __init__(
        self,
        backend: GroupBackend,
        ledger: SqliteLedger,
        source: TextSource | None = None,
        *,
        embed_missing: bool = False,
    ) -> None:
        """Take the collections of a group for those to be migrated; the rest as `MirrorStore` does."""
        super().__init__(backend, backend.name, ledger, source, embed_missing=embed_missing)
        self._group = backend

    def another(self) -> GroupStore:
        backend, ledger = self._group.another(), self._ledger.another()
        return GroupStore(backend, ledger, self._source, embed_missing=self._sides.embed_missing)

    @property
    def traits(self) -> StoreTraits:
        """Return those of a store in which a write is cheapest member by member, and keeps nobody waiting."""
        return replace(super().traits, locks_rows=False)

    # --- members ----------------------------------------------------------------------------------

    def members(self) -> tuple[str, ...]:
        return tuple(self._group.members(self._sides.now().serving))

    def key_within(self, member: str, key: Key) -> Key:
        if "/" in member or self._group.backend_of(member) is None:
            raise StoreSchemaError(
                f"{member!r} is no collection of {self._target}", "Name one that its pattern matches."
            )
        return (member_id(member, "/".join(key)),)

    def key_of_member(self, key: Key) -> tuple[str, Key]:
        member, _, own = key[0].partition("/")
        return member, (own,)

    def source_within(self, member: str) -> TextSource:  # noqa: ARG002  # one for all, but for the names of fields
        return self.traits.source

    def without_new_side(self) -> tuple[str, ...]:
        """Return none: a new collection is made with its first point."""
        return ()

    def locator_within(self, locator: str, member: str) -> str:
        return self._group.name_of(locator, member)

    def search_within(
        self,
        member: str,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        alone = self._group.within(member)
        sides = MirrorSides(alone, self._target, self._ledger, self._source, embed_missing=self._sides.embed_missing)
        if not alone.members(sides.now().serving):
            return []
        return MirrorReader(sides).search(vector, k, fingerprint=fingerprint, exact=exact, selection=selection)

    # --- the switch and the end -------------------------------------------------------------------

    @property
    def _ending(self) -> GroupEnding:
        assert isinstance(self._sides.ending, GroupEnding)
        return self._sides.ending

    def check_switch(self, to: Side) -> None:
        sides = self._sides.now()
        if to is Side.NEW:
            self._refuse_unseen(sides)
        elif self._sides.is_half_finalized(sides):
            raise CutoverRefused(f"a finalize of {self._target} has begun", "vecferry migrate finalize")
        if sides.new is not None:
            self._group.exists(sides.new)  # it remembers where to look, so that nothing is listed inside the pause

    def drop(self, side: Side) -> None:
        """Drop. Raises StoreSchemaError if points would go that an application has written to a member of its own."""
        if side is Side.OLD:
            self._refuse_unseen(self._sides.now())
        super().drop(side)

    def drop_ahead(self, side: Side, patience: Patience) -> None:
        sides = self._sides.now()
        if side is Side.NEW and sides.serving != sides.new:
            self.drop(Side.NEW)
        elif side is Side.OLD and sides.serving != sides.old and sides.new is not None:
            self._refuse_unseen(sides)
            self._fill_in(sides)
            left = list(self._ending.left(sides.old, sides.new))
            while left:
                patiently(lambda pause_s: self._end_some(left, sides, pause_s, patience.max_pause_s), patience)

    def _without_new(self, sides: Sides) -> tuple[str, ...]:
        return () if sides.new is None else self._ending.without_new(sides.old, sides.new)

    def _refuse_unseen(self, sides: Sides) -> None:
        """Raise StoreSchemaError for members with points on the old side alone, unless these are dead letters."""
        for member in self._without_new(sides):
            points = self._group.within(member)
            rows = [self._sides.row(point) for point in points.get(sides.old, list(points.ids(sides.old)))]
            dead_letters = self._sides.dead_letter_digests(Side.NEW, [row.key for row in rows])
            if unseen := sum(dead_letters.get(row.key) != row.digest for row in rows):
                what = f"a client has made a collection {member} meanwhile, with {unseen} points, which are not"
                remedy = (
                    "Before the switch: vecferry migrate start. After it: vecferry migrate rollback, then start, and"
                )
                remedy += " cut over again; once finalize has begun, put the points elsewhere and drop the collection."
                raise StoreSchemaError(f"{what} on the new side of {self._target}", remedy)

    def _fill_in(self, sides: Sides) -> None:
        """Make the new collections of members of which no point has a new vector, so that their names are kept."""
        spec = self._sides.open_spec()
        if spec is not None and sides.new is not None:
            for member in self._without_new(sides):
                self._group.make(sides.new, member, sides.old, spec.dimension, Outputs.of(spec.outputs))

    def _end_some(self, left: list[str], sides: Sides, pause_s: float, max_pause_s: float) -> None:
        """End as many as can be in half of the time that others may wait."""
        assert sides.new is not None
        until = time.monotonic() + max_pause_s / 2
        with self._ledger.writers_held(self._target, pause_s, max_pause_s):
            while left and time.monotonic() < until:
                self._ending.end(left[0], sides.old, sides.new)
                left.pop(0)
