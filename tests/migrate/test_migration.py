"""The verbs, on every store, with the truth embedder."""

import json
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.migrate.doubles import Clock, TruthEncoder, gate_that_says
from tests.quick import params
from tests.stores import backends
from tests.stores.collections import OLD_DIMENSION, Collection, mirror_collection, old_vector, quick_on
from tests.waiting import wait_until
from vecferry.embeddings import DENSE, Float32
from vecferry.errors import (
    CutoverRefused,
    IllegalTransition,
    Interrupted,
    Locked,
    MigrationConflict,
    MigrationNotFound,
    MissingModel,
    NotConfirmed,
    OutOfMemory,
    RuntimeUnavailable,
    SettingsError,
    SpaceMismatch,
    StoreSchemaError,
    VecferryError,
)
from vecferry.migrate import (
    GateVerdict,
    Migration,
    MigrationOptions,
    Resources,
    State,
    Status,
    pace,
    planning,
    throttle,
)
from vecferry.migrate.applier import Applier
from vecferry.migrate.engines import Engine, StagedRange
from vecferry.migrate.engines.local import LocalEngine
from vecferry.migrate.planning import EncodedSample, cost_of
from vecferry.migrate.router import Document, Router
from vecferry.migrate.staging import Staging, remove_staged
from vecferry.stores.backend import Aliased, Backend, Renamable
from vecferry.stores.lease import held
from vecferry.stores.ledger import MigrationRecord, RangeRecord
from vecferry.stores.mirror.sides import MirrorSides
from vecferry.stores.protocol import Store
from vecferry.stores.values import Counts, Patience, Side

OLD = TruthEncoder("old", OLD_DIMENSION)
OPTIONS = MigrationOptions(
    accept_unconfirmed="a test",
    rows_per_range=4,
    old_fingerprint=OLD.fingerprint,
    staging=Path("staging"),
    patience=Patience(1.0, 5.0),
    lease_s=5.0,
    reconnect_s=0.0,
)
HARD_TEXTS = ["", " ", "naïve 東京 🚢\u200d", 'O\'Brien "quotes" \\ %s {x} $1; DROP TABLE docs; --', "x" * 50_000]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Staged vectors lie in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def fill(collection: Collection, *texts: str | None, new: TruthEncoder | None = None) -> Migration:
    for key, text in enumerate(texts, start=1):
        collection.put(key, text, old_vector(text))
    return Migration(collection.store, new=new, options=OPTIONS)


def ready(collection: Collection, *texts: str | None) -> tuple[Migration, TruthEncoder]:
    encoder = TruthEncoder()
    migration = fill(collection, *texts, new=encoder)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    return migration, encoder


def assert_serving(collection: Collection, encoder: TruthEncoder, *, without: tuple[str, ...] = ()) -> None:
    """Assert that every row serves what the encoder makes of its present text. without: rows with no vector."""
    rows = collection.serving()
    for key, (text, vector) in rows.items():
        if key[0] in without:
            assert vector is None
        else:
            assert text is not None
            assert vector is not None
            np.testing.assert_allclose(vector, encoder.truth(text), atol=1e-6)  # some stores normalise again
    assert collection.keeps_rows or not {(key,) for key in without} & rows.keys()


def texts_of(collection: Collection) -> dict[str, str | None]:
    return {key[0]: text for key, (text, _) in collection.serving().items()}


# --- the whole path -------------------------------------------------------------------------------


def test_a_migration_goes_the_whole_path(collection: Collection) -> None:
    texts = [f"text {i}" for i in range(10)] + HARD_TEXTS
    encoder = TruthEncoder()
    migration = fill(collection, *texts, new=encoder)
    with pytest.raises(MigrationNotFound):
        migration.status()

    progress: list[tuple[int, int]] = []
    status = migration.start(lambda done, total: progress.append((done, total)))
    assert status.state == State.CATCHING_UP
    assert (status.rows, status.rows_done, status.ranges, status.ranges_done) == (15, 15, 4, 4)
    assert (progress[0], progress[-1]) == ((0, 15), (15, 15))
    assert progress == sorted(progress)
    assert_serving(collection, OLD)

    report = migration.verify(sample=8, gate=gate_that_says(passed=True))
    assert report.passed
    assert report.state == migration.status().state == State.READY
    assert report.sampled == 8
    assert report.lowest_cosine is not None
    assert report.lowest_cosine > 1 - 1e-6  # the same float32 numbers, normalised once more
    assert report.recall == 1.0  # so few rows are all found
    assert_serving(collection, OLD)

    assert migration.serving().epoch == 1
    switched = migration.cutover()
    assert (switched.serving.epoch, switched.serving.generation) == (2, 2)
    assert switched.serving.fingerprint == encoder.fingerprint
    assert_serving(collection, encoder)
    assert texts_of(collection) == {str(i): text for i, text in enumerate(texts, start=1)}

    events = [event.what for event in migration.status().events if event.what != "indexed"]
    assert events[:6] == ["planned", "prepared", "capturing", "backfilling", "indexing", "catching_up"]
    finalized = migration.finalize(confirmed=True)
    assert finalized.state == State.FINALIZED
    assert finalized.rows_done == 15
    assert_serving(collection, encoder)
    passed = [event.what for event in finalized.events if event.what != "indexed"][-7:]
    assert passed == ["indexing", "catching_up", "verified", "ready", "cutting_over", "serving_new", "finalized"]
    assert not list(Path("staging").rglob("*.parquet"))


def test_everything_returned_is_ready_for_json(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, "a", "POISON", new=encoder)
    plan, status = migration.plan(), migration.start()
    report, switched, back = (
        migration.verify(override="no gate in this test"),
        migration.cutover(1),
        migration.rollback(),
    )
    for value in (plan, status, report, switched, back, migration.serving()):
        assert json.loads(json.dumps(value.to_dict()))
    assert migration.status().to_dict()["state"] == "serving_old"


def test_a_plan_counts_and_writes_nothing(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, *[f"t{i}" for i in range(20)], "", "POISON", new=encoder)
    before = collection.serving()
    plan = migration.plan(sample=50)
    assert (plan.table.rows, plan.table.null_texts, plan.table.empty_texts) == (22, 0, 1)
    assert (plan.old_dimension, plan.new_dimension) == (OLD_DIMENSION, 16)
    assert (plan.old_fingerprint, plan.new_fingerprint) == (OLD.fingerprint, encoder.fingerprint)
    assert (plan.sample_rows, plan.sample_failures) == (22, 1)
    assert plan.seconds == pytest.approx(plan.sample_seconds / 22 * 22)
    assert plan.cost.seconds == pytest.approx(max(plan.seconds, plan.table.rows / 19_000))
    assert plan.vector_bytes_after == 22 * (4 * 16 + 8)
    assert plan.creates
    assert "abort" in plan.undo
    assert collection.store.new_space() is None
    assert repr(collection.serving()) == repr(before)


@pytest.mark.parametrize(("row_s", "sample_s", "num_rows"), [(1.0, 4.0, 8), (0.125, 4.0, 32), (1.0, math.inf, 60)])
def test_a_plan_encodes_what_can_be_had_in_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row_s: float, sample_s: float, num_rows: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(planning, "time", clock)
    encoder = TruthEncoder(before_each=lambda texts: clock.sleep(row_s * len(texts)))
    with mirror_collection("memory", tmp_path) as collection:
        plan = fill(collection, *[f"t{i}" for i in range(60)], new=encoder).plan(sample=60, sample_s=sample_s)
    assert plan.sample_rows == num_rows
    assert plan.seconds == pytest.approx(60 * row_s)


def test_a_plan_and_a_start_say_what_they_are_at(tmp_path: Path) -> None:
    planned, started = list[str](), list[str]()
    with mirror_collection("memory", tmp_path) as collection:
        migration = fill(collection, *"abc", new=TruthEncoder())
        migration.plan(stage=planned.append)
        migration.start(stage=started.append)
    assert "encoding 3 rows with the new model, to measure the time" in planned
    steps = ("encoding every row", "building indexes", "following what was written meanwhile")
    assert [step for step in started if step in steps] == list(steps)


def test_a_cost_is_what_takes_longer_encoding_or_writing() -> None:
    sampled = EncodedSample(rows=10, tokens=2000, seconds=4.0)
    alone = cost_of(sampled, 1_000_000, Resources(write_rows_per_s=1000))
    assert (alone.tokens, alone.tokens_per_s) == (200_000_000, 500)
    assert (alone.encode_seconds, alone.write_seconds, alone.seconds) == (400_000, 1000, 400_000)
    assert alone.price is None
    many = cost_of(sampled, 1_000_000, Resources(workers=1000, write_rows_per_s=1000, price_per_hour=1.8))
    assert (many.encode_seconds, many.seconds) == (400, 1000)
    assert many.price == pytest.approx(1.8 * 1000 * 1000 / 3600)
    assert cost_of(EncodedSample(0, 0, 0.0), 0, Resources()).seconds == 0
    for wrong in ({"workers": 0}, {"write_rows_per_s": 0}, {"price_per_hour": -1}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Resources(**wrong)


def test_a_plan_of_an_empty_collection_counts_nothing(collection: Collection) -> None:
    plan = replace(fill(collection), new=TruthEncoder()).plan()
    assert (plan.table.rows, plan.sample_rows, plan.seconds) == (0, 0, 0.0)


def test_an_empty_collection_goes_the_whole_path(collection: Collection) -> None:
    migration, _ = ready(collection)
    assert migration.status().ranges == 0
    migration.cutover()
    assert migration.rollback().outdated_rows == 0


def test_start_again_after_success_encodes_nothing(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, *"abcdefgh", new=encoder)
    migration.start()
    calls = encoder.calls
    assert migration.start().state == State.CATCHING_UP
    assert encoder.calls == calls


def test_equal_texts_are_encoded_once_over_all_ranges(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, *["same", "other"] * 10, new=encoder)
    migration.start()
    assert encoder.encoded == {"same": 1, "other": 1}


class _Forgetful(LocalEngine):
    """Its staged files are gone before anybody can read them."""

    def run(self, ranges: Sequence[RangeRecord]) -> Generator[StagedRange, None, None]:
        for staged in super().run(ranges):
            remove_staged(OPTIONS.staging, self.encoder.fingerprint, self.uid)
            yield staged


def test_what_was_just_encoded_is_not_read_from_the_staging(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, "a", "b", "c", new=encoder)

    def engine(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
        return _Forgetful(store, encoder, staging, record.spec.uid, OPTIONS.rows_per_range)

    migration.start(engine=engine)
    assert encoder.encoded == {"a": 1, "b": 1, "c": 1}
    assert collection.store.counts().done == 3


def test_an_identity_migration_is_exact(collection: Collection) -> None:
    migration = fill(collection, *[f"text {i}" for i in range(30)])
    before = collection.serving()
    replace(migration, new=OLD).start()
    assert replace(migration, new=OLD).verify(override="no gate in this test").passed
    migration.cutover()
    for key, (text, vector) in collection.serving().items():
        text_before, vector_before = before[key]
        assert text == text_before
        assert vector is not None
        assert vector_before is not None
        np.testing.assert_allclose(vector, vector_before, atol=1e-6)


# --- writes meanwhile -----------------------------------------------------------------------------


def test_rows_changed_inserted_and_deleted_since_the_backfill_are_followed(collection: Collection) -> None:
    migration, encoder = ready(collection, *"abcde")
    collection.put(2, "changed", old_vector("changed"))
    collection.put(77, "inserted", old_vector("inserted"))
    collection.remove(4)
    assert migration.status().backlog == 3
    assert_serving(collection, OLD)
    migration.cutover()
    assert_serving(collection, encoder)
    assert texts_of(collection) == {"1": "a", "2": "changed", "3": "c", "5": "e", "77": "inserted"}


def test_a_switch_without_a_model_is_refused_while_writes_are_not_followed(collection: Collection) -> None:
    migration, encoder = ready(collection, *"abc")
    collection.put(2, "changed", old_vector("changed"))
    short = Migration(
        collection.store,
        options=MigrationOptions(accept_unconfirmed="a test", staging=Path("staging"), patience=Patience(wait_s=0.5)),
    )
    with pytest.raises(CutoverRefused) as refused:
        short.cutover()
    assert refused.value.keys == ("2",)
    assert "start" in refused.value.remedy
    assert migration.status().state == State.READY
    assert_serving(collection, OLD)
    migration.start()
    migration.cutover()
    assert_serving(collection, encoder)


def test_writes_that_nothing_captured_fail_verify_by_name_and_start_finds_them(collection: Collection) -> None:
    migration, encoder = ready(collection, *"abcde")
    collection.put_unseen(2, "changed", old_vector("changed"))
    collection.put_unseen(77, "inserted", old_vector("inserted"))
    collection.remove_unseen(4)
    report = migration.verify(override="no gate in this test")
    failed = {check.name: check for check in report.checks if not check.passed}
    assert set(failed["text unchanged"].keys) == {"2", "77"}
    assert migration.status().state == State.CATCHING_UP  # the earlier pass is taken back
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    assert_serving(collection, encoder)
    assert set(texts_of(collection)) == {"1", "2", "3", "5", "77"}


def test_a_row_changed_while_its_range_is_being_encoded_gets_its_newest_text(collection: Collection) -> None:
    def meddle(texts: object) -> None:
        if encoder.calls == 0:
            collection.put(1, "newer", old_vector("newer"))
            collection.remove(2)
            collection.put(50, "inserted", old_vector("inserted"))

    encoder = TruthEncoder(before_each=meddle)
    migration = fill(collection, *"abcdef", new=encoder)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    assert_serving(collection, encoder)
    assert texts_of(collection) == {"1": "newer", "3": "c", "4": "d", "5": "e", "6": "f", "50": "inserted"}


def test_a_row_deleted_and_inserted_again_gets_the_vector_of_its_last_text(collection: Collection) -> None:
    def meddle(texts: object) -> None:
        if encoder.calls == 0:
            collection.remove(1)
            collection.put(1, "another", old_vector("another"))

    encoder = TruthEncoder(before_each=meddle)
    migration = fill(collection, *"abc", new=encoder)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    assert_serving(collection, encoder)
    assert texts_of(collection)["1"] == "another"


def test_a_row_changed_thrice_while_it_is_encoded_ends_with_its_last_text(collection: Collection) -> None:
    def meddle(texts: object) -> None:
        if encoder.calls < 3:
            collection.put(1, f"version {encoder.calls}", old_vector(f"version {encoder.calls}"))

    encoder = TruthEncoder(before_each=meddle)
    migration = fill(collection, "a", "b", new=encoder)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    assert texts_of(collection)["1"] == "version 2"
    assert_serving(collection, encoder)


# --- rollback -------------------------------------------------------------------------------------


def test_a_rollback_can_be_followed_by_a_second_cutover(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b")
    for epoch in (2, 4):
        assert migration.cutover().serving.epoch == epoch
        assert_serving(collection, encoder)
        report = migration.rollback()
        assert (report.serving.epoch, report.serving.generation) == (epoch + 1, 1)
        assert report.serving.fingerprint == OLD.fingerprint
        assert report.outdated_rows == 0
        assert_serving(collection, OLD)


def test_rollback_loses_nothing_that_was_written_since_the_switch(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b", "c")
    migration.cutover()
    collection.put(2, "b2", encoder.truth("b2"))
    collection.put(9, "new", encoder.truth("new"))
    collection.remove(3)
    written = texts_of(collection)
    report = replace(migration, old=OLD).rollback()
    assert (report.outdated_rows, report.dead_letters) == (0, 0)
    assert texts_of(collection) == written
    assert_serving(collection, OLD)
    collection.put(9, "newer", OLD.truth("newer"))
    migration.cutover()
    assert_serving(collection, encoder)
    assert texts_of(collection)["9"] == "newer"


def test_rollback_without_the_old_model_says_what_it_would_lose_and_loses_nothing_for_good(
    collection: Collection,
) -> None:
    migration, encoder = ready(collection, "a", "b")
    migration.cutover()
    collection.put(2, "b2", encoder.truth("b2"))
    collection.put(3, "c", encoder.truth("c"))
    with pytest.raises(CutoverRefused, match="2 writes were not followed on the old side") as refused:
        migration.rollback()
    assert set(refused.value.keys) == {"2", "3"}
    assert_serving(collection, encoder)
    assert migration.status().state == State.SERVING_NEW
    assert migration.rollback(accept_outdated=True).outdated_rows == 2
    replace(migration, old=OLD).start()
    assert (migration.status().backlog, migration.status().old_backlog) == (0, 0)
    if collection.keeps_rows:  # repaired, since the text is there
        assert texts_of(collection) == {"1": "a", "2": "b2", "3": "c"}
        assert_serving(collection, OLD)
    else:
        assert texts_of(collection) == {"1": "a"}
        assert {letter.key[0] for letter in migration.status().first_dead_letters} == {"2", "3"}
    migration.cutover()
    assert texts_of(collection) == {"1": "a", "2": "b2", "3": "c"}
    assert_serving(collection, encoder)
    replace(migration, old=OLD).retry()
    replace(migration, old=OLD).rollback()
    assert texts_of(collection) == {"1": "a", "2": "b2", "3": "c"}
    assert_serving(collection, OLD)


def test_a_text_that_the_old_model_cannot_embed_does_not_hold_a_rollback(collection: Collection) -> None:
    migration, encoder = ready(collection, "a")
    migration.cutover()
    collection.put(5, "POISON", encoder.truth("POISON"))
    report = replace(migration, old=OLD).rollback()
    assert report.dead_letters == 1


def test_searches_are_answered_in_the_space_of_their_query(collection: Collection) -> None:
    migration, encoder = ready(collection, *"abcdef")

    def first(model: TruthEncoder) -> str:
        return collection.store.search(model.truth("d"), 1, fingerprint=model.fingerprint)[0].key[0]

    assert (first(OLD), first(encoder)) == ("4", "4")
    migration.cutover()
    assert (first(OLD), first(encoder)) == ("4", "4")
    migration.finalize(confirmed=True)
    assert first(encoder) == "4"
    with pytest.raises(SpaceMismatch):
        first(OLD)


# --- dead letters ---------------------------------------------------------------------------------


def test_dead_letters_keep_their_reason_and_the_other_rows_are_done(collection: Collection) -> None:
    texts = ["a", "POISON", "b", "c", "NAN", "ZERO", "HUGE", "d", ""]
    encoder = TruthEncoder()
    migration = fill(collection, *texts, new=encoder)
    status = migration.start()
    assert (status.rows_done, status.dead_letters) == (5, 4)
    reasons = {letter.key[0]: letter.reason for letter in status.first_dead_letters}
    assert reasons["2"] == "it is poison"
    assert "not finite" in reasons["5"]
    assert "zero" in reasons["6"]
    assert "out of memory" in reasons["7"]
    report = migration.verify(override="no gate in this test")
    assert report.passed
    assert report.dead_letters == 4


def test_a_row_without_a_text_is_a_dead_letter(collection: Collection) -> None:
    if not collection.nullable:
        pytest.skip("every row of this store has a text")
    encoder = TruthEncoder()
    migration = fill(collection, "a", None, "c", new=encoder)
    collection.put(2, None, old_vector(""))
    (letter,) = migration.start().first_dead_letters
    assert (letter.key, letter.reason) == (("2",), "the text is NULL")
    collection.put(1, None, old_vector(""))
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover(accept_dead_letters=2)
    assert_serving(collection, encoder, without=("1", "2"))


def test_cutover_wants_dead_letters_accepted_by_their_exact_number(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "POISON", "POISON 2")
    for accepted in (0, 1, 3):
        with pytest.raises(CutoverRefused) as refused:
            migration.cutover(accept_dead_letters=accepted)
        assert sorted(refused.value.keys) == ["2", "3"]
    assert migration.cutover(accept_dead_letters=2).dead_letters == 2
    assert_serving(collection, encoder, without=("2", "3"))


def test_finalize_does_not_drop_rows_that_are_nowhere_else(collection: Collection) -> None:
    migration, _ = ready(collection, "a", "POISON")
    migration.cutover(accept_dead_letters=1)
    if collection.keeps_rows:
        migration.finalize(confirmed=True)
        assert texts_of(collection) == {"1": "a", "2": "POISON"}
    else:
        with pytest.raises(CutoverRefused) as refused:
            migration.finalize(confirmed=True)
        assert refused.value.keys == ("2",)
        migration.finalize(confirmed=True, accept_dead_letters=1)
        assert texts_of(collection) == {"1": "a"}


def test_a_dead_letter_that_the_application_repaired_after_the_switch_is_none_for_finalize(
    collection: Collection,
) -> None:
    migration, encoder = ready(collection, "a", "POISON")
    migration.cutover(accept_dead_letters=1)
    collection.put(2, "cured", encoder.truth("cured"))
    migration.finalize(confirmed=True)
    assert texts_of(collection) == {"1": "a", "2": "cured"}


def test_a_repaired_dead_letter_is_followed(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "POISON", "POISON 2")
    collection.put(2, "cured", old_vector("cured"))
    collection.remove(3)
    status = migration.start()
    assert (status.rows, status.rows_done, status.dead_letters, status.first_dead_letters) == (2, 2, 0, ())
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    assert_serving(collection, encoder)


def test_retry_encodes_dead_letters_again(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "HUGE", "POISON")
    assert migration.start().dead_letters == 2
    calls = encoder.encoded["HUGE"]
    cured = TruthEncoder()
    cured.poison = ("POISON",)
    status = replace(migration, new=cured).retry()
    assert (status.rows_done, status.dead_letters) == (2, 1)
    assert encoder.encoded["HUGE"] == calls
    assert replace(migration, new=cured).verify(override="no gate in this test").passed


def test_a_model_that_fails_on_every_text_stops_the_run(collection: Collection) -> None:
    migration = fill(collection, *[f"HUGE {i}" for i in range(6)])
    with pytest.raises(OutOfMemory):
        replace(migration, new=TruthEncoder()).start()
    assert migration.status().dead_letters == 0


def test_a_runtime_that_is_gone_stops_the_run_and_it_can_go_on(collection: Collection) -> None:
    def fail(texts: object) -> None:
        if encoder.calls == 1:
            raise RuntimeUnavailable("double", "gone", "start it")

    encoder = TruthEncoder(before_each=fail)
    migration = fill(collection, *"abcdefgh", new=encoder)
    with pytest.raises(RuntimeUnavailable):
        migration.start()
    assert migration.status().rows_done == 4
    again = TruthEncoder()
    assert replace(migration, new=again).start().rows_done == 8
    assert again.encoded.total() == 4


def test_a_wrong_dimension_makes_dead_letters_not_vectors(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, "a", "b", new=encoder)
    encoder.truth = TruthEncoder(dimension=15).truth  # type: ignore[method-assign]
    status = migration.start()
    assert (status.rows_done, status.dead_letters) == (0, 2)
    assert status.first_dead_letters[0].reason == "its vector has 15 numbers, not 16"


# --- verification ---------------------------------------------------------------------------------


def test_a_vector_of_another_row_is_found_by_the_sample(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, *"abcdef", new=encoder)
    migration.start()
    liar = TruthEncoder()
    liar.truth = lambda text: encoder.truth(text + "x")  # type: ignore[method-assign]
    collection.put(3, "rewritten", old_vector("rewritten"))
    replace(migration, new=liar).start()
    report = migration.verify(override="no gate in this test")
    assert [(check.name, check.keys) for check in report.checks if not check.passed] == [("recomputed sample", ("3",))]
    assert migration.status().state == State.CATCHING_UP
    with pytest.raises(IllegalTransition):
        migration.cutover()


def test_a_gate_has_the_last_word(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, *"abc", new=encoder)
    migration.start()

    def gate(store: Store) -> GateVerdict:
        answers = store.search(encoder.truth("b"), 1, fingerprint=encoder.fingerprint)
        return GateVerdict(verdict, f"the nearest to b is {answers[0].key}.", "one query")

    verdict = False
    report = migration.verify(gate=gate)
    assert (report.passed, report.state, migration.status().state) == (False, State.VERIFIED, State.VERIFIED)
    with pytest.raises(IllegalTransition):
        migration.cutover()
    verdict = True
    assert migration.verify(gate=gate).passed
    assert migration.status().state == State.READY


def test_the_new_vectors_are_verified_while_they_serve_and_the_state_stays(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b")
    migration.cutover()
    with pytest.raises(NotConfirmed, match="no verify has passed since the switch"):
        migration.finalize(confirmed=False)
    collection.put(3, "c", encoder.truth("c"))
    report = migration.verify(gate=gate_that_says(passed=False))
    assert [check.name for check in report.checks if not check.passed] == []
    assert (report.passed, report.rows, report.sampled, report.state) == (False, 3, 3, State.SERVING_NEW)
    assert migration.verify(gate=gate_that_says(passed=True)).passed
    status = migration.status()
    assert (status.state, status.verification and status.verification["state"]) == (State.SERVING_NEW, "serving_new")
    with pytest.raises(NotConfirmed) as asked:
        migration.finalize(confirmed=False)
    assert "no verify" not in asked.value.message
    assert migration.finalize(confirmed=True).state == State.FINALIZED


def test_a_vector_of_another_text_is_found_while_the_new_vectors_serve(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b")
    migration.cutover()
    collection.put_unseen(2, "b", encoder.truth("another text"))
    report = migration.verify(gate=gate_that_says(passed=True))
    assert {check.name for check in report.checks if not check.passed} & {"text unchanged", "recomputed sample"}
    assert (report.passed, report.gate, migration.status().state) == (False, None, State.SERVING_NEW)
    replace(migration, old=OLD).rollback(accept_outdated=True)
    with pytest.raises(CutoverRefused, match="the last verification did not pass"):
        migration.cutover()
    collection.put(2, "b once more", OLD.truth("b once more"))
    replace(migration, old=OLD).start()
    assert migration.verify(override="no gate in this test").passed
    assert migration.cutover().state == State.SERVING_NEW


# --- pause, throttle, postpone --------------------------------------------------------------------


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Do the work in a thread; return the thread, and a list for what the work returned or raised."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as exc:  # noqa: BLE001
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def _writes_nothing_for(seconds: float, operator: Migration) -> bool:
    before = operator.status().rows_done
    time.sleep(seconds)
    return operator.status().rows_done == before


@quick_on("memory", "pgvector")
def test_a_pause_stops_all_writing_until_resume(collection: Collection) -> None:
    with collection.another() as store:
        operator = Migration(store, new=TruthEncoder(), options=OPTIONS)

        def slow(texts: object) -> None:
            time.sleep(0.05)
            if encoder.calls == 2:
                operator.pause("for lunch")

        encoder = TruthEncoder(before_each=slow)
        migration = fill(collection, *[f"text {i}" for i in range(80)], new=encoder)
        thread, outcome = in_background(migration.start)
        wait_until(lambda: bool(encoder.calls > 2 and operator.status().state == State.PAUSED))
        wait_until(lambda: _writes_nothing_for(0.8, operator))  # however long the range under way takes
        before = operator.status()
        assert before.paused == "for lunch"
        time.sleep(0.7)
        after = operator.status()
        assert (after.rows_done, after.ranges_done) == (before.rows_done, before.ranges_done)
        assert after.rows_done < 80
        with pytest.raises(IllegalTransition):
            operator.verify(override="no gate in this test")
        with pytest.raises(Locked):
            operator.start()
        assert operator.resume().state == State.BACKFILLING
        thread.join()
        assert isinstance(outcome[0], object)
        assert operator.status().rows_done == 80


def assert_still_paused(migration: Migration, verb: Callable[[], object], refused: type[VecferryError]) -> None:
    """Assert that the verb is refused, and that an operator's pause lasts, with its reason."""
    before = migration.pause("for lunch")
    with pytest.raises(refused):
        verb()
    after = migration.status()
    assert (after.state, after.paused, after.serving) == (State.PAUSED, "for lunch", before.serving)
    migration.resume()


def test_a_verb_that_the_state_refuses_does_not_end_a_pause(collection: Collection) -> None:
    migration, _ = ready(collection, "a")
    assert_still_paused(migration, migration.rollback, IllegalTransition)
    assert_still_paused(migration, lambda: migration.finalize(confirmed=True), IllegalTransition)
    migration.cutover()
    assert_still_paused(migration, migration.abort, IllegalTransition)


def test_a_finalize_that_is_not_confirmed_or_not_accepted_does_not_end_a_pause(collection: Collection) -> None:
    migration, _ = ready(collection, "a", "POISON")
    migration.cutover(1)
    assert_still_paused(migration, lambda: migration.finalize(confirmed=False), NotConfirmed)
    if not collection.keeps_rows:
        assert_still_paused(migration, lambda: migration.finalize(confirmed=True), CutoverRefused)
    finalized = migration.pause() and migration.finalize(confirmed=True, accept_dead_letters=1)
    assert (finalized.state, finalized.paused) == (State.FINALIZED, None)


def test_a_rollback_that_would_lose_rows_does_not_end_a_pause(collection: Collection) -> None:
    migration, encoder = ready(collection, "a")
    migration.cutover()
    collection.put(1, "since the switch", encoder.truth("since the switch"))
    assert_still_paused(migration, migration.rollback, CutoverRefused)
    migration.pause()
    assert migration.rollback(accept_outdated=True).state == State.SERVING_OLD
    assert migration.status().paused is None


def test_an_abort_that_would_lose_rows_does_not_end_a_pause(collection: Collection) -> None:
    migration, encoder = ready(collection, "a")
    migration.cutover()
    collection.put(1, "since the switch", encoder.truth("since the switch"))
    migration.rollback(accept_outdated=True)
    assert_still_paused(migration, migration.abort, CutoverRefused)
    migration.pause()
    accepted = 0 if collection.keeps_rows else 1
    assert migration.abort(accepted, accept_outdated=True).state == State.ABORTED


def test_a_verb_does_not_end_a_pause_while_another_one_is_at_work(collection: Collection) -> None:
    migration, _ = ready(collection, "a")
    with held(collection.store.ledger, f"{collection.store.target} (switch)", 5.0):
        assert_still_paused(migration, migration.abort, Locked)
    with collection.another() as store, store.runner(5.0):
        assert_still_paused(migration, migration.abort, Locked)
    migration.cutover()
    with held(collection.store.ledger, f"{collection.store.target} (switch)", 5.0):
        assert_still_paused(migration, migration.rollback, Locked)
        assert_still_paused(migration, lambda: migration.finalize(confirmed=True), Locked)


@quick_on("memory", "pgvector")
def test_a_status_says_who_runs_it_how_fast_and_how_long_that_takes(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = Clock(), list[Status]()
    monkeypatch.setattr(pace, "time", clock)
    with collection.another() as store:
        operator = Migration(store, options=OPTIONS)

        def look(texts: object) -> None:
            clock.now += 1.0
            seen.append(operator.status())

        encoder = TruthEncoder(before_each=look)
        migration = fill(collection, *[f"text {i}" for i in range(40)], new=encoder)
        named = replace(OPTIONS, new_name="bge-m3", old_name="minilm")
        done = replace(migration, options=named).start()
    assert (done.running, done.seconds_left, done.new_model, done.old_model) == (None, None, "bge-m3", "minilm")
    running, last = seen[0].running, seen[-1]
    assert running is not None
    assert last.running is not None
    assert (running.pid, running.host, running.rows_per_s) == (os.getpid(), socket.gethostname(), None)
    assert last.running.rows_per_s is not None
    assert last.seconds_left == pytest.approx((40 - last.rows_done) / last.running.rows_per_s)


def test_a_rate_is_kept_and_can_be_changed_while_it_runs(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, rows_done = Clock(), list[int]()
    monkeypatch.setattr(throttle, "time", clock)
    with collection.another() as store:
        operator = Migration(store, options=OPTIONS)
        encoder = TruthEncoder()
        migration = fill(collection, *[f"text {i}" for i in range(40)], new=encoder)

        def limit(texts: object) -> None:
            if encoder.calls == 0:
                operator.throttle(8.0)

        def look() -> None:
            rows_done.append(operator.status().rows_done)

        encoder.before_each = limit
        for seconds in (1.1, 2.1):
            clock.at(seconds, look)
        clock.at(2.1, lambda: operator.throttle(None))
        assert migration.start().rows_done == 40
    assert rows_done == [3 * 4, 5 * 4]  # a range of 4 at the beginning, and one more in each half second
    assert 2.1 <= clock.seconds <= 2.1 + 1  # a second to notice
    assert encoder.calls == 10


def test_a_postponed_switch_is_refused_until_it_is_taken_back(collection: Collection) -> None:
    migration, encoder = ready(collection, "a")
    assert migration.postpone().control.postponed
    with pytest.raises(CutoverRefused, match="postponed"):
        migration.cutover()
    migration.postpone(postponed=False)
    migration.cutover()
    assert_serving(collection, encoder)


def test_a_run_pauses_by_itself_while_the_disk_is_low_and_goes_on_when_it_is_not(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [2 * 10**9]

    def disk_usage(path: Path) -> tuple[int, int, int]:
        return shutil._ntuple_diskusage(100, 0, free[0])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    fill(collection, "a")
    encoder = TruthEncoder(before_each=lambda _: free.__setitem__(0, 10))
    migration = Migration(
        collection.store,
        new=encoder,
        options=MigrationOptions(accept_unconfirmed="a test", staging=Path("staging"), min_free_gb=1),
    )
    with pytest.raises(Interrupted):
        migration.start(stop=lambda: encoder.calls > 0)
    with collection.another() as store:
        thread, outcome = in_background(replace(migration, new=TruthEncoder()).start)
        operator = Migration(store)
        wait_until(lambda: operator.status().state == State.PAUSED)
        assert "disk low: 0.00 GB free" in str(operator.status().paused)
        assert operator.status().rows_done == 0
        free[0] = 2 * 10**9
        thread.join(20)
        assert operator.status().state == State.CATCHING_UP
    assert not isinstance(outcome[0], BaseException)


def test_a_run_can_be_stopped_and_goes_on_later(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, *[f"text {i}" for i in range(40)], new=encoder)
    with pytest.raises(Interrupted):
        migration.start(stop=lambda: encoder.calls > 3)
    again = TruthEncoder()
    assert replace(migration, new=again).start().rows_done == 40
    assert again.encoded.total() <= 40 - 4 * 3


def test_a_follower_applies_writes_through_switches_and_ends_with_the_migration(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, *"abcdef", new=encoder)
    with collection.another() as store:
        operator = Migration(store, new=TruthEncoder(), options=OPTIONS)
        thread, outcome = in_background(lambda: replace(migration, old=OLD).start(follow=lambda: False))

        def is_catching_up() -> bool:
            return store.ledger.find(store.target) is not None and operator.status().state == State.CATCHING_UP

        wait_until(is_catching_up)
        collection.put(2, "b2", old_vector("b2"))
        wait_until(lambda: operator.status().backlog == 0)
        assert operator.verify(override="no gate in this test").passed
        collection.remove(3)
        operator.cutover()
        assert_serving(collection, encoder)
        collection.put(9, "late", encoder.truth("late"))
        operator.rollback()
        assert_serving(collection, OLD)
        assert texts_of(collection) == {"1": "a", "2": "b2", "4": "d", "5": "e", "6": "f", "9": "late"}
        operator.cutover()
        operator.finalize(confirmed=True)
        thread.join(10)
        assert not thread.is_alive()
        assert not isinstance(outcome[0], BaseException), outcome


def test_a_migration_that_is_finalized_in_the_middle_of_a_write_ends_the_follower_well(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration, encoder = ready(collection, "a", "b")
    migration.cutover()
    apply, finalized = Applier._apply, list[bool]()

    def finalized_first(self: Applier, *arguments: object) -> bool:
        """Finalize after what was captured was read, and before it is applied."""
        if not finalized:
            finalized.append(True)
            with collection.another() as store:
                store.acknowledge(store.captured(10))
                Migration(store, options=OPTIONS).finalize(confirmed=True)
        return apply(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Applier, "_apply", finalized_first)
    collection.put(2, "b2", encoder.truth("b2"))
    status = replace(migration, old=OLD).start(follow=lambda: False)
    assert finalized
    assert status.state == State.FINALIZED


def test_a_status_that_meets_the_end_of_the_migration_tells_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirror_collection("memory", tmp_path) as collection:
        migration, _ = ready(collection, "a", "b")
        migration.cutover()
        sides, before = MirrorSides.now, [collection.store._sides.now()]
        replace(migration, old=OLD).rollback()
        migration.abort()
        monkeypatch.setattr(MirrorSides, "now", lambda self: before.pop() if before else sides(self))
        assert collection.store.counts() == Counts(2, 0, 0)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["plan", "start", "verify", "retry"])
def test_a_verb_that_needs_the_new_model_says_so_before_anything_is_done(collection: Collection, verb: str) -> None:
    with pytest.raises(MissingModel) as missing:
        getattr(replace(fill(collection, "a"), old=OLD), verb)()
    assert str(missing.value) == (
        f"{verb} needs the new model, and this migration was made without it. Migration(store, new=ENCODER)"
    )
    assert collection.store.ledger.find(collection.store.target) is None


def test_another_model_cannot_go_on_with_a_migration(collection: Collection) -> None:
    migration, encoder = ready(collection, "a")
    another = replace(migration, new=TruthEncoder("another"))
    for verb in (another.start, another.verify):
        with pytest.raises(MigrationConflict) as conflict:
            verb()
        assert conflict.value.field == "fingerprint"
    with pytest.raises(MigrationConflict):
        Migration(
            collection.store,
            new=encoder,
            options=MigrationOptions(accept_unconfirmed="a test", old_fingerprint="another"),
        ).start()
    with pytest.raises(MigrationConflict):
        replace(migration, old=TruthEncoder("another old", OLD_DIMENSION)).start()
    options = MigrationOptions(accept_unconfirmed="a test")
    assert Migration(collection.store, new=encoder, options=options).start().old_fingerprint == OLD.fingerprint


def test_an_encoder_that_answers_in_another_space_is_refused(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, "a", new=encoder)
    encoder.encode = TruthEncoder("fallback").encode  # type: ignore[method-assign]
    with pytest.raises(SpaceMismatch):
        migration.start()
    assert migration.status().rows_done == 0


def test_verbs_out_of_turn_are_refused(collection: Collection) -> None:
    encoder = TruthEncoder()
    migration = fill(collection, "a", new=encoder)
    verbs: list[Callable[[], object]] = [
        migration.cutover, migration.rollback, lambda: migration.finalize(confirmed=True), migration.serving,
        migration.abort, migration.pause, migration.resume, migration.postpone, lambda: migration.throttle(1.0),
    ]  # fmt: skip
    for verb in verbs:
        with pytest.raises(MigrationNotFound):
            verb()
    migration.start()
    verbs = [migration.cutover, migration.rollback, lambda: migration.finalize(confirmed=True), migration.resume]
    for verb in verbs:
        with pytest.raises(IllegalTransition):
            verb()
    migration.verify(override="no gate in this test")
    migration.cutover()
    for verb in (migration.cutover, migration.abort):
        with pytest.raises(IllegalTransition):
            verb()


def test_finalize_wants_to_be_confirmed(collection: Collection) -> None:
    migration, _ = ready(collection, "a")
    migration.cutover()
    with pytest.raises(NotConfirmed):
        migration.finalize(confirmed=False)
    migration.rollback()
    assert_serving(collection, OLD)
    with pytest.raises(IllegalTransition):
        migration.finalize(confirmed=True)


def test_dead_letters_go_with_rows_that_were_removed_unseen(collection: Collection) -> None:
    migration, _ = ready(collection, "a", "POISON")
    collection.remove_unseen(2)
    migration.cutover()
    assert migration.status().first_dead_letters == ()


def test_finalize_and_abort_may_be_repeated_and_what_was_staged_is_taken_away_by_any_later_verb(
    collection: Collection,
) -> None:
    def leave_staged() -> Path:
        record = collection.store.ledger.last(collection.store.target)
        assert record is not None
        left = Path("staging") / record.spec.fingerprint / "dense" / f"{record.spec.uid}-00000001.parquet"
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"of a process that was killed")
        return left

    migration, encoder = ready(collection, "a")
    migration.abort()
    left = leave_staged()
    assert migration.abort().state == State.ABORTED
    assert not left.exists()
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    migration.finalize(confirmed=True)
    following = Migration(
        collection.store, new=encoder, options=MigrationOptions(accept_unconfirmed="a test", staging=Path("staging"))
    )
    for verb in (migration.status, lambda: migration.finalize(confirmed=True), lambda: following.plan()):
        left = leave_staged()
        verb()
        assert not left.exists()
    assert migration.ended() is State.FINALIZED
    with pytest.raises(IllegalTransition):
        migration.abort()


def test_abort_leaves_the_collection_as_it_was_and_another_may_begin(collection: Collection) -> None:
    migration, _ = ready(collection, "a", "b")
    before = collection.serving()
    migration.cutover()
    migration.rollback()
    migration.abort()
    assert collection.store.new_space() is None
    assert repr(collection.serving()) == repr(before)
    with pytest.raises(MigrationNotFound):
        migration.status()
    other = TruthEncoder("another")
    replace(migration, new=other, old=OLD).start()
    assert replace(migration, new=other).verify(override="no gate in this test").passed
    migration.cutover()
    assert_serving(collection, other)


def test_after_finalize_the_next_migration_may_begin(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b")
    migration.cutover()
    migration.finalize(confirmed=True)
    with pytest.raises(SpaceMismatch):  # the old model of the options is not what serves now
        replace(migration, new=TruthEncoder("third", 12)).start()
    third, following = (
        TruthEncoder("third", 12),
        Migration(collection.store, options=MigrationOptions(accept_unconfirmed="a test", staging=Path("staging"))),
    )
    assert replace(following, new=third).plan().old_fingerprint == encoder.fingerprint
    status = replace(following, new=third).start()
    assert (status.old_fingerprint, status.rows_done) == (encoder.fingerprint, 2)
    assert replace(following, new=third).verify(override="no gate in this test").passed
    assert (following.cutover().serving.generation, following.serving().epoch) == (3, 3)
    assert_serving(collection, third)
    following.rollback()
    assert_serving(collection, encoder)


@pytest.mark.parametrize("name", params(backends.NAMES, slow=backends.RUN_APART))
def test_after_finalize_the_old_name_answers_with_the_new_vectors(name: str, tmp_path: Path) -> None:
    """Asked by the store's own client, which knows nothing of a migration; and again after a second one."""

    def asked(vector: Float32) -> str:
        return backends.nearest(name, collection.backend, tmp_path / "store", vector)

    with mirror_collection(name, tmp_path) as collection:
        migration, new = ready(collection, "a", "b", "c")
        migration.cutover()
        migration.rollback()
        migration.cutover()
        assert asked(OLD.truth("b")) == "2"
        migration.finalize(confirmed=True)
        assert asked(new.truth("b")) == "2"
        third = TruthEncoder("third", 12)
        with Router(collection.store, old=new, new=third) as router:
            assert router.search("c", 1).hits[0].key == ("3",)
            router.put([Document(("4",), "d", {"lang": "en", "year": 2004})])
            assert asked(new.truth("d")) == "4"
            following = replace(migration, new=third, options=replace(OPTIONS, old_fingerprint=None))
            following.start()
            assert following.verify(override="no gate in this test").passed
            following.cutover()
            assert router.search("a", 1).hits[0].key == ("1",)
            following.finalize(confirmed=True)
            assert asked(third.truth("d")) == "4"
            router.put([Document(("5",), "e", {"lang": "en", "year": 2005})])
            assert asked(third.truth("e")) == "5"
            assert router.search("e", 1).hits[0].key == ("5",)
        serving = following.serving()
        assert collection.store.serving_locator(Side.OLD) == serving.locator
        assert collection.backend.count(serving.locator) == 5
        names = {"docs", "docs_vecferry_2", "docs_vecferry_3"}
        there = {each for each in names if collection.backend.exists(each)}
        assert there == {"docs", serving.locator}


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("name", params(backends.NAMES, slow=backends.RUN_APART))
def test_between_the_steps_of_a_finalize_the_collection_is_read_and_written_and_a_repeat_ends_them(
    name: str, num_steps: int, tmp_path: Path
) -> None:
    with mirror_collection(name, tmp_path) as collection:
        migration, new = ready(collection, "a", "b", "c")
        migration.cutover()
        backend = collection.backend
        backend.drop("docs")
        if num_steps == 2:
            take_over(backend)
        found = collection.store.search(new.truth("b"), 1, fingerprint=new.fingerprint)
        assert found[0].key == ("2",)
        with pytest.raises(SpaceMismatch):
            collection.store.search(OLD.truth("b"), 1, fingerprint=OLD.fingerprint)
        collection.put(4, "d", new.truth("d"))
        assert migration.status().rows == migration.status().rows_done == 4
        assert migration.finalize(confirmed=True).state is State.FINALIZED
        assert backends.nearest(name, backend, tmp_path / "store", new.truth("d")) == "4"
        assert_serving(collection, new)


@pytest.mark.parametrize("num_points", [0, 1])
@pytest.mark.parametrize("name", params(backends.NAMES, slow=backends.RUN_APART))
def test_a_collection_that_a_client_makes_while_the_old_name_finds_nothing_is_no_hindrance_unless_it_has_points(
    name: str, num_points: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain's Chroma and LlamaIndex's QdrantVectorStore make a collection where they find none."""
    with mirror_collection(name, tmp_path) as collection:
        migration, new = ready(collection, "a", "b", "c")
        migration.cutover()
        backend = collection.backend
        gone = "rename" if isinstance(backend, Renamable) else "drop"
        take_away = getattr(backend, gone)

        def take_away_and_make(*names: str) -> None:
            take_away(*names)
            monkeypatch.undo()
            backend.create("docs", like="docs_vecferry_2", dimension=16, outputs=DENSE)
            backend.put("docs", backend.get("docs_vecferry_2", ["1"], vectors=True)[:num_points])

        monkeypatch.setattr(backend, gone, take_away_and_make)
        if num_points:
            for _ in range(2):
                with pytest.raises(StoreSchemaError, match="a client has made a collection docs meanwhile, with 1 p"):
                    migration.finalize(confirmed=True)
            assert backend.count("docs") == 1
            assert collection.store.search(new.truth("b"), 1, fingerprint=new.fingerprint)[0].key == ("2",)
            collection.put(4, "d", new.truth("d"))
            replace(migration, old=OLD).start()
            assert list(backend.ids("docs")) == ["1"]
            backend.drop("docs")
        assert migration.finalize(confirmed=True).state is State.FINALIZED
        assert backends.nearest(name, backend, tmp_path / "store", new.truth("b")) == "2"
        assert_serving(collection, new)


def take_over(backend: Backend) -> None:
    """Do what `finalize` does after the drop, and before the ledger knows it."""
    if isinstance(backend, Renamable):
        backend.rename("docs_vecferry_2", "docs")
    else:
        assert isinstance(backend, Aliased)
        backend.point_alias("docs", "docs_vecferry_2")


def test_old_vectors_under_the_old_name_are_never_taken_for_the_new(tmp_path: Path) -> None:
    """Somebody has dropped the new collection: the one that is there was not renamed."""
    with mirror_collection("lancedb", tmp_path) as collection:
        migration, new = ready(collection, "a")
        migration.cutover()
        collection.backend.drop("docs_vecferry_2")
        with pytest.raises(SpaceMismatch):
            collection.store.search(new.truth("a"), 1, fingerprint=new.fingerprint)
        with pytest.raises(StoreSchemaError):
            migration.finalize(confirmed=True)
        assert collection.backend.count("docs") == 1


def test_rows_of_a_range_that_are_encoded_are_seen_before_they_are_written(collection: Collection) -> None:
    seen: list[tuple[int, int]] = []
    progress: list[int] = []

    def look(texts: Sequence[str]) -> None:
        if len(texts) < 16:  # the second part
            with collection.another() as store:
                watching = Migration(store, options=OPTIONS)
                wait_until(lambda: (running := watching.status().running) is not None and running.rows_encoded == 16)
                seen.append((watching.status().rows_done, progress[-1]))

    migration = fill(collection, *(f"text {i}" for i in range(20)), new=TruthEncoder(before_each=look))
    migration = replace(migration, options=replace(OPTIONS, rows_per_range=20))
    migration.start(lambda done, _: progress.append(done))
    assert seen == [(0, 16)]
    assert progress == sorted(progress)
    assert progress[-1] == migration.status().rows_done == 20


def test_two_runners_exclude_each_other(collection: Collection) -> None:
    def meddle(texts: object) -> None:
        with pytest.raises(Locked), collection.another() as store:
            Migration(store, new=TruthEncoder(), options=OPTIONS).start()

    migration = fill(collection, "a")
    assert replace(migration, new=TruthEncoder(before_each=meddle)).start().rows_done == 1


def test_status_works_while_another_runner_is_at_work(collection: Collection) -> None:
    states: list[State] = []

    def look(texts: object) -> None:
        with collection.another() as store:
            states.append(Migration(store, options=OPTIONS).status().state)

    replace(fill(collection, *"abcdefgh"), new=TruthEncoder(before_each=look)).start()
    assert states == [State.BACKFILLING, State.BACKFILLING]


@pytest.mark.parametrize(
    "bad",
    [
        {"rows_per_range": 0},
        {"rows_per_write": 0},
        {"lease_s": 0.0},
        {"min_recall": 1.5},
        {"max_query_ms": 0.0},
    ],
)
def test_bad_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(bad))):
        MigrationOptions(**bad)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="max_pause_s"):
        Patience(max_pause_s=0)
