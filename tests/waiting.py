"""Waiting for what another thread or process does, as long as it takes on a slow machine."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 300.0
POLL_S = 0.01


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; raise AssertionError after five minutes: what has not happened by then hangs."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(POLL_S)
