"""Trying again for what somebody else has locked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from vecferry.errors import Locked
from vecferry.stores.values import Patience

T = TypeVar("T")


def patiently(work: Callable[[float], T], patience: Patience) -> T:
    """Try `work` as `patience` says, and return its result; it is given the seconds others may wait in this try.

    Raises the last try's Locked.
    """
    until = None if patience.wait_s is None else time.monotonic() + patience.wait_s
    pause_s = min(patience.first_pause_s, patience.max_pause_s)
    while True:
        try:
            return work(pause_s)
        except Locked as exc:
            if until is not None and time.monotonic() + pause_s > until:
                raise
            in_the_way = exc.holder
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, patience.max_pause_s)
        patience.notify(f"in the way: {in_the_way}; trying again, others wait {pause_s:.1f} s at most")
