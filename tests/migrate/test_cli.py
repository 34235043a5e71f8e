"""The verbs as they are typed, on a real PostgreSQL and on other stores, with real (tiny) models.

A process of its own is started where that is the point; elsewhere the same entry point is called.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pytest

from tests.migrate.doubles import Clock
from tests.stores import backends_chroma
from tests.stores.collections import without_triggers
from tests.waiting import wait_until
from vecferry.cli import main
from vecferry.cli import output as cli_output
from vecferry.cli.migrate_view import check_rows, verdict_rows
from vecferry.encode import progress as progress_lines
from vecferry.migrate import Check, GateVerdict, MappedThreshold, State, VerifyReport
from vecferry.model.artifact import Artifact

ROWS = 60
START_S = 300
OVERRIDE = ("--override", "no gate in this test")


# --- how a command is given -----------------------------------------------------------------------


@dataclass
class Cli:
    """Verbs that run in this process; `process` in one of its own. options: given to every verb."""

    capsys: pytest.CaptureFixture[str]
    options: tuple[str, ...] = ()

    def _arguments(self, verb: str, *options: str) -> list[str]:
        """Vectors of these tests are random numbers, so `start` is told to begin all the same."""
        accepted = ["--accept-unconfirmed", "a test"] if verb == "start" else []
        return ["migrate", verb, *options, *self.options, *accepted]

    def text(self, verb: str, *options: str, code: int = 0) -> str:
        """Return standard output and standard error."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(self._arguments(verb, *options))
        printed = self.capsys.readouterr()
        assert (ended.value.code or 0) == code, printed.out + printed.err
        return printed.out + printed.err

    def __call__(self, verb: str, *options: str, code: int = 0) -> dict[str, Any]:
        """Return the one JSON object on standard output."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*self._arguments(verb, *options), "--json"])
        printed = self.capsys.readouterr()
        assert (ended.value.code or 0) == code, printed.out + printed.err
        return dict(json.loads(printed.out))

    def error(self, verb: str, *options: str, code: int) -> str:
        """Return the name of the error, by which programs tell it."""
        error = self(verb, *options, code=code)["error"]
        assert error["exit_code"] == code
        assert error["message"]
        return str(error["type"])

    def process(self, verb: str, *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "vecferry.cli", *self._arguments(verb, *options), "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def ended(process: "subprocess.Popen[str]", code: int = 0) -> dict[str, Any]:
    """Return the process's JSON object, once it has ended by itself."""
    out, err = process.communicate(timeout=START_S)
    assert process.returncode == code, out + err
    return dict(json.loads(out))


@contextmanager
def running(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """Yield the process; nothing of it is left at the end."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give the test a folder of its own, no settings, and wide tables."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("VECFERRY_", "ONNX_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(cli_output.output, "width", 200)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


# --- the database ---------------------------------------------------------------------------------


@pytest.fixture
def documents(connection: psycopg.Connection) -> psycopg.Connection:
    """Fill a table: 60 rows with vectors of an old model of 64 numbers, and one row without a text."""
    connection.execute("CREATE TABLE documents (id int PRIMARY KEY, body text, embedding vector(64) NOT NULL)")
    connection.execute(
        "INSERT INTO documents SELECT n, 'text number ' || n, (SELECT array_agg(sin(n * i))"
        f" FROM generate_series(1, 64) i)::real[]::vector FROM generate_series(1, {ROWS}) n"
    )
    return connection


@pytest.fixture
def without_text(documents: psycopg.Connection) -> psycopg.Connection:
    """Return the table with a row that will be a dead letter."""
    documents.execute("INSERT INTO documents SELECT 0, NULL, embedding FROM documents WHERE id = 1")
    return documents


TABLE = ("--collection", "documents", "--text", "body")


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    documents: psycopg.Connection,
    database_url: str,
    tiny_artifact: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> Cli:
    """Return a command line on `documents` with the tiny model as the new one, by options and the environment."""
    monkeypatch.setenv("VECFERRY_STORE_URL", database_url)
    monkeypatch.setenv("ONNX_MODEL_PATH", str(tiny_artifact.path))
    return Cli(capsys, TABLE)


def dimension(documents: psycopg.Connection) -> int:
    (length,) = documents.execute("SELECT vector_dims(embedding) FROM documents WHERE id = 7").fetchone() or (0,)
    return int(length)


# --- from plan to finalize ------------------------------------------------------------------------


def write_config(folder: Path, values: Mapping[str, Mapping[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        line
        for section, fields in values.items()
        for line in (f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in fields.items()))
    ]
    (folder / "migration.toml").write_text("\n".join(lines))
    return folder / "migration.toml"


def test_every_verb_runs_in_a_process_of_its_own_from_one_file(
    documents: psycopg.Connection,
    database_url: str,
    tiny_artifact: Artifact,
    wide_artifact: Artifact,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The paths in the file are relative to its folder, not to where the process runs."""
    models = tmp_path / "elsewhere" / "models"
    models.mkdir(parents=True)
    (models / "new").symlink_to(wide_artifact.path)
    (models / "old").symlink_to(tiny_artifact.path)
    config = write_config(
        tmp_path / "elsewhere",
        {
            "store": {"url": database_url, "collection": "public.documents", "text": "body"},
            "models": {"new": "models/new", "old": "models/old"},
            "limits": {"rows_per_range": 7, "staging": "staged", "min_free_gb": 0.0},
            "verify": {"sample": 20},
        },
    )
    cli = Cli(capsys, ("--config", str(config)))

    def run(verb: str, *options: str, code: int = 0) -> dict[str, Any]:
        return ended(cli.process(verb, *options), code)

    planned = run("plan")
    assert (planned["old_dimension"], planned["new_dimension"], planned["sample_rows"]) == (64, 1024, 20)
    started = run("start")
    assert (started["rows_done"], started["ranges"], started["state"]) == (ROWS, 9, "catching_up")
    assert list((tmp_path / "elsewhere" / "staged").rglob("*.parquet"))
    assert not (tmp_path / ".vecferry").exists()
    assert run("verify", *OVERRIDE)["sampled"] == 20
    assert run("cutover")["serving"]["epoch"] == 2
    assert dimension(documents) == 1024
    documents.execute("UPDATE documents SET body = 'changed' WHERE id = 7")
    assert run("rollback")["outdated_rows"] == 0
    assert dimension(documents) == 64
    assert run("cutover")["serving"]["epoch"] == 4
    assert run("finalize", code=4)["error"]["type"] == "NotConfirmed"
    assert run("finalize", "--yes")["state"] == "finalized"
    assert dimension(documents) == 1024


def test_every_verb_runs_by_options(cli: Cli, without_text: psycopg.Connection) -> None:
    assert cli.error("status", code=4) == "MigrationNotFound"
    assert cli("plan", "--sample", "10")["table"]["rows"] == ROWS + 1
    assert cli("start", "--rows-per-s", "1000")["dead_letters"] == 1
    assert cli("status")["control"] == {"rows_per_s": 1000.0, "postponed": False}
    assert cli("throttle")["control"]["rows_per_s"] is None
    assert cli.error("cutover", code=4) == "IllegalTransition"
    assert cli("pause", "--reason", "for lunch")["paused"] == "for lunch"
    assert cli.error("verify", code=4) == "IllegalTransition"
    assert cli("resume")["state"] == "catching_up"
    assert cli("verify", "--sample", "20", *OVERRIDE)["passed"]
    assert "or accept them: --accept-dead-letters 1" in cli.text("cutover", code=4)
    assert cli("postpone")["control"]["postponed"]
    assert cli.error("cutover", "--accept-dead-letters", "1", code=4) == "CutoverRefused"
    assert not cli("postpone", "--undo")["control"]["postponed"]
    assert cli("retry")["dead_letters"] == 1
    assert cli("cutover", "--accept-dead-letters", "1")["dead_letters"] == 1
    assert cli("status")["state"] == "serving_new"
    assert cli("rollback")["state"] == "serving_old"
    assert cli("abort", "--yes")["state"] == "aborted"
    assert cli("start")["state"] == "catching_up"


def test_what_has_ended_already_says_so_and_takes_its_leftovers_away(
    cli: Cli, documents: psycopg.Connection, tmp_path: Path
) -> None:
    def leave_something() -> Path:
        query = "SELECT spec::json ->> 'fingerprint', spec::json ->> 'uid' FROM vecferry.migrations"
        record = documents.execute(query).fetchall()
        space, uid = record[-1]
        left: Path = tmp_path / ".vecferry" / "staging" / space / "dense" / f"{uid}-00000001.parquet"
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"left by a process that was killed")
        return left

    cli("start")
    cli("abort", "--yes")
    left = leave_something()
    assert "the migration was given up before" in cli.text("abort")
    assert not left.exists()
    cli("start")
    cli("verify", *OVERRIDE)
    cli("cutover")
    cli("finalize", "--yes")
    left = leave_something()
    assert cli("status")["state"] == "finalized"
    assert not left.exists()
    assert "the old vectors were dropped before" in cli.text("finalize")
    assert cli.error("abort", "--yes", code=4) == "IllegalTransition"


def test_the_ledger_is_forgotten_once_all_have_ended_and_somebody_said_yes(cli: Cli) -> None:
    cli("start")
    assert cli.error("forget", "--yes", code=4) == "MigrationsOpen"
    cli("abort", "--yes")
    assert "removes the history of all migrations" in cli.text("forget", code=4)
    assert cli("forget", "--yes") == {"migrations": 1}
    assert cli("forget", "--yes") == {"migrations": 0}
    assert cli.error("status", code=4) == "MigrationNotFound"


def test_abort_leaves_the_table_as_it_was(cli: Cli, documents: psycopg.Connection) -> None:
    def columns() -> list[tuple[Any, ...]]:
        query = "SELECT attname, atttypid, attnotnull FROM pg_attribute WHERE attrelid = 'documents'::regclass"
        return documents.execute(f"{query} AND attnum > 0 AND NOT attisdropped").fetchall()

    def triggers() -> list[tuple[Any, ...]]:
        return documents.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = 'documents'::regclass").fetchall()

    before = columns()
    cli("start")
    assert columns() != before
    assert triggers()
    assert cli.error("abort", code=4) == "NotConfirmed"
    cli("abort", "--yes")
    assert columns() == before
    assert not triggers()


def test_a_verb_that_drops_vectors_asks_its_own_question_and_hints_at_itself(
    cli: Cli, documents: psycopg.Connection, database_url: str, tmp_path: Path, tiny_artifact: Artifact
) -> None:
    cli("start")
    not_confirmed = cli.text("abort", "--accept-dead-letters", "1", code=4)
    assert "error: abort drops the new vectors of documents; it was not confirmed." in not_confirmed
    assert f"hint: vecferry migrate abort --accept-dead-letters 1 {' '.join(TABLE)} --yes\n" in not_confirmed
    impossible = cli.text("finalize", code=4)
    assert "finalize is not possible in state 'catching_up'" in impossible
    cli("verify", *OVERRIDE)
    cli("cutover")
    assert "abort is not possible in state 'serving_new'" in cli.text("abort", code=4)
    store = {"collection": "public.documents", "text": "body"}
    config = write_config(tmp_path / "a folder", {"store": store, "models": {"new": str(tiny_artifact.path)}})
    cli = Cli(cli.capsys, ("--config", str(config), "--store", database_url))
    not_confirmed = cli.text("finalize", code=4)
    assert (
        "finalize drops the old vectors of public.documents.embedding and cannot be undone, and no verify"
        in not_confirmed
    )
    assert (
        f"hint: vecferry migrate finalize --config '{config}' --store {shlex.quote(database_url)} --yes\n"
        in not_confirmed
    )
    assert cli("status")["state"] == "serving_new"


def test_a_command_that_a_hint_or_a_table_names_works_as_it_stands(
    cli: Cli, database_url: str, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    store = {"url": database_url, "collection": "documents", "text": "body"}
    config = write_config(tmp_path / "a folder", {"store": store, "models": {"new": str(tiny_artifact.path)}})
    ours = Cli(cli.capsys, ("--config", str(config)))
    named = f"--config '{config}'"
    assert f"hint: Begin one: vecferry migrate start {named}\n" in ours.text("status", code=4)
    assert ours("status", code=4)["error"]["hint"] == f"Begin one: vecferry migrate start {named}"
    unconfirmed = ("start", "--new-model", str(tiny_artifact.path), *ours.options)
    cli.capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["migrate", *unconfirmed])
    refused = cli.capsys.readouterr().err
    models = f"--new-model {tiny_artifact.path}"
    assert f"vecferry migrate start {models} {named} --accept-unconfirmed REASON" in refused
    ours("start")
    shown = ours.text("verify", code=4)
    for row in ("or", "next", "until then", "or"):  # override, cutover, rollback, abort
        command = beside(row, shown)
        assert named in command
        shown = typed(cli.capsys, command.replace("REASON", "tried"))
    assert beside("state", shown) == "aborted"


def typed(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """Run a command as it was printed, with a yes where it drops vectors; return what it prints."""
    _, *arguments = shlex.split(command)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *(["--yes"] if "abort" in arguments else [])])
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    return printed.out


def test_a_check_that_passed_with_a_warning_has_no_tick() -> None:
    fell = Check("language de", passed=True, seen="a → b", warning="fell")
    gate = GateVerdict(passed=True, message="judged.", evidence="queries", checks=(fell,))
    finite = Check("finite", passed=True, seen="all")
    report = VerifyReport(
        "docs", passed=True, rows=1, dead_letters=0, sampled=1, lowest_cosine=1.0, recall=1.0, checks=(finite,),
        state=State.READY, gate=gate,
    )  # fmt: skip
    assert check_rows(report) == [("✓", "finite", "all"), ("!", "language de", "a → b; fell")]


def test_where_nobody_looks_a_line_every_ten_seconds_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress_lines, "time", clock)
    with cli_output.counting("rows", "rows") as progress:
        for done in range(0, 2600, 100):
            progress(done, 2500)
            clock.now += 1.0
    assert (
        capsys.readouterr().err
        == "rows: 1,000 of 2,500, about 0:00:15 left\nrows: 2,000 of 2,500, about 0:00:05 left\n"
    )


# --- for people -----------------------------------------------------------------------------------


def test_people_are_told_what_comes_next(cli: Cli, without_text: psycopg.Connection) -> None:
    planned = cli.text("plan", "--sample", "5")
    assert f"{ROWS + 1} (1 without a text, 0 with an empty one)" in planned
    assert "vecferry migrate start" in planned
    assert "abort" in planned
    assert "documents.embedding_vecferry_new" in planned
    started = cli.text("start")
    assert f"{ROWS} of {ROWS + 1}" in started
    assert "0 (new): the text is NULL" in started
    assert "vecferry migrate verify" in started
    cli.text("pause", "--reason", "for lunch")
    paused = cli.text("status")
    assert beside("run by", paused) == "nobody"
    assert beside("models", paused).startswith("not named (not known) → tiny (")
    assert "paused: for lunch" in paused
    assert "vecferry migrate resume" in paused
    assert "10 rows a second" in cli.text("throttle", "10")
    for wrong in ("0", "inf", "nan"):
        assert cli.error("throttle", wrong, code=2) == "SettingsError"
    assert "postponed" in cli.text("postpone")
    cli.text("postpone", "--undo")
    cli.text("resume")
    assert "✓  recomputed sample" in cli.text("verify", "--sample", "5", *OVERRIDE)
    assert "vecferry migrate cutover" in cli.text("status")
    switched = cli.text("cutover", "--accept-dead-letters", "1")
    assert "epoch 2, generation 2" in switched
    assert beside("until then", switched).startswith("vecferry migrate rollback --collection documents")
    rolled_back = cli.text("rollback")
    assert beside("next", rolled_back) == f"vecferry migrate cutover {' '.join(TABLE)}"
    assert beside("or", rolled_back) == f"vecferry migrate abort {' '.join(TABLE)}"
    cli.text("cutover", "--accept-dead-letters", "1")
    assert "a new migration may begin" in cli.text("finalize", "--yes")


def test_a_failed_check_is_shown_with_its_rows(cli: Cli, documents: psycopg.Connection) -> None:
    cli("start")
    with without_triggers(documents, "documents"):
        documents.execute("UPDATE documents SET embedding_vecferry_new = NULL WHERE id = 7")
    shown = cli.text("verify", code=4)
    assert "✗  text unchanged" in shown
    assert "1 rows without a vector of their present text: 7" in shown
    report = cli("verify", code=4)
    assert [check["keys"] for check in report["checks"] if not check["passed"]] == [["7"]]


def test_an_error_is_a_message_and_a_hint(cli: Cli) -> None:
    shown = cli.text("status", code=4)
    assert "error: there is no migration of 'public.documents.embedding' in this database." in shown
    assert f"hint: Begin one: vecferry migrate start {' '.join(TABLE)}\n" in shown


def beside(name: str, shown: str) -> str:
    """Return what a table shows beside a name; empty if it shows nothing."""
    match = re.search(rf"^ *{name}  +(.*?) *$", shown, re.MULTILINE)
    return match[1] if match else ""


def test_a_gate_that_has_not_passed_says_what_to_type_and_an_override_is_shown(
    cli: Cli, documents: psycopg.Connection
) -> None:
    """There is no old model to compare with here."""
    cli("start")
    shown = cli.text("verify", code=4)
    assert "✓  recomputed sample" in shown
    assert beside("gate", shown).startswith("not passed: ")
    assert "no old model" in beside("gate", shown)
    assert beside("next", shown) == f"vecferry migrate verify {' '.join(TABLE)}"
    assert beside("or", shown) == f"vecferry migrate override {' '.join(TABLE)} --reason REASON"
    refused = cli.text("cutover", code=4)
    assert "cutover is not possible in state 'verified', since the gate has not passed: " in refused
    assert f"vecferry migrate override {' '.join(TABLE)} --reason REASON" in refused
    assert cli.error("cutover", code=4) == "GateNotPassed"
    assert cli.error("override", "--reason", " ", code=2) == "SettingsError"
    cli.text("override", code=2)  # the reason is required
    shown = cli.text("override", "--reason", "the old model is discontinued")
    assert (beside("state", shown), beside("last verification", shown)) == ("ready", "passed")
    assert re.fullmatch(r"the old model is discontinued \(.+@.+, .{19}\)", beside("gate overridden", shown))
    assert cli("verify", code=4)["state"] == "verified"
    assert beside("gate overridden", cli.text("status")) == ""
    assert cli.error("verify", "--override", "", code=2) == "SettingsError"
    assert beside("gate overridden", cli.text("verify", *OVERRIDE)).startswith(OVERRIDE[1])
    assert cli("cutover")["serving"]["epoch"] == 2


def test_thresholds_of_the_file_are_shown_with_the_epoch_that_serves(
    cli: Cli, database_url: str, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    place = {"url": database_url, "collection": "documents", "text": "body"}
    models = {"new": str(tiny_artifact.path)}
    config = write_config(tmp_path, {"store": place, "models": models, "thresholds": {"duplicate": 0.92}})
    ours = Cli(cli.capsys, ("--config", str(config)))
    assert ours("start")["serving"]["thresholds"] == {"duplicate": 0.92}
    assert beside("its thresholds", ours.text("status")) == "duplicate 0.92"
    ours("verify", *OVERRIDE)
    assert ours("cutover")["serving"]["thresholds"] == {}, "without the old model none is mapped"
    assert ours("rollback")["serving"]["thresholds"] == {"duplicate": 0.92}


@pytest.mark.parametrize(
    ("mapped", "shown"),
    [
        (
            MappedThreshold(0.92, 0.815, 0.8, 0.83, "matched quantile"),
            "0.815 (0.800–0.830), by matched quantile",
        ),
        (
            MappedThreshold(0.92, 0.81, 0.79, 0.83, "matched precision"),
            "0.810 (0.790–0.830), by matched precision",
        ),
    ],
)
def test_a_threshold_that_was_mapped_is_shown_with_its_interval_and_method(mapped: MappedThreshold, shown: str) -> None:
    verdict = GateVerdict(passed=True, message="Better.", evidence="judged queries", thresholds={"duplicate": mapped})
    report = VerifyReport(
        "docs",
        passed=True,
        rows=1,
        dead_letters=0,
        sampled=1,
        lowest_cosine=1.0,
        recall=1.0,
        checks=(),
        state=State.READY,
        gate=verdict,
    )
    rows = verdict_rows(report)
    assert ("threshold duplicate", f"0.920 → {shown}") in rows
    assert ("next", "vecferry migrate cutover") in rows


def test_models_that_are_away_are_missed_only_by_verbs_that_call_them(
    cli: Cli, documents: psycopg.Connection, tiny_artifact: Artifact, wide_artifact: Artifact
) -> None:
    new, old = ("--new-model", str(wide_artifact.path)), ("--old-model", str(tiny_artifact.path))
    no_new, no_old = ("--new-model", "/nowhere"), ("--old-model", "/nowhere")
    cli("start", *new, *old)
    for verb in ("verify", "retry"):
        assert cli.error(verb, *no_new, *(OVERRIDE if verb == "verify" else ()), code=3) == "ArtifactNotFound"
    cli("verify", *new, *OVERRIDE)
    for verb, option in (("cutover", no_new), ("rollback", no_old), ("cutover", no_new)):
        cli(verb, *option)
    documents.execute("UPDATE documents SET body = 'changed' WHERE id = 1")
    assert cli.error("finalize", "--yes", *no_new, code=3) == "ArtifactNotFound"
    assert cli.error("rollback", *no_old, code=3) == "ArtifactNotFound"
    assert (cli("status")["state"], cli("status")["backlog"]) == ("serving_new", 1)
    cli("rollback", *old)
    documents.execute("UPDATE documents SET body = 'changed again' WHERE id = 1")
    assert cli.error("cutover", *no_new, code=3) == "ArtifactNotFound"
    assert cli.error("abort", "--yes", *no_old, code=3) == "ArtifactNotFound"
    cli("cutover", *new)
    cli("finalize", "--yes", *no_new)


# --- exit codes -----------------------------------------------------------------------------------


def test_exit_code_2_is_for_what_was_typed(cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[store]\ncollection = 'docs'\nvectr = 'v'\n[models]\nnew = 'm'\n")
    (tmp_path / "no.toml").write_text("this is no TOML")
    assert Cli(capsys).error("status", code=2) == "MissingOption"
    assert cli.error("status", "--store", "mysql://app@localhost/app", code=2) == "InvalidStoreUrl"
    assert cli.error("start", "--outputs", "dense,smell", code=2) == "SettingsError"
    assert cli.error("start", "--outputs", "sparse", code=2) == "SettingsError"
    assert cli.error("start", "--rows-per-s=-1", code=2) == "SettingsError"
    for file, error in (("bad.toml", "UnknownSetting"), ("no.toml", "SettingsError"), ("none.toml", "UnreadableFile")):
        assert Cli(capsys, ("--config", str(tmp_path / file))).error("status", code=2) == error


def test_exit_code_3_is_for_what_is_missing_or_broken(cli: Cli, tmp_path: Path) -> None:
    assert cli.error("status", "--store", "postgresql://app@127.0.0.1:9/app", code=3) == "StoreUnreachable"
    assert cli.error("status", "--vector", "vectors", code=3) == "StoreSchemaError"
    assert cli.error("plan", "--new-model", str(tmp_path / "nowhere"), code=3) == "ArtifactNotFound"


def test_exit_code_4_is_for_what_the_state_or_a_check_refuses(cli: Cli, wide_artifact: Artifact) -> None:
    cli("start")
    assert cli.error("rollback", code=4) == "IllegalTransition"
    assert cli.error("resume", code=4) == "IllegalTransition"
    assert cli.error("start", "--new-model", str(wide_artifact.path), code=4) == "MigrationConflict"


def test_exit_code_5_is_for_somebody_else_at_work(cli: Cli, documents: psycopg.Connection, database_url: str) -> None:
    from vecferry.stores.pgvector import PgVectorStore

    cli("start")
    with PgVectorStore.connect(database_url, "documents", "body", "embedding") as store, store.runner(30):
        assert cli.error("start", code=5) == "Locked"
        assert cli.error("abort", "--yes", code=5) == "Locked"


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_end_a_follower_with_130_and_it_can_be_started_again(
    cli: Cli, interrupt: signal.Signals
) -> None:
    with running(cli.process("start", "--follow")) as follower:
        wait_until(lambda: state(cli) == "catching_up")
        follower.send_signal(interrupt)
        _, err = follower.communicate(timeout=START_S)
        assert follower.returncode == 130
        assert "\nstopping after this range; the same command goes on\n" in err
    assert cli("start")["state"] == "catching_up"


def state(cli: Cli) -> str:
    """Return the state of the migration; empty before there is one."""
    cli.capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["migrate", "status", *cli.options, "--json"])
    status = json.loads(cli.capsys.readouterr().out)
    return str(status.get("state", ""))


# --- from several terminals -----------------------------------------------------------------------


def test_a_run_in_another_process_is_watched_throttled_paused_and_resumed(cli: Cli) -> None:
    with running(cli.process("start", "--rows-per-range", "2", "--rows-per-s", "1")) as runner:
        wait_until(lambda: state(cli) == "backfilling")
        wait_until(lambda: bool(cli("status")["rows_done"] >= 4))
        assert cli("pause", "--reason", "for lunch")["state"] == "paused"
        time.sleep(0.8)  # longer than it takes to notice
        before = cli("status")["rows_done"]
        time.sleep(2.2)  # longer than a range takes
        assert cli("status")["rows_done"] == before < ROWS
        assert runner.poll() is None
        assert cli("resume")["state"] == "backfilling"
        assert cli("postpone")["control"] == {"rows_per_s": 1.0, "postponed": True}
        assert cli("throttle")["control"] == {"rows_per_s": None, "postponed": True}
        assert ended(runner)["rows_done"] == ROWS
    cli("verify", *OVERRIDE)
    with running(cli.process("cutover", "--wait")) as patient:
        time.sleep(0.5)
        assert patient.poll() is None
        cli("postpone", "--undo")
        assert ended(patient)["state"] == "serving_new"


@pytest.mark.slow
def test_a_follower_keeps_both_sides_current_until_others_have_finalized(
    cli: Cli, documents: psycopg.Connection, tiny_artifact: Artifact, wide_artifact: Artifact
) -> None:
    models = ("--new-model", str(wide_artifact.path), "--old-model", str(tiny_artifact.path))

    def followed() -> bool:
        return bool(cli("status")["backlog"] == 0)

    with running(cli.process("start", "--follow", *models)) as follower:
        wait_until(lambda: state(cli) == "catching_up")
        documents.execute("UPDATE documents SET body = 'changed' WHERE id = 7")
        documents.execute("DELETE FROM documents WHERE id = 8")
        wait_until(followed)
        for _ in range(3):
            documents.execute("UPDATE documents SET body = body || '!'")
            time.sleep(0.05)
            documents.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ %s",
                [f"vecferry .pid {follower.pid} "],
            )
            wait_until(followed)
        cli("verify", "--sample", "5", *models[:2], *OVERRIDE)
        assert cli("cutover")["serving"]["epoch"] == 2
        documents.execute("UPDATE documents SET body = 'changed again' WHERE id = 9")
        rolled = cli("rollback")
        assert (rolled["outdated_rows"], rolled["serving"]["epoch"]) == (0, 3)
        assert cli("cutover")["serving"]["epoch"] == 4
        assert follower.poll() is None
        assert cli("finalize", "--yes")["state"] == "finalized"
        out, err = follower.communicate(timeout=START_S)
        assert follower.returncode == 0, err
        assert json.loads(out)["state"] == "finalized"
        assert err == ""  # nothing of the connections that were lost
    assert documents.execute("SELECT count(*), count(embedding) FROM documents").fetchone() == (ROWS - 1, ROWS - 1)


def test_kill_9_of_start_is_resumed_by_the_same_command(cli: Cli, documents: psycopg.Connection) -> None:
    """Killed as soon as some rows are written; nothing is lost, nothing is doubled."""

    def written() -> int:
        try:
            row = documents.execute("SELECT count(embedding_vecferry_new) FROM documents").fetchone()
        except psycopg.errors.UndefinedColumn:
            return 0
        return int(row[0]) if row else 0

    with running(cli.process("start", "--rows-per-range", "2", "--rows-per-s", "30")) as runner:
        wait_until(lambda: written() >= 6)
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    assert 6 <= written() < ROWS
    assert cli("throttle")["state"] == "backfilling"
    assert cli("start", "--rows-per-range", "2")["rows_done"] == ROWS
    assert written() == ROWS
    assert documents.execute("SELECT count(*) FROM documents").fetchone() == (ROWS,)


def test_ray_is_begun_and_ended_by_start(cli: Cli, without_text: psycopg.Connection) -> None:
    status = ended(cli.process("start", "--rows-per-range", "8", "--engine", "ray", "--workers", "1"))
    assert (status["state"], status["rows_done"], status["dead_letters"]) == ("catching_up", ROWS, 1)
    assert cli("verify", *OVERRIDE)["state"] == "ready"


# --- where it is ----------------------------------------------------------------------------------


def test_an_option_goes_over_the_file_and_the_file_over_the_environment(
    cli: Cli, database_url: str, tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = "postgresql://app@127.0.0.1:9/app"
    place = {"collection": "documents", "text": "body"}
    models = {"new": str(tiny_artifact.path)}
    config = write_config(tmp_path / "right", {"store": {"url": database_url, **place}, "models": models})
    other = write_config(tmp_path / "wrong", {"store": {"url": wrong, **place}, "models": models})
    silent = write_config(tmp_path / "silent", {"store": place, "models": models})
    assert Cli(cli.capsys, ("--config", str(silent))).error("status", code=4) == "MigrationNotFound"
    monkeypatch.setenv("VECFERRY_STORE_URL", wrong)
    assert cli.error("status", code=3) == "StoreUnreachable"
    assert Cli(cli.capsys, ("--config", str(config))).error("status", code=4) == "MigrationNotFound"
    assert Cli(cli.capsys, ("--config", str(other))).error("status", code=3) == "StoreUnreachable"
    over = Cli(cli.capsys, ("--config", str(other), "--store", database_url))
    assert over.error("status", code=4) == "MigrationNotFound"
    monkeypatch.delenv("VECFERRY_STORE_URL")
    assert cli.error("status", code=2) == "MissingOption"
    assert "VECFERRY_STORE_URL" in cli.text("status", code=2)


def test_a_password_is_in_no_message(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "postgresql://app:hunter2@127.0.0.1:9/app"
    models = {"new": "m"}
    config = write_config(tmp_path, {"store": {"url": secret, "collection": "c"}, "models": models})
    broken = write_config(tmp_path / "b", {"store": {"url": secret, "collection": "c", "hunter": 1}, "models": models})
    shown = [
        cli.text("status", "--store", secret, code=3),
        cli.text("status", "--store", secret, "--json", code=3),
        cli.text("status", "--store", "mysql://app:hunter2@localhost/app", code=2),
        cli.text("status", "--store", "hunter2", code=2),
        Cli(cli.capsys, ("--config", str(config))).text("status", code=3),
        Cli(cli.capsys, ("--config", str(broken))).text("status", code=2),
    ]
    monkeypatch.setenv("VECFERRY_STORE_URL", secret)
    shown.append(cli.text("status", code=3))
    with running(cli.process("status")) as process:
        shown += process.communicate(timeout=START_S)
    assert all(shown)
    assert not [text for text in shown if "hunter2" in text]


def test_an_unknown_scheme_names_the_known_ones(cli: Cli) -> None:
    shown = cli("status", "--store", "mysql://localhost/app", code=2)["error"]["message"]
    assert "mysql:" in shown
    assert all(
        f"{scheme}:" in shown for scheme in ("postgresql", "chroma", "lancedb", "milvus", "qdrant", "sqlite", "faiss")
    )


CATALOGUE = (
    "SELECT 'class', oid, relname, relnatts::int, relhastriggers FROM pg_class WHERE oid >= 16384"
    " UNION ALL SELECT 'schema', oid, nspname, 0, false FROM pg_namespace"
    " UNION ALL SELECT 'function', oid, proname, 0, false FROM pg_proc WHERE oid >= 16384"
    " UNION ALL SELECT 'trigger', oid, tgname, 0, false FROM pg_trigger"
    " UNION ALL SELECT 'row', id, body, 0, false FROM documents ORDER BY 1, 2"
)


def test_a_plan_with_a_read_only_role_writes_nothing(
    cli: Cli, documents: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    documents.execute("DROP ROLE IF EXISTS reader")
    documents.execute("CREATE ROLE reader LOGIN")
    documents.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    documents.execute("GRANT SELECT ON documents TO reader")
    try:
        reader = ("--store", database_url.replace("postgresql://postgres", "postgresql://reader", 1))
        before, files = documents.execute(CATALOGUE).fetchall(), sorted(tmp_path.rglob("*"))
        assert cli("plan", "--sample", "5", *reader)["table"]["rows"] == ROWS
        assert "not known" in cli.text("plan", "--sample", "5", *reader)
        assert documents.execute(CATALOGUE).fetchall() == before
        assert sorted(tmp_path.rglob("*")) == files
        assert cli.error("start", *reader, code=3) == "StoreSchemaError"
        assert documents.execute(CATALOGUE).fetchall() == before
    finally:
        documents.execute("DROP OWNED BY reader")
        documents.execute("DROP ROLE reader")


def test_a_start_that_would_fail_later_leaves_nothing_in_the_database(
    cli: Cli, documents: psycopg.Connection, database_url: str, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    values: dict[str, dict[str, object]] = {
        "store": {"url": database_url, "collection": "documents", "text": "body"},
        "models": {"new": str(tiny_artifact.path), "old": str(tiny_artifact.path)},
        "gate": {"queries": "judged"},
    }
    ours = Cli(cli.capsys, ("--config", str(write_config(tmp_path, values))))
    before = documents.execute(CATALOGUE).fetchall()
    planned = ours.text("plan", "--sample", "5")
    assert f"the query log {tmp_path / 'judged'} cannot be read" in beside("start refuses", planned)
    assert beside("once that is clear", planned).startswith("vecferry migrate plan ")
    assert ours.error("start", code=2) == "UnreadableFile"
    (tmp_path / "judged" / "qrels").mkdir(parents=True)
    (tmp_path / "judged" / "queries.jsonl").write_text('{"_id": "q", "text": "a question"}')
    (tmp_path / "judged" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tdoc7\t1\n")
    no_number = ours("start", code=2)["error"]["message"]
    assert "keys of public.documents.embedding, as doc7 should be (invalid input syntax for type integer" in no_number
    assert ours.error("start", "--old-model", "/nowhere", code=3) == "ArtifactNotFound"
    assert documents.execute(CATALOGUE).fetchall() == before


# --- other heads and other stores -----------------------------------------------------------------


def test_sparse_vectors_are_written_beside_the_dense_ones(cli: Cli, documents: psycopg.Connection) -> None:
    heads = ("--outputs", "dense,sparse")
    planned = cli("plan", "--sample", "5", *heads)
    assert planned["outputs"] == ["dense", "sparse"]
    assert planned["head_bytes_after"] > 0
    cli("start", *heads)
    cli("verify", *OVERRIDE)
    cli("cutover")
    query = "SELECT count(*), min(l2_norm(embedding_sparse)) > 0 FROM documents"
    assert documents.execute(query).fetchone() == (ROWS, True)


def test_a_head_that_a_store_cannot_hold_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tiny_artifact: Artifact, tmp_path: Path
) -> None:
    with backends_chroma.opened(tmp_path / "chroma"):
        place = ("--store", f"chroma:{tmp_path / 'chroma'}", "--collection", "docs")
        cli = Cli(capsys, (*place, "--new-model", str(tiny_artifact.path), "--outputs", "dense,sparse"))
        for verb in ("plan", "start"):
            error = cli(verb, code=3)["error"]
            assert error["type"] == "StoreSchemaError"
            assert "docs cannot hold sparse vectors" in error["message"]


def test_an_embedded_store_is_migrated_by_its_url(
    capsys: pytest.CaptureFixture[str], tiny_artifact: Artifact, wide_artifact: Artifact, tmp_path: Path
) -> None:
    """The vectors are in a folder beside the file, and so is the control database."""
    folder = tmp_path / "app"
    vectors = np.random.default_rng(0).standard_normal((ROWS, 64)).astype(np.float32)
    table = pa.table(
        {
            "doc": [f"d{i}" for i in range(ROWS)],
            "passage": [f"text number {i}" for i in range(ROWS)],
            "vec": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 64),
        }
    )
    lancedb.connect(folder / "data").create_table("passages", table)
    config = write_config(
        folder,
        {
            "store": {
                "url": "lancedb:data", "collection": "passages", "text": "passage", "vector": "vec", "key": "doc",
                "control": "control.db",
            },
            "models": {"new": str(wide_artifact.path), "old": str(tiny_artifact.path)},
            "limits": {"staging": "staged", "min_free_gb": 0.0},
        },
    )  # fmt: skip
    cli = Cli(capsys, ("--config", str(config)))
    assert (cli("plan")["old_dimension"], cli("plan")["new_dimension"]) == (64, 1024)
    assert not (folder / "control.db").exists()
    assert cli("start")["rows_done"] == ROWS
    assert cli("verify", *OVERRIDE)["passed"]
    assert cli("cutover")["serving"]["locator"] == "passages_vecferry_2"
    assert cli("rollback")["serving"]["locator"] == "passages"
    cli("cutover")
    assert cli("finalize", "--yes")["state"] == "finalized"
    tables = lancedb.connect(folder / "data")
    assert tables.open_table("passages").count_rows() == ROWS
    assert cli("status")["serving"]["locator"] == "passages"
    assert {path.name for path in folder.iterdir()} >= {"control.db", "data", "migration.toml"}


def test_a_collection_is_exported_and_the_command_that_is_named_evaluates_it_as_it_does_live(
    cli: Cli, documents: psycopg.Connection, database_url: str, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    documents.execute("UPDATE documents SET body = 'The ferry number ' || id || ' leaves in the morning of a day.'")
    config = write_config(
        tmp_path,
        {
            "store": {"url": database_url, "collection": "documents", "text": "body"},
            "models": {"new": str(tiny_artifact.path), "old": str(tiny_artifact.path)},
        },
    )

    def run(*arguments: str) -> dict[str, Any]:
        cli.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["eval", *arguments, "--json", "--sample", "0", "--outputs", "dense"])
        printed = cli.capsys.readouterr()
        assert not ended.value.code, printed.err
        return dict(json.loads(printed.out))

    live = run("--config", str(config))
    cli.capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["eval", "--config", str(config), "--export", str(tmp_path / "out")])
    shown = cli.capsys.readouterr().out
    assert beside("passages", shown) == str(ROWS)
    command = beside("next", shown)
    assert command.startswith(f"vecferry eval {tmp_path / 'out'} --old-model ")
    models = ("--old-model", str(tiny_artifact.path), "--new-model", str(tiny_artifact.path))
    folder = run(str(tmp_path / "out"), *models)
    for figure in ("evidence", "passages", "queries_asked", "systems", "gate"):
        assert folder[figure] == live[figure], figure
    assert main_error(cli, "eval", "--export", str(tmp_path))["type"] == "SettingsError"
    config.rename(tmp_path / "other.toml")
    assert main_error(cli, "eval", "--export", str(tmp_path / "other"))["type"] == "MissingOption"


def main_error(cli: Cli, *arguments: str) -> dict[str, Any]:
    """Return the error of a command as JSON."""
    cli.capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*arguments, "--json"])
    return dict(json.loads(cli.capsys.readouterr().out)["error"])


UNCHANGED = """
import sys
import chromadb, vecferry.integrations.chroma
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False))
print(client.get_collection("passages").query(query_texts=["text number 7"], n_results=1)["documents"])
"""


def test_an_unchanged_script_asks_a_chroma_collection_with_the_new_model_after_one_import(
    capsys: pytest.CaptureFixture[str], tiny_artifact: Artifact, wide_artifact: Artifact, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    texts = [f"text number {i}" for i in range(ROWS)]
    vectors = np.random.default_rng(0).standard_normal((ROWS, 64)).astype(np.float32)
    with backends_chroma.persistent_client(data) as application:
        passages = application.create_collection("passages")  # with the default function
        passages.add(ids=texts, documents=texts, embeddings=list(vectors))
    values: dict[str, dict[str, object]] = {
        "store": {"url": "chroma:data", "collection": "passages", "control": "control.db"},
        "models": {"new": str(wide_artifact.path), "old": str(tiny_artifact.path)},
        "limits": {"staging": "staged", "min_free_gb": 0.0},
    }
    cli = Cli(capsys, ("--config", str(write_config(tmp_path, values))))
    (warning,) = cli("plan")["warnings"]
    assert "default function (all-MiniLM-L6-v2)" in warning
    assert "embedding_function = true" in warning
    values["store"]["embedding_function"] = True
    write_config(tmp_path, values)
    assert "embeds with the new model" in cli.text("plan")
    cli("start")
    cli("verify", *OVERRIDE)
    cli("cutover")
    assert cli("finalize", "--yes")["state"] == "finalized"
    assert "the function 'vecferry'" in cli.text("plan")
    command = [sys.executable, "-W", "error", "-c", UNCHANGED, str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([["text number 7"]])


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("chroma:/nowhere", "chromadb", "chroma"),
        ("lancedb:/nowhere", "lancedb", "lancedb"),
        ("milvus:/nowhere", "pymilvus", "milvus"),
        ("qdrant:/nowhere", "qdrant_client", "qdrant"),
        ("sqlite:/nowhere", "sqlite_vec", "sqlite-vec"),
        ("faiss:/nowhere", "faiss", "faiss"),
        ("postgresql://localhost/app", "psycopg", "pgvector"),
    ],
)
def test_a_missing_extra_is_named_with_how_to_install_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
) -> None:
    module = f"vecferry.stores.{extra.replace('-', '_')}"
    for name in list(sys.modules):
        if name == module or name.startswith(f"{module}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    error = cli("status", "--store", url, code=3)["error"]
    assert error["type"] == "MissingExtra"
    assert error["hint"] == f"pip install 'vecferry[{extra}]'"
