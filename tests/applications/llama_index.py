"""LlamaIndex's vector stores: vectors of metadata and text, where a column or field has the text alone, or none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.applications.application import Listing, encode_with
from tests.applications.sites import QdrantSite, UrlSite
from tests.migrate.doubles import TruthEncoder


class LlamaIndexStore:
    """What all of LlamaIndex's stores are asked alike."""

    _store: Any

    def __init__(self, encoder: TruthEncoder) -> None:
        self._schema = pytest.importorskip("llama_index.core.schema")
        self._types = pytest.importorskip("llama_index.core.vector_stores.types")
        self._encode = encode_with(encoder)

    def _node(self, key: str, text: str) -> Any:
        node = self._schema.TextNode(id_=key, text=text, metadata={"title": f"title of {text}"})
        node.embedding = self._encode(node.get_content(metadata_mode=self._schema.MetadataMode.EMBED))
        return node

    def add(self, key: str, text: str) -> None:
        self._store.delete_nodes([key])
        self._store.add([self._node(key, text)])

    def remove(self, key: str) -> None:
        self._store.delete_nodes([key])

    def read(self, key: str) -> str | None:
        nodes = self._store.get_nodes([key])
        return nodes[0].get_content() if nodes else None

    def first(self, text: str) -> str | None:
        query = self._types.VectorStoreQuery(query_embedding=self._node("query", text).embedding, similarity_top_k=1)
        nodes = self._store.query(query).nodes
        return nodes[0].get_content() if nodes else None


class LlamaIndexApplication(LlamaIndexStore):
    """PGVectorStore, which calls the table `data_` and the name that it is given."""

    listing = Listing(
        "LlamaIndex `PGVectorStore`",
        "llama-index-vector-stores-postgres",
        "data_docs",
        "llama-index",
        layout="LlamaIndex PGVectorStore",
    )
    site = "postgres"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        super().__init__(encoder)
        self._store = pytest.importorskip("llama_index.vector_stores.postgres").PGVectorStore.from_params(
            connection_string=site.sqlalchemy_url("psycopg2"),
            async_connection_string=site.sqlalchemy_url("asyncpg"),
            table_name=collection.removeprefix("data_"),
            embed_dim=encoder.dimension,
        )

    def close(self) -> None:
        self._store._engine.dispose()


class LlamaIndexQdrantApplication(LlamaIndexStore):
    """QdrantVectorStore, which keeps a node as JSON in the payload and has no field with the text."""

    listing = Listing(
        "LlamaIndex `QdrantVectorStore`",
        "llama-index-vector-stores-qdrant",
        "docs",
        "llama-index",
        vector="",
        follows_switch=False,
        layout="LlamaIndex",
    )
    site = "qdrant"

    def __init__(self, site: QdrantSite, encoder: TruthEncoder, collection: str) -> None:
        super().__init__(encoder)
        vectorstore = pytest.importorskip("llama_index.vector_stores.qdrant").QdrantVectorStore
        self._store = vectorstore(collection, client=site.client)

    def add(self, key: str, text: str) -> None:
        self._store.add([self._node(key, text)])

    def close(self) -> None:
        """Leave the client to the site."""
