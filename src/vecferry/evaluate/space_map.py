"""Two pictures of the same passages, the old space and the new, that the eye can compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vecferry.embeddings import Float32
from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.values import MapPoint, SpaceMap

MIN_POINTS = 3
DECIMALS = 4


def space_map(
    ids: Sequence[str], texts: Sequence[str], slices: Sequence[str], old: Float32, new: Float32, colour: str
) -> SpaceMap | None:
    """Map each passage to the first two principal components of old [N, D] and of new [N, D'], in order.

    The new picture is turned, mirrored and scaled onto the old one. None for fewer than three passages.
    """
    if len(ids) < MIN_POINTS:
        return None
    (old_plane, old_share), (new_plane, new_share) = _principal_plane(old), _principal_plane(new)
    places = zip(_places(old_plane), _places(_turned_onto(old_plane, new_plane)), strict=True)
    points = tuple(
        MapPoint(*passage, *place) for passage, place in zip(zip(ids, texts, slices, strict=True), places, strict=True)
    )
    return SpaceMap(points, (old_share, new_share), colour)


def _principal_plane(vectors: Float32) -> tuple[Float64, float]:
    """Return float64 [N, 2], centred on 0, and the share of the variance that it holds.

    From the eigenvectors of the scatter matrix, which are the right singular vectors of the centred ones at a seventh
    of the time. Each points to where its largest number is positive, so that a picture does not flip between machines.
    """
    centred = vectors - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))  # ascending
    first = axes[:, : -min(2, axes.shape[1]) - 1 : -1]  # [D, 2]
    first = first * np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
    total = float(variances.sum())
    share = float(variances[-2:].sum()) / total if total > 0 else 0.0
    return centred.astype(np.float64) @ first, min(share, 1.0)


def _turned_onto(target: Float64, plane: Float64) -> Float64:
    """Apply orthogonal Procrustes (Schönemann, Psychometrika 31, 1966), then scale to the same spread."""
    left, _, right = np.linalg.svd(plane.T @ target)
    spread = float(np.linalg.norm(plane))
    scale = float(np.linalg.norm(target)) / spread if spread > 0 else 1.0
    turned: Float64 = plane @ (left @ right) * scale
    return turned


def _places(plane: Float64) -> list[tuple[float, float]]:
    return [(x, y) for x, y in plane.round(DECIMALS).tolist()]
