"""The gate over a live collection in memory: what it judges by, what it says, and what a migration makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.doubles import TopicEncoder, queries_about, text_about
from tests.stores.collections import MirrorCollection, mirror_collection
from vecferry.errors import GateNotPassed, SettingsError
from vecferry.migrate import GateVerdict, Migration, MigrationOptions, State
from vecferry.migrate.config import GateConfig, MigrationConfig, ModelsConfig, StoreConfig
from vecferry.migrate.gate import NO_OLD_MODEL, NOT_JUDGED, WEAK, QualityGate, make_gate

COUNT = 60
OLD = TopicEncoder("old", 1.0, dimension=16)
BETTER, WORSE = TopicEncoder("new", 0.2), TopicEncoder("new", 3.0)
"""By their noise."""


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[MirrorCollection]:
    with mirror_collection("memory", tmp_path) as made:
        texts = [text_about(number) for number in range(1, COUNT + 1)]
        for number, vector in enumerate(OLD.encode(texts).dense):
            made.put(number + 1, texts[number], vector)
        yield made


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Return a folder with judged queries, whose ids are keys, and no corpus."""
    folder, queries = tmp_path / "judged", queries_about(COUNT)
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": q.id, "text": q.text, "lang": q.slices["language"]}) for q in queries.questions]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    grades = [
        f"{judgement.query_id}\t{judgement.passage_id}\t{judgement.relevance}" for judgement in queries.judgements
    ]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *grades]))
    return folder


def started(collection: MirrorCollection, new: TopicEncoder, folder: Path) -> Migration:
    options = MigrationOptions(
        accept_unconfirmed="a test", old_fingerprint=OLD.fingerprint, staging=folder, thresholds={"related": 0.4}
    )
    migration = Migration(collection.store, new=new, options=options)
    migration.start()
    return migration


def configured(queries: Path | None = None, **gate: Any) -> MigrationConfig:
    return MigrationConfig(
        store=StoreConfig(collection="docs"),
        models=ModelsConfig(new=Path("new"), old=Path("old")),
        gate=GateConfig(queries=queries, **gate),
        thresholds={"related": 0.4},
    )


def gate_verdict(migration: Migration, new: TopicEncoder, config: MigrationConfig) -> GateVerdict:
    return make_gate(config, old=OLD, new=new)(migration.store)


# --- what it judges by ----------------------------------------------------------------------------


def test_judged_queries_are_the_strongest_evidence(collection: MirrorCollection, judged: Path, tmp_path: Path) -> None:
    verdict = gate_verdict(started(collection, BETTER, tmp_path), BETTER, configured(judged))
    assert (verdict.passed, verdict.evidence) == (True, "judged queries")
    assert verdict.message.startswith("The new model is")
    assert [check.name for check in verdict.checks] == ["all queries", "language de", "language en"]
    assert all(check.passed for check in verdict.checks)
    assert f"{COUNT} queries" in verdict.checks[0].seen
    related = verdict.thresholds["related"]
    assert (related.old, related.method) == (0.4, "matched precision")
    assert related.low <= related.new <= related.high


def test_a_query_log_is_replayed_beside_pairs(collection: MirrorCollection, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("topic001\ntopic002 and more\n")
    migration = started(collection, BETTER, tmp_path)
    gate = make_gate(configured(log), old=OLD, new=BETTER)
    assert isinstance(gate, QualityGate)
    verdict = gate(migration.store)
    assert (verdict.passed, verdict.evidence) == (True, "query log")
    assert verdict.message.startswith(WEAK)
    assert gate.evaluation is not None
    assert gate.evaluation.replay is not None
    assert gate.evaluation.replay.queries == 2


def test_without_either_the_rows_own_sentences_are_asked(collection: MirrorCollection, tmp_path: Path) -> None:
    verdict = gate_verdict(started(collection, BETTER, tmp_path), BETTER, configured(max_queries=30))
    assert (verdict.passed, verdict.evidence) == (True, "pairs from the corpus")
    assert verdict.message.startswith(WEAK)
    assert verdict.detail["queries"] == 30


def test_without_an_old_model_it_does_not_pass_and_says_what_to_do(
    collection: MirrorCollection, tmp_path: Path
) -> None:
    migration = started(collection, BETTER, tmp_path)
    verdict = make_gate(configured(), old=None, new=BETTER)(migration.store)
    assert (verdict.passed, verdict.message, verdict.evidence) == (False, NO_OLD_MODEL, "none")
    assert "[models] old" in verdict.message
    assert "override" in verdict.message


def test_rows_too_short_to_ask_for_a_part_of_do_not_pass(tmp_path: Path) -> None:
    with mirror_collection("memory", tmp_path) as collection:
        for number in range(3):
            collection.put(number, f"row {number}", OLD.encode([f"row {number}"]).dense[0])
        verdict = gate_verdict(started(collection, BETTER, tmp_path), BETTER, configured())
    assert (verdict.passed, verdict.message) == (False, NOT_JUDGED)


def test_judgements_of_other_keys_do_not_pass(collection: MirrorCollection, judged: Path, tmp_path: Path) -> None:
    header, *grades = (judged / "qrels" / "test.tsv").read_text().splitlines()
    of_others = [line.replace("\t", "\tdoc-", 1) for line in grades]
    (judged / "qrels" / "test.tsv").write_text("\n".join([header, *of_others]))
    verdict = gate_verdict(started(collection, BETTER, tmp_path), BETTER, configured(judged))
    assert not verdict.passed
    assert "Neither side found anything relevant" in verdict.message
    assert [check.passed for check in verdict.checks] == [False, True, True]


def test_too_few_queries_do_not_pass(collection: MirrorCollection, judged: Path, tmp_path: Path) -> None:
    verdict = gate_verdict(started(collection, BETTER, tmp_path), BETTER, configured(judged, max_queries=19))
    assert not verdict.passed
    assert verdict.message == "19 queries are too few to judge by; 20 are needed."
    assert not verdict.checks[0].passed


def test_what_is_not_there_is_refused_when_it_is_asked(collection: MirrorCollection, tmp_path: Path) -> None:
    gate = make_gate(configured(tmp_path / "none.txt"), old=OLD, new=BETTER)
    migration = started(collection, BETTER, tmp_path)
    with pytest.raises(SettingsError, match="the query log"):
        gate(migration.store)


# --- what comes of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", ["judged queries", "pairs from the corpus"])
def test_a_better_model_is_ready_and_the_same_model_degraded_is_not(
    collection: MirrorCollection, judged: Path, tmp_path: Path, evidence: str
) -> None:
    config = configured(judged if evidence == "judged queries" else None)
    better = started(collection, BETTER, tmp_path)
    report = better.verify(gate=make_gate(config, old=OLD, new=BETTER))
    assert (report.passed, report.state) == (True, State.READY)
    better.abort()

    worse = started(collection, WORSE, tmp_path)
    report = worse.verify(gate=make_gate(config, old=OLD, new=WORSE))
    assert {check.passed for check in report.checks} == {True}
    assert (report.passed, report.state) == (False, State.VERIFIED)
    assert report.gate is not None
    assert report.gate.evidence == evidence
    assert "The new model is worse" in report.gate.message
    assert not report.gate.checks[0].passed
    with pytest.raises(GateNotPassed, match="worse"):
        worse.cutover()
    assert worse.override("it is cheaper").state == State.READY


def test_what_it_saw_is_kept_with_the_migration_and_its_thresholds_serve(
    collection: MirrorCollection, judged: Path, tmp_path: Path
) -> None:
    migration = started(collection, BETTER, tmp_path)
    migration.verify(gate=make_gate(configured(judged), old=OLD, new=BETTER))
    kept = migration.status().verification
    assert kept is not None
    gate = json.loads(json.dumps(kept["gate"], allow_nan=False))
    assert gate["detail"]["verdict"]["verdict"] == "passed"
    assert (gate["detail"]["queries"], gate["detail"]["judgements"]) == (COUNT, COUNT)
    assert "topic" not in json.dumps(gate)  # no text of a row or a query
    assert migration.cutover().serving.thresholds == {"related": gate["thresholds"]["related"]["new"]}
