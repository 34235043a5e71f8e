"""Intervals of the bootstrap on values whose mean is known."""

import numpy as np
import pytest

from vecferry.evaluate.statistics import Resampling, mean_with_interval
from vecferry.evaluate.values import Interval

HOW = Resampling()


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    """Of 200 samples of 80 values. The percentile interval is a little too short, and the share itself varies by
    sqrt(0.95 · 0.05 / 200) = 0.015: 0.90 to 0.99 is three of these around 0.945.
    """
    random = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        interval = mean_with_interval(random.beta(0.6, 0.4, 80), Resampling(0.95, seed))
        held += interval.low <= 0.6 <= interval.high
    assert 0.90 <= held / 200 <= 0.99


def test_an_interval_of_more_confidence_is_wider() -> None:
    values = np.random.default_rng(2).random(50)
    widths = [
        interval.high - interval.low
        for interval in (mean_with_interval(values, Resampling(c)) for c in (0.5, 0.9, 0.99))
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


def test_the_paired_interval_is_narrower_than_the_unpaired_where_queries_are_hard_for_both() -> None:
    random = np.random.default_rng(3)
    old = random.random(100)
    new = old + random.normal(0.05, 0.05, 100)
    paired = mean_with_interval(new - old, HOW)
    apart = mean_with_interval(new[random.permutation(100)] - old, HOW)
    assert paired.mean == pytest.approx(apart.mean)
    assert paired.high - paired.low < 0.25 * (apart.high - apart.low)
    assert paired.low > 0 > apart.low


def test_the_seed_alone_decides() -> None:
    values = np.random.default_rng(4).random(30)
    first, again, other = (mean_with_interval(values, Resampling(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first.mean == other.mean == values.mean()


@pytest.mark.parametrize(("values", "mean"), [([], 0.0), ([0.7], 0.7)])
def test_fewer_than_two_values_give_the_bounds(values: list[float], mean: float) -> None:
    assert mean_with_interval(np.array(values), HOW) == Interval(mean, 0.0, 1.0)
    assert mean_with_interval(np.array(values), HOW, bounds=(-1.0, 1.0)) == Interval(mean, -1.0, 1.0)


@pytest.mark.parametrize("number", [2, 3000])
def test_equal_values_give_a_point(number: int) -> None:
    assert mean_with_interval(np.full(number, 0.25), HOW) == Interval(0.25, 0.25, 0.25)
