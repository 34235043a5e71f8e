"""Haystack's text and document embedders, dense and sparse.

In a pipeline's file the encoder is a mapping, `encoder: {artifact: models/bge-m3-onnx}`; Haystack reads such a file
with `Pipeline.load(..., allowed_modules=["vecferry.integrations.haystack"])`. An asynchronous pipeline runs
components like these in a thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from vecferry.embeddings import DENSE, Embeddings, Outputs
from vecferry.errors import MissingExtra, WrongInputType
from vecferry.integrations.connecting import Connection, EncoderLike, connection_to, opened

try:
    from haystack import Document, component, default_to_dict
    from haystack.dataclasses import SparseEmbedding
except ImportError as exc:
    raise MissingExtra("haystack", "haystack") from exc


class _Embedder:
    def __init__(self, encoder: EncoderLike) -> None:
        self._encoder = encoder

    def warm_up(self) -> None:
        """Load the model, or reach the server; otherwise the first run does. Raises VecferryError."""
        _ = opened(self._encoder).fingerprint

    def to_dict(self) -> dict[str, Any]:
        return default_to_dict(self, encoder=connection_to(self._encoder).to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        parameters = data["init_parameters"]
        built: Self = cls(**{**parameters, "encoder": Connection(**parameters["encoder"])})
        return built


class _TextEmbedder(_Embedder):
    def _embed(self, text: object, outputs: Outputs) -> Embeddings:
        if not isinstance(text, str):
            kind, remedy = type(text).__name__, "A DocumentEmbedder takes a list of Documents."
            raise WrongInputType(f"a string for {type(self).__name__}", kind, remedy)
        return opened(self._encoder).encode([text], outputs=outputs, role="query")


class _DocumentEmbedder(_Embedder):
    """The common part of document embedders.

    meta_fields_to_embed: whose values come before the content, all joined by `embedding_separator`.
    """

    def __init__(
        self,
        encoder: EncoderLike,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        self._encoder = encoder
        self._fields = meta_fields_to_embed or []
        self._separator = embedding_separator

    def to_dict(self) -> dict[str, Any]:
        encoder, fields = connection_to(self._encoder).to_dict(), self._fields
        return default_to_dict(self, encoder=encoder, meta_fields_to_embed=fields, embedding_separator=self._separator)

    def _embed(self, documents: object, outputs: Outputs) -> Embeddings:
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            kind, remedy = type(documents).__name__, "A TextEmbedder takes a string."
            raise WrongInputType(f"a list of Documents for {type(self).__name__}", kind, remedy)
        texts = [self._text_of(document) for document in documents]
        return opened(self._encoder).encode(texts, outputs=outputs, role="passage")

    def _text_of(self, document: Document) -> str:
        values = [str(document.meta[field]) for field in self._fields if document.meta.get(field) is not None]
        return self._separator.join([*values, document.content or ""])


@component
class VecferryTextEmbedder(_TextEmbedder):
    """A component that adds the dense vector of a query. Raises VecferryError."""

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        return {"embedding": self._embed(text, DENSE).dense[0].tolist()}


@component
class VecferryDocumentEmbedder(_DocumentEmbedder):
    """A component that copies documents, each with its dense vector. Raises VecferryError."""

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        vectors = self._embed(documents, DENSE).dense.tolist() if documents != [] else []
        return {"documents": [replace(d, embedding=v) for d, v in zip(documents, vectors, strict=True)]}


@component
class VecferrySparseTextEmbedder(_TextEmbedder):
    """A component that adds the lexical weights of a query. Raises VecferryError."""

    @component.output_types(sparse_embedding=SparseEmbedding)
    def run(self, text: str) -> dict[str, Any]:
        return {"sparse_embedding": _sparse(self._embed(text, Outputs.SPARSE))[0]}


@component
class VecferrySparseDocumentEmbedder(_DocumentEmbedder):
    """A component that copies documents, each with its lexical weights. Raises VecferryError."""

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        vectors = _sparse(self._embed(documents, Outputs.SPARSE)) if documents != [] else []
        return {"documents": [replace(d, sparse_embedding=v) for d, v in zip(documents, vectors, strict=True)]}


def _sparse(embeddings: Embeddings) -> list[SparseEmbedding]:
    rows = [embeddings.sparse.row(i) for i in range(len(embeddings))]
    return [SparseEmbedding(indices=list(row), values=list(row.values())) for row in rows]
