"""Marks of processes, with real ones, and the lease in the control database."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.stores.processes import Child
from vecferry.errors import LeaseLost, Locked
from vecferry.stores.lease import held, is_gone, process_mark
from vecferry.stores.sqlite import SqliteLedger

SAY_THE_MARK = """
from vecferry.stores.lease import process_mark
print(process_mark(), flush=True)
input()
"""

ACQUIRE = """
import sys
from pathlib import Path
from vecferry.errors import Locked
from vecferry.stores.lease import process_mark
from vecferry.stores.sqlite import SqliteLedger
ledger = SqliteLedger.open(Path(sys.argv[1]))
print("ready", flush=True)
input()
try:
    print(ledger.acquire("docs", process_mark(), 60).token, flush=True)
except Locked as exc:
    print("locked", flush=True)
input()
"""

HOLD_AND_WRITE = """
import sys
from pathlib import Path
from vecferry.errors import LeaseLost
from vecferry.stores.lease import held
from vecferry.stores.sqlite import SqliteLedger
ledger = SqliteLedger.open(Path(sys.argv[1]))
with held(ledger, "docs", 0.5) as lease:
    print("held", flush=True)
    input()
    try:
        ledger.guard(lease)
        print("written", flush=True)
    except LeaseLost:
        print("lost", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sqlite"


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger.open(path) if request.param == "file" else SqliteLedger.in_memory()
    yield made
    made.close()


def test_a_process_that_runs_is_not_gone() -> None:
    assert process_mark() == process_mark()
    assert not is_gone(process_mark())


def test_a_killed_process_is_gone_even_before_its_parent_collects_it() -> None:
    with Child(SAY_THE_MARK) as child:
        mark = child.hear()
        assert mark.startswith(f"pid {child.pid} on ")
        assert not is_gone(mark)
        child.kill()
        assert is_gone(mark)
        child.collect()
        assert is_gone(mark)


def test_a_stopped_process_is_not_gone() -> None:
    with Child(SAY_THE_MARK) as child:
        mark = child.hear()
        child.send(signal.SIGSTOP)
        assert not is_gone(mark)


def test_a_pid_that_was_given_to_another_process_is_gone() -> None:
    started = process_mark().partition("started ")[2].partition(",")[0]
    assert is_gone(process_mark().replace(f"started {started}", f"started {int(started) + 1}"))


def test_a_process_of_another_system_is_never_known_to_be_gone() -> None:
    with Child(SAY_THE_MARK) as child:
        mark = child.hear()
        child.kill()
        assert not is_gone(mark[:-2] + ("0)" if mark[-2] != "0" else "1)"))


@pytest.mark.parametrize(
    "mark", ["", "the night shift", "pid 999999999 on host-a", "pid 0 on a (started 1, system 00000000)"]
)
def test_what_is_no_mark_is_never_known_to_be_gone(mark: str) -> None:
    assert not is_gone(mark)


# --- the lease ------------------------------------------------------------------------------------


def test_of_many_processes_one_has_the_lease(path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(Child(ACQUIRE, path)) for _ in range(4)]
        for child in children:
            assert child.hear() == "ready"
        for child in children:
            child.tell()
        assert sorted(child.hear() for child in children) == ["1", "locked", "locked", "locked"]


def test_the_lease_of_a_killed_process_is_taken_over_at_once(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    with Child(ACQUIRE, path) as child:
        child.hear()
        child.tell()
        assert child.hear() == "1"
        with pytest.raises(Locked, match=f"pid {child.pid} "):
            ledger.acquire("docs", process_mark(), 60)
        child.kill()
        assert ledger.acquire("docs", process_mark(), 60).token == 2
    ledger.close()


def test_a_process_that_was_stopped_for_too_long_writes_nothing_more(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    with Child(HOLD_AND_WRITE, path) as child:
        assert child.hear() == "held"
        child.send(signal.SIGSTOP)
        time.sleep(0.6)
        assert ledger.acquire("docs", process_mark(), 60).token == 2
        child.send(signal.SIGCONT)
        child.tell()
        assert child.hear() == "lost"
    ledger.close()


# --- held -----------------------------------------------------------------------------------------


def test_a_lease_is_renewed_while_it_is_held(ledger: SqliteLedger) -> None:
    with held(ledger, "docs", 1.0) as lease:
        time.sleep(1.3)
        with pytest.raises(Locked):
            ledger.acquire("docs", "b", 60)
        ledger.guard(lease)
    assert ledger.acquire("docs", "b", 60).token == lease.token + 1


def test_holding_a_lease_ends_at_once_and_leaves_no_thread(ledger: SqliteLedger) -> None:
    begun = time.monotonic()
    with held(ledger, "docs", 3600):
        assert any(thread.name == "lease on docs" for thread in threading.enumerate())
    assert time.monotonic() - begun < 600  # it does not wait until it would be renewed
    assert all(thread.name != "lease on docs" for thread in threading.enumerate())


def test_a_lease_is_given_back_after_a_failure(ledger: SqliteLedger) -> None:
    with pytest.raises(ZeroDivisionError), held(ledger, "docs", 60):
        raise ZeroDivisionError
    ledger.acquire("docs", "b", 60)


def test_a_lease_that_cannot_be_given_back_does_not_hide_the_failure(path: Path) -> None:
    ledger = SqliteLedger.open(path)

    def fail_without_a_store() -> None:
        with held(ledger, "docs", 60):
            ledger.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_without_a_store()


def test_a_failed_renewal_is_tried_again(path: Path) -> None:
    ledger, other = SqliteLedger.open(path, busy_timeout_s=0.05), SqliteLedger.open(path)
    with held(ledger, "docs", 1.5):
        with other.transaction():
            time.sleep(0.75)  # over the first renewal
        time.sleep(1.0)
        with pytest.raises(Locked):
            other.acquire("docs", "b", 60)
    other.close()
    ledger.close()


def test_the_renewal_ends_when_the_lease_is_lost(path: Path) -> None:
    ledger, other = SqliteLedger.open(path), SqliteLedger.open(path)
    with held(ledger, "docs", 0.3) as lease:
        with other.transaction():
            time.sleep(0.4)
            next_lease = other.acquire("docs", "b", 60)
        time.sleep(0.2)
        assert all(thread.name != "lease on docs" for thread in threading.enumerate())
        with pytest.raises(LeaseLost):
            ledger.guard(lease)
    other.guard(next_lease)
    other.close()
    ledger.close()
