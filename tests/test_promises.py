"""docs/promises.md: every promise names tests that there are and that run, and every cell says one or the other."""

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase, digits

import pytest

from tests.conftest import MARKS
from tests.stores.collections import NAMES, PART, SIDE_TABLE
from tests.stores.conftest import SLOW
from tests.stores.groups import GROUPS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/promises.md"
STORE = "[STORE]"
"""In a test's name: it runs once for each store, under the name of its column."""
COLLECT = """
import json, sys, pytest

class Collector:
    def pytest_collection_finish(self, session):
        from tests.conftest import MARKS
        with open(sys.argv[1], "w") as file:
            json.dump(session.config.stash[MARKS], file)

options = ["--collect-only", "-qq", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*sys.argv[2:], *options], [Collector()]))
"""


def rows() -> list[list[str]]:
    """Return the cells of the first table, without the line under its head."""
    page = PAGE.read_text(encoding="utf-8").partition("## The tests")[0]
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def columns() -> list[str]:
    """Return the name that each store has in the tests, as the head of its column says."""
    return [name for cell in rows()[0][1:] for name in re.findall(r"`([^`]+)`", cell)]


def listed() -> dict[str, str]:
    """Return the list under the table: names of tests by their number; slow ones end in "(slow)" or "(slow on ...)"."""
    page = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"^(\d+)\. `([^`]+)`", page, re.MULTILINE))


def listed_as_slow() -> set[tuple[str, str]]:
    """Return the numbers of tests that `make test` leaves out, each with a store on which it does."""
    page = PAGE.read_text(encoding="utf-8")
    slow = re.findall(r"^(\d+)\. `[^`]+` \(slow(?: on ([^)]+))?\)", page, re.MULTILINE)
    return {(number, store) for number, on in slow for store in (on.split(", ") if on else columns())}


def promised() -> list[tuple[str, str, str]]:
    """Return (promise, column, test's number) for each test that a cell names."""
    return [
        (row[0], column, number)
        for row in rows()[1:]
        for column, cell in zip(columns(), row[1:], strict=True)
        if not cell.startswith("not promised")
        for number in cell.split(", ")
    ]


@pytest.fixture(scope="module")
def collected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the marks of every test in the files that are named, also where this run has not collected all of them."""
    files = sorted({name.partition("::")[0] for name in listed().values()})
    here = request.config.stash[MARKS]
    if set(files) <= {test.partition("::")[0] for test in here}:
        return here
    answer = tmp_path_factory.mktemp("collected") / "tests.json"
    command = [sys.executable, "-c", COLLECT, str(answer), *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    marks: dict[str, list[str]] = json.loads(answer.read_text())
    return marks


def instances(name: str, column: str, collected: dict[str, list[str]]) -> list[str]:
    """Return the tests that a name stands for on that store: itself, or itself with more parameters."""
    if name.endswith(STORE):
        return [test for test in collected if store_of(test, name.removesuffix(STORE)) == column]
    if any(name.endswith(f"[{other}]") for other in NAMES if other != column):
        return []
    more = (name.removesuffix("]") + "-", name + "[")
    return [test for test in collected if test == name or test.startswith(more)]


def store_of(test: str, name: str) -> str | None:
    """Return the store that a test of that name runs on; other parameters come after it."""
    if not test.startswith(name + "["):
        return None
    parameters = test.removeprefix(name)[1:-1] + "-"
    return max((store for store in NAMES if parameters.startswith(store + "-")), key=len, default=None)


def test_every_store_of_the_tests_has_a_column() -> None:
    apart = {*SLOW, SIDE_TABLE, PART, *GROUPS}  # as the page says
    assert sorted(columns()) == sorted(set(NAMES) - apart)


def test_every_cell_names_a_test_or_says_why_not() -> None:
    for row in rows()[1:]:
        assert len(row) == 1 + len(columns()), row
        for cell in row[1:]:
            assert re.fullmatch(r"\d+(, \d+)*|not promised: .+", cell), (row[0], cell)


def test_each_promise_has_a_number_of_its_own_and_none_is_left_out() -> None:
    numbers = names_of_promises()
    assert numbers[0] == "1"
    for before, after in pairwise(numbers):
        number, letter = before.rstrip(ascii_lowercase), before.lstrip(digits)
        next_letter = chr(ord(letter) + 1) if letter else "a"
        assert after in (f"{number}{next_letter}", str(int(number) + 1)), f"{after} after {before}"


def names_of_promises() -> list[str]:
    """Return names such as 3 and 3a, in the order of the table."""
    return [row[0].partition(". ")[0] for row in rows()[1:]]


def test_each_test_of_the_list_has_a_number_of_its_own_and_is_there_once() -> None:
    page = PAGE.read_text(encoding="utf-8")
    entries = re.findall(r"^(\d+)\. `([^`]+)`", page, re.MULTILINE)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    assert [name for name, times in Counter(name for _, name in entries).items() if times > 1] == []


def test_a_cell_names_each_test_once_in_the_order_of_the_list() -> None:
    for row in rows()[1:]:
        for cell in row[1:]:
            numbers = [int(number) for number in re.findall(r"\d+", cell.partition("not promised")[0])]
            assert numbers == sorted(set(numbers)), (row[0], cell)


def test_the_fine_print_is_of_promises_that_there_are() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("## What the table does not say")[2].partition("\n## ")[0]
    meant = {
        number
        for references in re.findall(r"\((\d+[a-z]?(?:, \d+[a-z]?)*)\)", page)
        for number in references.split(", ")
    }
    assert meant
    assert meant <= set(names_of_promises())


def test_every_number_is_in_the_list_and_every_test_of_the_list_is_used() -> None:
    assert {number for _, _, number in promised()} == set(listed())


def test_every_test_that_is_named_is_there_and_runs(collected: dict[str, list[str]]) -> None:
    missing, skipped, not_run = [], [], []
    for promise, column, number in promised():
        tests = instances(listed()[number], column, collected)
        marks = {mark for test in tests for mark in collected[test]}
        is_slow = all("slow" in collected[test] for test in tests)
        if not tests:
            missing.append((promise, column, listed()[number]))
        if marks & {"skip", "skipif"}:
            skipped.append((promise, column, listed()[number]))
        if is_slow != ((number, column) in listed_as_slow()):
            not_run.append((promise, column, listed()[number]))
    assert not missing
    assert not skipped
    assert not not_run, "`make test` leaves out what is slow"


def test_what_is_promised_is_not_shown_by_slow_tests_alone() -> None:
    shown = {promise for promise, column, number in promised() if (number, column) not in listed_as_slow()}
    assert shown == {row[0] for row in rows()[1:]}
