"""`vecferry console` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psycopg
import pytest

from tests.postgres import connection, database_url, postgres_url
from tests.waiting import wait_until
from vecferry.model.artifact import Artifact

__all__ = ["connection", "database_url", "postgres_url"]

ADDRESS, OWN_KEY = re.compile(r"at (http://\S+)"), re.compile(r"made for this run: (\S+)")
WAIT_S = 300


@pytest.fixture
def config(tiny_artifact: Artifact, connection: psycopg.Connection, database_url: str, tmp_path: Path) -> Path:
    connection.execute("CREATE TABLE documents (id int PRIMARY KEY, body text, embedding vector(64))")
    connection.execute("INSERT INTO documents VALUES (1, 'one', NULL)")
    file = tmp_path / "migration.toml"
    file.write_text(
        f'[store]\nurl = "{database_url}"\ncollection = "documents"\ntext = "body"\nembed_missing = true\n'
        f'[models]\nnew = "{tiny_artifact.path}"\n'
    )
    return file


def command(config: Path, *options: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "vecferry.cli", "console", "--config", str(config), *options]


@contextmanager
def running(config: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Yield the process, its address, and the lines that it has printed so far."""
    process = subprocess.Popen(
        command(config, "--port", "0", *options), cwd=config.parent, stderr=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    started = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "startup complete" in line:
                started.set()
        started.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert started.wait(WAIT_S), "no start"
        address = ADDRESS.search("".join(lines))
        assert address, "".join(lines)
        yield process, address[1], lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def log_in(http: httpx2.Client, url: str, key: str) -> int:
    return http.post("/login", data={"key": key}, headers={"origin": url}).status_code


def test_a_key_is_made_and_said_once_where_none_is_given(config: Path) -> None:
    with running(config) as (process, url, lines), httpx2.Client(base_url=url) as http:
        (key,) = OWN_KEY.findall("".join(lines))
        assert log_in(http, url, key) == 303
        assert "not begun" in http.get("/").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert "".join(lines).count(key) == 1


def test_a_stream_and_a_run_end_with_the_process(config: Path) -> None:
    with running(config) as (process, url, lines), httpx2.Client(base_url=url, timeout=WAIT_S) as http:
        log_in(http, url, OWN_KEY.findall("".join(lines))[0])
        token = re.search(r'name="csrf" value="([^"]+)"', http.get("/").text)[1]  # type: ignore[index]
        assert http.post("/do/start", data={"csrf": token}, headers={"origin": url}).status_code == 303
        with http.stream("GET", "/events") as stream:
            for line in stream.iter_lines():
                if "catching up</h1>" in line:
                    process.send_signal(signal.SIGHUP)  # as a terminal does that is closed
        assert process.wait(WAIT_S) == 0
    assert "Traceback" not in "".join(lines)


def test_a_store_that_goes_away_is_said_and_one_that_comes_back_is_seen(
    config: Path, database_url: str, postgres_url: str
) -> None:
    with running(config) as (_, url, lines), httpx2.Client(base_url=url, timeout=WAIT_S) as http:
        log_in(http, url, OWN_KEY.findall("".join(lines))[0])
        name = re.search(r"/(test_\d+)\?", database_url)[1]  # type: ignore[index]
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            wait_until(lambda: "unreachable</h1>" in http.get("/").text)
            assert "the pgvector store cannot be reached" in http.get("/").text
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_until(lambda: "not begun</h1>" in http.get("/").text)


def test_keys_of_a_file_are_taken_and_none_is_made(config: Path) -> None:
    keys = config.with_name("keys")
    keys.write_text("a-key-of-the-file-1234\n")
    with running(config, "--api-keys", str(keys)) as (_, url, lines), httpx2.Client(base_url=url) as http:
        assert not OWN_KEY.search("".join(lines))
        assert log_in(http, url, "a-key-of-the-file-1234") == 303


def test_beyond_loopback_a_console_needs_keys(config: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VECFERRY_")}
    done = subprocess.run(
        command(config, "--host", "0.0.0.0"), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert "API keys" in done.stderr
