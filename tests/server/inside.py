"""A server in a thread of the test's process, whose runtime fails or waits when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import numpy as np
import uvicorn

from tests.waiting import wait_until
from vecferry.embeddings import Embeddings, Float32, Outputs, TokenBatch
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import Loaded
from vecferry.encode.runtime import Runtime
from vecferry.errors import RuntimeFailed
from vecferry.migrate.router import Router
from vecferry.model.artifact import VectorSpace
from vecferry.server import process
from vecferry.server.app import create_app
from vecferry.server.models import Served, ServedModels
from vecferry.server.options import ServerOptions
from vecferry.server.service import Service

WAIT_S = 300.0


class UnrulyRuntime:
    """A double around a real runtime, which cannot be broken at will.

    fails: raised, if anything, by a run of these tokens. ran: tokens of the rows of each run that was begun.
    """

    def __init__(self, real: Runtime) -> None:
        self._real = real
        self._opened = threading.Event()
        self._opened.set()
        self.fails: Callable[[TokenBatch], Exception | None] = lambda _: None
        self.ran: list[list[int]] = []

    @property
    def name(self) -> str:
        return self._real.name

    @property
    def space(self) -> VectorSpace:
        return self._real.space

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        self.ran.append(batch.lengths.tolist())
        assert self._opened.wait(WAIT_S), "nobody opened it"
        if (failure := self.fails(batch)) is not None:
            raise failure
        return self._real.run(batch, outputs)

    def describe(self) -> dict[str, str]:
        return self._real.describe()

    def break_down(self) -> None:
        """Let every run fail until `recover`."""
        self.fails = self.failure

    def recover(self) -> None:
        self.fails = lambda _: None

    def recover_after(self, condition: Callable[[], bool]) -> None:
        self.fails = lambda batch: None if condition() else self.failure(batch)

    def failure(self, batch: TokenBatch) -> RuntimeFailed:
        return RuntimeFailed(self.name, len(batch), int(batch.lengths.max()), "a failure of the test")

    def close(self) -> None:
        """Let runs wait until `open`."""
        self._opened.clear()

    def open(self) -> None:
        self._opened.set()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let no run that begins inside the block end before it does."""
        self.close()
        try:
            yield
        finally:
            self.open()


def unruly(encoder: Encoder) -> Encoder:
    """Return the same encoder over a double of its runtime, which is `encoder.runtime` until a `Service` has it."""
    return Encoder(encoder.tokenizer, UnrulyRuntime(encoder.runtime), encoder.limits, spec=encoder._spec)


@dataclass
class Inside:
    url: str
    service: Service

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=WAIT_S)

    def value(self, series: str, **labels: object) -> float:
        """Return the value of a series at /metrics; 0 where it is not there yet."""
        named = {name: str(value) for name, value in labels.items()}
        return self.service.metrics.registry.get_sample_value(f"vecferry_{series}", named) or 0.0


def float32(numbers: object) -> Float32:
    """Return JSON's numbers, or lists of them, as float32."""
    return np.asarray(numbers, np.float32)


@contextmanager
def inside(
    *encoders: Encoder,
    options: ServerOptions | None = None,
    router: Callable[[Service], Router] | None = None,
    probe_every_s: float = 0.02,
    is_ready: Callable[[Sequence[Served]], bool] = lambda all_: all(encoder.problem is None for encoder in all_),
) -> Iterator[Inside]:
    """Serve the encoders as `tiny`, `tiny-2` and so on. Wait until `is_ready`."""
    options = options or ServerOptions()
    names = ["tiny", *(f"tiny-{number}" for number in range(2, len(encoders) + 1))]
    served = [Served(name, Loaded(encoder, "first choice")) for name, encoder in zip(names, encoders, strict=True)]
    service = Service(ServedModels(served), options.limits)
    service._watch._every_s = probe_every_s
    app = create_app(service, options, router(service) if router else None)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    listening = process.listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: server.started and is_ready(served))
        yield Inside(f"http://127.0.0.1:{listening.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        listening.close()
