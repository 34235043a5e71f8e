"""Numbers and findings as a person reads them. What is not known is a dash, never `nan`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from vecferry.evaluate.values import ALL, Evaluation, Evidence, Interval, SliceScore

UNKNOWN = "–"
EVIDENCE: dict[Evidence, str] = {
    "judged queries": "This is strong evidence: somebody said which passages are relevant.",
    "query log": "This is evidence of change only: a log shows which answers differ, not which are better.",
    "pairs from the corpus": "This is weak evidence: the pairs were made from the corpus itself and ask for what is "
    "easy to find, so read the difference between the models and not the height of the figures.",
}
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
MANY = 3


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:,.{digits}f}".replace("-", "−") if _known(value) else UNKNOWN


def signed(value: float | None, digits: int = 3) -> str:
    return f"{value:+,.{digits}f}".replace("-", "−") if _known(value) else UNKNOWN


def percent(value: float | None, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %" if value is not None and math.isfinite(value) else UNKNOWN


def interval(seen: Interval, shown: Callable[[float | None], str] = number) -> str:
    """Its ends, or a dash where the bootstrap had nothing to say."""
    return f"{shown(seen.low)} to {shown(seen.high)}" if _known(seen.low) and _known(seen.high) else UNKNOWN


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
    """How many times `old` `new` is."""
    return f"× {new / old:.2f}" if new is not None and old and math.isfinite(new / old) else UNKNOWN


def shorten(text: str, length: int = 400) -> str:
    """At most `length` characters, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def language_tag(value: str | None) -> str | None:
    """`value` where it can stand in a `lang` attribute."""
    return value if value and LANGUAGE.fullmatch(value) else None


def overall(evaluation: Evaluation) -> SliceScore | None:
    """All queries, under the two systems that are compared."""
    return next((one for one in evaluation.slices if one.by == ALL), None)


def summary(evaluation: Evaluation) -> list[str]:
    """Three to five sentences: the evidence, the figures, who gains and loses, what users will see."""
    parts = (_evidence(evaluation), _figures(evaluation), _extremes(evaluation), _for_users(evaluation))
    return [part for part in parts if part]


def _evidence(evaluation: Evaluation) -> str:
    asked = f"{evaluation.queries_asked:,} {evaluation.evidence} over {evaluation.passages:,} passages"
    if evaluation.evidence == "query log":
        asked = f"{evaluation.queries_asked:,} queries of a log over {evaluation.passages:,} passages"
    judged = f", with {evaluation.judgements:,} judgements" if evaluation.judgements else ""
    return f"Looked at: {asked}{judged}. {EVIDENCE[evaluation.evidence]}"


def _figures(evaluation: Evaluation) -> str:
    seen, gate = overall(evaluation), evaluation.gate
    if seen is None:
        return ""
    return (
        f"Over all queries {gate.metric} goes from {number(seen.old.mean)} to {number(seen.new.mean)}, "
        f"a difference of {signed(seen.difference.mean)} ({percent(gate.confidence)} interval "
        f"{interval(seen.difference, signed)})."
    )


def _extremes(evaluation: Evaluation) -> str:
    found = [s for s in evaluation.slices if s.by != ALL and _known(s.difference.mean)]
    ranked = sorted(found, key=lambda s: -s.difference.mean)
    gains = [s for s in ranked if s.difference.mean > 0][:MANY]
    losses = [s for s in reversed(ranked) if s.difference.mean < 0][:MANY]
    sentences = [f"{word}: {_listed(some)}." for word, some in (("Most gained", gains), ("Most lost", losses)) if some]
    return " ".join([*sentences, *(["No slice has a lower mean than before."] if found and not losses else [])])


def _listed(slices: list[SliceScore]) -> str:
    return ", ".join(f"{s.by} {shorten(s.value, 60)} ({signed(s.difference.mean)})" for s in slices)


def _for_users(evaluation: Evaluation) -> str:
    sentences = []
    if (seen := overall(evaluation)) is not None:
        sentences.append(
            f"For users: {seen.wins:,} of {seen.queries:,} queries get better answers, {seen.losses:,} worse ones, "
            f"and {seen.ties:,} are as they were."
        )
    if evaluation.replay is not None:
        same = f"{percent(evaluation.replay.overlap.mean)} of the first {evaluation.replay.k} answers stay the same"
        sentences.append(f"In the replay of {evaluation.replay.queries:,} queries {same}.")
    if evaluation.thresholds:
        moved = ", ".join(f"{shorten(t.name, 40)} {number(t.old)} → {number(t.new)}" for t in evaluation.thresholds)
        sentences.append(f"Cut-offs move: {moved}.")
    return " ".join(sentences)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
