"""kill -9 at named points of a migration; then the same commands again, and every row is there once, and true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.migrate.crashing import ABANDONED_AFTER_S, NEW_DIMENSION, OLD_DIMENSION, ROWS_PER_RANGE, TEXTS, WRITES
from tests.migrate.doubles import TruthEncoder, truth
from tests.migrate.faults import Mother, mother
from tests.migrate.file_backend import FileBackend
from tests.quick import params
from tests.stores import backends
from tests.stores.backends_chroma import shared_server
from tests.stores.collections import CONDITIONS, LAYOUTS, PARTITIONED, TENANT, PgCollection, old_vector
from tests.stores.groups import PREFIX, divided, spread_over
from vecferry.embeddings import Float32, TextVectors
from vecferry.migrate.states import State
from vecferry.stores.mirror import GroupStore, MirrorStore
from vecferry.stores.opening import open_backend
from vecferry.stores.protocol import Store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Layout, Record

__all__ = ["mother"]

Rows = dict[str, tuple[str, Float32 | None]]

POINTS = (
    "before prepare", "after prepare", "after move prepared", "after start_capture", "after move capturing",
    "after add_ranges", "after move backfilling", "in encode new 2", "before keep 2", "after keep 2",
    "before write new", "in write new 2", "after write new 3", "after add_dead_letters", "after close_range",
    "after move indexing", "before build_indexes", "after build_indexes", "after move catching_up",
    "after application put", "before apply_deletes 2", "before acknowledge", "after acknowledge",
    "after keep_verification", "after move verified", "after move ready", "after move cutting_over",
    "before switch new", "after switch new", "after serve 2", "after move serving_new", "before write old",
    "in write old", "after acknowledge 2", "after move rolling_back", "after switch old", "after serve 3",
    "after move serving_old", "before switch new 2", "after move serving_new 2", "after stop_capture", "after drop old",
    "after move finalized",
)  # fmt: skip
FILE_POINTS = (
    "after prepare", "after start_capture", "after add_ranges", "after keep 2", "before write new", "in write new 2",
    "after add_dead_letters", "after close_range", "after move indexing", "after application put",
    "before application remove", "before apply_deletes 2", "after apply_deletes 2", "before acknowledge",
    "after keep_verification", "after move cutting_over", "after switch new", "after serve 2", "after move serving_new",
    "in write old", "after acknowledge 2", "after switch old", "after move serving_old", "after stop_capture",
    "after drop old", "after move finalized",
)  # fmt: skip
"""Where the store and the ledger are two."""
BACKEND_POINTS = (
    "after backend create", "before backend put 2", "in backend put 6", "after backend put 2",
    "after backend delete", "before application backend put", "after application backend put",
    "after application backend delete", "before backend drop", "after backend drop", "before backend rename",
    "after backend rename",
)  # fmt: skip
"""Inside the calls above."""
SWITCH_POINTS = (
    "after move cutting_over", "after switch new", "after move serving_new", "after switch old", "before drop old",
    "after drop old",
)  # fmt: skip
CHAIN = (
    "after prepare", "after move prepared", "after start_capture", "after move capturing", "after key_ranges",
    "after add_ranges", "after move backfilling", "in encode new", "after keep", "in write new", "after close_range",
    "after move indexing", "after build_indexes", "after move catching_up", "after application put",
    "after apply_deletes", "before check_integrity", "after keep_verification", "after move ready",
    "after move cutting_over", "after switch new", "after move serving_new", "in write old", "after switch old",
    "after move serving_old", "before switch new", "after stop_capture", "after drop old", "after move finalized",
)  # fmt: skip
"""One after the other."""
CASES = [(name, point) for name in LAYOUTS for point in POINTS] + [
    ("file", point) for point in FILE_POINTS + BACKEND_POINTS
]
IN_CHAIN = {(name, point) for name in LAYOUTS for point in CHAIN}
"""Cases in which `make test` kills as a link of the chain; alone they are for `make test-slow`."""
BACKENDS = ("lancedb", "chroma-server", "qdrant", "milvus", "faiss", "sqlite-vec")
COMMON_POINTS = ("in write new 2",)
FURTHER_POINTS = (
    "after prepare", "after switch new", "before backend put 2", "after backend delete",
    "after application backend put", "before switch new", "in write old", "after backend drop",
)  # fmt: skip
"""On every store that outlives its process; the further ones by `make test-slow`."""
TAKEN_OVER = {
    "lancedb": "after backend rename", "chroma-server": "after backend rename",
    "qdrant": "after backend point_alias", "milvus": "after backend point_alias",
    "faiss": "after backend rename", "sqlite-vec": "after backend rename",
}  # fmt: skip
ABORT_POINTS = ("before stop_capture", "after stop_capture", "after drop new", "after move aborted")


SIDES = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename ~ '^sides_'"


@dataclass(frozen=True)
class World:
    """A collection as its application filled it, and how to look at all that is in it."""

    name: str
    where: str
    folder: Path
    store: Store
    connection: psycopg.Connection | None = None
    tolerance: float = 0.0

    @property
    def job(self) -> dict[str, Any]:
        return {"store": self.name, "where": self.where, "folder": self.folder}

    def serving(self) -> Rows:
        return self._rows(self._names()[0])

    def other(self) -> Rows:
        return self._rows(self._names()[1])

    def is_ending(self) -> bool:
        """Say whether a `finalize` was killed in the middle: of a group, some have no other side any more."""
        return isinstance(self.store, MirrorStore) and self.store._sides.is_half_finalized(self.store._sides.now())

    def _names(self) -> tuple[str, ...]:
        """Return the columns or collections with vectors: the one that serves is first."""
        if self.connection is not None:
            query = (
                "SELECT DISTINCT attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
                " WHERE (relname = 'docs' OR relname ~ '^sides_') AND relkind IN ('r', 'p') AND NOT attisdropped"
                " AND attname ~ '^embedding(_vecferry_(old|new))?$' ORDER BY 1"
            )
            return tuple(name for (name,) in self.connection.execute(query))
        assert isinstance(self.store, MirrorStore)
        serving, record = self.store.ledger.serving("docs"), self.store.ledger.find("docs")
        first = serving.locator if serving else "docs"
        names = {first, record.spec.old_locator, record.spec.new_locator} if record else {first}
        existing = [name for name in names if self.store._sides.ending.is_collection(name)]
        return tuple(sorted(existing, key=lambda name: name != first))

    def _rows(self, name: str) -> Rows:
        if self.connection is not None:
            query = f"SELECT id::text, body, docs.{name}::real[] FROM docs"
            if LAYOUTS[self.name] is Layout.SIDE_TABLE and name != "embedding":
                (side_table,) = self.connection.execute(SIDES).fetchone() or ("",)
                query = f"SELECT id::text, body, s.{name}::real[] FROM docs LEFT JOIN {side_table} AS s ON key_1 = id"
            rows = self.connection.execute(query + " WHERE id > -1000").fetchall()
            assert len(rows) == len({key for key, *_ in rows})
            return {key: (text, None if v is None else np.asarray(v, np.float32)) for key, text, v in rows}
        assert isinstance(self.store, MirrorStore)
        ids = list(self.store._backend.ids(name))
        assert len(ids) == len(set(ids))
        points = self.store._backend.get(name, ids, vectors=True)
        return {p.id: (p.text or "", None if p.vectors is None else p.vectors.dense) for p in points}

    def leftovers(self) -> list[str]:
        """Return what a migration made and should have taken away in the end."""
        if self.connection is None:
            return list(self._names()[1:])
        rows = self.connection.execute(
            "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal UNION SELECT proname FROM pg_proc"
            " WHERE pronamespace = 'vecferry'::regnamespace UNION SELECT indexname FROM pg_indexes"
            " WHERE tablename = 'docs' AND indexname ~ 'vecferry' UNION SELECT attname FROM pg_attribute"
            " WHERE attrelid = 'docs'::regclass AND attname ~ 'vecferry' AND NOT attisdropped"
            f" UNION SELECT key FROM vecferry.changes UNION {SIDES}"
        )
        stands = [name for (name,) in self.connection.execute(STANDS)]
        assert stands == ["by_cosine", "by_half", "comment", "directed", "shown"]
        return [name for (name,) in rows]


STANDING = (
    "CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops)",
    f"CREATE INDEX by_half ON docs USING hnsw ((embedding::halfvec({OLD_DIMENSION})) halfvec_l2_ops) WHERE id > 5",
    "ALTER TABLE docs ADD CONSTRAINT directed CHECK (vector_norm(embedding) > 0)",
    "CREATE VIEW shown AS SELECT id, embedding FROM docs",
    "COMMENT ON COLUMN docs.embedding IS 'of the body'",
)
"""What stands on the vectors, and goes with their name through every switch."""
STANDING_ON_PART = (
    f"CREATE INDEX by_cosine ON docs USING hnsw ((embedding::vector({OLD_DIMENSION})) vector_cosine_ops)"
    f" WHERE tenant = '{TENANT}'",
    f"{STANDING[1]} AND tenant = '{TENANT}'",
    *STANDING[2:],
)
STANDS = """
SELECT indexname FROM pg_indexes WHERE tablename = 'docs' AND indexdef ~ '[( ]embedding[): ]'
UNION ALL SELECT conname FROM pg_constraint
    WHERE conrelid = 'docs'::regclass AND pg_get_constraintdef(oid) ~ '[(]embedding[)]'
UNION ALL SELECT 'shown' FROM pg_views WHERE viewname = 'shown' AND definition ~ '[ .]embedding[\\n; ]'
UNION ALL SELECT 'comment' FROM pg_attribute a WHERE attrelid = 'docs'::regclass AND attname = 'embedding'
    AND col_description(attrelid, attnum) ~ 'of the body'
ORDER BY 1
"""


@contextmanager
def world_of_rows(connection: psycopg.Connection, url: str, folder: Path, name: str = "pgvector") -> Iterator[World]:
    where, is_partitioned = CONDITIONS.get(name), name in PARTITIONED
    collection = PgCollection(
        connection, url, LAYOUTS[name], embed_missing=True, where=where, is_partitioned=is_partitioned
    )
    for statement in STANDING if where is None else STANDING_ON_PART:
        connection.execute(statement)
    with collection.store:
        yield World(name, url, folder, collection.store, connection)
    assert where is None or collection.other_rows() == collection.others


@contextmanager
def world_of_points(name: str, folder: Path) -> Iterator[World]:
    ledger = SqliteLedger.open(folder / "control.db", abandoned_after_s=ABANDONED_AFTER_S)
    kind = name.removeprefix(PREFIX)
    where = made(kind, folder / "store")
    backend: Any = FileBackend(Path(where)) if kind == "file" else backends.AtNeed(where)
    if kind not in {"file", *backends.ONE_PROCESS}:
        backend = open_backend(where, backends.fields(where))
    tolerance = 1e-6 if kind in backends.NORMALIZING else 0.0
    is_group = kind != name
    with closing(backend), _store_of(backend, ledger, is_group=is_group) as store:
        yield World(name, where, folder, store, tolerance=tolerance)


def _store_of(backend: Any, ledger: SqliteLedger, *, is_group: bool) -> MirrorStore:
    return GroupStore(spread_over(divided(backend)), ledger) if is_group else MirrorStore(backend, "docs", ledger)


def made(name: str, folder: Path) -> str:
    """Make an empty collection `docs`; return the store's URL, or for `file` the folder."""
    if name == "file":
        FileBackend(folder).create("docs", dimension=OLD_DIMENSION)
        return str(folder)
    with backends.opened(name, folder):
        pass
    urls: dict[str, Callable[[], str]] = {
        "chroma-server": shared_server,
        "milvus": lambda: f"milvus://{folder}/docs.db",
        "sqlite-vec": lambda: f"sqlite://{folder}/docs.sqlite",
    }
    return urls.get(name, lambda: f"{name}://{folder}")()


def fill(world: World, texts: Mapping[str, str]) -> World:
    records = [Record((key,), text, TextVectors(old_vector(text))) for key, text in texts.items()]
    world.store.put(records, fingerprint=TruthEncoder("old", OLD_DIMENSION).fingerprint)
    return world


@pytest.fixture(params=[*LAYOUTS, "file"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Yield an empty world."""
    if request.param in LAYOUTS:
        connection, url = map(request.getfixturevalue, ("connection", "database_url"))
        with world_of_rows(connection, url, tmp_path, request.param) as made:
            yield made
    else:
        with world_of_points(request.param, tmp_path) as made:
            yield made


def texts_after(num_writes: int) -> dict[str, str]:
    texts: dict[str, str | None] = dict(TEXTS)
    for writes in WRITES[:num_writes]:
        texts |= writes
    return {key: text for key, text in texts.items() if text is not None}


def assert_true(
    rows: Rows, texts: dict[str, str], model: str, *, rows_outlive_vectors: bool = True, tolerance: float = 0.0
) -> None:
    """Assert exactly these rows, each with the model's vector of its text; a poisoned one has none of the new.

    tolerance: zero, but where the store brings vectors to length 1 again.
    """
    dimension = NEW_DIMENSION if model == "new" else OLD_DIMENSION
    dead = {key for key, text in texts.items() if model == "new" and text == "POISON"}
    assert {key: text for key, (text, _) in rows.items()} == {
        key: text for key, text in texts.items() if rows_outlive_vectors or key not in dead
    }
    for key, (text, vector) in rows.items():
        if key in dead:
            assert vector is None
        else:
            assert vector is not None, key
            np.testing.assert_allclose(vector, truth(model, text, dimension), rtol=0, atol=tolerance, err_msg=key)


def assert_complete(world: World) -> None:
    record = world.store.ledger.find(world.store.target)
    serving = world.store.ledger.serving(world.store.target)
    assert record is not None
    assert record.state == State.FINALIZED
    assert serving is not None
    assert (serving.epoch, serving.fingerprint) == (4, TruthEncoder().fingerprint)
    assert_sides(world, "new")
    assert world.leftovers() == []
    assert list((world.folder / "staging").rglob("*.parquet")) == []


def assert_sides(world: World, serving: str, other: str | None = None) -> None:
    """Check both sides after all writes, by the names of the models."""
    keeps, tolerance = world.store.traits.rows_outlive_vectors, world.tolerance
    assert_true(world.serving(), texts_after(3), serving, rows_outlive_vectors=keeps, tolerance=tolerance)
    if other is not None:
        assert_true(world.other(), texts_after(3), other, tolerance=tolerance)


def complete(world: World, mother: Mother) -> None:
    """Complete the migration: both sides are true before the old one is dropped, and the new one after it."""
    assert mother.run(do="migrate", until="finalize", **world.job) == "done"
    if len(world._names()) == 2:  # it was not killed in `finalize`
        assert_sides(world, "new", "old")
    assert mother.run(do="migrate", **world.job) == "done"
    assert_complete(world)


def assert_killed_and_completed(point: str, world: World, mother: Mother) -> None:
    fill(world, TEXTS)
    assert mother.run(do="migrate", point=point, **world.job) == "killed"
    complete(world, mother)


@pytest.mark.parametrize(
    ("world", "point"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case in IN_CHAIN else []) for case in CASES],
    indirect=["world"],
)
def test_killed_at_a_point_and_run_again_every_row_is_there_once_and_true(
    world: World, point: str, mother: Mother
) -> None:
    assert_killed_and_completed(point, world, mother)


@pytest.mark.parametrize("point", COMMON_POINTS)
@pytest.mark.parametrize("name", params(BACKENDS, slow=set(BACKENDS) - {"lancedb"}))
def test_killed_at_a_point_in_each_store(name: str, point: str, mother: Mother, tmp_path: Path) -> None:
    with world_of_points(name, tmp_path) as world:
        assert_killed_and_completed(point, world, mother)


@pytest.mark.parametrize("name", params(TAKEN_OVER, slow=set(TAKEN_OVER) - {"qdrant"}))
def test_killed_once_the_old_name_stands_for_the_new_collection(name: str, mother: Mother, tmp_path: Path) -> None:
    with world_of_points(name, tmp_path) as world:
        assert_killed_and_completed(TAKEN_OVER[name], world, mother)


@pytest.mark.slow
@pytest.mark.parametrize("point", FURTHER_POINTS)
@pytest.mark.parametrize("name", BACKENDS)
def test_killed_at_a_further_point_in_each_store(name: str, point: str, mother: Mother, tmp_path: Path) -> None:
    with world_of_points(name, tmp_path) as world:
        assert_killed_and_completed(point, world, mother)


@pytest.mark.parametrize("point", SWITCH_POINTS)
def test_after_a_switch_was_killed_start_takes_up_what_is_there(point: str, world: World, mother: Mother) -> None:
    fill(world, TEXTS)
    assert mother.run(do="migrate", point=point, **world.job) == "killed"
    assert mother.run(do="start_again", **world.job) == "done"
    complete(world, mother)


@pytest.mark.parametrize("world", [*LAYOUTS, pytest.param("file", marks=pytest.mark.slow)], indirect=True)
def test_killed_at_one_point_after_the_other(world: World, mother: Mother) -> None:
    fill(world, TEXTS)
    for point in CHAIN:
        assert mother.run(do="migrate", point=point, **world.job) == "killed", point
    assert mother.run(do="migrate", **world.job) == "done"
    assert_complete(world)


@pytest.mark.parametrize("point", ABORT_POINTS)
def test_an_abort_that_was_killed_leaves_the_collection_as_it_was(point: str, world: World, mother: Mother) -> None:
    fill(world, TEXTS)
    assert mother.run(do="give_up", point=point, **world.job) == "killed"
    assert mother.run(do="give_up", **world.job) == "done"
    assert world.store.ledger.find(world.store.target) is None
    assert world.leftovers() == []
    assert_true(world.serving(), texts_after(2), "old")


def test_what_a_kill_repeats_is_one_range_at_most(world: World, mother: Mother) -> None:
    fill(world, {str(i): f"text {i}" for i in range(100)})
    points = (
        "in encode new 3",
        "after keep 4",
        "in write new 3",
        "in encode new 2",
        "after write new 3",
        "in encode new",
    )
    for point in points:
        assert mother.run(do="migrate", until="first writes", point=point, **world.job) == "killed"
    assert mother.run(do="migrate", until="first writes", **world.job) == "done"
    lines = (world.folder / "encoded").read_text().splitlines()
    encoded = Counter(line for line in lines if line.startswith("new: "))  # the old model looks at a sample
    assert len(encoded) == 100
    assert encoded.total() <= 100 + ROWS_PER_RANGE * len(points)
