"""The connection to a cluster, or a Ray of this machine; its beginning and its end."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError

from vecferry.encode.runtime.host import available_cpus
from vecferry.errors import EngineUnreachable, SettingsError
from vecferry.migrate.engines import RaySettings

FOLDERS = "vecferry-ray-"
SHORT = "/tmp" if os.name == "posix" else None  # noqa: S108  # made by mkdtemp; sockets in it may not have long names
ANSWER_S = 5.0
"""How long a cluster's port may take to answer."""
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class RaySession:
    """Ends what it has begun: the Ray of this machine, with its processes and its folder, or the connection to a
    cluster. Where the process is connected already, that connection is used and left.
    """

    def __init__(self, settings: RaySettings) -> None:
        """Start Ray or connect to it. Raises EngineUnreachable, SettingsError."""
        self._is_ours, self._folder = not ray.is_initialized(), ""
        self._on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if self._on_sigterm == signal.SIG_DFL and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, _exit)  # until Ray has its own, so that what was begun is ended
            if self._is_ours and settings.address is None:
                self._start(settings)
            elif self._is_ours:
                self._join(settings.address or "")
        except BaseException:
            self.close()
            raise
        if self._on_sigterm != signal.SIG_DFL:
            self._give_back_sigterm()
        self.node: str = ray.get_runtime_context().get_node_id()
        self.cpus_per_worker = settings.cpus_per_worker or self._share(settings)

    def __str__(self) -> str:
        machines = machines_alive()
        return f"{len(machines)} machines with {sum(map(_cpus, machines)):g} CPUs were alive"

    def close(self) -> None:
        """End what was begun. Repeating is safe."""
        if self._is_ours:
            ray.shutdown()
            self._give_back_sigterm()
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _give_back_sigterm(self) -> None:
        """Give back SIGTERM, which Ray takes, to end in order. An application's own handler stays."""
        if self._is_ours and self._on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _start(self, settings: RaySettings) -> None:
        """Start Ray with one CPU more than workers take: or tasks and workers could wait for each other for ever."""
        sweep_folders()
        self._folder = tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-", dir=SHORT)
        session = str(Path(self._folder) / "r")  # Ray lets everybody into its own folder
        cpus = settings.workers * (settings.cpus_per_worker or max(available_cpus() // settings.workers, 1)) + 1
        try:
            with _on_loopback():
                make_token()
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=session, **QUIET)
        except (OSError, RuntimeError, ValueError, RayError) as exc:
            raise EngineUnreachable("local", first_line(exc)) from exc

    def _join(self, address: str) -> None:
        if address != "auto":
            _refuse_deaf(address)  # Ray itself would try for minutes
        try:
            ray.init(address=address, **QUIET)
        except (ConnectionError, RuntimeError, ValueError, RayError) as exc:
            raise EngineUnreachable(address, first_line(exc)) from exc

    def _share(self, settings: RaySettings) -> int:
        """Return the CPUs of a worker, so that all fit. One of Ray's count is left to its tasks where it can be."""
        numbers = sorted((int(_cpus(machine)) for machine in machines_alive()), reverse=True)
        most = max(numbers, default=1)
        fitting = (
            cpus for cpus in range(most, 0, -1)
            if sum(number // cpus for number in numbers) >= settings.workers and sum(numbers) > settings.workers * cpus
        )  # fmt: skip
        return next(fitting, 1)


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def sweep_folders() -> None:
    """Remove what runs have left that could not do so themselves."""
    for folder in Path(SHORT or tempfile.gettempdir()).glob(f"{FOLDERS}*-*"):
        pid = folder.name.removeprefix(FOLDERS).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of another user's there is nothing that can be removed


def make_token() -> None:
    """Leave the secret that Ray's processes know each other by readable for its owner alone, where it is in a file."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    path = Path.home() / ".ray/auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(secrets.token_hex(32))
    except FileExistsError:
        path.chmod(path.stat().st_mode & 0o700)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let the Ray that is started inside listen on 127.0.0.1 alone, as it does by itself where firewalls ask."""
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    said = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]
        if said is not None:
            os.environ[name] = said


def _refuse_deaf(address: str) -> None:
    """Raise SettingsError if it is no address of a cluster, EngineUnreachable if nobody listens there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        expected = "HOST:PORT of a cluster that this machine is part of (ray start --address HOST:PORT), or auto"
        raise SettingsError("--ray-address", address, expected)
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as exc:
        raise EngineUnreachable(address, str(exc)) from exc


def machines_alive() -> list[dict[str, Any]]:
    """Return the machines that are alive, as Ray describes them."""
    machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [machine for machine in machines if machine["Alive"]]


def _cpus(machine: Mapping[str, Any]) -> float:
    return float(machine["Resources"].get("CPU", 0))


def first_line(exc: BaseException) -> str:
    """Return what an error of Ray's says that a person can use; the text of its own errors ends with it."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    if isinstance(exc, RayError) and lines:
        return f"{type(exc).__name__}: {lines[-1]}"
    return (lines or [type(exc).__name__])[0]
