"""What every store promises, tested on each."""

from pathlib import Path

import numpy as np
import pytest

from tests.migrate.doubles import truth
from tests.stores.collections import Collection, PgCollection, old_vector
from vecferry.embeddings import DENSE, Outputs, SparseVector, TextVectors
from vecferry.errors import LeaseLost, Locked, SpaceMismatch, StoreSchemaError
from vecferry.stores.filters import Selection
from vecferry.stores.lease import process_mark
from vecferry.stores.ledger import DeadLetter, Lease, MigrationRecord, MigrationSpec, Serving
from vecferry.stores.values import (
    EVERYTHING,
    Change,
    Finding,
    Key,
    KeyRange,
    NewVector,
    Patience,
    Record,
    Row,
    Side,
    text_digest,
)

PATIENCE = Patience(1.0, 10.0)
DIMENSION = 4


def fill(collection: Collection, *texts: str | None) -> None:
    """Write rows 1, 2, ... with these texts and their old vectors."""
    for key, text in enumerate(texts, start=1):
        if text is not None or collection.nullable:
            collection.put(key, text, old_vector(text))


def prepared(collection: Collection, *texts: str | None, outputs: Outputs = DENSE) -> MigrationRecord:
    """Begin a migration, with a new side and capture."""
    fill(collection, *texts)
    store = collection.store
    store.ledger.install()
    old, new = store.serving_locator(Side.OLD), store.serving_locator(Side.NEW)
    store.ledger.serve(store.target, Serving(1, 1, old, "space-old"))
    spec = MigrationSpec(
        store.target, "body", DIMENSION, "space-new", "space-old", old_not_null=False, generation=2,
        old_locator=old, new_locator=new, outputs=outputs.names,
    )  # fmt: skip
    record = store.ledger.create(spec, "planned")
    store.exclusively(lambda: store.prepare(DIMENSION, "space-new", outputs), PATIENCE)
    store.start_capture(PATIENCE)
    return record


def switch(collection: Collection, *, back: bool = False) -> None:
    """Let both sides change places, with the serving epoch."""
    store = collection.store
    side = Side.OLD if back else Side.NEW

    def work() -> None:
        store.switch(side)
        before = store.ledger.serving(store.target)
        assert before is not None
        fingerprint = "space-old" if back else "space-new"
        store.ledger.serve(store.target, Serving(before.epoch + 1, 2, store.serving_locator(side), fingerprint))

    store.exclusively(work, PATIENCE)


def vectors(*rows: Row) -> list[NewVector]:
    return [NewVector(row.key, row.digest, TextVectors(truth("new", row.text or "", DIMENSION))) for row in rows]


def test_a_collection_is_described_without_being_changed(collection: Collection) -> None:
    fill(collection, "a", "", "c", "d", None)
    table = collection.store.describe()
    assert (table.rows, table.null_texts, table.dimension) == (5 if collection.nullable else 4, collection.nullable, 8)
    assert table.empty_texts == 1
    assert table.fingerprint is None
    assert table.vector_bytes >= 3 * 4 * 8
    assert table.creates
    assert collection.store.ledger.find(collection.store.target) is None
    assert collection.store.new_space() is None


def test_ranges_hold_every_key_once(collection: Collection) -> None:
    prepared(collection, *"abcdefg")
    ranges = collection.store.key_ranges(3)
    assert ranges == [KeyRange(None, ("3",)), KeyRange(("3",), ("6",)), KeyRange(("6",), ("7",))]
    texts = [row.text for part in ranges for row in collection.store.outdated(Side.NEW, part, 100)]
    assert texts == list("abcdefg")


def test_ranges_that_fit_exactly_have_no_empty_rest(collection: Collection) -> None:
    prepared(collection, *"abcdef")
    assert collection.store.key_ranges(3) == [KeyRange(None, ("3",)), KeyRange(("3",), ("6",))]


def test_pages_by_key_go_on_where_the_last_one_ended_whatever_the_length_of_the_keys(collection: Collection) -> None:
    """The keys are numbers of different lengths, which have another order as texts."""
    prepared(collection)
    keys = [1, 2, 9, 10, 11, 99, 100, 101, 999, 1000, 20, 3]
    for key in keys:
        collection.put_unseen(key, f"text {key}", old_vector(f"text {key}"))
    store, every = collection.store, {(str(key),) for key in keys}
    for rows_each in (1, 3, 5):
        paged: list[Key] = []
        within = EVERYTHING
        while rows := store.outdated(Side.NEW, within, rows_each):
            paged += [row.key for row in rows]
            within = KeyRange(rows[-1].key, None)
        assert len(paged) == len(keys)
        assert set(paged) == every
        ranged = [row.key for part in store.key_ranges(rows_each) for row in store.outdated(Side.NEW, part, 100)]
        assert ranged == paged
    assert store.check_integrity(DIMENSION, 3).outdated.keys == tuple(paged[:3])
    assert store.count_outdated(Side.NEW, 3) == Finding(len(keys), tuple(paged[:3]))


def test_all_rows_come_page_by_page_in_the_order_of_their_keys_with_and_without_a_text(collection: Collection) -> None:
    texts = ["a", "", "c", "d", None]
    fill(collection, *texts)
    stored, pages = texts if collection.nullable else texts[:4], list[list[str | None]]()
    within = EVERYTHING
    while page := collection.store.rows_within(within, 2):
        pages.append([row.text for row in page])
        within = KeyRange(page[-1].key, None)
    assert pages == [stored[at : at + 2] for at in range(0, len(stored), 2)]
    assert [row.key for row in collection.store.rows_within(KeyRange(("1",), ("3",)), 9)] == [("2",), ("3",)]


def test_what_is_left_out_of_a_write_stays_captured_for_that_side_until_it_is_done(collection: Collection) -> None:
    prepared(collection, "a", "b")
    store = collection.store
    late = vectors(*store.outdated(Side.NEW, limit=10))
    collection.put_unseen(1, "changed", old_vector("changed"))
    assert store.backlog() == 0
    assert store.write(Side.NEW, late) == {("2",)}
    assert captured_keys(collection) == ["1"]
    assert (store.backlog(Side.NEW), store.backlog(Side.OLD)) == (1, 0)
    assert store.captured(10, {Side.OLD}) == []
    (change,) = store.captured(10, {Side.NEW})
    assert store.write(Side.NEW, vectors(*store.outdated(Side.NEW, [change.key]))) == {("1",)}
    store.acknowledge([change])
    assert store.backlog() == 0


def test_what_is_captured_again_is_captured_for_the_side_that_is_said(collection: Collection) -> None:
    prepared(collection, "a", "b", "c")
    store = collection.store
    collection.put(1, "changed", old_vector("changed"))
    for _ in range(2):
        store.capture_again([("2",)], Side.NEW)
        store.capture_again([("2",), ("3",)], Side.OLD)
    assert captured_keys(collection) == ["1", "2", "2", "3"]
    assert [change.key for change in store.captured(10, {Side.NEW})] == [("1",), ("2",)]
    assert [change.key for change in store.captured(2, {Side.OLD})] == [("1",), ("2",)]
    assert (store.backlog(Side.NEW), store.backlog(Side.OLD), store.backlog()) == (2, 3, 4)
    store.acknowledge(store.captured(10, {Side.OLD}))
    assert [change.side for change in store.captured(10)] == [Side.NEW]
    store.acknowledge(store.captured(10))
    assert store.backlog() == 0
    store.stop_capture()
    store.capture_again([("1",)], Side.NEW)  # nothing is captured any more, where that can be known
    assert collection.keeps_rows or store.backlog() == 0


def test_an_empty_collection_has_no_ranges(collection: Collection) -> None:
    assert collection.store.key_ranges(10) == []


def test_what_is_written_is_no_longer_outdated(collection: Collection) -> None:
    prepared(collection, "a", "b", "c")
    store = collection.store
    first, second, _ = store.outdated(Side.NEW, limit=10)
    assert store.write(Side.NEW, vectors(first, second)) == {("1",), ("2",)}
    assert [row.text for row in store.outdated(Side.NEW, limit=10)] == ["c"]
    assert store.counts().done == 2
    stored = {row.text: vector for row, vector in store.sample_vectors(10)}
    assert set(stored) == {"a", "b"}
    np.testing.assert_allclose(stored["a"], truth("new", "a", DIMENSION), atol=1e-7)  # some stores normalise again


def test_a_vector_of_a_former_text_is_not_written(collection: Collection) -> None:
    prepared(collection, "a", "b")
    outdated = vectors(*collection.store.outdated(Side.NEW, limit=10))
    collection.put(1, "changed", old_vector("changed"))
    assert collection.store.write(Side.NEW, outdated) == {("2",)}
    assert [row.text for row in collection.store.outdated(Side.NEW, limit=10)] == ["changed"]


def test_a_deleted_row_does_not_come_back(collection: Collection) -> None:
    prepared(collection, "a", "b")
    late = vectors(*collection.store.outdated(Side.NEW, limit=10))
    collection.remove(1)
    assert collection.store.write(Side.NEW, late) == {("2",)}
    assert list(collection.serving()) == [("2",)]
    switch(collection)
    assert list(collection.serving()) == [("2",)]


def test_a_row_tried_without_a_vector_is_a_dead_letter_until_its_text_changes(collection: Collection) -> None:
    record = prepared(collection, "a", "b")
    store, ledger = collection.store, collection.store.ledger
    tried = [NewVector((key,), text_digest(text), None) for key, text in (("1", "a"), ("2", "b"))]
    dead_letters = [DeadLetter(new.key, "why", new.digest) for new in tried]
    assert store.write(Side.NEW, tried, lambda written: ledger.add_dead_letters(record, dead_letters)) == {
        ("1",),
        ("2",),
    }
    assert store.outdated(Side.NEW, limit=10) == []
    assert store.outdated(Side.NEW, [("1",), ("2",)]) == []
    assert store.counts().dead_letters == 2
    collection.put(1, "repaired", old_vector("repaired"))
    assert store.outdated(Side.NEW, limit=10) == [Row(("1",), "repaired")]
    assert store.outdated(Side.NEW, [("1",), ("2",)]) == [Row(("1",), "repaired")]
    ledger.remove_dead_letters(record, Side.NEW, [("1",), ("2",)])
    assert len(store.outdated(Side.NEW, limit=10)) == 2


def test_a_row_whose_text_is_null_can_be_a_dead_letter(collection: Collection) -> None:
    if not collection.nullable:
        pytest.skip("every row of this store has a text")
    record = prepared(collection, None)
    store, ledger = collection.store, collection.store.ledger
    letter = DeadLetter(("1",), "the text is NULL", text_digest(None))
    store.write(
        Side.NEW,
        [NewVector(("1",), text_digest(None), None)],
        lambda written: ledger.add_dead_letters(record, [letter]),
    )
    assert store.outdated(Side.NEW, limit=10) == []


def test_a_vector_that_there_was_goes_when_its_row_becomes_a_dead_letter(collection: Collection) -> None:
    record = prepared(collection, "a")
    store, ledger = collection.store, collection.store.ledger
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    collection.put(1, "poison", None)
    letter = DeadLetter(("1",), "why", text_digest("poison"))
    store.write(
        Side.NEW, [NewVector(("1",), letter.digest, None)], lambda written: ledger.add_dead_letters(record, [letter])
    )
    assert store.sample_vectors(10) == []
    assert store.counts().done == 0


def test_an_examination_finds_each_defect_and_names_the_rows(collection: Collection) -> None:
    record = prepared(collection, *"abcd")
    store, ledger = collection.store, collection.store.ledger
    good, long, missing, _ = store.outdated(Side.NEW, limit=10)
    store.write(Side.NEW, vectors(good))
    store.write(Side.NEW, [NewVector(long.key, long.digest, TextVectors(2 * truth("new", "b", DIMENSION)))])
    letter = DeadLetter(missing.key, "why", missing.digest)
    store.write(
        Side.NEW,
        [NewVector(missing.key, missing.digest, None)],
        lambda written: ledger.add_dead_letters(record, [letter]),
    )
    examination = store.check_integrity(DIMENSION)
    assert examination.rows == 4
    assert (examination.outdated.count, examination.outdated.keys) == (1, (("4",),))
    assert (examination.without_vector.count, examination.without_vector.keys) == (1, (("3",),))
    assert not examination.wrong_dimension
    assert not examination.not_finite
    assert not examination.zero
    assert not examination.orphaned
    stored = {row.key: vector for row, vector in store.sample_vectors(10)}
    if np.linalg.norm(stored[long.key]) > 1.5:  # a store that normalises has nothing to find
        assert (examination.off_norm.count, examination.off_norm.keys) == (1, (("2",),))
    assert store.check_integrity(DIMENSION + 1).wrong_dimension.count == 2


def test_a_failed_transaction_leaves_nothing_in_the_ledger(collection: Collection) -> None:
    record = prepared(collection, "a")
    store = collection.store
    store.ledger.add_ranges(record, [EVERYTHING])

    def fail_at_the_end() -> None:
        with store.transaction():
            store.ledger.close_range(record, 1)
            store.ledger.add_dead_letters(record, [DeadLetter(("9",), "why", b"")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_end()
    assert store.ledger.count_ranges(record) == (0, 1)
    assert store.ledger.dead_letters(record, 10) == []


def test_the_ledger_never_says_that_something_was_written_which_was_not(collection: Collection) -> None:
    record = prepared(collection, "a")
    store = collection.store
    store.ledger.add_ranges(record, [EVERYTHING])

    def fail(written: set[Key]) -> None:
        assert written == {("1",)}
        store.ledger.close_range(record, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)), fail)
    assert store.ledger.count_ranges(record) == (0, 1)


def test_a_switch_and_one_back_exchange_the_vectors(collection: Collection) -> None:
    prepared(collection, "a")
    store = collection.store
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    switch(collection)
    assert_close(collection.serving()[("1",)][1], truth("new", "a", DIMENSION))
    switch(collection, back=True)
    assert_close(collection.serving()[("1",)][1], old_vector("a"))
    assert store.outdated(Side.NEW, limit=10) == []
    switch(collection)
    store.stop_capture()
    store.exclusively(lambda: store.drop(Side.OLD), PATIENCE)
    store.exclusively(lambda: store.drop(Side.OLD), PATIENCE)
    assert_close(collection.serving()[("1",)][1], truth("new", "a", DIMENSION))


def assert_close(actual: np.ndarray | None, expected: np.ndarray | None) -> None:
    """Assert that two vectors are close: some stores normalise what is put."""
    assert actual is not None
    assert expected is not None
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_dropping_the_new_side_leaves_the_collection_as_it_was(collection: Collection) -> None:
    prepared(collection, "a", "b")
    store = collection.store
    before = collection.serving()
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    for _ in range(2):
        store.stop_capture()
        store.exclusively(lambda: store.drop(Side.NEW), PATIENCE)
    assert store.new_space() is None
    assert collection.serving().keys() == before.keys()
    for key, (text, vector) in collection.serving().items():
        assert text == before[key][0]
        assert_close(vector, before[key][1])


# --- capture --------------------------------------------------------------------------------------


def captured_keys(collection: Collection) -> list[str]:
    return [change.key[0] for change in collection.store.captured(100)]


def test_writes_are_captured_in_their_order_deletions_too(collection: Collection) -> None:
    prepared(collection, "a", "b", "c")
    store = collection.store
    assert store.backlog() == 0
    collection.put(2, "b2", old_vector("b2"))
    collection.put(9, "new", None)
    collection.remove(3)
    assert captured_keys(collection) == ["2", "9", "3"]
    assert store.backlog() == 3
    assert [change.key[0] for change in store.captured(1)] == ["2"]
    store.acknowledge(store.captured(2))
    assert captured_keys(collection) == ["3"]
    store.acknowledge(store.captured(2))
    assert store.backlog() == 0


def test_what_was_written_before_capture_is_not_captured_nor_after_it(collection: Collection) -> None:
    prepared(collection, "a")
    assert captured_keys(collection) == []
    collection.store.start_capture(PATIENCE)
    collection.put(1, "b", None)
    collection.store.stop_capture()
    assert captured_keys(collection) == []
    collection.put(1, "c", None)
    assert captured_keys(collection) == []
    collection.store.stop_capture()


def test_an_acknowledged_change_does_not_hide_a_later_one(collection: Collection) -> None:
    prepared(collection, "a")
    collection.put(1, "b", None)
    changes = collection.store.captured(10)
    collection.put(1, "c", None)
    collection.store.acknowledge(changes)
    assert captured_keys(collection) == ["1"]


def test_the_side_that_does_not_serve_follows(collection: Collection) -> None:
    prepared(collection, "a", "b", "c")
    store = collection.store
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    collection.put(2, "b2", old_vector("b2"))
    collection.remove(3)
    keys = [change.key for change in store.captured(10)]
    assert store.apply_deletes(keys) == {("3",)}
    assert store.outdated(Side.NEW, keys) == [Row(("2",), "b2")]
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, keys)))
    assert store.outdated(Side.NEW, keys) == []
    assert store.orphans(10) == []
    switch(collection)
    assert {key[0]: text for key, (text, _) in collection.serving().items()} == {"1": "a", "2": "b2"}


def test_after_the_switch_the_old_side_follows(collection: Collection) -> None:
    prepared(collection, "a", "b")
    store = collection.store
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    switch(collection)
    collection.put(2, "b2", truth("new", "b2", DIMENSION))
    keys = [change.key for change in store.captured(10)]
    rows = store.outdated(Side.OLD, keys)
    assert rows == [Row(("2",), "b2")]
    fresh = old_vector("b2")
    assert store.write(Side.OLD, [NewVector(("2",), rows[0].digest, TextVectors(fresh))]) == {("2",)}
    switch(collection, back=True)
    assert_close(collection.serving()[("2",)][1], fresh)


def test_writes_that_nothing_captured_are_found_by_comparison(collection: Collection) -> None:
    prepared(collection, "a", "b", "c")
    store = collection.store
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    collection.put_unseen(2, "b2", old_vector("b2"))
    collection.put_unseen(9, "new", old_vector("new"))
    collection.remove_unseen(3)
    assert captured_keys(collection) == []
    assert [row.text for row in store.outdated(Side.NEW, limit=10)] == ["b2", "new"]
    assert store.check_integrity(DIMENSION).outdated.count == 2
    orphans = store.orphans(10)
    assert store.check_integrity(DIMENSION).orphaned.count == len(orphans)
    assert store.apply_deletes(orphans) == set(orphans)
    assert store.orphans(10) == []


# --- the application's writes ---------------------------------------------------------------------


def test_put_and_remove_write_to_the_side_that_serves(collection: Collection) -> None:
    prepared(collection, "a")
    store = collection.store
    with pytest.raises(SpaceMismatch):
        store.put([Record(("1",), "b", TextVectors(truth("new", "b", DIMENSION)))], fingerprint="space-new")
    assert collection.serving()[("1",)][0] == "a"
    store.put(
        [Record(("1",), "b", TextVectors(old_vector("b"))), Record(("7",), "c", TextVectors(old_vector("c")))],
        fingerprint="space-old",
    )
    assert {key[0]: text for key, (text, _) in collection.serving().items()} == {"1": "b", "7": "c"}
    assert_close(collection.serving()[("7",)][1], old_vector("c"))
    store.remove([("7",), ("99",)])
    assert list(collection.serving()) == [("1",)]
    assert {"1", "7"} <= set(captured_keys(collection))


def test_put_of_another_dimension_is_refused(collection: Collection) -> None:
    prepared(collection, "a")
    with pytest.raises((SpaceMismatch, StoreSchemaError)):
        collection.store.put([Record(("1",), "b", TextVectors(truth("old", "b", 9)))], fingerprint="space-old")
    assert collection.serving()[("1",)][0] == "a"


def test_the_new_side_carries_its_space(collection: Collection) -> None:
    prepared(collection, "a")
    assert collection.store.new_space() == "space-new"


def test_a_search_is_exact_and_best_first(collection: Collection) -> None:
    fill(collection, *"abcdefgh")
    query = truth("old", "c", 8)
    hits = collection.store.search(query, 3, fingerprint="whatever serves", exact=True)
    cosines = {(str(i),): float(truth("old", text, 8) @ query) for i, text in enumerate("abcdefgh", start=1)}
    best = sorted(cosines, key=lambda key: -cosines[key])[:3]
    assert [hit.key for hit in hits] == best
    assert hits[0].key == ("3",)
    # pgvector computes in float32
    np.testing.assert_allclose([hit.score for hit in hits], [cosines[key] for key in best], atol=1e-6)


def test_a_search_answers_in_the_side_of_its_space_wherever_it_is(collection: Collection) -> None:
    prepared(collection, *"abc")
    store = collection.store
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))

    def first(space: str, model: str, dimension: int) -> str:
        return store.search(truth(model, "b", dimension), 1, fingerprint=space)[0].key[0]

    for back in (None, False, True):
        if back is not None:
            switch(collection, back=back)
        assert first("space-old", "old", 8) == "2"
        assert first("space-new", "new", DIMENSION) == "2"
        with pytest.raises(SpaceMismatch):
            first("another", "old", 8)


def test_a_filter_and_what_a_hit_carries_are_the_same_on_both_sides(collection: Collection) -> None:
    if isinstance(collection, PgCollection):
        collection.connection.execute("ALTER TABLE docs ADD lang text, ADD year integer")
        if collection.where is not None:
            collection.others = collection.other_rows()
    prepared(collection)
    store = collection.store
    rows = {"1": ("a", "en", 2018), "2": ("b", "de", 2020), "3": ("c", "en", 2022), "4": ("d", "en", 2024)}
    records = [
        Record((key,), text, TextVectors(old_vector(text)), {"lang": lang, "year": year})
        for key, (text, lang, year) in rows.items()
    ]
    store.put(records, fingerprint="space-old")
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    selection = Selection.of({"lang": "en", "year": {"$gt": 2018}}, with_text=True, with_payload=True)
    for back in (None, False, True):
        if back is not None:
            switch(collection, back=back)
        for space, model, dimension in (("space-old", "old", 8), ("space-new", "new", DIMENSION)):
            for exact in (False, True):
                query = truth(model, "b", dimension)
                hits = store.search(query, 2, fingerprint=space, exact=exact, selection=selection)
                carried = {hit.key[0]: (hit.text, *map((hit.payload or {}).get, ("lang", "year"))) for hit in hits}
                assert carried == {key: rows[key] for key in ("3", "4")}
                assert hits[0].score >= hits[1].score
    (bare,) = store.search(truth("old", "b", 8), 1, fingerprint="space-old")
    assert (bare.key, bare.text, bare.payload) == (("2",), None, None)


def test_rows_come_in_the_order_asked_for_each_once_and_those_that_are_not_there_are_left_out(
    collection: Collection,
) -> None:
    fill(collection, "a", "b", "c", "", None)
    store = collection.store
    assert store.rows([("3",), ("99",), ("1",), ("3",)]) == [Row(("3",), "c"), Row(("1",), "a")]
    assert store.rows([("4",)]) == [Row(("4",), "")]
    assert store.rows([("5",)]) == ([Row(("5",), None)] if collection.nullable else [])
    assert store.rows([("1", "2")]) == store.rows([("99",)]) == store.rows([]) == []


def test_rows_are_those_of_the_side_that_serves_with_their_present_texts(collection: Collection) -> None:
    prepared(collection, *"abc")
    store = collection.store
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    collection.put(2, "b2", old_vector("b2"))
    collection.remove(3)
    assert store.rows([("3",), ("2",), ("1",)]) == [Row(("2",), "b2"), Row(("1",), "a")]
    assert store.apply_deletes([("3",)]) == {("3",)}
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, [("2",)])))
    switch(collection)
    collection.put(1, "a3", truth("new", "a3", DIMENSION))
    assert store.rows([("3",), ("2",), ("1",)]) == [Row(("2",), "b2"), Row(("1",), "a3")]


def test_more_rows_are_had_at_once_than_a_store_reads_in_a_page(collection: Collection) -> None:
    texts: dict[Key, str] = {(str(number),): f"text {number}" for number in range(1, 1201)}
    store = collection.store
    records = [Record(key, text, TextVectors(old_vector(text))) for key, text in texts.items()]
    store.put(records, fingerprint="whatever serves")
    keys = list(reversed(texts))
    assert store.rows(keys) == [Row(key, texts[key]) for key in keys]
    stored = store.vectors(keys, fingerprint="whatever serves")
    assert list(stored) == keys
    for key, vector in stored.items():
        assert_close(vector, old_vector(texts[key]))


def test_stored_vectors_are_had_from_the_side_of_their_space_wherever_it_is(collection: Collection) -> None:
    prepared(collection, *"abc")
    store = collection.store
    first, second, _ = store.outdated(Side.NEW, limit=10)
    store.write(Side.NEW, vectors(first, second))
    keys = [("3",), ("99",), ("2",), ("1",), ("2",)]
    for back in (None, False, True):
        if back is not None:
            switch(collection, back=back)
        olds = store.vectors(keys, fingerprint="space-old")
        news = store.vectors(keys, fingerprint="space-new")
        assert list(olds) == [("3",), ("2",), ("1",)]
        assert list(news) == [("2",), ("1",)]  # the third row has no vector there
        assert {vector.dtype for vector in (*olds.values(), *news.values())} == {np.dtype(np.float32)}
        assert_close(olds[("2",)], old_vector("b"))
        assert_close(news[("2",)], truth("new", "b", DIMENSION))
        with pytest.raises(SpaceMismatch):
            store.vectors(keys, fingerprint="another")
        assert store.vectors([], fingerprint="space-new") == store.vectors([("1", "2")], fingerprint="space-old") == {}


def test_vectors_of_a_side_that_was_dropped_are_refused(collection: Collection) -> None:
    prepared(collection, "a")
    store = collection.store
    store.write(Side.NEW, vectors(*store.outdated(Side.NEW, limit=10)))
    switch(collection)
    store.stop_capture()
    store.exclusively(lambda: store.drop(Side.OLD), PATIENCE)
    assert list(store.vectors([("1",)], fingerprint="space-new")) == [("1",)]
    with pytest.raises(SpaceMismatch):
        store.vectors([("1",)], fingerprint="space-old")


def test_stored_vectors_of_a_space_that_nobody_recorded_are_taken_at_their_word(collection: Collection) -> None:
    fill(collection, "a")
    (vector,) = collection.store.vectors([("1",)], fingerprint="whatever serves").values()
    assert_close(vector, old_vector("a"))


def test_what_was_just_written_is_found(collection: Collection) -> None:
    fill(collection, *"abc")
    collection.put(50, "fresh", old_vector("fresh"))
    assert collection.store.search(truth("old", "fresh", 8), 1, fingerprint="any")[0].key == ("50",)


def test_a_search_with_another_dimension_is_refused(collection: Collection) -> None:
    fill(collection, "a")
    with pytest.raises(SpaceMismatch):
        collection.store.search(truth("old", "a", 9), 1, fingerprint="unknown")


def test_two_runners_exclude_each_other_and_a_lock_ends(collection: Collection) -> None:
    with collection.another() as other:
        with collection.store.runner(5), pytest.raises(Locked), other.runner(5):
            raise AssertionError("both are running")
        with other.runner(5):
            pass


def test_a_runner_whose_lease_was_taken_writes_nothing_more(collection: Collection) -> None:
    prepared(collection, "a")
    store = collection.store
    rows = store.outdated(Side.NEW, limit=10)
    with store.runner(30), collection.another() as other:
        # as if it had run out: a lease is let go by its token, which counts from 1
        other.ledger.release(Lease(store.target, process_mark(), 1))
        with other.runner(30):
            for write in (
                lambda: store.write(Side.NEW, vectors(*rows)),
                lambda: store.acknowledge([Change(1, ("1",))]),
                lambda: store.exclusively(lambda: store.switch(Side.NEW), PATIENCE),
            ):
                with pytest.raises(LeaseLost):
                    write()
    assert store.outdated(Side.NEW, limit=10) == rows


# --- other heads ----------------------------------------------------------------------------------


def test_heads_that_a_store_cannot_hold_are_refused_by_name(collection: Collection, tmp_path: Path) -> None:
    for head in (Outputs.SPARSE, Outputs.COLBERT):
        if head not in collection.store.traits.outputs:
            with pytest.raises(StoreSchemaError, match=head.names[0]):
                prepared(collection, "a", outputs=DENSE | head)
            return
    pytest.skip("this store holds all three")


def test_all_heads_that_a_store_holds_are_kept(collection: Collection) -> None:
    outputs = collection.store.traits.outputs
    if outputs == DENSE:
        pytest.skip("this store holds dense vectors alone")
    prepared(collection, "a", outputs=outputs)
    store = collection.store
    (row,) = store.outdated(Side.NEW, limit=10)
    sparse = SparseVector(np.array([5, 250_000], np.int32), np.array([0.25, 1.5], np.float32))
    colbert = np.stack([truth("new", f"token {i}", DIMENSION) for i in range(3)])
    made = TextVectors(
        truth("new", "a", DIMENSION),
        sparse if Outputs.SPARSE in outputs else None,
        colbert if Outputs.COLBERT in outputs else None,
    )
    new = NewVector(row.key, row.digest, made)
    assert store.write(Side.NEW, [new]) == {row.key}
    assert store.outdated(Side.NEW, limit=10) == []
