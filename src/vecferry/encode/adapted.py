"""A model as an application has used it: with a prefix of its own, lower case, texts cut short, vectors padded.

What a collection's vectors were made with is found by `migrate/provenance`; an `AdaptedEncoder` makes more of the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch, Value, require_heads
from vecferry.encode.encoder import Encoder, Role, SharedCopy, TextEncoder, TextTokenizer
from vecferry.encode.loading import LazyEncoder
from vecferry.errors import SettingsError
from vecferry.model.artifact import VectorSpace, canonical_json
from vecferry.model.texts import require_texts
from vecferry.model.tokens import Tokenizer
from vecferry.options import Checked, Count, Help


@dataclass(frozen=True)
class Adaptation(Checked, Value):
    """What was done to a text before the model, and to its vector after it. What is None was left as it is."""

    prefix: Annotated[str | None, Help("text before every passage, in the place of the old model's own prefix")] = None
    query_prefix: Annotated[str | None, Help("the same before every query")] = None
    lowercase: Annotated[bool, Help("whether texts were put into lower case")] = False
    max_characters: Annotated[Count | None, Help("characters of a text that were kept, from its beginning")] = None
    max_tokens: Annotated[Count | None, Help("tokens of a text that were kept, special ones included")] = None
    dimension: Annotated[Count | None, Help("numbers up to which vectors were filled with zeros")] = None

    def __bool__(self) -> bool:
        return self != Adaptation()

    def text(self, text: str) -> str:
        """Return the text as the model is to read it, without the prefix; tokens are cut later."""
        cut = text[: self.max_characters]
        return cut.lower() if self.lowercase else cut

    def __str__(self) -> str:
        phrases = [
            *([] if self.prefix is None else [f"the prefix {self.prefix!r}"]),
            *([] if self.query_prefix is None else [f"the prefix {self.query_prefix!r} before queries"]),
            *(["lower case"] if self.lowercase else []),
            *([] if self.max_characters is None else [f"the first {self.max_characters:,} characters"]),
            *([] if self.max_tokens is None else [f"the first {self.max_tokens:,} tokens"]),
            *([] if self.dimension is None else [f"zeros up to {self.dimension:,} numbers"]),
        ]
        return ", ".join(phrases)


NOT_ADAPTED = Adaptation()


def adapted(encoder: TextEncoder, adaptation: Adaptation) -> TextEncoder:
    """Return the encoder behind the adaptation; itself where nothing is adapted.

    Raises SettingsError for an encoder whose tokens are cut elsewhere, as on a server.
    """
    if not adaptation:
        return encoder
    if isinstance(encoder, Encoder | LazyEncoder):
        return AdaptedEncoder(encoder, adaptation)
    raise SettingsError("[old]", str(adaptation), "a model that runs in this process")


class AdaptedEncoder(SharedCopy, TextEncoder):
    """An encoder behind an adaptation. Its vectors are a space of their own, and dense alone."""

    def __init__(self, model: Encoder | LazyEncoder, adaptation: Adaptation) -> None:
        self.model, self.adaptation = model, adaptation

    def __reduce__(self) -> tuple[Any, ...]:
        return AdaptedEncoder, (self.model, self.adaptation)

    @cached_property
    def _encoders(self) -> dict[Role, Encoder]:
        """Return an encoder for each role, since a tokenizer does not know for which one it is called."""
        model = self.model.get().encoder if isinstance(self.model, LazyEncoder) else self.model
        prefixes: dict[Role, str | None] = {"passage": self.adaptation.prefix, "query": self.adaptation.query_prefix}
        return {
            role: Encoder(_AdaptedTokenizer(model.tokenizer, self.adaptation, prefix), model.runtime, model.limits)
            for role, prefix in prefixes.items()
        }

    @cached_property
    def space(self) -> VectorSpace:
        return _adapted_space(self.model.space, self.adaptation)

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode texts as `Encoder.encode` does, adapted. Raises what it raises."""
        require_heads(outputs, self.space.outputs)
        adapted_texts = [self.adaptation.text(text) for text in require_texts(texts)]
        embeddings = self._encoders[role].encode(adapted_texts, role=role)
        padding = self.dimension - embeddings.dense.shape[1]
        dense = np.pad(embeddings.dense, ((0, 0), (0, padding)))  # [N, dimension]
        return replace(embeddings, fingerprint=self.fingerprint, dense_or_none=dense, form=self.space.form())


class _AdaptedTokenizer:
    """Another tokenizer with the adaptation's prefix and limit."""

    def __init__(self, tokenizer: TextTokenizer, adaptation: Adaptation, prefix: str | None) -> None:
        self._prefix = prefix
        self._tokenizer = tokenizer
        if adaptation.max_tokens is not None and isinstance(tokenizer, Tokenizer):
            self._tokenizer = tokenizer.with_max_tokens(adaptation.max_tokens)

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        return self._tokenizer(texts, prefix if self._prefix is None else self._prefix)


def _adapted_space(space: VectorSpace, adaptation: Adaptation) -> VectorSpace:
    """Return the model's own space where nothing is adapted; else one with a fingerprint of its own."""
    if not adaptation:
        return space
    dimension = adaptation.dimension or space.dimension
    description = canonical_json(asdict(adaptation)).decode()
    changes = {
        "dimension": dimension,
        "heads": ("dense",),
        "head_weights": None,
        "adapted": description,
        "verdicts": {},
    }
    return space.model_copy(update=changes)
