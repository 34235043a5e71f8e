"""Tables of PostgreSQL of shapes that are not the plainest: what is their key, and which columns the database fills."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.migrate.test_dependents import CARRIED
from tests.migrate.test_side_table import dumped
from vecferry.errors import StoreSchemaError, VecferryError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.router import Document, Router
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import Layout, Patience, Side

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
layouts = pytest.mark.parametrize("layout", list(Layout), ids=str)


def opened(url: str, layout: Layout = Layout.COLUMNS, key: str | None = None, table: str = "docs") -> PgVectorStore:
    return PgVectorStore.connect(url, table, "body", "embedding", layout=layout, key=key)


def migration_of(store: PgVectorStore, folder: Path) -> Migration:
    options = MigrationOptions(
        staging=folder, rows_per_range=7, min_free_gb=0, patience=Patience(30.0), accept_unconfirmed="a test"
    )
    return Migration(store, new=NEW, old=OLD, options=options)


def verified(migration: Migration) -> None:
    migration.start()
    report = migration.verify(override="no gate in this test")
    assert report.passed, report


def insert(connection: psycopg.Connection, count: int = 10, columns: str = "", values: str = "") -> None:
    """Insert rows with ids, texts and old vectors. columns, values: more of them, with a comma before each."""
    for number in range(1, count + 1):
        connection.execute(
            f"INSERT INTO docs (id, body, embedding{columns}) VALUES (%s, %s, %s::real[]{values})",
            [number, f"text {number}", OLD.truth(f"text {number}").tolist()],
        )


def assert_true(connection: psycopg.Connection, encoder: TruthEncoder, rows: int, table: str = "docs") -> None:
    """Assert that each row has the vector of its text."""
    stored: list[tuple[str, Any]] = connection.execute(f"SELECT body, embedding::real[] FROM {table}").fetchall()
    assert len(stored) == rows
    for text, vector in stored:
        np.testing.assert_array_equal(np.asarray(vector, np.float32), encoder.truth(text), strict=True)


# --- keys -----------------------------------------------------------------------------------------

DOCS = "CREATE TABLE docs (id integer NOT NULL, slug text NOT NULL, body text, embedding vector(8)"


@layouts
def test_a_unique_index_stands_for_a_primary_key(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout
) -> None:
    connection.execute(f"{DOCS}); CREATE UNIQUE INDEX by_slug ON docs (slug DESC) INCLUDE (body)")
    connection.execute("CREATE SEQUENCE counted")
    insert(connection, columns=", slug", values=", 'slug ' || nextval('counted')")
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        assert any("by_slug (slug)" in warning for warning in migration.plan().warnings)
        verified(migration)
        change = "UPDATE docs SET body = 'changed', embedding = %s::real[] WHERE slug = 'slug 3'"
        connection.execute(change, [OLD.truth("changed").tolist()])
        assert [change.key for change in store.captured(10)] == [("slug 3",)]
        migration.cutover()
        assert_true(connection, NEW, 10)
        connection.execute("UPDATE docs SET slug = 'another', body = 'once more' WHERE slug = 'slug 4'")
        migration.rollback()
        assert_true(connection, OLD, 10)
        migration.cutover()
        assert migration.finalize(confirmed=True).state is State.FINALIZED
    assert_true(connection, NEW, 10)


CHOSEN = {
    "the primary key": ("PRIMARY KEY (id, slug), UNIQUE (id)", None, "docs_pkey"),
    "the replica identity": (
        "UNIQUE (id), UNIQUE (slug)); ALTER TABLE docs REPLICA IDENTITY USING INDEX docs_slug_key; SELECT (1",
        None,
        "docs_slug_key",
    ),
    "fewest columns": ("UNIQUE (id, slug), UNIQUE (slug)", None, "docs_slug_key"),
    "fewest bytes": ("UNIQUE (slug), UNIQUE (id)", None, "docs_id_key"),
    "the first name": ("CONSTRAINT b UNIQUE (id)); CREATE UNIQUE INDEX a ON docs (id); SELECT (1", None, "a"),
    "a named column": ("PRIMARY KEY (id), UNIQUE (slug)", "slug", "docs_slug_key"),
    "named columns": ("PRIMARY KEY (id), UNIQUE (slug, id)", "id, slug", "docs_slug_id_key"),
    "a named index": ("PRIMARY KEY (id)); CREATE UNIQUE INDEX b ON docs (id); SELECT (1", "b", "b"),
    "the primary key by its column": (
        "PRIMARY KEY (id)); CREATE UNIQUE INDEX a ON docs (id); SELECT (1",
        "id",
        "docs_pkey",
    ),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_which_key_is_chosen(case: str, connection: psycopg.Connection, database_url: str) -> None:
    definition, named, expected = CHOSEN[case]
    connection.execute(f"{DOCS}, {definition})")
    with opened(database_url, key=named) as store:
        assert (store._session.table.key_index or "docs_pkey") == expected


REFUSED = {
    "nothing unique": ("", None, "has no primary key", "ADD PRIMARY KEY"),
    "may be NULL": ("other integer UNIQUE", None, r"docs_other_key \(other\) lets other be", "\"other\" SET NOT"),
    "deferrable": ("UNIQUE (id) DEFERRABLE", None, "is deferrable", "ADD PRIMARY KEY"),
    "partial": (") ; CREATE UNIQUE INDEX i ON docs (id) WHERE id > 1; SELECT (1", None, "is partial", "ADD PRIMARY"),
    "an expression": (") ; CREATE UNIQUE INDEX i ON docs (abs(id)); SELECT (1", None, "an expression", "ADD PRIMARY"),
    "another collation": (
        ') ; CREATE UNIQUE INDEX i ON docs (slug COLLATE "C"); SELECT (1', None, "another collation", "ADD PRIMARY"
    ),
    "an unknown name": ("PRIMARY KEY (id)", "slug", "no unique key slug", r"docs_pkey \(id\)"),
    "a name that cannot be one": ("UNIQUE (id) DEFERRABLE, PRIMARY KEY (slug)", "id", "is deferrable", "another key"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_key_is_refused_with_the_reason_and_what_to_type(
    case: str, connection: psycopg.Connection, database_url: str
) -> None:
    definition, named, reason, hint = REFUSED[case]
    statement = f"{DOCS}{definition})" if definition.startswith(")") else f"{DOCS}, {definition})"
    connection.execute(statement if definition else f"{DOCS})")
    with pytest.raises(StoreSchemaError, match=reason) as refused:
        opened(database_url, key=named)
    assert re.search(hint, refused.value.hint)


# --- columns that the database fills --------------------------------------------------------------

IDENTITY = """
CREATE TABLE docs (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text, embedding vector(8),
    number integer GENERATED ALWAYS AS IDENTITY, place integer GENERATED BY DEFAULT AS IDENTITY,
    title text, length integer GENERATED ALWAYS AS (length(body)) STORED,
    words tsvector GENERATED ALWAYS AS (to_tsvector('english', coalesce(title, '') || ' ' || body)) STORED);
CREATE INDEX by_words ON docs USING gin (words);
"""


@layouts
def test_keys_and_columns_that_the_database_makes_go_on_working(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout
) -> None:
    connection.execute(IDENTITY)
    for number in range(1, 9):
        vector = OLD.truth(f"text {number}").tolist()
        connection.execute("INSERT INTO docs (body, embedding) VALUES (%s, %s::real[])", [f"text {number}", vector])
    with opened(database_url, layout) as store:
        router, migration = Router(store, old=OLD, new=NEW), migration_of(store, tmp_path)
        router.put([Document(("3",), "apples", {"title": "fruit"}), Document(("100",), "pears", {"place": 7})])
        verified(migration)
        migration.cutover()
        router.put([Document(("4",), "plums", {"title": "fruit"}), Document(("101",), "quinces", {})])
        migration.start()
        assert_true(connection, NEW, 10)
        migration.rollback()
        assert_true(connection, OLD, 10)
        migration.cutover()
        migration.finalize(confirmed=True)
        router.close()
    query = "SELECT id, length, number FROM docs WHERE words @@ to_tsquery('english', 'fruit | quince') ORDER BY id"
    rows = connection.execute(query).fetchall()
    assert rows == [(3, 6, 3), (4, 5, 4), (101, 7, rows[2][2])]
    assert connection.execute("SELECT place FROM docs WHERE id = 100").fetchone() == (7,)


@pytest.mark.parametrize("name", ["number", "length", "words"])
def test_a_column_that_only_the_database_fills_is_refused_by_name_before_anything_is_written(
    name: str, connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(IDENTITY)
    with opened(database_url) as store:
        router = Router(store, old=OLD, new=NEW)
        documents = [Document(("1",), "apples", {}), Document(("2",), "pears", {name: 1})]
        with pytest.raises(StoreSchemaError, match=f"{name} of public.docs is filled by the database") as refused:
            router.put(documents)
        assert "leave it out" in refused.value.hint
        router.close()
    assert connection.execute("SELECT count(*) FROM docs").fetchone() == (0,)


COMPUTED = {
    "a key": "id integer PRIMARY KEY GENERATED ALWAYS AS (length(body)) STORED, body text",
    "a text": "id integer PRIMARY KEY, title text, body text GENERATED ALWAYS AS ('text ' || title) STORED",
    "a virtual text": "id integer PRIMARY KEY, title text, body text GENERATED ALWAYS AS ('text ' || title) VIRTUAL",
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_rows_whose_key_or_text_the_database_computes_are_migrated_but_not_put(
    kind: str, connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    connection.execute(f"CREATE TABLE docs ({COMPUTED[kind]}, embedding vector(8))")
    column = "body" if kind == "a key" else "id, title"
    values = "'text ' || repeat('x', i)" if kind == "a key" else "i, i::text"
    connection.execute(f"INSERT INTO docs ({column}) SELECT {values} FROM generate_series(1, 8) i")
    for (text,) in connection.execute("SELECT body FROM docs").fetchall():
        connection.execute("UPDATE docs SET embedding = %s::real[] WHERE body = %s", [OLD.truth(text).tolist(), text])
    with opened(database_url) as store:
        migration, router = migration_of(store, tmp_path), Router(store, old=OLD, new=NEW)
        verified(migration)
        migration.cutover()
        changed = "body = body || repeat('!', 50)" if kind == "a key" else "title = title || '!'"
        connection.execute(f"UPDATE docs SET {changed}")
        assert store.backlog() >= 8
        assert migration.start().backlog == 0
        assert_true(connection, NEW, 8)
        with pytest.raises(StoreSchemaError, match="is filled by the database"):
            router.put([Document(("7",), "text", {})])
        router.close()


# --- partitions -----------------------------------------------------------------------------------

PARTITIONED = """
CREATE TABLE docs (id integer NOT NULL, tenant text NOT NULL DEFAULT 'a', body text, embedding vector(8) NOT NULL,
    PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
CREATE TABLE docs_a PARTITION OF docs FOR VALUES IN ('a') PARTITION BY RANGE (id);
CREATE TABLE docs_a1 PARTITION OF docs_a FOR VALUES FROM (MINVALUE) TO (6);
CREATE TABLE docs_a2 (dropped integer, embedding vector(8) CONSTRAINT docs_embedding_not_null NOT NULL,
    body text, id integer NOT NULL, tenant text NOT NULL DEFAULT 'a');
ALTER TABLE docs_a2 DROP COLUMN dropped;
ALTER TABLE docs_a ATTACH PARTITION docs_a2 FOR VALUES FROM (6) TO (MAXVALUE);
CREATE SCHEMA other;
CREATE TABLE other.docs_b PARTITION OF docs DEFAULT;
CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops) WITH (m = 8);
CREATE INDEX only_here ON docs_a2 USING hnsw ((embedding::halfvec(8)) halfvec_l2_ops);
COMMENT ON INDEX by_cosine IS 'for the search';
COMMENT ON COLUMN docs.embedding IS 'of the body';
ALTER TABLE docs ADD CONSTRAINT long CHECK (vector_dims(embedding) > 2);
CREATE VIEW shown AS SELECT id, embedding FROM docs;
"""


@pytest.fixture
def partitioned(connection: psycopg.Connection) -> psycopg.Connection:
    """A table of two levels of partitions, one with another order of columns and an index of its own; 12 rows."""
    connection.execute(PARTITIONED)
    insert(connection, 10)
    for number in (11, 12):
        vector = OLD.truth(f"text {number}").tolist()
        query = "INSERT INTO docs (id, tenant, body, embedding) VALUES (%s, 'b', %s, %s::real[])"
        connection.execute(query, [number, f"text {number}", vector])
    return connection


def change(connection: psycopg.Connection, table: str, number: int, text: str, encoder: TruthEncoder) -> None:
    query = f"UPDATE {table} SET body = %s, embedding = %s::real[] WHERE id = %s"
    assert connection.execute(query, [text, encoder.truth(text).tolist(), number]).rowcount == 1


def index_names(connection: psycopg.Connection) -> set[tuple[str, str]]:
    return set(connection.execute("SELECT schemaname, indexname FROM pg_indexes WHERE tablename ~ '^docs'").fetchall())


@layouts
def test_a_partitioned_table_goes_the_whole_path_with_all_its_partitions(
    partitioned: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout
) -> None:
    names = index_names(partitioned)
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        plan = migration.plan()
        assert plan.problems == ()
        assert plan.table.table_bytes > plan.table.index_bytes > 0
        verified(migration)
        change(partitioned, "docs_a1", 3, "straight into a partition", OLD)
        change(partitioned, "docs", 8, "through the whole", OLD)
        partitioned.execute("UPDATE docs SET tenant = 'b' WHERE id = 9")
        partitioned.execute("DELETE FROM other.docs_b WHERE id = 11")
        keys = {change.key for change in store.captured(20)}
        assert keys == {("a", "3"), ("a", "8"), ("a", "9"), ("b", "9"), ("b", "11")}
        migration.cutover()
        assert_true(partitioned, NEW, 11)
        assert store.search(NEW.truth("through the whole"), 1, fingerprint=NEW.fingerprint)[0].key == ("a", "8")
        change(partitioned, "docs_a2", 7, "after the switch", NEW)
        migration.start()
        migration.rollback()
        assert_true(partitioned, OLD, 11)
        assert {name for name in index_names(partitioned) if "vecferry" not in name[1]} == names
        migration.cutover()
        assert migration.finalize(confirmed=True).state is State.FINALIZED
    assert_true(partitioned, NEW, 11)
    assert index_names(partitioned) == names


@layouts
@pytest.mark.parametrize("is_rolled_back", [False, True])
def test_an_abort_leaves_a_partitioned_table_as_it_was(
    partitioned: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout, *, is_rolled_back: bool
) -> None:
    for _, statement in CARRIED.values():
        partitioned.execute(statement)
    partitioned.execute(
        "GRANT SELECT (embedding) ON docs_a1 TO pg_monitor; COMMENT ON COLUMN docs_a1.embedding IS 'its'"
    )
    before = dumped(database_url)
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        verified(migration)
        if is_rolled_back:
            migration.cutover()
            assert dumped(database_url) != before
            migration.rollback()
        migration.abort()
    assert dumped(database_url) == before
    assert_true(partitioned, OLD, 12)


def test_the_vectors_may_take_the_place_of_the_old_ones_in_all_partitions(
    partitioned: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    before = dumped(database_url)
    with opened(database_url) as store:
        migration = migration_of(store, tmp_path)
        verified(migration)
        migration.cutover()
        migration.finalize(confirmed=True, in_place=True)
    assert_true(partitioned, NEW, 12)
    now = dumped(database_url).replace("vector(16)", "vector(8)").replace("halfvec(16)", "halfvec(8)")
    assert now.replace(f"\nvecferry:space:{NEW.fingerprint}", "") == before


@layouts
def test_partitions_that_come_and_go_meanwhile_are_followed(
    partitioned: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout
) -> None:
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        migration.start()
        partitioned.execute("CREATE TABLE docs_c PARTITION OF docs FOR VALUES IN ('c')")
        partitioned.execute("CREATE TABLE docs_d (LIKE docs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        for tenant, table in (("c", "docs"), ("d", "docs_d")):
            vector = OLD.truth(f"text {tenant}").tolist()
            query = f"INSERT INTO {table} (id, tenant, body, embedding) VALUES (1, %s, %s, %s::real[])"
            partitioned.execute(query, [tenant, f"text {tenant}", vector])
        partitioned.execute("ALTER TABLE docs ATTACH PARTITION docs_d FOR VALUES IN ('d')")
        partitioned.execute("ALTER TABLE docs_a DETACH PARTITION docs_a1")
        assert {("c", "1"), ("d", "1")} <= {change.key for change in store.captured(20)}
        change(partitioned, "docs_d", 1, "text of d", OLD)
        verified(migration)
        migration.cutover()
        assert_true(partitioned, NEW, 9)
        change(partitioned, "docs_c", 1, "text of c", NEW)
        partitioned.execute("DROP TABLE docs_d")
        migration.start()
        migration.rollback()
        assert_true(partitioned, OLD, 8)
        migration.cutover()
        migration.finalize(confirmed=True)
    assert_true(partitioned, NEW, 8)
    assert not [name for _, name in index_names(partitioned) if "vecferry" in name and "docs_a1" not in name]


WHOLE = "CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8)) PARTITION BY RANGE (id)"
SHAPES = {
    "a partition": (
        "CREATE TABLE whole (id integer PRIMARY KEY, body text, embedding vector(8)) PARTITION BY RANGE (id);"
        "CREATE TABLE middle PARTITION OF whole DEFAULT PARTITION BY RANGE (id);"
        "CREATE TABLE docs PARTITION OF middle DEFAULT",
        "docs is a partition of public.whole",
        "--collection public.whole",
    ),
    "a partition on another server": (
        f"CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; {WHOLE.replace('PRIMARY KEY', '')};"
        "CREATE FOREIGN TABLE far PARTITION OF docs DEFAULT SERVER s",
        "on other servers: public.far",
        "DETACH PARTITION",
    ),
    "a table that others inherit from": (
        "CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8));"
        "CREATE TABLE heir () INHERITS (docs)",
        "other tables inherit from docs: public.heir",
        "NO INHERIT docs",
    ),
    "inherited vectors": (
        "CREATE TABLE above (embedding vector(8)); CREATE TABLE docs (id int PRIMARY KEY, body text) INHERITS (above)",
        "embedding of docs is inherited",
        "NO INHERIT",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_that_cannot_be_migrated_is_refused_with_what_to_type(
    shape: str, connection: psycopg.Connection, database_url: str
) -> None:
    statements, reason, hint = SHAPES[shape]
    connection.execute(statements)
    with pytest.raises(StoreSchemaError, match=reason) as refused:
        opened(database_url)
    assert hint in refused.value.hint


@layouts
@pytest.mark.parametrize(
    ("statement", "name"),
    [
        (
            "ALTER TABLE docs_a1 ADD CONSTRAINT one CHECK (vector_dims(embedding) = 8)",
            "constraint one on public.docs_a1",
        ),
        ("CREATE VIEW part AS SELECT embedding FROM other.docs_b", "view public.part over other.docs_b"),
    ],
)
def test_what_stands_on_one_partition_alone_is_named_and_refused(
    partitioned: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout, statement: str, name: str
) -> None:
    partitioned.execute(statement)
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        assert name in [each.name for each in migration.plan().table.dependents]
        with pytest.raises(VecferryError, match=re.escape(name)):
            migration.start()


def test_writes_to_partitions_of_another_table_that_texts_are_made_of_are_captured(
    partitioned: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    partitioned.execute(
        "CREATE TABLE titles (id integer PRIMARY KEY, title text) PARTITION BY RANGE (id);"
        "CREATE TABLE titles_1 PARTITION OF titles FOR VALUES FROM (0) TO (5);"
        "CREATE TABLE titles_2 PARTITION OF titles DEFAULT;"
        "INSERT INTO titles SELECT i, 'title' FROM generate_series(1, 12) i"
    )
    text = "(SELECT title FROM titles WHERE titles.id = docs.id) || ' ' || body"
    with PgVectorStore.connect(database_url, "docs", text, "embedding") as store:
        assert [(other.name, other.parts) for other in store._session.table.others] == [("public.titles", 2)]
        migration_of(store, tmp_path).start()
        for statement in ("UPDATE titles SET title = 'x' WHERE id = 2", "UPDATE titles_2 SET title = 'x' WHERE id = 7"):
            partitioned.execute(statement)
            changes = store.captured(10, {Side.NEW})
            assert ("a", statement[-1]) in {change.key for change in changes}
            store.acknowledge(changes)
        partitioned.execute("TRUNCATE titles_1")
        keys = {change.key for change in store.captured(10, {Side.NEW})}
        assert keys >= {("a", str(number)) for number in range(1, 5)}


# --- types of the vector column -------------------------------------------------------------------

DOMAINS = {
    "of a length": "CREATE DOMAIN embedded AS vector(8) CHECK (vector_norm(VALUE) > 0)",
    "with its length in a check": "CREATE DOMAIN embedded AS vector CHECK (vector_dims(VALUE) = 8)",
}


@layouts
@pytest.mark.parametrize("kind", DOMAINS)
def test_a_domain_over_vectors_is_its_base_type_and_comes_back_with_the_old_vectors(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout, kind: str
) -> None:
    connection.execute(f"{DOMAINS[kind]}; CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding embedded)")
    insert(connection)
    before = dumped(database_url)
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        plan = migration.plan()
        assert plan.problems == ()
        (mind,) = [warning for warning in plan.warnings if "domain public.embedded" in warning]
        assert "plain vector, without CHECK" in mind
        verified(migration)
        migration.cutover()
        assert_true(connection, NEW, 10)
        query = "INSERT INTO docs (id, body, embedding) VALUES (11, 'text 11', %s::real[])"
        connection.execute(query, [NEW.truth("text 11").tolist()])
        migration.start()
        migration.rollback()
        assert_true(connection, OLD, 11)
        migration.abort()
    assert dumped(database_url) == before


@pytest.mark.parametrize("rule", ["NOT NULL", "CHECK (VALUE IS NOT NULL)"])
def test_a_domain_that_takes_no_missing_vector_is_refused(
    connection: psycopg.Connection, database_url: str, rule: str
) -> None:
    connection.execute(f"CREATE DOMAIN embedded AS vector(8) {rule}")
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding embedded)")
    with pytest.raises(StoreSchemaError, match=r"domain public\.embedded .* takes no NULL") as refused:
        opened(database_url)
    assert "ALTER DOMAIN public.embedded DROP" in refused.value.hint


def test_a_part_of_a_table_whose_vectors_are_of_a_domain_is_refused(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("CREATE DOMAIN embedded AS vector")
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding embedded)")
    with pytest.raises(StoreSchemaError, match=r"embedding is of the domain public\.embedded, and \[store\] where"):
        PgVectorStore.connect(database_url, "docs", "body", "embedding", where="id > 5")


@pytest.mark.parametrize("kind", ["real[]", "double precision[]"])
def test_an_array_is_refused_with_what_makes_vectors_of_it(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, kind: str
) -> None:
    connection.execute(f"CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding {kind})")
    insert(connection)
    with pytest.raises(StoreSchemaError, match="no search in arrays") as refused:
        opened(database_url)
    remedy = re.search(r"CREATE EXTENSION.*; ALTER TABLE .*\(8\)", refused.value.hint)
    assert remedy
    connection.execute(remedy[0])
    with opened(database_url) as store:
        migration = migration_of(store, tmp_path)
        verified(migration)
        migration.cutover()
    assert_true(connection, NEW, 10)


@layouts
def test_a_column_that_the_application_made_for_new_vectors_is_named_and_left_as_it_is(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout
) -> None:
    connection.execute(
        "CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8), embedding_v2 vector(16))"
    )
    insert(connection)
    connection.execute("UPDATE docs SET embedding_v2 = array_fill(id, ARRAY[16])::vector WHERE id < 5")
    kept = "SELECT id, embedding_v2 FROM docs ORDER BY id"
    before = connection.execute(kept).fetchall()
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        (mind,) = [warning for warning in migration.plan().warnings if "is left as it is" in warning]
        assert mind.startswith("embedding_v2 public.vector(16) is left as it is")
        verified(migration)
        migration.cutover()
        migration.finalize(confirmed=True)
    assert_true(connection, NEW, 10)
    assert connection.execute(kept).fetchall() == before
