"""How many rows a run does in a second, for those who look on from elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 30.0
"""How far back the rate is measured; farther where a range takes longer."""
AT_MOST_EVERY_S = 2.0


class Pace:
    """Tells a rate after whole ranges, every two seconds at most. tell: given rows a second."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._marks: deque[tuple[float, int]] = deque()  # seconds, rows since the beginning
        self._told_at = 0.0

    def begin(self) -> None:
        """Begin to measure; nothing is done yet."""
        self._told_at = time.monotonic()
        self._marks = deque([(self._told_at, 0)])

    def add(self, rows: int) -> None:
        """Count the rows of a range that is done. What a range takes is its time and that of no part of it."""
        now = time.monotonic()
        self._marks.append((now, self._marks[-1][1] + rows))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW_S:
            self._marks.popleft()
        began, before = self._marks[0]
        if now - self._told_at >= AT_MOST_EVERY_S:
            self._told_at = now
            self._tell((self._marks[-1][1] - before) / (now - began))
