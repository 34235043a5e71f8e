"""Edits that are taken back, vectors without their text, keys that change places: before and after a switch, and back.

An application makes edits of several steps, each on rows of its own. Whatever they were, what follows the writes finds
it: in the end each row of the side that serves has the vector of its text. A store of points cannot tell whose vector
a point has; there the side that serves keeps what the application has put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from tests.stores.collections import OLD_DIMENSION, Collection, PgCollection, old_vector, quick_on, without_triggers
from vecferry.embeddings import Float32
from vecferry.errors import CutoverRefused
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.values import Patience, Side

OLD, NEW = TruthEncoder("old", OLD_DIMENSION), TruthEncoder("new", 16)


class Application:
    """Edits of a table by SQL; of points by whole records, with the vector that there was where none is given."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.model = OLD

    @property
    def is_table(self) -> bool:
        return isinstance(self.collection, PgCollection)

    def row(self, key: int) -> tuple[str | None, Float32 | None]:
        return self.collection.serving()[(str(key),)]

    def put(self, key: int, text: str, vector: Float32 | None) -> None:
        self.collection.put(key, text, vector)

    def set_text(self, key: int, text: str) -> None:
        if isinstance(self.collection, PgCollection):
            self.collection.connection.execute("UPDATE docs SET body = %s WHERE id = %s", [text, key])
        else:
            self.put(key, text, self.row(key)[1])

    def set_vector(self, key: int, vector: Float32 | None) -> None:
        if isinstance(self.collection, PgCollection):
            value = None if vector is None else vector.tolist()
            statement = "UPDATE docs SET embedding = %s::real[]::vector WHERE id = %s"
            self.collection.connection.execute(statement, [value, key])
        else:
            self.put(key, self.row(key)[0] or "", vector)

    def exchange(self, key: int, other: int) -> None:
        if isinstance(self.collection, PgCollection):
            for before, after in ((key, -1), (other, key), (-1, other)):
                self.collection.connection.execute("UPDATE docs SET id = %s WHERE id = %s", [after, before])
        else:
            mine, its = self.row(key), self.row(other)
            self.put(key, its[0] or "", its[1])
            self.put(other, mine[0] or "", mine[1])


def before(key: int) -> str:
    return f"text of {key}"


def other(key: int) -> str:
    """Return another text, that only this row ever has."""
    return f"another of {key}"


Text = Callable[[int], str]
Step = Callable[[Application, int], None]
"""What is done to the row with that key; the one after it is of the same edit."""


def put(text: Text, made_of: Text | None) -> Step:
    """Return an upsert. made_of: the text of its vector; None is no vector."""
    return lambda app, key: app.put(key, text(key), None if made_of is None else app.model.truth(made_of(key)))


def set_text(text: Text) -> Step:
    return lambda app, key: app.set_text(key, text(key))


def set_vector(made_of: Text | None) -> Step:
    return lambda app, key: app.set_vector(key, None if made_of is None else app.model.truth(made_of(key)))


def remove(app: Application, key: int) -> None:
    app.collection.remove(key)


def exchange(app: Application, key: int) -> None:
    app.exchange(key, key + 1)


EDITS: dict[str, list[Step]] = {
    "a text and back": [set_text(other), set_text(before)],
    "a text": [set_text(other)],
    "text and vector and back": [put(other, other), put(before, before)],
    "text and vector, the text back alone": [put(other, other), set_text(before)],
    "text and vector, the vector back alone": [put(other, other), set_vector(before)],
    "a text, and back with the vector of the other": [set_text(other), put(before, other)],
    "a vector alone": [set_vector(other)],
    "a vector alone and back": [set_vector(other), set_vector(before)],
    "removed and put again": [remove, put(before, before)],
    "removed and put again with another vector": [remove, put(before, other)],
    "removed": [remove],
    "keys exchanged": [exchange],
    "keys exchanged and back": [exchange, exchange],
}
WITHOUT_VECTOR: dict[str, list[Step]] = {
    "text without vector, the text back alone": [put(other, None), set_text(before)],
    "the same text without a vector": [put(before, None)],
    "a vector taken away": [set_vector(None)],
    "removed and put again without a vector": [remove, put(before, None)],
}
"""Which no store of points allows."""


def edit(application: Application, transaction: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
    """Make all edits, each in what `transaction` makes."""
    edits = EDITS | WITHOUT_VECTOR if application.is_table else EDITS
    for number, steps in enumerate(edits.values()):
        with transaction():
            for step in steps:
                step(application, 2 * number + 1)


def name_of(key: str) -> str:
    """Return the name of the edit that was made to that row."""
    return f"{key}: {list(EDITS | WITHOUT_VECTOR)[(int(key) - 1) // 2]}"


def filled(collection: Collection) -> Application:
    """Fill the collection with two rows for each edit."""
    for key in range(1, 2 * len(EDITS | WITHOUT_VECTOR) + 1):
        collection.put(key, before(key), old_vector(before(key)))
    return Application(collection)


@pytest.fixture
def application(collection: Collection) -> Application:
    return filled(collection)


@pytest.fixture
def embed_missing() -> bool:
    """Let the follower be the application's embedding worker, whatever it writes."""
    return True


@pytest.fixture
def table(connection: psycopg.Connection, database_url: str) -> Iterator[PgCollection]:
    made = PgCollection(connection, database_url, embed_missing=True)
    yield made
    made.store.close()


def migrated(application: Application, folder: Path) -> Migration:
    """Return a migration that is verified, and so ready to be switched."""
    options = MigrationOptions(
        accept_unconfirmed="a test",
        rows_per_range=5,
        old_fingerprint=OLD.fingerprint,
        staging=folder,
        patience=Patience(1.0, 5.0),
    )
    migration = Migration(application.collection.store, new=NEW, old=OLD, options=options)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    return migration


def texts(application: Application) -> dict[str, str | None]:
    return {key[0]: text for key, (text, _) in application.collection.serving().items()}


def assert_true(application: Application, model: TruthEncoder) -> None:
    """Assert that every row that serves has the vector of its text."""
    for (key,), (text, vector) in application.collection.serving().items():
        assert text is not None
        assert vector is not None, f"{name_of(key)}: there is no vector"
        np.testing.assert_allclose(vector, model.truth(text), atol=1e-6, err_msg=name_of(key))


def edit_before_the_switch(application: Application, migration: Migration, edit: Callable[[], None]) -> None:
    """Edit, then switch: the new side is true in the end, and the old one as it was written."""
    edit()
    written = application.collection.serving()
    migration.cutover()
    assert_true(application, NEW)
    assert texts(application) == {key[0]: text for key, (text, _) in written.items()}
    migration.rollback()
    for key, (text, vector) in application.collection.serving().items():
        assert text == written[key][0]
        before = written[key][1]
        if vector is None or before is None:
            assert vector is before, name_of(key[0])
        else:
            np.testing.assert_allclose(vector, before, atol=1e-6, err_msg=name_of(key[0]))


def edit_after_a_switch(
    application: Application, migration: Migration, edit: Callable[[], None], *, back: bool
) -> None:
    """Switch, then edit: both sides are true in the end, whichever serves. back: after a rollback, too."""
    migration.cutover()
    application.model = NEW
    if back:
        migration.rollback()
        application.model = OLD
    edit()
    written = texts(application)
    for model in (NEW, OLD, NEW) if back else (OLD, NEW, OLD):
        if model is NEW:
            migration.cutover()
        else:
            migration.rollback()
        assert texts(application) == written
        if application.is_table or model is not application.model:  # a store of points keeps what was put
            assert_true(application, model)


@quick_on("memory", "pgvector")
def test_edits_before_the_switch_leave_both_sides_true(application: Application, tmp_path: Path) -> None:
    edit_before_the_switch(application, migrated(application, tmp_path), lambda: edit(application))


def test_edits_after_a_switch_leave_both_sides_true(application: Application, tmp_path: Path) -> None:
    edit_after_a_switch(application, migrated(application, tmp_path), lambda: edit(application), back=False)


@pytest.mark.slow
def test_edits_after_a_rollback_leave_both_sides_true(application: Application, tmp_path: Path) -> None:
    edit_after_a_switch(application, migrated(application, tmp_path), lambda: edit(application), back=True)


# --- what a table alone has -----------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after the switch", "after a rollback"])
def test_edits_in_one_transaction_leave_both_sides_true(when: str, table: PgCollection, tmp_path: Path) -> None:
    application = filled(table)
    migration = migrated(application, tmp_path)

    def edit_in_transactions() -> None:
        edit(application, table.connection.transaction)

    if when == "before":
        edit_before_the_switch(application, migration, edit_in_transactions)
    else:
        edit_after_a_switch(application, migration, edit_in_transactions, back=when == "after a rollback")


def edited_unseen(table: PgCollection, folder: Path) -> tuple[Application, Migration]:
    """Return an application whose edits came after the switch, past the triggers."""
    application = filled(table)
    migration = migrated(application, folder)
    migration.cutover()
    application.model = NEW
    with without_triggers(table.connection, "docs"):
        edit(application)
    assert table.store.backlog() == 0
    return application, migration


def test_what_no_trigger_has_seen_is_found_on_both_sides_by_start(table: PgCollection, tmp_path: Path) -> None:
    application, migration = edited_unseen(table, tmp_path)
    migration.start()
    assert_true(application, NEW)
    migration.rollback()
    assert_true(application, OLD)


def test_nothing_is_dropped_beside_vectors_that_are_not_of_their_texts(table: PgCollection, tmp_path: Path) -> None:
    application, migration = edited_unseen(table, tmp_path)
    with pytest.raises(CutoverRefused, match="rows have no new vector of their present text"):
        migration.finalize(confirmed=True)
    assert migration.status().state is State.SERVING_NEW
    migration.start()
    migration.finalize(confirmed=True)
    assert_true(application, NEW)


def test_a_row_that_the_application_never_embedded_gets_its_old_vector_after_the_switch(
    table: PgCollection, tmp_path: Path
) -> None:
    """Nothing is missing on the way back; before the switch that side is the application's alone."""
    application = filled(table)
    migration = migrated(application, tmp_path)
    application.put(99, "never embedded", None)
    migration.start()
    assert application.row(99)[1] is None
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    assert table.store.count_outdated(Side.OLD).keys == (("99",),)
    migration.start()
    migration.rollback()
    vector = application.row(99)[1]
    assert vector is not None
    np.testing.assert_allclose(vector, truth("old", "never embedded", OLD_DIMENSION), atol=1e-6)
