"""How the cosines of a side are spread: what a threshold of the old space meets in the new one."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vecferry.embeddings import Float32
from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.values import Histogram, ScoreDistribution

BINS = 40
STEPS = 20
"""Of 1: the limits are multiples of 0.05, so that the edges between are short decimals too."""
DECIMALS = 5


def distribution(side: Literal["old", "new"], scores: Float32, relevant: Float32 | None) -> ScoreDistribution:
    """Count cosines of the hits [Q, K], best first. relevant: those of judged pairs, None without judgements.

    The three have the same edges. A query of fewer than ten hits has no tenth.
    """
    first, tenth = scores[:, :1].ravel(), scores[:, 9:10].ravel()
    shown = [first, tenth] if relevant is None else [first, tenth, relevant]
    limits = _limits(np.concatenate([_finite(values) for values in shown]))
    return ScoreDistribution(
        side,
        relevant=None if relevant is None else histogram(relevant, limits=limits),
        first=histogram(first, limits=limits),
        tenth=histogram(tenth, limits=limits),
    )


def histogram(scores: Float32, bins: int = BINS, limits: tuple[float, float] | None = None) -> Histogram:
    """Count the finite scores, whatever their shape; -inf is no hit. limits: by default the scores' own, rounded.

    Those beyond the limits count in the outermost bins.
    """
    values = _finite(scores)
    low, high = limits or _limits(values)
    edges = np.linspace(low, high, bins + 1).round(DECIMALS)
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _finite(scores: Float32) -> Float64:
    return scores[np.isfinite(scores)].astype(np.float64)


def _limits(values: Float64) -> tuple[float, float]:
    """Return the multiples of 0.05 that hold all values; at least 0.05 apart."""
    if not len(values):
        return 0.0, 1.0
    low = np.floor(values.min() * STEPS)
    high = max(np.ceil(values.max() * STEPS), low + 1)
    return float(low / STEPS), float(high / STEPS)
