"""Ray, and what Ray Data does here. The only file that imports `ray`.

    driver ── jobs ──► conductor ── Ray Data: map_batches over a pool of actors ──► workers, one model each
       ◄── results, one by one, each as soon as it is there ──┘

The conductor is an actor on the driver's machine that owns one Ray Data run, a wave of jobs. Where nothing comes any
more it is killed, and with it goes all that it owns; the next one begins what is missing. A job's result is its bytes:
nothing is written by a worker, so no folder must be shared, and a full disk is met in one place.

A worker begins a job when the result of its last one is kept, and no sooner: it waits at a turnstile, an actor beside
the conductor. So whatever is lost, a worker has one job to do again at most, and none is begun for a driver that died.

Ray reports usage to its maker unless it is told not to; here it is, unless the application has chosen otherwise.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Self

import numpy as np

import vecferry.errors
from vecferry.embeddings import Float32
from vecferry.encoder import TextEncoder
from vecferry.errors import (
    EngineStalled,
    EngineUnreachable,
    MissingExtra,
    NodeRefused,
    SettingsError,
    SpaceMismatch,
    VecferryError,
)
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.engines.shipping import NodeModel
from vecferry.runtime.host import available_cpus
from vecferry.verify import LOSSES, TEXTS, TOLERANCES

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import pyarrow as pa
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as exc:
    raise MissingExtra("ray", "ray") from exc

Do = Callable[[TextEncoder, bytes], bytes]
"""What a worker does with a job. To be pickled."""
FOLDERS = "vecferry-ray-"
SHORT = "/tmp" if os.name == "posix" else None  # noqa: S108  # made by mkdtemp; sockets in it may not have long names
ANSWER_S = 5.0
"""How long a cluster's port may take to answer."""
HEED_S = 0.5
RESULTS_AHEAD = 8
"""Results that wait for the driver at most; then workers wait too."""
MANY = 100_000
"""Workers that may wait at a turnstile, those among them that have died meanwhile."""


class Pool:
    """Workers with a model, for as long as it is open. Opened by the first wave.

    Ends what it has begun: the Ray of this machine, with its processes and its folder, or the connection to a
    cluster. Where the process is connected already, that connection is used and left.
    """

    def __init__(
        self,
        settings: RaySettings,
        model: NodeModel,
        encoder: TextEncoder,
        do: Do,
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        """encoder: of the driver, whose vectors those of other machines are held against. heed: called while workers
        are waited for; what it raises ends that. Raises SpaceMismatch.
        """
        if encoder.fingerprint != model.fingerprint:
            raise SpaceMismatch(
                expected=encoder.fingerprint, found=model.fingerprint, where="the model for the workers"
            )
        self._settings, self._model, self._encoder, self._do = settings, model, encoder, do
        self._heed = heed
        self._session: _Session | None = None
        self._conductor: Any = None
        self._turnstile: Any = None
        self._jobs: dict[int, ray.ObjectRef[bytes]] = {}
        self._examined: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves no actor, no process and no folder of ours. Repeating is safe.

        No reference to Ray's objects may outlive it, in a traceback for instance: the next Ray of this process would
        count them as its own, since it names its objects alike.
        """
        self._end_conductor()
        self._jobs.clear()
        if self._session is not None:
            self._session.close()
        self._session = None
        self._examined.clear()

    def put(self, number: int, job: bytes) -> None:
        """Leaves a job where workers find it, in Ray's memory or on its disk. Raises EngineUnreachable."""
        self._open()
        self._jobs[number] = ray.put(job)

    def _open(self) -> _Session:
        if self._session is None:
            self._session = _Session(self._settings)
        return self._session

    def results(self) -> Generator[tuple[int, bytes], None, None]:
        """(number, result) of each job that was put, in any order, each once: one wave. To be closed before the pool.

        Who asks for the next has kept the one before, where nothing that dies can take it.
        Raises NodeRefused; EngineStalled if nothing came in `tries` tries; and what the first job raised whose failure
        is no single text's.
        """
        number_in_all, seen = len(self._jobs), list[str]()
        while self._jobs:
            try:
                with closing(self._try()) as results:
                    for number, found in results:
                        del self._jobs[number]
                        seen.clear()
                        yield number, found
            except (RayError, _Stalled) as exc:
                seen.append(_first_line(exc))
                self._end_conductor()
            else:
                seen += ["the run ended without them"] if self._jobs else []
            if self._jobs and len(seen) >= self._settings.tries:
                missing = f"{len(self._jobs)} of {number_in_all} jobs"
                raise EngineStalled(len(seen), tuple(dict.fromkeys(seen)), missing)

    def _try(self) -> Generator[tuple[int, bytes], None, None]:
        """Those that come out before something breaks. Raises RayError, _Stalled."""
        session = self._open()
        threads = session.cpus_per_worker
        self._examine_nodes(threads)
        if self._conductor is None:
            self._conductor = _on(session.node, _Conductor).remote()
            self._turnstile = _on(session.node, _Turnstile, max_concurrency=MANY).remote()
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": RESULTS_AHEAD}
        arguments = (self._model, self._do, threads, self._jobs, self._turnstile)
        stream = self._conductor.run.options(**options).remote(
            [*self._jobs], _Worker, arguments, self._settings, threads
        )
        while True:
            if self._late([stream]):
                raise _Stalled(f"no job was done for {self._settings.stall_s:g} s; {session}")
            try:
                number, found, failure = ray.get(next(stream))
            except StopIteration:
                return
            if failure:
                raise _rebuilt(failure)
            yield number, found
            self._turnstile.kept.remote(number)

    def _end_conductor(self) -> None:
        if self._conductor is not None and ray.is_initialized():
            ray.kill(self._conductor)
            ray.kill(self._turnstile)
        self._conductor = self._turnstile = None

    # --- machines ---------------------------------------------------------------------------------

    def _examine_nodes(self, threads: int) -> None:
        """Leaves the model on every machine that can have a worker and was not seen before. Raises NodeRefused."""
        wanted = {"CPU": threads, "GPU": self._settings.gpus_per_worker}
        fitting = [
            node for node in _alive()
            if all(node["Resources"].get(name, 0) >= number for name, number in wanted.items())
        ]  # fmt: skip
        if not fitting:
            reason = f"none of its machines has {threads} CPUs and {self._settings.gpus_per_worker:g} GPUs for a worker"
            raise EngineUnreachable(self._settings.address or "local", reason)
        new = {node["NodeID"]: node["NodeManagerHostname"] for node in fitting if node["NodeID"] not in self._examined}
        looks = self._on_each(new, _look, self._model)
        for node, (_, version, _, refusal) in looks.items():
            if version != vecferry.__version__:
                raise NodeRefused(new[node], f"it has vecferry {version}, and the driver {vecferry.__version__}")
            if refusal:
                raise NodeRefused(new[node], refusal)
        self._ship({node: new[node] for node, (_, _, missing, _) in looks.items() if missing})
        other_kinds = {node: new[node] for node, (kind, *_) in looks.items() if kind != self._model.kind()}
        self._probe(other_kinds, threads)
        self._examined |= new.keys()

    def _ship(self, nodes: Mapping[str, str]) -> None:
        if nodes:
            pieces = [(name, ray.put(piece)) for name, piece in self._model.pieces()]
            refusals = self._on_each(nodes, _receive, self._model, pieces)
            del pieces
            for node, refusal in refusals.items():
                if refusal:
                    raise NodeRefused(nodes[node], refusal)

    def _probe(self, nodes: Mapping[str, str], threads: int) -> None:
        """On a machine of another kind the same texts must have nearly the same vectors."""
        if not nodes:
            return
        space = self._encoder.space
        allowed = LOSSES.get(space.precision, TOLERANCES)["itself"]
        expected = self._encoder.encode(TEXTS).dense
        needs = {"num_cpus": threads, "num_gpus": self._settings.gpus_per_worker}
        for node, found in self._on_each(nodes, _encode_probes, self._model, threads, **needs).items():
            if isinstance(found, str):
                raise NodeRefused(nodes[node], found)
            if (difference := float(np.abs(found - expected).max())) > allowed or not np.isfinite(found).all():
                reason = f"its vectors differ from the driver's by {difference:.2g}, and {allowed:g} is allowed"
                raise NodeRefused(nodes[node], reason)

    def _on_each(self, nodes: Mapping[str, str], function: Any, *args: Any, **needs: float) -> dict[str, Any]:
        """What the function returns on each of these machines. Raises RayError, _Stalled."""
        if not nodes:
            return {}
        tasks = {node: _on(node, function, **needs).remote(*args) for node in nodes}
        if late := self._late([*tasks.values()]):
            names = ", ".join(nodes[node] for node, task in tasks.items() if task in late)
            raise _Stalled(f"{names} did not answer for {self._settings.stall_s:g} s")
        return {node: ray.get(task) for node, task in tasks.items()}

    def _late(self, tasks: list[Any]) -> list[Any]:
        """Those without a result after `stall_s`; comes back as soon as all have one."""
        until, late = time.monotonic() + self._settings.stall_s, tasks
        while late and (left_s := until - time.monotonic()) > 0:
            self._heed()
            _, late = ray.wait(tasks, num_returns=len(tasks), timeout=min(left_s, HEED_S))
        return late


class _Stalled(Exception):
    """Nothing came in time; what was seen."""


class _Session:
    """The connection to Ray, and its end."""

    def __init__(self, settings: RaySettings) -> None:
        """Raises EngineUnreachable, SettingsError."""
        self._is_ours, self._folder = not ray.is_initialized(), ""
        self._on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
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
        return f"{len(_alive())} machines with {sum(_cpus(node) for node in _alive()):g} CPUs were alive"

    def close(self) -> None:
        if self._is_ours:
            ray.shutdown()
            self._give_back_sigterm()
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _give_back_sigterm(self) -> None:
        """Ray takes it, to end in order. An application's own handler stays."""
        if self._is_ours and self._on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _start(self, settings: RaySettings) -> None:
        """One CPU more than workers take, in Ray's count: or tasks and workers could wait for each other for ever."""
        self._folder = tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-", dir=SHORT)
        cpus = settings.workers * (settings.cpus_per_worker or max(available_cpus() // settings.workers, 1)) + 1
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=self._folder, **QUIET)
        except (OSError, RuntimeError, ValueError, RayError) as exc:
            raise EngineUnreachable("local", _first_line(exc)) from exc

    def _join(self, address: str) -> None:
        if address != "auto":
            _refuse_deaf(address)  # Ray itself would try for minutes
        try:
            ray.init(address=address, **QUIET)
        except (ConnectionError, RuntimeError, ValueError, RayError) as exc:
            raise EngineUnreachable(address, _first_line(exc)) from exc

    def _share(self, settings: RaySettings) -> int:
        """So that all workers fit. One CPU of Ray's count is left to its tasks where it can be."""
        nodes = sorted((int(_cpus(node)) for node in _alive()), reverse=True)
        most = max(nodes, default=1)
        fitting = (
            cpus for cpus in range(most, 0, -1)
            if sum(number // cpus for number in nodes) >= settings.workers and sum(nodes) > settings.workers * cpus
        )  # fmt: skip
        return next(fitting, 1)


QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def _refuse_deaf(address: str) -> None:
    """Raises SettingsError, EngineUnreachable."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        expected = "HOST:PORT of a cluster that this machine is part of (ray start --address HOST:PORT), or auto"
        raise SettingsError("--ray-address", address, expected)
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as exc:
        raise EngineUnreachable(address, str(exc)) from exc


def _alive() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _cpus(node: Mapping[str, Any]) -> float:
    return float(node["Resources"].get("CPU", 0))


def _on(node: str, what: Any, *, num_cpus: float = 0, num_gpus: float = 0, **options: Any) -> Any:
    """A function or class of ours as a task or actor on that machine."""
    options |= {"max_restarts": 0} if inspect.isclass(what) else {"max_retries": 0}
    placed = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(what).options(num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy=placed, **options)


def _first_line(exc: BaseException) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (
        f"{type(exc).__name__}: {lines[-1]}"
        if isinstance(exc, RayError) and lines
        else (lines or [type(exc).__name__])[0]
    )


# --- on the machines ------------------------------------------------------------------------------


def _look(model: NodeModel) -> tuple[str, str, str, str]:
    """Kind of machine, vecferry's version, why the model is missing, why the machine is to be refused."""
    try:
        missing, refusal = model.missing(), ""
    except VecferryError as exc:
        missing, refusal = "", exc.message
    return model.kind(), vecferry.__version__, missing, refusal


def _receive(model: NodeModel, pieces: Sequence[tuple[str, Any]]) -> str:
    """Why it could not be; empty if it is there."""
    try:
        model.receive((name, ray.get(piece)) for name, piece in pieces)
    except VecferryError as exc:
        return exc.message
    return ""


def _encode_probes(model: NodeModel, threads: int) -> Float32 | str:
    """float32 [TEXTS, D], or why not."""
    try:
        return model.load(threads).encode(TEXTS).dense
    except VecferryError as exc:
        return exc.message


class _Conductor:
    """Owns one run of Ray Data at a time; they end with it."""

    def run(
        self, numbers: Sequence[int], worker: type, arguments: Sequence[Any], settings: RaySettings, cpus: int
    ) -> Generator[tuple[int, bytes, str], None, None]:
        """(number, result, failure) of each job as soon as it is there. One job is one block, and one task."""
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        pool = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=settings.workers,
            initial_size=settings.workers,
            max_tasks_in_flight_per_actor=1,  # or the last of a wave would wait for one worker beside idle ones
        )
        done = ray.data.from_arrow([pa.table({"number": [number]}) for number in numbers]).map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=pool,
            num_cpus=cpus,
            num_gpus=settings.gpus_per_worker or None,
        )
        batch: pa.Table
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield row["number"], row["found"], row["failure"]


class _Turnstile:
    """Lets a worker on when the result of its last job is kept. Workers wait in it, so it is asynchronous."""

    def __init__(self) -> None:
        self._kept = set[int]()
        self._changed = asyncio.Condition()

    async def kept(self, number: int) -> None:
        async with self._changed:
            self._kept.add(number)
            self._changed.notify_all()

    async def passed(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._kept)
            self._kept.remove(number)


class _Worker:
    """Loads the model once, with as many threads as Ray was told it takes. Failures of ours come back as values."""

    def __init__(
        self, model: NodeModel, do: Do, threads: int, jobs: Mapping[int, ray.ObjectRef[bytes]], turnstile: Any
    ) -> None:
        self._do, self._jobs, self._turnstile, self._failure = do, jobs, turnstile, ""
        self._last: int | None = None
        try:
            self._encoder = model.load(threads)
            if self._encoder.fingerprint != model.fingerprint:
                where = f"the model on {socket.gethostname()}"
                raise SpaceMismatch(expected=model.fingerprint, found=self._encoder.fingerprint, where=where)
        except VecferryError as exc:
            self._failure = _described(exc)

    def __call__(self, batch: pa.Table) -> pa.Table:
        found, failures = [], []
        for number in batch["number"].to_pylist():
            result, failure = b"", self._failure
            if not failure:
                job = ray.get(self._jobs[number])
                if self._last is not None:
                    ray.get(self._turnstile.passed.remote(self._last))
                self._last = number
                try:
                    result = self._do(self._encoder, job)
                except VecferryError as exc:
                    failure = _described(exc)
            found.append(result)
            failures.append(failure)
        return pa.table({"number": batch["number"], "found": pa.array(found, pa.large_binary()), "failure": failures})


def _described(exc: VecferryError) -> str:
    return json.dumps([type(exc).__name__, vars(exc)], default=str)


def _rebuilt(described: str) -> VecferryError:
    name, fields = json.loads(described)
    found: VecferryError = getattr(vecferry.errors, name)(**fields)
    return found
