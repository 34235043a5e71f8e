"""What a cut-off in the old space is in the new one: scores of another model are distributed in another way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vecferry.embeddings import Bool, Float32, Int64
from vecferry.evaluate.statistics import Resampling
from vecferry.evaluate.values import Threshold

RESAMPLES = 200
BY_PRECISION, BY_QUANTILE = "matched precision", "matched quantile"


@dataclass(frozen=True)
class Scored:
    """Hits of one side. scores: float32 [Q, K]; is_hit: bool [Q, K], false where there are fewer.

    relevant: bool [Q, K]; None where nobody judged.
    """

    scores: Float32
    is_hit: Bool
    relevant: Bool | None = None

    def take(self, rows: Int64) -> Scored:
        return Scored(self.scores[rows], self.is_hit[rows], None if self.relevant is None else self.relevant[rows])

    def flat(self) -> Float32:
        return self.scores[self.is_hit]

    def share(self, threshold: float) -> float:
        """Return the share of hits at or above the cut-off."""
        scores = self.flat()
        return float((scores >= threshold).mean()) if len(scores) else 0.0

    def precision(self, threshold: float) -> float | None:
        """Return the share of relevant hits among those at or above the cut-off; None without any, or judgements."""
        passing = self.is_hit & (self.scores >= threshold)
        return float(self.relevant[passing].mean()) if self.relevant is not None and passing.any() else None


def all_mapped(cuts: Mapping[str, float], old: Scored, new: Scored, resampling: Resampling) -> tuple[Threshold, ...]:
    """Map the cut-offs in ascending order; a stricter one never becomes looser, though precision need not rise."""
    thresholds: list[Threshold] = []
    for name, threshold in sorted(cuts.items(), key=lambda item: item[1]):
        at_least = thresholds[-1].new if thresholds else -np.inf
        thresholds.append(mapped(name, threshold, old, new, resampling, at_least=at_least))
    return tuple(thresholds)


def mapped(
    name: str, threshold: float, old: Scored, new: Scored, resampling: Resampling, *, at_least: float = -np.inf
) -> Threshold:
    """Return the cut-off of the new side that is as precise as `threshold` on the old, or keeps as large a share.

    By precision where relevance is known and the new side has such a cut-off; `method` says which. The interval is the
    bootstrap's, over queries, of the same way of matching. Both sides hold the hits of the same queries.
    """
    method = BY_PRECISION if _by_precision(threshold, old, new) is not None else BY_QUANTILE
    cut_off = max(_matched(method, threshold, old, new), at_least)
    rng = np.random.default_rng(resampling.seed)
    again = []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(old.scores), size=len(old.scores))
        again.append(_matched(method, threshold, old.take(rows), new.take(rows)))
    tail = 50 * (1 - resampling.confidence)
    low, high = np.percentile(again, [tail, 100 - tail])
    return Threshold(
        name=name,
        old=threshold,
        new=cut_off,
        low=min(float(low), cut_off),
        high=max(float(high), cut_off),
        method=method,
        old_share=old.share(threshold),
        new_share=new.share(cut_off),
        old_precision=old.precision(threshold),
        new_precision=new.precision(cut_off),
    )


def _matched(method: str, threshold: float, old: Scored, new: Scored) -> float:
    """Match a cut-off; where precision cannot be matched in a resample, the quantile stands in."""
    precise = _by_precision(threshold, old, new) if method == BY_PRECISION else None
    return _by_quantile(threshold, old, new) if precise is None else precise


def _by_precision(threshold: float, old: Scored, new: Scored) -> float | None:
    """Return the lowest cut-off at which the new hits are at least as precise.

    None where there is none, or where all of them are, which would be no cut-off.
    """
    wanted = old.precision(threshold)
    if wanted is None or new.relevant is None:
        return None
    scores, relevant = new.flat(), new.relevant[new.is_hit]
    order = np.argsort(-scores, kind="stable")
    precision = np.cumsum(relevant[order]) / np.arange(1, len(order) + 1)
    last_of_equal = np.append(scores[order][1:] != scores[order][:-1], True)  # a cut-off lets all equal scores pass
    reached = np.flatnonzero((precision >= wanted) & last_of_equal)
    return float(scores[order[reached[-1]]]) if len(reached) > 0 and reached[-1] < len(scores) - 1 else None


def _by_quantile(threshold: float, old: Scored, new: Scored) -> float:
    """Return the cut-off that keeps as large a share of the new hits; just above them where none was kept."""
    share, scores = old.share(threshold), new.flat()
    if not len(scores):
        return threshold
    if share == 0:
        return float(np.nextafter(scores.max(), np.float32(np.inf)))
    return float(np.quantile(scores, 1 - share))
