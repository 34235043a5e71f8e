"""Which of the two collections is which, and how their points are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from vecferry.errors import StoreSchemaError
from vecferry.stores.backend import Aliased, Backend, Point
from vecferry.stores.ledger import Lease, MigrationRecord, MigrationSpec
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Side, StoreTraits

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
            raise StoreSchemaError(f"{self.old} has no new side", "It was dropped: run start again.")
        return self.new if self.serving == self.old else self.old

    def name(self, side: Side) -> str:
        return self.old if side is Side.OLD or self.new is None else self.new


class MirrorSides:
    """A backend, the name of a collection in it, and the ledger that knows its sides."""

    def __init__(self, backend: Backend, collection: str, ledger: SqliteLedger) -> None:
        self._backend = backend
        self._target = collection
        self._ledger = ledger
        self._lease: Lease | None = None
        self._former: Lease | None = None
        self._held_until: float | None = None
        self._sorted_ids: list[str] | None = None

    @property
    def target(self) -> str:
        return self._target

    @property
    def traits(self) -> StoreTraits:
        return StoreTraits(self._backend.text_field, self._backend.outputs, rows_outlive_vectors=False)

    @property
    def ledger(self) -> SqliteLedger:
        return self._ledger

    def another(self) -> Self:
        return type(self)(self._backend.another(), self._target, self._ledger.another())

    def reconnect(self) -> None:
        """Asks the store for its collection; the clients of these stores connect anew by themselves."""
        self._backend.exists(self._target)

    def close(self) -> None:
        self._backend.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- which collection is which ----------------------------------------------------------------

    def _open_record(self) -> MigrationRecord | None:
        record = self._ledger.find(self._target)
        return None if record is None or record.state == "finalized" else record

    def _open_spec(self) -> MigrationSpec | None:
        record = self._open_record()
        return None if record is None else record.spec

    def _sides(self) -> Sides:
        spec, serving = self._open_spec(), self._ledger.serving(self._target)
        source = serving.locator if serving else self._resolved()
        return Sides(source, None, source) if spec is None else Sides(spec.old_locator, spec.new_locator, source)

    def _resolved(self) -> str:
        name = self._backend.resolve(self._target) if isinstance(self._backend, Aliased) else self._target
        if not self._backend.exists(name):
            raise StoreSchemaError(f"there is no collection {self._target}", "Names are spelled as in the store.")
        return name

    def serving_locator(self, side: Side) -> str:
        sides = self._sides()
        if side is Side.OLD or sides.new is not None:
            return sides.name(side)
        serving = self._ledger.serving(self._target)
        return f"{self._target}_vecferry_{(serving.generation if serving else 1) + 1}"

    def _pages(self, collection: str, *, vectors: bool = False) -> Iterator[list[Point]]:
        yield from self._pages_of(collection, sorted(self._backend.ids(collection)), vectors=vectors)

    def _pages_of(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> Iterator[list[Point]]:
        for start in range(0, len(ids), PAGE):
            yield self._backend.get(collection, ids[start : start + PAGE], vectors=vectors)
