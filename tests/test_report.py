"""The report as a file: what it holds, what it must not hold, and what it leaves out."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.evaluations import ATTACK, make_evaluation, only_the_verdict, with_attacks_everywhere
from vecferry.demo.journey import Journey
from vecferry.errors import MissingExtra, OutputWriteFailed
from vecferry.evaluate.values import ALL, GUESS, Evaluation, Interval
from vecferry.report import render, slices_picture, write_report
from vecferry.report.binning import BINS, MAX_POINTS, cells, differences
from vecferry.report.charts import SHAPES, by_difference, quality
from vecferry.report.charts import differences as differences_chart
from vecferry.report.page import SHAPE_MARKS
from vecferry.report.text import headline, interval, language_tag, number, ratio, shorten, signed, size, summary


class Read(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._in_style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def ids(self) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get("id"))]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return make_evaluation()


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> str:
    return render(evaluation)


@pytest.fixture(scope="module")
def read(page: str) -> Read:
    return Read(page)


def assert_inert(page: str) -> None:
    """Assert that there is no script, no handler, and nothing from elsewhere."""
    read = Read(page)
    assert read.count("script") == read.count("iframe") == read.count("form") == read.count("img") == 0
    for _, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
        assert "url(" not in (attributes.get("style") or "") + (attributes.get("fill") or "")
    assert "@import" not in page
    assert "url(" not in page[: page.index("</style>")]


def test_the_report_holds_no_script_and_asks_for_nothing(page: str, read: Read) -> None:
    assert_inert(page)
    policies = [
        attributes["content"]
        for tag, attributes in read.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_texts_of_others_stay_texts(page: str, read: Read) -> None:
    assert ATTACK not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert ATTACK in read.text


def test_names_of_others_stay_texts_everywhere(evaluation: Evaluation) -> None:
    page = render(with_attacks_everywhere(evaluation))
    assert_inert(page)
    assert "<svg onload" not in page
    assert "<script" not in page
    assert "{{7*7}}" in Read(page).text
    assert "&lt;script&gt;alert(" in page[page.index("<svg") :]  # the labels of slices, in charts


def test_what_xml_cannot_hold_does_not_break_a_chart(evaluation: Evaluation) -> None:
    queries = (replace(evaluation.queries[0], text="form\x0cfeed\x00 \x1b[31m"), *evaluation.queries[1:])
    slices = (evaluation.slices[0], replace(evaluation.slices[1], value="a\x07b"))
    page = render(replace(evaluation, queries=queries, slices=slices))
    assert "a\N{REPLACEMENT CHARACTER}b" in page


def test_the_verdict_comes_first_with_the_numbers_of_the_evaluation(evaluation: Evaluation, read: Read) -> None:
    overall, message = evaluation.slices[0], evaluation.gate.message
    assert read.count("h1") == 1
    assert "Gate passed" in read.text[: read.text.index(message)]
    assert "The new model is better." in read.text[: read.text.index(message)]
    assert read.text.index(message) < read.text.index("Compared on ") < read.text.index("Provenance")
    assert f"{overall.old.mean:.3f} → {overall.new.mean:.3f}" in read.text
    assert f"Difference {signed(overall.difference.mean)} {interval(overall.difference, signed)}" in read.text
    assert "nDCG@10 is 1 where the relevant passages lead the first 10 answers" in read.text
    assert f"{overall.wins} of {overall.queries} queries get better answers" in read.text


@pytest.mark.parametrize(
    ("evidence", "strength"),
    [("judged queries", "strong evidence"), ("query log", "evidence of change only"),
     ("pairs from the corpus", "weak evidence")],
)  # fmt: skip
def test_the_summary_says_how_strong_the_evidence_is(evaluation: Evaluation, evidence: str, strength: str) -> None:
    assert strength in summary(replace(evaluation, evidence=evidence))[0]  # type: ignore[arg-type]


def test_the_summary_names_who_gains_and_who_loses(evaluation: Evaluation) -> None:
    everything, english = evaluation.slices[:2]
    lost = replace(english, difference=Interval(-0.25, -0.3, -0.2))
    assert "Largest losses: language en (−0.250)." in summary(replace(evaluation, slices=(everything, lost)))[1]
    gained = replace(english, difference=Interval(0.25, 0.2, 0.3))
    assert summary(replace(evaluation, slices=(everything, gained)))[1] == (
        "Largest gains: language en (+0.250). No slice has a lower mean than before."
    )


def test_every_part_is_listed_and_linked(read: Read) -> None:
    linked = [attributes["href"] for tag, attributes in read.elements if tag == "a" and attributes.get("href")]
    sections = [attributes["id"] for tag, attributes in read.elements if tag == "section"]
    assert sections == ["quality", "queries", "scores", "replay", "findings", "map", "models", "provenance"]
    assert linked == ["#main", *(f"#{section}" for section in sections)]
    assert len(read.ids) == len(set(read.ids))


def test_absent_parts_leave_nothing_behind(evaluation: Evaluation) -> None:
    read = Read(render(only_the_verdict(evaluation)))
    assert [attributes["id"] for tag, attributes in read.elements if tag == "section"] == ["models", "provenance"]
    assert read.count("svg") == read.count("figure") == 0
    assert evaluation.gate.message in read.text


@pytest.mark.parametrize(
    ("part", "section"),
    [("hybrid", None), ("replay", "replay"), ("findings", "findings"), ("map", "map"),
     *(pytest.param(part, None, marks=pytest.mark.slow)
       for part in ("slices", "systems", "queries", "gains", "scores", "thresholds"))],
)  # fmt: skip
def test_any_one_part_may_be_absent(evaluation: Evaluation, part: str, section: str | None) -> None:
    absent = None if part in ("hybrid", "replay", "map") else ()
    page = render(replace(evaluation, **{part: absent}))  # type: ignore[arg-type]
    assert section is None or f'id="{section}"' not in page


def test_what_is_not_known_is_a_dash(evaluation: Evaluation) -> None:
    nothing = Interval(math.nan, math.nan, math.nan)
    unknown = replace(evaluation.slices[1], old=nothing, new=nothing, difference=nothing)
    unsure = replace(evaluation.slices[2], difference=Interval(0.1, math.nan, math.nan))
    model = replace(evaluation.new, bytes=None, texts_per_s=None, query_ms=None)
    threshold = replace(evaluation.thresholds[1], new=math.nan, low=math.nan, high=math.nan)
    query = replace(evaluation.queries[0], new=math.nan)
    read = Read(render(replace(
        evaluation, slices=(evaluation.slices[0], unknown, unsure), new=model, thresholds=(threshold,),
        queries=(query, *evaluation.queries[1:]), gate=replace(evaluation.gate, difference=None),
    )))  # fmt: skip
    shown = read.text + " ".join(value or "" for _, attributes in read.elements for value in attributes.values())
    assert not re.search(r"\b(nan|NaN|None|null|inf|undefined)\b", shown)


def test_texts_of_any_direction_and_language_say_so(read: Read) -> None:
    queries = [attributes for tag, attributes in read.elements if tag == "span" and attributes.get("class") == "query"]
    hits = [attributes for tag, attributes in read.elements if attributes.get("class") == "text"]
    assert {attributes["dir"] for attributes in [*queries, *hits]} == {"auto"}
    assert {"ar", "zh"} <= {attributes.get("lang") for attributes in queries}
    assert [language_tag(value) for value in ("ar", "zh-Hant", "unknown language", "", None)] == [
        "ar", "zh-Hant", None, None, None,
    ]  # fmt: skip


def test_relevant_hits_are_marked_in_words(read: Read) -> None:
    relevant = sum(attributes.get("class") == "relevant" for _, attributes in read.elements)
    assert relevant == read.text.count("✓ relevant") == 12  # the first six gains and losses, one each


def test_every_figure_has_words_and_every_table_its_caption(read: Read) -> None:
    assert read.count("figure") == read.count("figcaption") == 6
    assert read.count("table") == read.count("caption")
    assert {attributes.get("role") for tag, attributes in read.elements if tag == "svg"} == {"img"}
    assert all(attributes.get("aria-label") for tag, attributes in read.elements if tag == "svg")
    assert all("scope" in attributes for tag, attributes in read.elements if tag == "th")


def test_the_slices_have_one_caption_and_their_numbers_are_a_tap_away(evaluation: Evaluation) -> None:
    page = render(evaluation)
    quality = page[page.index('id="quality"') : page.index('id="queries"')]
    assert (quality.count("<figcaption>"), quality.count("<details>"), quality.count("<details open>")) == (1, 2, 0)
    everything, english, *rest = evaluation.slices
    lost = replace(english, difference=Interval(-0.25, -0.3, -0.2))
    assert "<details open><summary>Numbers" in render(replace(evaluation, slices=(everything, lost, *rest)))


def test_the_headline_is_a_few_words_for_each_verdict(evaluation: Evaluation) -> None:
    gate, lost = evaluation.gate, Interval(-0.2, -0.3, -0.1)
    named = ("language ar", "language de", "language en", "language fr")
    assert [
        headline(replace(gate, **changed))
        for changed in (
            {"difference": Interval(0.0, -0.01, 0.01)}, {"verdict": "inconclusive"},
            {"verdict": "failed", "difference": lost}, {"verdict": "failed", "worse_slices": named[:1]},
            {"verdict": "failed", "worse_slices": named},
        )
    ] == [
        "The new model is not worse.", "These queries do not decide it.", "The new model is worse.",
        "The new model is worse for language ar.",
        "The new model is worse for language ar, language de, language en and 1 more.",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["en", "a name of twenty-some characters", "日本語の名前がここにあります"])
def test_numbers_on_an_axis_do_not_run_into_each_other(evaluation: Evaluation, name: str) -> None:
    narrow = Interval(0.0004, -0.0411, 0.0407)
    slices = [replace(each, value=name, difference=narrow) for each in evaluation.slices]
    for drawn in (quality(slices, "nDCG@10"), differences_chart(slices, 0.02)):
        axes = [group for group in ET.fromstring(drawn).iter("g") if group.get("class") == "mark-text role-axis-label"]
        across = [
            sorted((float(re.findall(r"[-\d.]+", text.get("transform") or "")[0]), text.text or "") for text in axis)
            for axis in axes
            if len({(text.get("transform") or "").split(",")[-1] for text in axis}) == 1
        ]
        assert across
        assert all(right - left > 4 * (len(a) + len(b)) for axis in across for (left, a), (right, b) in pairwise(axis))


def test_colours_are_defined_for_light_and_for_dark(page: str) -> None:
    css = page[page.index("<style>") : page.index("</style>")]
    light, dark = css.split("@media screen and (prefers-color-scheme: dark)")
    dark = dark[: dark.index("* {")]
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert used >= {"--old", "--new", "--bg", "--fg", "--muted", "--s0"}
    assert used <= set(re.findall(r"(--\w+):", light))
    assert used <= set(re.findall(r"(--\w+):", dark))
    assert not re.search(r'(?:fill|stroke)="#', page)


def test_the_map_has_a_mark_and_a_shape_for_each_place() -> None:
    assert len(SHAPE_MARKS) == len(SHAPES) == len(set(SHAPES))


def test_slices_go_by_difference_after_all_queries(evaluation: Evaluation) -> None:
    ordered = by_difference(reversed(evaluation.slices))
    assert ordered[0].by == ALL
    values = [attributes.difference.mean for attributes in ordered[1:]]
    assert values == sorted(values, reverse=True)


def test_the_values_lie_beside_the_page(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(evaluation.to_dict()))


def test_a_number_that_is_not_finite_is_null_in_the_values(evaluation: Evaluation, tmp_path: Path) -> None:
    unsure = replace(evaluation.slices[0], difference=Interval(0.1, math.nan, math.inf))
    write_report(replace(evaluation, slices=(unsure,)), tmp_path / "report.html")
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored["slices"][0]["difference"] == {"mean": 0.1, "low": None, "high": None}


def test_a_report_that_cannot_be_written_says_where(evaluation: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(OutputWriteFailed, match=r"absent/report\.html was not written"):
        write_report(only_the_verdict(evaluation), tmp_path / "absent" / "report.html")
    with pytest.raises(OutputWriteFailed, match=r"absent/picture\.svg was not written"):
        slices_picture(evaluation, tmp_path / "absent" / "picture.svg")
    with pytest.raises(OutputWriteFailed, match="a name that ends in"):
        write_report(evaluation, tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_file_beside_the_page_that_is_no_reports_is_not_replaced(evaluation: Evaluation, tmp_path: Path) -> None:
    for content in ['{"name": "a package"}', "not JSON", "[1]"]:
        (tmp_path / "package.json").write_text(content)
        with pytest.raises(OutputWriteFailed, match=r"package\.json was not written.*package\.html.*no report's"):
            write_report(evaluation, tmp_path / "package.html")
        assert (tmp_path / "package.json").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["package.json"]
    for target in ("before", "after"):
        write_report(replace(only_the_verdict(evaluation), target=target), tmp_path / "report.html")
    assert json.loads((tmp_path / "report.json").read_text())["target"] == "after"


@pytest.mark.parametrize("name", ["report.html", "report.json", "languages.svg", "journey.json"])
def test_a_demo_replaces_no_file_that_no_demo_has_written(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputWriteFailed, match=f"{name} was not written.*no demo"):
        Journey(tmp_path, None, lambda _: None, lambda *_: None).run()
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("package", ["altair", "vl_convert", "jinja2"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.startswith("vecferry.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"'{package}' is not installed.*vecferry\[report\]"):
        importlib.import_module("vecferry.report")


def test_twenty_thousand_queries_stay_small() -> None:
    page = render(make_evaluation(20_000))
    assert len(page.encode()) < 15_000_000
    assert "20,000 queries are too many for points" in Read(page).text


@pytest.mark.parametrize("count", [MAX_POINTS, MAX_POINTS + 1])
def test_no_query_is_lost_on_the_way_to_a_chart(count: int) -> None:
    queries = make_evaluation(count).queries
    values = cells(queries)
    assert sum(cell.queries for cell in values) == count
    assert values[0].is_point == (count <= MAX_POINTS)
    assert sum(differences(queries).counts) == sum(query.new != query.old for query in queries)
    assert len(differences(queries).counts) == BINS


def test_a_cell_says_who_is_ahead(evaluation: Evaluation) -> None:
    queries = [replace(evaluation.queries[0], old=old, new=new) for old, new in ((0.2, 1.0), (1.0, 0.2), (1.0, 1.0))]
    assert [cell.ahead for cell in cells(queries)] == [1, -1, 0]
    assert [cell.ahead for cell in cells(queries * MAX_POINTS)] == [1, -1, 0]


def test_numbers_read_as_a_person_writes_them() -> None:
    assert [number(value) for value in (0.5, -0.25, math.nan, None)] == ["0.500", "−0.250", "–", "–"]
    assert [signed(value) for value in (0.5, -0.25, 0.0)] == ["+0.500", "−0.250", "+0.000"]
    assert interval(Interval(0.5, 0.4, 0.6)) == "0.400 to 0.600"
    assert interval(Interval(0.5, math.nan, math.nan)) == "–"
    assert [size(value) for value in (0, 999, 1000, 571_000_000, 2_400_000_000, None)] == [
        "0 B", "999 B", "1.0 kB", "571 MB", "2.4 GB", "–",
    ]  # fmt: skip
    assert [ratio(2.0, 1.0), ratio(1.0, 0.0), ratio(None, 1.0)] == ["× 2.00", "–", "–"]
    assert [shorten("a\n  b", 3), shorten("abcdef", 4)] == ["a b", "abc…"]


def test_the_picture_stands_alone(evaluation: Evaluation, tmp_path: Path) -> None:
    slices_picture(evaluation, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert (root.tag, root.get("width"), root[0].get("fill")) == ("{http://www.w3.org/2000/svg}svg", "760", "#ffffff")
    assert "var(" not in text
    assert "nDCG@10 by language" in text


def test_a_slice_that_fell_is_marked_whether_that_is_shown_or_not(evaluation: Evaluation) -> None:
    everything, first, second, third, *rest = evaluation.slices
    lower = Interval(-0.05, -0.12, 0.03)
    slices = (everything, replace(first, difference=lower), replace(second, difference=Interval(-0.09, -0.12, -0.06)))
    gate = replace(evaluation.gate, worse_slices=(second.name,))
    page = render(replace(evaluation, slices=(*slices, third, *rest), gate=gate))
    assert page.count("! fell by more than the margin; that may be chance") == 1
    assert page.count("✗ shown to be worse by more than the margin") == 1


def test_a_cut_off_that_no_answer_reaches_is_called_a_guess(evaluation: Evaluation) -> None:
    assert GUESS not in render(evaluation)
    unreached = replace(evaluation.thresholds[1], new_share=0.0)
    page = render(replace(evaluation, thresholds=(evaluation.thresholds[0], unreached)))
    assert f"matched quantile, {GUESS}" in page
    assert f"0.850 → 0.903 ({GUESS})" in page
