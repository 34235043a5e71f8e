"""Jobs in, results out."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Self

import ray
from ray.exceptions import RayError

from vecferry.encode.encoder import TextEncoder
from vecferry.errors import EngineStalled, SettingsError, SpaceMismatch
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.engines.model_distribution import ArtifactRef
from vecferry.migrate.engines.ray.actors import AckGate, Do, RunOwner, rebuilt
from vecferry.migrate.engines.ray.machines import Machines, Stalled, late, on
from vecferry.migrate.engines.ray.session import RaySession, first_line

RESULTS_AHEAD = 8
"""Results that wait for the driver at most; then workers wait too."""
MANY = 100_000
"""Workers that may wait at a turnstile, those among them that have died meanwhile."""


class Pool:
    """Workers with a model, for as long as it is open. Opened by the first wave; ends what its session has begun."""

    def __init__(
        self,
        settings: RaySettings,
        model: ArtifactRef,
        encoder: TextEncoder,
        do: Do,
        raise_if_cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin nothing yet. Raises SpaceMismatch if encoder and model are not of one space, SettingsError if the model
        is for a GPU and workers get none: each would see all GPUs and take the first.

        encoder: of the driver, whose vectors those of other machines are held against.
        raise_if_cancelled: called while workers are waited for; what it raises ends that.
        """
        if encoder.space.key != model.key:
            raise SpaceMismatch(expected=encoder.space.key, found=model.key, where="the model for the workers")
        if model.device == "cuda" and not settings.gpus_per_worker:
            raise SettingsError("gpus_per_worker", "0", "1.0, or a fraction, with VECFERRY_DEVICE=cuda")
        self._settings, self._model, self._do, self._raise_if_cancelled = settings, model, do, raise_if_cancelled
        self._machines = Machines(settings, model, encoder, raise_if_cancelled)
        self._session: RaySession | None = None
        self._conductor: Any = None
        self._turnstile: Any = None
        self._jobs: dict[int, ray.ObjectRef[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave no actor, no process and no folder of ours. Repeating is safe.

        No reference to Ray's objects may outlive it, in a traceback for instance: the next Ray of this process would
        count them as its own, since it names its objects alike.
        """
        self._end_actors()
        self._jobs.clear()
        if self._session is not None:
            self._session.close()
        self._session = None
        self._machines.examined.clear()

    def put(self, number: int, job: bytes) -> None:
        """Leave a job where workers find it, in Ray's memory or on its disk. Raises EngineUnreachable."""
        self._open()
        self._jobs[number] = ray.put(job)

    def _open(self) -> RaySession:
        if self._session is None:
            self._session = RaySession(self._settings)
        return self._session

    def results(self) -> Generator[tuple[int, bytes], None, None]:
        """Yield (number, result) of each job that was put, in any order, each once: one wave. Close it before the pool.

        Who asks for the next has kept the one before, where nothing that dies can take it.
        Raises NodeRefused; EngineStalled if nothing came in `tries` tries; and what the first job raised whose failure
        is no single text's.
        """
        number_in_all, failures = len(self._jobs), list[str]()
        while self._jobs:
            try:
                with closing(self._try()) as results:
                    for number, result in results:
                        del self._jobs[number]
                        failures.clear()
                        yield number, result
            except (RayError, Stalled) as exc:
                failures.append(first_line(exc))
                self._end_actors()
            else:
                failures += ["the run ended without them"] if self._jobs else []
            if self._jobs and len(failures) >= self._settings.tries:
                missing = f"{len(self._jobs)} of {number_in_all} jobs"
                raise EngineStalled(len(failures), tuple(dict.fromkeys(failures)), missing)

    def _try(self) -> Generator[tuple[int, bytes], None, None]:
        """Yield what comes out before something breaks. Raises RayError, Stalled."""
        session = self._open()
        threads = session.cpus_per_worker
        self._machines.check_integrity(threads)
        self._begin_run(session.node)
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": RESULTS_AHEAD}
        arguments = (self._model, self._do, threads, self._jobs, self._turnstile)
        stream = self._conductor.run.options(**options).remote([*self._jobs], arguments, self._settings, threads)
        while True:
            if late([stream], self._settings.stall_s, self._raise_if_cancelled):
                raise Stalled(f"no job was done for {self._settings.stall_s:g} s; {session}")
            try:
                number, result, failure = ray.get(next(stream))
            except StopIteration:
                return
            if failure:
                raise rebuilt(failure)
            yield number, result
            self._turnstile.kept.remote(number)

    def _begin_run(self, machine: str) -> None:
        if self._conductor is None:
            self._conductor = on(machine, RunOwner).remote()
            self._turnstile = on(machine, AckGate, max_concurrency=MANY).remote()
        self._turnstile.begin.remote()

    def _end_actors(self) -> None:
        if self._conductor is not None and ray.is_initialized():
            ray.kill(self._conductor)
            ray.kill(self._turnstile)
        self._conductor = self._turnstile = None
