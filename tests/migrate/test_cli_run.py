"""`vecferry migrate run --offline`: one command and one yes for an application that is stopped meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pytest

from tests.migrate.test_cli import (
    OVERRIDE,
    ROWS,
    TABLE,
    Cli,
    beside,
    cli,
    dimension,
    documents,
    environment,
    running,
    without_text,
    write_config,
)
from tests.waiting import wait_until
from vecferry.cli import output as cli_output
from vecferry.model.artifact import Artifact

__all__ = ["cli", "documents", "environment", "without_text"]

OFFLINE = ("--offline", "--accept-unconfirmed", "a test")
YES = (*OFFLINE, "--yes", *OVERRIDE)


def test_one_yes_takes_a_collection_to_the_new_vectors_and_keeps_the_old_ones(
    cli: Cli, documents: psycopg.Connection, wide_artifact: Artifact
) -> None:
    models = ("--new-model", str(wide_artifact.path))
    refused = cli.text("run", *OFFLINE, *OVERRIDE, *models, code=4)
    assert f"error: run embeds {ROWS} rows of public.documents.embedding in about " in refused
    assert "hint: vecferry migrate run --offline" in refused
    assert "--yes\n" in refused
    assert cli.error("status", code=4) == "MigrationNotFound", "nothing was begun without a yes"

    shown = cli.text("run", *YES, *models)
    named = f"{' '.join(models)} {' '.join(TABLE)}"
    assert "✓  recomputed sample" in shown
    assert beside("to go back", shown) == f"vecferry migrate rollback {' '.join(TABLE)}"
    assert beside("to drop the old vectors", shown) == f"vecferry migrate finalize {named}"
    assert dimension(documents) == 1024
    assert "the new vectors serve already" in cli.text("run", *YES, *models)

    assert cli("rollback")["state"] == "serving_old"
    again = cli("run", *YES, *models)
    assert (again["plan"], again["state"], again["cutover"]["serving"]["epoch"]) == (None, "serving_new", 4)
    cli("finalize", "--yes", *models)
    assert "the new vectors serve already" in cli.text("run", *YES, *models)


def test_a_live_application_is_told_of_the_verbs(cli: Cli) -> None:
    refused = cli.text("run", "--yes", code=2)
    assert cli.error("run", *OFFLINE, "--yes", "--override", " ", code=2) == "SettingsError"
    assert "--offline is missing: beside a live application the verbs are run one by one" in refused


def test_a_gate_that_is_not_passed_ends_it_with_what_to_type_and_the_next_one_goes_on(
    cli: Cli, wide_artifact: Artifact, tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows have no sentence that could be asked for."""
    monkeypatch.setattr(cli_output.output, "width", 400)
    new = ("--new-model", str(wide_artifact.path))
    assert cli.error("run", *OFFLINE, "--yes", *new, code=2) == "MissingOption", "the gate needs the old model"
    models = (*new, "--old-model", str(tiny_artifact.path))
    shown = cli.text("run", *OFFLINE, "--yes", *models, code=4)
    assert beside("gate", shown).startswith("not passed: ")
    assert beside("next", shown).startswith("vecferry migrate run --offline --yes --new-model ")
    assert beside("next", shown).endswith(f"{' '.join(TABLE)} --override REASON")
    assert beside("or", shown).startswith("vecferry migrate abort --old-model ")
    parts = cli("run", *YES, *models)
    assert (parts["plan"], parts["start"], parts["state"]) == (None, None, "serving_new")
    assert parts["verification"]["override"]["reason"] == OVERRIDE[1]


def test_dead_letters_are_accepted_by_their_number(cli: Cli, without_text: psycopg.Connection) -> None:
    assert "--accept-dead-letters 1" in cli.text("run", *YES, code=4)
    parts = cli("run", *YES, "--accept-dead-letters", "1")
    assert (parts["verification"], parts["cutover"]["dead_letters"]) == (None, 1)


def test_what_start_refuses_is_refused_without_a_question(cli: Cli, tiny_artifact: Artifact) -> None:
    assert cli.error("run", "--offline", *OVERRIDE, code=4) == "VectorsUnconfirmed"
    cli("start")
    cli("pause")
    assert cli.error("run", *YES, code=4) == "IllegalTransition", "an operator's pause is his to end"
    cli("resume")
    assert cli("run", *YES)["state"] == "serving_new"


def test_kill_9_of_a_run_is_resumed_by_the_same_command(
    cli: Cli, documents: psycopg.Connection, database_url: str, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path / "slow",
        {
            "store": {"url": database_url, "collection": "documents", "text": "body"},
            "models": {"new": str(tiny_artifact.path)},
            "limits": {"rows_per_range": 2, "rows_per_s": 30, "min_free_gb": 0.0},
        },
    )
    ours = Cli(cli.capsys, ("--config", str(config)))

    def written() -> int:
        try:
            row = documents.execute("SELECT count(embedding_vecferry_new) FROM documents").fetchone()
        except psycopg.errors.UndefinedColumn:
            return 0
        return int(row[0]) if row else 0

    with running(ours.process("run", *YES)) as process:
        wait_until(lambda: written() >= 6)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert written() < ROWS
    ours("throttle")
    parts = ours("run", *YES)
    assert (parts["plan"], parts["start"]["rows_done"], parts["state"]) == (None, ROWS, "serving_new")


@pytest.mark.parametrize("interrupted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_store_of_points_goes_the_same_way(
    capsys: pytest.CaptureFixture[str],
    environment: None,
    tiny_artifact: Artifact,
    wide_artifact: Artifact,
    tmp_path: Path,
    *,
    interrupted: bool,
) -> None:
    vectors = np.random.default_rng(0).standard_normal((ROWS, 64)).astype(np.float32)
    columns = {"id": [f"d{i}" for i in range(ROWS)], "text": [f"text number {i}" for i in range(ROWS)]}
    embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 64)
    lancedb.connect(tmp_path / "data").create_table("docs", pa.table({**columns, "embedding": embedding}))
    config = write_config(
        tmp_path,
        {
            "store": {"url": "lancedb:data", "collection": "docs"},
            "models": {"new": str(wide_artifact.path), "old": str(tiny_artifact.path)},
            "limits": {"min_free_gb": 0.0},
        },
    )
    ours = Cli(capsys, ("--config", str(config)))
    if interrupted:
        ours("start")
    parts = ours("run", *YES)
    assert (parts["plan"] is None, parts["cutover"]["serving"]["locator"]) == (interrupted, "docs_vecferry_2")
    assert ours("rollback")["serving"]["locator"] == "docs"
