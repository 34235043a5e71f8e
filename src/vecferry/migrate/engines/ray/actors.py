"""What Ray runs in processes of its own: a conductor, a turnstile, and workers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

import vecferry.errors
from vecferry.encode.encoder import TextEncoder
from vecferry.errors import SpaceMismatch, VecferryError
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.engines.model_distribution import ArtifactRef

Do = Callable[[TextEncoder, bytes], bytes]
"""What a worker does with a job. To be pickled."""


class RunOwner:
    """Owns one run of Ray Data at a time; they end with it."""

    def run(
        self, numbers: Sequence[int], arguments: Sequence[Any], settings: RaySettings, cpus: int
    ) -> Generator[tuple[int, bytes, str], None, None]:
        """Yield (number, result, failure) of each job as soon as it is there. One job is one block, and one task.

        arguments: of `RayWorker`.
        """
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        pool = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=settings.workers,
            initial_size=settings.workers,
            max_tasks_in_flight_per_actor=1,  # or the last of a wave would wait for one worker beside idle ones
        )
        done = ray.data.from_arrow([pa.table({"number": [number]}) for number in numbers]).map_batches(
            RayWorker,
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
                yield row["number"], row["result"], row["failure"]


class AckGate:
    """Lets a worker on when the result of its last job is kept. Workers wait in it, so it is asynchronous."""

    def __init__(self) -> None:
        self._kept = set[int]()
        self._changed = asyncio.Condition()

    async def begin(self) -> None:
        """Begin another run, whose jobs may have numbers of the last one."""
        self._kept.clear()

    async def kept(self, number: int) -> None:
        async with self._changed:
            self._kept.add(number)
            self._changed.notify_all()

    async def passed(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._kept)
            self._kept.remove(number)


class RayWorker:
    """Loads the model once, with as many threads as Ray was told it takes. Failures of ours come back as values."""

    def __init__(
        self, model: ArtifactRef, do: Do, threads: int, jobs: Mapping[int, ray.ObjectRef[bytes]], turnstile: Any
    ) -> None:
        self._do, self._jobs, self._turnstile, self._failure = do, jobs, turnstile, ""
        self._last: int | None = None
        try:
            self._encoder = model.load(threads)
            if self._encoder.space.key != model.key:
                where = f"the model on {socket.gethostname()}"
                raise SpaceMismatch(expected=model.key, found=self._encoder.space.key, where=where)
        except VecferryError as exc:
            self._failure = _described(exc)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (number,) = batch["number"].to_pylist()
        result, failure = (b"", self._failure) if self._failure else self._done(number)
        return pa.table({"number": [number], "result": pa.array([result], pa.large_binary()), "failure": [failure]})

    def _done(self, number: int) -> tuple[bytes, str]:
        """Return result and failure; one of them is empty."""
        job = ray.get(self._jobs[number])
        if self._last is not None:
            ray.get(self._turnstile.passed.remote(self._last))
        self._last = number
        try:
            return self._do(self._encoder, job), ""
        except VecferryError as exc:
            return b"", _described(exc)


def _described(exc: VecferryError) -> str:
    return json.dumps([type(exc).__name__, vars(exc)], default=str)


def rebuilt(failure: str) -> VecferryError:
    """Rebuild the error of a failed job."""
    name, fields = json.loads(failure)
    error: VecferryError = getattr(vecferry.errors, name)(**fields)
    return error
