import logging
import multiprocessing
import sqlite3
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vecferry.embeddings import DENSE, Embeddings, MultiVector, Outputs, Sparse, SparseVector, TokenBatch, indptr_of
from vecferry.encode.cache import FILE, Cache, checksum_of, key_of
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.encode.stored_vectors import pack_colbert, pack_sparse
from vecferry.errors import SettingsError
from vecferry.model.artifact import Artifact
from vecferry.precisions import Form, Mark

TEXTS = ["", "a ferry", "向量迁移", "the same", "the same", "مرحبا بالعالم", "a longer text " * 40]
SPACE, OTHER = "a" * 64, "b" * 64


def made_up(count: int, fingerprint: str = SPACE, dimension: int = 8, seed: int = 0) -> Embeddings:
    random = np.random.default_rng(seed)
    tokens = random.integers(2, 6, count)
    ids, weights = random.integers(4, 99, tokens.sum()), random.random(tokens.sum(), np.float32)
    return Embeddings(
        fingerprint,
        tokens,
        random.random(count) < 0.5,
        random.random((count, dimension), np.float32),
        Sparse(indptr_of(tokens), ids.astype(np.int32), weights),
        MultiVector(indptr_of(tokens - 1), random.random(((tokens - 1).sum(), dimension), np.float32)),
    )


def assert_equal(a: Embeddings, b: Embeddings) -> None:
    """To the last bit."""
    assert a.fingerprint == b.fingerprint
    np.testing.assert_array_equal(a.num_tokens, b.num_tokens)
    np.testing.assert_array_equal(a.truncated, b.truncated)
    np.testing.assert_array_equal(a.dense, b.dense)
    np.testing.assert_array_equal(a.sparse.indptr, b.sparse.indptr)
    np.testing.assert_array_equal(a.sparse.indices, b.sparse.indices)
    np.testing.assert_array_equal(a.sparse.weights, b.sparse.weights)
    np.testing.assert_array_equal(a.colbert.indptr, b.colbert.indptr)
    np.testing.assert_array_equal(a.colbert.vectors, b.colbert.vectors)


def all_of(cache: Cache, texts: list[str], outputs: Outputs = Outputs.ALL) -> Embeddings:
    return Embeddings.concat([one for one in cache.find(Mark(SPACE), texts, outputs, 8) if one is not None])


class Unused:
    """A tokenizer that must not be called."""

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        raise AssertionError(texts)


def test_what_was_kept_is_found_to_the_last_bit_by_another_process_too(tmp_path: Path) -> None:
    kept = made_up(5)
    Cache(tmp_path).keep(list("abcde"), kept)
    assert_equal(all_of(Cache(tmp_path), list("abcde")), kept)


def test_another_space_another_text_and_another_output_are_not_found(tmp_path: Path) -> None:
    cache, kept = Cache(tmp_path), made_up(2)
    cache.keep(["a", "b"], Embeddings(SPACE, kept.num_tokens, kept.truncated, kept.dense))
    assert [one is None for one in cache.find(Mark(SPACE), ["a", "c", "b"], DENSE, 8)] == [False, True, False]
    assert cache.find(Mark(SPACE, Form("fp16")), ["a"], DENSE, 8) == [None]
    assert cache.find(Mark(SPACE), ["a"], Outputs.ALL, 8) == [None]
    assert cache.find(Mark(OTHER), ["a", "b"], DENSE, 8) == [None, None]


def test_a_second_encoder_computes_nothing_and_gives_equal_bits(tiny_artifact: Artifact, tmp_path: Path) -> None:
    options = EncoderOptions(artifact=tiny_artifact.path, cache=tmp_path)
    plain = load_runtime(EncoderOptions(artifact=tiny_artifact.path), "onnx")
    first = load_runtime(options, "onnx").encode(TEXTS, outputs=Outputs.ALL)
    assert_equal(first, plain.encode(TEXTS, outputs=Outputs.ALL))
    second = Encoder(Unused(), plain.runtime, cache=Cache(tmp_path))
    seen: list[tuple[int, int]] = []
    again = second.encode(TEXTS, outputs=Outputs.ALL, progress=lambda done, total: seen.append((done, total)))
    assert_equal(again, first)
    assert_equal(Embeddings.concat(list(second.encode_iter(TEXTS, outputs=Outputs.ALL, texts_each=3))), first)
    assert seen == [(len(TEXTS), len(TEXTS))]


def test_texts_that_are_there_and_texts_that_are_not_come_in_their_order(
    tiny_artifact: Artifact, tmp_path: Path
) -> None:
    encoder = load_runtime(EncoderOptions(artifact=tiny_artifact.path, cache=tmp_path), "onnx")
    before = encoder.encode(TEXTS[2:4], outputs=Outputs.ALL)
    together = encoder.encode(TEXTS, outputs=Outputs.ALL)
    assert_equal(together.take(np.array([2, 3])), before)
    assert_equal(encoder.encode(TEXTS[::-1], outputs=Outputs.ALL).take(np.arange(len(TEXTS))[::-1]), together)


def test_what_was_used_longest_ago_goes_first_and_the_file_stays_in_its_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_mb=1)
    cache.keep(["often"], made_up(1))
    for n in range(30):
        cache.keep([f"{n} {i}" for i in range(20)], made_up(20, dimension=1024, seed=n))
        assert cache.find(Mark(SPACE), ["often"], DENSE, 8) != [None]
    assert cache.find(Mark(SPACE), ["0 0"], DENSE, 1024) == [None]
    assert cache.find(Mark(SPACE), ["29 19"], DENSE, 1024) != [None]
    assert (tmp_path / FILE).stat().st_size < 1.6e6  # the last batch of 0.4 MB came before its predecessors went


@pytest.mark.parametrize("damage", ["begun", "running", "entry"])
def test_a_damaged_file_is_set_aside_with_a_warning_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache, kept = Cache(tmp_path), made_up(3)
    cache.keep(["a", "b", "c"], kept)
    if damage == "entry":
        with sqlite3.connect(tmp_path / FILE) as connection:
            connection.execute("UPDATE entries SET numbers = zeroblob(length(numbers)) WHERE output = 'dense'")
        connection.close()
    else:
        cache.close()
        (tmp_path / FILE).write_bytes(b"not a database" * 1000)
        cache = Cache(tmp_path) if damage == "begun" else overwritten(tmp_path)
    with caplog.at_level(logging.WARNING, "vecferry"):
        assert cache.find(Mark(SPACE), ["a", "b", "c"], Outputs.ALL, 8) == [None] * 3
    assert len(list(tmp_path.glob(f"{FILE}.damaged-*"))) == 1
    cache.keep(["a", "b", "c"], kept)
    assert_equal(all_of(cache, ["a", "b", "c"]), kept)


def overwritten(folder: Path) -> Cache:
    """A cache whose file is damaged after it was opened."""
    (folder / FILE).unlink()
    cache = Cache(folder)
    cache.keep(["a"], made_up(1))
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with (folder / FILE).open("r+b") as file:
        file.write(b"x" * 100)
    return cache


def test_a_cache_that_cannot_be_written_to_is_said_once_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path)
    cache._connection.execute("PRAGMA query_only = ON")
    cache.keep(["a"], made_up(1))
    cache.keep(["b"], made_up(1))
    assert cache.find(Mark(SPACE), ["a"], DENSE, 8) == [None]
    assert len([record for record in caplog.records if "not used any more" in record.message]) == 1


def test_a_folder_that_cannot_be_made_is_refused_by_the_name_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="VECFERRY_CACHE"):
        Cache(tmp_path / "file" / "cache")


def keep_some(folder: Path, seed: int) -> None:
    cache = Cache(folder)
    for n in range(20):
        cache.keep([f"{seed} {n}", f"shared {n}"], made_up(2, seed=n))


def test_four_processes_fill_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=keep_some, args=(tmp_path, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = Cache(tmp_path).find(Mark(SPACE), [f"{seed} {n}" for seed in range(4) for n in range(20)], Outputs.ALL, 8)
    assert None not in found
    assert not list(tmp_path.glob("*.damaged-*"))


def test_an_entry_that_is_no_vector_is_computed_again(tiny_artifact: Artifact, tmp_path: Path) -> None:
    """An earlier release kept what a damaged model gave."""
    folder = tmp_path / "cache"
    encoder = load_runtime(EncoderOptions(artifact=tiny_artifact.path, cache=folder), "onnx")
    right = encoder.encode(["a ferry"])
    wrong = load_runtime(EncoderOptions(artifact=tiny_artifact.path), "onnx").encode(["a ferry"])
    wrong.dense[0, 0] = np.nan
    Cache(folder).keep(["a ferry"], wrong)
    mark = Mark(encoder.fingerprint, encoder.space.form())
    assert Cache(folder).find(mark, ["a ferry"], DENSE, encoder.dimension) == [None]
    np.testing.assert_array_equal(encoder.encode(["a ferry"]).dense, right.dense)
    assert Cache(folder).find(mark, ["a ferry"], DENSE, encoder.dimension) != [None]


@pytest.mark.parametrize(
    ("output", "numbers"),
    [
        ("dense", b"\0" * 31),
        ("dense", b"\0" * 28),
        ("dense", np.full(8, np.nan, "<f4").tobytes()),
        ("sparse", b"\0" * 9),
        ("sparse", pack_sparse(SparseVector(np.array([5], np.int32), np.array([np.inf], np.float32)))),
        ("colbert", b"<f4\0"),
        ("colbert", b"<x9\0" + b"\x08\0\0\0"),
        ("colbert", pack_colbert(np.zeros((2, 7), np.float32))),
        ("colbert", pack_colbert(np.full((2, 8), np.nan, np.float32))),
    ],
)
def test_an_entry_that_no_model_gives_is_damage_though_its_checksum_is_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, output: str, numbers: bytes
) -> None:
    cache = Cache(tmp_path)
    cache.keep(["a"], made_up(1))
    key = key_of(Mark(SPACE), "a")
    row = (key, output, 3, 0, numbers)
    with sqlite3.connect(tmp_path / FILE) as connection:
        values = "tokens = 3, truncated = 0, numbers = ?, checksum = ?"
        connection.execute(f"UPDATE entries SET {values} WHERE output = ?", (numbers, checksum_of(row), output))
    connection.close()
    assert cache.find(Mark(SPACE), ["a"], Outputs.ALL, 8) == [None]
    assert "is damaged" in caplog.text
    cache.keep(["a"], made_up(1))
    assert_equal(all_of(cache, ["a"]), made_up(1))


def test_nobody_else_may_read_a_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.keep(["a"], made_up(1))
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "cache").iterdir()}
    assert files == {FILE: 0o600, f"{FILE}-wal": 0o600, f"{FILE}-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
