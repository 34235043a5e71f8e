"""1,024 numbers without a model: signed feature hashing of words and of character n-grams.

Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", section 2: one hash of a
feature chooses its place in the vector, another its sign, so that the inner product of two vectors
estimates that of the texts' bags of features. What it finds is shared spelling; it knows neither
synonyms nor translations. The measured quality is in docs/fine-print.md (bench/lightweight_gate.py).

Equal texts give equal bits in every process, on every platform and Python version: hashes are integers
modulo 2**64, sums are of integers and so exact in any order, and square root and division are rounded
as IEEE 754 says. Characters are folded by the tables of Unicode 3.2 (`unicodedata.ucd_3_2_0`), which
every Python carries unchanged; later characters stand for themselves. The digest of the fold is part
of the space: a Python whose tables differed would have another fingerprint, not other vectors. One
thing follows the running Python: pairs that a later Unicode composes to one character (from Python
3.14 on some of Todhri, Kirat Rai, Gurung Khema and Tulu-Tigalari), where they are written as pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from unicodedata import ucd_3_2_0 as unicode_3_2

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import Bool, Embeddings, Float32, Int32, Int64, Outputs, Sparse, TokenBatch, indptr_of
from vecferry.encode.runtime import max_per_id
from vecferry.model.artifact import VectorSpace, canonical_json
from vecferry.model.text_parts import MAX_PART_CHARS, parts_of
from vecferry.model.texts import require_texts

UInt64 = NDArray[np.uint64]

RECIPE_VERSION = 1
"""Raised with any change that changes a vector: it is part of the fingerprint."""

DIMENSION = 1024
MAX_CHARACTERS = 65_536
SPARSE_IDS = 1 << 22
NGRAMS = (4, 6)
SHORT_WORD, SHORT_WORD_WEIGHT, WEIGHT = 3, 1, 2
SCALE = 64
BASE, INVERSE = 0x9E3779B97F4A7C15, pow(0x9E3779B97F4A7C15, -1, 1 << 64)

SPACE, DROPPED = ord(" "), 0
PLANE = 0x10000
ACCENTS = {*range(0x300, 0x370), *range(0x591, 0x5C8), *range(0x64B, 0x660), 0x640, 0x670}
"""Left out: diacritics of Latin, Greek and Cyrillic, Hebrew points, Arabic vowel signs and tatweel."""

UNSPACED = np.array([
    0x0E00, 0x10A0,    # Thai, Lao, Tibetan, Myanmar
    0x1780, 0x1800,    # Khmer
    0x3041, 0x3100,    # kana
    0x3400, 0xA000,    # Han
    0xAC00, 0xD7A4,    # Hangul: it is spaced, but a word is a few syllables and ends in its particle
    0xF900, 0xFB00,    # Han, compatibility
    0x20000, 0x40000,  # Han, added later
])  # fmt: skip
"""Scripts that are taken by single characters and pairs of them: the first of each, and the first after it."""


class LightweightTokenizer:
    """A tokenizer to folded characters: one token each, a space before, between and after the words.

    Thread-safe. Folded: compatibility forms (NFKC), case, accents; punctuation and symbols are spaces.
    """

    def __init__(self) -> None:
        self._fold = fold_table()

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        """Return int32 code points; texts over `MAX_CHARACTERS` keep their beginning and the last space.

        Raises as `require_texts`.
        """
        texts = require_texts(texts)
        rows = [self._characters(prefix + text) for text in texts]
        truncated = np.array([len(row) > MAX_CHARACTERS for row in rows])
        kept = [
            np.append(row[: MAX_CHARACTERS - 1], SPACE) if is_truncated else row
            for row, is_truncated in zip(rows, truncated, strict=True)
        ]
        return TokenBatch(np.concatenate(kept).astype(np.int32), indptr_of([len(row) for row in kept]), truncated)

    def _characters(self, text: str) -> Int32:
        """Return the folded characters; of a long text the first, more than `MAX_CHARACTERS`."""
        row = np.array([SPACE], np.int32)
        for _, part in parts_of(f"{text} ", MAX_PART_CHARS):
            row = _single_spaced(np.concatenate([row, self._fold_part(part)]))
            if len(row) > MAX_CHARACTERS:
                break
        return row

    def _fold_part(self, part: str) -> Int32:
        plain = part if part.isascii() else unicode_3_2.normalize("NFKC", part)
        points = np.frombuffer(plain.encode("utf-32-le"), "<i4")  # [characters]
        folded = np.where(points < PLANE, self._fold[np.minimum(points, PLANE - 1)], points)
        kept: Int32 = folded[folded != DROPPED]
        return kept


def _single_spaced(characters: Int32) -> Int32:
    doubled = (characters[1:] == SPACE) & (characters[:-1] == SPACE)
    return np.delete(characters, np.flatnonzero(doubled))


@cache
def fold_table() -> Int32:
    """Return int32 [65536]: what stands for each character of the first plane, or SPACE, or DROPPED. Read-only."""
    table = np.array([_folded(chr(point)) for point in range(PLANE)], np.int32)
    table.flags.writeable = False
    return table


def _folded(character: str) -> int:
    category = unicode_3_2.category(character)
    if ord(character) in ACCENTS or category == "Cf":
        return DROPPED
    if category == "Cn":  # not in Unicode 3.2: most that came later are letters
        return ord(character)
    if category[0] in "CPSZ":
        return SPACE
    base = [c for c in unicode_3_2.normalize("NFD", character) if ord(c) not in ACCENTS]
    folded = (base[0] if len(base) == 1 else character).casefold()
    return ord(folded) if len(folded) == 1 else ord(character)


class LightweightRuntime:
    """A runtime from folded characters to hashed features: no file, no download, no warm-up; thread-safe.

    dense: float32 [N, 1024], unit length, of words, 4-grams and 6-grams of characters within a word and
    its two spaces, and in `UNSPACED` scripts of characters and their pairs. sparse: the same without
    the n-grams, per hashed feature (ids below 2**22). A feature that is there n times weighs √n.
    """

    name = "lightweight"

    def __init__(self) -> None:
        self._space = lightweight_space()

    @property
    def space(self) -> VectorSpace:
        return self._space

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        features = features_of(batch)
        return Embeddings(
            self._space.fingerprint,
            batch.lengths,
            batch.truncated,
            dense_vectors(features, len(batch)) if Outputs.DENSE in outputs else None,
            sparse_weights(features, len(batch)) if Outputs.SPARSE in outputs else None,
        )

    def describe(self) -> dict[str, str]:
        return {"recipe": f"feature hashing, version {RECIPE_VERSION}"}


def lightweight_space() -> VectorSpace:
    """Return the space; its digests stand for the recipe, as a model's do for its files."""
    hashed = {
        "version": RECIPE_VERSION, "dimension": DIMENSION, "sparse_ids": SPARSE_IDS, "ngrams": NGRAMS, "scale": SCALE,
        "weights": [SHORT_WORD, SHORT_WORD_WEIGHT, WEIGHT], "unspaced": UNSPACED.tolist(),
    }  # fmt: skip
    return VectorSpace(
        weights=hashlib.sha256(canonical_json(hashed)).hexdigest(),
        tokenizer=hashlib.sha256(fold_table().astype("<i4").tobytes()).hexdigest(),
        special_ids=(),
        dimension=DIMENSION,
        pooling="mean",
        normalize=True,
        max_tokens=MAX_CHARACTERS,
        query_prefix="",
        passage_prefix="",
        precision="fp32",
        heads=("dense", "sparse"),
    )


# --- features -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """The distinct features of a batch's texts, ascending by row and hash.

    rows: int64 [F]; hashes: uint64 [F]; weights: int64 [F], damped by count; lexical: bool [F], False for n-grams.
    """

    rows: Int64
    hashes: UInt64
    weights: Int64
    lexical: Bool


def features_of(batch: TokenBatch) -> Features:
    unspaced = is_unspaced(batch.ids)
    word_starts, word_lengths = words_of(batch.ids, unspaced)
    singles, pairs = np.flatnonzero(unspaced), np.flatnonzero(unspaced[:-1] & unspaced[1:])
    ngrams = [windows_of(batch.ids, unspaced, n) for n in NGRAMS]
    starts = np.concatenate([word_starts, singles, pairs, *ngrams])  # [S] each
    fixed = [np.full(len(s), n) for s, n in zip([singles, pairs, *ngrams], [1, 2, *NGRAMS], strict=True)]
    lengths = np.concatenate([word_lengths, *fixed])
    lexical = np.arange(len(starts)) < len(word_starts) + len(singles) + len(pairs)
    weights = np.full_like(starts, WEIGHT)
    weights[: len(word_starts)][word_lengths <= SHORT_WORD] = SHORT_WORD_WEIGHT
    kinds = np.where(lexical, 0, lengths)  # a word of four letters is not the 4-gram of those letters
    rows = np.repeat(np.arange(len(batch)), batch.lengths)  # [characters]
    return _counted(Features(rows[starts], span_hashes(batch.ids, starts, lengths, kinds), weights, lexical))


def is_unspaced(characters: Int32) -> Bool:
    """Return whether each character belongs to one of `UNSPACED`."""
    begun_or_ended = np.searchsorted(UNSPACED, characters, side="right")
    return np.equal(begun_or_ended % 2, 1)


def words_of(characters: Int32, unspaced: Bool) -> tuple[Int64, Int64]:
    """Return starts and lengths of the runs of neither spaces nor unspaced characters."""
    inside = np.concatenate([[False], (characters != SPACE) & ~unspaced, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])  # start, end, start, end, ...
    return edges[::2], np.diff(edges)[::2]


def windows_of(characters: Int32, unspaced: Bool, n: int) -> Int64:
    """Return starts of the windows of `n` characters of one word; its spaces may be first and last."""
    spaces_before = indptr_of((characters == SPACE).astype(np.int64))  # [characters + 1]
    unspaced_before = indptr_of(unspaced.astype(np.int64))
    starts = np.arange(max(len(characters) - n + 1, 0))
    no_space_inside = spaces_before[starts + n - 1] == spaces_before[starts + 1]
    return np.flatnonzero(no_space_inside & (unspaced_before[starts + n] == unspaced_before[starts]))


def span_hashes(characters: Int32, starts: Int64, lengths: Int64, kinds: Int64) -> UInt64:
    """Hash spans to uint64 [S]: Σ mixed(c[i]) · BASE**i modulo 2**64 over c[0], c[1], ..., mixed with the kind.

    By prefix sums, so that a span of any length costs the same: the sum from `start`, times BASE**-start.
    """
    terms = mixed(characters.astype(np.uint64) + np.uint64(1)) * _powers(BASE, len(characters))
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])  # [characters + 1]
    polynomials = (before[starts + lengths] - before[starts]) * _powers(INVERSE, len(characters))[starts]
    return mixed(polynomials + mixed(kinds.astype(np.uint64)))


def _powers(base: int, count: int) -> UInt64:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


def mixed(values: UInt64) -> UInt64:
    """Apply MurmurHash3's finalizer (Appleby 2011, fmix64): every bit of a value moves every bit of the result."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def _counted(occurring: Features) -> Features:
    """Keep each feature of a row once; its weight is round(SCALE · weight · √count)."""
    order = np.lexsort((occurring.hashes, occurring.rows))
    rows, hashes = occurring.rows[order], occurring.hashes[order]
    changed = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    first = np.flatnonzero(np.concatenate([np.ones(min(len(rows), 1), bool), changed]))
    counts = np.diff(first, append=len(rows))
    weights = np.rint(SCALE * occurring.weights[order][first] * np.sqrt(counts)).astype(np.int64)
    return Features(rows[first], hashes[first], weights, occurring.lexical[order][first])


# --- vectors --------------------------------------------------------------------------------------


def dense_vectors(features: Features, num_rows: int) -> Float32:
    """Return float32 [num_rows, 1024], unit length. A text without a feature is the first axis, as good as any."""
    places = (features.hashes % np.uint64(DIMENSION)).astype(np.int64)
    signs = np.where(features.hashes >> np.uint64(63), -1, 1)
    flat = np.bincount(features.rows * DIMENSION + places, features.weights * signs, num_rows * DIMENSION)
    sums = flat.astype(np.float64).reshape(num_rows, DIMENSION)  # whole numbers
    sums[~sums.any(axis=1), 0] = 1
    lengths = np.sqrt(np.sum(sums * sums, axis=1, keepdims=True, dtype=np.float64))
    return np.asarray(sums / lengths, np.float32)


def sparse_weights(features: Features, num_rows: int) -> Sparse:
    """Return lexical features only, each row of unit length before colliding ids are reduced to their maximum."""
    rows, weights = features.rows[features.lexical], features.weights[features.lexical]
    ids = (features.hashes[features.lexical] >> np.uint64(10)) % np.uint64(SPARSE_IDS)
    norms = np.sqrt(np.bincount(rows, weights * weights, num_rows))  # [num_rows]
    return max_per_id(rows, ids.astype(np.int32), (weights / norms[rows]).astype(np.float32), num_rows)
