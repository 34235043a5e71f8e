"""Charts as SVG, drawn while the report is written.

A panel is 440 units wide and may be shown at any width. Its colours are the page's custom properties, so that light,
dark and print follow from CSS; its hover texts are `<title>` elements, and it holds no script.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as ET

from vecferry.errors import MissingExtra, OutputWriteFailed, SettingsError, reason_of
from vecferry.evaluate.values import (
    ALL,
    Evaluation,
    Histogram,
    Interval,
    MapPoint,
    ScoreDistribution,
    SliceScore,
    Threshold,
)
from vecferry.model.files import replacing
from vecferry.report.binning import Bin
from vecferry.report.text import interval, number, shorten, signed

try:
    import altair as alt
    import vl_convert
except ModuleNotFoundError as exc:
    raise MissingExtra("report", exc.name or "altair") from exc
except RuntimeError as exc:  # of pathlib, which altair asks for the user's home
    raise SettingsError("HOME", "", "a folder, as /tmp: this user has none, and the charts' library wants one") from exc

Side = Literal["old", "new"]
Align = Literal["left", "center", "right"]
Chart = alt.Chart | alt.LayerChart | alt.HConcatChart

WIDTH, ROW, AXIS = 440, 36, 68
"""Of a panel: its width, the height of a row of a slice, and what the lower axis and the names of lines take."""
TICK_ROOM = 64
"""What a number on a horizontal axis takes, with the gap to the next one."""
FONT_SIZE = 12
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
"""By which slices are told apart on the map, beside their colour; what comes after the last looks like it."""
MANY_DIGITS = re.compile(r"-?\d+\.\d{3,}")
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Palette:
    """Colours as an SVG attribute takes them. series: of slices on the map, as many as `SHAPES`."""

    old: str
    new: str
    text: str
    muted: str
    line: str
    page: str
    caution: str
    series: tuple[str, ...] = ()
    font: str = "system-ui, sans-serif"

    def of(self, sign: float) -> str:
        """Return the colour of the side that is ahead."""
        return self.muted if sign == 0 else self.new if sign > 0 else self.old


PAGE = Palette(
    old="var(--old)",
    new="var(--new)",
    text="var(--fg)",
    muted="var(--muted)",
    line="var(--line)",
    page="var(--bg)",
    caution="var(--caution)",
    series=tuple(f"var(--s{at})" for at in range(len(SHAPES))),
)
PICTURE = Palette("#4f6b87", "#c2410c", "#1c2126", "#57606a", "#dde1e5", "#ffffff", "#8a6100")


# --- quality --------------------------------------------------------------------------------------


def by_difference(slices: Iterable[SliceScore]) -> list[SliceScore]:
    """Sort slices: all queries first, then the largest gain; those without a difference last."""
    return sorted(slices, key=lambda s: (s.by != ALL, -s.difference.mean if math.isfinite(s.difference.mean) else 9.0))


def quality(slices: Sequence[SliceScore], metric: str) -> str:
    """Draw per slice, from above: the old mean (hollow) and the new one (filled), each with its interval."""
    panel = _fit(_quality(slices, metric, PAGE), _height(slices))
    return _svg(panel, PAGE, f"{metric} of the old and the new model by slice, with intervals")


def differences(slices: Sequence[SliceScore], margin: float) -> str:
    """Draw per slice the paired difference with its interval, no change as a line, the margin as a dashed one."""
    panel = _fit(_differences(slices, margin, PAGE, _slices_axis(slices)), _height(slices))
    return _svg(panel, PAGE, "Difference, new less old, by slice, with intervals and the gate's margin")


def _quality(slices: Sequence[SliceScore], metric: str, palette: Palette) -> alt.LayerChart:
    rows = [
        {
            "row": row,
            "side": side,
            **_ends(score),
            "end": score.high if math.isfinite(score.high) else score.mean,
            "hover": f"{_label(s)}, {side}: {number(score.mean)} ({interval(score)})",
        }
        for row, s in enumerate(slices)
        for side, score in (("old", s.old), ("new", s.new))
        if math.isfinite(score.mean)
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=_slices_axis(slices),
        yOffset=alt.YOffset("side:N", sort=["old", "new"], scale=alt.Scale(paddingOuter=0.6)),
        color=_coloured("side", {"old": palette.old, "new": palette.new}),
    )
    x = alt.X("mean:Q", title=metric, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=_ticks(slices)))
    dots = base.mark_point(size=64, opacity=1, strokeWidth=2).encode(
        x=x, description="hover:N", fill=_coloured("side", {"old": palette.page, "new": palette.new})
    )
    names = base.transform_filter("datum.row == 0").mark_text(align="left", dx=8, fontSize=11, aria=False)
    ends = alt.X("end:Q")
    title = _words(
        "mean, and its interval", palette.muted, "left", x=alt.value(0), y=alt.value(0), baseline="bottom", dy=-3
    )
    return alt.LayerChart(layer=[_whiskers(base, alt.X("low:Q")), dots, names.encode(x=ends, text="side:N"), title])


def _differences(slices: Sequence[SliceScore], margin: float, palette: Palette, axis: alt.Y) -> alt.LayerChart:
    rows = [
        {
            "row": row, **_ends(s.difference), "sure": _sign(s.difference),
            "hover": f"{_label(s)}: {signed(s.difference.mean)} ({interval(s.difference, shown=signed)})",
        }
        for row, s in enumerate(slices)
        if math.isfinite(s.difference.mean)
    ]  # fmt: skip
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=axis, color=_coloured("sure", {sign: palette.of(sign) for sign in (-1, 0, 1)})
    )
    x = alt.X("mean:Q", title="difference, new − old", axis=_signed_axis(".3~f", _ticks(slices)))
    hollow_if_unsure = {-1: palette.old, 0: palette.page, 1: palette.new}
    dots = base.mark_point(size=64, opacity=1, strokeWidth=2).encode(
        x=x, description="hover:N", fill=_coloured("sure", hollow_if_unsure)
    )
    lines = [
        _vertical(0.0, palette.muted, name="no change", align="left"),
        _vertical(-margin, palette.caution, [5, 3], f"margin {signed(-margin, 2)}", align="right"),
    ]
    return alt.LayerChart(layer=[*lines, _whiskers(base, alt.X("low:Q")), dots])


def _ticks(slices: Sequence[SliceScore]) -> int:
    """Return about how many numbers fit under the rows of a panel, beside their names."""
    room = WIDTH - max((_room(_label(s)) for s in slices), default=0)
    return max(2, int(room / TICK_ROOM))


def _whiskers(base: alt.Chart, x: alt.X) -> alt.Chart:
    """Draw lines from low to high, where both are known."""
    known = alt.FieldValidPredicate(field="low", valid=True)
    whiskers: alt.Chart = base.transform_filter(known).mark_rule(strokeWidth=2, aria=False).encode(x=x, x2="high:Q")
    return whiskers


def _label(score: SliceScore) -> str:
    return f"all · {score.queries:,}" if score.by == ALL else f"{_plain(shorten(score.value, 18))} · {score.queries:,}"


def _slices_axis(slices: Sequence[SliceScore], *, labelled: bool = True) -> alt.Y:
    """Return a row for each, in the order given; two may have the same name."""
    labels = [_label(s) if labelled else "" for s in slices]
    axis = alt.Axis(
        domain=False, ticks=False, grid=True, labelPadding=8, labelLimit=0,
        labelExpr=f"{json.dumps(labels)}[datum.value]", minExtent=max(map(_room, labels), default=0),
    )  # fmt: skip
    scale = alt.Scale(type="band", domain=list(range(len(slices))), paddingInner=0.2, paddingOuter=0.1)
    return alt.Y("row:O", title=None, axis=axis, scale=scale)


def _room(label: str) -> float:
    """Return what a label may take in the fonts of those who read it, which are not known here."""
    return sum(13.0 if character >= "\u2e80" else 7.4 for character in label) + 14 if label else 0


def _height(slices: Sequence[SliceScore]) -> int:
    return ROW * len(slices) + AXIS


def _ends(value: Interval) -> dict[str, float | None]:
    known = math.isfinite(value.low) and math.isfinite(value.high)
    return {"mean": value.mean, "low": value.low if known else None, "high": value.high if known else None}


def _sign(difference: Interval) -> int:
    """Return 1 if the interval is above no change, -1 if it is below."""
    return int(difference.low > 0) - int(difference.high < 0)


# --- queries --------------------------------------------------------------------------------------


def scatter(cells: Sequence[Bin], metric: str) -> str:
    """Draw old to the right, new upwards: above the diagonal the new side is ahead. Points, or a grid's squares."""
    most = max((cell.queries for cell in cells), default=1)
    rows = [
        {"old": c.old[0], "old_end": c.old[1], "new": c.new[0], "new_end": c.new[1], "ahead": c.ahead,
         "hover": _hover(c), "area": min(22 * c.queries**0.6, 700),
         "depth": 0.15 + 0.85 * math.log1p(c.queries) / math.log1p(most)}
        for c in sorted(cells, key=lambda c: -c.queries)
    ]  # fmt: skip
    unit: dict[str, Any] = {
        "scale": alt.Scale(domain=[0, 1], nice=False), "axis": alt.Axis(tickCount=5, format=".1f")
    }  # fmt: skip
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("old:Q", title=f"{metric}, old", **unit), y=alt.Y("new:Q", title=f"{metric}, new", **unit),
        fill=_coloured("ahead", {sign: PAGE.of(sign) for sign in (-1, 0, 1)}), description="hover:N",
    )  # fmt: skip
    if all(cell.is_point for cell in cells):
        points = base.mark_point(shape="circle", stroke=PAGE.page, strokeWidth=0.5, opacity=0.75)
        marks = points.encode(size=alt.Size("area:Q", scale=None))
    else:
        depth = alt.FillOpacity("depth:Q", scale=alt.Scale(domain=[0, 1]), legend=None)
        squares = base.mark_rect(stroke=PAGE.page, strokeWidth=1)
        marks = squares.encode(x2="old_end:Q", y2="new_end:Q", fillOpacity=depth)
    ends = alt.InlineData(values=[{"old": 0, "new": 0}, {"old": 1, "new": 1}])
    diagonal = alt.Chart(ends).mark_line(color=PAGE.muted, strokeWidth=1.5, strokeDash=[5, 3], aria=False)
    corners = [
        _words("new ahead", PAGE.new, "left", x=alt.datum(0.04), y=alt.datum(0.93)),
        _words("old ahead", PAGE.old, "right", x=alt.datum(0.96), y=alt.datum(0.07)),
    ]
    panel = alt.LayerChart(layer=[diagonal.encode(x="old:Q", y="new:Q"), marks, *corners])
    return _svg(_fit(panel, WIDTH), PAGE, f"{metric} of each query, old against new")


def _hover(cell: Bin) -> str:
    if not cell.is_point:
        ends = [number(end, 2) for end in (*cell.old, *cell.new)]
        return "old {} to {}, new {} to {}: ".format(*ends) + f"{cell.queries:,} queries"
    more = f" … and {cell.queries - len(cell.texts):,} more" if cell.queries > len(cell.texts) else ""
    return _plain(f"{number(cell.old[0])} → {number(cell.new[0])}: {' | '.join(cell.texts)}{more}")


def histogram(bins: Histogram, metric: str) -> str:
    """Draw how many queries lose (left) and gain (right), and how much."""
    rows: list[dict[str, Any]] = [
        {"low": low, "high": high, "queries": count, "side": "old" if high <= 0 else "new",
         "hover": f"{signed(low, 1)} to {signed(high, 1)}: {count:,} queries"}
        for (low, high), count in zip(pairwise(bins.edges), bins.counts, strict=True)
        if count
    ]  # fmt: skip
    bars = alt.Chart(alt.InlineData(values=rows)).mark_rect(stroke=PAGE.page, strokeWidth=1).encode(
        x=alt.X("low:Q", title=f"difference of {metric}, new − old", scale=alt.Scale(domain=[-1, 1]),
                axis=_signed_axis(".1~f")),
        x2="high:Q", y=alt.Y("queries:Q", title="queries", axis=alt.Axis(tickMinStep=1)), y2=alt.datum(0),
        fill=_coloured("side", {"old": PAGE.old, "new": PAGE.new}), description="hover:N",
    )  # fmt: skip
    totals = {side: sum(row["queries"] for row in rows if row["side"] == side) for side in ("old", "new")}
    names = [
        _words(f"{totals['old']:,} worse", PAGE.old, "left", x=alt.datum(-1), y=alt.value(8)),
        _words(f"{totals['new']:,} better", PAGE.new, "right", x=alt.datum(1), y=alt.value(8)),
    ]
    panel = alt.LayerChart(layer=[bars, _vertical(0.0, PAGE.muted), *names])
    return _svg(_fit(panel, WIDTH), PAGE, "How many queries lose and gain, and how much")


# --- scores ---------------------------------------------------------------------------------------


def distribution(scores: ScoreDistribution, thresholds: Sequence[Threshold]) -> str:
    """Draw shares of cosines: of relevant pairs (filled), first hits (line), tenth hits (dashed); cut-offs."""
    colour = PAGE.old if scores.side == "old" else PAGE.new
    cuts = [(_plain(shorten(t.name, 18)), t.old if scores.side == "old" else t.new) for t in thresholds]
    layers = [
        _steps(scores.relevant, alt.MarkDef("area", fill=colour, fillOpacity=0.3)),
        _steps(scores.first, alt.MarkDef("line", stroke=colour, strokeWidth=2.5)),
        _steps(scores.tenth, alt.MarkDef("line", stroke=colour, strokeWidth=1.5, strokeDash=[4, 3])),
        *(_vertical(at, PAGE.caution, [2, 2], name) for name, at in cuts if math.isfinite(at)),
        _peak(scores.relevant, "relevant pairs", "center", 0.4),
        _peak(scores.first, "first hits", "left"),
        _peak(scores.tenth, "tenth hits", "right"),
    ]
    panel = alt.LayerChart(layer=[layer for layer in layers if layer is not None])
    return _svg(_fit(panel, 260), PAGE, f"Cosines of the {scores.side} model")


def _steps(bins: Histogram | None, mark: alt.MarkDef) -> alt.Chart | None:
    """Draw a histogram as steps; None where it counts nothing."""
    if bins is None or not (total := sum(bins.counts)):
        return None
    shares = [count / total for count in bins.counts]
    rows = [{"at": at, "share": share} for at, share in zip(bins.edges, [*shares, shares[-1]], strict=True)]
    mark["interpolate"], mark["aria"] = "step-after", False
    return alt.Chart(alt.InlineData(values=rows), mark=mark).encode(
        x=alt.X("at:Q", title="cosine", scale=alt.Scale(zero=False, nice=False)),
        y=alt.Y("share:Q", title="share", axis=alt.Axis(format=".0%", tickCount=4)),
    )


def _peak(bins: Histogram | None, name: str, align: Align, height: float = 1.0) -> alt.Chart | None:
    """Write the name at this share of the highest step; None where nothing is counted."""
    if bins is None or not (total := sum(bins.counts)):
        return None
    at = max(range(len(bins.counts)), key=bins.counts.__getitem__)
    middle = (bins.edges[at] + bins.edges[at + 1]) / 2
    share = height * bins.counts[at] / total
    return _words(name, PAGE.text, align, x=alt.datum(middle), y=alt.datum(share))


# --- the map --------------------------------------------------------------------------------------


def space(points: Sequence[MapPoint], slices: Sequence[str], side: Side) -> str:
    """Draw one space. A slice's shape and colour go by its place in `slices`."""
    rows = [
        {"x": at[0], "y": at[1], "slice": min(slices.index(point.slice), len(SHAPES) - 1),
         "hover": _plain(f"{point.slice}: {shorten(point.text, 120)}")}
        for point in points
        if all(map(math.isfinite, at := point.old if side == "old" else point.new))
    ]  # fmt: skip
    places = list(range(len(SHAPES)))
    scale = alt.Scale(zero=False, nice=True)
    panel = alt.Chart(alt.InlineData(values=rows)).mark_point(size=32, opacity=0.8, strokeWidth=0.5).encode(
        x=alt.X("x:Q", axis=None, scale=scale),
        y=alt.Y("y:Q", axis=None, scale=scale),
        shape=alt.Shape("slice:N", scale=alt.Scale(domain=places, range=list(SHAPES)), legend=None),
        fill=_coloured("slice", dict(zip(places, PAGE.series, strict=True))),
        stroke=alt.value(PAGE.page), description="hover:N",
    )  # fmt: skip
    return _svg(
        _fit(alt.LayerChart(layer=[panel, *_names(rows, slices)]), WIDTH), PAGE, f"Passages in the {side} space"
    )


def _names(rows: Sequence[Mapping[str, Any]], slices: Sequence[str]) -> Iterable[alt.Chart]:
    """Write each slice's name in its middle, the largest slice first, where no other name is already."""
    boxes: list[tuple[float, float, float]] = []
    spans = [max(row[axis] for row in rows) - min(row[axis] for row in rows) or 1.0 for axis in "xy"] if rows else []
    for place, name in enumerate(slices[: len(SHAPES) - 1]):
        members = [row for row in rows if row["slice"] == place]
        if not members:
            continue
        x, y = (sum(row[axis] for row in members) / len(members) for axis in "xy")
        label = _plain(shorten(name, 18))
        box = (WIDTH * x / spans[0], WIDTH * y / spans[1], _room(label) / 2)
        if all(abs(box[0] - u) > box[2] + half or abs(box[1] - v) > 1.5 * FONT_SIZE for u, v, half in boxes):
            boxes.append(box)
            yield _words(label, PAGE.text, "center", x=alt.datum(x), y=alt.datum(y))


# --- a picture of its own -------------------------------------------------------------------------


def slices_picture(evaluation: Evaluation, path: Path) -> None:
    """Write quality by language as an SVG file, 760 units wide, on a white card. Raises OutputWriteFailed."""
    slices = by_difference(s for s in evaluation.slices if s.by in (ALL, "language"))
    gate, height = evaluation.gate, _height(slices)
    left = _quality(slices, gate.metric, PICTURE).properties(width=330, height=height - AXIS)
    unlabelled = _slices_axis(slices, labelled=False)
    right = _differences(slices, gate.margin, PICTURE, unlabelled).properties(width=215, height=height - AXIS)
    title = alt.TitleParams(
        f"{gate.metric} by language", anchor="start", offset=14, fontSize=16, color=PICTURE.text, subtitlePadding=6,
        subtitle=_plain(f"○ {shorten(evaluation.old.name, 40)}   ● {shorten(evaluation.new.name, 40)}"),
        subtitleFontSize=13, subtitleColor=PICTURE.muted,
    )  # fmt: skip
    both = (
        alt.hconcat(left, right, spacing=24)
        .properties(title=title)
        .resolve_scale(color="independent", fill="independent")
    )
    svg = _svg(both, PICTURE, f"{gate.metric} by language", width=760)
    try:
        with replacing(path) as temporary:
            temporary.write_text(svg + "\n", encoding="utf-8")
    except OSError as exc:
        raise OutputWriteFailed(path, reason_of(exc)) from exc


# --- drawing --------------------------------------------------------------------------------------


def _coloured(name: str, colours: Mapping[Any, str]) -> Any:
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return {"field": name, "type": "nominal", "scale": scale.to_dict(), "legend": None}


def _signed_axis(digits: str, num_ticks: int = 5) -> alt.Axis:
    return alt.Axis(tickCount=num_ticks, labelExpr=f"datum.value == 0 ? '0' : format(datum.value, '+{digits}')")


def _words(
    text: str,
    colour: str,
    align: Align,
    *,
    x: Any,
    y: Any,
    baseline: Literal["middle", "bottom"] = "middle",
    dy: int = 0,
) -> alt.Chart:
    """Write a name inside a chart."""
    mark = alt.MarkDef("text", align=align, baseline=baseline, dy=dy, color=colour, fontSize=FONT_SIZE, aria=False)
    return alt.Chart(alt.InlineData(values=[{"name": text}]), mark=mark).encode(text="name:N", x=x, y=y)


def _vertical(
    at: float, colour: str, dash: Sequence[int] = (1, 0), name: str = "", *, align: Align = "center"
) -> alt.LayerChart:
    """Draw a line at `at` from bottom to top, with its name above it."""
    base = alt.Chart(alt.InlineData(values=[{"at": at, "name": name}])).encode(x="at:Q")
    line = base.mark_rule(color=colour, strokeWidth=1.5, strokeDash=list(dash), aria=False)
    label = base.mark_text(color=colour, baseline="bottom", dy=-3, align=align, fontSize=FONT_SIZE, aria=False)
    return alt.LayerChart(layer=[line, label.encode(text="name:N", y=alt.value(0))] if name else [line])


def _plain(text: str) -> str:
    """Replace what XML cannot hold."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _fit(chart: alt.Chart | alt.LayerChart, height: int) -> Chart:
    """Fit a panel of the page: this height, axes included."""
    return chart.properties(width=WIDTH, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding"))


def _svg(chart: Chart, palette: Palette, label: str, width: int | None = None) -> str:
    """Render for a page, or with a width as a file of its own: namespace, card and size are in it then."""
    axis = {
        "labelColor": palette.muted, "titleColor": palette.muted, "gridColor": palette.line, "tickColor": palette.line,
        "domainColor": palette.line, "labelFontSize": FONT_SIZE, "titleFontSize": FONT_SIZE,
        "titleFontWeight": "normal", "labelFlush": False, "labelOverlap": True, "titlePadding": 9,
    }  # fmt: skip
    spec = chart.configure(font=palette.font, background="transparent", padding=4 if width is None else 18)
    spec = spec.configure_axis(**axis).configure_view(stroke=None)
    root = ET.fromstring(vl_convert.vegalite_to_svg(spec.to_dict()))  # noqa: S314  # drawn a line before
    _clean(root)
    drawn_width, drawn_height = float(root.attrib.pop("width")), float(root.attrib.pop("height"))
    root.set("role", "img")
    root.set("aria-label", label)
    if width is not None:
        root.attrib |= {"xmlns": SVG, "width": str(width), "height": str(round(drawn_height * width / drawn_width))}
        card = {"width": f"{drawn_width:g}", "height": f"{drawn_height:g}", "rx": "10", "fill": palette.page}
        root.insert(0, ET.Element("rect", card))
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element) -> None:
    """Turn hover texts into titles; drop roles, empty shapes and digits that nobody sees."""
    element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    attributes = element.attrib
    hover = attributes.pop("aria-label", None)
    for name in [name for name in attributes if name.startswith(("aria-", "role"))]:
        del attributes[name]
    for name in attributes.keys() & {"d", "transform", "x", "x1", "x2", "y", "y1", "y2"}:
        attributes[name] = MANY_DIGITS.sub(lambda match: f"{float(match[0]):.2f}", attributes[name])
    for child in list(element):
        if child.get("class") in ("background", "foreground"):
            element.remove(child)
        else:
            _clean(child)
    if hover:
        title = ET.Element("title")
        title.text = hover
        element.insert(0, title)
