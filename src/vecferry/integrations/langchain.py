"""LangChain's embeddings; the sparse ones are in langchain_qdrant.py."""

from __future__ import annotations

from vecferry.errors import MissingExtra
from vecferry.integrations.connecting import EncoderLike, opened
from vecferry.model.texts import as_texts

try:
    from langchain_core.embeddings import Embeddings
except ImportError as exc:
    raise MissingExtra("langchain", "langchain_core") from exc


class VecferryEmbeddings(Embeddings):
    """LangChain's embeddings: dense vectors. The asynchronous forms, LangChain's own, run these in a thread."""

    def __init__(self, encoder: EncoderLike) -> None:
        self._encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text, in the order given. Raises VecferryError."""
        texts = as_texts(texts)
        if not texts:
            return []
        vectors: list[list[float]] = opened(self._encoder).encode(texts, role="passage").dense.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query. Raises VecferryError."""
        vector: list[float] = opened(self._encoder).encode([text], role="query").dense[0].tolist()
        return vector
