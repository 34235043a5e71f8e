"""Queries counted for the charts that show them all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vecferry.evaluate.values import Histogram, QueryScore
from vecferry.report.text import shorten

MAX_POINTS = 2000
"""More queries than these are counted in a grid."""
BINS = 20


@dataclass(frozen=True)
class Bin:
    """Queries that share a place in the plane of old and new.

    old, new: from, to; the same twice for a point. texts: of some of the queries; none in a grid.
    """

    old: tuple[float, float]
    new: tuple[float, float]
    queries: int
    texts: tuple[str, ...] = ()

    @property
    def ahead(self) -> int:
        """1 where the new side is, -1 where the old one is, 0 on the diagonal."""
        return (self.new > self.old) - (self.new < self.old)

    @property
    def is_point(self) -> bool:
        return self.old[0] == self.old[1]


def cells(queries: Sequence[QueryScore]) -> tuple[Bin, ...]:
    """Count queries in a bin for each pair of values, to three digits; above `MAX_POINTS`, in squares of a grid."""
    known = [query for query in queries if math.isfinite(query.old) and math.isfinite(query.new)]
    return _grid(known) if len(known) > MAX_POINTS else _points(known)


def _points(queries: Sequence[QueryScore]) -> tuple[Bin, ...]:
    texts_at: dict[tuple[float, float], list[str]] = {}
    for query in queries:
        texts_at.setdefault((round(query.old, 3), round(query.new, 3)), []).append(shorten(query.text, 80))
    return tuple(
        Bin((old, old), (new, new), len(texts), tuple(texts[:5])) for (old, new), texts in sorted(texts_at.items())
    )


def _grid(queries: Sequence[QueryScore]) -> tuple[Bin, ...]:
    counts = Counter((_bin(query.old), _bin(query.new)) for query in queries)
    return tuple(Bin(_edges(old), _edges(new), count) for (old, new), count in sorted(counts.items()))


def _bin(value: float) -> int:
    return min(BINS - 1, max(0, int(value * BINS)))


def _edges(at: int) -> tuple[float, float]:
    return at / BINS, (at + 1) / BINS


def differences(queries: Sequence[QueryScore]) -> Histogram:
    """Count new - old, in steps of 0.1. Queries with the same value under both are in no bin."""
    values = [query.new - query.old for query in queries]
    changed = [difference for difference in values if math.isfinite(difference) and difference != 0]
    counts, edges = np.histogram(np.clip(changed, -1, 1), bins=BINS, range=(-1, 1))
    return Histogram(tuple(np.round(edges, 6).tolist()), tuple(counts.tolist()))
