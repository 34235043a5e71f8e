"""What every store promises, tested on each."""

import numpy as np
import pytest

from tests.migrate.doubles import truth
from tests.stores.collections import Collection, old_vector
from vecferry.errors import Locked, MigrationConflict, SpaceMismatch, StoreSchemaError
from vecferry.stores import EVERYTHING, KeyRange, NewVector, Patience, Row, text_digest
from vecferry.stores.ledger import DeadLetter, MigrationRecord, MigrationSpec, Serving

PATIENCE = Patience(timeout_s=0.2, tries=1)
DIMENSION = 4


def fill(collection: Collection, *texts: str | None) -> None:
    """Rows 1, 2, ... with these texts and their old vectors."""
    for key, text in enumerate(texts, start=1):
        collection.put(key, text, old_vector(text))


def prepared(collection: Collection, *texts: str | None) -> MigrationRecord:
    fill(collection, *texts)
    store = collection.store
    store.ledger.install()
    store.exclusively(lambda: store.prepare(DIMENSION, "space-new"), PATIENCE)
    spec = MigrationSpec(store.target, "body", DIMENSION, "space-new", None, old_not_null=False, generation=2)
    return store.ledger.create(spec, "planned")


def vectors(*rows: Row) -> list[NewVector]:
    return [NewVector(row.key, row.digest, truth("new", row.text or "", DIMENSION)) for row in rows]


def test_a_collection_is_described_without_being_changed(collection: Collection) -> None:
    fill(collection, "a", "", None, "d")
    table = collection.store.describe()
    assert (table.rows, table.null_texts, table.empty_texts, table.dimension) == (4, 1, 1, 8)
    assert table.fingerprint is None
    assert table.vector_bytes >= 3 * 4 * 8
    assert collection.store.new_space() is None


def test_ranges_hold_every_key_once(collection: Collection) -> None:
    prepared(collection, *"abcdefg")
    ranges = collection.store.key_ranges(3)
    assert ranges == [KeyRange(None, ("3",)), KeyRange(("3",), ("6",)), KeyRange(("6",), ("7",))]
    found = [row.text for part in ranges for row in collection.store.pending(part, 100)]
    assert found == list("abcdefg")


def test_ranges_that_fit_exactly_have_no_empty_rest(collection: Collection) -> None:
    prepared(collection, *"abcdef")
    assert collection.store.key_ranges(3) == [KeyRange(None, ("3",)), KeyRange(("3",), ("6",))]


def test_an_empty_collection_has_no_ranges(collection: Collection) -> None:
    assert collection.store.key_ranges(10) == []


def test_what_is_written_is_no_longer_pending(collection: Collection) -> None:
    prepared(collection, "a", "b", "c")
    store = collection.store
    first, second, _ = store.pending(EVERYTHING, 10)
    assert store.write(vectors(first, second)) == 2
    assert [row.text for row in store.pending(EVERYTHING, 10)] == ["c"]
    assert store.counts().done == 2
    stored = {row.text: vector for row, vector in store.sample_vectors(10)}
    assert set(stored) == {"a", "b"}
    np.testing.assert_array_equal(stored["a"], truth("new", "a", DIMENSION))


def test_a_vector_of_a_former_text_is_not_written(collection: Collection) -> None:
    prepared(collection, "a", "b")
    stale = vectors(*collection.store.pending(EVERYTHING, 10))
    collection.put(1, "changed", None)
    assert collection.store.write(stale) == 1
    assert [row.text for row in collection.store.pending(EVERYTHING, 10)] == ["changed"]


def test_a_deleted_row_does_not_come_back(collection: Collection) -> None:
    prepared(collection, "a", "b")
    late = vectors(*collection.store.pending(EVERYTHING, 10))
    collection.remove(1)
    assert collection.store.write(late) == 1
    assert list(collection.serving()) == [("2",)]


def test_a_row_tried_without_a_vector_is_a_dead_letter_until_its_text_changes(collection: Collection) -> None:
    prepared(collection, None, "b")
    store = collection.store
    assert store.write([NewVector(("1",), text_digest(None), None), NewVector(("2",), text_digest("b"), None)]) == 2
    assert store.pending(EVERYTHING, 10) == []
    assert store.changes().dead_letters == store.counts().dead_letters == 2
    collection.put(1, "repaired", None)
    assert store.pending(EVERYTHING, 10) == [Row(("1",), "repaired")]
    assert store.changes().dead_letters == 1
    store.retry_dead_letters()
    assert len(store.pending(EVERYTHING, 10)) == 2


def test_changes_count_rows_and_name_some(collection: Collection) -> None:
    prepared(collection, *"abc")
    store = collection.store
    store.write(vectors(*store.pending(EVERYTHING, 10)))
    assert store.changes().changed == 0
    for key in (2, 7, 8):
        collection.put(key, f"new {key}", None)
    found = store.changes(max_keys=2)
    assert (found.changed, found.keys) == (3, (("2",), ("7",)))


def test_an_examination_finds_each_defect(collection: Collection) -> None:
    prepared(collection, *"abcd")
    store = collection.store
    good, long, missing, _ = store.pending(EVERYTHING, 10)
    store.write(vectors(good))
    store.write([NewVector(long.key, long.digest, 2 * truth("new", "b", DIMENSION))])
    store.write([NewVector(missing.key, missing.digest, None)])
    found = store.examine(DIMENSION)
    assert (found.rows, found.changed, found.without_vector, found.off_norm) == (4, 1, 1, 1)
    assert (found.wrong_dimension, found.not_finite) == (0, 0)
    assert store.examine(DIMENSION + 1).wrong_dimension == 2


def test_a_failed_transaction_leaves_nothing_of_vectors_or_ledger(collection: Collection) -> None:
    record = prepared(collection, "a")
    store = collection.store
    rows = store.pending(EVERYTHING, 10)
    store.ledger.add_ranges(record, [EVERYTHING])

    def fail_at_the_end() -> None:
        with store.transaction():
            store.write(vectors(*rows))
            store.ledger.close_range(record, 1)
            store.ledger.bury(record, [DeadLetter(("9",), "why", b"")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_end()
    assert store.pending(EVERYTHING, 10) == rows
    assert store.ledger.count_ranges(record) == (0, 1)
    assert store.ledger.dead_letters(record, 10) == []


def test_switch_and_switch_back_exchange_the_vectors(collection: Collection) -> None:
    prepared(collection, "a")
    store = collection.store
    store.write(vectors(*store.pending(EVERYTHING, 10)))
    store.exclusively(store.switch, PATIENCE)
    np.testing.assert_array_equal(collection.serving()[("1",)][1], truth("new", "a", DIMENSION))
    store.exclusively(lambda: store.switch_back(not_null=False), PATIENCE)
    np.testing.assert_array_equal(collection.serving()[("1",)][1], old_vector("a"))
    assert store.changes().changed == 0
    store.exclusively(store.switch, PATIENCE)
    store.exclusively(store.drop_old, PATIENCE)
    assert store.new_space() is None
    assert store.describe().fingerprint == "space-new"


def test_the_new_side_carries_its_space(collection: Collection) -> None:
    prepared(collection, "a")
    assert collection.store.new_space() == "space-new"


def test_the_new_side_cannot_be_used_before_it_is_there(collection: Collection) -> None:
    fill(collection, "a")
    with pytest.raises(StoreSchemaError):
        collection.store.changes()


def test_a_search_is_exact_and_best_first(collection: Collection) -> None:
    fill(collection, *"abcdefgh")
    query = truth("old", "c", 8)
    hits = collection.store.search(query, 3, fingerprint="whatever serves")
    cosines = {(str(i),): float(truth("old", text, 8) @ query) for i, text in enumerate("abcdefgh", start=1)}
    best = sorted(cosines, key=lambda key: -cosines[key])[:3]
    assert [hit.key for hit in hits] == best
    assert hits[0].key == ("3",)
    # pgvector computes in float32
    np.testing.assert_allclose([hit.score for hit in hits], [cosines[key] for key in best], atol=1e-6)


def test_a_search_in_another_space_is_refused(collection: Collection) -> None:
    prepared(collection, "a")
    collection.store.ledger.serve(collection.store.target, Serving(1, 1, "embedding", "space-old"))
    with pytest.raises(SpaceMismatch):
        collection.store.search(truth("old", "a", 8), 1, fingerprint="space-new")
    assert collection.store.search(truth("old", "a", 8), 1, fingerprint="space-old")[0].key == ("1",)


def test_a_search_with_another_dimension_is_refused(collection: Collection) -> None:
    fill(collection, "a")
    with pytest.raises(SpaceMismatch):
        collection.store.search(truth("old", "a", 9), 1, fingerprint="unknown")


def test_moves_are_compare_and_set(collection: Collection) -> None:
    record = prepared(collection)
    ledger = collection.store.ledger
    moved = ledger.move(record, "prepared", {"why": "test"})
    assert (moved.state, moved.version) == ("prepared", record.version + 1)
    with pytest.raises(MigrationConflict):
        ledger.move(record, "prepared", {})
    assert ledger.find(collection.store.target) == moved
    assert [event.what for event in ledger.events(record, 10)] == ["planned", "prepared"]
    assert ledger.events(record, 1)[0].detail == {"why": "test"}


def test_the_ledger_keeps_what_it_is_given(collection: Collection) -> None:
    record = prepared(collection)
    ledger = collection.store.ledger
    ledger.install()
    ledger.add_ranges(record, [KeyRange(None, ("5",)), KeyRange(("5",), ("9",))])
    ledger.close_range(record, 1)
    assert ledger.count_ranges(record) == (1, 2)
    assert [(r.number, r.keys) for r in ledger.open_ranges(record)] == [(2, KeyRange(("5",), ("9",)))]
    ledger.bury(record, [DeadLetter(("1",), "first", b""), DeadLetter(("2", "é"), "other", b"\x01")])
    ledger.bury(record, [DeadLetter(("1",), "second", b"\x02")])
    assert {letter.reason for letter in ledger.dead_letters(record, 10)} == {"second", "other"}
    ledger.unbury(record, [("2", "é"), ("77",)])
    assert ledger.dead_letters(record, 10) == [DeadLetter(("1",), "second", b"\x02")]
    ledger.forget_dead_letters(record)
    assert ledger.dead_letters(record, 10) == []
    ledger.keep_verification(record, {"passed": True})
    found = ledger.find(record.spec.target)
    assert found is not None
    assert found.verification == {"passed": True}


def test_nothing_is_found_where_nothing_was_begun(collection: Collection) -> None:
    assert collection.store.ledger.find(collection.store.target) is None
    assert collection.store.ledger.serving(collection.store.target) is None


def test_two_runners_exclude_each_other_and_a_lock_ends(collection: Collection) -> None:
    with collection.another() as other:
        with collection.store.runner(), pytest.raises(Locked), other.runner():
            raise AssertionError("both are running")
        with other.runner():
            pass
