"""The report's page, from its templates. Every text is escaped by Jinja."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vecferry.errors import MissingExtra, OutputWriteFailed, reason_of
from vecferry.evaluate.gate import slice_mark, slice_message
from vecferry.evaluate.values import (
    ALL,
    METRICS,
    Evaluation,
    Interval,
    QueryChange,
    ScoreDistribution,
    ShownHit,
    SliceScore,
    SpaceMap,
)
from vecferry.model.files import replacing, write_json
from vecferry.report import binning, charts, text

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
except ModuleNotFoundError as exc:
    raise MissingExtra("report", exc.name or "jinja2") from exc

HERE = Path(__file__).parent
VERDICTS = {"passed": "✓ Gate passed", "failed": "✗ Gate failed", "inconclusive": "? Gate inconclusive"}
REPORT_KEYS = {"old", "new", "gate", "slices"}
"""By these a file of values is known for a report's."""
MAX_MAPPED = 2000
SHAPE_MARKS = "●■▲◆✚▼▶◀"
"""As `charts.SHAPES`, for the map's legend."""


@dataclass(frozen=True)
class Section:
    """A part of the page that has something to say. parts: what `templates/<id>.html.j2` shows."""

    id: str
    title: str
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class RankedHit:
    """A hit as a card shows it. elsewhere: its rank on the other side, None if not among those shown."""

    rank: int
    hit: ShownHit
    elsewhere: int | None


def render(evaluation: Evaluation) -> str:
    """Render one HTML document: no script, and no request to anything outside it."""
    page = _environment().get_template("report.html.j2")
    return page.render(
        evaluation=evaluation,
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704  # ours
        verdict_mark=VERDICTS[evaluation.gate.verdict],
        headline=text.headline(evaluation.gate),
        metric_meaning=text.explained(evaluation.gate.metric),
        summary=text.summary(evaluation),
        overall=text.overall(evaluation),
        sections=[section for build in SECTIONS if (section := build(evaluation)) is not None],
    )


def check_report_path(path: Path) -> Path:
    """Return where the values go. Raises OutputWriteFailed for a file of that name that is not a report's."""
    values = path.with_suffix(".json")
    if values == path:
        raise OutputWriteFailed(path, "a name that ends in .json is that of the values beside the page")
    if values.is_file() and not _is_report(values):
        raise OutputWriteFailed(
            values, f"the figures of {path.name} go there, and the file that is there is no report's"
        )
    return values


def _is_report(values: Path) -> bool:
    try:
        content = json.loads(values.read_bytes())
    except (ValueError, OSError):
        return False
    return isinstance(content, dict) and content.keys() >= REPORT_KEYS


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write the page to `path`, and beside it the values as JSON; a number that is not finite is null there.

    Each file is whole or not there. Raises OutputWriteFailed, also for what `check_report_path` refuses.
    """
    path = Path(path)
    values = check_report_path(path)
    page = render(evaluation).encode("utf-8", errors="replace")
    try:
        write_json(values, _finite(evaluation.to_dict()))
        with replacing(path) as temporary:
            temporary.write_bytes(page)
    except OSError as exc:
        raise OutputWriteFailed(path, reason_of(exc)) from exc


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("number", "signed", "percent", "interval", "size", "ratio", "shorten", "language_tag")
    environment.filters |= {name: getattr(text, name) for name in names} | {
        "slice_mark": slice_mark,
        "slice_message": slice_message,
    }
    return environment


# --- sections -------------------------------------------------------------------------------------


def _quality(evaluation: Evaluation) -> Section | None:
    if not evaluation.slices and not evaluation.systems:
        return None
    methods = [system for system in evaluation.systems if system.metrics]
    names = [name for name in METRICS if any(name in system.metrics for system in methods)]
    groups = [_group(evaluation, title, slices) for title, slices in _grouped(evaluation.slices)]
    return Section("quality", "Quality", {"groups": groups, "methods": methods, "metrics": names})


def _grouped(slices: Sequence[SliceScore]) -> Iterable[tuple[str, list[SliceScore]]]:
    """Yield slices by kind, in the order given, each with all queries before it."""
    everything = [score for score in slices if score.by == ALL]
    kinds = dict.fromkeys(score.by for score in slices if score.by != ALL)
    if everything and not kinds:
        yield "All queries", everything
    for kind in kinds:
        yield (
            f"By {text.shorten(kind, 60)}",
            charts.by_difference([*everything, *(s for s in slices if s.by == kind)]),
        )


def _group(evaluation: Evaluation, title: str, slices: list[SliceScore]) -> Mapping[str, Any]:
    gate = evaluation.gate
    return {
        "title": title, "slices": slices, "quality": _drawn(charts.quality(slices, gate.metric)),
        "differences": _drawn(charts.differences(slices, gate.margin)),
        "lost": sum(score.difference.high < 0 for score in slices),
        "gained": sum(score.difference.low > 0 for score in slices),
        "is_marked": any(slice_mark(score, gate) for score in slices),
    }  # fmt: skip


def _queries(evaluation: Evaluation) -> Section | None:
    if not (evaluation.queries or evaluation.gains or evaluation.losses):
        return None
    cells, bars = binning.cells(evaluation.queries), binning.differences(evaluation.queries)
    metric, changed = evaluation.gate.metric, sum(bars.counts)
    languages = {query.text: query.slices.get("language") for query in evaluation.queries}
    return Section("queries", "Queries", {
        "cells": cells, "bars": [(*ends, count) for ends, count in zip(pairwise(bars.edges), bars.counts, strict=True)],
        "changed": changed, "counted": sum(cell.queries for cell in cells),
        "scatter": _drawn(charts.scatter(cells, metric)) if cells else None,
        "histogram": _drawn(charts.histogram(bars, metric)) if changed else None,
        "changes": [(title, [_gained(change, metric, languages.get(change.query)) for change in changes])
                    for title, changes in (("Largest gains", evaluation.gains), ("Largest losses", evaluation.losses))
                    if changes],
    })  # fmt: skip


def _gained(change: QueryChange, metric: str, language: str | None) -> Mapping[str, Any]:
    return _card(change, f"{metric} {text.signed(change.difference)}", language)


def _card(change: QueryChange, moved: str, language: str | None = None) -> Mapping[str, Any]:
    """Describe a query whose answers changed. moved: how they changed, as a text."""
    old, new = ({hit.id: rank for rank, hit in enumerate(hits, 1)} for hits in (change.old_hits, change.new_hits))
    return {
        "change": change, "moved": moved, "language": text.language_tag(language),
        "old": [RankedHit(rank, hit, new.get(hit.id)) for rank, hit in enumerate(change.old_hits, 1)],
        "new": [RankedHit(rank, hit, old.get(hit.id)) for rank, hit in enumerate(change.new_hits, 1)],
    }  # fmt: skip


def _scores(evaluation: Evaluation) -> Section | None:
    if not (evaluation.scores or evaluation.thresholds):
        return None
    sides = [
        {"scores": scores, "drawn": _drawn(charts.distribution(scores, evaluation.thresholds)), "rows": _shares(scores)}
        for scores in evaluation.scores
    ]
    return Section("scores", "Scores and cut-offs", {"sides": sides, "thresholds": evaluation.thresholds})


def _shares(scores: ScoreDistribution) -> list[tuple[float, float, list[int]]]:
    """Return from, to, and the counts of relevant, first and tenth, which share their edges."""
    columns = [bins.counts for bins in (scores.relevant, scores.first, scores.tenth) if bins is not None]
    edges = pairwise(scores.first.edges)
    return [(low, high, [counts[at] for counts in columns]) for at, (low, high) in enumerate(edges)]


def _replay(evaluation: Evaluation) -> Section | None:
    replay = evaluation.replay
    if replay is None:
        return None
    columns = list(dict.fromkeys(name for entry in replay.slices for name in entry))
    rows = [[_as_text(entry.get(name)) for name in columns] for entry in replay.slices]
    cards = [
        _card(change, f"{text.percent(1 + change.difference)} of the answers stay the same")
        for change in replay.most_changed
    ]
    return Section("replay", "Replay of the query log", {
        "replay": replay, "columns": columns, "rows": rows, "cards": cards,
    })  # fmt: skip


def _findings(evaluation: Evaluation) -> Section | None:
    findings = evaluation.findings
    return Section("findings", "The texts", {"findings": findings}) if findings else None


def _map(evaluation: Evaluation) -> Section | None:
    if evaluation.map is None or not evaluation.map.points:
        return None
    points = evaluation.map.points[:: math.ceil(len(evaluation.map.points) / MAX_MAPPED)]
    slices = [name for name, _ in Counter(point.slice for point in points).most_common()]
    return Section("map", "Map of the two spaces", {
        "map": evaluation.map, "shown": len(points), "slices": _legend(evaluation.map, slices),
        "old": _drawn(charts.space(points, slices, "old")), "new": _drawn(charts.space(points, slices, "new")),
    })  # fmt: skip


def _legend(mapped: SpaceMap, slices: Sequence[str]) -> list[Mapping[str, Any]]:
    entries: list[Mapping[str, Any]] = []
    for at, name in enumerate(slices):
        members = [point for point in mapped.points if point.slice == name]
        middles = [
            [sum(ends) / len(members) for ends in zip(*(getattr(point, side) for point in members), strict=True)]
            for side in ("old", "new")
        ]
        place = min(at, len(SHAPE_MARKS) - 1)
        entries.append(
            {"name": name, "place": place, "mark": SHAPE_MARKS[place], "num": len(members), "middles": middles}
        )
    return entries


def _models(evaluation: Evaluation) -> Section:
    old, new = evaluation.old, evaluation.new
    measured: list[tuple[str, str, Callable[[Any], str]]] = [
        ("Numbers in a vector", "dimension", _count), ("Longest text, tokens", "max_tokens", _count),
        ("Artifact on disk", "bytes", text.size), ("Vectors of all passages", "index_bytes", text.size),
        ("Passages encoded a second", "texts_per_s", lambda rate: text.number(rate, 1)),
        ("One query, median ms", "query_ms", lambda ms: text.number(ms, 1)),
    ]  # fmt: skip
    figures = [(title, shown, getattr(old, name), getattr(new, name)) for title, name, shown in measured]
    rows = [
        (title, shown(before), shown(after), text.ratio(after, before))
        for title, shown, before, after in figures
        if before is not None or after is not None
    ]
    return Section("models", "Speed, size, cost", {"rows": rows, "sides": (old, new)})


def _count(value: int | None) -> str:
    return text.number(value, 0)


def _provenance(evaluation: Evaluation) -> Section:
    return Section("provenance", "Provenance", {"entries": dict(_entries(evaluation.provenance))})


def _entries(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield lines of a mapping; nested mappings stay."""
    for name, value in values.items():
        yield name, dict(_entries(value)) if isinstance(value, Mapping) else _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_as_text, value))
    if isinstance(value, Mapping):
        return _as_text(Interval(**value)) if value.keys() == {"mean", "low", "high"} else _as_text([*value.items()])
    if isinstance(value, Interval):
        return f"{text.number(value.mean)} ({text.interval(value)})"
    if isinstance(value, float):
        return text.number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return text.UNKNOWN if value is None else str(value)


def _drawn(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704  # drawn by charts.py, which escapes


SECTIONS: tuple[Callable[[Evaluation], Section | None], ...] = (
    _quality, _queries, _scores, _replay, _findings, _map, _models, _provenance,
)  # fmt: skip
