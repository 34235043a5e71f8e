"""Trying again for what somebody else has locked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from vecferry.errors import Locked
from vecferry.stores import Patience

T = TypeVar("T")


def patiently(work: Callable[[], T], patience: Patience) -> T:
    """What `work` returns, tried as often as `patience` says. Raises the last try's Locked."""
    pause_s = patience.pause_s
    for _ in range(patience.tries - 1):
        try:
            return work()
        except Locked:
            time.sleep(pause_s)
            pause_s *= 2
    return work()
