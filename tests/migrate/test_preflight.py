"""What would fail at `verify` or in the middle of a run is said by `plan`, and refused by `start` before it begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.evaluate.doubles import TopicEncoder, text_about
from tests.stores.collections import MirrorCollection, mirror_collection
from vecferry.errors import SettingsError, SpaceMismatch, StagingUnusable, UnreadableFile, VecferryError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.config import GateConfig, MigrationConfig, ModelsConfig, StoreConfig
from vecferry.migrate.gate import NO_OLD_MODEL, check_gate

COUNT = 30
OLD, NEW = TopicEncoder("old", 0.0, dimension=16), TopicEncoder("new", 0.0)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[MirrorCollection]:
    """Rows with the keys 1 to 30."""
    with mirror_collection("memory", tmp_path) as made:
        texts = [text_about(number) for number in range(COUNT)]
        for number, vector in enumerate(OLD.encode(texts).dense, start=1):
            made.put(number, texts[number - 1], vector)
        yield made


@pytest.fixture
def migration(collection: MirrorCollection, tmp_path: Path) -> Migration:
    options = MigrationOptions(staging=tmp_path / "staging", min_free_gb=0, accept_unconfirmed="a test")
    return Migration(collection.store, new=NEW, old=OLD, options=options)


def judged(folder: Path, *passages: str) -> Path:
    """Return a folder with one judged query for each of these passages."""
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"q{n}", "text": f"question {n}"}) for n in range(len(passages))]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    grades = [f"q{n}\t{passage}\t1" for n, passage in enumerate(passages)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *grades]))
    return folder


def configured(
    queries: Path | None = None, *, old: Path | None = Path("old"), max_queries: int = 500
) -> MigrationConfig:
    return MigrationConfig(
        store=StoreConfig(collection="docs"),
        models=ModelsConfig(new=Path("new"), old=old),
        gate=GateConfig(queries=queries, max_queries=max_queries),
    )


def refused(migration: Migration, config: MigrationConfig, tmp_path: Path) -> VecferryError:
    """Return what `start` raises, once `plan` has said the same and nothing is left of either."""
    gate_check = partial(check_gate, config)
    (problem,) = migration.plan(gate_check=gate_check).problems
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(VecferryError) as raised:
        migration.start(gate_check=gate_check)
    assert (problem.message, problem.hint) == (raised.value.message, raised.value.hint)
    assert migration.store.ledger.last(migration.store.target) is None
    assert migration.store.new_space() is None
    assert sorted(tmp_path.rglob("*")) == before
    return raised.value


# --- what the gate is going to ask ----------------------------------------------------------------


def test_a_folder_of_judgements_that_is_not_there_is_named(migration: Migration, tmp_path: Path) -> None:
    error = refused(migration, configured(tmp_path / "judged"), tmp_path)
    assert isinstance(error, UnreadableFile)
    assert str(tmp_path / "judged") in error.message


def test_judgements_that_cannot_be_parsed_are_named(migration: Migration, tmp_path: Path) -> None:
    folder = judged(tmp_path / "judged", "1")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\t1\n")
    error = refused(migration, configured(folder), tmp_path)
    assert isinstance(error, SettingsError)
    assert "BEIR" in error.message


def test_judgements_about_no_row_of_the_collection_are_refused(migration: Migration, tmp_path: Path) -> None:
    error = refused(migration, configured(judged(tmp_path / "judged", "doc1", "doc2")), tmp_path)
    assert isinstance(error, SettingsError)
    assert f"document ids that are keys of {migration.store.target}, as doc1 should be" in error.message


def test_what_makes_a_verdict_weaker_or_impossible_is_a_warning(migration: Migration, tmp_path: Path) -> None:
    def warnings(config: MigrationConfig) -> tuple[str, ...]:
        plan = migration.plan(gate_check=partial(check_gate, config))
        assert plan.problems == ()
        return plan.warnings

    keys = [str(number) for number in range(1, COUNT + 1)]
    assert warnings(configured(judged(tmp_path / "all", *keys))) == ()
    assert warnings(configured(judged(tmp_path / "some", *keys, "gone"))) == (
        f"1 of {COUNT + 1} judged documents are no rows, and found by neither side",
    )
    few = "the gate cannot pass: 19 queries are too few to judge by; 20 are needed."
    assert warnings(configured(judged(tmp_path / "few", *keys[:19]))) == (few,)
    assert warnings(configured(max_queries=19)) == (few,)
    assert warnings(configured(old=None)) == (NO_OLD_MODEL,)


def test_a_migration_that_has_begun_goes_on_without_the_judgements(migration: Migration, tmp_path: Path) -> None:
    folder = judged(tmp_path / "judged", *(str(number) for number in range(1, COUNT + 1)))
    gate_check = partial(check_gate, configured(folder))
    migration.start(gate_check=gate_check)
    shutil.rmtree(folder)
    assert migration.plan(gate_check=gate_check).problems == ()
    assert migration.start(gate_check=gate_check).state == State.CATCHING_UP


# --- where vectors wait ---------------------------------------------------------------------------


def test_a_staging_folder_that_cannot_be_made_is_named_with_its_setting(migration: Migration, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = replace(migration.options, staging=tmp_path / "file" / "staging")
    error = refused(replace(migration, options=options), configured(), tmp_path)
    assert isinstance(error, StagingUnusable)
    assert "[limits] staging" in error.hint


def with_free_space(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=int(gigabytes * 10**9)))


def test_room_for_all_that_is_staged_is_needed_beside_what_is_to_be_left(
    migration: Migration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty vectors are 4 kB: the limit that is to be left decides."""
    options = replace(migration.options, min_free_gb=1.0)
    with_free_space(monkeypatch, 1.0)
    error = refused(replace(migration, options=options), configured(), tmp_path)
    assert isinstance(error, StagingUnusable)
    assert "1 are to be left (min_free_gb), and 1.00 are free" in error.message
    with_free_space(monkeypatch, 1.01)
    assert replace(migration, options=options).start().state == State.CATCHING_UP


def test_nobody_looks_for_room_where_nothing_is_to_be_left(
    migration: Migration, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_space(monkeypatch, 0.0)
    assert migration.plan().problems == ()
    assert migration.start().state == State.CATCHING_UP


# --- the models -----------------------------------------------------------------------------------


def test_an_old_model_of_another_space_than_was_stated_is_refused(migration: Migration, tmp_path: Path) -> None:
    options = replace(migration.options, old_fingerprint="0" * 64)
    error = refused(replace(migration, options=options), configured(), tmp_path)
    assert isinstance(error, SpaceMismatch)
