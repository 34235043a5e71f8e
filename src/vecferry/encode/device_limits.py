"""What one run may hold on a GPU, from what runs cost there: measured at load, where nothing was set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from vecferry.embeddings import TokenBatch
from vecferry.encode.batching import MB, Limits
from vecferry.encode.memory import predicted_bytes
from vecferry.encode.runtime import Runtime
from vecferry.errors import OutOfMemory
from vecferry.model.spec import EncoderSpec

FEWEST, MOST = 2048, 131_072
"""Tokens of the smallest and of the largest run that is tried; each has twice as many as the one before."""
GAIN = 1.03
"""A larger run is worth its memory if it is this many times as fast by the token."""
SHARE = 0.8
"""Of the free memory: what runs may take. The rest is for pieces that the allocator cannot join."""
MAX_ROWS = 8192
TEXT_TOKENS = 512


@runtime_checkable
class MeasuredMemory(Protocol):
    """What a runtime knows of the memory of its device, in bytes; None where the device does not say."""

    def free_bytes(self) -> int | None:
        """Return what is free, the runtime's own and unused included."""

    def peak_bytes(self) -> int | None:
        """Return the most that was taken since this was last called, beside the weights."""


@dataclass(frozen=True)
class RunCost:
    """Of one run of so many tokens. bytes: beside the weights."""

    tokens: int
    seconds: float
    bytes: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class DeviceLimits:
    """What a device can hold. costs: of the runs that were measured, one at least, smallest first."""

    free_bytes: int
    costs: tuple[RunCost, ...]

    @property
    def max_batch_tokens(self) -> int:
        """The fewest tokens that are as fast as any, but for `GAIN`."""
        best = max(cost.tokens_per_s for cost in self.costs)
        return next(cost.tokens for cost in self.costs if cost.tokens_per_s * GAIN >= best)

    def limits(self) -> Limits:
        budget = max(int(self.free_bytes * SHARE) // MB, 1)
        return Limits(self.max_batch_tokens, MAX_ROWS, budget)

    def describe(self) -> dict[str, str]:
        """Return the figures for people."""
        rates = ", ".join(f"{cost.tokens}: {cost.tokens_per_s:.0f}" for cost in self.costs)
        return {"tokens_per_s_by_batch_tokens": rates, "free_memory_mb": str(self.free_bytes // MB)}


def measure(cost_of: Callable[[int], RunCost], free_bytes: int) -> DeviceLimits:
    """Measure runs, each of twice the tokens, as long as they gain and are sure to fit.

    Raises OutOfMemory if the smallest has no room.
    """
    costs = [cost_of(FEWEST)]
    while (tokens := 2 * costs[-1].tokens) <= MOST and 2 * costs[-1].bytes <= SHARE * free_bytes:
        try:
            costs.append(cost_of(tokens))
        except OutOfMemory:  # others took memory meanwhile: the sizes before are good
            break
        if costs[-1].tokens_per_s < GAIN * costs[-2].tokens_per_s:
            break
    return DeviceLimits(free_bytes, tuple(costs))


def measured_limits(runtime: Runtime, spec: EncoderSpec) -> DeviceLimits:
    """Measure a runtime with texts of 512 tokens and all of its outputs, each size after a run to be warm."""
    memory = runtime if isinstance(runtime, MeasuredMemory) else None
    free = None if memory is None else memory.free_bytes()
    outputs = runtime.space.outputs

    def cost_of(tokens: int) -> RunCost:
        batch = _texts_of(tokens, spec)
        runtime.run(batch, outputs)
        if memory is not None:
            memory.peak_bytes()
        started = time.perf_counter()
        runtime.run(batch, outputs)
        seconds = time.perf_counter() - started
        peak = None if memory is None else memory.peak_bytes()
        predicted = predicted_bytes(spec, len(batch), int(batch.lengths[0]), outputs=outputs, padded=False)
        return RunCost(len(batch.ids), seconds, predicted if peak is None else peak)

    return measure(cost_of, Limits.memory_budget_mb * MB if free is None else free)


def _texts_of(tokens: int, spec: EncoderSpec) -> TokenBatch:
    length = min(TEXT_TOKENS, spec.max_tokens)
    ids = np.random.default_rng(0).integers(spec.pad_id + 1, spec.vocabulary, (tokens // length, length))
    return TokenBatch.from_lists(ids.tolist())
