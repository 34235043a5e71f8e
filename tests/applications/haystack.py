"""Haystack's document store."""

from __future__ import annotations

import pytest

from tests.applications.application import Listing, encode_with
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder


class HaystackApplication:
    """PgvectorDocumentStore, on one connection that commits each statement by itself and keeps it prepared.

    Its embedder was told `meta_fields_to_embed=["title"]`.
    """

    listing = Listing(
        "Haystack `PgvectorDocumentStore`",
        "pgvector-haystack",
        "haystack_documents",
        "haystack(title)",
        prepares_all_columns=True,
        layout="Haystack",
    )
    site = "postgres"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        module = pytest.importorskip("haystack_integrations.document_stores.pgvector")
        retrievers = pytest.importorskip("haystack_integrations.components.retrievers.pgvector")
        secret = pytest.importorskip("haystack.utils").Secret.from_token(site.url)
        self._document = pytest.importorskip("haystack").Document
        self._policy = pytest.importorskip("haystack.document_stores.types").DuplicatePolicy.OVERWRITE
        self._encode = encode_with(encoder)
        self._store = module.PgvectorDocumentStore(
            connection_string=secret, embedding_dimension=encoder.dimension, create_extension=False
        )
        self._retriever = retrievers.PgvectorEmbeddingRetriever(document_store=self._store, top_k=1)

    def add(self, key: str, text: str) -> None:
        meta = {"title": _title(text)}
        document = self._document(id=key, content=text, meta=meta, embedding=self._encode(f"{_title(text)}\n{text}"))
        self._store.write_documents([document], policy=self._policy)

    def remove(self, key: str) -> None:
        self._store.delete_documents([key])

    def read(self, key: str) -> str | None:
        selected = {"field": "id", "operator": "==", "value": key}
        documents = self._store.filter_documents(selected)
        return documents[0].content if documents else None

    def first(self, text: str) -> str | None:
        documents = self._retriever.run(query_embedding=self._encode(f"{_title(text)}\n{text}"))["documents"]
        return documents[0].content if documents else None

    def close(self) -> None:
        self._store._connection.close()


def _title(text: str) -> str:
    return f"title of {text}"
