"""Who holds a lease: the marks of processes, and a lease that is renewed while work is done under it."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vecferry.errors import LeaseLost, StoreError

if TYPE_CHECKING:
    from vecferry.stores.ledger import Lease
    from vecferry.stores.sql_ledger import Ledger

RENEWALS_PER_LEASE = 3
LAST_RENEWAL_S = 5.0

_MARK = re.compile(r"pid (?P<pid>[1-9]\d{0,8}) on \S+ \(started (?P<started>\d+), system (?P<system>[0-9a-f]+)\)")


def process_mark() -> str:
    """Say who this process is, for people and for `is_gone`: `pid 4711 on host-a (started 123456, system 1f0c9a2b)`.

    system: the boot of the kernel and the namespace of the pid, as a digest; hosts may share a name, and
    containers a host. The brackets are left out where there is no /proc; such a process is never known to be gone.
    """
    name = f"pid {os.getpid()} on {socket.gethostname()}"
    status, system = _status(os.getpid()), _system()
    return f"{name} (started {status[1]}, system {system})" if status and system else name


def process_of(mark: str) -> tuple[int, str]:
    """Return pid and host of a mark; 0 and the whole mark where it is none."""
    process = re.match(r"pid (\d+) on (\S+)", mark)
    return (int(process[1]), process[2]) if process else (0, mark)


def is_gone(mark: str) -> bool:
    """Return whether the process certainly does not exist any more. False for any that cannot be looked up here."""
    holder = _MARK.fullmatch(mark)
    if not holder or holder["system"] != _system():
        return False
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)  # /proc may hide the processes of other users
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    status = _status(pid)
    return status is not None and (status[0] in "ZX" or status[1] != holder["started"])


def _status(pid: int) -> tuple[str, str] | None:
    """Return state letter and start time in clock ticks since boot; None if /proc does not say them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


def _system() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:8]


@contextmanager
def held(ledger: Ledger, target: str, seconds: float, former: Lease | None = None) -> Iterator[Lease]:
    """Hold the lease on `target`, renew it meanwhile through a connection of its own, and give it back at the end.

    former: one of this holder that it may not have been able to give back. Raises Locked if somebody else has it.
    Whether it was lost meanwhile is for `Ledger.guard` to say.
    """
    lease = ledger.acquire(target, process_mark(), seconds, former)
    ended = threading.Event()
    renewer = threading.Thread(
        target=_renew, args=(ledger, lease, seconds, ended), name=f"lease on {target}", daemon=True
    )
    renewer.start()
    try:
        yield lease
    finally:
        ended.set()
        renewer.join(LAST_RENEWAL_S)
        with suppress(StoreError):  # the work is done or has failed already, and the lease ends by itself
            ledger.release(lease)


def _renew(ledger: Ledger, lease: Lease, seconds: float, ended: threading.Event) -> None:
    connected: Ledger | None = None
    while not ended.wait(seconds / RENEWALS_PER_LEASE):
        try:
            connected = connected or ledger.another()
            connected.renew(lease, seconds)
        except LeaseLost:
            break
        except StoreError:  # a connection that has failed may never work again
            _close(connected)
            connected = None
    _close(connected)


def _close(ledger: Ledger | None) -> None:
    if ledger is not None:
        with suppress(StoreError):
            ledger.close()
