"""docs/console.md says what is so."""

import re

from tests.test_docs import ROOT
from vecferry.console import comparing, guard, pages, sessions
from vecferry.console.actions import ACTIONS
from vecferry.console.sessions import Sessions
from vecferry.migrate import pace
from vecferry.migrate.states import VERBS
from vecferry.server.keys import ApiKeys

PAGE = (ROOT / "docs/console.md").read_text(encoding="utf-8")


def test_numbers_of_the_page_are_those_of_the_code() -> None:
    numbers = {
        r"a login ends after \| ([\d,.]+) minutes in which nobody": sessions.IDLE_S / 60,
        r"wrong keys \| ([\d,.]+) are free, then 1 s": sessions.FREE_FAILURES,
        r"up to ([\d,.]+) s for that address": sessions.MAX_WAIT_S,
        r"a form \| ([\d,.]+) bytes at most": guard.MAX_FORM_BYTES,
        r"a query \| ([\d,.]+) characters at most": comparing.MAX_QUERY_CHARS,
        r"of the\s+first ([\d,.]+) characters": comparing.MAX_SHOWN_CHARS,
        r"in the last ([\d,.]+) s\b": pace.WINDOW_S,
    }
    assert {pattern: numbers_said(pattern) for pattern in numbers} == {path: [n] for path, n in numbers.items()}


def numbers_said(pattern: str) -> list[float]:
    """Return the whole numbers that the pattern finds on the page, not the end of a longer one."""
    return [float(figure.replace(",", "")) for figure in re.findall(pattern, PAGE)]


def test_wrong_keys_have_to_wait_as_long_as_the_page_says() -> None:
    sentence = re.search(r"(\d+) are free, then ((?:\d+ s, )*\d+ s) \.\.\.", PAGE)
    assert sentence is not None
    free, expected = int(sentence[1]), [float(wait) for wait in re.findall(r"\d+", sentence[2])]
    now, waits = [1000.0], list[float]()
    made = Sessions(ApiKeys(["the-right-key-of-this-test"]), clock=lambda: now[0])
    for _ in range(free + len(expected)):
        waits.append(made.wait_s("somebody"))
        now[0] += waits[-1]
        assert not made.accepts("wrong", "somebody")
    assert waits == [0.0] * free + expected


def test_the_verbs_that_are_left_to_the_command_line_are_those_without_a_form() -> None:
    left = set(VERBS) - set(ACTIONS) - {"plan", "status"}  # these two change nothing, and the page shows a status
    assert set(re.findall(r"^vecferry migrate (\w+) ", PAGE, re.MULTILINE)) == left
    (sentence,) = re.findall(r"^(.+) are left to the command line:$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", sentence)) == left


def test_pictures_are_small_and_each_is_on_the_page() -> None:
    pictures = sorted((ROOT / "docs/console").glob("*.png"))
    assert [path.name for path in pictures] == sorted(re.findall(r"!\[[^\]]+\]\(console/([^)]+)\)", PAGE))
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []


def test_every_part_has_a_template_and_every_static_file_is_there() -> None:
    folder = ROOT / "src/vecferry/console"
    assert {path.name for path in (folder / "templates/parts").iterdir()} == {f"{n}.html.j2" for n in pages.PARTS}
    assert {path.name for path in (folder / "static").iterdir()} == set(pages.STATIC)
