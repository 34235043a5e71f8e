"""The verbs, on every store, with the truth embedder."""

import json

import numpy as np
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.stores.collections import OLD_DIMENSION, Collection, old_vector
from vecferry.errors import (
    CutoverRefused,
    FinalizeNotConfirmed,
    IllegalTransition,
    Locked,
    MigrationConflict,
    MigrationNotFound,
    OutOfMemory,
    RuntimeUnavailable,
    SettingsError,
    SpaceMismatch,
)
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores import Patience

OLD = TruthEncoder("old", OLD_DIMENSION)
OPTIONS = MigrationOptions(rows_per_range=4, old_fingerprint=OLD.fingerprint, patience=Patience(0.3, 2, 0.05))
HARD_TEXTS = ["", " ", "naïve 東京 🚢\u200d", 'O\'Brien "quotes" \\ %s {x} $1; DROP TABLE docs; --', "x" * 1_000_000]


def fill(collection: Collection, *texts: str | None) -> Migration:
    for key, text in enumerate(texts, start=1):
        collection.put(key, text, old_vector(text))
    return Migration(collection.store, OPTIONS)


def assert_serving(collection: Collection, encoder: TruthEncoder, *, without: tuple[str, ...] = ()) -> None:
    """Every row serves exactly what the encoder makes of its present text."""
    for key, (text, vector) in collection.serving().items():
        if key[0] in without:
            assert vector is None
        else:
            assert text is not None
            np.testing.assert_array_equal(vector, encoder.truth(text))


def ready(collection: Collection, *texts: str | None) -> tuple[Migration, TruthEncoder]:
    migration, encoder = fill(collection, *texts), TruthEncoder()
    migration.start(encoder)
    assert migration.verify(encoder).passed
    return migration, encoder


def test_the_whole_path(collection: Collection) -> None:
    texts = [f"text {i}" for i in range(10)] + HARD_TEXTS
    migration, encoder = fill(collection, *texts), TruthEncoder()
    with pytest.raises(MigrationNotFound):
        migration.status()

    progress: list[tuple[int, int]] = []
    status = migration.start(encoder, lambda done, total: progress.append((done, total)))
    assert status.state == State.INDEXING
    assert (status.rows, status.rows_done, status.ranges, status.ranges_done) == (15, 15, 4, 4)
    assert (progress[0], progress[-1]) == ((0, 15), (15, 15))
    assert progress == sorted(progress)
    assert_serving(collection, OLD)

    report = migration.verify(encoder, sample=8)
    assert report.passed
    assert report.state == migration.status().state == State.VERIFIED
    assert report.sampled == 8
    assert report.lowest_cosine is not None
    assert report.lowest_cosine > 1 - 1e-6  # the same float32 numbers, normalised once more
    assert_serving(collection, OLD)

    assert migration.serving().epoch == 1
    switched = migration.cutover()
    assert (switched.serving.epoch, switched.serving.generation) == (2, 2)
    assert switched.serving.fingerprint == encoder.fingerprint
    assert_serving(collection, encoder)

    finalized = migration.finalize(confirmed=True)
    assert finalized.state == State.FINALIZED
    assert finalized.rows_done == 15
    assert_serving(collection, encoder)
    passed = [event.what for event in finalized.events if event.what != "indexed"]
    assert passed == ["planned", "prepared", "backfilling", "indexing", "verified", "serving_new", "finalized"]


def test_everything_returned_is_ready_for_json(collection: Collection) -> None:
    migration, encoder = fill(collection, "a", None), TruthEncoder()
    plan, status = migration.plan(encoder), migration.start(encoder)
    report, switched, back = migration.verify(encoder), migration.cutover(1), migration.rollback()
    for value in (plan, status, report, switched, back, migration.serving()):
        assert json.loads(json.dumps(value.to_dict()))
    assert migration.status().to_dict()["state"] == "serving_old"


def test_a_plan_counts_and_writes_nothing(collection: Collection) -> None:
    migration, encoder = fill(collection, *[f"t{i}" for i in range(20)], None, "", "POISON"), TruthEncoder()
    before = collection.serving()
    plan = migration.plan(encoder, sample=50)
    assert (plan.table.rows, plan.table.null_texts, plan.table.empty_texts) == (23, 1, 1)
    assert (plan.old_dimension, plan.new_dimension) == (OLD_DIMENSION, 16)
    assert (plan.old_fingerprint, plan.new_fingerprint) == (OLD.fingerprint, encoder.fingerprint)
    assert (plan.sample_rows, plan.sample_failures) == (22, 1)
    assert plan.seconds == pytest.approx(plan.sample_seconds / 22 * 23)
    assert plan.vector_bytes_after == 23 * (4 * 16 + 8)
    assert any("NULL" in warning for warning in plan.warnings)
    assert collection.store.new_space() is None
    assert repr(collection.serving()) == repr(before)


def test_a_plan_of_an_empty_collection(collection: Collection) -> None:
    plan = fill(collection).plan(TruthEncoder())
    assert (plan.table.rows, plan.sample_rows, plan.seconds) == (0, 0, 0.0)


def test_an_empty_collection_goes_the_whole_path(collection: Collection) -> None:
    migration, encoder = ready(collection)
    assert encoder.calls == 0
    migration.cutover()
    assert migration.finalize(confirmed=True).state == State.FINALIZED


def test_equal_texts_in_a_range_are_encoded_once(collection: Collection) -> None:
    _, encoder = ready(collection, "same", "same", "same", "other")
    assert encoder.encoded["same"] == 2  # once at start, once for the sample of verify


def test_a_second_start_encodes_nothing_again(collection: Collection) -> None:
    migration, encoder = fill(collection, *"abcdefgh"), TruthEncoder()
    migration.start(encoder)
    calls = encoder.calls
    assert migration.start(encoder).state == State.INDEXING
    assert encoder.calls == calls


def test_rollback_and_a_second_cutover(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b")
    for epoch in (2, 4):
        assert migration.cutover().serving.epoch == epoch
        assert_serving(collection, encoder)
        report = migration.rollback()
        assert (report.serving.epoch, report.serving.generation) == (epoch + 1, 1)
        assert report.serving.fingerprint == OLD.fingerprint
        assert (report.stale_rows, report.stale_keys) == (0, ())
        assert_serving(collection, OLD)


def test_rollback_names_the_rows_written_since_the_switch(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b", "c")
    migration.cutover()
    collection.put(2, "b2", encoder.truth("b2"))
    collection.put(9, "new", encoder.truth("new"))
    collection.remove(3)
    report = migration.rollback()
    assert (report.stale_rows, report.stale_keys) == (2, ("2", "9"))
    with pytest.raises(CutoverRefused):  # nobody has said that their new vectors are right
        migration.cutover()
    migration.start(encoder)
    assert migration.verify(encoder).passed
    migration.cutover()
    assert_serving(collection, encoder)


def test_searches_follow_the_serving_space(collection: Collection) -> None:
    migration, encoder = ready(collection, *"abcdef")

    def first(model: TruthEncoder) -> str:
        return collection.store.search(model.truth("d"), 1, fingerprint=model.fingerprint)[0].key[0]

    assert first(OLD) == "4"
    migration.cutover()
    assert first(encoder) == "4"
    with pytest.raises(SpaceMismatch):
        first(OLD)
    migration.rollback()
    assert first(OLD) == "4"
    with pytest.raises(SpaceMismatch):
        first(encoder)


def test_rows_changed_inserted_and_deleted_since_the_backfill(collection: Collection) -> None:
    migration, encoder = ready(collection, *"abcde")
    collection.put(2, "changed", old_vector("changed"))
    collection.put(77, "inserted", old_vector("inserted"))
    collection.remove(4)
    with pytest.raises(CutoverRefused) as refused:
        migration.cutover()
    assert list(refused.value.keys) == ["2", "77"]
    assert "start" in refused.value.remedy
    assert_serving(collection, OLD)
    assert migration.status().state == State.VERIFIED

    report = migration.verify(encoder)
    assert not report.passed
    assert [check.name for check in report.checks if not check.passed] == ["text unchanged"]
    assert migration.status().state == State.INDEXING  # the earlier pass is taken back
    assert migration.start(encoder).rows_done == 5
    assert migration.verify(encoder).passed
    migration.cutover()
    assert_serving(collection, encoder)


def test_a_row_changed_while_its_range_is_being_encoded_gets_its_newest_text(collection: Collection) -> None:
    def meddle(texts: object) -> None:
        if encoder.calls == 0:
            collection.put(1, "newer", old_vector("newer"))
            collection.remove(2)
            collection.put(50, "inserted", old_vector("inserted"))

    migration, encoder = fill(collection, *"abcdef"), TruthEncoder(before_each=meddle)
    migration.start(encoder)
    assert migration.verify(encoder).passed
    migration.cutover()
    assert_serving(collection, encoder)
    assert len(collection.serving()) == 6


def test_dead_letters_keep_their_reason_and_the_other_rows_are_done(collection: Collection) -> None:
    texts = ["a", "POISON", "b", None, "NAN", "ZERO", "HUGE", "c", ""]
    migration, encoder = fill(collection, *texts), TruthEncoder()
    status = migration.start(encoder)
    assert (status.rows_done, status.dead_letters) == (4, 5)
    reasons = {letter.key[0]: letter.reason for letter in status.letters}
    assert reasons["2"] == "it is poison"
    assert reasons["4"] == "the text is NULL"
    assert "not finite" in reasons["5"]
    assert "zero" in reasons["6"]
    assert "out of memory" in reasons["7"]
    report = migration.verify(encoder)
    assert report.passed
    assert report.dead_letters == 5


def test_cutover_wants_dead_letters_accepted_by_their_exact_number(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "POISON", None)
    for accepted in (0, 1, 3):
        with pytest.raises(CutoverRefused) as refused:
            migration.cutover(accept_dead_letters=accepted)
        assert sorted(refused.value.keys) == ["2", "3"]
    assert migration.cutover(accept_dead_letters=2).dead_letters == 2
    assert_serving(collection, encoder, without=("2", "3"))


def test_a_repaired_dead_letter_is_done_at_the_next_start(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "POISON", None)
    collection.put(2, "cured", old_vector("cured"))
    collection.remove(3)
    status = migration.start(encoder)
    assert (status.rows, status.rows_done, status.dead_letters, status.letters) == (2, 2, 0, ())
    assert migration.verify(encoder).passed
    migration.cutover()
    assert_serving(collection, encoder)


def test_a_row_whose_text_becomes_null_loses_its_vector(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b")
    collection.put(1, None, None)
    status = migration.start(encoder)
    assert (status.rows_done, status.dead_letters) == (1, 1)
    assert migration.verify(encoder).passed
    migration.cutover(accept_dead_letters=1)
    assert_serving(collection, encoder, without=("1",))


def test_a_model_that_fails_on_every_text_stops_the_run(collection: Collection) -> None:
    migration = fill(collection, *[f"HUGE {i}" for i in range(6)])
    with pytest.raises(OutOfMemory):
        migration.start(TruthEncoder())
    assert migration.status().dead_letters == 0


def test_a_runtime_that_is_gone_stops_the_run_and_it_can_go_on(collection: Collection) -> None:
    def fail(texts: object) -> None:
        if encoder.calls == 1:
            raise RuntimeUnavailable("double", "gone", "start it")

    migration, encoder = fill(collection, *"abcdefgh"), TruthEncoder(before_each=fail)
    with pytest.raises(RuntimeUnavailable):
        migration.start(encoder)
    assert migration.status().rows_done == 4
    again = TruthEncoder()
    assert migration.start(again).rows_done == 8
    assert again.encoded == dict.fromkeys("efgh", 1)


def test_a_wrong_dimension_makes_dead_letters_not_vectors(collection: Collection) -> None:
    migration, encoder = fill(collection, "a", "b"), TruthEncoder()
    encoder.truth = TruthEncoder(dimension=15).truth  # type: ignore[method-assign]
    status = migration.start(encoder)
    assert (status.rows_done, status.dead_letters) == (0, 2)
    assert status.letters[0].reason == "its vector has 15 numbers, not 16"


def test_another_model_cannot_go_on_with_a_migration(collection: Collection) -> None:
    migration, encoder = ready(collection, "a")
    for verb in (migration.start, migration.verify):
        with pytest.raises(MigrationConflict) as conflict:
            verb(TruthEncoder("another"))
        assert conflict.value.field == "fingerprint"
    with pytest.raises(MigrationConflict):
        Migration(collection.store, MigrationOptions(old_fingerprint="another")).start(encoder)
    assert Migration(collection.store).start(encoder).old_fingerprint == OLD.fingerprint


def test_an_encoder_that_answers_in_another_space_is_refused(collection: Collection) -> None:
    migration, encoder = fill(collection, "a"), TruthEncoder()
    encoder.encode = TruthEncoder("fallback").encode  # type: ignore[method-assign]
    with pytest.raises(SpaceMismatch):
        migration.start(encoder)
    assert migration.status().rows_done == 0


def test_verbs_out_of_turn_are_refused(collection: Collection) -> None:
    migration, encoder = fill(collection, "a"), TruthEncoder()
    for verb in (migration.cutover, migration.rollback, lambda: migration.finalize(confirmed=True), migration.serving):
        with pytest.raises(MigrationNotFound):
            verb()
    migration.start(encoder)
    for verb in (migration.cutover, migration.rollback, lambda: migration.finalize(confirmed=True)):
        with pytest.raises(IllegalTransition):
            verb()
    migration.verify(encoder)
    migration.cutover()
    for verb in (migration.cutover, lambda: migration.start(encoder), lambda: migration.verify(encoder)):
        with pytest.raises(IllegalTransition):
            verb()


def test_finalize_wants_to_be_confirmed(collection: Collection) -> None:
    migration, _ = ready(collection, "a")
    migration.cutover()
    with pytest.raises(FinalizeNotConfirmed):
        migration.finalize(confirmed=False)
    migration.rollback()
    assert_serving(collection, OLD)
    with pytest.raises(IllegalTransition):
        migration.finalize(confirmed=True)


def test_after_finalize_the_next_migration_may_begin(collection: Collection) -> None:
    migration, encoder = ready(collection, "a", "b")
    migration.cutover()
    migration.finalize(confirmed=True)
    with pytest.raises(SpaceMismatch):  # the old model of the options is not what serves now
        migration.start(TruthEncoder("third", 12))
    third, following = TruthEncoder("third", 12), Migration(collection.store)
    assert following.plan(third).old_fingerprint == encoder.fingerprint
    status = following.start(third)
    assert (status.old_fingerprint, status.rows_done) == (encoder.fingerprint, 2)
    assert following.verify(third).passed
    assert (following.cutover().serving.generation, following.serving().epoch) == (3, 3)
    assert_serving(collection, third)
    following.rollback()
    assert_serving(collection, encoder)


def test_two_runners_exclude_each_other(collection: Collection) -> None:
    def meddle(texts: object) -> None:
        with pytest.raises(Locked), collection.another() as store:
            Migration(store, OPTIONS).start(TruthEncoder())

    migration = fill(collection, "a")
    assert migration.start(TruthEncoder(before_each=meddle)).rows_done == 1


def test_status_works_while_another_runner_is_at_work(collection: Collection) -> None:
    seen: list[tuple[State, int, int]] = []

    def look(texts: object) -> None:
        with collection.another() as store:
            status = Migration(store, OPTIONS).status()
            seen.append((status.state, status.rows_done, status.ranges_done))

    fill(collection, *"abcdefgh").start(TruthEncoder(before_each=look))
    assert seen == [(State.BACKFILLING, 0, 0), (State.BACKFILLING, 4, 1)]


@pytest.mark.parametrize(
    "bad", [{"rows_per_range": 0}, {"patience": Patience(timeout_s=0)}, {"patience": Patience(tries=0)}]
)
def test_bad_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        MigrationOptions(**bad)  # type: ignore[arg-type]
