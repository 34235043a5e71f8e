"""One thread for each lane. It takes a cohort, has the library compute it, and hands out the answers.

The two threads share the models' sessions. The bulk lane's has a low priority in the system's scheduler: where
both want a processor the queries' thread has it, and where only one has work it has all of them. So nothing that runs
has to be broken off, and no second copy of the weights is held (docs/decisions/0016).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.runtime import Runtime, begin, depth_of, is_packed
from vecferry.errors import ModelRuntimeError, NotReady
from vecferry.model.artifact import VectorSpace
from vecferry.server.lanes import Job, Lane, LaneName

BULK_NICENESS = 10
"""As good for queries as 19, the most there is, and better for bulk beside other programs (docs/decisions/0016)."""
log = logging.getLogger("vecferry.server")


class LaneWorker:
    """A thread that runs what is in a lane until that is closed and empty."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._thread = threading.Thread(target=self._work, name=f"vecferry-{lane.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        if self._lane.name is LaneName.BULK and sys.platform == "linux":  # elsewhere it would be the whole process's
            with suppress(OSError):  # a sandbox may forbid it; then both lanes are equals
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)
        while cohort := self._lane.take():
            began = time.monotonic()
            run(cohort)
            done = sum(job.work.num_tokens for job in cohort if job.answer.done() and not job.answer.cancelled())
            self._lane.ran(done, time.monotonic() - began)
            del cohort  # or the last answers would be kept until there are others


def run(cohort: Sequence[Job]) -> None:
    """Give every job that is wanted an answer or an error.

    Where a run fails, each job that has none by then runs alone, so that only those fail that cannot be run.
    """
    model = cohort[0].model
    try:
        model.require()
        _compute(cohort)
    except NotReady as exc:
        _fail(cohort, exc)
    except ModelRuntimeError as exc:
        log.warning("a run of %d requests failed: %s", len(cohort), exc)
        if len(cohort) == 1:
            _fail(cohort, exc)
            model.probe()
            return
        for job in cohort:
            if job.is_wanted:
                run([job])
    except Exception as exc:  # a fault of ours: these fail, the lane goes on
        log.exception("a run of %d requests failed by a fault of the server", len(cohort))
        _fail(cohort, exc)


def _compute(cohort: Sequence[Job]) -> None:
    works = [job.work for job in cohort]
    for number, embeddings in cohort[0].model.encoder.compute(works, is_wanted=lambda number: cohort[number].is_wanted):
        _answer(cohort[number], embeddings)


def _answer(job: Job, embeddings: Embeddings) -> None:
    if job.answer.set_running_or_notify_cancel():
        job.answer.set_result(embeddings)


def _fail(cohort: Sequence[Job], exc: Exception) -> None:
    for job in cohort:
        if not job.answer.done() and job.answer.set_running_or_notify_cancel():
            job.answer.set_exception(exc)


class WatchedRuntime:
    """A runtime that reports what it runs: `saw(rows, padded tokens, tokens, seconds)` after each batch.

    seconds: of the batch on its way, that it waits for others among them.
    """

    def __init__(self, runtime: Runtime, saw: Callable[[int, int, int, float], None]) -> None:
        self._runtime, self._saw = runtime, saw

    @property
    def name(self) -> str:
        return self._runtime.name

    @property
    def space(self) -> VectorSpace:
        return self._runtime.space

    @property
    def is_packed(self) -> bool:
        return is_packed(self._runtime)

    @property
    def depth(self) -> int:
        return depth_of(self._runtime)

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        return self.begin(batch, outputs)()

    def begin(self, batch: TokenBatch, outputs: Outputs) -> Callable[[], Embeddings]:
        began, embeddings = time.monotonic(), begin(self._runtime, batch, outputs)
        return partial(self._seen, batch, embeddings, began)

    def _seen(self, batch: TokenBatch, embeddings: Callable[[], Embeddings], began: float) -> Embeddings:
        computed, tokens = embeddings(), int(batch.lengths.sum())
        padded = tokens if self.is_packed else len(batch) * int(batch.lengths.max())
        self._saw(len(batch), padded, tokens, time.monotonic() - began)
        return computed

    def describe(self) -> dict[str, str]:
        return self._runtime.describe()
