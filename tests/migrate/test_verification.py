"""A verified migration, and one thing made wrong at a time: verify must see it, and say of which row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.stores import backends
from tests.stores.collections import Collection, MirrorCollection, PgCollection, old_vector
from vecferry.embeddings import Float32, TextVectors
from vecferry.errors import IllegalTransition, StoreFailed
from vecferry.migrate import Migration, MigrationOptions, State, VerifyReport
from vecferry.migrate.verification import MIN_COSINE, cosine, recall_check, recomputation_check, structural_checks
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Examination, Finding, Hit, NewVector, Patience, Side, text_digest

ROWS = 12
NEW = TruthEncoder()


class Meddler(Protocol):
    """What changes the new side as no migration does."""

    collection: Collection

    def vector(self, key: int) -> Float32: ...
    def set(self, key: int, vector: Float32 | None) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.backend = MemoryBackend({backends.COLLECTION: []})
        self.collection: Collection = MirrorCollection(self.backend, SqliteLedger.in_memory(), nullable=True)

    @property
    def points(self) -> dict[str, Any]:
        return self.backend._held.collections["docs_vecferry_2"].points

    def vector(self, key: int) -> Float32:
        return np.array(self.points[str(key)].vectors.dense)

    def set(self, key: int, vector: Float32 | None) -> None:
        self.points[str(key)] = replace(self.points[str(key)], vectors=None if vector is None else TextVectors(vector))


class InPostgres:
    def __init__(self, connection: psycopg.Connection, url: str) -> None:
        self.collection: Collection = PgCollection(connection, url)
        self._connection = connection
        connection.execute("CREATE INDEX docs_embedding ON docs USING hnsw (embedding vector_cosine_ops)")

    def vector(self, key: int) -> Float32:
        query = "SELECT embedding_vecferry_new::real[] FROM docs WHERE id = %s"
        (stored,) = self._connection.execute(query, [key]).fetchone() or (None,)
        return np.asarray(stored, np.float32)

    def set(self, key: int, vector: Float32 | None) -> None:
        """Set a vector as the migration does: what others write into the column is not known as current."""
        ((text,),) = self._connection.execute("SELECT body FROM docs WHERE id = %s", [key]).fetchall()
        new = NewVector((str(key),), text_digest(text), None if vector is None else TextVectors(vector))
        assert self.collection.store.write(Side.NEW, [new]) == {new.key}


@pytest.fixture(params=["memory", "pgvector"])
def meddler(request: pytest.FixtureRequest) -> Iterator[Meddler]:
    """Yield 12 rows, not migrated yet."""
    made: Meddler
    if request.param == "memory":
        made = InMemory()
    else:
        made = InPostgres(request.getfixturevalue("connection"), request.getfixturevalue("database_url"))
    for key in range(1, ROWS + 1):
        made.collection.put(key, f"text {key}", old_vector(f"text {key}"))
    yield made
    made.collection.store.close()


@pytest.fixture
def migration(meddler: Meddler, tmp_path: Path) -> Migration:
    """Return a verified migration, with all checks passed."""
    options = MigrationOptions(
        accept_unconfirmed="a test", rows_per_range=5, staging=tmp_path, patience=Patience(1.0, 5.0)
    )
    made = Migration(meddler.collection.store, new=NEW, options=options)
    made.start()
    assert made.verify(ROWS, override="no gate in this test").passed
    assert made.status().state == State.READY
    return made


def failed(report: VerifyReport) -> dict[str, set[str]]:
    """Return the keys named by each check that failed."""
    return {check.name: set(check.keys) for check in report.checks if not check.passed}


def assert_refused(migration: Migration, expected: dict[str, set[str]]) -> VerifyReport:
    """Assert that verify names exactly these and takes the pass back, and that the switch is not possible."""
    report = migration.verify(ROWS, override="no gate in this test")
    assert failed(report) == expected
    assert not report.passed
    assert migration.status().state == report.state == State.CATCHING_UP
    kept = migration.status().verification
    assert kept is not None
    assert kept["passed"] is False
    with pytest.raises(IllegalTransition):
        migration.cutover()
    return report


# --- one vector -----------------------------------------------------------------------------------


def tilted(vector: Float32, cosine: float) -> Float32:
    """Return a vector of unit length, with that cosine to a unit vector."""
    across = np.random.default_rng(0).standard_normal(len(vector)).astype(np.float32)
    across -= (across @ vector) * vector
    across /= np.linalg.norm(across)
    made = cosine * vector + np.sqrt(1 - cosine**2) * across
    return np.asarray(made / np.linalg.norm(made), np.float32)


@pytest.mark.parametrize("cosine", [0.9985, 0.0, -1.0])
def test_a_vector_of_another_text_is_found(meddler: Meddler, migration: Migration, cosine: float) -> None:
    right = meddler.vector(7)
    meddler.set(7, tilted(right, cosine))
    report = assert_refused(migration, {"recomputed sample": {"7"}})
    assert report.lowest_cosine == pytest.approx(cosine, abs=1e-5)
    meddler.set(7, right)
    assert migration.verify(ROWS, override="no gate in this test").passed
    assert migration.status().state == State.READY


def test_a_difference_of_rounding_is_no_defect(meddler: Meddler, migration: Migration) -> None:
    meddler.set(7, tilted(meddler.vector(7), 0.9995))
    report = migration.verify(ROWS, override="no gate in this test")
    assert report.passed
    assert report.lowest_cosine == pytest.approx(0.9995, abs=1e-5)


def test_exchanged_vectors_of_two_rows_are_found(meddler: Meddler, migration: Migration) -> None:
    third, eighth = meddler.vector(3), meddler.vector(8)
    meddler.set(3, eighth)
    meddler.set(8, third)
    assert_refused(migration, {"recomputed sample": {"3", "8"}})


def test_a_missing_vector_is_found(meddler: Meddler, migration: Migration) -> None:
    meddler.set(4, None)
    if isinstance(meddler, InPostgres):  # its text was not tried, as far as the ledger knows
        assert_refused(migration, {"text unchanged": {"4"}})
        return
    report = assert_refused(migration, {"every row has a vector": {"4"}})
    assert report.checks[2].seen == "11 of 12 rows, 0 dead letters: 4"


def test_a_missing_vector_is_not_hidden_by_a_dead_letter(meddler: Meddler, migration: Migration) -> None:
    meddler.collection.put(2, "POISON", old_vector("POISON"))
    migration.start()
    assert migration.verify(ROWS, override="no gate in this test").passed
    meddler.set(4, None)
    is_compared = isinstance(meddler, InPostgres)
    assert_refused(migration, {"text unchanged": {"4"}} if is_compared else {"every row has a vector": {"2", "4"}})


def test_a_vector_of_zeros_is_found(meddler: Meddler, migration: Migration) -> None:
    meddler.set(5, np.zeros(16, np.float32))
    failures = failed(migration.verify(ROWS, override="no gate in this test"))
    assert failures.pop("recomputed sample") == {"5"}
    assert failures == {"no zero vector": {"5"}, "unit norm": {"5"}}


@pytest.mark.parametrize("factor", [1.01, 0.99, 100.0])
def test_a_vector_of_another_length_is_found(meddler: Meddler, migration: Migration, factor: float) -> None:
    meddler.set(6, np.float32(factor) * meddler.vector(6))
    assert_refused(migration, {"unit norm": {"6"}})


def test_lengths_are_free_where_the_model_does_not_set_them(meddler: Meddler, tmp_path: Path) -> None:
    free = TruthEncoder("free")
    free.space = free.space.model_copy(update={"normalize": False})
    free.truth = lambda text: 3 * TruthEncoder("free").truth(text)  # type: ignore[method-assign]
    made = Migration(
        meddler.collection.store, new=free, options=MigrationOptions(accept_unconfirmed="a test", staging=tmp_path)
    )
    made.start()
    assert made.verify(ROWS, override="no gate in this test").passed


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_found(meddler: Meddler, migration: Migration, number: float) -> None:
    broken = meddler.vector(9)
    broken[0] = number
    if isinstance(meddler, InPostgres):
        with pytest.raises(StoreFailed):  # pgvector takes no such vector
            meddler.set(9, broken)
        return
    meddler.set(9, broken)
    failures = failed(migration.verify(ROWS, override="no gate in this test"))
    assert failures == {"finite": {"9"}, "recomputed sample": {"9"}}
    assert migration.status().state == State.CATCHING_UP


def test_a_vector_of_too_few_numbers_is_found(meddler: Meddler, migration: Migration) -> None:
    if isinstance(meddler, InPostgres):
        with pytest.raises(StoreFailed):  # its column has a size
            meddler.set(9, meddler.vector(9)[:15])
        return
    meddler.set(9, meddler.vector(9)[:15])
    store: Any = meddler.collection.store
    assert store.check_integrity(16).wrong_dimension.keys == (("9",),)


# --- rows and vectors that do not belong together -------------------------------------------------


def test_a_text_that_was_changed_past_the_capture_is_found(meddler: Meddler, migration: Migration) -> None:
    meddler.collection.put_unseen(10, "changed", old_vector("changed"))
    assert_refused(migration, {"text unchanged": {"10"}})
    migration.start()
    assert migration.verify(ROWS, override="no gate in this test").passed


def test_a_row_that_was_inserted_past_the_capture_is_found(meddler: Meddler, migration: Migration) -> None:
    meddler.collection.put_unseen(99, "inserted", old_vector("inserted"))
    assert_refused(migration, {"text unchanged": {"99"}})
    migration.start()
    assert migration.verify(ROWS + 1, override="no gate in this test").passed


def test_a_vector_without_a_row_is_found(meddler: Meddler, migration: Migration) -> None:
    meddler.collection.remove_unseen(11)
    if isinstance(meddler, InPostgres):  # a row goes with both its vectors
        assert migration.verify(ROWS, override="no gate in this test").passed
        return
    assert_refused(migration, {"no vector without a row": {"11"}})
    migration.start()
    assert migration.verify(ROWS, override="no gate in this test").passed


def test_ten_rows_are_named_and_all_are_counted(meddler: Meddler, migration: Migration) -> None:
    for key in range(1, ROWS + 1):
        meddler.collection.put_unseen(key, f"changed {key}", old_vector(f"changed {key}"))
    report = migration.verify(ROWS, override="no gate in this test")
    (check,) = (check for check in report.checks if check.name == "text unchanged")
    assert not check.passed
    assert len(check.keys) == 10
    assert check.seen.startswith("12 rows without a vector of their present text: ")


# --- writes meanwhile are no defects --------------------------------------------------------------


def doing(store: Any, method: str, work: Callable[[], None]) -> list[bool]:
    """Do `work` once, right after that method of the store has looked; the returned list is empty until then."""
    original, done = getattr(store, method), list[bool]()

    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not done:
            done.append(True)
            work()
        return result

    setattr(store, method, call)
    return done


def test_rows_that_are_written_while_all_are_compared_are_no_defects(meddler: Meddler, migration: Migration) -> None:
    def write() -> None:
        meddler.collection.put(3, "changed", old_vector("changed"))
        meddler.collection.put(77, "inserted", old_vector("inserted"))
        meddler.collection.remove(8)

    store: Any = meddler.collection.store
    written = doing(store, "backlog", write)  # after it was caught up, before it is compared
    report = migration.verify(ROWS, override="no gate in this test")
    assert written
    assert failed(report) == {}
    assert report.passed


def test_a_defect_beside_such_a_row_is_still_found(meddler: Meddler, migration: Migration) -> None:
    meddler.collection.put_unseen(5, "unseen", old_vector("unseen"))
    store: Any = meddler.collection.store
    written = doing(store, "backlog", lambda: meddler.collection.put(3, "changed", old_vector("changed")))
    report = migration.verify(ROWS, override="no gate in this test")
    assert written
    assert failed(report) == {"text unchanged": {"5"}}
    assert_refused(migration, {"text unchanged": {"5"}})


# --- the index ------------------------------------------------------------------------------------


def forgetful(store: Any, share: float) -> None:
    """Make the store's index find only that share of what there is."""
    honest = store.search

    def search(vector: Float32, k: int, *, fingerprint: str, exact: bool = False) -> list[Hit]:
        hits: list[Hit] = honest(vector, k, fingerprint=fingerprint, exact=exact)
        return hits if exact else hits[: round(share * len(hits))]

    store.search = search


def test_an_index_that_misses_rows_fails_its_check(meddler: Meddler, migration: Migration) -> None:
    forgetful(meddler.collection.store, 0.8)
    report = assert_refused(migration, {"index recall": set()})
    assert report.recall == pytest.approx(0.8)


def test_an_index_that_answers_with_other_rows_fails_its_check(meddler: Meddler, migration: Migration) -> None:
    store: Any = meddler.collection.store
    honest = store.search

    def search(vector: Float32, k: int, *, fingerprint: str, exact: bool = False) -> list[Hit]:
        return honest(vector if exact else -vector, k, fingerprint=fingerprint, exact=exact)  # type: ignore[no-any-return]

    store.search = search
    report = assert_refused(migration, {"index recall": set()})
    assert report.recall is not None
    assert report.recall <= 0.85  # of 12 rows, ten at one end and ten at the other share eight at least


@pytest.mark.parametrize(("min_recall", "passed"), [(0.79, True), (0.81, False)])
def test_how_much_an_index_must_find_is_an_option(
    meddler: Meddler, migration: Migration, *, min_recall: float, passed: bool
) -> None:
    strict = replace(migration, options=replace(migration.options, min_recall=min_recall))
    forgetful(meddler.collection.store, 0.8)
    assert strict.verify(ROWS, override="no gate in this test").passed == passed


def test_an_index_that_is_missing_fails_its_check(meddler: Meddler, migration: Migration) -> None:
    if not isinstance(meddler, InPostgres):
        pytest.skip("a store of points has its index by itself")
    meddler._connection.execute("DROP INDEX docs_embedding_vecferry_new")
    report = assert_refused(migration, {"indexes": set()})
    (check,) = (check for check in report.checks if check.name == "indexes")
    assert "docs_embedding_vecferry_new" in check.seen
    migration.start()
    assert migration.verify(ROWS, override="no gate in this test").passed


# --- what is decided from figures -----------------------------------------------------------------


def test_a_sample_with_rows_missing_is_no_pass() -> None:
    assert recomputation_check({("1",): 1.0, ("2",): 1.0}, expected=2).passed
    assert not recomputation_check({("1",): 1.0}, expected=2).passed
    assert recomputation_check({}, expected=0).passed
    assert not recomputation_check({}, expected=1).passed


def test_the_limit_of_a_cosine_is_part_of_what_passes() -> None:
    assert recomputation_check({("1",): MIN_COSINE}, expected=1).passed
    for low in (MIN_COSINE - 1e-6, float("nan")):
        check = recomputation_check({("1",): 1.0, ("2",): low}, expected=2)
        assert (check.passed, check.keys) == (False, ("2",))


def test_a_cosine_with_a_zero_vector_is_zero() -> None:
    assert cosine(np.zeros(3), np.ones(3)) == 0.0
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)


def test_recall_of_nothing_passes() -> None:
    assert recall_check(None, 1.0).passed
    assert recall_check(0.9, 0.9).passed
    assert not recall_check(0.8999, 0.9).passed


FINDINGS = {
    "outdated": "text unchanged",
    "orphaned": "no vector without a row",
    "without_vector": "every row has a vector",
    "wrong_dimension": "dimension",
    "not_finite": "finite",
    "zero": "no zero vector",
    "off_norm": "unit norm",
}
"""The check that each finding is for."""


def failed_by(examination: Examination, *, dead_letters: int = 0, unit: bool = True) -> dict[str, tuple[str, ...]]:
    checks = structural_checks(examination, dead_letters, 4, unit=unit)
    assert [check.name for check in checks] == [*FINDINGS.values(), "indexes"]
    return {check.name: check.keys for check in checks if not check.passed}


def test_an_examination_that_found_nothing_passes_every_check() -> None:
    assert {field.name for field in fields(Examination)} == {"rows", "unembedded", *FINDINGS, "missing_indexes"}
    assert failed_by(Examination(3)) == {}


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_fails_its_own_check_and_no_other(finding: str) -> None:
    only: dict[str, Any] = {finding: Finding(1, (("7",),))}
    assert failed_by(Examination(3, **only)) == {FINDINGS[finding]: ("7",)}


def test_a_missing_index_fails_the_check_of_indexes_alone() -> None:
    assert failed_by(Examination(3, missing_indexes=("docs_new",))) == {"indexes": ()}


def test_what_is_allowed_for_fails_no_check() -> None:
    """A dead letter for each row without a vector; any length where the model sets none."""
    without = Examination(3, without_vector=Finding(2, (("7",), ("8",))))
    assert failed_by(without, dead_letters=2) == {}
    assert failed_by(without, dead_letters=1) == {"every row has a vector": ("7", "8")}
    assert failed_by(Examination(3, off_norm=Finding(1, (("7",),))), unit=False) == {}
