"""What the two classes of other libraries share: what has no effect here, what is refused, and limits in tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import Embeddings, Int64, Outputs
from vecferry.encode.encoder import Encoder, Role, TextEncoder, TextTokenizer
from vecferry.encode.loading import LazyEncoder
from vecferry.errors import ArgumentRefused, MemberRefused

C = TypeVar("C", bound=type)
log = logging.getLogger("vecferry")


@dataclass(frozen=True)
class Deviations:
    """How a class differs from another library's, by the names of arguments and members.

    no_effect: accepted, and why it changes nothing. refused: the way out, as a sentence.
    """

    no_effect: Mapping[str, str]
    refused: Mapping[str, str]

    def ignore(self, **arguments: object) -> None:
        """Log each argument that was given and has no effect. Raises ArgumentRefused for a count below 1."""
        for name, value in arguments.items():
            if name in ("batch_size", "chunk_size") and value is not None:
                require_count(name, value)
            if value not in (None, False):
                log.debug("%s=%r has no effect: %s", name, value, self.no_effect[name])

    def refuse(self, **arguments: object) -> None:
        """Raise ArgumentRefused for the first argument that was given."""
        for name, value in arguments.items():
            if value is not None:
                raise ArgumentRefused(name, value, self.refused[name])

    def applied_to(self, members: tuple[str, ...]) -> Callable[[C], C]:
        """Return a decorator that lets a class refuse these members by name."""

        def decorated(kind: C) -> C:
            for name in members:
                setattr(kind, name, _Refused(kind.__name__, name, self.refused[name]))
            return kind

        return decorated


@dataclass(frozen=True)
class _Refused:
    """A member that other libraries have; `hasattr` says that it is not there."""

    kind: str
    name: str
    remedy: str

    def __get__(self, _: object, __: type) -> NoReturn:
        raise MemberRefused(self.kind, self.name, self.remedy)


def require_count(name: str, value: object) -> None:
    """Raise ArgumentRefused for what is not a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentRefused(name, value, "Give a whole number from 1.")


@dataclass(frozen=True)
class MaxTokens:
    """The longest text that an application expects, under the argument's name. Longer ones are refused, not cut."""

    name: str
    value: int

    def check(self, lengths: Int64, model_tokens: int) -> None:
        """Check lengths in tokens [N]. Raises ArgumentRefused for the longest text over the limit."""
        longest = int(lengths.argmax())
        if lengths[longest] > self.value:
            remedy = (
                f"Text {longest} has {lengths[longest]} tokens or more, and only the model's end cuts, "
                f"at {model_tokens}: leave {self.name} out, or shorten the text."
            )
            raise ArgumentRefused(self.name, self.value, remedy)


def max_tokens_of(name: str, value: int | None, encoder: TextEncoder) -> MaxTokens | None:
    """Return a limit that is below the model's; None where nothing need be checked. Raises ArgumentRefused."""
    if value is None:
        return None
    require_count(name, value)
    if value > (most := encoder.space.max_tokens):
        raise ArgumentRefused(name, value, f"The model reads {most} tokens: leave it out, or give {most} at most.")
    return MaxTokens(name, value) if value < most else None


def encode_within(
    encoder: TextEncoder, texts: list[str], limit: MaxTokens | None, *, outputs: Outputs, role: Role
) -> Embeddings:
    """Encode texts of which none is over the limit; checked before the model runs, of a server's answer after it."""
    tokenizer = None if limit is None else tokenizer_of(encoder)
    if limit is not None and tokenizer is not None:
        limit.check(tokenizer(texts, encoder.space.prefix(role)).lengths, encoder.space.max_tokens)
    embeddings = encoder.encode(texts, outputs=outputs, role=role)
    if limit is not None and tokenizer is None:
        limit.check(embeddings.num_tokens, encoder.space.max_tokens)
    return embeddings


def tokenizer_of(encoder: TextEncoder) -> TextTokenizer | None:
    """Return the tokenizer of an encoder in this process; None of one on a server."""
    local = encoder.get().encoder if isinstance(encoder, LazyEncoder) else encoder
    return local.tokenizer if isinstance(local, Encoder) else None


def truncated(vectors: NDArray[Any], dimension: int | None) -> NDArray[Any]:
    """Return the first numbers of each vector, [..., dimension]; all without a dimension."""
    return vectors if dimension is None else np.ascontiguousarray(vectors[..., :dimension])


def normalized(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return vectors [..., dimension] of unit length; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[Any] = vectors / np.maximum(lengths, 1e-12)  # as torch.nn.functional.normalize
    return unit
