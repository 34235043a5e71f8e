"""Any order of verbs and writes, against a dict: the rows are right at all times, and the vectors on both sides as soon
as nothing is left to be followed.

In PostgreSQL the application also writes as it should not: texts without their vectors and vectors without their texts,
what it takes back, several statements in one transaction, which it may abandon.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from tests.migrate.doubles import TruthEncoder, gate_that_says
from tests.stores import backends
from tests.stores.collections import OLD_DIMENSION, Collection, Content, MirrorCollection, PgCollection
from vecferry.errors import (
    GateNotPassed,
    IllegalTransition,
    Interrupted,
    Locked,
    NotConfirmed,
    RuntimeUnavailable,
)
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.states import CAUGHT_UP, ENDED, WORKING, allowed
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.protocol import Store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Key, Patience, Side

BAD = "POISON"
"""Begins a text that no model can embed; each is another one."""
KEYS = st.integers(1, 9)
TEXTS = st.sampled_from(["", "a", "b", "c", "naïve 東京", BAD, BAD])
WRITE = st.tuples(KEYS, st.one_of(st.none(), TEXTS))
"""None deletes."""
STATEMENTS = ("text", "text and vector", "text without vector", "vector of another", "no vector", "delete", "exchange")
STATEMENT = st.tuples(st.sampled_from(STATEMENTS), KEYS, TEXTS)
DIMENSIONS = (16, 12, 24)


@dataclass
class Entry:
    """A row as it must be. written_on: the side that served when the application last wrote it."""

    text: str
    written_on: Side

    @property
    def is_bad(self) -> bool:
        return self.text.startswith(BAD)


Step = Callable[..., None]
Vector = NDArray[np.float32]


class Sided(Collection, Protocol):
    """A collection whose two sides can be read. by_sql: whether the application also writes by SQL."""

    by_sql: bool

    def of_side(self, side: Side) -> dict[Key, Content]:
        """Return every row's text and its vector on that side, whichever serves."""


def when(condition: Callable[[Any], bool]) -> Callable[[Step], Step]:
    """Do the step only under the condition: how far a stopped run came is chance; what is drawn must not hang on it."""

    def conditional(step: Step) -> Step:
        @wraps(step)
        def run_if_condition(self: Machine, **drawn: object) -> None:
            if condition(self):
                step(self, **drawn)

        return run_if_condition

    return conditional


class Machine(RuleBasedStateMachine):
    """unseen: whether something was written past the capture since the last whole `start`.

    is_swept: whether there was one since the first switch. as_written: before the first switch, what serves as the
    application left it; later, the vectors of the old side, by text, that count as right because it left them so.
    """

    def __init__(self, collection: Sided, staging: Path) -> None:
        super().__init__()
        self.collection = collection
        self.staging = staging
        self.reference: dict[str, Entry] = {}
        self.numbers = count(1)
        self.old = TruthEncoder("model 0", OLD_DIMENSION)
        self.num_models = 0
        self.unseen = self.is_swept = self.was_switched = False
        self.as_written: dict[str, list[Vector]] = {}
        self._next_model()
        for key in range(1, 6):
            self._put(collection.put, key, f"text {key}")

    def _next_model(self) -> None:
        self.new = TruthEncoder(f"model {self.num_models + 1}", DIMENSIONS[self.num_models % len(DIMENSIONS)])
        self.num_models += 1
        self.migration = self._operator(self.collection.store)

    def _operator(self, store: Store) -> Migration:
        options = MigrationOptions(
            accept_unconfirmed="a test",
            rows_per_range=2,
            old_fingerprint=self.old.fingerprint,
            staging=self.staging,
            patience=Patience(1.0, 5.0),
            reconnect_s=0.0,
            min_recall=0.0,
        )
        return Migration(store, new=self.new, old=self.old, options=options)

    def teardown(self) -> None:
        """Bring whatever there is to its end."""
        if self.state is State.PAUSED:
            self.migration.resume()
        self._start()
        if self.state is not State.SERVING_NEW:
            self.cutover()
            self._check_serving()
        self.rollback()
        self._check_serving()
        self.cutover()
        self.finalize()
        self._check_serving()

    # --- where it stands --------------------------------------------------------------------------

    @property
    def state(self) -> State | None:
        """Return the state, None where no migration is open."""
        record = self.collection.store.ledger.find(self.collection.store.target)
        return None if record is None or State(record.state) in ENDED else State(record.state)

    @property
    def state_but_for_a_pause(self) -> State | None:
        record = self.collection.store.ledger.find(self.collection.store.target)
        return State(record.paused.before) if record is not None and record.paused is not None else self.state

    def _can(self, verb: str) -> bool:
        state = self.state
        return state is not None and allowed(verb, state)

    @property
    def serving_side(self) -> Side:
        serving = self.collection.store.ledger.serving(self.collection.store.target)
        return Side.NEW if serving and serving.fingerprint == self.new.fingerprint else Side.OLD

    def _model(self, side: Side) -> TruthEncoder:
        return self.new if side is Side.NEW else self.old

    def _letters(self, side: Side) -> int:
        """Count the rows that its model cannot embed; a store of points has one only where it was written."""
        return sum(
            entry.is_bad and (self.collection.keeps_rows or entry.written_on is not side)
            for entry in self.reference.values()
        )

    # --- the application --------------------------------------------------------------------------

    def _note_as_written(self) -> None:
        """Note what the application wrote; what it has left without a vector is to be filled after a switch."""
        if not self.was_switched:
            self.as_written = {}
            for text, vector in self.collection.serving().values():
                if vector is not None:
                    self.as_written.setdefault(text or "", []).append(vector)

    def _put(self, put: Callable[[int, str | None, Vector | None], None], key: int, text: str) -> None:
        side = self.serving_side
        text = f"{BAD} {next(self.numbers)}" if text == BAD else text
        put(key, text, self._model(side).truth(text))
        self.reference[str(key)] = Entry(text, side)
        self._note_as_written()

    def _write(self, key: int, text: str | None) -> None:
        if text is not None:
            self._put(self.collection.put, key, text)
        else:
            self.collection.remove(key)
            self.reference.pop(str(key), None)
            self._note_as_written()

    @rule(statements=st.lists(STATEMENT, min_size=1, max_size=4), together=st.booleans(), abandon=st.booleans())
    @when(lambda self: self.collection.by_sql)
    def write_by_sql(self, statements: Sequence[tuple[str, int, str]], together: bool, abandon: bool) -> None:  # noqa: FBT001
        """Write by SQL. together: in one transaction, which is rolled back with `abandon`."""
        assert isinstance(self.collection, InPostgres)
        connection, side = self.collection.connection, self.serving_side
        with connection.transaction(force_rollback=abandon) if together else nullcontext():
            for kind, key, text in statements:
                self._execute(connection, kind, key, f"{BAD} {next(self.numbers)}" if text == BAD else text, side)
        rows = connection.execute("SELECT id::text, body FROM docs").fetchall()
        self.reference = {key: Entry(text, side) for key, text in rows}
        self._note_as_written()

    def _execute(self, connection: psycopg.Connection, kind: str, key: int, text: str, side: Side) -> None:
        vector = self._model(side).truth(text).tolist()
        if kind == "text":
            connection.execute("UPDATE docs SET body = %s WHERE id = %s", [text, key])
        elif kind == "delete":
            connection.execute("DELETE FROM docs WHERE id = %s", [key])
        elif kind == "exchange":
            for before, after in ((key, -1), (key % 9 + 1, key), (-1, key % 9 + 1)):
                connection.execute("UPDATE docs SET id = %s WHERE id = %s", [after, before])
        elif kind in ("vector of another", "no vector"):
            value = vector if kind == "vector of another" else None
            connection.execute("UPDATE docs SET embedding = %s::real[]::vector WHERE id = %s", [value, key])
        else:
            self.collection.put(key, text, np.array(vector) if kind == "text and vector" else None)

    @rule(writes=st.lists(WRITE, min_size=1, max_size=4))
    def write(self, writes: Sequence[tuple[int, str | None]]) -> None:
        for key, text in writes:
            self._write(key, text)

    @rule(writes=st.lists(WRITE, min_size=1, max_size=3))
    def write_unseen(self, writes: Sequence[tuple[int, str | None]]) -> None:
        """Write past the capture, but not to a hidden dead letter: whether it was repaired unseen cannot be known."""
        for key, text in writes:
            if str(key) in self.reference.keys() - self._visible(self.serving_side).keys():
                continue
            if text is not None:
                self._put(self.collection.put_unseen, key, text)
            else:
                self.collection.remove_unseen(key)
                self.reference.pop(str(key), None)
                self._note_as_written()
        self.unseen = self.state is not None

    # --- the runner -------------------------------------------------------------------------------

    def _start(self, before_each: Callable[[Sequence[str]], None] = lambda texts: None) -> None:
        self.new.before_each = before_each
        try:
            status = self.migration.start()
        finally:
            self.new.before_each = lambda texts: None
        self._swept()
        assert (status.backlog, status.old_backlog) == (0, 0)
        assert self.state in CAUGHT_UP

    def _swept(self) -> None:
        """Note a whole `start`: every row was compared."""
        self.unseen, self.is_swept = False, self.was_switched

    @rule()
    @when(lambda self: self.state is not State.PAUSED)
    def start(self) -> None:
        self._start()

    @rule(calls=st.integers(0, 4), stopped=st.booleans())
    @when(lambda self: self.state is not State.PAUSED)
    def start_and_end_too_early(self, calls: int, stopped: bool) -> None:  # noqa: FBT001
        end = self.new.calls + calls

        def fail(_: Sequence[str]) -> None:
            if self.new.calls >= end and not stopped:
                raise RuntimeUnavailable("double", "gone", "start it")

        self.new.before_each = fail
        try:
            self.migration.start(stop=lambda: stopped and self.new.calls >= end)
        except (Interrupted, RuntimeUnavailable):
            return
        finally:
            self.new.before_each = lambda texts: None
        self._swept()

    @rule(writes=st.lists(WRITE, min_size=1, max_size=3))
    @when(lambda self: self.state is not State.PAUSED)
    def start_while_others_work(self, writes: Sequence[tuple[int, str | None]]) -> None:
        left, refused = iter(writes), list[str]()

        def meddle(_: Sequence[str]) -> None:
            for key, text in left:
                self._write(key, text)
                with self.collection.another() as store, pytest.raises(Locked) as locked:
                    self._operator(store).start()
                refused.append(locked.value.holder)
                return

        self._start(meddle)
        assert all(f"pid {os.getpid()}" in holder for holder in refused)

    # --- the operator -----------------------------------------------------------------------------

    @rule(stay=st.booleans())
    @when(lambda self: self.state in WORKING or self.state is State.PAUSED)
    def pause_or_resume(self, stay: bool) -> None:  # noqa: FBT001
        if self.state is State.PAUSED:
            self.migration.resume()
            return
        self.migration.pause("for a test")
        for verb in (self.migration.verify, self.migration.retry, self.migration.cutover):
            with pytest.raises(IllegalTransition):
                verb()
        if not stay:
            self.migration.resume()

    @rule(passes=st.sampled_from([True, False, None]), reason=st.sampled_from([None, "for a test"]))
    @when(lambda self: self._can("verify"))
    def verify(self, passes: bool | None, reason: str | None) -> None:  # noqa: FBT001
        gate, before = None if passes is None else gate_that_says(passed=passes), self.state
        report = self.migration.verify(50, gate=gate, override=reason)
        failed = {check.name for check in report.checks if not check.passed}
        if before is State.SERVING_NEW and any(entry.is_bad for entry in self.reference.values()):
            failed -= {"recomputed sample"}  # the application made a vector that the model cannot make again
        if not self.unseen:
            assert not failed, report
        assert failed <= {"text unchanged", "no vector without a row", "every row has a vector"}, report
        if before is State.SERVING_NEW:
            assert self.state is report.state is before
            return
        expected = State.CATCHING_UP if failed else State.READY if passes or reason else State.VERIFIED
        assert self.state is report.state is expected
        assert report.passed == (expected is State.READY)

    @rule()
    @when(lambda self: self._can("override"))
    def override(self) -> None:
        with pytest.raises(GateNotPassed):
            self.migration.cutover()
        self.migration.override("for a test")
        assert self.state is State.READY

    @rule()
    @when(lambda self: self._can("retry") and not self.unseen)
    def retry(self) -> None:
        self.migration.retry()

    @rule()
    @when(lambda self: self.state is not None and not self.unseen)
    def switch(self) -> None:
        if self.state_but_for_a_pause is State.SERVING_NEW:
            self.rollback()
        elif self.state is not State.PAUSED:
            self.cutover()

    @rule(chance=st.integers(0, 2))
    @when(lambda self: self.state is not None and not self.unseen)
    def end(self, chance: int) -> None:
        if self.state_but_for_a_pause is State.SERVING_NEW:
            self.finalize()
        elif chance == 1:
            self.abort()

    def cutover(self) -> None:
        self._start()
        if self.state is not State.SERVING_OLD or not (self.migration.status().verification or {})["passed"]:
            self.verify(passes=True, reason=None)
        before = self.migration.serving()
        report = self.migration.cutover(self._letters(Side.NEW))
        self.was_switched = True
        assert report.serving.epoch == before.epoch + 1
        assert report.serving.fingerprint == self.new.fingerprint

    def rollback(self) -> None:
        before = self.migration.serving()
        report = self.migration.rollback()
        assert report.serving.epoch == before.epoch + 1
        assert report.serving.fingerprint == self.old.fingerprint
        assert report.outdated_rows == 0

    def finalize(self) -> None:
        with pytest.raises(NotConfirmed):
            self.migration.finalize(confirmed=False)
        self.migration.finalize(confirmed=True, accept_dead_letters=self._letters(Side.NEW))
        self._end(kept=Side.NEW, model=self.new)

    def abort(self) -> None:
        letters = 0 if self.collection.keeps_rows else self._letters(Side.OLD)
        self.migration.abort(letters, accept_outdated=not self.is_swept)
        assert self.collection.store.new_space() is None
        self._end(kept=Side.OLD, model=self.old)

    def _end(self, kept: Side, model: TruthEncoder) -> None:
        """End the migration: one side is left, with the rows that it has."""
        visible = self._visible(kept)
        self.reference = {key: Entry(entry.text, Side.OLD) for key, entry in visible.items()}
        self.old = model
        self.unseen = self.is_swept = self.was_switched = False
        self._note_as_written()
        self._next_model()
        assert self.state is None

    # --- what must be so --------------------------------------------------------------------------

    def _visible(self, side: Side) -> dict[str, Entry]:
        """Return a side's rows; where none is without a vector, one that cannot be embedded is where it was written."""
        return {
            key: entry
            for key, entry in self.reference.items()
            if self.collection.keeps_rows or not entry.is_bad or entry.written_on is side
        }

    @invariant()
    def every_row_is_there_with_its_text(self) -> None:
        expected = {key: entry.text for key, entry in self._visible(self.serving_side).items()}
        assert {key[0]: text for key, (text, _) in self.collection.serving().items()} == expected

    @invariant()
    def what_serves_before_the_first_switch_is_as_it_was_written(self) -> None:
        if not self.was_switched:
            for text, vector in self.collection.serving().values():
                assert vector is None or _among(vector, self.as_written.get(text or "", [])), text

    @invariant()
    def both_sides_are_right_when_nothing_is_left_to_follow(self) -> None:
        if self.state in CAUGHT_UP and not self.unseen and not self.collection.store.backlog():
            self._check(self.collection.of_side(Side.NEW), Side.NEW)
            if self.was_switched:
                self._check(self.collection.of_side(Side.OLD), Side.OLD)

    def _check_serving(self) -> None:
        side = self.serving_side
        if side is Side.NEW or self.was_switched:
            self._check(self.collection.serving(), side)

    def _check(self, rows: dict[Key, Content], side: Side) -> None:
        expected, model = self._visible(side), self._model(side)
        assert {key[0]: text for key, (text, _) in rows.items()} == {key: e.text for key, e in expected.items()}
        for (key,), (text, vector) in rows.items():
            assert text is not None
            if side is Side.OLD and vector is not None and _among(vector, self.as_written.get(text, [])):
                continue
            if not expected[key].is_bad:
                if vector is None and side is Side.OLD and not self.is_swept:
                    continue  # the application left it so, and no run has looked at all rows since the switch
                assert vector is not None, (key, text, side)
                np.testing.assert_allclose(vector, model.truth(text), atol=1e-6, err_msg=f"{key}: {text!r} {side}")
            elif expected[key].written_on is not side or self.collection.by_sql:
                assert vector is None, (key, text, side)
        if side is Side.NEW or self.is_swept:
            assert self.collection.store.count_outdated(side).count == 0


def _among(vector: Vector, others: Sequence[Vector]) -> bool:
    return any(vector.shape == other.shape and np.allclose(vector, other, atol=1e-6) for other in others)


class Mirrored(MirrorCollection):
    by_sql = False
    """A store of points keeps what is put, and cannot tell whose vector it is."""

    def of_side(self, side: Side) -> dict[Key, Content]:
        name = self.store.serving_locator(side)
        points = self.backend.get(name, list(self.backend.ids(name)), vectors=True)
        return {(p.id,): (p.text, None if p.vectors is None else p.vectors.dense) for p in points}


class InPostgres(PgCollection):
    by_sql = True

    def of_side(self, side: Side) -> dict[Key, Content]:
        columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'docs'::regclass AND NOT attisdropped"
        name = f"embedding_vecferry_{side}"
        if (name,) not in self.connection.execute(columns).fetchall():
            return self.serving()
        rows = self.connection.execute(f"SELECT id::text, body, {name}::real[] FROM docs").fetchall()
        return {(key,): (text, None if v is None else np.asarray(v, np.float32)) for key, text, v in rows}


def run(make: Callable[[], tuple[Sided, Callable[[], None]]], folder: Path, examples: int, *, new: bool) -> None:
    """Run the machine. new: other examples each time, instead of the same ones."""
    numbers = count()

    class OnIt(Machine):
        def __init__(self) -> None:
            collection, self.close = make()
            super().__init__(collection, folder / f"staging {next(numbers)}")

        def teardown(self) -> None:
            try:
                super().teardown()
            finally:
                self.close()

    run_state_machine_as_test(
        OnIt,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            derandomize=not new,
            database=None,
            phases=[Phase.generate],  # to shrink takes longer than to read
            suppress_health_check=list(HealthCheck),
        ),
    )


def in_memory() -> tuple[Sided, Callable[[], None]]:
    collection = Mirrored(MemoryBackend({backends.COLLECTION: []}), SqliteLedger.in_memory(), nullable=True)

    def close() -> None:
        collection.application.close()
        collection.store.close()

    return collection, close


def in_postgres(connection: psycopg.Connection, url: str) -> tuple[Sided, Callable[[], None]]:
    for statement in ("DROP TABLE IF EXISTS docs", "DROP SCHEMA IF EXISTS vecferry CASCADE"):
        connection.execute(statement)
    collection = InPostgres(connection, url, embed_missing=True)
    return collection, collection.store.close


def test_any_order_of_verbs_and_writes_keeps_rows_right_in_memory(tmp_path: Path) -> None:
    run(in_memory, tmp_path, examples=10, new=False)


def test_any_order_of_verbs_and_writes_keeps_rows_right_in_postgres(
    connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    run(lambda: in_postgres(connection, database_url), tmp_path, examples=3, new=False)


@pytest.mark.slow
def test_many_more_orders_keep_rows_right_in_memory(tmp_path: Path) -> None:
    run(in_memory, tmp_path, examples=2000, new=True)


@pytest.mark.slow
def test_many_more_orders_keep_rows_right_in_postgres(
    connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    run(lambda: in_postgres(connection, database_url), tmp_path, examples=2000, new=True)
