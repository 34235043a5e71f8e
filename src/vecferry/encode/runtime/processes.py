"""A model on several devices: a process for each, under one encoder that tokenises and plans for all of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.runtime import Runtime, is_packed
from vecferry.errors import RuntimeFailed, RuntimeUnavailable, VecferryError
from vecferry.model.artifact import VectorSpace

RUNS_EACH = 2
"""Runs that a process is given at once: one that it does, and one that is sent meanwhile."""


@dataclass(frozen=True)
class Opened:
    """What a process opened. measured: of its device, by whoever opened the model; None where nothing was."""

    runtime: Runtime
    measured: Any = None


OpenOn = Callable[[int], Opened]
"""Opens the model on the device of that number. To be pickled."""


@dataclass(frozen=True)
class _Ready:
    """What a process says of its model as soon as it has it."""

    name: str
    space: VectorSpace
    is_packed: bool
    facts: dict[str, str]
    measured: Any


class ProcessesRuntime:
    """A runtime of several processes, each with the model on a device of its own. Thread-safe; not safe across a fork.

    A run goes to the process with the fewest under way. They end with this process.
    """

    def __init__(self, open_on: OpenOn, processes: int) -> None:
        """Start them and wait until each has the model, all at once. Raises what opening raises, of the first."""
        self._workers = [_Worker(open_on, number) for number in range(processes)]
        try:
            self._ready, *_ = [worker.ready() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.depth = RUNS_EACH * processes

    @property
    def name(self) -> str:
        return self._ready.name

    @property
    def space(self) -> VectorSpace:
        return self._ready.space

    @property
    def is_packed(self) -> bool:
        return self._ready.is_packed

    @property
    def measured(self) -> Any:
        """What was measured of the first device."""
        return self._ready.measured

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        return self.begin(batch, outputs)()

    def begin(self, batch: TokenBatch, outputs: Outputs) -> Callable[[], Embeddings]:
        return min(self._workers, key=lambda worker: worker.under_way).submit(batch, outputs).result

    def describe(self) -> dict[str, str]:
        return self._ready.facts | {"processes": str(len(self._workers))}

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process, and the thread here that waits for its answers."""

    def __init__(self, open_on: OpenOn, number: int) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, open_on, number), daemon=True)
        self._process.start()
        theirs.close()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vecferry-device")
        self._number = number
        self._counting = Lock()
        self.under_way = 0

    def ready(self) -> _Ready:
        try:
            answer = self._connection.recv()
        except EOFError as exc:
            reason = f"the process for device {self._number} ended as it loaded the model"
            raise RuntimeUnavailable("processes", reason, "VECFERRY_PROCESSES=1 to see why") from exc
        if isinstance(answer, VecferryError):
            raise answer
        assert isinstance(answer, _Ready)
        return answer

    def submit(self, batch: TokenBatch, outputs: Outputs) -> Future[Embeddings]:
        self._count(1)
        return self._thread.submit(self._answer, batch, outputs)

    def _count(self, change: int) -> None:
        with self._counting:
            self.under_way += change

    def _answer(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        try:
            self._connection.send((batch, outputs))
            answer = self._connection.recv()
        except (EOFError, OSError) as exc:
            reason = f"the process of device {self._number} has ended"
            raise RuntimeFailed("processes", len(batch), int(batch.lengths.max()), reason) from exc
        finally:
            self._count(-1)
        if isinstance(answer, VecferryError):
            raise answer
        assert isinstance(answer, Embeddings)
        return answer

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._connection.close()
        self._thread.shutdown()


def _serve(connection: Connection, open_on: OpenOn, number: int) -> None:
    """Open the model, say so, and answer each batch with its embeddings or an error, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, and ends it
    try:
        opened = open_on(number)
    except VecferryError as exc:
        connection.send(exc)
        return
    runtime = opened.runtime
    connection.send(_Ready(runtime.name, runtime.space, is_packed(runtime), runtime.describe(), opened.measured))
    while True:
        try:
            batch, outputs = connection.recv()
        except EOFError:
            return
        try:
            answer: Embeddings | VecferryError = runtime.run(batch, outputs)
        except VecferryError as exc:
            answer = exc
        connection.send(answer)
