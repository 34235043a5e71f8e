"""Two pictures of planted points."""

import numpy as np
import pytest

from vecferry.embeddings import Float32
from vecferry.evaluate.space_map import space_map
from vecferry.evaluate.values import SpaceMap

random = np.random.default_rng(5)
IDS = [f"p{number}" for number in range(40)]
TEXTS = [f"text {number}" for number in range(40)]
SLICES = ["en", "de"] * 20
HALF_A_DECIMAL = 5e-5
"""Places are rounded to four decimals."""


def mapped(old: Float32, new: Float32) -> SpaceMap:
    space = space_map(IDS, TEXTS, SLICES, old, new, "language")
    assert space is not None
    return space


def places(space: SpaceMap, side: str) -> np.ndarray:
    return np.array([getattr(point, side) for point in space.points])


def embedded(plane: np.ndarray, dimension: int) -> Float32:
    """Return a flat picture in a space of more dimensions, away from its origin."""
    axes, _ = np.linalg.qr(random.normal(size=(dimension, 2)))
    return np.asarray(plane @ axes.T + random.normal(size=dimension), np.float32)


@pytest.mark.parametrize("mirrored", [1, -1])
def test_the_same_shape_turned_mirrored_and_scaled_lies_on_the_old_one(mirrored: int) -> None:
    plane = random.normal(size=(40, 2)) * [2, 1]
    turned = 7 * plane @ np.array([[0.6, -0.8], [0.8, 0.6]]) * [1, mirrored]
    space = mapped(embedded(plane, 24), embedded(turned, 64))
    np.testing.assert_allclose(places(space, "old"), places(space, "new"), atol=1e-4 + 1e-5)  # two roundings, float32
    centred = plane - plane.mean(axis=0)
    np.testing.assert_allclose(
        np.linalg.norm(places(space, "old"), axis=1), np.linalg.norm(centred, axis=1), atol=2 * HALF_A_DECIMAL
    )
    assert space.explained == pytest.approx((1, 1), abs=1e-6)


@pytest.mark.parametrize("mirrored", [1, -1])
def test_no_other_turn_brings_a_sheared_shape_nearer_to_the_old_one(mirrored: int) -> None:
    plane = random.normal(size=(40, 2)) * [1.2, 1]
    space = mapped(embedded(plane, 24), embedded(plane @ np.array([[1, 1.5], [0, 1]]) * [1, mirrored], 64))
    old, new = places(space, "old"), places(space, "new")
    apart = np.linalg.norm(new - old)
    assert apart > 1  # of a norm of about 10: a shear is not a turn
    for angle in np.linspace(0, 2 * np.pi, 360, endpoint=False):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for mirror in ([1, 1], [1, -1]):
            assert apart <= np.linalg.norm(new @ turn * mirror - old) + 40 * HALF_A_DECIMAL


def test_the_axes_are_those_of_the_singular_value_decomposition() -> None:
    old, new = (random.normal(size=(40, size)).astype(np.float32) for size in (12, 30))
    space = mapped(old, new)
    for side, vectors, explained in zip(("old", "new"), (old, new), space.explained, strict=True):
        _, values, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
        assert explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=1e-5)  # float32
        if side == "old":
            expected = (vectors - vectors.mean(axis=0)) @ axes[:2].T
            np.testing.assert_allclose(np.abs(places(space, side)), np.abs(expected), atol=2 * HALF_A_DECIMAL)


def test_unlike_spaces_are_drawn_with_the_same_spread() -> None:
    space = mapped(*(scale * random.normal(size=(40, 16)).astype(np.float32) for scale in (1, 30)))
    old, new = (np.linalg.norm(places(space, side)) for side in ("old", "new"))
    assert new == pytest.approx(old, abs=40 * HALF_A_DECIMAL)


def test_points_carry_what_they_were_given_in_its_order() -> None:
    space = mapped(*(random.normal(size=(40, 16)).astype(np.float32) for _ in range(2)))
    assert space.colour == "language"
    assert [(p.id, p.text, p.slice) for p in space.points] == list(zip(IDS, TEXTS, SLICES, strict=True))


def test_a_picture_does_not_depend_on_the_direction_of_an_axis() -> None:
    old, new = (random.normal(size=(40, 16)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(places(mapped(old, new), "new"), places(mapped(old, -new), "new"), atol=1e-4)


def test_equal_vectors_fall_on_one_point() -> None:
    space = mapped(np.ones((40, 8), np.float32), np.ones((40, 9), np.float32))
    assert space.explained == (0.0, 0.0)
    assert not places(space, "old").any()
    assert not places(space, "new").any()


def test_two_passages_are_no_picture() -> None:
    vectors = np.eye(2, dtype=np.float32)
    assert space_map(IDS[:2], TEXTS[:2], SLICES[:2], vectors, vectors, "language") is None
