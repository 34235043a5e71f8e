"""A model as an application has used it: with a prefix of its own, lower case, texts cut short, vectors padded.

What a collection's vectors were made with is found by `migrate/provenance.py`; an `AdaptedEncoder` makes more of the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch, Value, require_heads
from vecferry.encode.encoder import Encoder, Role, TextEncoder, TextTokenizer
from vecferry.errors import SettingsError
from vecferry.model.artifact import VectorSpace, canonical_json
from vecferry.model.tokens import Tokenizer


@dataclass(frozen=True)
class Adaptation(Value):
    """What was done to a text before the model, and to its vector after it. All that is None was left as it is.

    prefix: before every text, in the place of the model's own. max_characters, max_tokens: a longer text keeps its
    beginning; special tokens count. dimension: vectors are filled up with zeros to this length.
    """

    prefix: str | None = None
    lowercase: bool = False
    max_characters: int | None = None
    max_tokens: int | None = None
    dimension: int | None = None

    def __bool__(self) -> bool:
        return self != Adaptation()

    def text(self, text: str) -> str:
        """Return the text as the model is to read it, without the prefix; tokens are cut later."""
        cut = text[: self.max_characters]
        return cut.lower() if self.lowercase else cut

    def __str__(self) -> str:
        phrases = [
            *([] if self.prefix is None else [f"the prefix {self.prefix!r}"]),
            *(["lower case"] if self.lowercase else []),
            *([] if self.max_characters is None else [f"the first {self.max_characters:,} characters"]),
            *([] if self.max_tokens is None else [f"the first {self.max_tokens:,} tokens"]),
            *([] if self.dimension is None else [f"zeros up to {self.dimension:,} numbers"]),
        ]
        return ", ".join(phrases)


def adapted(encoder: TextEncoder, adaptation: Adaptation) -> TextEncoder:
    """Return the encoder behind the adaptation; itself where nothing is adapted.

    Raises SettingsError for an encoder whose tokens are cut elsewhere, as on a server.
    """
    if not adaptation:
        return encoder
    if isinstance(encoder, Encoder):
        return AdaptedEncoder(encoder, adaptation)
    raise SettingsError("[old]", str(adaptation), "a model that runs in this process")


class AdaptedEncoder(TextEncoder):
    """An encoder behind an adaptation. Its vectors are a space of their own, and dense alone."""

    def __init__(self, encoder: Encoder, adaptation: Adaptation) -> None:
        self._adaptation = adaptation
        self._encoder = Encoder(_AdaptedTokenizer(encoder.tokenizer, adaptation), encoder.runtime, encoder.limits)
        self._space = _adapted_space(encoder.space, adaptation)

    @property
    def space(self) -> VectorSpace:
        return self._space

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode texts as `Encoder.encode` does, adapted. Raises what it raises."""
        require_heads(outputs, self.space.outputs)
        embeddings = self._encoder.encode([self._adaptation.text(text) for text in texts], role=role)
        padding = self.dimension - embeddings.dense.shape[1]
        dense = np.pad(embeddings.dense, ((0, 0), (0, padding)))  # [N, dimension]
        return replace(embeddings, fingerprint=self.fingerprint, dense_or_none=dense)


class _AdaptedTokenizer:
    """Another tokenizer with the adaptation's prefix and limit."""

    def __init__(self, tokenizer: TextTokenizer, adaptation: Adaptation) -> None:
        self._prefix = adaptation.prefix
        self._tokenizer = tokenizer
        if adaptation.max_tokens is not None and isinstance(tokenizer, Tokenizer):
            self._tokenizer = tokenizer.with_max_tokens(adaptation.max_tokens)

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        return self._tokenizer(texts, prefix if self._prefix is None else self._prefix)


def _adapted_space(space: VectorSpace, adaptation: Adaptation) -> VectorSpace:
    """The model's own space where nothing is adapted; else one with a fingerprint of its own."""
    if not adaptation:
        return space
    dimension = adaptation.dimension or space.dimension
    description = canonical_json(asdict(adaptation)).decode()
    return space.model_copy(update={"dimension": dimension, "heads": ("dense",), "adapted": description})
