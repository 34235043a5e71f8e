"""Groups: what their members are, and what becomes of those that an application makes or drops meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.migrate.doubles import TruthEncoder
from tests.migrate.file_backend import FileBackend
from tests.stores.backends import DIMENSION, opened, unit
from vecferry.embeddings import DENSE, TextVectors
from vecferry.errors import CutoverRefused, SpaceMismatch, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.backend import Aliased, Backend, Noticing, OptionalVectors, Point
from vecferry.stores.group import GroupBackend, Part, group_name, group_of, named
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import GroupStore
from vecferry.stores.protocol import StoreGroup
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Record, Side, shown

OLD, NEW = TruthEncoder("old", DIMENSION), TruthEncoder("new", 16)


@pytest.fixture(params=["memory", "file"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Return a store with aliases, and one that renames, each with two collections of a group and one beside them."""
    names = ("file-a", "file-b", "notes")
    if request.param == "memory":
        return MemoryBackend({name: [] for name in names})
    files = FileBackend(tmp_path / "store")
    for name in names:
        files.create(name, dimension=DIMENSION)
    return files


@pytest.fixture
def group(backend: Backend) -> GroupBackend:
    return group_of([Part("file-*", backend)])


@pytest.fixture
def store(group: GroupBackend, tmp_path: Path) -> Iterator[GroupStore]:
    with GroupStore(group, SqliteLedger.open(tmp_path / "control.db")) as store:
        yield store


def migration_of(store: GroupStore, folder: Path) -> Migration:
    options = MigrationOptions(
        accept_unconfirmed="a test", old_fingerprint=OLD.fingerprint, staging=folder / "staging", min_free_gb=0
    )
    return Migration(store, new=NEW, old=OLD, options=options)


@pytest.fixture
def migration(store: GroupStore, tmp_path: Path) -> Migration:
    put(store, {"file-a/1": "one", "file-a/2": "two", "file-b/1": "three"})
    return migration_of(store, tmp_path)


def put(store: GroupStore, texts: dict[str, str], encoder: TruthEncoder = OLD) -> None:
    records = [Record((key,), text, TextVectors(encoder.truth(text))) for key, text in texts.items()]
    store.put(records, fingerprint=encoder.fingerprint)


def make_unseen(backend: Backend, name: str, *texts: str, encoder: TruthEncoder = OLD) -> None:
    """Make a collection as an application does that knows nothing of us."""
    if isinstance(backend, FileBackend):
        backend.create(name, dimension=encoder.dimension)
    else:
        backend.create(name, like="notes", dimension=encoder.dimension, outputs=DENSE)
    backend.put(name, [Point(str(n), text, TextVectors(encoder.truth(text))) for n, text in enumerate(texts)])


def switch(migration: Migration) -> None:
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()


def texts_of(backend: Backend, name: str, encoder: TruthEncoder = NEW) -> dict[str, str | None]:
    """Return the texts by id; each has the encoder's vector of it."""
    points = backend.get(name, list(backend.ids(name)), vectors=True)
    for point in points:
        assert point.vectors is not None
        assert point.vectors.dense.tolist() == pytest.approx(encoder.truth(point.text or "").tolist(), abs=1e-6)
    return {point.id: point.text for point in points}


# --- names ----------------------------------------------------------------------------------------


def test_a_group_is_called_by_its_pattern_or_its_list_in_any_order() -> None:
    assert group_name(["file-*"]) == "file-*"
    assert group_name(["faq", "docs"]) == group_name(["docs", "faq"]) == "{docs,faq}"
    assert named(["a"]) == "a"
    assert named([*"abcde"]) == "a, b, c and 2 more"


def test_members_are_those_that_match_now_and_none_that_a_migration_has_made(
    group: GroupBackend, backend: Backend
) -> None:
    for ending in ("_vecferry_2", "_vecferry_old"):
        make_unseen(backend, f"file-a{ending}")
    assert group.members("file-*") == {"file-a": "file-a", "file-b": "file-b"}
    assert group.members("file-*_vecferry_2") == {"file-a": "file-a_vecferry_2"}
    make_unseen(backend, "file-c")
    assert list(group.members("file-*")) == ["file-a", "file-b", "file-c"]


def test_a_group_can_what_its_members_can(backend: Backend) -> None:
    group = group_of([Part("file-*", backend)])
    assert isinstance(group, OptionalVectors) == isinstance(backend, OptionalVectors)
    assert not isinstance(group, Noticing | Aliased)


def test_a_point_of_no_member_is_refused_and_nothing_is_written(group: GroupBackend, backend: Backend) -> None:
    vectors = TextVectors(unit(1))
    for strange in ("notes/1", "1", "file-a_vecferry_2/1"):
        with pytest.raises(StoreSchemaError, match="is no collection of file-"):
            group.put("file-*", [Point("file-a/1", "one", vectors), Point(strange, "two", vectors)])
    assert (backend.count("file-a"), backend.count("notes")) == (0, 0)
    assert group.get("file-*", ["notes/1", "1"]) == []


def test_members_that_do_not_fit_are_named_before_anything_is_written(
    group: GroupBackend, migration: Migration, backend: Backend
) -> None:
    make_unseen(backend, "file-wide", "by another model", encoder=NEW)
    (problem,) = migration.plan().problems
    assert "1 of 3 collections of file-* do not fit" in problem.message
    assert "file-wide: 16 numbers" in problem.message
    with pytest.raises(StoreSchemaError, match="file-wide"):
        migration.start()
    assert not group.exists("file-*_vecferry_2")


def test_a_name_in_a_list_that_is_no_collection_is_named(backend: Backend) -> None:
    with pytest.raises(StoreSchemaError, match="there is no collection file-z"):
        group_of([Part("file-a", backend), Part("file-z", backend)]).check("{file-a,file-z}", DENSE)


# --- one switch -----------------------------------------------------------------------------------


def test_a_plan_and_a_status_say_how_many_are_switched_together(migration: Migration) -> None:
    assert migration.plan().collections == ("file-a", "file-b")
    assert migration.start().collections == ("file-a", "file-b")


def test_all_members_switch_in_one_epoch_and_their_names_have_the_new_vectors_at_the_end(
    migration: Migration, backend: Backend
) -> None:
    switch(migration)
    assert migration.serving().locator == "file-*_vecferry_2"
    assert texts_of(backend, "file-a", OLD) == {"1": "one", "2": "two"}
    assert migration.finalize(confirmed=True).state is State.FINALIZED
    assert texts_of(backend, "file-a") == {"1": "one", "2": "two"}
    assert texts_of(backend, "file-b") == {"1": "three"}
    old_names = {name for name, behind in backend.names().items() if name == behind} - {"notes"}
    assert old_names in ({"file-a", "file-b"}, {"file-a_vecferry_2", "file-b_vecferry_2"})


def test_an_abort_leaves_nothing_of_any_member(migration: Migration, backend: Backend) -> None:
    migration.start()
    migration.abort()
    assert set(backend.names()) == {"file-a", "file-b", "notes"}


def test_a_second_migration_of_a_group_goes_on_from_the_first(
    migration: Migration, store: GroupStore, backend: Backend, tmp_path: Path
) -> None:
    switch(migration)
    migration.finalize(confirmed=True)
    options = MigrationOptions(staging=tmp_path / "staging", min_free_gb=0, accept_unconfirmed="a test")
    back = Migration(store, new=OLD, old=NEW, options=options)
    switch(back)
    back.finalize(confirmed=True)
    assert texts_of(backend, "file-a", OLD) == {"1": "one", "2": "two"}


def test_a_forgotten_ledger_lets_no_member_be_taken_for_its_new_side(
    migration: Migration, store: GroupStore, backend: Backend, tmp_path: Path
) -> None:
    if isinstance(backend, Aliased):
        pytest.skip("a name that is an alias is refused")
    switch(migration)
    migration.finalize(confirmed=True)
    migration.forget()
    options = MigrationOptions(staging=tmp_path / "staging", min_free_gb=0, accept_unconfirmed="a test")
    again = Migration(store, new=OLD, old=NEW, options=options)
    again.start()
    assert set(backend.names()) >= {"file-a", "file-a_vecferry_3"}
    assert texts_of(backend, "file-a_vecferry_3", OLD) == {"1": "one", "2": "two"}


def test_findings_name_the_member_and_the_id(migration: Migration, backend: Backend) -> None:
    migration.start()
    backend.delete("file-b_vecferry_2", ["1"])
    report = migration.verify(override="no gate in this test")
    assert not report.passed
    assert "file-b/1" in next(check.seen for check in report.checks if check.name == "text unchanged")
    assert [shown([row.key]) for row in migration.store.outdated(Side.NEW)] == [("file-b/1",)]


# --- what an application does meanwhile -----------------------------------------------------------


def test_a_collection_made_while_the_migration_runs_is_taken_in_at_the_next_look(
    migration: Migration, backend: Backend
) -> None:
    migration.start()
    make_unseen(backend, "file-c", "four")
    assert not migration.verify(override="no gate in this test").passed
    switch(migration)
    migration.finalize(confirmed=True)
    assert texts_of(backend, "file-c") == {"0": "four"}


def test_a_cutover_leaves_no_collection_behind_that_nobody_has_seen(migration: Migration, backend: Backend) -> None:
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    make_unseen(backend, "file-c", "four")
    with pytest.raises(StoreSchemaError, match="file-c meanwhile, with 1 points"):
        migration.cutover()
    assert migration.serving().epoch == 1
    switch(migration)
    assert texts_of(backend, "file-c_vecferry_2") == {"0": "four"}


def test_a_collection_made_under_its_own_name_after_the_switch_is_not_lost(
    migration: Migration, backend: Backend
) -> None:
    switch(migration)
    make_unseen(backend, "file-c", "four")
    with pytest.raises(StoreSchemaError, match="file-c meanwhile, with 1 points"):
        migration.finalize(confirmed=True)
    migration.rollback()
    migration.start()
    migration.cutover()
    migration.finalize(confirmed=True)
    assert texts_of(backend, "file-c") == {"0": "four"}
    assert texts_of(backend, "file-a") == {"1": "one", "2": "two"}


@pytest.mark.parametrize("encoder", [OLD, NEW])
def test_a_collection_made_through_the_store_follows(
    encoder: TruthEncoder, migration: Migration, store: GroupStore, backend: Backend
) -> None:
    migration.start()
    if encoder is NEW:
        switch(migration)
    put(store, {"file-new/1": "new"}, encoder)
    migration.start()
    assert texts_of(backend, "file-new", OLD) == texts_of(backend, "file-new_vecferry_2") == {"1": "new"}


def test_an_empty_collection_keeps_its_name_and_is_ready_for_the_new_vectors(
    migration: Migration, backend: Backend
) -> None:
    make_unseen(backend, "file-empty")
    switch(migration)
    migration.finalize(confirmed=True)
    assert (backend.count("file-empty"), backend.dimension("file-empty")) == (0, NEW.dimension)


@pytest.mark.parametrize("is_switched", [False, True])
def test_a_collection_that_the_application_drops_does_not_come_back(
    *, is_switched: bool, migration: Migration, backend: Backend, store: GroupStore
) -> None:
    migration.start()
    if is_switched:
        switch(migration)
        backend.drop("file-b_vecferry_2")
    backend.drop("file-b")
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    if not is_switched:
        migration.cutover()
    migration.finalize(confirmed=True)
    assert set(backend.names()) - {"file-a_vecferry_2"} == {"file-a", "notes"}
    assert store.members() == ("file-a",)


# --- an end that is broken off --------------------------------------------------------------------


class Broken(Exception):
    """What breaks an end off."""


def break_off(migration: Migration, store: GroupStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a finalize end after its first member."""
    end = store._ending.end

    def end_one(*names: str) -> None:
        end(*names)
        raise Broken

    monkeypatch.setattr(store._ending, "end", end_one)
    with pytest.raises(Broken):
        migration.finalize(confirmed=True)
    monkeypatch.undo()


def test_between_two_members_of_a_finalize_all_are_read_and_written_and_a_repeat_ends_it(
    migration: Migration, store: GroupStore, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch(migration)
    break_off(migration, store, monkeypatch)
    hits = store.search(NEW.truth("one"), 3, fingerprint=NEW.fingerprint)
    assert sorted(hit.key for hit in hits) == [("file-a/1",), ("file-a/2",), ("file-b/1",)]
    with pytest.raises(SpaceMismatch):
        store.search(OLD.truth("one"), 3, fingerprint=OLD.fingerprint)
    put(store, {"file-a/3": "written", "file-b/3": "meanwhile"}, NEW)
    with pytest.raises(CutoverRefused, match="has begun"):
        migration.rollback()
    migration.start()
    assert migration.status().rows == 5
    migration.finalize(confirmed=True)
    assert texts_of(backend, "file-a") == {"1": "one", "2": "two", "3": "written"}
    assert texts_of(backend, "file-b") == {"1": "three", "3": "meanwhile"}


# --- one member -----------------------------------------------------------------------------------


def test_a_search_of_one_member_finds_none_of_the_others(migration: Migration, store: GroupStore) -> None:
    assert isinstance(store, StoreGroup)
    for encoder in (OLD, NEW):
        hits = store.search_within("file-b", encoder.truth("one"), 5, fingerprint=encoder.fingerprint)
        assert [hit.key for hit in hits] == [("file-b/1",)]
        if encoder is OLD:
            switch(migration)
    assert store.search_within("file-none", NEW.truth("one"), 5, fingerprint=NEW.fingerprint) == []
    with pytest.raises(SpaceMismatch):
        store.search_within("file-b", NEW.truth("one"), 5, fingerprint="strange")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chroma", "chroma-server", "lancedb", "qdrant", "milvus", "sqlite-vec", "faiss"])
def test_a_group_of_each_store_goes_the_whole_path(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path / "store") as backend:
        for member in ("file-a", "file-b"):
            backend.create(member, like="docs", dimension=DIMENSION, outputs=DENSE)
        with GroupStore(group_of([Part("file-*", backend)]), SqliteLedger.open(tmp_path / "control.db")) as store:
            put(store, {"file-a/1": "one", "file-a/2": "two", "file-b/1": "three"})
            migration = migration_of(store, tmp_path)
            switch(migration)
            put(store, {"file-c/1": "new"}, NEW)
            migration.start()
            migration.finalize(confirmed=True)
            for member, texts in {"file-a": {"1": "one", "2": "two"}, "file-c": {"1": "new"}}.items():
                assert texts_of(backend, member) == texts
            store._group.close = lambda: None  # type: ignore[method-assign]  # the backend is not ours
