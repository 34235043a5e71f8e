"""Points in portions that a server takes in one request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vecferry.portions import portions
from vecferry.stores.backend import Point

T = TypeVar("T")


@dataclass(frozen=True)
class RequestBatches:
    """Limits of one request. A point that is over `num_bytes` by itself goes alone."""

    num_points: int
    num_bytes: int

    def split(self, points: Sequence[Point], bytes_per_number: int) -> Iterator[list[Point]]:
        """Yield the points in their order, by batches. bytes_per_number: of a vector, as the request spells it."""
        sizes = (_size(point, bytes_per_number) for point in points)
        for part in portions(sizes, self.num_bytes, self.num_points):
            yield list(points[part])


def slices(values: Sequence[T], num: int) -> Iterator[Sequence[T]]:
    """Yield the values in their order, `num` at a time; the last may have fewer."""
    for start in range(0, len(values), num):
        yield values[start : start + num]


def _size(point: Point, bytes_per_number: int) -> int:
    """Return the bytes of a point in a request, about."""
    numbers = 0
    if (vectors := point.vectors) is not None:
        numbers += vectors.dense.size
        numbers += 0 if vectors.sparse is None else 2 * len(vectors.sparse.indices)
        numbers += 0 if vectors.colbert is None else vectors.colbert.size
    text = len((point.text or "").encode("utf-8", "surrogatepass"))
    return bytes_per_number * numbers + text + len(json.dumps(point.payload, default=str))
