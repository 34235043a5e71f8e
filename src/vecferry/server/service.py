"""A request's texts to embeddings: limits, tokens, queue, answer. Between the handlers and the lanes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch
from vecferry.encode.batching import MB
from vecferry.encode.encoder import TEXTS_EACH, Role, Work
from vecferry.errors import DeadlineExceeded, EmptyInput, InvalidText, RequestTooLarge, TextTooLong
from vecferry.model.artifact import VectorSpace
from vecferry.portions import portions
from vecferry.server.lanes import Job, Lane, LaneName
from vecferry.server.metrics import Metrics
from vecferry.server.models import Served, ServedModels, Watch
from vecferry.server.options import ServerLimits
from vecferry.server.tracing import span
from vecferry.server.workers import LaneWorker, WatchedRuntime

TOKENISERS = 2
CHARS_AT_ONCE = 2048
"""Characters that are tokenised in well under a millisecond."""
CHARS_PER_TOKEN = 2
"""Fewer than in any language that was measured, for a first guess at what a text will be."""

CHARS_EACH = 1_000_000
"""Characters that a thread tokenises at a time, or a single text; each takes tens of bytes meanwhile."""

T = TypeVar("T")
Texts = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class EncodeRequest:
    """A request to encode texts. truncate: whether texts may be cut. since: on `time.monotonic`."""

    model: Served
    texts: Texts
    outputs: Outputs = DENSE
    role: Role = "passage"
    truncate: bool = True
    lane: LaneName | None = None
    seconds: float = ServerLimits.deadline_s
    since: float = field(default_factory=time.monotonic)

    @property
    def until(self) -> float:
        return self.since + self.seconds


@dataclass(frozen=True)
class EncodeResult:
    embeddings: Embeddings
    lane: LaneName


class Service:
    """The server without HTTP. `start` before the first request, `stop` after the last."""

    def __init__(self, models: ServedModels, limits: ServerLimits) -> None:
        self.models, self.limits, self.metrics = models, limits, Metrics()
        self._lanes = {name: Lane(name, limits.max_queue_tokens) for name in LaneName}
        self._workers = [LaneWorker(lane) for lane in self._lanes.values()]
        self._tokenisers = ThreadPoolExecutor(TOKENISERS, thread_name_prefix="vecferry-tokens")
        self._watch = Watch(models)
        for model in models.all:
            model.encoder.runtime = WatchedRuntime(model.encoder.runtime, partial(self.metrics.ran, model))
        self.metrics.watch_lanes(tuple(self._lanes.values()))
        self.metrics.watch_models(models)

    def start(self) -> None:
        """Start the lanes, and the probing of models."""
        for worker in self._workers:
            worker.start()
        self._watch.start()

    def stop(self) -> None:
        """Stop once what waits is computed. Not repeatable."""
        for lane in self._lanes.values():
            lane.close()
        for worker in self._workers:
            worker.join()
        self._watch.stop()
        self._tokenisers.shutdown()

    async def embed(self, request: EncodeRequest) -> EncodeResult:
        """Return embeddings in the order of the texts.

        Raises EmptyInput, InvalidText, HeadUnavailable, RequestTooLarge, TextTooLong, NotReady, Overloaded,
        DeadlineExceeded; ModelRuntimeError of the run. One who does not wait any more costs no run that has not begun.
        """
        try:
            async with asyncio.timeout(request.until - time.monotonic()):
                works = await self._prepared(request)
                name, jobs = self._queued(request, works)
                with span("compute", lane=name, tokens=sum(work.num_tokens for work in works)):
                    parts = await _all([asyncio.wrap_future(job.answer) for job in jobs])
        except TimeoutError as exc:
            raise DeadlineExceeded(request.seconds) from exc
        embeddings = Embeddings.concat(parts)
        self.metrics.truncated.labels(request.model.name).inc(embeddings.num_truncated)
        return EncodeResult(embeddings, name)

    def submit(self, request: EncodeRequest, first_row: int = 0) -> Future[Embeddings]:
        """Queue up to `TEXTS_EACH` texts, for threads. Raises what `embed` raises, but DeadlineExceeded.

        first_row: the number of the first text, where these are a part of some.
        """
        assert len(request.texts) <= TEXTS_EACH, "a request in one part"
        make = partial(self._part, request, request.texts, first_row)
        work = make() if _num_chars(request.texts) <= CHARS_AT_ONCE else self._tokenisers.submit(make).result()
        _, (job,) = self._queued(request, [work])
        return job.answer

    async def in_tokeniser(self, make: Callable[[], T], chars: int) -> T:
        """Return what `make` returns, in a thread of those that tokenise; at once where that takes no time.

        chars: that it reads. Requests wait for each other there, so that few of them take memory at a time.
        """
        if chars <= CHARS_AT_ONCE:
            return make()
        return await asyncio.get_running_loop().run_in_executor(self._tokenisers, make)

    # --- the steps --------------------------------------------------------------------------------

    async def _prepared(self, request: EncodeRequest) -> list[Work]:
        """Tokenise the request in parts."""
        self.check_texts(request.texts)
        request.model.require()
        chars = _num_chars(request.texts)
        self._lanes[self._lane_of(request, chars // CHARS_PER_TOKEN)].check_room(0)  # before the work of tokenising
        with span("tokenise", texts=len(request.texts)):
            works: list[Work] = []
            at = 0
            for part in parts_of(request.texts):
                try:
                    works.append(await self.in_tokeniser(partial(self._part, request, part, at), chars))
                except InvalidText as exc:
                    raise exc.at(at + exc.row) from exc
                at += len(part)
        self._check_tokens(request, works)
        return works

    def _part(self, request: EncodeRequest, texts: Texts, first_row: int) -> Work:
        encoder, outputs = request.model.encoder, request.outputs
        if all(isinstance(text, str) for text in texts):
            return encoder.prepare(texts, outputs=outputs, role=request.role, first_row=first_row)  # type: ignore[arg-type]
        return encoder.prepare_tokens(_with_ends(request.model, texts), outputs=outputs, first_row=first_row)

    def _queued(self, request: EncodeRequest, works: Sequence[Work]) -> tuple[LaneName, list[Job]]:
        tokens = sum(work.num_tokens for work in works)
        name = self._lane_of(request, tokens)
        self._lanes[name].check_room(tokens)
        jobs = [Job(request.model, work, request.until) for work in works]
        self._lanes[name].put(jobs)
        self.metrics.accepted.labels(name).inc()
        return name, jobs

    def _lane_of(self, request: EncodeRequest, tokens: int) -> LaneName:
        if request.lane is not None:
            return request.lane
        return LaneName.QUERY if tokens <= self.limits.query_tokens else LaneName.BULK

    def check_texts(self, texts: Texts) -> None:
        """Check the number and the length of texts. Raises EmptyInput, RequestTooLarge."""
        if not texts:
            raise EmptyInput
        if len(texts) > self.limits.max_texts:
            raise RequestTooLarge("texts of a request", len(texts), self.limits.max_texts, "--max-texts")
        for row, text in enumerate(texts):
            if len(text) > self.limits.max_text_chars:
                allowed = self.limits.max_text_chars
                raise RequestTooLarge(f"characters of text {row}", len(text), allowed, "--max-text-chars")

    def check_num_tokens(self, tokens: int) -> None:
        """Check the number of tokens. Raises RequestTooLarge."""
        if tokens > (allowed := self.limits.max_request_tokens):
            raise RequestTooLarge("tokens of a request", tokens, allowed, "--max-request-tokens")

    def _check_tokens(self, request: EncodeRequest, works: Sequence[Work]) -> None:
        self.check_num_tokens(sum(work.num_tokens for work in works))
        dimension = request.model.encoder.dimension
        vectors = len(request.texts)
        if Outputs.COLBERT in request.outputs:  # equal texts are computed once, and answered each
            vectors += sum(int(work.lengths.sum()) for work in works)
        if (answer := vectors * dimension * 4) > (allowed := self.limits.max_answer_mb * MB):
            raise RequestTooLarge("bytes of numbers in the answer", answer, allowed, "--max-answer-mb")
        if not request.truncate:
            is_truncated = np.concatenate([work.truncated for work in works])
            if is_truncated.any():
                raise TextTooLong(int(is_truncated.argmax()), request.model.encoder.space.max_tokens)


class QueuedEncoder:
    """A `TextEncoder` for threads of this process, which waits in the lanes like everybody else."""

    def __init__(self, service: Service, model: Served) -> None:
        self._service, self._model = service, model

    @property
    def space(self) -> VectorSpace:
        return self._model.encoder.space

    @property
    def fingerprint(self) -> str:
        return self._model.mark.fingerprint

    @property
    def dimension(self) -> int:
        return self._model.encoder.dimension

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode texts as `Encoder.encode` does. Raises also Overloaded and DeadlineExceeded."""
        request = EncodeRequest(self._model, texts, outputs, role)
        parts = [
            self._service.submit(replace(request, texts=texts[at : at + TEXTS_EACH]), at)
            for at in range(0, len(texts), TEXTS_EACH)
        ]
        try:
            return Embeddings.concat([part.result(request.until - time.monotonic()) for part in parts])
        except TimeoutError as exc:
            raise DeadlineExceeded(request.seconds) from exc


def parts_of(texts: Texts, max_chars: int = CHARS_EACH) -> Iterator[Texts]:
    """Yield the texts in their order, in parts that are tokenised at a time: `TEXTS_EACH` texts, `max_chars` in all.

    A text that is longer goes alone.
    """
    for part in portions(map(len, texts), max_chars, TEXTS_EACH):
        yield texts[part]


def _num_chars(texts: Texts) -> int:
    """Return the characters of all texts; of token ids, their number."""
    return sum(map(len, texts))


async def _all(answers: Sequence[Awaitable[Embeddings]]) -> list[Embeddings]:
    """Wait for all of them, or the first error; what is not needed any more is cancelled."""
    together = asyncio.gather(*answers)
    try:
        return await together
    finally:
        for answer in answers:
            answer.cancel()  # type: ignore[attr-defined]  # of one that is done it does nothing


def _with_ends(model: Served, rows: Texts) -> TokenBatch:
    """Complete token ids of this model's tokenizer, cut to what it reads. Raises InvalidText."""
    tokenizer, limit = model.tokenizer, model.encoder.space.max_tokens
    (first, last), vocabulary = tokenizer.ends, tokenizer.vocabulary
    whole: list[tuple[list[int], bool]] = []
    for row, ids in enumerate(rows):
        known = [i for i in ids if isinstance(i, int) and i < vocabulary]
        if len(known) < len(ids):
            reason = f"token ids of this model are from 0 to {vocabulary - 1} (/tokenize gives them)"
            raise InvalidText(row, reason)
        inner = [i for i in known if i not in (first, last)]
        whole.append(([first, *inner[: limit - 2], last], len(inner) > limit - 2))
    return TokenBatch.from_lists([ids for ids, _ in whole], [is_truncated for _, is_truncated in whole])
