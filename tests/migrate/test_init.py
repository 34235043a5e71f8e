"""`vecferry init` writes a migration.toml that works as it stands, and nothing else."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import faiss
import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pytest
from pyarrow import parquet
from qdrant_client import QdrantClient, models

from tests.postgres import connection, database_url, postgres_url
from tests.stores.backends import import_or_skip
from tests.stores.backends_chroma import emptied_server, http_client
from tests.test_cli import Done, inside
from vecferry.encode.encoder import Encoder
from vecferry.migrate.config import read_config
from vecferry.model.artifact import Artifact
from vecferry.stores.milvus.connection import LOCK_FILE

__all__ = ["connection", "database_url", "postgres_url"]

TEXTS = [f"Ferry {number} leaves the harbour at {number} o'clock and takes {number * 7} cars." for number in range(30)]
TITLES = [f"{word} of line {number}" for number, word in enumerate(["Timetable", "Prices", "News"] * 10)]


@pytest.fixture(scope="module")
def encoder(minilm_artifact: Artifact) -> Encoder:
    """Open the real model: to one of random weights all texts are much alike."""
    return Encoder.open(minilm_artifact.path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm_artifact: Artifact, wide_artifact: Artifact) -> Path:
    """Return the folder in which commands run, with both models where they are looked for by default."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bge-m3-onnx").symlink_to(wide_artifact.path)
    (tmp_path / "models/all-MiniLM-L6-v2-onnx").symlink_to(minilm_artifact.path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*arguments: str, code: int = 0) -> Done:
    return inside("init", *arguments, code=code)


def found(*arguments: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(init(*arguments, "--json").stdout)
    return facts


def plan(file: str = "migration.toml") -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(inside("migrate", "plan", "--config", file, "--json").stdout)
    return facts


def fill(connection: psycopg.Connection, table: str, columns: str, rows: Sequence[Sequence[object]]) -> None:
    """Make a table with a number as its key, and a vector at the end of each row."""
    connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, {columns}, embedding vector(384))")
    values = ", ".join(["%s"] * (len(rows[0]) + 1))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} VALUES ({values})",
            [(number, *row[:-1], str(list(map(float, row[-1])))) for number, row in enumerate(rows)],  # type: ignore[call-overload]
        )


def articles(connection: psycopg.Connection, encoder: Encoder, table: str = "articles") -> None:
    """Make a table whose rows were embedded with their titles."""
    vectors = encoder.encode([f"{title}\n{text}" for title, text in zip(TITLES, TEXTS, strict=True)]).dense
    fill(connection, table, "title text, body text", list(zip(TITLES, TEXTS, vectors, strict=True)))


def documents(connection: psycopg.Connection, encoder: Encoder, table: str = "documents") -> None:
    """Make a table whose rows were embedded by their text alone."""
    rows = list(zip(["de"] * len(TEXTS), TEXTS, encoder.encode(TEXTS).dense, strict=True))
    fill(connection, table, "lang text, body text", rows)


def test_the_file_of_the_only_table_works_unchanged(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    done = init(database_url)
    config = read_config(here / "migration.toml")
    assert (config.store.collection, config.store.text, config.store.vector) == ("documents", "body", "embedding")
    written = (here / "migration.toml").read_text()
    assert "Confirmed: 100% of 24 sampled vectors are what the old model makes of their text." in written
    commands = ["vecferry migrate plan", "vecferry migrate start --follow"]
    assert [line.removeprefix(" next").strip() for line in done.stdout.splitlines()[-2:]] == commands
    planned = plan()
    assert planned["provenance"]["verdict"] == "confirmed"
    assert planned["problems"] == []


def test_the_file_of_this_folder_is_found_unless_a_collection_is_named(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    missing = inside("migrate", "plan", code=2)
    assert "`vecferry init STORE` writes such a file" in missing.stderr
    init(database_url)
    planned = inside("migrate", "plan")
    assert "public.documents.embedding" in planned.stdout
    assert planned.stdout.splitlines()[-1].split() == ["next", "vecferry", "migrate", "start"]
    other = inside("migrate", "plan", "--collection", "documents", code=2)
    assert "the URL of the store is missing" in other.stderr
    place = f"--store {shlex.quote(database_url)} --collection documents --text body"
    begun = inside("migrate", "status", *shlex.split(place), code=4)
    assert f"hint: Begin one: vecferry migrate start {place}\n" in begun.stderr


def test_the_first_command_names_the_stores_that_lie_in_this_folder(here: Path) -> None:
    assert "vecferry init postgresql://USER@HOST/DATABASE" in init(code=2).stderr
    for file in ("my vectors/chroma.sqlite3", "index/docs.faiss", "app.db"):
        (here / file).parent.mkdir(exist_ok=True)
        (here / file).touch()
    for line in ("vecferry init 'chroma:my vectors'", "vecferry init faiss:index", "vecferry init sqlite:app.db"):
        assert line in init(code=2).stderr


def test_a_title_before_the_text_is_found_and_confirmed(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    articles(connection, encoder)
    facts = found(database_url)
    assert facts["confirmed"]
    assert facts["provenance"]["verdict"] == "explained"
    assert "{title}" in facts["text"]
    assert plan()["provenance"]["verdict"] == "confirmed"


def test_a_prefix_stands_in_the_section_of_the_old_model(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    vectors = encoder.encode([f"passage: {text}" for text in TEXTS]).dense
    fill(connection, "documents", "body text", list(zip(TEXTS, vectors, strict=True)))
    assert found(database_url)["old"] == {"prefix": "passage: "}
    assert read_config(here / "migration.toml").old.prefix == "passage: "
    assert plan()["provenance"]["verdict"] == "confirmed"


def test_of_several_tables_one_has_to_be_named(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    documents(connection, encoder, "news")
    done = init(database_url, code=2)
    assert "--collection is missing: one of documents, news" in done.stderr
    assert "hint: Add --collection documents" in done.stderr
    assert not (here / "migration.toml").exists()
    listed = found(database_url)
    assert [(each["collection"], each["rows"], each["dimensions"]) for each in listed["found"]] == [
        ("documents", 30, [384]),
        ("news", 30, [384]),
    ]
    assert listed["file"] is None
    assert found(database_url, "--collection", "news")["collection"] == "news"


def test_tables_that_match_a_pattern_are_one_migration_whatever_their_keys_are_called(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    documents(connection, encoder, "news")
    connection.execute("ALTER TABLE news RENAME id TO number")
    facts = found(database_url, "--collection", "*")
    assert (facts["collection"], facts["text"], facts["confirmed"]) == ("*", "body", True)
    assert read_config(here / "migration.toml").store.collections == ("*",)
    planned = plan()
    assert (planned["table"]["rows"], planned["problems"]) == (60, [])
    assert planned["collections"] == ["public.documents", "public.news"]


@pytest.mark.slow
def test_on_a_terminal_one_of_several_is_chosen(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    documents(connection, encoder, "news")
    ours, theirs = pty.openpty()
    os.write(ours, b"7\n2\n")  # of which there is no 7th
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "COLUMNS": "100",
        "TERM": "dumb",
    }
    command = [sys.executable, "-m", "vecferry.cli", "init", database_url]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        assert process.wait(60) == 0, process.stderr.read() if process.stderr else ""
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "Which one" in shown
    assert "news.embedding: 30 vectors of 384 numbers" in shown
    assert read_config(here / "migration.toml").store.collection == "news"


def test_a_name_that_is_not_there_is_answered_by_those_that_are(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    done = init(database_url, "--collection", "document", code=3)
    assert "there are no vectors called document." in done.stderr
    assert "There are: documents." in done.stderr


def test_a_password_is_written_nowhere(
    connection: psycopg.Connection,
    database_url: str,
    encoder: Encoder,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documents(connection, encoder)
    for url in (database_url.replace("postgres:@", "postgres:hunter2@"), f"{database_url}&password=hunter2"):
        assert "hunter2" in url
        done = init(url, "--force")
        written = (here / "migration.toml").read_text()
        assert "hunter2" not in written + done.stdout + done.stderr + json.dumps(found(url, "--force"))
        assert read_config(here / "migration.toml").store.url is None
        assert "VECFERRY_STORE_URL" in written
        monkeypatch.setenv("VECFERRY_STORE_URL", url)
        assert plan()["provenance"]["verdict"] == "confirmed"


def test_a_file_that_is_there_is_replaced_only_when_asked(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    (here / "migration.toml").write_text("mine")
    done = init(database_url, code=3)
    assert "migration.toml was not written: it is there already" in done.stderr
    assert (here / "migration.toml").read_text() == "mine"
    init(database_url, "--force")
    assert read_config(here / "migration.toml").store.collection == "documents"


def test_standard_output_gets_the_file_alone(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder)
    (here / "other.toml").write_text(init(database_url, "-o", "-").stdout)
    assert read_config(here / "other.toml").store.collection == "documents"
    assert not (here / "migration.toml").exists()


def test_a_session_that_can_write_nothing_is_enough(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    documents(connection, encoder, "public.documents")
    connection.execute("CREATE TABLE hidden (id int PRIMARY KEY, body text, embedding vector(8))")
    connection.execute("DROP ROLE IF EXISTS reader")
    connection.execute("CREATE ROLE reader LOGIN")
    connection.execute("GRANT SELECT ON documents TO reader")
    connection.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    try:
        facts = found(database_url.replace("postgres:@", "reader@"))
    finally:
        connection.execute("DROP OWNED BY reader")
        connection.execute("DROP ROLE reader")
    assert facts["collection"] == "documents"
    assert facts["confirmed"]
    (hidden,) = [each for each in facts["found"] if each["collection"] == "hidden"]
    assert "permission denied" in hidden["obstacle"]


def test_without_the_old_model_the_likeliest_text_is_written_and_doubted(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    articles(connection, encoder)
    (here / "models/all-MiniLM-L6-v2-onnx").unlink()
    facts = found(database_url)
    assert (facts["text"], facts["other_texts"], facts["confirmed"]) == ("body", ["title"], False)
    written = (here / "migration.toml").read_text()
    assert "# Not confirmed. The old model was not at hand" in written
    assert '# Other texts beside the vectors: "title".' in written
    assert read_config(here / "migration.toml").models.old == here / "models/all-MiniLM-L6-v2-onnx"
    commands = ["convert", "sentence-transformers/all-MiniLM-L6-v2", "models/all-MiniLM-L6-v2-onnx"]
    assert facts["next"][0] == " ".join(("vecferry", *commands))


def test_vectors_of_another_model_are_named_by_their_length(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    connection.execute("CREATE TABLE documents (id int PRIMARY KEY, body text, embedding vector(1536))")
    connection.execute(
        "INSERT INTO documents SELECT n, 'text number ' || n,"
        " (SELECT array_agg(sin(n * i)) FROM generate_series(1, 1536) AS i)::vector FROM generate_series(1, 9) AS n"
    )
    facts = found(database_url)
    assert facts["provenance"]["verdict"] == "unexplained"
    written = " ".join((here / "migration.toml").read_text().replace("\n#", "").split())
    assert "The vectors have 1,536 numbers and those of the old model 384: it is another model." in written
    assert "OpenAI's text-embedding-3-small" in written
    assert read_config(here / "migration.toml").models.old is None


def test_what_was_looked_at_is_said_where_nothing_is_found(
    connection: psycopg.Connection, database_url: str, here: Path
) -> None:
    done = init(database_url, code=3)
    assert "no vectors to migrate are in postgresql://" in done.stderr
    assert "no column of pgvector's types" in done.stderr
    connection.execute("CREATE TABLE documents (id int PRIMARY KEY, body text, embedding vector(8))")
    done = init(database_url, code=3)
    assert "documents.embedding is empty" in done.stderr
    assert "--collection documents" in done.stderr
    assert found(database_url, "--collection", "documents")["provenance"]["verdict"] == "no vectors"
    assert "embed_missing = true" in (here / "migration.toml").read_text()


def test_a_scheme_that_is_none_is_refused_without_the_rest_of_the_url(here: Path) -> None:
    done = init("mysql://user:hunter2@host/database", code=2)
    assert "mysql:… is not the URL of a store" in done.stderr
    assert "hunter2" not in done.stderr


def test_names_cannot_leave_their_place_in_the_file(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    name = 'odd "name"\n[models]\nnew = 1 \x7f.'
    connection.execute("CREATE SCHEMA shop")
    documents(connection, encoder, f'shop."{name.replace(chr(34), chr(34) * 2)}"')
    facts = found(database_url)
    assert read_config(here / "migration.toml").store.collection == facts["collection"]
    assert plan()["provenance"]["verdict"] == "confirmed"


@pytest.mark.parametrize(
    ("schema", "framework", "text"),
    [
        (
            "langchain_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), content text, embedding vector(384),"
            " langchain_metadata json",
            "LangChain PGVectorStore",
            "content",
        ),
        ("id bigserial PRIMARY KEY, content text, embedding vector(384), source text", "", "content"),
    ],
)
def test_the_layouts_of_frameworks_are_known(
    connection: psycopg.Connection,
    database_url: str,
    encoder: Encoder,
    here: Path,
    schema: str,
    framework: str,
    text: str,
) -> None:
    connection.execute(f"CREATE TABLE docs ({schema})")
    for words, vector in zip(TEXTS, encoder.encode(TEXTS).dense, strict=True):
        connection.execute("INSERT INTO docs (content, embedding) VALUES (%s, %s)", [words, str(vector.tolist())])
    facts = found(database_url)
    assert (facts["framework"], facts["text"], facts["confirmed"]) == (framework, text, True)
    assert plan()["provenance"]["verdict"] == "confirmed"


def langchain_collections(connection: psycopg.Connection, encoder: Encoder) -> None:
    """Make the tables of LangChain's PGVector with two collections, as its first versions and the present one do."""
    connection.execute("CREATE TABLE langchain_pg_collection (uuid uuid PRIMARY KEY, name text, cmetadata json)")
    connection.execute(
        "CREATE TABLE langchain_pg_embedding (id text PRIMARY KEY, collection_id uuid REFERENCES"
        " langchain_pg_collection (uuid), embedding vector, document text, cmetadata jsonb)"
    )
    collections = {"docs": f"{1:08}-0000-4000-8000-000000000000", "o'faq": f"{2:08}-0000-4000-8000-000000000000"}
    for name, uuid in collections.items():
        connection.execute("INSERT INTO langchain_pg_collection VALUES (%s, %s)", [uuid, name])
        for number, (text, vector) in enumerate(zip(TEXTS, encoder.encode(TEXTS).dense, strict=True)):
            connection.execute(
                "INSERT INTO langchain_pg_embedding VALUES (%s, %s, %s, %s)",
                [f"{name} {number}", uuid, str(vector.tolist()), text],
            )


def test_a_collection_that_shares_its_table_is_migrated_alone(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    langchain_collections(connection, encoder)
    done = init(database_url, code=2)
    assert "one of langchain_pg_embedding, docs, o'faq, or a pattern" in done.stderr
    facts = found(database_url, "--collection", "o'faq")
    assert (facts["framework"], facts["text"], facts["confirmed"]) == ("LangChain PGVector", "document", True)
    store = read_config(here / "migration.toml").store
    assert (store.collection, store.where) == (
        "langchain_pg_embedding",
        "collection_id = '00000002-0000-4000-8000-000000000000'",
    )
    assert plan()["table"]["rows"] == len(TEXTS)


def test_all_collections_of_a_shared_table_are_one_migration(
    connection: psycopg.Connection, database_url: str, encoder: Encoder, here: Path
) -> None:
    langchain_collections(connection, encoder)
    assert found(database_url, "--collection", "langchain_pg_embedding")["confirmed"]
    assert read_config(here / "migration.toml").store.where is None
    assert plan()["table"]["rows"] == 2 * len(TEXTS)


# --- other stores ---------------------------------------------------------------------------------


def in_chroma(folder: Path, vectors: list[list[float]]) -> None:
    """Fill a folder in a process of its own, which ends: Chroma's folders belong to one."""
    written = json.dumps([TEXTS, vectors])
    program = (
        "import chromadb, json, sys; texts, vectors = json.load(sys.stdin);"
        "made = chromadb.PersistentClient(sys.argv[1]).create_collection('docs', embedding_function=None);"
        "made.add(ids=[str(n) for n in range(len(texts))], embeddings=vectors, documents=texts)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], input=written, text=True, check=True)


def in_lancedb(folder: Path, vectors: list[list[float]]) -> None:
    rows = [
        {"id": str(n), "vector": vector, "title": "a.txt", "text": text}
        for n, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
    ]
    lancedb.connect(folder).create_table("docs", rows)


def write_index(folder: Path, vectors: list[list[float]]) -> None:
    folder.mkdir()
    index = faiss.IndexFlatIP(len(vectors[0]))
    index.add(np.asarray(vectors, np.float32))
    faiss.write_index(index, str(folder / "docs.faiss"))


def in_faiss(folder: Path, vectors: list[list[float]]) -> None:
    write_index(folder, vectors)
    lines = [json.dumps({"key": n, "body": text, "lang": "de"}) for n, text in enumerate(TEXTS)]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")


def in_faiss_with_parquet(folder: Path, vectors: list[list[float]]) -> None:
    write_index(folder, vectors)
    columns = {"key": list(range(len(TEXTS))), "lang": ["de"] * len(TEXTS), "body": TEXTS}
    parquet.write_table(pa.table(columns), folder / "docs.parquet")


def in_sqlite(file: Path, vectors: list[list[float]]) -> None:
    """Fill a file in WAL mode, and leave it without the two files that belong to that."""
    sqlite_vec = import_or_skip("vecferry.stores.sqlite_vec")
    file.touch()
    with closing(sqlite_vec._connected(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE docs (rowid INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT, metadata BLOB)")
        connection.execute("CREATE VIRTUAL TABLE docs_vec USING vec0(rowid INTEGER PRIMARY KEY, e float[384])")
        for number, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True)):
            connection.execute("INSERT INTO docs VALUES (?, ?, NULL)", (number, text))
            connection.execute("INSERT INTO docs_vec VALUES (?, ?)", (number, np.asarray(vector, np.float32).tobytes()))


def in_qdrant(folder: Path, vectors: list[list[float]]) -> None:
    points = [
        models.PointStruct(id=n, vector=vector, payload={"page_content": text, "metadata": {"page": n}})
        for n, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
    ]
    with closing(QdrantClient(path=str(folder))) as client:
        client.create_collection("docs_2026", models.VectorParams(size=384, distance=models.Distance.COSINE))
        client.upsert("docs_2026", points)
        alias = models.CreateAlias(collection_name="docs_2026", alias_name="docs")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])


def in_milvus(folder: Path, vectors: list[list[float]]) -> None:
    milvus = import_or_skip("pymilvus")
    rows = [
        {"id": str(n), "vector": vector, "body": text}  # in the dynamic field, which no schema names
        for n, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
    ]
    with closing(milvus.MilvusClient(str(folder))) as client:
        client.create_collection("docs", dimension=384, id_type="string", max_length=64)
        client.insert("docs", rows)
        client.flush("docs")


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file in the folder, by its path, but for the empty one for turns in Milvus Lite."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != LOCK_FILE)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("url", "fill_store", "expected"),
    [
        pytest.param("chroma:data/store", in_chroma, ("", "document"), marks=pytest.mark.slow),
        ("lancedb:data/store", in_lancedb, ("AnythingLLM", "text")),
        ("faiss:data/store", in_faiss, ("", "body")),
        pytest.param("faiss:data/store", in_faiss_with_parquet, ("", "body"), marks=pytest.mark.slow),
        ("sqlite:data/store", in_sqlite, ("LangChain SQLiteVec", "text")),
        pytest.param("qdrant:data/store", in_qdrant, ("LangChain", "page_content"), marks=pytest.mark.slow),
        pytest.param("milvus:data/store.db", in_milvus, ("", "body"), marks=pytest.mark.slow),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_a_local_store_is_looked_at_without_a_change_to_it(
    url: str,
    fill_store: Callable[[Path, list[list[float]]], None],
    expected: tuple[str, str],
    encoder: Encoder,
    here: Path,
) -> None:
    (here / "data").mkdir()
    fill_store(here / url.partition(":")[2], encoder.encode(TEXTS).dense.tolist())
    before = contents(here / "data")
    facts = found(url)
    is_held_alone = url.startswith(("chroma", "qdrant", "milvus"))
    last = "run --offline" if is_held_alone else "start --follow"
    assert facts["next"][-1] == f"vecferry migrate {last}"
    assert contents(here / "data") == before
    assert (facts["collection"], facts["framework"], facts["text"]) == ("docs", *expected)
    assert (facts["confirmed"], facts["provenance"]["verdict"]) == (True, "confirmed")
    planned = plan()
    assert planned["provenance"]["verdict"] == "confirmed"
    assert planned["problems"] == []


def uuid_of(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def in_lancedb_for_each_file(folder: Path, encoder: Encoder) -> None:
    """Make a table for each of three files, as Open WebUI makes collections, and one of a user."""
    database = lancedb.connect(folder)
    names = [f"file-{uuid_of(number)}" for number in range(3)] + [f"user-memory-{uuid_of(0)}"]
    for name in names:
        vectors = encoder.encode(TEXTS[:10]).dense.tolist()
        rows = [{"id": str(n), "vector": v, "text": t} for n, (t, v) in enumerate(zip(TEXTS, vectors, strict=False))]
        database.create_table(name, rows)


def test_collections_that_are_made_for_each_file_are_one_group(encoder: Encoder, here: Path) -> None:
    in_lancedb_for_each_file(here / "data", encoder)
    done = init("lancedb:data", code=2)
    assert f"one of file-*, user-memory-{uuid_of(0)}, or a pattern: '*' is all of them" in done.stderr
    facts = found("lancedb:data", "--collection", "file-*")
    assert (facts["collection"], facts["text"], facts["confirmed"]) == ("file-*", "text", True)
    assert read_config(here / "migration.toml").store.collections == ("file-*",)
    planned = plan()
    assert planned["table"]["rows"] == 30
    assert planned["problems"] == []
    assert found("lancedb:data", "--collection", "*", "--force")["confirmed"]
    assert plan()["table"]["rows"] == 40


def in_chroma_for_each_file(folder: Path, encoder: Encoder) -> None:
    """Make collections as Open WebUI does, in a process of their own."""
    program = (
        "import chromadb, json, sys; names, texts, vectors = json.load(sys.stdin);"
        "client = chromadb.PersistentClient(sys.argv[1]);"
        "[client.create_collection(name, embedding_function=None).add("
        "ids=[str(n) for n in range(len(texts))], embeddings=vectors, documents=texts,"
        " metadatas=[{'name': 'a.txt', 'embedding_config': '{}'}] * len(texts)) for name in names]"
    )
    names = [f"file-{uuid_of(number)}" for number in range(3)] + [f"user-memory-{uuid_of(0)}"]
    written = json.dumps([names, TEXTS[:10], encoder.encode(TEXTS[:10]).dense.tolist()])
    subprocess.run([sys.executable, "-c", program, str(folder)], input=written, text=True, check=True)


@pytest.mark.slow
def test_the_collections_of_open_webui_are_groups(encoder: Encoder, here: Path) -> None:
    in_chroma_for_each_file(here / "data", encoder)
    before = contents(here / "data")
    facts = found("chroma:data", "--collection", "file-*")
    assert contents(here / "data") == before
    assert (facts["framework"], facts["text"], facts["confirmed"]) == ("Open WebUI", "document", True)
    planned = plan()
    assert planned["table"]["rows"] == 30
    assert planned["problems"] == []


@pytest.mark.slow
def test_collections_of_a_server_of_chroma_are_one_group(encoder: Encoder, here: Path) -> None:
    url, vectors = emptied_server(), encoder.encode(TEXTS[:10]).dense.tolist()
    names = [f"file-{uuid_of(number)}" for number in range(3)] + [f"user-memory-{uuid_of(0)}"]
    with http_client(url) as application:
        for name in names:
            collection = application.create_collection(name, embedding_function=None)
            collection.add([str(number) for number in range(10)], embeddings=vectors, documents=TEXTS[:10])
    assert f"one of file-*, user-memory-{uuid_of(0)}, or a pattern" in init(url, code=2).stderr
    facts = found(url, "--collection", "file-*")
    assert (facts["collection"], facts["text"], facts["confirmed"]) == ("file-*", "document", True)
    planned = plan()
    assert planned["table"]["rows"] == 30
    assert planned["problems"] == []
