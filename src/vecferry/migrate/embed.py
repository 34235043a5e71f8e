"""Rows to vectors, and to dead letters where a text cannot be embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from vecferry.embeddings import DENSE, Outputs, TextVectors
from vecferry.encode.encoder import TextEncoder
from vecferry.errors import (
    HeadUnavailable,
    InvalidInput,
    InvalidText,
    ModelRuntimeError,
    RuntimeUnavailable,
    ServerFailed,
    VecferryError,
    VectorUnusable,
)
from vecferry.stores.ledger import DeadLetter
from vecferry.stores.values import NewVector, Row


@dataclass(frozen=True)
class Embedded:
    """Every row is in `vectors`, dead letters with None; each of these is in `dead_letters` too."""

    vectors: tuple[NewVector, ...]
    dead_letters: tuple[DeadLetter, ...]


Outcome = TextVectors | VecferryError | str
ABOUT_TEXTS = (400, 413, 500)
"""Statuses of a server that could not encode what it was sent: not a text, too long, failed on it."""


def embed(encoder: TextEncoder, rows: Sequence[Row], outputs: Outputs = DENSE) -> Embedded:
    """Return the rows' new vectors, in their order; equal texts are encoded once.

    A text that cannot be encoded, and one whose vector is not fit to be kept, becomes a dead letter.
    Raises ModelRuntimeError or ServerFailed if the runtime fails on every one of several texts (then it is not the
    texts' fault), ServerFailed for a server that does not answer, and SpaceMismatch if the encoder answers in another
    space than its own.
    """
    texts = list(dict.fromkeys(row.text for row in rows if row.text is not None))
    outcomes = dict(zip(texts, _outcomes(encoder, texts, outputs), strict=True))
    failures = [failure for failure in outcomes.values() if _is_of_the_model(failure)]
    if 1 < len(failures) == len(outcomes):
        raise failures[0]
    vectors, dead_letters = [], []
    for row in rows:
        outcome = "the text is NULL" if row.text is None else outcomes[row.text]
        if isinstance(outcome, TextVectors):
            vectors.append(NewVector(row.key, row.digest, outcome))
        else:
            vectors.append(NewVector(row.key, row.digest, None))
            dead_letters.append(DeadLetter(row.key, _reason(outcome), row.digest))
    return Embedded(tuple(vectors), tuple(dead_letters))


def _outcomes(encoder: TextEncoder, texts: list[str], outputs: Outputs) -> list[Outcome]:
    """Return for each text its vectors, or why it has none; a failing batch is halved down to the text."""
    if not texts:
        return []
    try:
        embeddings = encoder.encode(texts, outputs=outputs)
    except (HeadUnavailable, RuntimeUnavailable):  # of no text in particular
        raise
    except (InvalidInput, ModelRuntimeError, ServerFailed) as exc:
        if isinstance(exc, ServerFailed) and exc.status not in ABOUT_TEXTS:
            raise
        if len(texts) == 1:
            return [exc]
        middle = len(texts) // 2
        return [*_outcomes(encoder, texts[:middle], outputs), *_outcomes(encoder, texts[middle:], outputs)]
    embeddings.require_key(encoder.space.key, "the encoder's answer")
    defects = embeddings.defects()
    if (numbers := embeddings.dense.shape[1]) != encoder.dimension:
        defects = dict.fromkeys(range(len(texts)), f"its vector has {numbers} numbers, not {encoder.dimension}")
    return [defects.get(i) or embeddings[i] for i in range(len(texts))]


def _is_of_the_model(failure: Outcome) -> TypeGuard[VecferryError]:
    """Return whether the runtime failed, here or on a server, rather than the text."""
    return isinstance(failure, ModelRuntimeError | ServerFailed) and not isinstance(failure, VectorUnusable)


def _reason(failure: VecferryError | str) -> str:
    """Return the reason without lone surrogates, which a bad text may have brought into it."""
    if isinstance(failure, InvalidText | VectorUnusable):
        reason = failure.reason  # its message names a position in a batch, which says nothing here
    else:
        reason = failure.message if isinstance(failure, VecferryError) else failure
    return reason.encode("utf-8", "replace").decode()
