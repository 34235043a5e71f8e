"""LangChain's vector stores."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import psycopg
import pytest
from qdrant_client import models

from tests.applications.application import Listing, encode_with
from tests.applications.sites import QdrantSite, UrlSite
from tests.migrate.doubles import TruthEncoder
from tests.stores.backends import import_or_skip
from tests.stores.backends_chroma import http_client


def langchain_model(encoder: TruthEncoder) -> Any:
    """Return the encoder as LangChain's Embeddings."""
    encode = encode_with(encoder)

    class Model(pytest.importorskip("langchain_core.embeddings").Embeddings):  # type: ignore[misc]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [encode(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return encode(text)

    return Model()


class LangChainStore:
    """What all of LangChain's stores are asked alike."""

    _store: Any

    def add(self, key: str, text: str) -> None:
        self._store.add_texts([text], metadatas=[{"source": "a.txt"}], ids=[key])

    def remove(self, key: str) -> None:
        self._store.delete([key])

    def read(self, key: str) -> str | None:
        documents = self._store.get_by_ids([key])
        return documents[0].page_content if documents else None

    def first(self, text: str) -> str | None:
        documents = self._store.similarity_search(text, k=1)
        return documents[0].page_content if documents else None


class PGVectorApplication(LangChainStore):
    """One table holds many collections, and its vectors have no fixed number of dimensions."""

    listing = Listing(
        "LangChain `PGVector`",
        "langchain-postgres",
        "langchain_pg_embedding",
        "langchain",
        layout="LangChain PGVector",
        found_text="document",
    )
    site = "postgres"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        vectorstore = pytest.importorskip("langchain_postgres").PGVector
        connection = site.sqlalchemy_url("psycopg")
        self._store = vectorstore(langchain_model(encoder), connection=connection, collection_name="docs")

    def close(self) -> None:
        self._store._engine.dispose()


class PGVectorStoreApplication(LangChainStore):
    """A table for each collection."""

    listing = Listing(
        "LangChain `PGVectorStore`",
        "langchain-postgres",
        "docs",
        "langchain",
        layout="LangChain PGVectorStore",
        found_text="content",
    )
    site = "postgres"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        package = pytest.importorskip("langchain_postgres")
        self._engine = package.PGEngine.from_connection_string(site.sqlalchemy_url("psycopg"))
        with psycopg.connect(site.url) as connection:
            (is_there,) = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [collection]).fetchone() or (False,)
        if not is_there:
            self._engine.init_vectorstore_table(collection, encoder.dimension)
        self._store = package.PGVectorStore.create_sync(self._engine, langchain_model(encoder), collection)

    def close(self) -> None:
        self._engine._run_as_sync(self._engine.close())


class ChromaApplication(LangChainStore):
    """A collection on a server, which LangChain makes with the metric l2 if it is told nothing."""

    listing = Listing(
        "LangChain `Chroma`", "langchain-chroma", "docs", "langchain", follows_switch=False, found_text="document"
    )
    site = "chroma"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        vectorstore = pytest.importorskip("langchain_chroma").Chroma
        self._connection = http_client(site.url)
        self._store = vectorstore(collection, langchain_model(encoder), client=self._connection.__enter__())

    def close(self) -> None:
        self._connection.__exit__(None, None, None)


class QdrantApplication(LangChainStore):
    """An alias, which is pointed to the new collection at the switch."""

    listing = Listing(
        "LangChain `QdrantVectorStore`, by an alias",
        "langchain-qdrant",
        "docs",
        "page_content",
        vector="",
        layout="LangChain",
    )
    site = "qdrant"

    def __init__(self, site: QdrantSite, encoder: TruthEncoder, collection: str) -> None:
        vectorstore = pytest.importorskip("langchain_qdrant").QdrantVectorStore
        if not site.client.collection_exists(collection):
            space = models.VectorParams(size=encoder.dimension, distance=models.Distance.COSINE)
            site.client.create_collection("docs_2026", space)
            alias = models.CreateAlias(collection_name="docs_2026", alias_name=collection)
            site.client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        self._store = vectorstore(site.client, collection, langchain_model(encoder))

    def close(self) -> None:
        """Leave the client to the site."""


def words_model() -> Any:
    """Return a model of LangChain's that makes a sparse vector of the words of a text."""
    package = pytest.importorskip("langchain_qdrant")

    class Words(package.SparseEmbeddings):  # type: ignore[misc,name-defined]
        def embed_query(self, text: str) -> Any:
            words = sorted({crc32(word.encode()) % 2**31 for word in text.split()})
            return package.SparseVector(indices=words, values=[1.0] * len(words))

        def embed_documents(self, texts: list[str]) -> list[Any]:
            return [self.embed_query(text) for text in texts]

    return Words()


class QdrantHybridApplication(LangChainStore):
    """An alias of a collection with a dense and a sparse vector, both of which are asked."""

    listing = Listing(
        "LangChain `QdrantVectorStore`, `RetrievalMode.HYBRID`, by an alias",
        "langchain-qdrant",
        "docs",
        "page_content",
        vector="dense",
        layout="LangChain",
    )
    site = "qdrant"

    def __init__(self, site: QdrantSite, encoder: TruthEncoder, collection: str) -> None:
        package = pytest.importorskip("langchain_qdrant")
        if not site.client.collection_exists(collection):
            space = models.VectorParams(size=encoder.dimension, distance=models.Distance.COSINE)
            words = {"langchain-sparse": models.SparseVectorParams()}
            site.client.create_collection("docs_2026", {"dense": space}, words)
            alias = models.CreateAlias(collection_name="docs_2026", alias_name=collection)
            site.client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        self._client, self._collection = site.client, collection
        self._store = package.QdrantVectorStore(
            site.client,
            collection,
            langchain_model(encoder),
            retrieval_mode=package.RetrievalMode.HYBRID,
            vector_name="dense",
            sparse_embedding=words_model(),
        )

    def first(self, text: str) -> str | None:
        """Return what is found by both vectors; the sparse one alone must find the same."""
        words = words_model().embed_query(text)
        query = models.SparseVector(indices=words.indices, values=words.values)
        (by_words,) = self._client.query_points(self._collection, query, using="langchain-sparse", limit=1).points
        found = super().first(text)
        assert by_words.payload is not None
        assert by_words.payload["page_content"] == found
        return found

    def close(self) -> None:
        """Leave the client to the site."""


class MilvusApplication(LangChainStore):
    """A collection that is divided by a partition key. It cannot read by key, which its client is asked for."""

    listing = Listing(
        "LangChain `Milvus`, with `partition_key_field`",
        "langchain-milvus",
        "docs",
        "langchain",
        vector="vector",
        key="pk",
        follows_switch=False,
        found_text="text",
    )
    site = "milvus"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        vectorstore = pytest.importorskip("langchain_milvus").Milvus
        self._collection = collection
        self._store = vectorstore(
            langchain_model(encoder),
            collection,
            connection_args={"uri": site.url.removeprefix("milvus://")},
            consistency_level="Strong",
            partition_key_field="tenant",
        )

    def add(self, key: str, text: str) -> None:
        if self._store.col is not None:
            self.remove(key)
        self._store.add_texts([text], metadatas=[{"tenant": f"tenant {key[7]}"}], ids=[key])

    def read(self, key: str) -> str | None:
        found = self._store.client.query(self._collection, f'pk == "{key}"', output_fields=["text", "tenant"])
        assert all(row["tenant"] == f"tenant {key[7]}" for row in found)
        return found[0]["text"] if found else None

    def first(self, text: str) -> str | None:
        """Return what is found in the partition of the tenant whose text it is."""
        (found,) = self._store.similarity_search(text, k=1)
        (again,) = self._store.similarity_search(text, k=1, expr=f'tenant == "{found.metadata["tenant"]}"')
        assert again.page_content == found.page_content
        return str(found.page_content)

    def close(self) -> None:
        self._store.client.close()


class SQLiteVecApplication(LangChainStore):
    """A table and its vec0 table. It can only add: what is removed, and what has which key, is asked by SQL."""

    listing = Listing(
        "LangChain `SQLiteVec`",
        "langchain-community",
        "docs",
        "text",
        vector="text_embedding",
        key="rowid",
        layout="LangChain SQLiteVec",
        follows_switch=False,
    )
    site = "sqlite"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        vectorstore = pytest.importorskip("langchain_community.vectorstores").SQLiteVec
        sqlite = import_or_skip("vecferry.stores.sqlite_vec")._loadable()
        self._connection = sqlite.connect(site.url.removeprefix("sqlite://"))
        self._connection.row_factory = sqlite.Row
        self._connection.enable_load_extension(True)  # noqa: FBT003  # sqlite3's
        pytest.importorskip("sqlite_vec").load(self._connection)
        self._collection = collection
        self._store = vectorstore(collection, self._connection, langchain_model(encoder))

    def add(self, key: str, text: str) -> None:
        self.remove(key)
        self._store.add_texts([text], metadatas=[{"key": key}])

    def remove(self, key: str) -> None:
        rows = f"SELECT rowid FROM {self._collection} WHERE metadata ->> 'key' = ?"
        for (rowid,) in self._connection.execute(rows, [key]).fetchall():
            for table in (self._collection, f"{self._collection}_vec"):
                self._connection.execute(f"DELETE FROM {table} WHERE rowid = ?", [rowid])
        self._connection.commit()

    def read(self, key: str) -> str | None:
        query = f"SELECT text FROM {self._collection} WHERE metadata ->> 'key' = ?"
        row = self._connection.execute(query, [key]).fetchone()
        return row["text"] if row else None

    def close(self) -> None:
        self._connection.close()
