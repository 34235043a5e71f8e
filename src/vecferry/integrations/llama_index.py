"""LlamaIndex's embedding model, and the sparse functions of its Qdrant store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from vecferry.embeddings import Float32, Outputs
from vecferry.encode.encoder import Role
from vecferry.errors import MissingExtra
from vecferry.integrations.connecting import Connection, EncoderLike, connection_to, opened
from vecferry.model.texts import as_texts

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
except ImportError as exc:
    raise MissingExtra("llama-index", "llama_index") from exc

SparseFunction = Callable[[list[str]], tuple[list[list[int]], list[list[float]]]]


class VecferryEmbedding(BaseEmbedding):
    """LlamaIndex's embedding: dense vectors. connection: by which `to_dict` and a pickle find the encoder again.

    `to_dict` says the vector space, so that LlamaIndex's ingestion cache does not outlive a change of model.
    """

    connection: Connection | None = None
    _encoder: Any = PrivateAttr(default=None)

    def __init__(
        self,
        encoder: EncoderLike | None = None,
        *,
        connection: Connection | None = None,
        model_name: str = "vecferry",
        embed_batch_size: int = 256,
        **fields: Any,
    ) -> None:
        """Wrap an encoder, or else the one at a connection. fields: BaseEmbedding's others."""
        connection = encoder if isinstance(encoder, Connection) else connection
        super().__init__(connection=connection, model_name=model_name, embed_batch_size=embed_batch_size, **fields)
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        return "VecferryEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().to_dict(**kwargs), "connection": connection_to(self._source).pinned().to_dict()}

    def __getstate__(self) -> dict[str, Any]:
        """Keep the encoder: LlamaIndex leaves out what cannot be pickled, and says so in a log alone."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "encoder": self._encoder}}

    @property
    def _source(self) -> EncoderLike:
        return self._encoder or self.connection or Connection()

    def _embed(self, texts: list[str], role: Role) -> Float32:
        return opened(self._source).encode(texts, role=role).dense

    def get_text_embedding_batch(self, texts: list[str], *arguments: Any, **named: Any) -> list[list[float]]:
        """Embed texts as LlamaIndex does; all are checked before the first batch. Raises VecferryError."""
        return super().get_text_embedding_batch(as_texts(texts), *arguments, **named)

    async def aget_text_embedding_batch(self, texts: list[str], *arguments: Any, **named: Any) -> list[list[float]]:
        return await super().aget_text_embedding_batch(as_texts(texts), *arguments, **named)

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embed([query], "query")[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embed(texts, "passage").tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


def sparse_functions(encoder: EncoderLike) -> tuple[SparseFunction, SparseFunction]:
    """Return `sparse_doc_fn` and `sparse_query_fn` of QdrantVectorStore: texts -> token ids and weights."""
    return partial(_sparse, encoder, role="passage"), partial(_sparse, encoder, role="query")


def _sparse(encoder: EncoderLike, texts: list[str], *, role: Role) -> tuple[list[list[int]], list[list[float]]]:
    sparse = opened(encoder).encode(texts, outputs=Outputs.SPARSE, role=role).sparse
    rows = [sparse.row(i) for i in range(len(sparse))]
    return [list(row) for row in rows], [list(row.values()) for row in rows]
