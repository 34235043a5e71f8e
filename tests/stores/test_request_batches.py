import numpy as np
import pytest

from vecferry.embeddings import SparseVector, TextVectors
from vecferry.stores.backend import Point
from vecferry.stores.request_batches import RequestBatches, slices


def point(number: int, *, text: str = "", dimension: int = 0, pairs: int = 0, **payload: object) -> Point:
    sparse = SparseVector(np.arange(pairs, dtype=np.int32), np.ones(pairs, np.float32)) if pairs else None
    return Point(str(number), text, TextVectors(np.zeros(dimension, np.float32), sparse), payload)


def numbers(batch: RequestBatches, points: list[Point]) -> list[list[str]]:
    return [[each.id for each in part] for part in batch.split(points, bytes_per_number=4)]


def test_points_are_cut_by_their_number_and_keep_their_order() -> None:
    assert numbers(RequestBatches(2, 10**6), [point(n) for n in range(5)]) == [["0", "1"], ["2", "3"], ["4"]]
    assert numbers(RequestBatches(2, 10**6), []) == []


@pytest.mark.parametrize(
    "big",
    [
        {"text": "x" * 900},
        {"text": "é" * 450},
        {"dimension": 225},
        {"pairs": 113},
        {"note": "x" * 900},
    ],
)
def test_points_are_cut_by_the_bytes_of_all_their_parts(big: dict[str, object]) -> None:
    points = [point(0), point(1, **big), point(2, **big), point(3)]  # type: ignore[arg-type]
    assert numbers(RequestBatches(10, 1000), points) == [["0", "1"], ["2", "3"]]


def test_a_point_that_is_too_large_goes_alone() -> None:
    points = [point(0), point(1, text="\ud800" * 5000), point(2)]
    assert numbers(RequestBatches(10, 1000), points) == [["0"], ["1"], ["2"]]


def test_slices_are_full_but_for_the_last() -> None:
    assert [list(part) for part in slices(range(5), 2)] == [[0, 1], [2, 3], [4]]
