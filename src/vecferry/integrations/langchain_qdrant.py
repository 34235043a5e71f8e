"""Sparse vectors for the hybrid search of LangChain's Qdrant store."""

from __future__ import annotations

from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Role
from vecferry.errors import MissingExtra
from vecferry.integrations.connecting import EncoderLike, opened
from vecferry.model.texts import as_texts

try:
    from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
except ImportError as exc:
    raise MissingExtra("langchain", "langchain_qdrant") from exc


class VecferrySparseEmbeddings(SparseEmbeddings):
    """Lexical weights by token id. Set `RetrievalMode.HYBRID` and no IDF modifier: the weights are final."""

    def __init__(self, encoder: EncoderLike) -> None:
        self._encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Return one vector per text, in the order given. Raises VecferryError, HeadUnavailable among them."""
        texts = as_texts(texts)
        return self._embed(texts, "passage") if texts else []

    def embed_query(self, text: str) -> SparseVector:
        """Return the lexical weights of a query. Raises VecferryError, HeadUnavailable among them."""
        return self._embed([text], "query")[0]

    def _embed(self, texts: list[str], role: Role) -> list[SparseVector]:
        sparse = opened(self._encoder).encode(texts, outputs=Outputs.SPARSE, role=role).sparse
        rows = [sparse.row(i) for i in range(len(sparse))]
        return [SparseVector(indices=list(row), values=list(row.values())) for row in rows]
