"""Texts to embeddings: tokenise, plan, run, restore the order. Where tokens, batches and runtime meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from vecferry.artifact import VectorSpace
from vecferry.batching import Limits, plan
from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch, require_heads
from vecferry.errors import InvalidText
from vecferry.runtime import Runtime

Role = Literal["passage", "query"]
Progress = Callable[[int, int], None]


class TextTokenizer(Protocol):
    """What comes before the runtime; `tokens.Tokenizer`, or the lightweight mode's."""

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        """Raises EmptyInput and InvalidText."""


class Encoder:
    """Thread-safe and synchronous. `loading.load_encoder` builds one from an artifact."""

    def __init__(self, tokenizer: TextTokenizer, runtime: Runtime, limits: Limits | None = None) -> None:
        self._tokenizer = tokenizer
        self._limits = limits or Limits()
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
        """Encode texts, in the order given.

        dense: float32 [len(texts), dimension], unit length where the model normalises. sparse: CSR,
        the maximum weight per token id. colbert: per text float32 [tokens - 1, dimension].
        role: which of the model's prefixes goes before each text (BGE-M3 has none).
        progress: called with (texts done, texts in all) after each batch.
        Texts over `space.max_tokens` are cut, and counted in `Embeddings.num_truncated`.
        Raises EmptyInput, InvalidText, HeadUnavailable; RuntimeFailed and OutOfMemory with the batch's shape.
        """
        require_heads(outputs, self.space.outputs)
        prefix = self.space.query_prefix if role == "query" else self.space.passage_prefix
        tokens = self._tokenizer(texts, prefix)
        parts, rows_done = [], []
        for rows in plan(tokens.lengths, self._limits):
            parts.append(self.runtime.run(tokens.take(rows), outputs))
            rows_done.extend(rows.tolist())
            if progress is not None:
                progress(len(rows_done), len(tokens))
        return Embeddings.concat(parts).take(np.argsort(rows_done))

    def encode_iter(
        self, texts: Iterable[str], *, outputs: Outputs = DENSE, role: Role = "passage", texts_each: int = 1024
    ) -> Iterator[Embeddings]:
        """`encode` for a corpus that does not fit in memory: embeddings of `texts_each` texts at a time.

        Raises as `encode` does; InvalidText counts from the first text of all.
        """
        remaining, done = iter(texts), 0
        while chunk := list(islice(remaining, texts_each)):
            try:
                yield self.encode(chunk, outputs=outputs, role=role)
            except InvalidText as exc:
                raise InvalidText(done + exc.row, exc.reason) from exc
            done += len(chunk)
