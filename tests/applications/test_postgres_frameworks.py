"""Applications that know nothing of us: the framework's own client, in which only the model is another one.

The real packages, at the versions of `requirements.txt` beside this file; a package that is not there is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.pgvector import PgVectorStore

pytestmark = pytest.mark.slow
OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
Encode = Callable[[str], list[float]]


class Application(Protocol):
    """A framework's store with one model."""

    def add(self, key: str, text: str) -> None:
        """Write a document, new or replaced."""

    def remove(self, key: str) -> None: ...

    def first(self, text: str) -> str | None:
        """Return the text of the document nearest to this one."""

    def close(self) -> None: ...


def encode_with(encoder: TruthEncoder) -> Encode:
    return lambda text: [float(number) for number in encoder.encode([text]).dense[0]]


class LlamaIndexApplication:
    """PGVectorStore: vectors of metadata and text, of which the column has the text alone."""

    table, text = "data_docs", "llama-index"

    def __init__(self, url: str, encoder: TruthEncoder) -> None:
        store = pytest.importorskip("llama_index.vector_stores.postgres").PGVectorStore
        self._schema = pytest.importorskip("llama_index.core.schema")
        self._types = pytest.importorskip("llama_index.core.vector_stores.types")
        self._encode = encode_with(encoder)
        self._store = store.from_params(
            connection_string=sqlalchemy_url(url, "psycopg2"),
            async_connection_string=sqlalchemy_url(url, "asyncpg"),
            table_name="docs",
            embed_dim=encoder.dimension,
        )

    def _node(self, key: str, text: str) -> Any:
        node = self._schema.TextNode(id_=key, text=text, metadata={"title": f"title of {text}"})
        node.embedding = self._encode(node.get_content(metadata_mode=self._schema.MetadataMode.EMBED))
        return node

    def add(self, key: str, text: str) -> None:
        self._store.delete_nodes([key])
        self._store.add([self._node(key, text)])

    def remove(self, key: str) -> None:
        self._store.delete_nodes([key])

    def first(self, text: str) -> str | None:
        query = self._types.VectorStoreQuery(query_embedding=self._node("query", text).embedding, similarity_top_k=1)
        nodes = self._store.query(query).nodes
        return nodes[0].get_content() if nodes else None

    def close(self) -> None:
        self._store._engine.dispose()


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
    """What both of LangChain's stores are asked alike."""

    _store: Any

    def add(self, key: str, text: str) -> None:
        self._store.add_texts([text], ids=[key])

    def remove(self, key: str) -> None:
        self._store.delete([key])

    def first(self, text: str) -> str | None:
        documents = self._store.similarity_search(text, k=1)
        return documents[0].page_content if documents else None


class LangChainApplication(LangChainStore):
    """PGVector, whose table holds many collections and whose vectors have no fixed number of dimensions."""

    table, text = "langchain_pg_embedding", "document"

    def __init__(self, url: str, encoder: TruthEncoder) -> None:
        vectorstore = pytest.importorskip("langchain_postgres").PGVector
        connection = sqlalchemy_url(url, "psycopg")
        self._store = vectorstore(langchain_model(encoder), connection=connection, collection_name="docs")

    def close(self) -> None:
        self._store._engine.dispose()


class HaystackApplication:
    """PgvectorDocumentStore."""

    table, text = "haystack_documents", "content"

    def __init__(self, url: str, encoder: TruthEncoder) -> None:
        module = pytest.importorskip("haystack_integrations.document_stores.pgvector")
        retrievers = pytest.importorskip("haystack_integrations.components.retrievers.pgvector")
        secret = pytest.importorskip("haystack.utils").Secret.from_token(url)
        self._document = pytest.importorskip("haystack").Document
        self._policy = pytest.importorskip("haystack.document_stores.types").DuplicatePolicy.OVERWRITE
        self._encode = encode_with(encoder)
        self._store = module.PgvectorDocumentStore(
            connection_string=secret, embedding_dimension=encoder.dimension, create_extension=False
        )
        self._retriever = retrievers.PgvectorEmbeddingRetriever(document_store=self._store, top_k=1)

    def add(self, key: str, text: str) -> None:
        document = self._document(id=key, content=text, embedding=self._encode(text))
        self._store.write_documents([document], policy=self._policy)

    def remove(self, key: str) -> None:
        self._store.delete_documents([key])

    def first(self, text: str) -> str | None:
        documents = self._retriever.run(query_embedding=self._encode(text))["documents"]
        return documents[0].content if documents else None

    def close(self) -> None:
        self._store._connection.close()


class LangChainTableApplication(LangChainStore):
    """PGVectorStore, a table for each collection."""

    table, text = "docs", "content"

    def __init__(self, url: str, encoder: TruthEncoder) -> None:
        package = pytest.importorskip("langchain_postgres")
        self._engine = package.PGEngine.from_connection_string(sqlalchemy_url(url, "psycopg"))
        with psycopg.connect(url) as connection:
            (is_there,) = connection.execute("SELECT to_regclass('docs') IS NOT NULL").fetchone() or (False,)
        if not is_there:
            self._engine.init_vectorstore_table("docs", encoder.dimension)
        self._store = package.PGVectorStore.create_sync(self._engine, langchain_model(encoder), "docs")

    def close(self) -> None:
        self._engine._run_as_sync(self._engine.close())


class SupabaseApplication:
    """The schema of Supabase's guide: '# ' || title || content is embedded, rows have policies, a function searches."""

    table, text = "documents", "# {title}{content}"
    SCHEMA = """
        CREATE TABLE documents (id uuid PRIMARY KEY, title text, content text, embedding vector(8));
        ALTER TABLE documents ENABLE ROW LEVEL SECURITY;
        DO $$ BEGIN CREATE ROLE web; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT SELECT, INSERT, UPDATE, DELETE ON documents TO web;
        CREATE POLICY everybody ON documents FOR ALL TO web USING (true) WITH CHECK (title IS NOT NULL);
        CREATE FUNCTION match_documents(query_embedding vector(8), match_count int)
        RETURNS TABLE (content text, similarity float) LANGUAGE sql STABLE AS $$
            SELECT content, 1 - (embedding <=> query_embedding) FROM documents
            ORDER BY embedding <=> query_embedding LIMIT match_count
        $$;
    """

    def __init__(self, url: str, encoder: TruthEncoder) -> None:
        self._encode = encode_with(encoder)
        self._connection = psycopg.connect(url, autocommit=True)
        if self._connection.execute("SELECT to_regclass('documents')").fetchone() == (None,):
            self._connection.execute(self.SCHEMA)
        self._connection.execute("SET ROLE web")

    def add(self, key: str, text: str) -> None:
        title = f"Title of {text}. "
        self._connection.execute(
            "INSERT INTO documents (id, title, content, embedding)"
            " VALUES (%(id)s, %(title)s, %(content)s, %(vector)s::real[]) ON CONFLICT (id) DO UPDATE"
            " SET title = EXCLUDED.title, content = EXCLUDED.content, embedding = EXCLUDED.embedding",
            {"id": key, "title": title, "content": text, "vector": self._encode(f"# {title}{text}")},
        )

    def remove(self, key: str) -> None:
        self._connection.execute("DELETE FROM documents WHERE id = %s", [key])

    def first(self, text: str) -> str | None:
        vector = str(self._encode(f"# Title of {text}. {text}"))
        row = self._connection.execute("SELECT content FROM match_documents(%s, 1)", [vector]).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self._connection.close()


def sqlalchemy_url(url: str, driver: str) -> str:
    address = psycopg.conninfo.conninfo_to_dict(url)
    return f"postgresql+{driver}://{address['user']}@/{address['dbname']}?host={address['host']}"


APPLICATIONS = [
    LlamaIndexApplication,
    LangChainApplication,
    LangChainTableApplication,
    HaystackApplication,
    SupabaseApplication,
]


@pytest.fixture
def options(tmp_path: Path) -> MigrationOptions:
    return MigrationOptions(staging=tmp_path, min_free_gb=0)


@pytest.fixture
def opened(database_url: str) -> Iterator[Callable[[Any, TruthEncoder], Any]]:
    """Yield what opens an application with a model; all are closed at the end."""
    applications: list[Application] = []

    def open_one(kind: Any, encoder: TruthEncoder) -> Application:
        applications.append(kind(database_url, encoder))
        return applications[-1]

    yield open_one
    for application in applications:
        application.close()


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_a_framework_goes_on_before_during_and_after(
    kind: Any, opened: Callable[[Any, TruthEncoder], Any], database_url: str, options: MigrationOptions
) -> None:
    application = opened(kind, OLD)
    texts = {f"{i:08}-0000-4000-8000-000000000000": f"text number {i}" for i in range(12)}
    for key, text in texts.items():
        application.add(key, text)
    keys = list(texts)

    def write(number: int) -> None:
        """Add a document, replace one and remove one."""
        texts[f"{number:08}-1111-4000-8000-000000000000"] = f"added {number}"
        texts[keys[number]] = f"replaced {number}"
        application.add(f"{number:08}-1111-4000-8000-000000000000", f"added {number}")
        application.add(keys[number], f"replaced {number}")
        application.remove(keys[number + 6])
        del texts[keys[number + 6]]

    def finds_all() -> bool:
        return all(application.first(text) == text for text in texts.values())

    with closing(PgVectorStore.connect(database_url, kind.table, kind.text, "embedding")) as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        assert migration.plan().provenance.is_confirmed
        migration.start()
        write(0)
        assert finds_all()
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        application = opened(kind, NEW)
        assert finds_all()
        write(1)
        migration.start()
        assert finds_all()
        migration.rollback()
        application = opened(kind, OLD)
        assert finds_all()
        write(2)
        migration.start()
        migration.cutover()
        application = opened(kind, NEW)
        assert finds_all()
        assert migration.finalize(confirmed=True).state is State.FINALIZED
        write(3)
        assert finds_all()
