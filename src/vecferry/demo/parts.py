"""The parts of the demo's journey, and how long what is left of it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

PARTS_S = {
    "the old model": 6,
    "the new model": 22,
    "the old vectors": 18,
    "the new vectors": 38,
    "verifying": 8,
    "switching": 8,
    "evaluating": 35,
    "the report": 6,
}
"""About how many seconds each takes on two cores, with the stand-in, in their order."""


class Parts:
    """Tells `stage` what is being done, in which part, and about how long all that is left takes.

    A machine that is slower than two cores, or a larger model, is seen by the time that the parts before have taken.
    """

    def __init__(self, stage: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._stage, self._clock = stage, clock
        self._began_at, self._number = clock(), 0

    def begin(self, part: str, message: str) -> None:
        """Go on to a part of `PARTS_S`."""
        self._number = list(PARTS_S).index(part)
        self(message)

    def __call__(self, message: str) -> None:
        seconds = list(PARTS_S.values())
        behind, ahead = sum(seconds[: self._number]), sum(seconds[self._number :])
        pace = (self._clock() - self._began_at) / behind if behind else 1.0
        left = timedelta(seconds=round(max(pace, 1.0) * ahead))
        self._stage(f"{self._number + 1} of {len(seconds)}, about {left} left: {message}")
