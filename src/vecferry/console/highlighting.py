"""Why a passage was found, as far as the model's heads say: scores, and the characters that matched. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vecferry.embeddings import (
    Embeddings,
    Float32,
    colbert_scores,
    dense_scores,
    lexical_scores,
)
from vecferry.model.tokens import Piece

LEVELS = 4
"""How strongly a token can be lit; 0 is not at all."""
Pieces = Callable[[str], Iterable[Piece]]


@dataclass(frozen=True)
class Run:
    """Characters highlighted alike. word: how much the query shares them (sparse). best: how near they are to the
    token of the query whose best match they are (ColBERT). Both 0 to LEVELS. why: in words, for a pointer.
    """

    text: str
    word: int = 0
    best: int = 0
    why: str = ""


@dataclass(frozen=True)
class Scores:
    """The scores of one passage; None where the model has no such head."""

    dense: float
    sparse: float | None
    colbert: float | None


def scores_of(query: Embeddings, passages: Embeddings) -> list[Scores]:
    """Return the scores of each passage. query: the embeddings of one text."""
    dense = dense_scores(query, passages)[0]
    sparse = lexical_scores(query, passages)[0] if query.sparse_or_none is not None else None
    colbert = colbert_scores(query, passages)[0] if query.colbert_or_none is not None else None
    return [
        Scores(
            float(dense[i]),
            None if sparse is None else float(sparse[i]),
            None if colbert is None else float(colbert[i]),
        )
        for i in range(len(passages))
    ]


@dataclass(frozen=True)
class Highlighter:
    """A query that highlights passages. prefixes: what the model puts before a query and a passage."""

    query: str
    embedded: Embeddings
    pieces: Pieces
    prefixes: tuple[str, str] = ("", "")

    def highlight(self, text: str, passages: Embeddings, row: int) -> tuple[Run, ...]:
        """Split `text`, which is passage `row`, into runs; together they are the text."""
        tokens = list(self.pieces(self.prefixes[1] + text))
        places = [_moved(piece, len(self.prefixes[1])) for piece in tokens]
        shared = np.zeros(len(text))
        best, why = np.zeros(len(text)), [""] * len(text)
        if passages.sparse_or_none is not None:
            self._highlight_words(tokens, places, passages.sparse.row(row), shared)
        if passages.colbert_or_none is not None:
            self._highlight_best(places, passages.colbert[row], best, why)
        return _runs(text, _levels(shared), _levels(best), why)

    def _highlight_words(
        self, tokens: Sequence[Piece], places: Sequence[tuple[int, int] | None], weights: dict[int, float],
        shared: np.ndarray,
    ) -> None:  # fmt: skip
        """Set the product of both weights wherever a shared token stands."""
        wanted = self.embedded.sparse.row(0)
        for piece, place in zip(tokens, places, strict=True):
            if place is not None and piece.id in wanted and piece.id in weights:
                shared[slice(*place)] = wanted[piece.id] * weights[piece.id]

    def _highlight_best(
        self, places: Sequence[tuple[int, int] | None], vectors: Float32, best: np.ndarray, why: list[str]
    ) -> None:
        """Mark the best token here of each query token; CLS has no vector, so vector i is of token i + 1."""
        query_tokens = list(self.pieces(self.prefixes[0] + self.query))[1:]
        rows = self.embedded.colbert[0][: len(query_tokens)]  # [query tokens, D]
        here = vectors[: max(0, len(places) - 1)]  # [passage tokens, D]
        if not len(here):
            return
        similar = rows @ here.T  # [query tokens, passage tokens]
        for piece, row in zip(query_tokens, similar, strict=False):
            place = places[int(row.argmax()) + 1]
            score = float(row.max())
            if piece.place is None or place is None or score <= best[place[0]]:
                continue
            best[slice(*place)] = score
            why[place[0] : place[1]] = [f"{piece.text.strip()} {score:.2f}"] * (place[1] - place[0])


def _moved(piece: Piece, prefix: int) -> tuple[int, int] | None:
    """Return the token's place in the text without the prefix; None for special tokens and the prefix's."""
    if piece.place is None or piece.place[1] <= prefix:
        return None
    return max(0, piece.place[0] - prefix), piece.place[1] - prefix


def _levels(strength: np.ndarray) -> list[int]:
    """Scale to levels: 0 stays 0; the strongest is LEVELS."""
    highest = strength.max(initial=0.0)
    if highest <= 0:
        return [0] * len(strength)
    return [int(level) for level in np.ceil(LEVELS * np.maximum(strength, 0.0) / highest)]


def _runs(text: str, shared: Sequence[int], best: Sequence[int], why: Sequence[str]) -> tuple[Run, ...]:
    runs: list[Run] = []
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or (shared[i], best[i], why[i]) != (shared[start], best[start], why[start]):
            runs.append(Run(text[start:i], shared[start], best[start], why[start]))
            start = i
    return tuple(runs)
