"""When a runner may write: the one place where it waits on purpose, and where it notices that it must."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vecferry.errors import Interrupted, MigrationConflict
from vecferry.migrate.staging import free_bytes
from vecferry.migrate.states import ENDED, WORKING, State, can_move
from vecferry.migrate.values import MigrationOptions
from vecferry.stores.ledger import MigrationRecord, Paused, was_switched
from vecferry.stores.protocol import Store
from vecferry.stores.sql_ledger import Ledger

GIGABYTE = 10**9


class PauseCondition(Protocol):
    """Something that must be well for the run to go on."""

    def problem(self) -> str | None:
        """Return what is not well, with its figures; None if all is."""


@dataclass(frozen=True)
class DiskGuard:
    """Room where the staged vectors are written: at least `min_free_gb`."""

    folder: Path
    min_free_gb: float

    def problem(self) -> str | None:
        free = free_bytes(self.folder) / GIGABYTE
        if free >= self.min_free_gb:
            return None
        return f"disk low: {free:.2f} GB free at {self.folder}, {self.min_free_gb:g} are to be left"


class LatencyGuard:
    """A search in the serving vectors takes no longer than `max_ms`, as the median of the last five."""

    def __init__(self, store: Store, query: np.ndarray, fingerprint: str, max_ms: float) -> None:
        self._store, self._query, self._fingerprint, self._max_ms = store, query, fingerprint, max_ms
        self._last_ms: list[float] = []

    def problem(self) -> str | None:
        began = time.perf_counter()
        self._store.search(self._query, 1, fingerprint=self._fingerprint)
        self._last_ms = [*self._last_ms[-4:], 1000 * (time.perf_counter() - began)]
        median = float(np.median(self._last_ms))
        return None if median <= self._max_ms else f"queries slow: {median:.0f} ms, limit {self._max_ms:g} ms"


def guards_of(store: Store, record: MigrationRecord, options: MigrationOptions) -> list[PauseCondition]:
    """Return the conditions that the options name. Queries are looked at until the first switch."""
    guards = list[PauseCondition]()
    if options.min_free_gb:
        guards.append(DiskGuard(options.staging, options.min_free_gb))
    if options.max_query_ms is not None and not was_switched(store.ledger, record):
        dimension = store.describe().dimension
        if dimension is not None:
            query = np.random.default_rng(0).standard_normal(dimension).astype(np.float32)
            serving = store.ledger.serving(store.target)
            fingerprint = (serving.fingerprint if serving else None) or "unknown"
            guards.append(LatencyGuard(store, query, fingerprint, options.max_query_ms))
    return guards


class Throttle:
    """Holds the newest record of the migration, and a runner back.

    stop: asked often; true ends the run with Interrupted. poll_s: how often an operator's wishes, the
    state and the guards are looked at.
    """

    def __init__(
        self,
        ledger: Ledger,
        record: MigrationRecord,
        guards: Sequence[PauseCondition] = (),
        stop: Callable[[], bool] = lambda: False,
        poll_s: float = 0.5,
    ) -> None:
        self._ledger = ledger
        self.record = record
        self._guards = guards
        self._stop = stop
        self._poll_s = poll_s
        self._next_look = 0.0
        self._admitted, self._admitted_at = 0, 0.0

    # --- waiting ----------------------------------------------------------------------------------

    def acquire(self, rows: int) -> None:
        """Wait until `rows` may be written. Raises Interrupted if the run is to end."""
        self.poll()
        while (rate := self._ledger.control(self.record).rows_per_s) and (left_s := self._left_s(rate)) > 0:
            self.sleep(min(self._poll_s, left_s))
            self.poll()
        self._admitted, self._admitted_at = (rows if rate else 0), time.monotonic()

    def _left_s(self, rate: float) -> float:
        """Return the time until the rows that were admitted last have had theirs, at the rate of now."""
        return self._admitted_at + self._admitted / rate - time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep, in parts short enough to be stopped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._end_if_asked()
            time.sleep(min(left, 0.1))

    def _end_if_asked(self) -> None:
        if self._stop():
            raise Interrupted("it was asked to stop")

    def poll(self, *, now: bool = False) -> None:
        """Wait while the migration is paused, or while a guard is not content; then the run is paused by itself."""
        self._end_if_asked()
        if not now and time.monotonic() < self._next_look:
            return
        self.refresh()
        while self._must_wait():
            self.sleep(self._poll_s)
            self.refresh()
        self._next_look = time.monotonic() + self._poll_s

    def refresh(self) -> None:
        record = self._ledger.find(self.record.spec.target)
        if record is None or record.id != self.record.id or State(record.state) in ENDED:
            raise Interrupted("the migration was ended by somebody else")
        self.record = record

    def _must_wait(self) -> bool:
        paused = self.record.paused
        if paused is not None and paused.by_operator:
            return True
        if State(self.record.state) not in WORKING | {State.PAUSED}:
            return False
        problem = next(filter(None, (guard.problem() for guard in self._guards)), None)
        if problem and paused is None:
            before = Paused(self.record.state, problem, by_operator=False)
            self._try_move(State.PAUSED, {"reason": problem}, before)
        if problem is None and paused is not None:
            self._try_move(State(paused.before), {"resumed": paused.reason}, None)
        return problem is not None

    def _try_move(self, state: State, detail: dict[str, object], paused: Paused | None) -> None:
        try:
            self.record = self._ledger.move(self.record, state, detail, paused)
        except MigrationConflict:  # an operator was faster; the next look sees what he did
            self.refresh()

    # --- moving -----------------------------------------------------------------------------------

    def move(self, state: State, **detail: object) -> None:
        """Move to the next state of the run; waits first while the migration is paused."""
        while True:
            self.poll(now=True)
            assert can_move(State(self.record.state), state), f"{self.record.state} -> {state}"
            try:
                self.record = self._ledger.move(self.record, state, detail)
            except MigrationConflict:
                before = self.record.state
                self.refresh()
                if self.record.paused is None and self.record.state != before:
                    raise  # somebody else runs it
            else:
                return
