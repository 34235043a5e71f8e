"""Between the checks and the switch: the gate's word, an override of it, and the thresholds that go with an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.migrate.doubles import TruthEncoder, gate_that_says
from tests.stores.collections import OLD_DIMENSION, Collection, old_vector
from vecferry.errors import CutoverRefused, GateNotPassed, IllegalTransition, SettingsError
from vecferry.migrate import Check, GateVerdict, MappedThreshold, Migration, MigrationOptions, State
from vecferry.migrate.router import Router
from vecferry.stores.ledger import Serving
from vecferry.stores.protocol import Store
from vecferry.stores.values import Patience

OLD, NEW = TruthEncoder("old", OLD_DIMENSION), TruthEncoder()
DUPLICATE = MappedThreshold(old=0.92, new=0.871, low=0.85, high=0.89, method="matched precision")
RELATED = MappedThreshold(old=0.5, new=0.44, low=0.4, high=0.5, method="matched quantile")
MAPPED = {"duplicate": DUPLICATE, "related": RELATED}
IN_OLD, IN_NEW = {"duplicate": 0.92, "related": 0.5}, {"duplicate": 0.871, "related": 0.44}


@pytest.fixture
def migration(collection: Collection, tmp_path: Path) -> Migration:
    """Return a migration that is complete, and not verified yet."""
    for key, text in enumerate("abc", start=1):
        collection.put(key, text, old_vector(text))
    options = MigrationOptions(
        accept_unconfirmed="a test",
        old_fingerprint=OLD.fingerprint,
        staging=tmp_path,
        patience=Patience(1.0, 5.0),
        thresholds=IN_OLD,
    )
    made = Migration(collection.store, new=NEW, options=options)
    made.start()
    return made


def events(migration: Migration) -> list[str]:
    return [event.what for event in migration.status().events]


# --- the verdict ----------------------------------------------------------------------------------


def test_without_a_gate_the_switch_is_refused_with_what_to_type(migration: Migration) -> None:
    report = migration.verify()
    assert {check.passed for check in report.checks} == {True}
    assert (report.passed, report.state, report.gate) == (False, State.VERIFIED, None)
    with pytest.raises(GateNotPassed) as refused:
        migration.cutover()
    assert refused.value.verdict == "none was asked."
    assert "migrate verify" in refused.value.hint
    assert "migrate override --reason" in refused.value.hint
    assert migration.status().state == State.VERIFIED


def test_a_gate_that_fails_is_kept_with_the_migration_and_named_at_the_switch(migration: Migration) -> None:
    check = Check("quality", passed=False, seen="nDCG@10 0.41 → 0.35")

    def gate(store: Store) -> GateVerdict:
        return GateVerdict(
            passed=False,
            message="worse by 0.06.",
            evidence="30 judged queries",
            checks=(check,),
            thresholds=MAPPED,
            detail={"ndcg_at_10": [0.41, 0.35]},
        )

    report = migration.verify(gate=gate)
    assert (report.passed, report.state, report.override) == (False, State.VERIFIED, None)
    kept = migration.status().verification
    assert kept is not None
    assert (kept["passed"], kept["override"]) == (False, None)
    assert kept["gate"] == {
        "passed": False,
        "message": "worse by 0.06.",
        "evidence": "30 judged queries",
        "checks": [{"name": "quality", "passed": False, "seen": "nDCG@10 0.41 → 0.35", "keys": [], "warning": ""}],
        "thresholds": {"duplicate": DUPLICATE.to_dict(), "related": RELATED.to_dict()},
        "detail": {"ndcg_at_10": [0.41, 0.35]},
    }
    with pytest.raises(GateNotPassed, match=r"worse by 0\.06"):
        migration.cutover()


def test_a_gate_that_passes_leaves_it_ready(migration: Migration) -> None:
    report = migration.verify(gate=gate_that_says(passed=True))
    assert (report.passed, report.state, migration.status().state) == (True, State.READY, State.READY)
    assert migration.cutover().serving.epoch == 2


def test_a_gate_is_not_asked_about_vectors_that_are_wrong(collection: Collection, migration: Migration) -> None:
    def gate(store: Store) -> GateVerdict:
        raise AssertionError("it was asked")

    collection.put_unseen(2, "changed", old_vector("changed"))
    assert replace(migration, new=TruthEncoder()).verify(gate=gate, override="never mind").state == State.CATCHING_UP


def test_a_later_verify_takes_a_pass_of_the_gate_back(migration: Migration) -> None:
    migration.verify(gate=gate_that_says(passed=True))
    assert migration.verify(gate=gate_that_says(passed=False)).state == State.VERIFIED
    with pytest.raises(GateNotPassed):
        migration.cutover()


# --- an override ----------------------------------------------------------------------------------


def test_an_override_is_kept_with_who_and_why(migration: Migration) -> None:
    migration.verify(gate=gate_that_says(passed=False))
    status = migration.override("the old model is discontinued")
    assert status.state == State.READY
    event = status.events[-1]
    assert (event.what, event.detail["reason"]) == ("gate overridden", "the old model is discontinued")
    user, _, host = event.detail["by"].partition("@")
    assert user
    assert host
    kept = status.verification
    assert kept is not None
    assert (kept["passed"], kept["state"], kept["gate"]["passed"]) == (True, "ready", False)
    assert {"reason": event.detail["reason"], "by": event.detail["by"]}.items() <= kept["override"].items()
    with pytest.raises(IllegalTransition, match="override is not possible in state 'ready'"):
        migration.override("once more")
    assert migration.cutover().serving.epoch == 2


def test_verify_can_override_at_once_and_the_next_one_takes_it_back(migration: Migration) -> None:
    report = migration.verify(override="there are no judgements")
    assert (report.passed, report.state, report.gate) == (True, State.READY, None)
    assert report.override is not None
    assert report.override.reason == "there are no judgements"
    assert events(migration)[-2:] == ["ready", "gate overridden"]

    again = migration.verify()
    assert (again.passed, again.override, migration.status().state) == (False, None, State.VERIFIED)
    kept = migration.status().verification
    assert kept is not None
    assert kept["override"] is None


def test_a_pass_needs_no_override_and_none_is_kept(migration: Migration) -> None:
    report = migration.verify(gate=gate_that_says(passed=True), override="in any case")
    assert (report.passed, report.override) == (True, None)
    assert "gate overridden" not in events(migration)


@pytest.mark.parametrize("blank", ["", " \t\n"])
def test_a_blank_reason_is_refused_before_anything_is_done(migration: Migration, blank: str) -> None:
    with pytest.raises(SettingsError, match="reason of the override"):
        migration.verify(override=blank)
    assert migration.status().verification is None
    migration.verify()
    with pytest.raises(SettingsError, match="reason of the override"):
        migration.override(blank)
    assert migration.status().state == State.VERIFIED


def test_a_check_that_failed_cannot_be_overridden(collection: Collection, migration: Migration) -> None:
    collection.put_unseen(2, "changed", old_vector("changed"))
    report = migration.verify(override="never mind")
    assert (report.passed, report.state, report.override) == (False, State.CATCHING_UP, None)
    with pytest.raises(IllegalTransition, match="override is not possible in state 'catching_up'"):
        migration.override("never mind")
    assert "gate overridden" not in events(migration)


def test_a_verification_whose_gate_stood_among_its_checks_must_be_made_anew(
    collection: Collection, migration: Migration
) -> None:
    """The verification is as the first form of the ledger kept it."""
    migration.verify()
    ledger = collection.store.ledger
    record = ledger.find(collection.store.target)
    assert record is not None
    check = Check("quality", passed=False, seen="worse").to_dict()
    ledger.keep_verification(record, {"passed": False, "checks": [check], "state": "verified"})
    with pytest.raises(CutoverRefused, match=r"the last verification failed \(quality\)"):
        migration.override("never mind")
    with pytest.raises(GateNotPassed, match="none was asked"):
        migration.cutover()
    assert migration.status().state == State.VERIFIED
    migration.verify()
    assert migration.override("never mind").state == State.READY
    assert migration.cutover().serving.epoch == 2


# --- thresholds -----------------------------------------------------------------------------------


@pytest.fixture
def router(collection: Collection) -> Iterator[Router]:
    with Router(collection.store, old=OLD, new=NEW, max_age_s=0) as made:
        yield made


def test_thresholds_go_with_the_epoch_there_and_back(migration: Migration, router: Router) -> None:
    def of_router() -> tuple[int, dict[str, float], dict[str, float]]:
        answer, query = router.search("a"), router.encode_query("a")
        return answer.epoch, dict(answer.thresholds), dict(query.thresholds)

    assert of_router() == (1, IN_OLD, IN_OLD)
    migration.verify(gate=gate_that_says(passed=True, thresholds=MAPPED))
    assert migration.serving().thresholds == IN_OLD
    assert migration.cutover().serving.thresholds == IN_NEW
    assert of_router() == (2, IN_NEW, IN_NEW)
    assert replace(migration, old=OLD).rollback().serving.thresholds == IN_OLD
    assert of_router() == (3, IN_OLD, IN_OLD)
    assert migration.cutover().serving.thresholds == IN_NEW
    assert migration.finalize(confirmed=True).serving == migration.serving()
    assert of_router() == (4, IN_NEW, IN_NEW)


def test_a_threshold_that_nobody_mapped_is_not_carried_over(migration: Migration) -> None:
    migration.verify(gate=gate_that_says(passed=True, thresholds={"related": RELATED}))
    assert migration.cutover().serving.thresholds == {"related": 0.44}
    assert replace(migration, old=OLD).rollback().serving.thresholds == IN_OLD


def test_the_next_migration_begins_with_the_thresholds_that_serve(collection: Collection, migration: Migration) -> None:
    migration.verify(gate=gate_that_says(passed=True, thresholds=MAPPED))
    migration.cutover()
    migration.finalize(confirmed=True)
    third = TruthEncoder("third", 12)
    following = Migration(
        collection.store, new=third, options=replace(migration.options, old_fingerprint=NEW.fingerprint, thresholds={})
    )
    assert following.start().serving == Serving(2, 2, migration.serving().locator, NEW.fingerprint, IN_NEW)


@pytest.mark.parametrize("wrong", [1.01, -1.01, float("nan")])
def test_a_threshold_that_is_no_cosine_is_named(wrong: float) -> None:
    with pytest.raises(SettingsError, match="thresholds duplicate"):
        MigrationOptions(thresholds={"duplicate": wrong})
