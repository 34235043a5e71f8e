"""The one place where a run waits, by a clock of the test's own: nothing here really sleeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.migrate.doubles import Clock, TruthEncoder
from tests.stores.backends import COLLECTION
from tests.stores.collections import OLD_DIMENSION, old_vector
from vecferry.embeddings import TextVectors
from vecferry.errors import Interrupted, MigrationConflict
from vecferry.migrate import Migration, MigrationOptions, State, throttle
from vecferry.migrate.throttle import DiskGuard, LatencyGuard, PauseCondition, Throttle
from vecferry.stores.backend import Point
from vecferry.stores.ledger import Control
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Hit, Patience


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throttle, "time", made)
    return made


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Migration]:
    """Yield the operator's handle of a migration that is catching up."""
    points = [Point("1", "a", TextVectors(old_vector("a")))]
    store = MirrorStore(MemoryBackend({COLLECTION: points}), COLLECTION, SqliteLedger.in_memory())
    migration = Migration(
        store,
        new=TruthEncoder(),
        old=TruthEncoder("old", OLD_DIMENSION),
        options=MigrationOptions(accept_unconfirmed="a test", staging=tmp_path, patience=Patience(1.0, 5.0)),
    )
    migration.start()
    yield migration
    store.close()


def governing(operator: Migration, *guards: PauseCondition, stop: Callable[[], bool] = lambda: False) -> Throttle:
    store = operator.store
    record = store.ledger.find(store.target)
    assert record is not None
    return Throttle(store.ledger, record, guards, stop, poll_s=0.5)


class Ailing:
    """A guard that has a problem or none, as the test says; `before` is done whenever it is asked."""

    def __init__(self, problem: str | None = None, before: Sequence[Callable[[], object]] = ()) -> None:
        self.now = problem
        self.calls = 0
        self._before = list(before)

    def problem(self) -> str | None:
        self.calls += 1
        if self._before:
            self._before.pop(0)()
        return self.now

    def get(self, problem: str | None) -> Callable[[], None]:
        return lambda: setattr(self, "now", problem)


# --- the rate -------------------------------------------------------------------------------------


def test_without_a_limit_nothing_waits(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator)
    for _ in range(10):
        throttle.acquire(1000)
    assert clock.seconds == 0


def test_rows_are_admitted_at_the_rate(operator: Migration, clock: Clock) -> None:
    operator.throttle(10.0)
    throttle, at = governing(operator), []
    for rows in (5, 20, 1, 1):
        throttle.acquire(rows)
        at.append(clock.seconds)
    assert at == [0, 0.5, 2.5, 2.6]


def test_time_that_was_not_used_is_not_saved_for_a_burst(operator: Migration, clock: Clock) -> None:
    operator.throttle(10.0)
    throttle = governing(operator)
    throttle.acquire(5)
    clock.now += 100
    throttle.acquire(5)
    assert clock.seconds == 100
    throttle.acquire(5)
    assert clock.seconds == 100.5


def test_the_time_that_a_write_takes_counts(operator: Migration, clock: Clock) -> None:
    operator.throttle(10.0)
    throttle = governing(operator)
    throttle.acquire(10)
    clock.now += 0.7
    throttle.acquire(10)
    assert clock.seconds == 1


@pytest.mark.parametrize(("rate", "expected"), [(None, 2.0), (1000.0, 2.0), (50.0, 5.12)])
def test_a_limit_that_is_raised_while_it_waits_holds_at_once(
    operator: Migration, clock: Clock, rate: float | None, expected: float
) -> None:
    operator.throttle(1.0)
    throttle = governing(operator)
    throttle.acquire(256)  # which take 256 seconds at one a second
    clock.at(2, lambda: operator.throttle(rate))
    throttle.acquire(256)
    assert expected <= clock.seconds <= expected + 0.5


def test_a_limit_that_is_set_between_two_ranges_holds_from_the_next_on(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator)
    throttle.acquire(100)
    operator.throttle(10.0)
    throttle.acquire(10)
    throttle.acquire(10)
    assert clock.seconds == 1


# --- stopping -------------------------------------------------------------------------------------


def test_a_stop_ends_every_wait_within_a_tenth_of_a_second(operator: Migration, clock: Clock) -> None:
    stops = list[bool]()
    throttle = governing(operator, stop=lambda: bool(stops))
    operator.throttle(0.01)
    throttle.acquire(1)
    clock.at(3, lambda: stops.append(True))
    with pytest.raises(Interrupted):
        throttle.acquire(1)
    assert 3 <= clock.seconds <= 3.1
    waits: tuple[Callable[[], object], ...] = (lambda: throttle.sleep(60), throttle.poll, lambda: throttle.acquire(1))
    for wait in waits:
        with pytest.raises(Interrupted):
            wait()
    assert clock.seconds <= 3.1


def test_a_stop_ends_a_pause_too(operator: Migration, clock: Clock) -> None:
    stops = list[bool]()
    throttle = governing(operator, stop=lambda: bool(stops))
    operator.pause()
    clock.at(2, lambda: stops.append(True))
    with pytest.raises(Interrupted):
        throttle.poll()
    assert 2 <= clock.seconds <= 2.1
    assert operator.status().state == State.PAUSED


def test_a_migration_that_has_ended_ends_the_run(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator)
    operator.abort()
    with pytest.raises(Interrupted, match="ended by somebody else"):
        throttle.poll()


def test_the_next_migration_is_not_taken_for_this_one(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator)
    operator.abort()
    replace(operator, new=TruthEncoder("another"), old=TruthEncoder("old", OLD_DIMENSION)).start()
    with pytest.raises(Interrupted, match="ended by somebody else"):
        throttle.poll()


# --- pausing --------------------------------------------------------------------------------------


def test_a_pause_is_noticed_within_the_poll_and_waited_out(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator)
    throttle.poll()
    operator.pause()
    clock.now += 0.49
    throttle.poll()
    assert clock.seconds == 0.49  # nobody has looked yet
    clock.at(5, operator.resume)
    clock.now += 0.02
    throttle.acquire(1)
    assert 5 <= clock.seconds <= 5.6
    assert throttle.record.state == State.CATCHING_UP


def test_a_guard_pauses_with_its_reason_and_goes_on_by_itself(operator: Migration, clock: Clock) -> None:
    guard = Ailing("disk low: 0.1 GB")
    throttle, statuses = governing(operator, Ailing(), guard), []
    clock.at(1, lambda: statuses.append(operator.status()))
    clock.at(4, guard.get(None))
    throttle.poll()
    assert 4 <= clock.seconds <= 4.6
    (meanwhile,) = statuses
    assert (meanwhile.state, meanwhile.paused) == (State.PAUSED, "disk low: 0.1 GB")
    assert operator.status().state == throttle.record.state == State.CATCHING_UP
    events = [(event.what, event.detail) for event in operator.status().events][-2:]
    assert events == [("paused", {"reason": "disk low: 0.1 GB"}), ("catching_up", {"resumed": "disk low: 0.1 GB"})]


def test_guards_are_asked_once_a_poll(operator: Migration, clock: Clock) -> None:
    guard = Ailing()
    throttle = governing(operator, guard)
    for _ in range(100):
        throttle.acquire(1)
        clock.now += 0.01
    assert 2 <= guard.calls <= 3


def test_an_operators_pause_outlasts_a_guards(operator: Migration, clock: Clock) -> None:
    guard = Ailing("queries slow")
    throttle, pauses = governing(operator, guard), []
    clock.at(1, lambda: operator.pause("for lunch"))
    clock.at(2, guard.get(None))
    clock.at(4, lambda: pauses.append(operator.status().paused))
    clock.at(6, operator.resume)
    throttle.poll()
    assert pauses == ["for lunch"]
    assert 6 <= clock.seconds <= 6.6


def test_resuming_does_not_overrule_a_guard(operator: Migration, clock: Clock) -> None:
    guard = Ailing("queries slow")
    throttle, pauses = governing(operator, guard), []
    clock.at(1, operator.resume)
    clock.at(3, lambda: pauses.append(operator.status().paused))
    clock.at(5, guard.get(None))
    throttle.poll()
    assert pauses == ["queries slow"]
    assert 5 <= clock.seconds <= 5.6


def test_a_pause_that_was_left_behind_by_a_killed_run_ends_by_itself(operator: Migration, clock: Clock) -> None:
    governing(operator, Ailing("disk low"), stop=lambda: operator.status().state == State.PAUSED)
    with pytest.raises(Interrupted):
        governing(operator, Ailing("disk low"), stop=lambda: operator.status().state == State.PAUSED).poll()
    assert operator.status().paused == "disk low"
    later = governing(operator)
    later.poll()
    assert later.record.state == operator.status().state == State.CATCHING_UP


def test_an_operator_who_is_faster_than_a_guard_is_obeyed(operator: Migration, clock: Clock) -> None:
    guard = Ailing("disk low", before=[lambda: operator.pause("for lunch")])
    throttle, pauses = governing(operator, guard), []
    clock.at(1, lambda: pauses.append(operator.status().paused))
    clock.at(2, guard.get(None))
    clock.at(3, operator.resume)
    throttle.poll()
    assert pauses == ["for lunch"]
    assert 3 <= clock.seconds <= 3.6


def test_guards_do_not_pause_a_switch(operator: Migration, clock: Clock) -> None:
    store = operator.store
    operator.verify(override="no gate in this test")
    record = store.ledger.find(store.target)
    assert record is not None
    store.ledger.move(record, State.CUTTING_OVER, {})
    guard = Ailing("queries slow")
    governing(operator, guard).poll()
    assert (clock.seconds, guard.calls) == (0, 0)
    assert operator.status().state == State.CUTTING_OVER


# --- moving ---------------------------------------------------------------------------------------


def test_a_pause_that_comes_just_before_a_move_is_waited_out(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator, Ailing(before=[operator.pause]))
    clock.at(3, operator.resume)
    throttle.move(State.VERIFIED, why="for a test")
    assert 3 <= clock.seconds <= 3.6
    assert operator.status().state == throttle.record.state == State.VERIFIED
    assert operator.status().events[-1].detail == {"why": "for a test"}


def test_a_state_that_somebody_else_has_moved_is_a_conflict(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator, Ailing(before=[lambda: operator.verify(override="no gate in this test")]))
    with pytest.raises(MigrationConflict):
        throttle.move(State.VERIFIED)
    assert operator.status().state == State.READY


def test_what_an_operator_sets_meanwhile_is_no_conflict(operator: Migration, clock: Clock) -> None:
    throttle = governing(operator, Ailing(before=[lambda: operator.throttle(5.0)]))
    throttle.move(State.VERIFIED)
    assert operator.status().state == State.VERIFIED
    assert operator.status().control == Control(5.0)


# --- the guards -----------------------------------------------------------------------------------


def disk_of(monkeypatch: pytest.MonkeyPatch, free_gb: float) -> list[Path]:
    """Have every disk report `free_gb`; return the list of the paths that it is asked about."""
    paths: list[Path] = []

    def disk_usage(path: Path) -> Any:
        paths.append(Path(path))
        return shutil._ntuple_diskusage(10**12, 0, int(free_gb * 10**9))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return paths


def test_a_disk_guard_names_what_is_free_and_what_must_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk_of(monkeypatch, 0.5)
    problem = DiskGuard(tmp_path, 1.5).problem()
    assert problem == f"disk low: 0.50 GB free at {tmp_path}, 1.5 are to be left"
    assert DiskGuard(tmp_path, 0.5).problem() is None


def test_a_disk_guard_asks_where_the_folder_will_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = disk_of(monkeypatch, 5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    DiskGuard(Path("there") / "not" / "yet", 1).problem()
    DiskGuard(Path("there"), 1).problem()
    assert [path.absolute() for path in paths] == [tmp_path / "there", tmp_path / "there"]


def test_a_disk_guard_asks_the_real_disk(tmp_path: Path) -> None:
    assert DiskGuard(tmp_path, 0).problem() is None
    assert "disk low" in str(DiskGuard(tmp_path, 10**9).problem())


class SlowStore:
    """A store whose searches take as long as the test says, by the test's clock."""

    def __init__(self, clock: Clock, *milliseconds: float) -> None:
        self._clock = clock
        self._left = list(milliseconds)

    def search(self, vector: np.ndarray, k: int, *, fingerprint: str) -> list[Hit]:
        assert (len(vector), k, fingerprint) == (8, 1, "old")
        self._clock.now += self._left.pop(0) / 1000
        return []


def test_a_latency_guard_goes_by_the_median_of_the_last_five(clock: Clock) -> None:
    took = (10, 10, 900, 10, 10, 900, 900, 10, 10, 10)
    store: Any = SlowStore(clock, *took)
    guard = LatencyGuard(store, np.ones(8, np.float32), "old", max_ms=100)
    slow = [guard.problem() is not None for _ in took]
    assert slow == [False, False, False, False, False, False, True, False, False, False]


def test_a_latency_guard_says_its_figures(clock: Clock) -> None:
    store: Any = SlowStore(clock, 250)
    guard = LatencyGuard(store, np.ones(8, np.float32), "old", max_ms=100)
    assert guard.problem() == "queries slow: 250 ms, limit 100 ms"
