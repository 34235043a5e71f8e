import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from tests.stores.backends import vector_of
from vecferry.embeddings import DENSE, Embeddings, MultiVector, Outputs, Sparse, TextVectors, indptr_of
from vecferry.encode.encoder import Role
from vecferry.errors import (
    InvalidFilter,
    InvalidText,
    MissingOption,
    SpaceMismatch,
    StoreFailed,
    StoreSchemaError,
    StoreUnreachable,
    VecferryError,
)
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.config import read_config
from vecferry.migrate.opening import open_configured_store, serving_encoders
from vecferry.migrate.router import Answer, Document, Router
from vecferry.model.artifact import DATA, Artifact
from vecferry.stores.backend import BackendHit, Point
from vecferry.stores.group import Part, group_of
from vecferry.stores.ledger import MigrationSpec, Serving
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import GroupStore, MirrorStore
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Hit, Patience, Record

TEXTS = ("red", "green", "blue")


class Shop:
    """A collection with both sides complete; the switch is made by hand."""

    def __init__(self, folder: Path, outputs: tuple[str, ...] = ("dense",)) -> None:
        self.old, self.new = TruthEncoder("old", 8), TruthEncoder("new", 16)
        self.backend = MemoryBackend({"docs": [Point(text, text, TextVectors(self.old.truth(text))) for text in TEXTS]})
        self.store = MirrorStore(self.backend, "docs", SqliteLedger.open(folder / "control.db"))
        self.outputs = outputs

    def migrate(self, *, old_is_known: bool = True) -> None:
        """Begin the migration, as far as the first switch."""
        old = self.old.fingerprint if old_is_known else None
        spec = MigrationSpec(
            target="docs",
            text_source="text",
            dimension=16,
            fingerprint=self.new.fingerprint,
            old_fingerprint=old,
            old_not_null=False,
            generation=2,
            old_locator="docs",
            new_locator="docs_vecferry_2",
            outputs=self.outputs,
        )
        self.store.ledger.install()
        self.store.ledger.create(spec, "verified")
        self.store.exclusively(lambda: self.store.prepare(16, spec.fingerprint), Patience())
        self.store.ledger.serve("docs", Serving(1, 1, "docs", old))
        self.backend.put("docs_vecferry_2", [Point(text, text, TextVectors(self.new.truth(text))) for text in TEXTS])

    def switch(self, epoch: int) -> None:
        """Switch to the new side with an even epoch, back with an odd one."""
        to_new = epoch % 2 == 0
        fingerprint = (self.new if to_new else self.old).fingerprint
        locator = "docs_vecferry_2" if to_new else "docs"

        def work() -> None:
            self.store.ledger.serve("docs", Serving(epoch, 2 if to_new else 1, locator, fingerprint))

        self.store.exclusively(work, Patience())

    def finalize(self) -> None:
        record = self.store.ledger.find("docs")
        assert record is not None
        self.store.ledger.move(record, "finalized", {})
        self.backend.drop("docs")

    def router(self, max_age_s: float = 1000.0) -> Router:
        return Router(self.store, old=self.old, new=self.new, max_age_s=max_age_s)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.store.close()


def assert_right(answer: Answer, text: str, shop: Shop, epoch: int) -> None:
    """Assert that the nearest to a text that is there is that text itself, in either space."""
    encoder = shop.new if epoch % 2 == 0 and epoch else shop.old
    assert (answer.epoch, answer.fingerprint) == (epoch, encoder.fingerprint)
    assert [hit.key for hit in answer.hits][:1] == [(text,)]
    assert answer.hits[0].score == pytest.approx(1, abs=1e-5)


# --- reading --------------------------------------------------------------------------------------


def test_a_search_among_some_rows_carries_what_is_stored_on_both_sides_of_a_switch(shop: Shop) -> None:
    shop.backend.put(
        "docs",
        [Point(t, t, TextVectors(shop.old.truth(t)), {"lang": "en" if t != "blue" else "de"}) for t in TEXTS],
    )
    with shop.router(max_age_s=0) as router:
        first = router.search("blue", where={"lang": "en"}, with_text=True)
        assert {(hit.key[0], hit.text, hit.payload) for hit in first.hits} == {
            ("red", "red", None),
            ("green", "green", None),
        }
        shop.migrate()
        new = [
            replace(point, vectors=TextVectors(shop.new.truth(point.id))) for point in shop.backend.get("docs", TEXTS)
        ]
        shop.backend.put("docs_vecferry_2", new)
        shop.switch(2)
        second = router.search("blue", 1, where={"lang": {"$ne": "en"}}, with_payload=True)
        assert (second.epoch, second.hits[0].key, second.hits[0].text) == (2, ("blue",), None)
        assert second.hits[0].payload == {"lang": "de"}
        with pytest.raises(InvalidFilter, match=r"at lang\.\$regex: one of \$eq"):
            router.search("blue", where={"lang": {"$regex": ".*"}})


def test_before_any_migration_the_old_model_answers(shop: Shop) -> None:
    with shop.router() as router:
        assert_right(router.search("red", k=2), "red", shop, epoch=0)
        assert len(router.search("red", k=2).hits) == 2
        query = router.encode_query("red")
    assert (query.epoch, query.generation, query.locator) == (0, 0, "docs")
    np.testing.assert_array_equal(query.vector, shop.old.truth("red"))
    assert shop.new.calls == 0


@pytest.mark.parametrize("old_is_known", [True, False])
def test_each_epoch_is_answered_by_its_model_and_its_index(shop: Shop, *, old_is_known: bool) -> None:
    shop.migrate(old_is_known=old_is_known)
    with shop.router(max_age_s=0) as router:
        assert_right(router.search("red"), "red", shop, epoch=1)
        for epoch, locator, encoder in ((2, "docs_vecferry_2", shop.new), (3, "docs", shop.old)):
            shop.switch(epoch)
            assert_right(router.search("blue"), "blue", shop, epoch)
            query = router.encode_query("green")
            assert (query.epoch, query.locator, query.fingerprint) == (epoch, locator, encoder.fingerprint)
            np.testing.assert_array_equal(query.vector, encoder.truth("green"))


def test_passages_are_encoded_by_the_model_that_serves_and_say_for_which_epoch(shop: Shop) -> None:
    shop.migrate()
    with shop.router(max_age_s=0) as router:
        for epoch, locator, encoder in ((1, "docs", shop.old), (2, "docs_vecferry_2", shop.new)):
            if epoch == 2:
                shop.switch(epoch)
            passages = router.encode_passages(TEXTS)
            assert (passages.epoch, passages.locator, passages.fingerprint) == (epoch, locator, encoder.fingerprint)
            np.testing.assert_array_equal(passages.vectors, np.stack([encoder.truth(text) for text in TEXTS]))


def test_an_epoch_from_before_the_switch_is_answered_rightly_until_it_is_too_old(shop: Shop) -> None:
    shop.migrate()
    with shop.router() as router:
        router.search("red")
        shop.switch(2)
        assert_right(router.search("green"), "green", shop, epoch=1)
        router._max_age_s = 0
        assert_right(router.search("green"), "green", shop, epoch=2)


def test_an_epoch_whose_index_is_gone_is_read_anew(shop: Shop) -> None:
    shop.migrate()
    with shop.router() as router:
        router.search("red")
        shop.switch(2)
        shop.finalize()
        assert_right(router.search("green"), "green", shop, epoch=2)
        assert router.encode_query("green").epoch == 2


def test_a_search_whose_index_is_dropped_as_it_reads_is_asked_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.migrate()
    with shop.router() as router:
        router.search("red", 1)

        def dropped_meanwhile(*_: object) -> list[BackendHit]:
            monkeypatch.undo()
            shop.switch(2)
            shop.finalize()
            raise StoreFailed("memory", "a file of docs is not there")

        monkeypatch.setattr(MemoryBackend, "search", dropped_meanwhile)
        assert router.search("red", 1).epoch == 2


def test_a_space_that_neither_model_has_is_refused(shop: Shop) -> None:
    shop.migrate()
    shop.store.ledger.serve("docs", Serving(2, 2, "docs", "f" * 64))
    with shop.router() as router:
        for request in (lambda: router.search("red"), lambda: router.put([Document(("x",), "x")])):
            with pytest.raises(SpaceMismatch, match="neither of the router's models") as refused:
                request()
            assert refused.value.expected == "f" * 64


def test_an_epoch_never_goes_backward(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread asks, is held up, and has its answer after another thread has seen the switch."""
    shop.migrate()
    has_read, go_on = threading.Event(), threading.Event()
    serving = SqliteLedger.serving

    def slow(ledger: SqliteLedger, target: str) -> Serving | None:
        answer = serving(ledger, target)
        if threading.current_thread().name == "slow":
            has_read.set()
            go_on.wait(10)
        return answer

    monkeypatch.setattr(SqliteLedger, "serving", slow)
    epochs = []
    with shop.router(max_age_s=0) as router:
        thread = threading.Thread(target=lambda: epochs.append(router.encode_query("red").epoch), name="slow")
        thread.start()
        has_read.wait(10)
        shop.switch(2)
        epochs.append(router.encode_query("red").epoch)
        go_on.set()
        thread.join()
        router._max_age_s = 1000
        epochs.append(router.encode_query("red").epoch)
    assert epochs == [2, 2, 2]


def test_warm_uses_both_models(shop: Shop) -> None:
    with shop.router() as router:
        router.warm()
    assert (shop.old.calls, shop.new.calls) == (1, 1)


class _Prefixed(TruthEncoder):
    """A model that tells queries from passages."""

    def encode(
        self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage", progress: object = None
    ) -> Embeddings:
        return super().encode([f"{role}: {text}" for text in texts], role=role)


def test_queries_and_passages_have_their_roles(shop: Shop) -> None:
    shop.old = _Prefixed("old", 8)
    with shop.router() as router:
        np.testing.assert_array_equal(router.encode_query("a").vector, truth("old", "query: a", 8))
        router.put([Document(("a",), "a")])
    (point,) = shop.backend.get("docs", ["a"], vectors=True)
    np.testing.assert_array_equal(vector_of(point), truth("old", "passage: a", 8))


# --- writing --------------------------------------------------------------------------------------


def test_what_is_put_is_found_and_what_is_removed_is_not(shop: Shop) -> None:
    with shop.router(max_age_s=0) as router:
        assert router.put([Document(("black",), "black", {"lang": "en"}), Document(("red",), "red 2")]).epoch == 0
        assert_right(router.search("black"), "black", shop, epoch=0)
        assert_right(router.search("red 2"), "red", shop, epoch=0)
        router.remove([("black",)])
        assert ("black",) not in [hit.key for hit in router.search("black").hits]
        assert router.put([]).epoch == 0
    (red,) = shop.backend.get("docs", ["red"])
    assert red.text == "red 2"


def test_a_write_with_an_epoch_from_before_the_switch_is_encoded_again(shop: Shop) -> None:
    shop.migrate()
    with shop.router() as router:
        router.search("red")
        shop.switch(2)
        assert router.put([Document(("black",), "black", {"year": 1})]).epoch == 2
        assert_right(router.search("black"), "black", shop, epoch=2)
    (point,) = shop.backend.get("docs_vecferry_2", ["black"], vectors=True)
    assert point.payload == {"year": 1}
    np.testing.assert_array_equal(vector_of(point), shop.new.truth("black"))
    assert shop.backend.get("docs", ["black"]) == []


def test_a_write_that_finds_another_epoch_each_time_gives_up(shop: Shop) -> None:
    shop.migrate()
    epochs = iter(range(2, 100))

    def switch(texts: object) -> None:
        shop.switch(next(epochs))

    shop.old.before_each = shop.new.before_each = switch
    with shop.router() as router, pytest.raises(SpaceMismatch):
        router.put([Document(("black",), "black")])
    assert next(epochs) == 6
    assert shop.backend.get("docs", ["black"]) + shop.backend.get("docs_vecferry_2", ["black"]) == []


def test_a_text_that_cannot_be_encoded_is_named_by_its_position(shop: Shop) -> None:
    documents = [Document(("1",), None), Document(("2",), "fine"), Document(("3",), "POISON")]
    with shop.router() as router, pytest.raises(InvalidText) as refused:
        router.put(documents)
    assert refused.value.row == 2
    assert shop.backend.count("docs") == 3


class _RecordingStore(MirrorStore):
    """A store that keeps what an application writes for the test to see."""

    written: list[Record]

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        type(self).written = list(records)


def test_a_document_without_a_text_has_no_vector(shop: Shop) -> None:
    shop.store = _RecordingStore(shop.backend, "docs", shop.store.ledger)
    with shop.router() as router:
        router.put([Document(("1",), None, {"a": 1}), Document(("2",), "two")])
        router.put([Document(("1",), None)])
    assert [(record.key, record.vectors is None) for record in _RecordingStore.written] == [(("1",), True)]
    assert shop.old.encoded == {"two": 1}


class _EveryHead(TruthEncoder):
    """The double with one token for each text."""

    def encode(
        self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage", progress: object = None
    ) -> Embeddings:
        embeddings, n = super().encode(texts, role=role), len(texts)
        ones = np.ones(n, np.float32)
        return Embeddings(
            embeddings.fingerprint,
            embeddings.num_tokens,
            embeddings.truncated,
            embeddings.dense,
            Sparse(indptr_of([1] * n), np.arange(n, dtype=np.int32), ones) if Outputs.SPARSE in outputs else None,
            MultiVector(indptr_of([1] * n), embeddings.dense) if Outputs.COLBERT in outputs else None,
        )


def test_the_heads_of_the_index_are_written_too(tmp_path: Path) -> None:
    shop = Shop(tmp_path, ("dense", "sparse", "colbert"))
    shop.old, shop.new = _EveryHead("old", 8), _EveryHead("new", 16)
    shop.migrate()
    with shop.router(max_age_s=0) as router:
        router.put([Document(("before",), "before")])
        shop.switch(2)
        router.put([Document(("first",), "first"), Document(("after",), "after")])
    (before,) = shop.backend.get("docs", ["before"], vectors=True)
    (after,) = shop.backend.get("docs_vecferry_2", ["after"], vectors=True)
    assert before.vectors is not None
    assert before.vectors.outputs == DENSE
    assert after.vectors is not None
    assert after.vectors.sparse is not None
    assert after.vectors.sparse.indices.tolist() == [1]
    np.testing.assert_array_equal(after.vectors.colbert, [shop.new.truth("after")])


# --- threads and connections ----------------------------------------------------------------------


class _Counted(MirrorStore):
    """A store that counts those that were opened and closed, and whose connection can break once."""

    opened = 0
    closed = 0
    broken = 0

    def another(self) -> "_Counted":
        type(self).opened += 1
        return super().another()

    def close(self) -> None:
        type(self).closed += 1
        super().close()

    def search(self, vector: np.ndarray, k: int, **options: Any) -> list[Hit]:
        if type(self).broken:
            raise StoreUnreachable("memory", "it went away")
        return super().search(vector, k, **options)

    def reconnect(self) -> None:
        type(self).broken -= 1


def test_each_thread_has_a_store_and_all_are_closed(shop: Shop) -> None:
    shop.store = _Counted(shop.backend, "docs", shop.store.ledger)
    _Counted.opened = _Counted.closed = 0
    everybody, all_counted = threading.Barrier(3), threading.Barrier(3)

    def search() -> None:
        for _ in range(3):
            router.search("red")
        everybody.wait(10)
        all_counted.wait(10)

    with shop.router() as router:
        threads = [threading.Thread(target=search) for _ in range(2)]
        for thread in threads:
            thread.start()
        everybody.wait(10)
        assert (_Counted.opened, _Counted.closed) == (2, 0)
        all_counted.wait(10)
        for thread in threads:
            thread.join()
        router.search("red")
        assert (_Counted.opened, _Counted.closed) == (3, 2)  # those of the threads that ended
        router.close()
    assert (_Counted.opened, _Counted.closed) == (3, 3)
    with pytest.raises(AssertionError, match="closed"):
        router.search("red")


def test_a_connection_that_was_lost_is_made_anew_once(shop: Shop) -> None:
    shop.store = _Counted(shop.backend, "docs", shop.store.ledger)
    with shop.router() as router:
        _Counted.broken = 1
        assert_right(router.search("red"), "red", shop, epoch=0)
        _Counted.broken = 2
        with pytest.raises(StoreUnreachable):
            router.search("red")
        assert_right(router.search("red"), "red", shop, epoch=0)


def test_no_answer_mixes_two_spaces_while_the_epochs_change(shop: Shop) -> None:
    shop.migrate()
    wrong: list[object] = []
    epochs: set[int] = set()
    done = threading.Event()

    def repeat(request: Callable[[], int]) -> None:
        last = 0
        while not done.is_set():
            try:
                epoch = request()
            except (VecferryError, AssertionError) as exc:
                wrong.append(exc)
                return
            if epoch < last:
                wrong.append((last, epoch))
            last = epoch
            epochs.add(epoch)

    def search() -> int:
        answer = router.search("green", k=1)
        assert_right(answer, "green", shop, answer.epoch)
        return answer.epoch

    with shop.router(max_age_s=0.005) as router:
        threads = [threading.Thread(target=repeat, args=(search,)) for _ in range(2)]
        threads.append(threading.Thread(target=repeat, args=(lambda: router.put([Document(("x",), "x")]).epoch,)))
        for thread in threads:
            thread.start()
        for epoch in range(2, 12):
            shop.switch(epoch)
            threading.Event().wait(0.03)
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(epochs) > 5


# --- by a migration's file ------------------------------------------------------------------------


def test_a_file_opens_the_store_and_each_model_when_it_is_first_needed(
    tiny_artifact: Artifact, wide_artifact: Artifact, tmp_path: Path
) -> None:
    texts = [f"text number {number}" for number in range(8)]
    for name, artifact in (("old", tiny_artifact), ("new", wide_artifact)):
        shutil.copytree(artifact.path, tmp_path / name)
    config = tmp_path / "migration.toml"
    config.write_text(
        '[store]\nurl = "lancedb:data"\ncollection = "docs"\ncontrol = "control.db"\n'
        '[models]\nold = "old"\nnew = "new"\n'
    )
    vector = pa.list_(pa.float32(), tiny_artifact.manifest.space.dimension)
    schema = pa.schema({"id": pa.string(), "text": pa.string(), "embedding": vector})
    lancedb.connect(tmp_path / "data").create_table("docs", schema=schema)
    weights = (tmp_path / "new" / DATA).rename(tmp_path / "away")
    with Router.from_config(config, max_age_s=0) as router:
        assert router.put([Document((text,), text) for text in texts]).epoch == 0
        assert router.search(texts[3], 1).hits[0].key == (texts[3],)
        weights.rename(tmp_path / "new" / DATA)
        target = read_config(config)
        with closing(open_configured_store(target)) as store:
            old, new = serving_encoders(target)
            options = MigrationOptions(accept_unconfirmed="a test", staging=tmp_path / "staged", min_free_gb=0.0)
            migration = Migration(store, new=new, old=old, options=options)
            migration.start()
            assert migration.verify(override="no gate in this test").passed
            migration.cutover()
            assert router.search(texts[5], 1).fingerprint == wide_artifact.fingerprint
            migration.finalize(confirmed=True)
    shutil.rmtree(tmp_path / "old")
    with Router.from_config(str(config)) as router:
        answer = router.search(texts[5], 1)
        assert (answer.hits[0].key, answer.fingerprint) == ((texts[5],), wide_artifact.fingerprint)
    with pytest.raises(AssertionError, match="closed"):
        router.search(texts[5])


def test_the_environment_says_the_url_that_a_file_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "migration.toml"
    config.write_text('[store]\ncollection = "docs"\n[models]\nold = "old"\nnew = "new"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VECFERRY_STORE_URL", raising=False)
    with pytest.raises(MissingOption, match=r"the URL of the store.*VECFERRY_STORE_URL"):
        Router.from_config(config)
    monkeypatch.setenv("VECFERRY_STORE_URL", "lancedb:nowhere")
    with pytest.raises(StoreUnreachable, match="nowhere"):
        Router.from_config(config)
    config.write_text('[store]\ncollection = "docs"\n[models]\nnew = "new"\n')
    with pytest.raises(MissingOption, match=r"\[models\] old"):
        Router.from_config(config)


def test_a_router_of_a_file_closes_what_it_has_opened(shop: Shop) -> None:
    """A router that was given its store leaves it open."""
    shop.store = _Counted(shop.backend, "docs", shop.store.ledger)
    _Counted.opened = _Counted.closed = 0
    router = shop.router()
    router._owned = shop.store
    router.search("red")
    router.close()
    router.close()
    assert (_Counted.opened, _Counted.closed) == (1, 2)


# --- on PostgreSQL --------------------------------------------------------------------------------


def test_a_table_is_followed_through_a_migration_and_a_lost_connection(
    connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    old, new = TruthEncoder("old", 8), TruthEncoder("new", 16)
    connection.execute("CREATE TABLE docs (id text PRIMARY KEY, body text, embedding vector(8), year integer)")
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        router = Router(store, old=old, new=new, max_age_s=0)
        migration = Migration(
            store, new=new, old=old, options=MigrationOptions(accept_unconfirmed="a test", staging=tmp_path)
        )
        with router:
            assert router.put([Document((text,), text, {"year": 1}) for text in TEXTS]).epoch == 0
            assert router.search("red").hits[0].key == ("red",)
            migration.start()
            assert migration.verify(override="no gate in this test").passed
            router._max_age_s = 1000
            before = router.search("green")
            migration.cutover()
            router.put([Document(("black",), "black")])
            after = router.search("black")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            assert router.search("black") == after
        assert (before.fingerprint, before.hits[0].key, before.epoch) == (old.fingerprint, ("green",), 0)
        assert (after.fingerprint, after.hits[0].key, after.epoch) == (new.fingerprint, ("black",), 2)
        assert connection.execute("SELECT year FROM docs WHERE id = 'red'").fetchone() == (1,)


# --- one collection of a group --------------------------------------------------------------------


def test_a_router_within_one_collection_of_a_group_goes_by_its_own_keys_and_the_epoch_of_all(tmp_path: Path) -> None:
    old, new = TruthEncoder("old", 8), TruthEncoder("new", 16)
    members = {
        name: [Point(text, text, TextVectors(old.truth(text))) for text in TEXTS] for name in ("file-a", "file-b")
    }
    ledger = SqliteLedger.open(tmp_path / "control.db")
    options = MigrationOptions(accept_unconfirmed="a test", staging=tmp_path / "staging", min_free_gb=0)
    with (
        GroupStore(group_of([Part("file-*", MemoryBackend(members))]), ledger) as store,
        Router(store, old=old, new=new, max_age_s=0) as router,
    ):
        inside, made = router.within("file-b"), router.within("file-c")
        inside.put([Document(("4",), "only here")])
        assert [hit.key for hit in inside.search("only here", 1).hits] == [("4",)]
        inside.put([Document(("5",), "dated", {"year": 2020})])
        (hit,) = inside.search("only here", where={"year": {"$gte": 2020}}, with_text=True, with_payload=True).hits
        assert (hit.key, hit.text, hit.payload) == (("5",), "dated", {"year": 2020})
        inside.remove([("5",)])
        assert router.within("file-a").get([("4",)]) == []
        migration = Migration(store, new=new, old=old, options=options)
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        answer = inside.search("only here", 1)
        assert (answer.epoch, answer.fingerprint) == (2, new.fingerprint)
        assert [hit.key for hit in answer.hits] == [("4",)]
        assert [hit.key for hit in router.search("only here", 1).hits] == [("file-b/4",)]
        assert inside.encode_query("red").locator == "file-b_vecferry_2"
        assert inside.encode_passages(["red"]).locator == "file-b_vecferry_2"
        made.put([Document(("1",), "in a new one")])
        assert [row.text for row in made.get([("1",)])] == ["in a new one"]
        inside.remove([("4",)])
        assert inside.get([("4",), ("red",)]) == router.within("file-b").get([("red",)])
        with pytest.raises(StoreSchemaError, match="no collection of file-"):
            router.within("notes")


def test_one_collection_has_no_router_within(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with Router(shop.store, old=shop.old, new=shop.new) as router, pytest.raises(StoreSchemaError, match="is one"):
        router.within("docs")
