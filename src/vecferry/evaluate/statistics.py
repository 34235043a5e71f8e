"""How sure a mean is: the bootstrap over queries (Sakai, SIGIR 2006), by `scipy.stats`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.values import Interval

RESAMPLES = 2000
NUMBERS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Resampling:
    """The bootstrap's settings. confidence: the share of resamples that it holds."""

    confidence: float = 0.95
    seed: int = 0


def mean_with_interval(
    values: Float64, resampling: Resampling, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Return the mean of values [Q] with the bootstrap's percentile interval; `bounds` for fewer than two values.

    The mean of paired differences gives the paired interval.
    """
    from scipy.stats import bootstrap

    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else 0.0, *bounds)
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, NUMBERS_AT_ONCE // len(values)),
        confidence_level=resampling.confidence,
        method="percentile",
        rng=np.random.default_rng(resampling.seed),
    ).confidence_interval
    return Interval(float(values.mean()), float(interval.low), float(interval.high))
