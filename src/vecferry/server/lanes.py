"""What waits to be run, and what is taken next. Decides and starts nothing; thread-safe.

A lane is a queue in the order of arrival. What is taken from it at once is a *cohort*: the first, and those behind
it that ask the same model for the same outputs, as far as they fit. The library then makes one plan for all of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum

from vecferry.embeddings import Embeddings, Outputs
from vecferry.encode.encoder import TEXTS_EACH, Work
from vecferry.errors import Overloaded
from vecferry.server.models import Served


class LaneName(StrEnum):
    """The names of the lanes."""

    QUERY = "query"
    BULK = "bulk"


COHORT_TEXTS = {LaneName.QUERY: 64, LaneName.BULK: TEXTS_EACH}
"""Texts of a cohort: in the bulk lane as many as the library plans at a time, few where somebody waits."""
RETRY_AT_MOST_S = 60


@dataclass(eq=False)
class Job:
    """A part of a request. until: on the clock of `time.monotonic`. answer: cancelled by one who does not wait."""

    model: Served
    work: Work
    until: float
    answer: Future[Embeddings] = field(default_factory=Future)

    @property
    def is_wanted(self) -> bool:
        return not self.answer.done() and time.monotonic() < self.until

    @property
    def kind(self) -> tuple[str, Outputs]:
        return self.model.name, self.work.outputs


class Lane:
    """A queue of jobs. max_tokens: what may wait in it."""

    def __init__(self, name: LaneName, max_tokens: int) -> None:
        self.name = name
        self._max_tokens = max_tokens
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._speed = Speed()

    @property
    def tokens(self) -> int:
        """The tokens that wait and are wanted."""
        with self._changed:
            return self._tokens()

    def __len__(self) -> int:
        return len(self._jobs)

    def check_room(self, tokens: int) -> None:
        """Raise Overloaded unless there is room. An empty lane has room for anything."""
        with self._changed:
            if (queued := self._tokens()) and queued + tokens > self._max_tokens:
                wait_s = self._speed.seconds_for(queued + tokens - self._max_tokens)
                retry_after_s = min(max(round(wait_s), 1), RETRY_AT_MOST_S)
                raise Overloaded(f"tokens that wait in the {self.name} lane", queued, self._max_tokens, retry_after_s)

    def put(self, jobs: Iterable[Job]) -> None:
        """Queue all jobs of a request, which `check_room` has let in."""
        with self._changed:
            assert not self._closed, "the lane is closed"
            self._jobs.extend(jobs)
            self._changed.notify()

    def take(self) -> list[Job]:
        """Wait for the next cohort and take it; empty once the lane is closed and nothing is left in it."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted() or self._closed)
            cohort = cohort_of(self._jobs, COHORT_TEXTS[self.name])
            started = set(map(id, cohort))
            self._jobs = deque(job for job in self._jobs if id(job) not in started)
            return cohort

    def ran(self, tokens: int, seconds: float) -> None:
        """Record the speed of a run, so that `Overloaded` can say when to come again."""
        self._speed.saw(tokens, seconds)

    def close(self) -> None:
        """Accept nothing more; `take` returns what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wanted(self) -> deque[Job]:
        """Return the jobs that wait, after dropping those that nobody waits for."""
        self._jobs = deque(job for job in self._jobs if job.is_wanted)
        return self._jobs

    def _tokens(self) -> int:
        return sum(job.work.num_tokens for job in self._wanted())


def cohort_of(jobs: Iterable[Job], max_texts: int) -> list[Job]:
    """Return the first job, and those of its kind that fit beside it, in their order."""
    cohort: list[Job] = []
    texts = 0
    for job in jobs:
        size = len(job.work.cached)
        if cohort and texts + size > max_texts:
            break
        if not cohort or job.kind == cohort[0].kind:
            cohort.append(job)
            texts += size
    return cohort


class Speed:
    """Tokens a second, as a moving average of the last runs."""

    KEPT = 0.8

    def __init__(self) -> None:
        self._tokens_per_s: float | None = None

    def saw(self, tokens: int, seconds: float) -> None:
        if tokens and seconds > 0:
            now = tokens / seconds
            before = now if self._tokens_per_s is None else self._tokens_per_s
            self._tokens_per_s = self.KEPT * before + (1 - self.KEPT) * now

    def seconds_for(self, tokens: int) -> float:
        """Return how long so many tokens take; 1 as long as nothing is known."""
        return 1.0 if self._tokens_per_s is None else tokens / self._tokens_per_s
