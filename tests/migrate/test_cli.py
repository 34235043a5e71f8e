"""The whole migration through the command line, on a real PostgreSQL and a real (tiny) model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from vecferry.artifact import Artifact

TABLE = ("--table", "documents", "--text-column", "body")


@pytest.fixture
def documents(connection: psycopg.Connection) -> psycopg.Connection:
    """600 rows with vectors of an old model of 3 numbers, one row with no text."""
    connection.execute("CREATE TABLE documents (id int PRIMARY KEY, body text, embedding vector(3))")
    connection.execute(
        "INSERT INTO documents"
        " SELECT n, 'text number ' || n, ARRAY[1, n, 0]::real[]::vector FROM generate_series(1, 600) n"
    )
    connection.execute("INSERT INTO documents VALUES (0, NULL, '[0,0,1]')")
    return connection


def command(verb: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "vecferry.cli", "migrate", verb, *TABLE, *options, "--json"]


def environment(database_url: str, artifact: Artifact) -> dict[str, str]:
    return {"VECFERRY_DATABASE_URL": database_url, "ONNX_MODEL_PATH": str(artifact.path), "PATH": os.environ["PATH"]}


def test_every_verb_from_plan_to_finalize(
    documents: psycopg.Connection, database_url: str, tiny_artifact: Artifact
) -> None:
    def migrate(verb: str, *options: str, code: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            command(verb, *options),
            env=environment(database_url, tiny_artifact),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def dimension() -> int:
        (found,) = documents.execute("SELECT vector_dims(embedding) FROM documents WHERE id = 7").fetchone() or (0,)
        return int(found)

    assert migrate("status", code=4)["error"]["type"] == "MigrationNotFound"
    planned = migrate("plan", "--sample", "10")
    assert (planned["table"]["rows"], planned["old_dimension"], planned["new_dimension"]) == (601, 3, 64)
    assert migrate("start")["dead_letters"] == 1
    assert migrate("cutover", code=4)["error"]["type"] == "IllegalTransition"
    assert migrate("verify", "--sample", "20")["passed"]
    assert migrate("cutover", code=4)["error"]["type"] == "CutoverRefused"
    migrate("cutover", "--accept-dead-letters", "1")
    assert dimension() == 64
    migrate("rollback")
    assert dimension() == 3
    migrate("cutover", "--accept-dead-letters", "1")
    assert migrate("status")["state"] == "serving_new"
    assert migrate("finalize", code=4)["error"]["type"] == "FinalizeNotConfirmed"
    assert migrate("finalize", "--yes")["state"] == "finalized"
    assert dimension() == 64


def test_people_are_told_what_comes_next(
    documents: psycopg.Connection, database_url: str, tiny_artifact: Artifact
) -> None:
    def migrate(verb: str, *options: str) -> str:
        arguments = [argument for argument in command(verb, *options) if argument != "--json"]
        settings = {**environment(database_url, tiny_artifact), "COLUMNS": "200"}
        return subprocess.run(arguments, env=settings, capture_output=True, text=True, check=True).stdout

    assert "601 (1 without a text, 0 with an empty one)" in migrate("plan")
    started = migrate("start")
    assert "600 of 601" in started
    assert "0: the text is NULL" in started
    assert "vecferry migrate verify" in started
    assert "✓  recomputed sample" in migrate("verify")
    assert "vecferry migrate cutover" in migrate("status")
    assert "epoch 2, generation 2" in migrate("cutover", "--accept-dead-letters", "1")
    documents.execute("UPDATE documents SET body = 'changed' WHERE id = 7")
    assert "1 (7)" in migrate("rollback")


def test_kill_9_of_start_is_resumed_by_the_same_command(
    documents: psycopg.Connection, database_url: str, tiny_artifact: Artifact
) -> None:
    """The process is killed as soon as some rows are written; nothing is lost, nothing is doubled."""

    def written() -> int:
        try:
            row = documents.execute("SELECT count(embedding_vecferry_new) FROM documents").fetchone()
        except psycopg.errors.UndefinedColumn:
            return 0
        return int(row[0]) if row else 0

    start = command("start", "--rows-per-range", "5")
    process = subprocess.Popen(
        start, env=environment(database_url, tiny_artifact), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while written() < 20 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 20 <= written() < 600
    done = subprocess.run(
        start, env=environment(database_url, tiny_artifact), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["rows_done"] == 600
    assert written() == 600
    assert documents.execute("SELECT count(*) FROM documents").fetchone() == (601,)


def test_a_password_is_in_no_message(documents: psycopg.Connection, tiny_artifact: Artifact, tmp_path: Path) -> None:
    url = "postgresql://app:hunter2@127.0.0.1:9/app"
    done = subprocess.run(
        [*command("status"), "--database", url],
        env=environment(url, tiny_artifact),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "hunter2" not in done.stdout + done.stderr
