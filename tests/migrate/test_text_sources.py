"""Texts that are made of several columns: seen in the vectors, captured, followed on both sides, and refused untold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from qdrant_client import QdrantClient

from tests.migrate.doubles import TruthEncoder, truth
from tests.stores import backends_qdrant
from vecferry.embeddings import TextVectors
from vecferry.errors import SettingsError, StoreSchemaError, VectorsUnconfirmed
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.provenance import Verdict
from vecferry.migrate.router import Document, Router
from vecferry.stores.backend import Point
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.opening import open_store
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.qdrant import QdrantBackend
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.text_source import (
    FieldText,
    HaystackText,
    LlamaIndexText,
    TemplateText,
    framework_source,
    text_source,
)
from vecferry.stores.values import Record, Side

TEMPLATE = "{title}\n{body}"
OLD_DIMENSION = 8
OLD, NEW = TruthEncoder("old", OLD_DIMENSION), TruthEncoder("new", 16)
OPTIONS = MigrationOptions(rows_per_range=4, staging=Path("staging"), min_free_gb=0, lease_s=5.0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def documents(connection: psycopg.Connection) -> psycopg.Connection:
    """Ten rows whose vectors were made of title and body."""
    connection.execute(
        "CREATE TABLE docs (id integer PRIMARY KEY, title text, body text, meta jsonb,"
        f" embedding vector({OLD_DIMENSION}))"
    )
    for number in range(10):
        title, body = f"title {number}", f"body {number}"
        vector = truth("old", f"{title}\n{body}", OLD_DIMENSION).tolist()
        meta = json.dumps({"lang": "en", "page": {"number": number}})
        connection.execute("INSERT INTO docs VALUES (%s, %s, %s, %s, %s::real[])", [number, title, body, meta, vector])
    return connection


def opened(database_url: str, text: str = TEMPLATE) -> PgVectorStore:
    return PgVectorStore.connect(database_url, "docs", text, "embedding")


@pytest.fixture
def store(documents: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:  # they are there
    with opened(database_url) as store:
        yield store


def new_vectors(connection: psycopg.Connection, column: str = "embedding_vecferry_new") -> dict[int, Any]:
    rows = connection.execute(f"SELECT id, {column}::real[] FROM docs ORDER BY id").fetchall()
    return {key: np.asarray(vector, np.float32) for key, vector in rows}


# --- what the file says is compared with what is stored ---------------------------------------------


def test_a_migration_of_the_body_alone_is_refused_and_the_title_is_named(
    documents: psycopg.Connection, database_url: str
) -> None:
    with opened(database_url, "body") as store:
        migration = Migration(store, new=NEW, old=OLD, options=OPTIONS)
        plan = migration.plan()
        assert plan.provenance.verdict is Verdict.EXPLAINED
        assert plan.provenance.making is not None
        assert plan.provenance.making.text == TEMPLATE
        with pytest.raises(VectorsUnconfirmed) as refused:
            migration.start()
    assert "title before the text" in refused.value.message
    assert json.dumps(TEMPLATE) in refused.value.hint
    assert documents.execute("SELECT to_regclass('vecferry.changes')").fetchone() == (None,)  # not even a ledger
    assert documents.execute("SELECT count(*) FROM pg_attribute WHERE attname LIKE '%vecferry%'").fetchone() == (0,)


def test_a_reason_lets_it_begin_all_the_same_and_is_kept(documents: psycopg.Connection, database_url: str) -> None:
    with opened(database_url, "body") as store:
        options = replace(OPTIONS, accept_unconfirmed="titles are not wanted any more")
        status = Migration(store, new=NEW, old=OLD, options=options).start()
    event = next(event for event in status.events if event.what == "planned")
    assert event.detail["accepted"] == "titles are not wanted any more"
    assert event.detail["vectors"] == "explained"
    np.testing.assert_array_equal(new_vectors(documents)[3], truth("new", "body 3", 16))


def test_vectors_of_another_model_are_refused(store: PgVectorStore) -> None:
    with pytest.raises(VectorsUnconfirmed, match="another model"):
        Migration(store, new=NEW, old=TruthEncoder("other", OLD_DIMENSION), options=OPTIONS).start()


def test_without_an_old_model_nothing_is_taken_on_trust(store: PgVectorStore) -> None:
    with pytest.raises(VectorsUnconfirmed, match="No old model is named") as refused:
        Migration(store, new=NEW, options=OPTIONS).start()
    assert "--old-model" in refused.value.hint


def test_a_wrong_old_model_binds_nobody_after_an_abort(store: PgVectorStore) -> None:
    options = replace(OPTIONS, accept_unconfirmed="a mistake")
    wrong = Migration(store, new=NEW, old=TruthEncoder("other", OLD_DIMENSION), options=options)
    wrong.start()
    wrong.abort()
    assert wrong.serving().fingerprint is None
    right = Migration(store, new=NEW, old=OLD, options=OPTIONS)
    right.start()
    assert right.serving().fingerprint == OLD.fingerprint


def test_an_empty_table_has_nothing_to_be_confirmed(documents: psycopg.Connection, database_url: str) -> None:
    documents.execute("DELETE FROM docs")
    with opened(database_url) as store:
        assert Migration(store, new=NEW, options=OPTIONS).start().state is State.CATCHING_UP


# --- PostgreSQL -------------------------------------------------------------------------------------


def test_a_template_is_migrated_followed_switched_and_rolled_back(
    store: PgVectorStore, documents: psycopg.Connection
) -> None:
    migration = Migration(store, new=NEW, old=OLD, options=OPTIONS)
    assert migration.start().rows_done == 10
    np.testing.assert_array_equal(new_vectors(documents)[3], truth("new", "title 3\nbody 3", 16))
    documents.execute("UPDATE docs SET title = 'another' WHERE id = 3")  # and the vector is left as it was
    documents.execute("UPDATE docs SET meta = '{}' WHERE id = 4")
    assert [change.key for change in store.captured(10)] == [("3",)]
    migration.start()
    np.testing.assert_array_equal(new_vectors(documents)[3], truth("new", "another\nbody 3", 16))
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    documents.execute("UPDATE docs SET title = 'a third' WHERE id = 5")
    migration.start()
    np.testing.assert_array_equal(new_vectors(documents, "embedding")[5], truth("new", "a third\nbody 5", 16))
    migration.rollback()
    expected = truth("old", "a third\nbody 5", OLD_DIMENSION)
    np.testing.assert_array_equal(new_vectors(documents, "embedding")[5], expected)


def test_the_server_fills_a_template_as_we_do(documents: psycopg.Connection, database_url: str) -> None:
    documents.execute("UPDATE docs SET title = NULL WHERE id = 1")
    documents.execute("UPDATE docs SET title = NULL, body = NULL, meta = NULL WHERE id = 2")
    documents.execute("UPDATE docs SET title = '100 %s {x} ''quoted''', meta = '{\"lang\": [1]}' WHERE id = 3")
    template = "50 % '{title}'\n{{{meta.lang}}} {meta.page.number}: {body}"
    with opened(database_url, template) as store:
        rows = {row.key: row for row in store.rows([(str(number),) for number in range(10)])}
        stored = {row.key: TemplateText(template).render(row.fields) for row in store.sample_stored(10)}
    assert {key: row.text for key, row in rows.items()} == stored
    assert rows["2",].text is None
    assert rows["3",].text == "50 % '100 %s {x} 'quoted''\n{} : body 3"
    assert rows["4",].text == "50 % 'title 4'\n{en} 4: body 4"


def test_a_column_whose_name_looks_like_a_template_is_a_column(
    documents: psycopg.Connection, database_url: str
) -> None:
    documents.execute('ALTER TABLE docs RENAME COLUMN body TO "{title}"')
    with opened(database_url, "{title}") as store:
        assert store.rows([("3",)])[0].text == "body 3"


def test_what_llama_index_embeds_is_migrated_and_its_metadata_captured(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(
        f"CREATE TABLE docs (id integer PRIMARY KEY, text text, metadata_ json, embedding vector({OLD_DIMENSION}))"
    )
    for number in range(6):
        fields = {"text": f"text {number}", "metadata_": node_of({"title": f"T{number}", "tags": ["a", number]})}
        text = LlamaIndexText().render(fields) or ""
        assert text == f"title: T{number}\ntags: ['a', {number}]\n\ntext {number}"
        connection.execute(
            "INSERT INTO docs VALUES (%s, %s, %s, %s::real[])",
            [number, fields["text"], json.dumps(fields["metadata_"]), truth("old", text, OLD_DIMENSION).tolist()],
        )
    with opened(database_url, "text") as store:
        plan = Migration(store, new=NEW, old=OLD, options=OPTIONS).plan()
        assert plan.provenance.making is not None
        assert plan.provenance.making.text == "llama-index"
    with opened(database_url, "llama-index") as store:
        migration = Migration(store, new=NEW, old=OLD, options=OPTIONS)
        assert migration.start().rows_done == 6
        np.testing.assert_array_equal(
            new_vectors(connection)[2], truth("new", "title: T2\ntags: ['a', 2]\n\ntext 2", 16)
        )
        changed = json.dumps(node_of({"title": "changed"}))
        connection.execute("UPDATE docs SET metadata_ = %s WHERE id = 2", [changed])
        migration.start()
        np.testing.assert_array_equal(new_vectors(connection)[2], truth("new", "title: changed\n\ntext 2", 16))
        assert migration.verify(override="no gate in this test").passed


def node_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata column of a node without its text."""
    node = {"metadata": metadata, "excluded_embed_metadata_keys": [], "text": ""}
    return {**metadata, "_node_content": json.dumps(node)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{title}{missing}", "no column missing"),
        ("{meta}", "whole column of JSON"),
        ("{title.part}", "of type text"),
        ("{embedding}", "the column embedding"),
    ],
)
@pytest.mark.usefixtures("documents")
def test_a_template_of_other_columns_is_refused_by_name(database_url: str, text: str, message: str) -> None:
    with pytest.raises(StoreSchemaError, match=message):
        opened(database_url, text)


def test_a_row_is_put_with_its_text_in_the_last_field_and_the_others_beside_it(
    store: PgVectorStore, documents: psycopg.Connection
) -> None:
    migration = Migration(store, new=NEW, old=OLD, options=OPTIONS)
    migration.start()
    vector = TextVectors(truth("old", "put\nhere", OLD_DIMENSION))
    store.put([Record(("3",), "here", vector, {"title": "put"})], fingerprint=OLD.fingerprint)
    assert documents.execute("SELECT title, body FROM docs WHERE id = 3").fetchone() == ("put", "here")
    migration.start()
    np.testing.assert_array_equal(new_vectors(documents)[3], truth("new", "put\nhere", 16))
    assert store.outdated(Side.NEW) == []


def test_a_router_embeds_the_template(store: PgVectorStore, documents: psycopg.Connection) -> None:
    Migration(store, new=NEW, old=OLD, options=OPTIONS).start()
    with Router(store, old=OLD, new=NEW) as router:
        router.put([Document(("50",), "a body", {"title": "a title"})])
    vector = new_vectors(documents, "embedding")[50]
    np.testing.assert_array_equal(vector, truth("old", "a title\na body", OLD_DIMENSION))


# --- collections of points --------------------------------------------------------------------------


def test_a_template_of_points_is_migrated_and_followed() -> None:
    points = [
        Point(
            str(n),
            f"body {n}",
            TextVectors(truth("old", f"T{n}\nbody {n}", OLD_DIMENSION)),
            {"meta": {"title": f"T{n}"}},
        )
        for n in range(6)
    ]
    backend = MemoryBackend({"docs": points})
    source = text_source("{meta.title}\n{text}")
    with closing(MirrorStore(backend, "docs", SqliteLedger.in_memory(), source)) as store:
        migration = Migration(store, new=NEW, old=OLD, options=OPTIONS)
        assert migration.plan().provenance.is_confirmed
        migration.start()
        changed = Record(
            ("2",), "body 2", TextVectors(truth("old", "new\nbody 2", OLD_DIMENSION)), {"meta": {"title": "new"}}
        )
        store.put([changed], fingerprint=OLD.fingerprint)
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        vectors = store.vectors([("2",), ("3",)], fingerprint=NEW.fingerprint)
    np.testing.assert_array_equal(vectors["2",], truth("new", "new\nbody 2", 16))
    np.testing.assert_array_equal(vectors["3",], truth("new", "T3\nbody 3", 16))


def test_what_llama_index_embeds_of_a_node_in_qdrant_is_migrated_and_followed(tmp_path: Path) -> None:
    """QdrantVectorStore keeps a node as JSON in the payload, its text with it, and has no field with the text."""
    nodes = [text_node(number) for number in range(6)]
    url = filled_by_llama_index(tmp_path / "store", nodes)
    with closing(QdrantBackend.open(url, backends_qdrant.FIELDS)) as backend:
        assert point_of(nodes[0]).payload == backend.get("docs", [nodes[0].node_id])[0].payload
        store = MirrorStore(backend, "docs", SqliteLedger.in_memory(), text_source("llama-index"))
        migration = Migration(store, new=NEW, old=OLD, options=OPTIONS)
        plan = migration.plan()
        assert plan.provenance.is_confirmed
        assert (plan.table.rows, plan.table.null_texts) == (6, 0)
        assert migration.start().rows_done == 6
        assert_embedded(store, nodes)
        nodes[2].metadata["title"] = "changed"
        nodes[3].set_content("another text")
        for node in nodes[2:4]:
            point = point_of(node)
            store.put([Record((point.id,), None, point.vectors, point.payload)], fingerprint=OLD.fingerprint)
        backend.put("docs", [point_of(changed := text_node(4, title="past the journal"))])
        nodes[4] = changed
        migration.start()
        assert_embedded(store, nodes)
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        migration.finalize(confirmed=True)
        payload = backend.get("docs", [nodes[3].node_id])[0].payload
        assert json.loads(payload["_node_content"])["text"] == "another text"
        assert "text" not in payload


def filled_by_llama_index(folder: Path, nodes: Sequence[Any]) -> str:
    """Leave the nodes in a collection `docs`, with vectors of the old model; return the URL of the folder."""
    written_by = pytest.importorskip("llama_index.vector_stores.qdrant")
    url = backends_qdrant.make(folder)
    for node in nodes:
        node.embedding = truth("old", embedded_text(node), OLD_DIMENSION).tolist()
    with closing(QdrantClient(path=str(folder))) as client:
        written_by.QdrantVectorStore(client=client, collection_name="docs").add(nodes)
    return url


def text_node(number: int, title: str = "") -> Any:
    """Return a real node of LlamaIndex."""
    schema = pytest.importorskip("llama_index.core.schema")
    metadata = {"title": title or f"T{number}", "page": number, "file": "a.txt"}
    return schema.TextNode(
        id_=str(UUID(int=number)), text=f"text {number}", metadata=metadata, excluded_embed_metadata_keys=["file"]
    )


def embedded_text(node: Any) -> str:
    """Return what LlamaIndex gives its model."""
    return str(node.get_content(metadata_mode=pytest.importorskip("llama_index.core.schema").MetadataMode.EMBED))


def point_of(node: Any) -> Point:
    """Return the point as QdrantVectorStore writes it, with the vector of the old model."""
    utils = pytest.importorskip("llama_index.core.vector_stores.utils")
    payload = utils.node_to_metadata_dict(node, remove_text=False, flat_metadata=False)
    return Point(node.node_id, None, TextVectors(truth("old", embedded_text(node), OLD_DIMENSION)), payload)


def assert_embedded(store: MirrorStore, nodes: Sequence[Any]) -> None:
    """Assert that the new vector of each node is of what LlamaIndex embeds of it now."""
    vectors = store.vectors([(node.node_id,) for node in nodes], fingerprint=NEW.fingerprint)
    assert len(vectors) == len(nodes)
    for node in nodes:
        expected = truth("new", embedded_text(node), 16)
        np.testing.assert_allclose(vectors[node.node_id,], expected, atol=1e-6)  # Qdrant normalises again


# --- LangChain and Haystack -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "present", "source"),
    [
        ("langchain", "postgresql", ["id", "document", "cmetadata"], FieldText("document")),
        ("langchain", "postgresql", ["langchain_id", "content"], FieldText("content")),
        ("langchain", "qdrant", None, FieldText("page_content")),
        ("langchain", "milvus", None, FieldText("text")),
        ("langchain", "lancedb", None, FieldText("text")),
        ("langchain", "chroma", None, FieldText("document")),
        ("haystack", "postgresql", ["id", "content", "meta"], FieldText("content")),
        ("haystack()", "qdrant", None, FieldText("content")),
        ("haystack(title, author)", "qdrant", None, HaystackText(("title", "author"))),
        ('haystack(title, separator=" | ")', "chroma", None, HaystackText(("title",), " | ", "document")),
        ("body", "qdrant", None, None),
    ],
)
def test_a_framework_has_its_field_in_each_store(
    name: str, kind: str, present: list[str] | None, source: object
) -> None:
    assert framework_source(name, kind, present) == source
    if isinstance(source, HaystackText):
        assert source.name == name


@pytest.mark.parametrize(
    "name", ["langchain(title)", "haystack(title", "haystack(title, separator=|)", 'haystack("title")']
)
def test_a_framework_in_another_form_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="haystack"):
        framework_source(name, "qdrant")


def test_a_framework_whose_field_is_not_there_is_refused_with_the_fields(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="postgresql, qdrant, chroma"):
        framework_source("haystack", "lancedb")
    url = backends_qdrant.make(tmp_path / "store")
    with closing(QdrantBackend.open(url, backends_qdrant.FIELDS)) as backend:
        backend.put(
            "docs", [Point("1", None, TextVectors(truth("old", "a", OLD_DIMENSION)), {"body": "a", "meta": {}})]
        )
    with pytest.raises(StoreSchemaError, match="page_content, and there is body, meta"):
        open_store(url, "docs", text="langchain", vector="", key="id", control=tmp_path / "control.db")
    open_store(url, "docs", text="body", vector="", key="id", control=tmp_path / "control.db").close()


@pytest.mark.usefixtures("documents")
def test_a_table_that_is_no_frameworks_is_refused_with_its_columns(database_url: str) -> None:
    with pytest.raises(StoreSchemaError, match="document or content, and there is body, embedding, id, meta, title"):
        opened(database_url, "langchain")


def test_what_haystack_embeds_is_migrated_and_its_metadata_captured(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(
        "CREATE TABLE haystack_documents (id text PRIMARY KEY, content text, meta jsonb,"
        f" embedding vector({OLD_DIMENSION}))"
    )
    metas = [{"title": "first", "year": 2001.0, "is_new": True}, {"title": None, "year": 7}, {}]
    texts = ["first | 2001.0 | True | text 0", "7 | text 1", "text 2"]
    for number, (meta, text) in enumerate(zip(metas, texts, strict=True)):
        values = [str(number), f"text {number}", json.dumps(meta), truth("old", text, OLD_DIMENSION).tolist()]
        connection.execute("INSERT INTO haystack_documents VALUES (%s, %s, %s, %s::real[])", values)
    name = 'haystack(title, year, is_new, separator=" | ")'
    with PgVectorStore.connect(database_url, "haystack_documents", name, "embedding") as store:
        assert store.traits.text_source == name
        migration = Migration(store, new=NEW, old=OLD, options=OPTIONS)
        assert migration.plan().provenance.verdict is Verdict.CONFIRMED
        migration.start()
        connection.execute("UPDATE haystack_documents SET meta = '{\"title\": \"second\"}' WHERE id = '2'")
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        vectors = store.vectors([("0",), ("2",)], fingerprint=NEW.fingerprint)
        np.testing.assert_array_equal(vectors["0",], NEW.truth(texts[0]))
        np.testing.assert_array_equal(vectors["2",], NEW.truth("second | text 2"))


def test_haystack_texts_are_those_of_its_own_embedders() -> None:
    embedders = pytest.importorskip("haystack.components.embedders")
    document, secret = pytest.importorskip("haystack").Document, pytest.importorskip("haystack.utils").Secret
    names, separator = ["title", "year", "tags", "missing"], " / "
    embedder = embedders.OpenAIDocumentEmbedder(
        api_key=secret.from_token("none"), meta_fields_to_embed=names, embedding_separator=separator
    )
    meta = {"title": "a title", "year": 2.0, "tags": ["a", "b"], "missing": None, "other": 1}
    (expected,) = embedder._prepare_texts_to_embed([document(content="text", meta=meta)]).values()
    source = HaystackText(tuple(names), separator)
    assert source.render({"content": "text", "meta": meta}) == expected
    assert source.render({"content": "text", "meta": json.dumps(meta)}) == expected
    assert source.at("document").render({"document": "text", **meta}) == expected
