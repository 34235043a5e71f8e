"""A store for each application: PostgreSQL, a server of Chroma, folders of LanceDB, Milvus and Qdrant, SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pymilvus import MilvusClient
from qdrant_client import QdrantClient

from tests.applications.sites import QdrantSite, UrlSite
from tests.postgres import connection, database_url, postgres_url
from tests.stores.backends_chroma import emptied_server
from tests.stores.backends_milvus import end

__all__ = ["connection", "database_url", "postgres_url"]


@pytest.fixture
def postgres(database_url: str, tmp_path: Path) -> UrlSite:
    return UrlSite(database_url, tmp_path / "unused.db")


@pytest.fixture
def chroma(tmp_path: Path) -> UrlSite:
    return UrlSite(emptied_server(), tmp_path / "control.db")


@pytest.fixture
def lancedb(tmp_path: Path) -> UrlSite:
    return UrlSite(f"lancedb://{tmp_path / 'lancedb'}", tmp_path / "control.db")


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[UrlSite]:
    file = tmp_path / "docs.db"
    MilvusClient(str(file)).close()  # makes it
    yield UrlSite(f"milvus://{file}", tmp_path / "control.db")
    end(file)


@pytest.fixture
def sqlite(tmp_path: Path) -> UrlSite:
    file = tmp_path / "docs.sqlite"
    file.touch()
    return UrlSite(f"sqlite://{file}", tmp_path / "control.db")


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[QdrantSite]:
    with closing(QdrantClient(path=str(tmp_path / "qdrant"), force_disable_check_same_thread=True)) as client:
        yield QdrantSite(client)
