"""Texts to embeddings: tokenise, plan, run, restore the order. Where tokens, batches and runtime meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecferry.artifact import VectorSpace
from vecferry.batching import MB, Limits, plan
from vecferry.cache import Cache
from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch, require_heads
from vecferry.errors import InvalidText, OverMemoryBudget
from vecferry.memory import predicted_bytes
from vecferry.runtime import Runtime
from vecferry.spec import EncoderSpec
from vecferry.tokens import check_texts

T = TypeVar("T")
U = TypeVar("U")
Role = Literal["passage", "query"]
Progress = Callable[[int, int], None]

TEXTS_EACH = 1024
"""How many texts are tokenised at a time, those to come while the runtime is busy with the ones before."""


class TextTokenizer(Protocol):
    """What comes before the runtime; `tokens.Tokenizer`, or the lightweight mode's."""

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        """Raises EmptyInput and InvalidText."""


class Encoder:
    """Thread-safe and synchronous. `loading.load_encoder` builds one from an artifact."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        runtime: Runtime,
        limits: Limits | None = None,
        *,
        spec: EncoderSpec | None = None,
        cache: Cache | None = None,
    ) -> None:
        """spec: what a run's memory is predicted from; without it there is no budget. cache: where to look first."""
        self._tokenizer = tokenizer
        self._limits = limits or Limits()
        self._spec = spec
        self._cache = cache
        self.runtime = runtime

    @property
    def space(self) -> VectorSpace:
        return self.runtime.space

    @property
    def fingerprint(self) -> str:
        return self.space.fingerprint

    @property
    def dimension(self) -> int:
        return self.space.dimension

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Outputs = DENSE,
        role: Role = "passage",
        progress: Progress | None = None,
    ) -> Embeddings:
        """Encode texts, in the order given; equal texts are computed once and have equal results.

        dense: float32 [len(texts), dimension], unit length where the model normalises. sparse: CSR,
        the maximum weight per token id. colbert: per text float32 [tokens - 1, dimension].
        role: which of the model's prefixes goes before each text (BGE-M3 has none).
        progress: called with (texts done, texts in all) after each batch.
        Texts over `space.max_tokens` are cut, and counted in `Embeddings.num_truncated`.
        Raises EmptyInput, InvalidText, HeadUnavailable before anything is computed; OverMemoryBudget for a text that
        alone is over the budget; RuntimeFailed and OutOfMemory with the batch's shape.
        """
        require_heads(outputs, self.space.outputs)
        check_texts(texts)
        distinct, places = _distinct(texts)
        counts = np.bincount(places)
        parts, slices = [], range(0, len(distinct), TEXTS_EACH)
        prepared = _ahead(lambda at: self._prepare(distinct[at : at + TEXTS_EACH], outputs, role), slices)
        for at, work in zip(slices, prepared, strict=True):
            so_far = _Counting(progress, int(counts[:at].sum()), counts[at : at + TEXTS_EACH], len(texts))
            parts.append(self._compute(work, so_far))
        return Embeddings.concat(parts).take(places)

    def encode_iter(
        self, texts: Iterable[str], *, outputs: Outputs = DENSE, role: Role = "passage", texts_each: int = TEXTS_EACH
    ) -> Iterator[Embeddings]:
        """`encode` for a corpus that does not fit in memory: embeddings of `texts_each` texts at a time.

        `texts` is read that many ahead. Equal texts are computed once among those that come together, and once in all
        where there is a cache. Raises as `encode` does; InvalidText counts from the first text of all.
        """
        require_heads(outputs, self.space.outputs)

        def prepare(chunk: tuple[int, list[str]]) -> tuple[_Work, NDArray[np.intp]]:
            distinct, places = _distinct(_checked(chunk[1], first_row=chunk[0]))
            return self._prepare(distinct, outputs, role), places

        for work, places in _ahead(prepare, _chunks(texts, texts_each)):
            yield self._compute(work, _Counting()).take(places)

    # --- the two halves: before the runtime, and the runtime ------------------------------------------

    def _prepare(self, texts: Sequence[str], outputs: Outputs, role: Role) -> _Work:
        """Distinct and valid texts: what the cache has of them, and the tokens of the others."""
        prefix = self.space.query_prefix if role == "query" else self.space.passage_prefix
        full = [prefix + text for text in texts]
        found = self._cache.find(self.fingerprint, full, outputs) if self._cache else [None] * len(texts)
        missing = np.array([i for i, one in enumerate(found) if one is None], np.intp)
        tokens = self._tokenizer([texts[i] for i in missing], prefix) if len(missing) else None
        return _Work(full, outputs, found, missing, tokens)

    def _compute(self, work: _Work, counting: _Counting) -> Embeddings:
        """Embeddings of the work's texts, in their order."""
        parts = [one for one in work.found if one is not None]
        rows_done = [i for i, one in enumerate(work.found) if one is not None]
        counting.add(rows_done)
        for rows in self._plan(work):
            assert work.tokens is not None
            computed, texts = self.runtime.run(work.tokens.take(rows), work.outputs), work.missing[rows].tolist()
            if self._cache:
                self._cache.keep([work.texts[i] for i in texts], computed)
            parts.append(computed)
            rows_done += texts
            counting.add(texts)
        return Embeddings.concat(parts).take(np.argsort(rows_done))

    def _plan(self, work: _Work) -> list[NDArray[np.intp]]:
        """Raises OverMemoryBudget."""
        if work.tokens is None:
            return []
        lengths = work.tokens.lengths
        if self._spec is None:
            return plan(lengths, self._limits)
        bytes_of = partial(predicted_bytes, self._spec, outputs=work.outputs)
        longest, allowed_mb = int(lengths.max()), self._limits.memory_budget_mb
        predicted_mb = -(-bytes_of(1, longest, padded=False) // MB)
        if predicted_mb > allowed_mb:
            raise OverMemoryBudget(self.runtime.name, 1, longest, predicted_mb, allowed_mb)
        return plan(lengths, self._limits, bytes_of)


@dataclass(frozen=True)
class _Work:
    """Distinct texts on their way to the runtime.

    texts: with their prefix. found: of each its embeddings, if the cache had them. missing: int [M], which had none.
    tokens: of those; None if M is 0.
    """

    texts: Sequence[str]
    outputs: Outputs
    found: Sequence[Embeddings | None]
    missing: NDArray[np.intp]
    tokens: TokenBatch | None


class _Counting:
    """Tells how many texts are done. counts: how often each of the texts occurs."""

    def __init__(
        self,
        progress: Progress | None = None,
        done: int = 0,
        counts: NDArray[np.intp] | None = None,
        total: int = 0,
    ) -> None:
        self._progress, self._done, self._counts, self._total = progress, done, counts, total

    def add(self, rows: list[int]) -> None:
        if self._progress is None or self._counts is None or not rows:
            return
        self._done += int(self._counts[rows].sum())
        self._progress(self._done, self._total)


def _distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """The distinct texts in the order of their first occurrence, and for each text its place among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), np.array([places[text] for text in texts], np.intp)


def _checked(texts: list[str], first_row: int) -> list[str]:
    try:
        check_texts(texts)
    except InvalidText as exc:
        raise InvalidText(first_row + exc.row, exc.reason) from exc
    return texts


def _chunks(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """(number of texts before, up to `size` texts)."""
    remaining, done = iter(texts), 0
    while chunk := list(islice(remaining, size)):
        yield done, chunk
        done += len(chunk)


def _ahead(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """function(item) of each, in order; the next is under way in a thread while the caller has this one.

    Items are read by the caller's thread. An error comes where its item would have come.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="vecferry-tokens") as pool:  # starts no thread for a single item
        for first in islice(remaining, 1):
            current = function(first)
            for item in remaining:
                following = pool.submit(function, item)
                yield current
                current = following.result()
            yield current
