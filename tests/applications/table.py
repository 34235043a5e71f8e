"""All applications, and the table of those that passed in docs/applications.md.

python -m tests.applications.table      # runs the tests of all, and writes the table
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.applications.anything_llm import AnythingLLMApplication
from tests.applications.application import Listing
from tests.applications.django import DjangoApplication
from tests.applications.haystack import HaystackApplication
from tests.applications.langchain import (
    ChromaApplication,
    MilvusApplication,
    PGVectorApplication,
    PGVectorStoreApplication,
    QdrantApplication,
    QdrantHybridApplication,
    SQLiteVecApplication,
)
from tests.applications.llama_index import LlamaIndexApplication, LlamaIndexQdrantApplication
from tests.applications.mem0 import Mem0Application
from tests.applications.open_webui import OpenWebUIApplication
from tests.applications.supabase import SupabaseApplication

APPLICATIONS: tuple[Any, ...] = (
    LlamaIndexApplication,
    PGVectorApplication,
    PGVectorStoreApplication,
    HaystackApplication,
    DjangoApplication,
    Mem0Application,
    SupabaseApplication,
    OpenWebUIApplication,
    ChromaApplication,
    LlamaIndexQdrantApplication,
    QdrantApplication,
    QdrantHybridApplication,
    MilvusApplication,
    AnythingLLMApplication,
    SQLiteVecApplication,
)
FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
PAGE = ROOT / "docs/applications.md"
PINS = (FOLDER / "requirements.txt", ROOT / "locks/dev.txt")
HEAD = ("application", "package", "`collection`", "`text`", "`vector`", "opened anew after")
FOUND_HEAD = ("application", "found as", "`text`", "by the vectors")


class Passed:
    """A plugin of pytest that keeps which applications have passed all of their tests."""

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._failed: set[str] = set()

    @property
    def names(self) -> set[str]:
        return self._tried - self._failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[2].removesuffix("]")
        if report.when == "call":
            self._tried.add(name)
        if not report.passed:
            self._failed.add(name)


def main() -> int:
    passed = Passed()
    status = pytest.main(["-m", "slow", "-q", str(FOLDER)], [passed])
    page = PAGE.read_text(encoding="utf-8")
    listings = [kind.listing for kind in APPLICATIONS if kind.__name__ in passed.names]
    page = page.replace(table_of(page), table(listings))
    PAGE.write_text(page.replace(found_table_of(page), found_table(listings)), encoding="utf-8")
    return status


def table(listings: Iterable[Listing]) -> str:
    """Return the lines of the table."""
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, listings)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def found_table(listings: Iterable[Listing]) -> str:
    """Return the lines of the table of what `vecferry init` finds, and writes."""
    rows = [FOUND_HEAD, ("---",) * len(FOUND_HEAD), *map(_found_row, listings)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def table_of(page: str) -> str:
    """Return the table that stands on the page."""
    return _table_under(HEAD, page)


def found_table_of(page: str) -> str:
    """Return the other table that stands there."""
    return _table_under(FOUND_HEAD, page)


def _table_under(head: tuple[str, ...], page: str) -> str:
    (lines,) = re.findall(rf"^{re.escape(f'| {head[0]} | {head[1]} |')}.*\n(?:\|.*\n)+", page, re.MULTILINE)
    return str(lines)


def _found_row(listing: Listing) -> tuple[str, ...]:
    return listing.application, listing.layout or "–", f"`{listing.found_text or listing.text}`", "confirmed"


def _row(listing: Listing) -> tuple[str, ...]:
    package = f"{listing.package} {pinned(listing.package)}" if listing.package else "–"
    settings = (f"`{value}`" for value in (listing.collection, listing.text, listing.vector or '""'))
    return (listing.application, package, *settings, listing.opened_anew_after)


def pinned(package: str) -> str:
    """Return the version that the tests have of a package."""
    for pins in PINS:
        if version := re.search(rf"^{re.escape(package)}==([^ ;\n]+)", pins.read_text(), re.MULTILINE):
            return version[1]
    raise LookupError(f"{package} is in none of {', '.join(map(str, PINS))}")


if __name__ == "__main__":
    sys.exit(main())
