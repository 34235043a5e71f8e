from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vecferry.conversion.verify import differences
from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.batching import Limits
from vecferry.encode.encoder import TEXTS_EACH, Encoder
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.errors import EmptyInput, HeadUnavailable, InvalidText, OutOfMemory, OverMemoryBudget, VectorUnusable
from vecferry.model.artifact import Artifact

TEXTS = [
    "", " ", "a", "What is BGE M3?", "🚢🚢🚢", "مرحبا بالعالم", "שלום", "向量迁移", "x" * 3000, "the same", "the same",
    "a\x00b", "\u200b", "é" * 40, "<s> literal </s>", "line\nbreak\r\n\ttab",
]  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tiny_artifact: Artifact) -> Encoder:
    return load_runtime(EncoderOptions(artifact=tiny_artifact.path, limits=Limits(max_batch_tokens=512)), "onnx")


def assert_same(a: Embeddings, b: Embeddings) -> None:
    assert max(differences(a, b).values()) <= 1e-5
    assert a.num_tokens.tolist() == b.num_tokens.tolist()


def test_results_come_in_the_order_of_the_texts_whatever_the_batches(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS, outputs=Outputs.ALL)
    alone = Embeddings.concat([encoder.encode([text], outputs=Outputs.ALL) for text in TEXTS])
    assert_same(together, alone)
    np.testing.assert_allclose(np.linalg.norm(together.dense, axis=1), 1, atol=1e-5)
    assert together.num_tokens[0] == together.num_tokens[1] == 2


def test_pytorch_gives_the_same_embeddings_in_the_same_space(encoder: Encoder, tiny_artifact: Artifact) -> None:
    other = load_runtime(EncoderOptions(artifact=tiny_artifact.path), "torch")
    assert other.fingerprint == encoder.fingerprint
    assert (
        max(differences(encoder.encode(TEXTS, outputs=Outputs.ALL), other.encode(TEXTS, outputs=Outputs.ALL)).values())
        <= 1e-4
    )


def test_the_iterator_gives_the_same_in_parts(encoder: Encoder) -> None:
    parts = list(encoder.encode_iter(iter(TEXTS), outputs=Outputs.ALL, texts_each=5))
    assert [len(part) for part in parts] == [5, 5, 5, 1]
    assert_same(Embeddings.concat(parts), encoder.encode(TEXTS, outputs=Outputs.ALL))


def test_the_iterator_counts_a_bad_text_from_the_first_of_all(encoder: Encoder) -> None:
    parts = encoder.encode_iter(iter(["a", "b", "c", "\ud800"]), texts_each=3)
    assert len(next(parts)) == 3
    with pytest.raises(InvalidText, match="text 3 "):
        next(parts)


def test_eight_threads_get_what_one_gets(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS).dense
    with ThreadPoolExecutor(8) as pool:
        for embeddings in pool.map(lambda _: encoder.encode(TEXTS).dense, range(24)):
            np.testing.assert_array_equal(embeddings, expected)


def test_a_text_over_the_limit_is_cut_and_counted(encoder: Encoder) -> None:
    embeddings = encoder.encode(["short", "word " * 300_000])  # 1.5 MB
    assert embeddings.truncated.tolist() == [False, True]
    assert embeddings.num_truncated == 1
    assert embeddings.num_tokens[1] == 8192


class Watching:
    """A runtime that is asked for its batches; the real one answers."""

    def __init__(self, encoder: Encoder) -> None:
        self.runtime, self.rows, self.name, self.space = encoder.runtime, 0, "onnx", encoder.space
        self.describe = encoder.runtime.describe

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        self.rows += len(batch)
        return self.runtime.run(batch, outputs)


class Ahead(Watching):
    """A runtime of which three runs may be under way at once; notes how many are."""

    depth = 3

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.under_way: list[int] = [0]

    def begin(self, batch: TokenBatch, outputs: Outputs) -> Callable[[], Embeddings]:
        self.under_way.append(self.under_way[-1] + 1)

        def embeddings() -> Embeddings:
            self.under_way.append(self.under_way[-1] - 1)
            return self.run(batch, outputs)

        return embeddings


def test_runs_are_begun_ahead_where_a_runtime_can_and_their_results_are_the_same(encoder: Encoder) -> None:
    runtime = Ahead(encoder)
    ahead = Encoder(encoder.tokenizer, runtime, Limits(max_batch_tokens=20))
    assert_same(ahead.encode(TEXTS, outputs=Outputs.ALL), encoder.encode(TEXTS, outputs=Outputs.ALL))
    assert (max(runtime.under_way), runtime.under_way[-1]) == (3, 0)
    assert runtime.rows == len(set(TEXTS))


def test_equal_texts_are_computed_once_and_are_equal_to_the_last_bit(encoder: Encoder) -> None:
    runtime = Watching(encoder)
    texts = ["one", "two", "one", "three words here", "two", "one"]
    watched = Encoder(encoder.tokenizer, runtime)
    embeddings = watched.encode(texts, outputs=Outputs.ALL)
    assert runtime.rows == 3
    np.testing.assert_array_equal(embeddings.dense[[0, 2, 1]], embeddings.dense[[5, 0, 4]])
    np.testing.assert_array_equal(embeddings.colbert[0], embeddings.colbert[5])
    assert embeddings.sparse.row(1) == embeddings.sparse.row(4)
    assert len(Embeddings.concat(list(watched.encode_iter(texts * 2, texts_each=12)))) == 12
    assert runtime.rows == 6


def test_a_corpus_of_several_slices_keeps_its_order_and_counts_its_progress(encoder: Encoder) -> None:
    texts = [f"{n % 1500} text" for n in range(TEXTS_EACH + 1000)]
    calls: list[tuple[int, int]] = []
    embeddings = encoder.encode(texts, progress=lambda done, total: calls.append((done, total)))
    rows = [0, 7, 1023, 1024, 1499, 1500, 2023]
    np.testing.assert_allclose(embeddings.dense[rows], encoder.encode([texts[i] for i in rows]).dense, atol=1e-5)
    assert calls[-1] == (len(texts), len(texts))
    assert calls == sorted(calls)


def test_a_bad_text_far_behind_is_named_before_anything_is_computed(encoder: Encoder) -> None:
    runtime = Watching(encoder)
    with pytest.raises(InvalidText, match=f"text {TEXTS_EACH + 5} "):
        Encoder(encoder.tokenizer, runtime).encode([*map(str, range(TEXTS_EACH + 5)), "\ud800"])
    assert runtime.rows == 0


def test_a_text_over_the_memory_budget_is_refused_before_it_runs(tiny_artifact: Artifact) -> None:
    encoder = load_runtime(EncoderOptions(artifact=tiny_artifact.path, limits=Limits(memory_budget_mb=5)), "onnx")
    assert len(encoder.encode(["short"] * 3)) == 3
    with pytest.raises(OverMemoryBudget, match=r"8192 tokens.* 19 MB .* 5 MB .*VECFERRY_MEMORY_BUDGET_MB=19") as caught:
        encoder.encode(["short", "word " * 9000])
    assert isinstance(caught.value, OutOfMemory)


def test_progress_counts_to_the_end(encoder: Encoder) -> None:
    calls: list[tuple[int, int]] = []
    encoder.encode(TEXTS, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(TEXTS), len(TEXTS))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_no_texts_and_bad_texts_are_named(encoder: Encoder) -> None:
    with pytest.raises(EmptyInput):
        encoder.encode([])
    with pytest.raises(InvalidText, match=r"text 1 .*U\+D800"):
        encoder.encode(["fine", "bad \ud800"])
    with pytest.raises(InvalidText, match="text 2 is None"):
        encoder.encode(["a", "b", None])  # type: ignore[list-item]


def test_a_head_that_the_model_lacks_is_named(minilm_artifact: Artifact) -> None:
    with pytest.raises(HeadUnavailable, match=r"'sparse'.*dense"):
        load_runtime(EncoderOptions(artifact=minilm_artifact.path), "onnx").encode(["a"], outputs=Outputs.ALL)


# --- numbers that are none ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(damaged_artifact: Artifact) -> Encoder:
    return load_runtime(EncoderOptions(artifact=damaged_artifact.path), "onnx")


@pytest.mark.parametrize("outputs", [Outputs.DENSE, Outputs.SPARSE, Outputs.COLBERT, Outputs.ALL])
def test_a_vector_that_is_not_finite_is_refused_with_the_position_of_its_text(
    damaged: Encoder, outputs: Outputs
) -> None:
    with pytest.raises(VectorUnusable, match=r"text 2 was not encoded: .* not finite.*vecferry verify"):
        damaged.encode(["peace", "peace", "a war of words", "a war of words"], outputs=outputs)
    assert damaged.encode(["peace"], outputs=outputs).defects() == {}


def test_the_position_counts_from_the_first_text_of_all_and_repeats_are_one(damaged: Encoder) -> None:
    texts = ["peace", *(f"peace {n // 2}" for n in range(2 * TEXTS_EACH)), "war", "war"]
    with pytest.raises(VectorUnusable) as refused:
        damaged.encode(texts)
    assert refused.value.row == len(texts) - 2
    parts = damaged.encode_iter(iter(texts), texts_each=TEXTS_EACH)
    with pytest.raises(VectorUnusable) as refused:
        list(parts)
    assert refused.value.row == len(texts) - 2
    tokens = damaged.tokenizer(["peace", "war"])
    with pytest.raises(VectorUnusable) as refused:
        list(damaged.compute([damaged.prepare_tokens(tokens, first_row=7)]))
    assert refused.value.row == 8
