"""The truth embedder: a double of `Encoder` whose vector is made of the text's SHA-256 alone.

Any stored vector can so be proven to come from the right text and the right model, and every text
that was encoded is counted.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Self

import numpy as np

from vecferry.embeddings import DENSE, Embeddings, Float32, Outputs
from vecferry.encode.encoder import Progress, Role
from vecferry.errors import InvalidText, OutOfMemory
from vecferry.migrate import Gate, GateVerdict, MappedThreshold
from vecferry.model.artifact import VectorSpace
from vecferry.precisions import Precision, Verdict


def truth(model: str, text: str, dimension: int) -> Float32:
    """Return float32 [dimension], unit length; no two texts share it, nor two models."""
    seed = int.from_bytes(hashlib.sha256(f"{model}\0{text}".encode()).digest(), "big")
    vector = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return vector / np.linalg.norm(vector)


def gate_that_says(*, passed: bool, thresholds: Mapping[str, MappedThreshold] | None = None) -> Gate:
    return lambda store: GateVerdict(passed, "judged.", "nothing", thresholds=dict(thresholds or {}))


class TruthEncoder:
    """before_each: called with the texts of each call before anything else."""

    def __init__(
        self,
        model: str = "new",
        dimension: int = 16,
        before_each: Callable[[Sequence[str]], None] = lambda texts: None,
    ) -> None:
        self.model = model
        self.space = VectorSpace(
            weights=model,
            tokenizer="double",
            special_ids=(),
            dimension=dimension,
            pooling="cls",
            normalize=True,
            max_tokens=512,
            query_prefix="",
            passage_prefix="",
            precision="fp32",
            heads=("dense",),
        )
        self.before_each = before_each
        self.poison: tuple[str, ...] = ("POISON", "HUGE")
        self.calls = 0
        self.encoded: Counter[str] = Counter()

    def in_precision(self, precision: Precision, verdict: Verdict) -> Self:
        """Return the same model in another precision, with what was found of it."""
        narrower = copy(self)
        changes = {"precision": precision, "verdicts": {"dense": verdict}}
        narrower.space = self.space.model_copy(update=changes)
        return narrower

    @property
    def fingerprint(self) -> str:
        return self.space.fingerprint

    @property
    def dimension(self) -> int:
        return self.space.dimension

    def truth(self, text: str) -> Float32:
        return truth(self.model, text, self.dimension)

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Outputs = DENSE,
        role: Role = "passage",
        progress: Progress | None = None,
    ) -> Embeddings:
        self.before_each(texts)
        self.calls += 1
        self.encoded.update(texts)
        for row, text in enumerate(texts):
            if not text.startswith(self.poison):
                continue
            if text.startswith("POISON"):
                raise InvalidText(row, "it is poison")
            if text.startswith("HUGE"):
                raise OutOfMemory("double", len(texts), 9999)
        ones = np.ones(len(texts), np.int64)
        truncated = np.zeros(len(texts), bool)
        return Embeddings(self.fingerprint, ones, truncated, self._dense(texts), form=self.space.form())

    def _dense(self, texts: Sequence[str]) -> Float32:
        dense = np.stack([self.truth(text) for text in texts])
        for row, text in enumerate(texts):
            if text.startswith("NAN"):
                dense[row, 0] = np.nan
            if text.startswith("ZERO"):
                dense[row] = 0
        return dense


class Clock:
    """Stand for the module `time`: to sleep is to let it go on, past what was planned for a moment on the way."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._plans: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, do: Callable[[], object]) -> None:
        """Plan a call for so many seconds after the beginning."""
        self._plans.append((1000 + seconds, do))

    @property
    def seconds(self) -> float:
        return round(self.now - 1000, 6)

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
        for plan in [plan for plan in self._plans if plan[0] <= self.now + 1e-9]:
            self._plans.remove(plan)
            plan[1]()
        assert self.seconds < 3600, "it waits for ever"
