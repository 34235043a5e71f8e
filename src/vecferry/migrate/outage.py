"""A store that goes away in the middle of a run, and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from vecferry.errors import Locked, StoreUnreachable
from vecferry.migrate.operator_lock import LEASE_POLL_S
from vecferry.stores.protocol import Store

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


class Outage:
    """How long the store has been away; over when a run is at work again.

    wait_s: how long it is waited for, the lease included that the run had when the store went away.
    stop: asked often; true ends the wait.
    """

    def __init__(self, store: Store, wait_s: float, stop: Callable[[], bool]) -> None:
        self._store = store
        self._wait_s = wait_s
        self._stop = stop
        self._began_at: float | None = None

    def end(self) -> None:
        """Note that the run is at work again."""
        self._began_at = None

    def outlast(self, run: Callable[[], T]) -> T:
        """Return what `run` does, begun again each time that the store went away. It must call `end`.

        Raises StoreUnreachable if the store does not come back in time, and Locked as `run` does; but the lease that
        we had when the store went away is waited for.
        """
        while True:
            try:
                return run()
            except StoreUnreachable as exc:
                self._await_store(exc)
            except Locked:
                if self._is_too_long():
                    raise
                time.sleep(LEASE_POLL_S)

    def _await_store(self, failure: StoreUnreachable) -> None:
        """Wait until the store answers again. Raises `failure` if it does not in time."""
        if self._began_at is None:
            self._began_at = time.monotonic()
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._store.reconnect()
                record = self._store.ledger.find(self._store.target)
                if record is not None:
                    detail = {"reason": failure.reason, "seconds": round(self._seconds(), 1)}
                    self._store.ledger.add_event(record, "store came back", detail)
                return
            except StoreUnreachable:
                if self._stop() or self._is_too_long():
                    raise failure from None
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _seconds(self) -> float:
        return 0.0 if self._began_at is None else time.monotonic() - self._began_at

    def _is_too_long(self) -> bool:
        """Return whether there was none, or it has taken longer than is waited for."""
        return self._began_at is None or self._seconds() > self._wait_s
