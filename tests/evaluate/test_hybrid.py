"""Weights of the hybrid score, where it is known which head tells something."""

from collections.abc import Callable

import numpy as np
import pytest

from vecferry.embeddings import HybridWeights, Int64
from vecferry.evaluate.hybrid import MAX_FITTED, MIN_QUERIES, fitted
from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.ranking import Candidates, Ranked
from vecferry.evaluate.statistics import Resampling
from vecferry.evaluate.values import HybridFit, Method

HOW = Resampling()
QUERIES, PASSAGES = 60, 12
HEADS: tuple[Method, ...] = ("dense", "sparse", "colbert")


def candidates(random: np.random.Generator, queries: int = QUERIES) -> Candidates:
    """Return candidates: each query's relevant passage is its number modulo 12; only the sparse score tells it.

    The others are so large that a tenth of either hides it.
    """
    sparse = np.zeros((queries, PASSAGES), np.float32)
    sparse[np.arange(queries), np.arange(queries) % PASSAGES] = 1
    dense, colbert = (random.normal(0, 1000, (queries, PASSAGES)).astype(np.float32) for _ in range(2))
    return Candidates(np.tile(np.arange(PASSAGES), (queries, 1)), dense, sparse, colbert)


def first_is_relevant(ranking: Ranked, queries: Int64) -> Float64:
    return np.asarray(ranking.passages[:, 0] == queries % PASSAGES, np.float64)


def alone(heads: tuple[Method, ...], queries: int = QUERIES) -> dict[Method, Float64]:
    return {head: np.zeros(queries) for head in heads}


def fit(
    scored: Candidates, judge: Callable[[Ranked, Int64], Float64], heads: dict[Method, Float64], seed: int = 0
) -> HybridFit:
    fit_result = fitted(scored, judge, heads, Resampling(seed=seed))
    assert fit_result is not None
    return fit_result


def test_the_weights_go_to_the_only_head_that_tells_something() -> None:
    fit_result = fit(candidates(np.random.default_rng(1)), first_is_relevant, alone(HEADS))
    assert fit_result.weights == {"dense": 0.0, "sparse": 1.0, "colbert": 0.0}
    assert (fit_result.fitted_on, fit_result.reported_on) == (QUERIES // 2, QUERIES // 2)
    assert fit_result.held_out["hybrid"].mean == 1.0
    assert fit_result.published is not None
    assert fit_result.published.mean < 0.5  # chance is 1 in 12


def test_what_is_reported_is_of_the_half_that_the_weights_were_not_chosen_on() -> None:
    judged: list[Int64] = []

    def judge(ranking: Ranked, queries: Int64) -> Float64:
        judged.append(queries)
        return queries / 100

    values = np.arange(QUERIES) / 100
    fit_result = fit(candidates(np.random.default_rng(2)), judge, dict.fromkeys(HEADS, values))
    halves = {tuple(rows.tolist()) for rows in judged}
    assert len(halves) == 2
    chosen_on, reported_on = tuple(judged[0].tolist()), tuple(judged[-1].tolist())
    assert sorted(chosen_on + reported_on) == list(range(QUERIES))
    assert fit_result.held_out["hybrid"].mean == pytest.approx(np.mean(reported_on) / 100)
    assert {method: interval.mean for method, interval in fit_result.held_out.items()} == pytest.approx(
        dict.fromkeys((*HEADS, "hybrid"), np.mean(reported_on) / 100)
    )


def test_the_seed_decides_on_the_halves() -> None:
    scored, values = candidates(np.random.default_rng(3)), np.arange(QUERIES) / 100
    heads: dict[Method, Float64] = {"dense": values, "sparse": values}
    first, again, other = (fit(scored, first_is_relevant, heads, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.held_out["dense"] != other.held_out["dense"]


@pytest.mark.parametrize("absent", HEADS)
def test_a_head_that_is_absent_has_no_weight(absent: Method) -> None:
    heads = tuple(head for head in HEADS if head != absent)
    random = np.random.default_rng(4)
    fit_result = fit(candidates(random), lambda ranked, queries: random.random(len(queries)), alone(heads))
    assert fit_result.weights[absent] == 0
    assert sum(fit_result.weights.values()) == pytest.approx(1)
    assert set(fit_result.held_out) == {*heads, "hybrid"}


@pytest.mark.parametrize(
    ("heads", "weights"),
    [
        (HEADS, HybridWeights()),
        (("dense", "colbert"), HybridWeights(0.5, 0.0, 0.5)),
        (("dense", "sparse"), HybridWeights(0.7, 0.3, 0.0)),  # 0.4 to 0.2 in tenths
        (("dense",), HybridWeights(1.0, 0.0, 0.0)),
    ],
)
def test_of_weights_that_are_equally_good_those_nearest_to_the_published_are_taken(
    heads: tuple[Method, ...], weights: HybridWeights
) -> None:
    fit_result = fit(candidates(np.random.default_rng(5)), lambda ranked, queries: np.ones(len(queries)), alone(heads))
    assert fit_result.weights == pytest.approx(vars(weights))


def test_too_few_queries_are_not_fitted() -> None:
    few = MIN_QUERIES - 1
    scored = candidates(np.random.default_rng(6), few)
    assert fitted(scored, first_is_relevant, alone(HEADS, few), HOW) is None


def test_of_many_queries_a_part_is_fitted_on_and_the_other_half_is_reported() -> None:
    many = 2 * MAX_FITTED + 100
    scored = candidates(np.random.default_rng(7), many)
    fit_result = fit(scored, lambda ranked, queries: np.ones(len(queries)), alone(("dense",), many))
    assert (fit_result.fitted_on, fit_result.reported_on) == (MAX_FITTED, many - many // 2)
