"""Applications that keep one collection for each file or workspace: all of them under one switch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import chromadb
import lancedb
import pytest
from chromadb.config import Settings

from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder
from vecferry.migrate import Migration, MigrationOptions
from vecferry.stores.group import Member
from vecferry.stores.opening import open_store

pytestmark = pytest.mark.slow
OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
Add = Callable[[str, str, TruthEncoder], None]
"""Adds a document to the collection of that name, with the model's vector."""
First = Callable[[str, str, TruthEncoder], str]
"""Returns the text nearest to this one in the collection of that name."""


def numbers(encoder: TruthEncoder, text: str) -> Any:
    """Return the vector as each client takes it, by types that it does not say."""
    return [float(number) for number in encoder.truth(text)]


def open_webui(site: UrlSite) -> tuple[Add, First]:
    """Return what Open WebUI does in Chroma, where each file has a collection `file-ID`, with cosines."""
    parts = urlsplit(site.url)
    client = chromadb.HttpClient(parts.hostname or "", parts.port or 0, settings=Settings(anonymized_telemetry=False))

    def add(name: str, text: str, encoder: TruthEncoder) -> None:
        collection = client.get_or_create_collection(name, metadata={"hnsw:space": "cosine"}, embedding_function=None)
        collection.upsert([text], documents=[text], embeddings=[numbers(encoder, text)], metadatas=[{"name": "a.txt"}])

    def first(name: str, text: str, encoder: TruthEncoder) -> str:
        collection = client.get_collection(name, embedding_function=None)
        documents = collection.query(query_embeddings=[numbers(encoder, text)], n_results=1)["documents"]
        return (documents or [[""]])[0][0]

    return add, first


def anything_llm(site: UrlSite) -> tuple[Add, First]:
    """Return what AnythingLLM does in LanceDB, where each workspace has a table of its name."""
    database = lancedb.connect(site.url.removeprefix("lancedb://"))

    def add(name: str, text: str, encoder: TruthEncoder) -> None:
        row = {"id": text, "vector": numbers(encoder, text), "title": "a.txt", "text": text}
        if name in database.list_tables().tables:
            database.open_table(name).add([row])
        else:
            database.create_table(name, [row])

    def first(name: str, text: str, encoder: TruthEncoder) -> str:
        rows = database.open_table(name).search(numbers(encoder, text)).limit(1).to_list()
        return str(rows[0]["text"])

    return add, first


@pytest.mark.parametrize(("kind", "store"), [(open_webui, "chroma"), (anything_llm, "lancedb")])
def test_an_application_with_a_collection_for_each_file_switches_all_of_them(
    kind: Callable[[UrlSite], tuple[Add, First]], store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    site: UrlSite = request.getfixturevalue(store)
    add, first = kind(site)
    for number in range(5):
        add(f"file-{number}", f"a text of {number}", OLD)
        add(f"file-{number}", f"another text of {number}", OLD)
    members = [Member("file-*")]
    with closing(open_store(site.url, members, text="text", vector="vector", control=site.control)) as opened:
        options = MigrationOptions(staging=tmp_path / "staging", min_free_gb=0)
        migration = Migration(opened, new=NEW, old=OLD, options=options)
        assert migration.plan().provenance.is_confirmed
        assert migration.start().collections == tuple(f"file-{number}" for number in range(5))
        add("file-5", "uploaded meanwhile", OLD)
        assert first("file-5", "uploaded meanwhile", OLD) == "uploaded meanwhile"
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        assert first("file-3_vecferry_2", "another text of 3", NEW) == "another text of 3"
        migration.rollback()
        migration.cutover()
        migration.finalize(confirmed=True)
    for number in range(5):
        assert first(f"file-{number}", f"another text of {number}", NEW) == f"another text of {number}"
    add("file-5", "after it", NEW)
    assert [first("file-5", text, NEW) for text in ("uploaded meanwhile", "after it")] == [
        "uploaded meanwhile",
        "after it",
    ]
