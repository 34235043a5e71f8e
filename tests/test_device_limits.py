"""Limits of a device: what they are made of, and that too large ones are halved."""

import logging
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch
from vecferry.encode.batching import Limits
from vecferry.encode.device_limits import FEWEST, MOST, DeviceLimits, RunCost, measure, measured_limits
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.errors import OutOfMemory
from vecferry.model.artifact import Artifact

GB = 10**9


@pytest.fixture(scope="module")
def encoder(tiny_artifact: Artifact) -> Encoder:
    limits = Limits(max_batch_tokens=10_000, max_batch_rows=1000)
    return load_runtime(EncoderOptions(artifact=tiny_artifact.path, limits=limits), "onnx")


def saturating(at: int) -> Callable[[int], RunCost]:
    """Return the costs of a device that does 1,000,000 tokens a second in runs of `at` tokens, in smaller ones less."""
    return lambda tokens: RunCost(tokens, max(tokens, at) / 1e6, tokens * 50_000)


@pytest.mark.parametrize(("at", "expected"), [(1000, FEWEST), (16_384, 16_384), (20_000, 32_768), (10**9, MOST)])
def test_batches_are_as_large_as_they_gain_by_it(at: int, expected: int) -> None:
    assert measure(saturating(at), 1000 * GB).max_batch_tokens == expected


def test_batches_are_no_larger_than_the_free_memory_allows() -> None:
    limits = measure(saturating(10**9), free_bytes=GB)  # 0.8 of it is 16,000 tokens
    assert limits.max_batch_tokens == 8192
    assert limits.limits() == Limits(8192, 8192, 800)


def test_a_size_that_does_not_fit_after_all_is_left_out() -> None:
    def cost_of(tokens: int) -> RunCost:
        if tokens > 4096:
            raise OutOfMemory("double", 1, tokens)
        return RunCost(tokens, 1.0, 1)

    assert [cost.tokens for cost in measure(cost_of, GB).costs] == [2048, 4096]


def test_figures_are_shown_to_people() -> None:
    limits = DeviceLimits(80 * GB, (RunCost(2048, 0.01, 1), RunCost(4096, 0.016, 1)))
    facts = limits.describe()
    assert facts == {"tokens_per_s_by_batch_tokens": "2048: 204800, 4096: 256000", "free_memory_mb": "80000"}


@pytest.mark.slow
def test_a_runtime_is_measured_by_runs_of_it(encoder: Encoder, tiny_artifact: Artifact) -> None:
    spec = tiny_artifact.manifest.encoder
    limits = measured_limits(encoder.runtime, spec)
    assert [cost.tokens for cost in limits.costs][:2] == [2048, 4096][: len(limits.costs)]
    assert all(cost.bytes > 0 for cost in limits.costs)
    assert Encoder(encoder.tokenizer, encoder.runtime, limits, spec=spec).limits == limits.limits()


# --- out of memory --------------------------------------------------------------------------------


class SmallDevice:
    """A double of a device with room for so many padded tokens; the real runtime answers."""

    def __init__(self, encoder: Encoder, room: int) -> None:
        self.inner, self.room, self.refused = encoder.runtime, room, 0
        self.name, self.space, self.describe = encoder.runtime.name, encoder.space, encoder.runtime.describe

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        rows, tokens = len(batch), int(batch.lengths.max())
        if rows * tokens > self.room:
            self.refused += 1
            raise OutOfMemory(self.name, rows, tokens)
        return self.inner.run(batch, outputs)


TEXTS = [f"{n} " + "word " * (n % 50) for n in range(200)]


def test_out_of_memory_halves_the_batches_and_every_text_is_encoded(
    encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    device = SmallDevice(encoder, room=130)
    small = Encoder(encoder.tokenizer, device, encoder.limits)
    with caplog.at_level(logging.WARNING, "vecferry"):
        embeddings = small.encode(TEXTS)
    np.testing.assert_allclose(embeddings.dense, encoder.encode(TEXTS).dense, atol=1e-5)
    assert small.limits == replace(encoder.limits, max_batch_tokens=small.limits.max_batch_tokens)
    assert 52 <= small.limits.max_batch_tokens <= 130
    assert len(caplog.records) == device.refused <= 4
    assert f"Batches have {small.limits.max_batch_tokens} tokens at most from now on" in caplog.text
    small.encode(TEXTS)
    assert device.refused <= 4, "what was learnt holds for the next texts"


def test_progress_and_several_works_stand_a_halving(encoder: Encoder) -> None:
    small = Encoder(encoder.tokenizer, SmallDevice(encoder, room=130), encoder.limits)
    works = [small.prepare(TEXTS[:90]), small.prepare(TEXTS[90:])]
    done = dict(small.compute(works))
    together = Embeddings.concat([done[0], done[1]])
    np.testing.assert_allclose(together.dense, encoder.encode(TEXTS).dense, atol=1e-5)


def test_one_text_without_room_is_an_error(encoder: Encoder) -> None:
    small = Encoder(encoder.tokenizer, SmallDevice(encoder, room=30), encoder.limits)
    with pytest.raises(OutOfMemory, match="batch of 1 × 5"):
        small.encode(TEXTS)


def test_limits_that_are_not_set_are_those_of_a_processor(tiny_artifact: Artifact) -> None:
    encoder = load_runtime(EncoderOptions(artifact=tiny_artifact.path), "onnx")
    assert (encoder.limits, encoder.device_limits) == (Limits(), None)
    assert pickle.loads(pickle.dumps(encoder)).device_limits is None
    assert encoder.encode(["a"], outputs=DENSE).dense.shape == (1, 64)
