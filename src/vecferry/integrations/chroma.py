"""Chroma's embedding function.

A collection keeps its function's connection and vector space. Opened again, by whatever process, it refuses a
model of another space; the module has to be imported first, so that Chroma knows the function's name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vecferry.encode.encoder import Role
from vecferry.errors import MissingExtra
from vecferry.integrations.connecting import Connection, EncoderLike, connection_to, opened
from vecferry.precisions import Mark

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as exc:
    raise MissingExtra("chroma", "chromadb") from exc


@register_embedding_function
class VecferryEmbeddingFunction(EmbeddingFunction[Documents]):
    """Chroma's embedding function: dense vectors; cosine distance, unless the collection says otherwise."""

    def __init__(self, encoder: EncoderLike) -> None:
        self._encoder = encoder

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002, the protocol's name
        """Embed documents, float32 [dimension] each. Raises VecferryError."""
        return self._embed(input, "passage")

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Embed queries, float32 [dimension] each. Raises VecferryError."""
        return self._embed(input, "query")

    def _embed(self, texts: Documents, role: Role) -> Embeddings:
        return [np.asarray(vector) for vector in opened(self._encoder).encode(texts, role=role).dense]

    @staticmethod
    def name() -> str:
        return "vecferry"

    def default_space(self) -> Space:
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return the connection, pinned to its present vector space, for which it is opened. Raises VecferryError."""
        return connection_to(self._encoder).pinned().to_dict()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> VecferryEmbeddingFunction:
        """Build the function from a stored configuration; loads nothing yet."""
        return VecferryEmbeddingFunction(Connection(**config))

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise SettingsError, and TypeError for a name that a connection does not have."""
        Connection(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Accept another address, but not another space. Raises SpaceMismatch."""
        expected, fingerprint = old_config["fingerprint"], new_config["fingerprint"]
        Mark.parse(fingerprint).require(Mark.parse(expected), "query", "the new embedding function")
