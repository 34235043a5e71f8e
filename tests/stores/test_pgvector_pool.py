"""A pool of connections in transaction mode is refused, and nothing is left behind on its sessions."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from tests.waiting import wait_until
from vecferry.errors import StoreUnreachable
from vecferry.stores.pgvector import PgVectorStore

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextmanager
def pool(database_url: str, *lines: str) -> Iterator[str]:
    """Start PgBouncer before the database, as the user who runs that, and yield its URL."""
    address = psycopg.conninfo.conninfo_to_dict(database_url)
    server = " ".join(f"{name}={address[name]}" for name in ("host", "dbname", "user"))
    folder = Path(tempfile.mkdtemp(prefix="vecferry-pool-"))
    folder.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = (
        "[databases]", f"app = {server}", "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {port}",
        "unix_socket_dir =", "auth_type = any", "pool_mode = transaction", "default_pool_size = 1", *lines,
    )  # fmt: skip
    (folder / "pgbouncer.ini").write_text("\n".join(settings), encoding="utf-8")
    owner = Path(str(address["host"])).owner()
    command = [str(PGBOUNCER), "--quiet", str(folder / "pgbouncer.ini")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, user=owner)
    url = f"postgresql://app@127.0.0.1:{port}/app"

    def answers() -> bool:
        assert process.poll() is None, "PgBouncer has ended"
        with suppress(psycopg.OperationalError), psycopg.connect(url):
            return True
        return False

    try:
        wait_until(answers)
        yield url
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed (Debian: pgbouncer)")
@pytest.mark.parametrize("lines", [(), ("ignore_startup_parameters = options",)], ids=["refuses", "ignores"])
def test_a_pool_is_refused_and_its_sessions_are_as_before(
    database_url: str, connection: psycopg.Connection, lines: tuple[str, ...]
) -> None:
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8))")
    names = ("row_security", "default_transaction_isolation", "TimeZone", "idle_in_transaction_session_timeout")
    before = [connection.execute(f"SHOW {name}").fetchone() for name in names]
    with pool(database_url, *lines) as url:
        with pytest.raises(StoreUnreachable, match="URL of the server itself"):
            PgVectorStore.connect(url, "docs", "body", "embedding")
        with psycopg.connect(url, autocommit=True) as application:
            assert [application.execute(f"SHOW {name}").fetchone() for name in names] == before
