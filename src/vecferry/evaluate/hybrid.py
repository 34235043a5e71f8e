"""Weights of the hybrid score: chosen on one half of the queries, reported on the other."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict

import numpy as np

from vecferry.embeddings import HybridWeights, Int64
from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.ranking import Candidates, Ranked
from vecferry.evaluate.statistics import Resampling, mean_with_interval
from vecferry.evaluate.values import HybridFit, Interval, Method

STEPS = 10
"""Weights are tenths that sum to 1."""
MAX_FITTED = 1000
MIN_QUERIES = 4
K = 10


def fitted(
    scored: Candidates,
    judge: Callable[[Ranked, Int64], Float64],
    alone: Mapping[Method, Float64],
    resampling: Resampling,
) -> HybridFit | None:
    """Fit the weights on half of the queries and measure them on the others; None for too few queries.

    judge: the metric of a ranking of some queries, by their places. alone: the metric of each head by itself, of all
    queries. Of weights that are equally good the ones nearest to those published are taken.
    """
    number = len(scored.passages)
    if number < MIN_QUERIES:
        return None
    order = np.random.default_rng(resampling.seed).permutation(number)
    fitting, reporting = np.sort(order[: number // 2][:MAX_FITTED]), np.sort(order[number // 2 :])

    def value(weights: HybridWeights, queries: Int64) -> Float64:
        return judge(scored.take(queries).best(K, weights), queries)

    published = _of_heads(HybridWeights(), alone)
    best = max(
        _grid(alone),
        key=lambda weights: (round(float(value(weights, fitting).mean()), 6), -_distance(weights, published)),
    )
    held_out: dict[str, Interval] = {
        method: mean_with_interval(values[reporting], resampling) for method, values in alone.items()
    }
    held_out["hybrid"] = mean_with_interval(value(best, reporting), resampling)
    of_published = mean_with_interval(value(published, reporting), resampling)
    return HybridFit(asdict(best), len(fitting), len(reporting), held_out, of_published)


def _grid(heads: Container[Method]) -> Iterator[HybridWeights]:
    for dense in range(STEPS + 1):
        for sparse in range(STEPS + 1 - dense):
            weights = HybridWeights(dense / STEPS, sparse / STEPS, (STEPS - dense - sparse) / STEPS)
            if weights == _of_heads(weights, heads):
                yield weights


def _of_heads(weights: HybridWeights, heads: Container[Method]) -> HybridWeights:
    """Return the weights without the heads that are missing."""
    return HybridWeights(
        weights.dense if "dense" in heads else 0.0,
        weights.sparse if "sparse" in heads else 0.0,
        weights.colbert if "colbert" in heads else 0.0,
    )


def _distance(weights: HybridWeights, published: HybridWeights) -> float:
    """Return the distance of two ways of sharing 1 out; rounded, so that equal distances are equal."""
    total = published.dense + published.sparse + published.colbert
    apart = (
        abs(weights.dense - published.dense / total)
        + abs(weights.sparse - published.sparse / total)
        + abs(weights.colbert - published.colbert / total)
    )
    return round(apart, 6)
