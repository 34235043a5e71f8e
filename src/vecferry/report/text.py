"""Numbers and findings as a person reads them. What is not known is a dash, never `nan`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from vecferry.evaluate.values import ALL, GUESS, Evaluation, Evidence, GateResult, Interval, SliceScore, Threshold

UNKNOWN = "–"
EVIDENCE: dict[Evidence, str] = {
    "judged queries": "This is strong evidence: somebody said which passages are relevant.",
    "query log": "This is evidence of change only: a log shows which answers differ, not which are better.",
    "pairs from the corpus": "This is weak evidence: the pairs were made from the corpus itself and ask for what is "
    "easy to find, so read the difference between the models and not the height of the figures.",
}
METRIC_MEANINGS = {
    "nDCG": "{metric} is 1 where the relevant passages lead the first {k} answers, lower the further down they stand, "
    "and 0 where none is among them.",
    "R": "{metric} is the share of the relevant passages that are among the first {k} answers.",
    "RR": "{metric} is 1 divided by the rank of the first relevant answer, and 0 where none is among the first {k}.",
}
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
MANY = 3


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:,.{digits}f}".replace("-", "−") if _known(value) else UNKNOWN


def signed(value: float | None, digits: int = 3) -> str:
    return f"{value:+,.{digits}f}".replace("-", "−") if _known(value) else UNKNOWN


def percent(value: float | None, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %" if value is not None and math.isfinite(value) else UNKNOWN


def interval(value: Interval, shown: Callable[[float | None], str] = number) -> str:
    """Return its ends, or a dash where the bootstrap had none."""
    return f"{shown(value.low)} to {shown(value.high)}" if _known(value.low) and _known(value.high) else UNKNOWN


def size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return UNKNOWN
    value, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def ratio(new: float | None, old: float | None) -> str:
    """Return how many times `old` `new` is."""
    return f"× {new / old:.2f}" if new is not None and old and math.isfinite(new / old) else UNKNOWN


def shorten(text: str, length: int = 400) -> str:
    """Return at most `length` characters, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def language_tag(value: str | None) -> str | None:
    """Return `value` where it can stand in a `lang` attribute."""
    return value if value and LANGUAGE.fullmatch(value) else None


def headline(gate: GateResult) -> str:
    """Return the verdict in a few words; `gate.message` has its figures."""
    if gate.verdict == "passed":
        is_better = gate.difference is not None and gate.difference.low > 0
        return f"The new model is {'better' if is_better else 'not worse'}."
    if gate.verdict == "inconclusive":
        return "These queries do not decide it."
    if (gate.difference is not None and gate.difference.high < -gate.margin) or not gate.worse_slices:
        return "The new model is worse."
    named = ", ".join(shorten(name, 40) for name in gate.worse_slices[:MANY])
    more = len(gate.worse_slices) - MANY
    return f"The new model is worse for {named}{f' and {more} more' if more > 0 else ''}."


def explained(metric: str) -> str:
    """Return what a metric measures, in one line; empty for one that is not known here."""
    name, _, k = metric.partition("@")
    return METRIC_MEANINGS[name].format(metric=metric, k=k) if name in METRIC_MEANINGS else ""


def overall(evaluation: Evaluation) -> SliceScore | None:
    """Return the score of all queries, under the two systems that are compared."""
    return next((score for score in evaluation.slices if score.by == ALL), None)


def summary(evaluation: Evaluation) -> list[str]:
    """Return sentences: the evidence, who gains and loses, what users will see. The figures stand with the verdict."""
    parts = (_evidence(evaluation), _extremes(evaluation), _for_users(evaluation))
    return [part for part in parts if part]


def _evidence(evaluation: Evaluation) -> str:
    queries = "queries of a log" if evaluation.evidence == "query log" else evaluation.evidence
    judged = f", with {evaluation.judgements:,} judgements" if evaluation.judgements else ""
    compared = f"{evaluation.queries_asked:,} {queries} over {evaluation.passages:,} passages{judged}"
    return f"Compared on {compared}. {EVIDENCE[evaluation.evidence]}"


def _extremes(evaluation: Evaluation) -> str:
    known = [s for s in evaluation.slices if s.by != ALL and _known(s.difference.mean)]
    ranked = sorted(known, key=lambda s: -s.difference.mean)
    gains = [s for s in ranked if s.difference.mean > 0][:MANY]
    losses = [s for s in reversed(ranked) if s.difference.mean < 0][:MANY]
    sentences = [
        f"{word}: {_listed(slices)}."
        for word, slices in (("Largest gains", gains), ("Largest losses", losses))
        if slices
    ]
    return " ".join([*sentences, *(["No slice has a lower mean than before."] if known and not losses else [])])


def _listed(slices: list[SliceScore]) -> str:
    return ", ".join(f"{s.by} {shorten(s.value, 60)} ({signed(s.difference.mean)})" for s in slices)


def _for_users(evaluation: Evaluation) -> str:
    sentences = []
    if (score := overall(evaluation)) is not None:
        sentences.append(
            f"For users: {score.wins:,} of {score.queries:,} queries get better answers, {score.losses:,} worse ones, "
            f"and {score.ties:,} are as they were."
        )
    if evaluation.replay is not None:
        same = f"{percent(evaluation.replay.overlap.mean)} of the first {evaluation.replay.k} answers stay the same"
        sentences.append(f"In the replay of {evaluation.replay.queries:,} queries {same}.")
    if evaluation.thresholds:
        sentences.append(f"Cut-offs move: {', '.join(map(_moved, evaluation.thresholds))}.")
    return " ".join(sentences)


def _moved(threshold: Threshold) -> str:
    guess = "" if threshold.new_share else f" ({GUESS})"
    return f"{shorten(threshold.name, 40)} {number(threshold.old)} → {number(threshold.new)}{guess}"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
