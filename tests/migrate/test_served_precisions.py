"""One model in several precisions, in each kind of collection: what is counted, asked, written and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from vecferry.embeddings import Float32, Outputs, TextVectors
from vecferry.errors import MigrationConflict, PrecisionMismatch, SameFunction, SpaceMismatch
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.record import beginning_of
from vecferry.migrate.router import Document, Router
from vecferry.stores.group import Part, group_of
from vecferry.stores.ledger import FIRST_EPOCH, Serving
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import GroupStore, MirrorStore
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.protocol import Store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Key, Layout, Patience, Record

OLD, FP32 = TruthEncoder("old", 8), TruthEncoder("new", 16)
FP16, INT8 = FP32.in_precision("fp16", "interchangeable"), FP32.in_precision("int8", "queries only")
OTHER_RECIPE = FP32.in_precision("int8", "apart")
STRANGER = TruthEncoder("of the same size", 16)
ROWS = 6
TABLE = "CREATE TABLE docs (id integer PRIMARY KEY, tenant text, body text, embedding vector)"


@dataclass(frozen=True)
class Collection:
    """A store with `ROWS` rows, and the key of the n-th."""

    store: Store
    key: Callable[[int], Key]


def mirrored(names: list[str], key: Callable[[int], Key], folder: Path, open_files: ExitStack) -> Collection:
    ledger, backend = SqliteLedger.open(folder / "control.db"), MemoryBackend({name: [] for name in names})
    store = (
        GroupStore(group_of([Part("file-*", backend)]), ledger)
        if len(names) > 1
        else MirrorStore(backend, names[0], ledger)
    )
    open_files.enter_context(store)
    records = [Record(key(n), f"text {n}", TextVectors(OLD.truth(f"text {n}"))) for n in range(ROWS)]
    store.put(records, fingerprint=OLD.fingerprint)
    return Collection(store, key)


IN_POSTGRES = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("table", "side table", "part")]


@pytest.fixture(params=["single", "group", *IN_POSTGRES])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Collection]:
    with ExitStack() as open_files:
        if request.param == "single":
            yield mirrored(["docs"], lambda n: (str(n),), tmp_path, open_files)
        elif request.param == "group":
            names = ["file-a", "file-b"]
            yield mirrored(names, lambda n: (f"{names[n % 2]}/{n}",), tmp_path, open_files)
        else:
            connection: psycopg.Connection = request.getfixturevalue("connection")
            url: str = request.getfixturevalue("database_url")
            connection.execute(TABLE)
            for n in range(ROWS):
                vector = OLD.truth(f"text {n}").tolist()
                connection.execute("INSERT INTO docs VALUES (%s, 'north', %s, %s::real[])", [n, f"text {n}", vector])
            layout = Layout.SIDE_TABLE if request.param == "side table" else Layout.COLUMNS
            where = "tenant = 'north'" if request.param == "part" else None
            store = PgVectorStore.connect(url, "docs", "body", "embedding", layout=layout, where=where)
            yield Collection(open_files.enter_context(store), lambda n: (str(n),))


def migration_of(store: Store, folder: Path, new: TruthEncoder, serve: TruthEncoder | None = None) -> Migration:
    options = MigrationOptions(
        accept_unconfirmed="a test", old_fingerprint=OLD.fingerprint, staging=folder / "staging", min_free_gb=0,
        patience=Patience(30.0),
    )  # fmt: skip
    return Migration(store, new=new, serve=serve, old=OLD, options=options)


def served(migration: Migration) -> None:
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()


def best(router: Router, text: str) -> Key:
    return router.search(text, k=1).hits[0].key


def test_rows_of_fp16_are_followed_in_fp32_and_asked_in_all_that_the_evidence_allows(
    filled: Collection, tmp_path: Path
) -> None:
    store, key = filled.store, filled.key
    assert migration_of(store, tmp_path, FP16, FP32).start().precisions == {"fp16": ROWS}
    store.remove([key(0)])
    migration = migration_of(store, tmp_path, FP16, FP32)
    assert migration.start().precisions == {"fp16": ROWS - 1}
    served(migration_of(store, tmp_path, FP32))
    for asking in (FP32, FP16, INT8):
        with Router(store, old=OLD, new=asking, max_age_s=0) as router:
            assert [best(router, f"text {n}") for n in (1, 4)] == [key(1), key(4)]
    with Router(store, old=OLD, new=FP32, max_age_s=0) as router:
        router.put([Document(key(2), "another text")])
        assert migration.status().precisions == {"fp16": ROWS - 2, "fp32": 1}
        assert best(router, "another text") == key(2)
    with Router(store, old=OLD, new=FP16, max_age_s=0) as router:
        router.put([Document(key(2), "another text")])
        assert migration.status().precisions == {"fp16": ROWS - 1}
    with Router(store, old=OLD, new=INT8, max_age_s=0) as router, pytest.raises(PrecisionMismatch, match="queries"):
        router.put([Document(key(2), "in int8")])
    for refused in (OTHER_RECIPE, STRANGER):
        with Router(store, old=OLD, new=refused, max_age_s=0) as router, pytest.raises(SpaceMismatch):
            router.search("text 1")
    with pytest.raises(SpaceMismatch):
        store.search(INT8.truth("text 1"), 1, fingerprint=str(INT8.space.mark()))
    with pytest.raises(SpaceMismatch):
        store.put([Record(key(2), "x", TextVectors(INT8.truth("x")))], fingerprint=str(INT8.space.mark()))
    migration.start()  # what the router wrote is followed into the old side
    migration.rollback()
    with Router(store, old=OLD, new=FP32, max_age_s=0) as router:
        assert best(router, "text 4") == key(4)
    migration_of(store, tmp_path, FP32).start()  # where there is no fp16
    served(migration_of(store, tmp_path, FP32))
    migration_of(store, tmp_path, FP32).start()
    migration_of(store, tmp_path, FP32).finalize(confirmed=True)
    with Router(store, old=OLD, new=INT8, max_age_s=0) as router:
        assert best(router, "another text") == key(2)
    with pytest.raises(SameFunction, match="in fp16: none need be encoded in fp32"):
        Migration(store, new=FP32, options=MigrationOptions(staging=tmp_path / "staging")).start()


def test_no_passage_in_int8_no_other_recipe_and_no_other_model_gets_into_an_index_of_fp32(
    filled: Collection, tmp_path: Path
) -> None:
    store = filled.store
    migration_of(store, tmp_path, FP32).start()
    for refused, error in ((INT8, PrecisionMismatch), (OTHER_RECIPE, PrecisionMismatch), (STRANGER, MigrationConflict)):
        with pytest.raises(error):
            migration_of(store, tmp_path, refused).start()
    with pytest.raises(PrecisionMismatch, match="the model that serves"):
        migration_of(store, tmp_path, FP32, OTHER_RECIPE).start()
    assert migration_of(store, tmp_path, FP32, INT8).start().precisions == {"fp32": ROWS}  # writes follow in fp32


# --- the recomputed sample ------------------------------------------------------------------------


class Rounded(TruthEncoder):
    """Vectors that are a little beside those of the model, at a cosine of 0.9995."""

    def truth(self, text: str) -> Float32:
        exact, other = super().truth(text), super().truth(f"beside {text}")
        beside = other - (other @ exact) * exact
        vector = exact + 0.0316 * beside / (beside @ beside) ** 0.5
        return (vector / (vector @ vector) ** 0.5).astype(exact.dtype)


@pytest.mark.parametrize(("verified_by", "expected"), [("fp16", True), ("fp32", False)])
def test_across_precisions_the_recomputed_sample_is_held_to_the_limit_of_the_evidence(
    tmp_path: Path, verified_by: str, *, expected: bool
) -> None:
    filled, again = Rounded("new", 16).in_precision("fp16", "interchangeable"), {"fp16": FP16, "fp32": FP32}
    with ExitStack() as open_files:
        store = mirrored(["docs"], lambda n: (str(n),), tmp_path, open_files).store
        migration_of(store, tmp_path, filled).start()
        report = migration_of(store, tmp_path, again[verified_by]).verify(override="no gate in this test")
    assert 0.999 < (report.lowest_cosine or 0) < 0.9999
    assert report.passed is expected


def test_heads_that_the_rows_have_not_yet_are_another_thing_than_precision(tmp_path: Path) -> None:
    changes = {"heads": ("dense", "sparse"), "head_weights": "e" * 64}
    with_heads = TruthEncoder("new", 16)
    with_heads.space = FP32.space.model_copy(update=changes)
    options = MigrationOptions(accept_unconfirmed="a test", old_fingerprint=str(FP16.space.mark()))
    with ExitStack() as open_files:
        store = mirrored(["docs"], lambda n: (str(n),), tmp_path, open_files).store
        store.ledger.serve(store.target, Serving(FIRST_EPOCH, 1, "docs", options.old_fingerprint))
        with pytest.raises(SameFunction):
            beginning_of(store, with_heads, None, options, store.describe())
        both = replace(options, outputs=Outputs.DENSE | Outputs.SPARSE)
        assert beginning_of(store, with_heads, None, both, store.describe()).old_fingerprint == options.old_fingerprint
