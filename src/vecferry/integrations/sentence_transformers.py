"""The shape of sentence-transformers 5 and 6, without that library.

An argument of theirs that says how the work is done (batch_size, show_progress_bar, device, ...) is accepted and has
no effect: the encoder plans its own batches. One that says what comes out does as theirs does, or is refused by a
SettingsError. What theirs returns as a tensor is one here only where a tensor was asked for or given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import Float32
from vecferry.errors import MissingExtra, SettingsError
from vecferry.integrations.connecting import EncoderLike, located, opened
from vecferry.model.prompts import PROMPT_ROLES, Role
from vecferry.model.texts import as_texts

T = TypeVar("T")


class SentenceTransformer:
    """Sentence-transformers' model, on an artifact's folder, a server's URL, or an encoder that is open already.

    prompts: by name; those of the model are "query" and "document", which other names of `PROMPT_ROLES` stand for too.
    default_prompt_name: what `encode` puts before a text where the call does not say; by default "document" if the
    model has such a prefix, else none.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | EncoderLike,
        *,
        device: str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        token: bool | str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        """Open the model. Raises VecferryError.

        device, cache_folder, trust_remote_code, local_files_only, token: no effect.
        """
        self._encoder = opened(located(model_name_or_path))
        space = self._encoder.space
        self.prompts = {"query": space.query_prefix, "document": space.passage_prefix, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or ("document" if space.passage_prefix else None)
        self.truncate_dim = truncate_dim

    def encode(
        self,
        sentences: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        precision: Literal["float32"] | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        inputs: str | Sequence[str] | None = None,
        task: Literal["query", "document"] | None = None,
    ) -> Any:
        """Encode to float32 [dimension] for a string, [len(sentences), dimension] for a list, [0] for an empty one.

        convert_to_tensor: the same as a tensor. Neither that nor convert_to_numpy: a list of tensors. inputs: what
        version 6 calls sentences. batch_size, show_progress_bar, device: no effect.
        Raises SettingsError for another output_value or precision and for an unknown prompt, MissingExtra for a
        tensor without PyTorch, and as the encoder does.
        """
        _one_of("output_value", output_value, ("sentence_embedding",))
        _one_of("precision", precision or "float32", ("float32",))
        value: Any = sentences if inputs is None else inputs
        texts = as_texts([value] if isinstance(value, str) else value)
        role, prefix = self._prompt(prompt, prompt_name, task)
        if prefix:
            texts = [prefix + text for text in texts]
        vectors = self._encode(texts, role, truncate_dim or self.truncate_dim)
        if normalize_embeddings:
            vectors = _normalized(vectors)
        rows = _tensor(vectors) if convert_to_tensor or not convert_to_numpy else vectors
        rows = rows if convert_to_tensor or convert_to_numpy else list(rows)
        return rows[0] if isinstance(value, str) else rows

    def encode_query(self, *arguments: Any, **named: Any) -> Any:
        """Encode with the prompt "query", where the call names none."""
        return self.encode(*arguments, **named, task="query")

    def encode_document(self, *arguments: Any, **named: Any) -> Any:
        """Encode with the prompt "document", where the call names none."""
        return self.encode(*arguments, **named, task="document")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return cosines, float32 [len(embeddings1), len(embeddings2)]; a tensor if the first are tensors."""
        a, b = (_normalized(np.atleast_2d(_array(part))) for part in (embeddings1, embeddings2))
        return _as_given(a @ b.T, embeddings1)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return cosines, float32 [len(embeddings1)], of pairs at the same place; a tensor if the first are."""
        a, b = (_normalized(_array(part)) for part in (embeddings1, embeddings2))
        return _as_given((a * b).sum(axis=-1), embeddings1)

    def get_embedding_dimension(self) -> int:
        return min(self._encoder.dimension, self.truncate_dim or self._encoder.dimension)

    def get_sentence_embedding_dimension(self) -> int:
        return self.get_embedding_dimension()

    @property
    def max_seq_length(self) -> int:
        """The limit in tokens; longer texts are cut. It is the model's, and cannot be set to anything else."""
        return self._encoder.space.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        _one_of("max_seq_length", value, (self.max_seq_length,))

    def _prompt(self, prompt: str | None, prompt_name: str | None, task: str | None) -> tuple[Role, str]:
        """Split a prompt into the role whose prefix begins it, and the rest, which goes before the text.

        The encoder puts one of the two prefixes before every text: SettingsError for a prompt that begins with neither.
        """
        name, space = prompt_name or task or self.default_prompt_name, self._encoder.space
        if prompt is None and name is not None:
            known = {alias: space.prefix(role) for alias, role in PROMPT_ROLES.items()} | self.prompts
            prompt = known[_one_of("prompt_name", name, tuple(known))]
        prompt = prompt or ""
        prefixes: dict[Role, str] = {"passage": space.passage_prefix, "query": space.query_prefix}
        for role in sorted(prefixes, key=lambda role: role != task):
            if prompt.startswith(prefixes[role]):
                return role, prompt.removeprefix(prefixes[role])
        raise SettingsError("prompt", repr(prompt), f"it to begin with a prefix of the model: {prefixes}")

    def _encode(self, texts: list[str], role: Role, dimension: int | None) -> NDArray[Any]:
        if not texts:
            return np.array([])
        return self._encoder.encode(texts, role=role).dense[:, :dimension]


def _one_of(name: str, value: T, allowed: tuple[T, ...]) -> T:
    if value not in allowed:
        raise SettingsError(name, value, " or ".join(map(str, allowed)))
    return value


def _normalized(vectors: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[Any] = vectors / np.maximum(lengths, 1e-12)  # as torch.nn.functional.normalize
    return unit


def _array(vectors: Any) -> Float32:
    """Convert an array, a tensor, or a list of either."""
    if isinstance(vectors, list):
        return np.stack([_array(vector) for vector in vectors])
    return np.asarray(vectors.detach().cpu() if hasattr(vectors, "detach") else vectors, np.float32)


def _as_given(scores: Float32, embeddings: Any) -> Any:
    first = embeddings[0] if isinstance(embeddings, list) else embeddings
    return _tensor(scores) if hasattr(first, "detach") else scores


def _tensor(array: NDArray[Any]) -> Any:
    try:
        import torch
    except ImportError as exc:
        raise MissingExtra("torch", "torch") from exc
    return torch.from_numpy(array.astype(np.float32))
