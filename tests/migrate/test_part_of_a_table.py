"""A migration of one part of a shared table, `[store] where`: the other rows stay as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.stores.processes import Child
from tests.waiting import wait_until
from vecferry.errors import SettingsError, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.router import Document, Router
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import Layout, Patience, Side

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
TENANTS = ("north", "south", "east")
ROWS = 6
TABLE = """
CREATE TABLE docs (id integer PRIMARY KEY, tenant text, embedding vector, body text, after text DEFAULT 'last');
CREATE INDEX by_tenant ON docs (tenant);
"""


def written(number: int, tenant: str | None, encoder: TruthEncoder = OLD) -> list[object]:
    return [number, tenant, str(encoder.truth(f"text {number}").tolist()), f"text {number}"]


INSERT = "INSERT INTO docs VALUES (%s, %s, %s, %s)"


@pytest.fixture
def table(connection: psycopg.Connection) -> psycopg.Connection:
    """Make a table of three tenants and a row of none, whose keys lie among each other."""
    connection.execute(TABLE)
    for number in range(ROWS * len(TENANTS)):
        connection.execute(INSERT, written(number, TENANTS[number % len(TENANTS)]))
    connection.execute(INSERT, written(100, None))
    return connection


@pytest.fixture
def opened(table: psycopg.Connection, database_url: str) -> Iterator[Callable[[str | None], PgVectorStore]]:
    """Yield what opens the store with a condition; all are closed at the end."""
    stores: list[PgVectorStore] = []

    def connect(where: str | None) -> PgVectorStore:
        stores.append(PgVectorStore.connect(database_url, "docs", "body", "embedding", where=where, embed_missing=True))
        return stores[-1]

    yield connect
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[[str | None], PgVectorStore]) -> PgVectorStore:
    return opened("tenant = 'north'")


def migrated(store: PgVectorStore, folder: Path) -> Migration:
    options = MigrationOptions(staging=folder, min_free_gb=0, patience=Patience(30.0))
    return Migration(store, new=NEW, old=OLD, options=options)


@pytest.fixture
def migration(store: PgVectorStore, tmp_path: Path) -> Migration:
    return migrated(store, tmp_path)


def verified(migration: Migration) -> None:
    migration.start()
    report = migration.verify(override="no gate in this test")
    assert report.passed, report


def others(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    """Return every row of the others as bytes, with its place: what was never written lies where it lay."""
    query = (
        "SELECT ctid::text, xmin::text, vector_send(embedding), t::text FROM docs AS t"
        " WHERE (tenant = 'north') IS NOT TRUE ORDER BY id"
    )
    return connection.execute(query).fetchall()


def part(connection: psycopg.Connection) -> dict[int, list[float]]:
    query = "SELECT id, embedding::real[] FROM docs WHERE tenant = 'north'"
    return dict(connection.execute(query).fetchall())


def assert_true(connection: psycopg.Connection, encoder: TruthEncoder) -> None:
    """Assert that each row of the part has the vector that the model makes of its text."""
    query = "SELECT body, embedding::real[] FROM docs WHERE tenant = 'north'"
    for body, vector in connection.execute(query).fetchall():
        assert vector == pytest.approx(encoder.truth(body).tolist()), body


@pytest.mark.parametrize("ending", ["finalize", "abort", "abort after a rollback"])
def test_the_other_rows_are_bit_equal_and_in_their_places_at_every_stage(
    migration: Migration, table: psycopg.Connection, ending: str
) -> None:
    before, own = others(table), part(table)
    steps: list[Callable[[], object]] = [migration.plan, lambda: verified(migration)]
    if ending != "abort":
        steps += [migration.cutover, migration.start, migration.rollback, migration.start]
    if ending == "finalize":
        steps += [migration.cutover, migration.start, lambda: migration.finalize(confirmed=True)]
    else:
        steps.append(migration.abort)
    for step in steps:
        step()
        assert others(table) == before
    if ending == "finalize":
        assert_true(table, NEW)
    else:
        assert part(table) == own
    assert table.execute("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'vecferry%'").fetchall() == []
    assert table.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'sides%'").fetchall() == []


def test_plan_is_about_the_rows_of_the_part_alone(migration: Migration) -> None:
    plan = migration.plan()
    assert plan.target == "public.docs.embedding where (tenant = 'north'::text)"
    assert (plan.table.rows, plan.old_dimension, plan.new_dimension) == (ROWS, 8, 16)
    assert plan.table.table_bytes < 2 * ROWS * 100
    columns, beside = plan.layouts
    assert columns.obstacle
    assert (beside.layout, beside.is_chosen) == (Layout.SIDE_TABLE, True)
    assert 0 < beside.switch_s < 0.1
    assert plan.provenance.is_confirmed


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("tenant IN (SELECT tenant FROM docs)", "cannot use subquery in index predicate"),
        ("tenant = current_user", "must be marked IMMUTABLE"),
        ("random() < 0.5 AND tenant = 'a'", "must be marked IMMUTABLE"),
        ("tenants = 'north'", 'column "tenants" does not exist'),
        ("tenant", "must be type boolean"),
        ("tenant = 'north'; SELECT 1", "syntax error"),
        ("tenant = 'north') OR (true", "reads no column"),
        ("true", "reads no column"),
        ("embedding IS NOT NULL AND tenant = 'north'", "reads embedding"),
        ("count(*) > 1", "aggregate functions are not allowed"),
        ("tenant = 'north'); COMMIT; DROP TABLE public.docs; SELECT (1", "cannot insert multiple commands"),
        ("", "syntax error"),
        ("tenant = 'north' /*", "unterminated /* comment"),
        ("tenant = %s", "syntax error"),
        ("tenant = $1", "there is no parameter $1"),
        ("tenant = '\udcff'", "lone surrogate"),
        ("ctid = '(0,1)' AND tenant = 'north'", "system columns"),
        ("docs IS NOT NULL AND tenant = 'north'", 'table "docs"'),
        ("row(docs.*) IS NOT NULL AND tenant = 'north'", "reads embedding"),
        ("EXISTS (SELECT) AND tenant = 'north'", "cannot use subquery"),
        ("row_number() OVER () > 1", "window functions are not allowed"),
        ("generate_series(1, id) > 1", "set-returning functions are not allowed"),
        ("tenant IN ('" + "', '".join(f"{number:036}" for number in range(40)) + "')", "1,500 is the most"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused_with_what_the_server_says(
    opened: Callable[[str | None], PgVectorStore], where: str, reason: str
) -> None:
    if reason == "reads no column" and where != "true":
        opened(where)  # the server sees one condition, and takes it
        return
    with pytest.raises(StoreSchemaError, match="no condition on public") as refused:
        opened(where)
    assert reason in refused.value.what
    assert len(refused.value.what) < 400


def test_the_longest_condition_that_is_taken_goes_the_whole_path(
    opened: Callable[[str | None], PgVectorStore], table: psycopg.Connection, tmp_path: Path
) -> None:
    names = ", ".join(f"'{number:036}'" for number in range(28))
    migration = migrated(opened(f"tenant IN ('north', {names})"), tmp_path)
    verified(migration)
    migration.cutover()
    assert_true(table, NEW)


def test_two_ways_of_writing_a_condition_are_one_part(opened: Callable[[str | None], PgVectorStore]) -> None:
    ways = ("tenant = 'north'", "  docs.tenant  =  'north'::text -- of the north", "(((tenant='north')))")
    assert len({opened(where).target for where in ways}) == 1


def test_rows_that_enter_and_leave_the_part_are_followed(migration: Migration, table: psycopg.Connection) -> None:
    verified(migration)
    before = others(table)
    table.execute("UPDATE docs SET tenant = 'north' WHERE id = 1; UPDATE docs SET tenant = 'south' WHERE id = 0")
    table.execute("UPDATE docs SET tenant = NULL WHERE id = 3; UPDATE docs SET id = 1000 WHERE id = 6")
    assert migration.store.backlog() == 5  # a key that changes is two
    migration.start()
    assert migration.store.backlog() == 0
    assert migration.store.counts().rows == migration.store.counts().done == ROWS - 1
    assert migration.store.orphans(10) == []
    left = others(table)
    migration.cutover()
    assert_true(table, NEW)
    assert others(table) == left
    assert [row for row in left if row in before] == [row for row in before if row[3].split(",")[0] != "(1"]  # type: ignore[attr-defined]


def test_a_row_that_leaves_while_the_new_vectors_serve_is_named_and_left_as_it_is(
    migration: Migration, table: psycopg.Connection
) -> None:
    verified(migration)
    migration.cutover()
    table.execute("UPDATE docs SET tenant = 'south' WHERE id IN (0, 3); UPDATE docs SET tenant = 'north' WHERE id = 1")
    left = others(table)
    migration.start()
    (event,) = [event for event in migration.status().events if event.what.startswith("left the part")]
    assert event.detail == {"keys": ["0", "3"]}
    assert_true(table, NEW)
    migration.rollback()
    assert others(table) == left
    assert_true(table, OLD)
    assert len(part(table)) == ROWS - 1


def test_a_row_that_is_in_both_parts_later_stops_a_switch_and_no_rollback(
    opened: Callable[[str | None], PgVectorStore], table: psycopg.Connection, tmp_path: Path
) -> None:
    table.execute("ALTER TABLE docs ADD kind text")
    table.execute("UPDATE docs SET kind = 'note' WHERE tenant = 'south'")
    north, notes = (migrated(opened(where), tmp_path) for where in ("tenant = 'north'", "kind = 'note'"))
    for each in (north, notes):
        verified(each)
    north.cutover()
    table.execute("UPDATE docs SET kind = 'note' WHERE id = 0")
    for each in (north, notes):
        each.start()
    with pytest.raises(StoreSchemaError, match="which has not ended"):
        notes.cutover()
    north.rollback()
    assert_true(table, OLD)
    table.execute("UPDATE docs SET kind = NULL WHERE id = 0")
    notes.cutover()
    assert_true(table, OLD)


def test_a_row_that_goes_from_one_part_to_the_other_has_the_vectors_of_where_it_is(
    opened: Callable[[str | None], PgVectorStore], table: psycopg.Connection, tmp_path: Path
) -> None:
    north, south = (migrated(opened(f"tenant = '{name}'"), tmp_path) for name in ("north", "south"))
    for each in (north, south):
        verified(each)
    south.cutover()
    table.execute("UPDATE docs SET tenant = 'north' WHERE id = 1; UPDATE docs SET tenant = 'south' WHERE id = 0")
    for each in (north, south):
        each.start()
    north.cutover()
    assert_true(table, NEW)
    (row,) = table.execute("SELECT embedding::real[] FROM docs WHERE id = 0").fetchone() or ([],)
    assert row == pytest.approx(NEW.truth("text 0").tolist())


def test_writes_of_others_are_not_noted(migration: Migration, table: psycopg.Connection) -> None:
    verified(migration)
    table.execute("UPDATE docs SET body = 'another' WHERE tenant = 'south'; DELETE FROM docs WHERE tenant = 'east'")
    table.execute("UPDATE docs SET after = 'first'; UPDATE docs SET tenant = 'west' WHERE tenant IS NULL")
    table.execute(INSERT, written(200, "south"))
    assert migration.store.backlog() == 0
    table.execute("UPDATE docs SET embedding = NULL WHERE id = 0; DELETE FROM docs WHERE id = 3")
    table.execute(INSERT, written(201, "north"))
    assert migration.store.backlog() == 3


def test_two_parts_of_a_table_are_migrated_at_the_same_time_and_one_after_the_other(
    opened: Callable[[str | None], PgVectorStore], table: psycopg.Connection, tmp_path: Path
) -> None:
    north, south = (migrated(opened(f"tenant = '{name}'"), tmp_path) for name in ("north", "south"))
    for each in (north, south):
        verified(each)
    north.cutover()
    table.execute("UPDATE docs SET body = 'another' WHERE id IN (0, 1)")
    for each in (north, south):
        each.start()
    south.cutover()
    north.rollback()
    assert_true(table, OLD)
    north.abort()
    south.finalize(confirmed=True)
    lengths = "SELECT DISTINCT tenant, vector_dims(embedding) FROM docs"
    assert set(table.execute(lengths)) == {("north", 8), ("south", 16), ("east", 8), (None, 8)}
    verified(north)
    north.cutover()
    north.finalize(confirmed=True)
    assert_true(table, NEW)
    assert set(table.execute(lengths)) == {("north", 16), ("south", 16), ("east", 8), (None, 8)}


@pytest.mark.parametrize("other", ["tenant <> 'south'", "id % 2 = 0", None])
def test_a_row_is_in_one_migration_at_a_time(
    opened: Callable[[str | None], PgVectorStore], migration: Migration, tmp_path: Path, other: str | None
) -> None:
    verified(migration)
    overlapping = migrated(opened(other), tmp_path)
    with pytest.raises(StoreSchemaError, match="has not ended") as refused:
        overlapping.start()
    assert migration.store.target in refused.value.what
    assert any("has not ended" in problem.message for problem in overlapping.plan().problems)
    migration.abort()
    if other is not None:
        overlapping.start()
        with pytest.raises(StoreSchemaError, match="has not ended"):
            migration.start()


def test_a_whole_table_and_a_part_of_it_are_not_migrated_at_once(
    opened: Callable[[str | None], PgVectorStore], migration: Migration, tmp_path: Path
) -> None:
    whole = migrated(opened(None), tmp_path)
    whole.start()
    with pytest.raises(StoreSchemaError, match=f"in the migration of {whole.store.target}, which has not ended"):
        migration.start()


BEGINNER = """
import sys
from pathlib import Path

from tests.migrate.doubles import TruthEncoder
from vecferry.errors import StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions
from vecferry.stores.pgvector import PgVectorStore

url, where, folder = sys.argv[1:]


def wait(store):
    print("looked", flush=True)
    sys.stdin.readline()
    return ()


with PgVectorStore.connect(url, "docs", "body", "embedding", where=where or None, embed_missing=True) as store:
    options = MigrationOptions(staging=Path(folder), min_free_gb=0, accept_unconfirmed="a test")
    try:
        Migration(store, new=TruthEncoder("new", 16), options=options).start(gate_check=wait)
        print("begun", flush=True)
    except StoreSchemaError as exc:
        print("refused" if "which has not ended" in exc.what else exc, flush=True)
"""


@pytest.mark.parametrize("other", ["id % 2 = 0", ""])
def test_of_two_processes_that_begin_with_the_same_rows_at_the_same_moment_one_does(
    table: psycopg.Connection, database_url: str, tmp_path: Path, other: str
) -> None:
    table.execute("UPDATE docs SET embedding = NULL")  # nothing to be confirmed
    with (
        Child(BEGINNER, database_url, "tenant = 'north'", tmp_path) as north,
        Child(BEGINNER, database_url, other, tmp_path) as beside,
    ):
        assert [north.hear(), beside.hear()] == ["looked", "looked"]  # and neither saw the other
        north.tell()
        beside.tell()
        assert sorted([north.hear(), beside.hear()]) == ["begun", "refused"]
    open_now = table.execute("SELECT count(*) FROM vecferry.migrations").fetchone()
    assert open_now == (1,)


def test_a_column_of_one_length_is_refused_with_what_makes_it_take_any(
    migration: Migration, table: psycopg.Connection
) -> None:
    table.execute("ALTER TABLE docs ALTER embedding TYPE vector(8)")
    table.execute("CREATE INDEX nearest ON docs USING hnsw (embedding vector_cosine_ops) WITH (m = 8)")
    with pytest.raises(StoreSchemaError, match="takes vectors of 8 numbers alone") as refused:
        migration.start()
    assert refused.value.expected in [problem.hint for problem in migration.plan().problems]
    for statement in refused.value.expected.split("; "):
        table.execute(statement)
    verified(migration)
    migration.cutover()
    assert_true(table, NEW)
    (definition,) = table.execute("SELECT pg_get_indexdef('nearest'::regclass)").fetchone() or ("",)
    assert "((embedding)::vector(8)) vector_cosine_ops) WITH (m='8')" in definition
    assert "WHERE (NOT (tenant = 'north'::text))" in definition


CAST = "CREATE INDEX {} ON docs USING hnsw ((embedding::vector(8)) vector_cosine_ops)"


@pytest.mark.parametrize("condition", ["", " WHERE tenant IN ('north', 'south')"])
def test_an_index_with_rows_of_the_part_and_of_others_is_refused_with_what_parts_it(
    migration: Migration, table: psycopg.Connection, condition: str
) -> None:
    table.execute(CAST.format("nearest") + condition)
    with pytest.raises(StoreSchemaError, match="the index nearest") as refused:
        migration.start()
    create, drop, _ = refused.value.expected.split("; ")
    table.execute(create)
    table.execute(drop)
    before = others(table)
    verified(migration)
    migration.cutover()
    assert_true(table, NEW)
    assert others(table) == before


def test_indexes_of_the_part_change_their_length_with_it_and_the_others_stay(
    migration: Migration, table: psycopg.Connection
) -> None:
    table.execute(CAST.format("of_north") + " WITH (m = 8) WHERE tenant = 'north' AND after IS NOT NULL")
    table.execute("COMMENT ON INDEX of_north IS 'for the search'")
    table.execute(CAST.format("of_south") + " WHERE tenant = 'south'")
    table.execute(CAST.format("of_any_eight") + " WHERE vector_dims(embedding) = 8")
    table.execute("CREATE INDEX embedded ON docs (body) WHERE embedding IS NOT NULL")
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'docs' ORDER BY indexname"
    before: dict[str, str] = dict(table.execute(indexes).fetchall())
    assert [index.name for index in migration.plan().table.vector_indexes] == ["of_north"]
    verified(migration)
    migration.cutover()
    after: dict[str, str] = dict(table.execute(indexes).fetchall())
    assert after == before | {"of_north": before["of_north"].replace("vector(8)", "vector(16)")}
    (comment,) = table.execute("SELECT obj_description('of_north'::regclass)").fetchone() or ("",)
    assert comment == "for the search"
    migration.rollback()
    assert dict(table.execute(indexes).fetchall()) == before
    migration.cutover()
    migration.finalize(confirmed=True)
    assert dict(table.execute(indexes).fetchall()) == after


def test_a_search_of_the_part_is_answered_by_its_own_index(
    store: PgVectorStore, migration: Migration, table: psycopg.Connection
) -> None:
    numbers = "(SELECT array_agg(sin(n * i)) FROM generate_series(1, 8) AS i)::real[]::vector"
    table.execute(f"INSERT INTO docs SELECT n, 'north', {numbers}, n FROM generate_series(300, 1500) AS n")
    table.execute(CAST.format("of_north") + " WHERE tenant = 'north'")
    table.execute("ANALYZE docs")

    def times_used() -> int:
        store.reconnect()  # so that the server has written what the session did
        query = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'of_north'"
        wait_until(lambda: table.execute(query).fetchone() != (0,))
        (times,) = table.execute(query).fetchone() or (0,)
        return int(times)

    assert store.search(OLD.truth("text 0"), 3, fingerprint=OLD.fingerprint)[0].key == ("0",)
    assert times_used() == 1


def test_the_router_sees_and_writes_the_rows_of_the_part_alone(
    store: PgVectorStore, migration: Migration, table: psycopg.Connection
) -> None:
    before = others(table)
    verified(migration)
    with Router(store, old=OLD, new=NEW) as router:
        for encoder, verb in ((OLD, migration.cutover), (NEW, migration.rollback)):
            router.put([Document(("300",), "text 300", {"tenant": "north"}), Document(("0",), "another", {})])
            hits = router.search("text 300", 100).hits
            assert {int(hit.key[0]) for hit in hits} == part(table).keys()
            assert hits[0].key == ("300",)
            for key, payload in (("1", {}), ("1", {"tenant": "north"}), ("301", {}), ("302", {"tenant": "south"})):
                with pytest.raises(StoreSchemaError, match=f"the row {key} of public.docs is not of the part"):
                    router.put([Document((key,), "of another", payload)])
            with pytest.raises(StoreSchemaError, match="the row 3 of"):
                router.put([Document(("3",), "text 3", {"tenant": "south"})])
            router.remove([("1",), ("100",)])
            assert others(table) == before
            migration.start()
            assert_true(table, encoder)
            verb()


def test_a_column_that_must_have_vectors_refuses_a_switch_that_would_leave_rows_without(
    migration: Migration, table: psycopg.Connection
) -> None:
    table.execute("UPDATE docs SET body = NULL WHERE id = 0; ALTER TABLE docs ALTER embedding SET NOT NULL")
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    before = others(table), part(table)
    with pytest.raises(StoreSchemaError, match=r"1 rows would have no vector, and .* is NOT NULL"):
        migration.cutover(accept_dead_letters=1)
    assert (others(table), part(table)) == before
    table.execute("ALTER TABLE docs ALTER embedding DROP NOT NULL")
    migration.cutover(accept_dead_letters=1)
    assert part(table)[0] is None


def test_others_read_and_write_while_the_part_is_switched(
    store: PgVectorStore, migration: Migration, table: psycopg.Connection, database_url: str
) -> None:
    verified(migration)
    with psycopg.connect(database_url) as tenant:  # a transaction that goes on all the while
        tenant.execute("UPDATE docs SET after = 'mine' WHERE id = 1")
        tenant.execute("SELECT count(*) FROM docs")

        def meanwhile() -> None:
            store.switch(Side.NEW)
            table.execute("SET lock_timeout = '2s'")
            table.execute("UPDATE docs SET after = 'theirs' WHERE tenant = 'east'")
            table.execute(INSERT, written(200, "south"))
            assert part(table)[0] == pytest.approx(OLD.truth("text 0").tolist())  # not kept yet
            raise InterruptedError

        with pytest.raises(InterruptedError):
            store.exclusively(meanwhile, Patience(5.0))
        migration.cutover()
        tenant.execute("UPDATE docs SET after = 'mine' WHERE id = 4")
    assert_true(table, NEW)


def test_a_row_that_comes_while_the_part_is_switched_keeps_its_vector_until_it_is_followed(
    table: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    class Interrupted(PgVectorStore):
        """A store in whose switches somebody else writes, after all was found to be current."""

        def switch(self, to: Side) -> None:
            table.execute(INSERT, written(300 + 3 * (to is Side.OLD), "north", OLD if to is Side.NEW else NEW))
            table.execute(
                "UPDATE docs SET body = 'text 301', embedding = %s::vector WHERE id = 0", written(301, "")[2:3]
            )
            super().switch(to)

    where = "tenant = 'north'"
    with Interrupted.connect(database_url, "docs", "body", "embedding", where=where) as store:
        migration = migrated(store, tmp_path)
        verified(migration)
        migration.cutover()
        late = part(table)
        assert late[300] == pytest.approx(OLD.truth("text 300").tolist())
        assert late[0] == pytest.approx(OLD.truth("text 301").tolist())
        assert [hit.key for hit in store.search(NEW.truth("text 3"), 1, fingerprint=NEW.fingerprint)] == [("3",)]
        migration.start()
        assert_true(table, NEW)
        migration.rollback()
        migration.start()
        assert_true(table, OLD)


def test_a_renamed_column_of_the_condition_is_named(migration: Migration, table: psycopg.Connection) -> None:
    verified(migration)
    table.execute("ALTER TABLE docs RENAME tenant TO owner")
    table.execute("UPDATE docs SET body = 'another' WHERE id = 0")
    with pytest.raises(StoreSchemaError, match="is called owner now"):
        migration.cutover()


OBJECTS = "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_namespace WHERE nspname NOT LIKE 'pg_%')"


def test_a_part_of_a_partitioned_table_is_refused_and_nothing_is_made(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, embedding vector) PARTITION BY HASH (id)")
    before = connection.execute(OBJECTS).fetchone()
    with pytest.raises(StoreSchemaError, match="docs has partitions"):
        PgVectorStore.connect(database_url, "docs", "body", "embedding", where="id > 7")
    assert connection.execute(OBJECTS).fetchone() == before


def test_the_layout_columns_is_refused_beside_a_condition(database_url: str) -> None:
    with pytest.raises(SettingsError, match="expected side-table, or none, beside") as refused:
        PgVectorStore.connect(database_url, "docs", "body", "embedding", where="id > 7", layout=Layout.COLUMNS)
    assert refused.value.name == "[store] layout"


@pytest.mark.parametrize("relation", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_of_a_part_is_refused(table: psycopg.Connection, database_url: str, relation: str) -> None:
    table.execute(f"CREATE {relation} shown AS SELECT * FROM docs WHERE tenant = 'north'")
    with pytest.raises(StoreSchemaError, match="shown is not an ordinary table"):
        PgVectorStore.connect(database_url, "shown", "body", "embedding", where="tenant = 'north'")


@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
def test_a_condition_may_read_what_the_server_generates(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, kind: str
) -> None:
    if kind == "VIRTUAL" and connection.info.server_version < 180000:
        pytest.skip("from PostgreSQL 18 on")
    connection.execute(
        "CREATE TABLE docs (id integer PRIMARY KEY, data jsonb, embedding vector, body text,"
        f" tenant text GENERATED ALWAYS AS (data ->> 'tenant') {kind})"
    )
    for number in range(6):
        text, tenant = f"text {number}", TENANTS[number % 2]
        row = [number, f'{{"tenant": "{tenant}"}}', str(OLD.truth(text).tolist()), text]
        connection.execute(INSERT, row)
    with PgVectorStore.connect(database_url, "docs", "body", "embedding", where="tenant = 'north'") as store:
        migration = migrated(store, tmp_path)
        verified(migration)
        connection.execute("""UPDATE docs SET data = '{"tenant": "north"}' WHERE id = 1""")
        migration.start()
        for verb, encoder in ((migration.cutover, NEW), (migration.rollback, OLD)):
            verb()
            assert len(part(connection)) == 4
            assert_true(connection, encoder)


def test_conditions_and_names_of_all_kinds_go_the_whole_path(
    connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    """A column that is called as rows are, one that needs quotes, a percent sign, a cast, a date and a function."""
    connection.execute("CREATE SCHEMA \"a shop\"; CREATE TYPE \"a shop\".zone AS ENUM ('in', 'out')")
    name = '"a shop"."50%% of ""docs"""'
    connection.execute(
        f'CREATE TABLE {name} (t text, "New" text, zone "a shop".zone, at timestamptz, vecferry_row text,'
        " v halfvec, body text, PRIMARY KEY (t))", []
    )  # fmt: skip
    for number in range(8):
        row = (
            str(number),
            "50% off",
            ("in", "out")[number % 2],
            "2026-01-01",
            "t.x",
            str(OLD.truth(str(number)).tolist()),
        )
        connection.execute(f"INSERT INTO {name} VALUES (%s, %s, %s, %s, %s, %s, %s)", [*row, str(number)])
    where = """ "New" LIKE '50%% off' AND zone = 'in' AND lower(vecferry_row) <> 'vecferry_row.t'
        AND at > '2020-01-01'::timestamp with time zone AND t ~ '^[0-9]+$' """
    connection.execute('SET search_path = public, "a shop"')
    url = database_url + '&options=-csearch_path%3Dpublic,"a%5C%20shop"'
    with PgVectorStore.connect(url, name.replace("%%", "%"), "body", "v", where=where) as store:
        options = MigrationOptions(staging=tmp_path, min_free_gb=0, accept_unconfirmed="half")
        migration = Migration(store, new=NEW, old=OLD, options=options)
        verified(migration)
        connection.execute(f"UPDATE {name} SET zone = 'in' WHERE t = '1'", [])
        migration.start()
        for verb, encoder in ((migration.cutover, NEW), (migration.rollback, OLD), (migration.cutover, NEW)):
            verb()
            rows = connection.execute(f"SELECT t, zone::text, v::real[] FROM {name}", []).fetchall()
            for text, zone, vector in rows:
                model = encoder if zone == "in" else OLD
                assert vector == pytest.approx(model.truth(text).tolist(), abs=1e-3)
        migration.finalize(confirmed=True)
