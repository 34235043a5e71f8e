"""The demo's application: it writes and asks while its vectors are migrated, as a visitor of a site would."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vecferry.demo.passages import Text
from vecferry.errors import VecferryError
from vecferry.migrate.router import Document, Router

PERIOD_S = 0.5
VISITORS = 10
"""Rows of its own that are there at a time; all are gone at the end."""


@dataclass
class DemoApplication:
    """An application that inserts, changes and deletes rows, and searches for each that it has just written."""

    router: Router
    passages: Sequence[Text]
    writes: int = 0
    searches: int = 0
    not_found: int = 0
    failures: list[str] = field(default_factory=list)
    longest_write_ms: float = 0.0
    epochs: set[int] = field(default_factory=set)

    @contextmanager
    def under_load(self) -> Iterator[None]:
        ending = threading.Event()
        thread = threading.Thread(target=self._run, args=(ending,), name="demo-application")
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()

    def _run(self, ending: threading.Event) -> None:
        number = 0
        while not ending.wait(PERIOD_S):
            try:
                self._visit(number)
            except VecferryError as exc:
                self.failures.append(exc.message)
            number += 1
        self.router.remove([_key(i) for i in range(VISITORS)])

    def _visit(self, number: int) -> None:
        """Write a row, or in the third visit to it delete it."""
        key, passage = _key(number % VISITORS), self.passages[number % len(self.passages)]
        began = time.perf_counter()
        if (number + number // VISITORS) % 3 == 2:
            self.router.remove([key])
        else:
            text = f"Note {number}: {passage.text[:80]}"
            self.router.put([Document(key, text, {"lang": passage.lang})])
            self._search(text, key)
        self.longest_write_ms = max(self.longest_write_ms, 1000 * (time.perf_counter() - began))
        self.writes += 1

    def _search(self, text: str, key: tuple[str, ...]) -> None:
        answer = self.router.search(text, 3)
        self.epochs.add(answer.epoch)
        self.searches += 1
        self.not_found += key not in [hit.key for hit in answer.hits]

    def report(self) -> dict[str, Any]:
        """Report counts. longest_write_ms: both models' encoding on one processor and the search included."""
        return {
            "writes": self.writes,
            "searches": self.searches,
            "failed": len(self.failures),
            "failures": self.failures[:5],
            "not_found": self.not_found,
            "longest_write_ms": round(self.longest_write_ms),
            "epochs": sorted(self.epochs),
        }


def _key(number: int) -> tuple[str, ...]:
    return (f"visitor-{number}",)
