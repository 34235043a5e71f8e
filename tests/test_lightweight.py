"""The vectors without a model: the same bits everywhere, unit length, near for shared spelling."""

import hashlib
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecferry.embeddings import Outputs, dense_scores, lexical_scores
from vecferry.encode.encoder import Encoder
from vecferry.encode.runtime.lightweight import (
    MAX_CHARACTERS,
    LightweightRuntime,
    LightweightTokenizer,
    fold_table,
    span_hashes,
)
from vecferry.errors import EmptyInput, HeadUnavailable, InvalidText, WrongInputType

BOTH = Outputs.DENSE | Outputs.SPARSE
SAMPLE = [
    "",
    "Café",
    "the ferry, the FERRY",
    "ferries 渡し船 and नौका",
    "Ναῦς ﬁve",
    "서울에서 배를 탔다",
    "مَرْكَب",
    "🛥 boat\u200d\x00",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

# Taken from version 1 of the recipe; another value here is another vector space and needs another version.
FINGERPRINT = "226c5cf3ea7a40f0a8619e25bf8051696981acea0cfbf38049d6f051d95fee0c"
SAMPLE_SHA256 = "d4f168deade3aa5991a656365ee09423b56e501f0ec781171d504fed91b2c2eb"
FOLD_SHA256 = "bd5fc8d60bd3860b11af422c259e641ec74b39cf2de2070ab4061041df47ebbd"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(LightweightTokenizer(), LightweightRuntime())


def digest_of(encoder: Encoder) -> str:
    """Return the SHA-256 of all that the sample gives, little-endian."""
    result = encoder.encode(SAMPLE, outputs=BOTH)
    parts = [result.dense.astype("<f4"), result.sparse.indptr.astype("<i8"), result.sparse.indices.astype("<i4")]
    return hashlib.sha256(b"".join(p.tobytes() for p in [*parts, result.sparse.weights.astype("<f4")])).hexdigest()


def test_vectors_are_those_of_version_1_to_the_bit(encoder: Encoder) -> None:
    result = encoder.encode(["Café", "the ferry"], outputs=BOTH)
    fifth, rest = np.float32(1 / np.sqrt(5)), np.float32(1 / np.sqrt(37))
    expected = np.zeros((2, 1024), np.float32)
    expected[0, [184, 240, 408, 882, 952]] = np.array([-1, -1, -1, 1, 1]) * fifth  # the word and four n-grams
    signs = np.array([2, -2, 1, 2, -2, -2, -2, 2, -2, 2])  # "the" has half the weight
    expected[1, [104, 170, 331, 474, 524, 538, 683, 692, 889, 914]] = signs * rest
    np.testing.assert_array_equal(result.dense, expected)
    assert result.sparse.row(0) == {949589: 1.0}
    assert result.sparse.row(1) == {
        115177: float(np.float32(2 / np.sqrt(5))),
        526593: float(np.float32(1 / np.sqrt(5))),
    }


def test_fingerprint_fold_and_sample_are_those_of_version_1(encoder: Encoder) -> None:
    assert hashlib.sha256(fold_table().astype("<i4").tobytes()).hexdigest() == FOLD_SHA256
    assert encoder.fingerprint == FINGERPRINT
    assert digest_of(encoder) == SAMPLE_SHA256


@given(st.lists(st.integers(0, 0x10FFFF), min_size=1, max_size=12), st.integers(0, 20))
def test_span_hashes_equal_the_plain_loop_wherever_the_span_lies(characters: list[int], before: int) -> None:
    def fmix64(k: int) -> int:
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            k = (k ^ k >> 33) * factor % 2**64
        return k ^ k >> 33

    polynomial = sum(fmix64(c + 1) * 0x9E3779B97F4A7C15**i for i, c in enumerate(characters))
    row = np.array([7] * before + characters + [9, 9], np.int32)
    hashes = span_hashes(row, *(np.array([n]) for n in (before, len(characters), 4)))
    assert hashes.tolist() == [fmix64((polynomial + fmix64(4)) % 2**64)]


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_another_process_gives_the_same_bits_whatever_its_hash_seed(seed: str) -> None:
    code = (
        "from tests.test_lightweight import *; print(digest_of(Encoder(LightweightTokenizer(), LightweightRuntime())))"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
    assert run.stdout.strip() == SAMPLE_SHA256, run.stderr


def test_case_accents_width_and_punctuation_do_not_matter(encoder: Encoder) -> None:
    alike = ["Café à Paris!", "CAFE\u0301 a\u0300 — Paris", "ｃａｆé (a) paris", " cafe\u00ad a paris\n"]
    dense = encoder.encode(alike).dense
    np.testing.assert_array_equal(dense, np.repeat(dense[:1], len(alike), axis=0))


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("The ferry leaves the harbour at noon.", "Ferries leaving from the harbour", "A theorem about prime numbers"),
        ("Die Fähre verlässt den Hafen", "Der Hafen und die Fähren", "Ein Satz über Primzahlen"),
        ("渡轮中午离开港口", "港口的渡轮", "关于素数的定理"),
        ("フェリーは正午に港を出る", "港を出るフェリー", "素数についての定理"),
        ("เรือข้ามฟากออกจากท่าเรือตอนเที่ยง", "ท่าเรือข้ามฟาก", "ทฤษฎีบทเกี่ยวกับจำนวนเฉพาะ"),
        ("여객선은 정오에 항구를 떠난다", "항구의 여객선", "소수에 관한 정리"),
        ("تغادر العبّارة الميناء ظهراً", "عبارة في الميناء", "مبرهنة حول الأعداد الأولية"),
        ("नौका दोपहर में बंदरगाह से निकलती है", "बंदरगाह की नौका", "अभाज्य संख्याओं पर एक प्रमेय"),
    ],
)
def test_shared_words_are_nearer_than_none_in_every_script(encoder: Encoder, text: str, near: str, far: str) -> None:
    query, passages = encoder.encode([text], outputs=BOTH), encoder.encode([near, far], outputs=BOTH)
    similar, unrelated = dense_scores(query, passages)[0]
    assert similar > unrelated + 0.1
    lexical = lexical_scores(query, passages)[0]
    assert lexical[0] > lexical[1] + 0.1


@given(st.lists(ANY_TEXT, min_size=1, max_size=8))
@settings(max_examples=200)
def test_any_texts_give_finite_unit_vectors_alone_as_in_a_batch(texts: list[str]) -> None:
    encoder = Encoder(LightweightTokenizer(), LightweightRuntime())
    together = encoder.encode(texts, outputs=BOTH)
    assert np.isfinite(together.dense).all()
    np.testing.assert_allclose(np.linalg.norm(together.dense.astype(np.float64), axis=1), 1, atol=1e-6)  # fp32 rounding
    assert (together.sparse.weights > 0).all()
    for i, text in enumerate(texts):
        alone = encoder.encode([text], outputs=BOTH)
        np.testing.assert_array_equal(alone.dense[0], together.dense[i])
        assert alone.sparse.row(0) == together.sparse.row(i)


def test_texts_without_a_word_give_a_unit_vector_and_no_lexical_weight(encoder: Encoder) -> None:
    result = encoder.encode(["", " \n", "?!", "\u0301"], outputs=BOTH)
    np.testing.assert_array_equal(result.dense, np.eye(1, 1024, dtype=np.float32).repeat(4, axis=0))
    assert len(result.sparse.weights) == 0


def test_a_text_over_the_limit_is_cut_and_counted_and_does_not_touch_its_neighbours(encoder: Encoder) -> None:
    long, short = "ab " * 400_000, "ferry"
    result = encoder.encode([long, short])
    assert result.truncated.tolist() == [True, False]
    assert result.num_tokens.tolist() == [MAX_CHARACTERS, len(" ferry ")]
    np.testing.assert_array_equal(result.dense, np.concatenate([encoder.encode([t]).dense for t in (long, short)]))


@given(text=st.text("aé好 \u0301\u200d\t\n", max_size=60) | ANY_TEXT)
def test_a_text_in_parts_has_the_characters_of_the_whole(text: str) -> None:
    tokenizer = LightweightTokenizer()
    whole = tokenizer([text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecferry.encode.runtime.lightweight.MAX_PART_CHARS", 7)
        parts = tokenizer([text])
        patch.setattr("vecferry.encode.runtime.lightweight.MAX_CHARACTERS", 9)
        cut = tokenizer([text])
    assert parts.ids.tolist() == whole.ids.tolist()
    expected = whole.ids.tolist() if len(whole.ids) <= 9 else [*whole.ids[:8].tolist(), ord(" ")]
    assert (cut.ids.tolist(), cut.truncated.tolist()) == (expected, [len(whole.ids) > 9])


@pytest.mark.parametrize("word", ["ferry ", "ferry", "\u200d"])
def test_12_megabytes_take_little_more_than_themselves(word: str) -> None:
    """It was up to 15 bytes for each byte."""
    text = word * (12_000_000 // len(word.encode()))
    tokenizer = LightweightTokenizer()
    tracemalloc.start()
    try:
        tokenizer([text])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000


def test_only_what_was_asked_for_is_computed_and_colbert_is_refused(encoder: Encoder) -> None:
    assert encoder.encode(["ferry"], outputs=Outputs.SPARSE).dense_or_none is None
    assert encoder.encode(["ferry"]).sparse_or_none is None
    with pytest.raises(HeadUnavailable):
        encoder.encode(["ferry"], outputs=Outputs.ALL)


def test_what_is_no_text_is_refused_by_its_position() -> None:
    tokenizer = LightweightTokenizer()
    with pytest.raises(EmptyInput):
        tokenizer([])
    with pytest.raises(InvalidText, match="text 1 cannot be encoded: lone surrogate"):
        tokenizer(["fine", "\ud800"])
    with pytest.raises(InvalidText, match="text 0 is None"):
        tokenizer([None])  # type: ignore[list-item]
    with pytest.raises(WrongInputType, match="a list of strings was expected, not str"):
        tokenizer("ferry")
