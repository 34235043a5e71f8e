"""How far something is, in words, for those who look at no bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta


class ProgressLines:
    """Calls `write` with how far something is and how long that takes, every `every_s` seconds at most, not at once."""

    def __init__(self, label: str, write: Callable[[str], None], every_s: float) -> None:
        self._label, self._write, self._every_s = label, write, every_s
        self._began_at = self._written_at = time.monotonic()
        self._before: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._before is None:
            self._before, self._began_at = done, now  # what an earlier run has done says nothing of the rate
        if done < total and now - self._written_at >= self._every_s:
            self._written_at = now
            self._write(f"{self._label}: {done:,} of {total:,}{self._left(done - self._before, total - done, now)}")

    def _left(self, done: int, missing: int, now: float) -> str:
        if done <= 0:
            return ""
        return f", about {timedelta(seconds=round((now - self._began_at) * missing / done))} left"
