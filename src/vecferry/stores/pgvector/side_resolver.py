"""Which side is in which vector space, wherever its column is now."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from vecferry.errors import SpaceMismatch
from vecferry.stores.pgvector.catalogue import Catalogue, Columns
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.values import Side

UNMARKED = "not recorded"
Length = Callable[[Columns, str], int | None]


@dataclass(frozen=True)
class ResolvedSide:
    """A side's column. dimension and space are None where nobody has said them; an unmarked new side is in no space.

    beside: the columns of the side table, if it is one of them.
    """

    side: Side
    column: str
    dimension: int | None
    space: str | None
    beside: tuple[str, ...]


class SideResolver:
    """To be asked in a transaction in which the columns keep their names.

    length: of the vectors of a column, as the column says, or else by looking at one.
    """

    def __init__(self, catalogue: Catalogue, ledger: PgLedger, target: str, length: Length) -> None:
        self._catalogue = catalogue
        self._length = length
        self._ledger = ledger
        self._target = target

    def places(self) -> list[ResolvedSide]:
        """Return the sides that are there; the one that serves is first."""
        columns = self._catalogue.columns()
        served, old = self._ledger.recorded_spaces(self._target)
        places = []
        for side in (columns.serving, columns.serving.other):
            if (column := columns.of_side(side)) is not None:
                info = columns.by_name[column]
                here = served if side is columns.serving else None
                known = (here, old, info.space) if side is Side.OLD else (here, info.space, UNMARKED)
                space = next((each for each in known if each is not None), None)
                beside = columns.beside if column in columns.beside else ()
                places.append(ResolvedSide(side, column, self._length(columns, column), space, beside))
        return places

    def searched(self, fingerprint: str, dimension: int) -> ResolvedSide:
        """Return where vectors of that space are; a side of unknown space is the last resort. Raises SpaceMismatch."""
        return self._fitting(self.places(), fingerprint, dimension, f"a search in {self._target}")

    def read(self, fingerprint: str) -> ResolvedSide:
        """Return where vectors of that space are, to look at, of whatever dimension they are. Raises SpaceMismatch."""
        return self._fitting(self.places(), fingerprint, None, f"a read of vectors in {self._target}")

    def written(self, fingerprint: str, dimensions: Collection[int | None]) -> ResolvedSide:
        """Return the side that serves. Raises SpaceMismatch if it is in another space or has not these dimensions."""
        where, (serving, *others) = f"a write to {self._target}", self.places()
        if fingerprint in {other.space for other in others} - {serving.space}:
            raise SpaceMismatch(expected=serving.space or UNMARKED, found=fingerprint, where=where)
        for dimension in dimensions or [None]:
            self._fitting([serving], fingerprint, dimension, where)
        return serving

    def _fitting(self, places: list[ResolvedSide], fingerprint: str, dimension: int | None, where: str) -> ResolvedSide:
        """Return the first place that fits. dimension: None where no vector is given."""
        for place in sorted(places, key=lambda place: place.space is None):
            if place.space in (None, fingerprint):
                if None not in (place.dimension, dimension) and place.dimension != dimension:
                    what = f"{where} with {dimension} numbers, which has {place.dimension}"
                    raise SpaceMismatch(expected=place.space or UNMARKED, found=fingerprint, where=what)
                return place
        raise SpaceMismatch(expected=places[0].space or UNMARKED, found=fingerprint, where=where)
