"""Whether the new side is not worse than the old by more than a margin: the words that a switch waits for."""

from __future__ import annotations

from collections.abc import Sequence

from vecferry.evaluate.comparing import Compared
from vecferry.evaluate.values import ALL, GateResult, SliceScore

MIN_QUERIES = 20
"""Fewer say nothing that a switch may rest on, whatever the interval is."""
MIN_IN_SLICE = 20


def too_few_message(queries: int) -> str:
    """Say that so many queries are fewer than a verdict needs."""
    return f"{queries} queries are too few to judge by; {MIN_QUERIES} are needed."


def judge(compared: Compared, *, margin: float, confidence: float) -> GateResult:
    """Judge non-inferiority: passed if the whole interval of the paired difference lies above -margin.

    Failed if it lies below, or that of a slice of 20 queries or more does; inconclusive in between.
    """
    overall, *slices = compared.slices
    large = [score for score in slices if score.queries >= MIN_IN_SLICE]
    worse = tuple(score.name for score in large if score.difference.high < -margin)
    summary = f"{compared.metric} went from {overall.old.mean:.3f} to {overall.new.mean:.3f}"
    where = f"{overall.difference.low:+.3f} to {overall.difference.high:+.3f} at {confidence:.0%} confidence"
    assert overall.by == ALL
    if overall.queries < MIN_QUERIES:
        verdict, message = "inconclusive", too_few_message(overall.queries)
    elif overall.old.mean == overall.new.mean == 0:
        verdict = "inconclusive"
        message = "Neither side found anything relevant: are the judged ids those of the passages, or keys of the rows?"
    elif overall.difference.high < -margin:
        verdict, message = "failed", f"The new model is worse: {summary} ({where}), more than the margin of {margin:g}."
    elif worse:
        verdict = "failed"
        message = f"The new model is worse for {_joined(worse)} by more than {margin:g}, though {summary} in all."
    elif overall.difference.low < -margin:
        verdict = "inconclusive"
        message = (
            f"Too few queries to tell: {summary} ({where}), which may be a loss of more than the margin of {margin:g}."
        )
    else:
        better = "better" if overall.difference.low > 0 else "not worse"
        verdict, message = "passed", f"The new model is {better}: {summary} ({where}) on {overall.queries:,} queries."
    return GateResult(verdict, message, margin, confidence, compared.metric, overall.difference, worse)  # type: ignore[arg-type]


def slice_mark(score: SliceScore, result: GateResult) -> str:
    """Return a sign for a slice that fell by more than the margin: ✗ where that is shown, ! where it is not."""
    return "" if not slice_message(score, result) else "✗" if _is_shown_worse(score, result) else "!"


def slice_message(score: SliceScore, result: GateResult) -> str:
    """Return what is to be said of a slice that fell by more than the margin; empty if it did not."""
    if _is_shown_worse(score, result):
        return "shown to be worse by more than the margin"
    is_lower = score.difference.mean < -result.margin
    return "fell by more than the margin; that may be chance" if is_lower else ""


def _is_shown_worse(score: SliceScore, result: GateResult) -> bool:
    return score.name in result.worse_slices or (score.by == ALL and score.difference.high < -result.margin)


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
