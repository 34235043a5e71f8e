"""Which of the two collections is which, and how their points are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.backend import Aliased, Backend, Grouped, OptionalVectors, Point
from vecferry.stores.ledger import MigrationRecord, MigrationSpec, Serving
from vecferry.stores.mirror.ending import Ending, MirrorEnding
from vecferry.stores.mirror.group_ending import GroupEnding
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.text_source import FieldText, TextSource
from vecferry.stores.values import Key, Row, Side

T = TypeVar("T")
RENAME_PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Between two tries of what met a collection on its way to another name."""
PAGE = 500
"""Points that are read at a time."""


@dataclass(frozen=True)
class Sides:
    """Collections by name. new: None unless a migration is open. serving: one of the two."""

    old: str
    new: str | None
    serving: str

    @property
    def other(self) -> str:
        """The one that follows. Raises StoreSchemaError if there is none."""
        if self.new is None:
            raise StoreSchemaError(
                f"{self.old} has no new side", "It was dropped; make it again: vecferry migrate start"
            )
        return self.new if self.serving == self.old else self.old

    def name(self, side: Side) -> str:
        return self.old if side is Side.OLD or self.new is None else self.new


class MirrorSides:
    """A backend, the name of a collection in it, the ledger that knows its sides, and what a point's text is."""

    def __init__(
        self, backend: Backend, collection: str, ledger: SqliteLedger, source: TextSource, *, embed_missing: bool
    ) -> None:
        self.embed_missing = embed_missing
        self.backend = backend
        self.ending: Ending = (
            GroupEnding(backend, collection) if isinstance(backend, Grouped) else MirrorEnding(backend, collection)
        )
        self.target = collection
        self.ledger = ledger
        self.source = source

    def fields(self, point: Point) -> dict[str, Any]:
        """Return all that is kept with a point, by name."""
        return {**point.payload, self.backend.text_field: point.text}

    def text(self, point: Point) -> str | None:
        """Return the text that is embedded; None where the point has none."""
        return point.text if isinstance(self.source, FieldText) else self.source.render(self.fields(point))

    def row(self, point: Point) -> Row:
        return Row((point.id,), self.text(point))

    def without_vector(self, collection: str, ids: Sequence[str]) -> set[str]:
        """Return those whose point is there and has no vector."""
        return self.backend.without_vector(collection, ids) if isinstance(self.backend, OptionalVectors) else set()

    def count_without_vector(self, collection: str) -> int:
        return self.backend.count_without_vector(collection) if isinstance(self.backend, OptionalVectors) else 0

    def unembedded(self, serving: str, ids: Sequence[str]) -> set[str]:
        """Return those that have no vector on the side that serves, and so are to have none on the other."""
        return set() if self.embed_missing else self.without_vector(serving, ids)

    def open_record(self) -> MigrationRecord | None:
        record = self.ledger.find(self.target)
        return None if record is None or record.state == "finalized" else record

    def open_spec(self) -> MigrationSpec | None:
        record = self.open_record()
        return None if record is None else record.spec

    def now(self) -> Sides:
        spec, serving = self._recorded()
        source = serving.locator if serving else self._resolved()
        if spec is None:
            return Sides(source, None, source)
        if source == spec.new_locator and self.ending.has_taken_over(source):
            return Sides(old=source, new=self.target, serving=self.target)  # the ledger does not know it yet
        return Sides(spec.old_locator, spec.new_locator, source)

    def retried(self, work: Callable[[Sides], T]) -> T:
        """Do `work`, which may be repeated; again while a collection is being dropped or renamed."""
        for pause_s in RENAME_PAUSES_S:
            sides = self.now()
            try:
                return work(sides)
            except (StoreSchemaError, StoreFailed):
                if self.now() == sides and self.backend.exists(sides.serving):
                    raise
                time.sleep(pause_s)
        return work(self.now())

    def _recorded(self) -> tuple[MigrationSpec | None, Serving | None]:
        """Return both as of one moment: the end of a migration changes both in one transaction."""
        spec, serving = self.open_spec(), self.ledger.serving(self.target)
        while (later := self.open_spec()) != spec:
            spec, serving = later, self.ledger.serving(self.target)
        return spec, serving

    def _resolved(self) -> str:
        name = self.backend.resolve(self.target) if isinstance(self.backend, Aliased) else self.target
        if not self.backend.exists(name):
            raise StoreSchemaError(f"there is no collection {self.target}", "Names are spelled as in the store.")
        return name

    def serving_locator(self, side: Side) -> str:
        sides = self.now()
        if side is Side.OLD or sides.new is not None:
            return sides.name(side)
        serving = self.ledger.serving(self.target)
        number = max(serving.generation if serving else 1, self.ending.last_number())
        return f"{self.target}_vecferry_{number + 1}"

    def pages(self, collection: str, *, vectors: bool = False) -> Iterator[list[Point]]:
        yield from self.pages_of(collection, sorted(self.backend.ids(collection)), vectors=vectors)

    def pages_of(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> Iterator[list[Point]]:
        for start in range(0, len(ids), PAGE):
            yield self.backend.get(collection, ids[start : start + PAGE], vectors=vectors)

    def is_half_finalized(self, sides: Sides) -> bool:
        """Return whether a `finalize` was killed after it had dropped the old collection; it can only be repeated."""
        return sides.new is not None and sides.serving == sides.new and self.ending.has_begun(sides.old, sides.new)

    def dead_letter_digests(self, side: Side, keys: Sequence[Key]) -> dict[Key, bytes]:
        record = self.open_record()
        return self.ledger.dead_letter_digests(record, side, keys) if record and keys else {}
