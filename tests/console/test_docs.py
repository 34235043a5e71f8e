"""docs/console.md says what is so."""

import re

from tests.test_docs import ROOT
from vecferry.console import comparing, guard, pages, sessions, view

PAGE = (ROOT / "docs/console.md").read_text(encoding="utf-8")


def test_numbers_of_the_page_are_those_of_the_code() -> None:
    said = [
        (rf"{sessions.IDLE_S / 60:.0f} minutes in which nobody", "the end of a login"),
        (rf"{sessions.FREE_FAILURES} are free, then 1 s, .* up to {sessions.MAX_WAIT_S:.0f} s", "wrong keys"),
        (rf"{guard.MAX_FORM_BYTES:,} bytes", "a form"),
        (rf"{comparing.MAX_QUERY_CHARS:,} characters", "a query"),
        (rf"first {comparing.MAX_SHOWN_CHARS:,} characters", "a text"),
        (rf"last {view.PACE_S:.0f} s", "the rate"),
    ]
    assert [what for pattern, what in said if not re.search(pattern, PAGE)] == []


def test_pictures_are_small() -> None:
    pictures = sorted((ROOT / "docs/console").glob("*.png"))
    assert len(pictures) == len(re.findall(r"!\[", PAGE))
    assert [one.name for one in pictures if one.stat().st_size > 150_000] == []


def test_every_part_has_a_template_and_every_static_file_is_there() -> None:
    folder = ROOT / "src/vecferry/console"
    assert {one.name for one in (folder / "templates/parts").iterdir()} == {f"{n}.html.j2" for n in pages.PARTS}
    assert {one.name for one in (folder / "static").iterdir()} == set(pages.STATIC)
