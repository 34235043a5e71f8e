"""Encoders whose quality is chosen, and what they are asked about."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tests.migrate.doubles import truth
from vecferry.embeddings import DENSE, Embeddings, Float32, MultiVector, Outputs, Sparse, indptr_of, require_heads
from vecferry.encode.encoder import Progress, Role
from vecferry.evaluate import JudgedQueries, Judgement, Passage, Question
from vecferry.model.artifact import VectorSpace
from vecferry.model.texts import require_texts

TOPIC = re.compile(r"topic\d+")
WORDS = re.compile(r"\w+")
VOCABULARY = 5000


class TopicEncoder:
    """A text's vector is the direction of the topic that it names, and `noise` times a direction of its own.

    At noise 0 every text of a topic has the same vector; at noise 5 the topic is hardly to be seen. A word is a token.
    """

    def __init__(
        self,
        model: str,
        noise: float,
        *,
        dimension: int = 24,
        max_tokens: int = 512,
        heads: tuple[str, ...] = ("dense",),
    ) -> None:
        self.noise = noise
        self.model = model
        self.space = VectorSpace(
            weights=f"{model} at {noise}", tokenizer="words", special_ids=(), dimension=dimension, pooling="cls",
            normalize=True, max_tokens=max_tokens, query_prefix="", passage_prefix="", precision="fp32", heads=heads,
        )  # fmt: skip

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
        require_heads(outputs, self.space.outputs)
        texts = require_texts(texts)
        tokens = [WORDS.findall(text.lower())[: self.space.max_tokens] for text in texts]
        lengths = np.array([len(WORDS.findall(text)) for text in texts], np.int64)
        return Embeddings(
            self.fingerprint,
            np.minimum(lengths, self.space.max_tokens),
            lengths > self.space.max_tokens,
            np.stack([self._vector(text) for text in texts]) if Outputs.DENSE in outputs else None,
            _sparse(tokens) if Outputs.SPARSE in outputs else None,
            self._colbert(tokens) if Outputs.COLBERT in outputs else None,
        )

    def _vector(self, text: str) -> Float32:
        named = TOPIC.search(text)
        topic = truth(self.model, named.group() if named else text, self.dimension)
        return unit(topic + self.noise * truth(self.model, text, self.dimension))

    def _colbert(self, tokens: Sequence[Sequence[str]]) -> MultiVector:
        vectors = [truth(self.model, word, self.dimension) for row in tokens for word in row]
        flat = np.array(vectors, np.float32).reshape(-1, self.dimension)
        return MultiVector(indptr_of([len(row) for row in tokens]), flat)


def _sparse(tokens: Sequence[Sequence[str]]) -> Sparse:
    rows = [sorted({_token(word) for word in row}) for row in tokens]
    flat = [token for row in rows for token in row]
    return Sparse(indptr_of([len(row) for row in rows]), np.array(flat, np.int32), np.full(len(flat), 0.5, np.float32))


def _token(word: str) -> int:
    return int(abs(truth("token", word, 2)[0]) * VOCABULARY)


def unit(vector: Float32) -> Float32:
    scaled: Float32 = (vector / np.linalg.norm(vector)).astype(np.float32)
    return scaled


def text_about(number: int) -> str:
    return f"The first sentence tells of topic{number:03}. A second one, on topic{number:03}, follows it."


def passages_about(count: int) -> tuple[Passage, ...]:
    """Return a passage of each topic, the even ones in English and the odd ones in German."""
    return tuple(Passage(str(n), text_about(n), "", {"language": "de" if n % 2 else "en"}) for n in range(1, count + 1))


def queries_about(count: int) -> JudgedQueries:
    """Return a query of each topic; the passage of the topic is relevant."""
    numbers = range(1, count + 1)
    return JudgedQueries(
        tuple(Question(f"q{n}", f"what of topic{n:03}?", {"language": "de" if n % 2 else "en"}) for n in numbers),
        tuple(Judgement(f"q{n}", str(n), 1) for n in numbers),
    )


def embedded(
    count: int, random: np.random.Generator, *, dimension: int = 8, vocabulary: int = 40, space: str = "a"
) -> Embeddings:
    """Return random embeddings with all heads; every fifth text has no token."""
    tokens = [0 if row % 5 == 4 else int(random.integers(1, 7)) for row in range(count)]
    ids = [np.sort(random.choice(vocabulary, n, replace=False)) for n in tokens]
    sparse = Sparse(
        indptr_of(tokens),
        np.concatenate([*ids, np.zeros(0, np.int64)]).astype(np.int32),
        random.uniform(0.1, 1, sum(tokens)).astype(np.float32),
    )
    colbert = MultiVector(indptr_of(tokens), random.normal(size=(sum(tokens), dimension)).astype(np.float32))
    dense = random.normal(size=(count, dimension)).astype(np.float32)
    return Embeddings(space, np.array(tokens, np.int64), np.zeros(count, bool), dense, sparse, colbert)
