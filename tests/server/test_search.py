"""A server that follows a migration: /search and what /v1/m3 says of it, before the switch, after it, and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import lancedb
import numpy as np
import pyarrow as pa
import pytest

from tests.server.conftest import serving
from tests.server.inside import inside
from tests.waiting import wait_until
from vecferry.cli.migrate_target import Target
from vecferry.embeddings import TextVectors
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, Loaded, load_encoder
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.errors import SettingsError, StoreUnreachable
from vecferry.migrate import Migration
from vecferry.migrate.config import read_config
from vecferry.migrate.router import Router
from vecferry.model.artifact import Artifact
from vecferry.model.tokens import open_tokenizer
from vecferry.server.app import create_app
from vecferry.server.models import Served, ServedModels
from vecferry.server.options import ServerLimits, ServerOptions
from vecferry.server.service import Service
from vecferry.stores.backend import Point
from vecferry.stores.ledger import Serving
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.sqlite import SqliteLedger

TEXTS = [f"text number {number} of {number % 7}" for number in range(40)]
NEAREST = 5


@dataclass
class Shop:
    """A server over a collection of 40 texts in a folder, and the collection's migration from tiny to wide."""

    http: httpx2.Client
    migration: Migration
    old: Encoder
    new: Encoder

    def search(self, query: str, **more: Any) -> httpx2.Response:
        return self.http.post("/search", json={"query": query} | more)

    def serving(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.post("/v1/m3", json={"inputs": "a"}).json()["serving"]
        return answer


@pytest.fixture(scope="module")
def shop(
    tiny_artifact: Artifact, wide_artifact: Artifact, library: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    tmp_path = tmp_path_factory.mktemp("shop")
    new = load_encoder(EncoderOptions(artifact=wide_artifact.path)).encoder
    table = pa.table({
        "id": [f"d{number}" for number in range(len(TEXTS))],
        "text": TEXTS,
        "lang": ["en" if number % 2 else "de" for number in range(len(TEXTS))],
        "secret": [f"secret {number}" for number in range(len(TEXTS))],
        "embedding": pa.FixedSizeListArray.from_arrays(library.encode(TEXTS).dense.ravel(), library.dimension),
    })  # fmt: skip
    lancedb.connect(tmp_path / "data").create_table("docs", table)
    config = tmp_path / "migration.toml"
    config.write_text(
        '[store]\nurl = "lancedb:data"\ncollection = "docs"\ncontrol = "control.db"\n'
        f'[models]\nold = "{tiny_artifact.path}"\nnew = "{wide_artifact.path}"\n'
        '[limits]\nstaging = "staged"\nmin_free_gb = 0.0\n'
        "[thresholds]\nduplicate = 0.9\n"
    )
    target = Target(read_config(config))
    store = target.open_store()
    try:
        with (
            serving("--config", str(config), "--search-field=text", "--search-field=lang") as server,
            httpx2.Client(base_url=server.url, timeout=60) as http,
        ):
            yield Shop(http, Migration(store, new=new, old=library, options=target.config.options), library, new)
    finally:
        store.close()


def assert_searched_by(shop: Shop, encoder: Encoder, model: str, *, epoch: int) -> None:
    """Assert that rows and cosines are those of the model's own vectors of query and texts."""
    query = "what is number 7?"
    answer = shop.search(query, k=NEAREST).json()
    scores = encoder.encode(TEXTS).dense @ encoder.encode([query], role="query").dense[0]
    assert (answer["epoch"], answer["fingerprint"], answer["model"]) == (epoch, encoder.fingerprint, model)
    assert answer["thresholds"] == ({"duplicate": 0.9} if epoch % 2 else {})
    assert [set(hit) for hit in answer["hits"]] == [{"key", "score"}] * NEAREST
    rows = [int(hit["key"][0].removeprefix("d")) for hit in answer["hits"]]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], scores[rows], atol=1e-5)  # the store's float32
    np.testing.assert_allclose(scores[rows], np.sort(scores)[::-1][:NEAREST], atol=1e-5)
    some = shop.search(query, k=NEAREST, where={"lang": "en"}, with_text=True, with_payload=True).json()["hits"]
    rows = [int(hit["key"][0].removeprefix("d")) for hit in some]
    assert [(hit["text"], hit["payload"]) for hit in some] == [(TEXTS[row], {"lang": "en"}) for row in rows]
    np.testing.assert_allclose(scores[rows], np.sort(scores[1::2])[::-1][:NEAREST], atol=1e-5)


def assert_named_by_what_serves(shop: Shop, encoder: Encoder, *, epoch: int) -> None:
    """Assert that the model name `serving` gives that model's vectors, on each interface, and says the epoch."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/embeddings", {"model": "serving", "input": "a"}),
        ("/embed", {"model": "serving", "inputs": "a"}),
        ("/v1/m3", {"model": "serving", "inputs": "a"}),
    ]
    for path, body in requests:
        answer = shop.http.post(path, json=body, headers={"accept": "application/x-npz"})
        with np.load(BytesIO(answer.content)) as arrays:
            np.testing.assert_array_equal(arrays["dense"], encoder.encode(["a"]).dense)
        said = answer.headers["x-vecferry-epoch"], answer.headers["x-vecferry-fingerprint"]
        assert said == (str(epoch), encoder.fingerprint)
    *_, listed = shop.http.get("/v1/models").json()["data"]
    assert (listed["id"], listed["vecferry"]["fingerprint"]) == ("serving", encoder.fingerprint)
    assert shop.http.get("/v1/models/serving").json() == listed
    unnamed = shop.http.post("/v1/m3", json={"inputs": "a"})
    assert "x-vecferry-epoch" not in unnamed.headers, "the vectors are of a model that was chosen, whatever serves"


def test_search_and_serving_follow_the_switch_without_a_restart(shop: Shop) -> None:
    wide, tiny, _ = (model["id"] for model in shop.http.get("/v1/models").json()["data"])
    assert_named_by_what_serves(shop, shop.old, epoch=0)
    assert_searched_by(shop, shop.old, tiny, epoch=0)
    assert shop.serving() == {"epoch": 0, "generation": 0, "fingerprint": None, "model": None}, "nobody has recorded it"

    shop.migration.start()
    assert shop.migration.verify(override="no gate in this test").passed
    assert_searched_by(shop, shop.old, tiny, epoch=until_epoch(shop, after=0))
    before = shop.serving()
    assert (before["fingerprint"], before["model"]) == (shop.old.fingerprint, tiny)

    shop.migration.cutover()
    after = until_epoch(shop, after=before["epoch"])
    assert_searched_by(shop, shop.new, wide, epoch=after)
    assert_named_by_what_serves(shop, shop.new, epoch=after)
    served = shop.serving()
    assert (served["epoch"], served["fingerprint"], served["model"]) == (after, shop.new.fingerprint, wide)
    with RemoteEncoder(str(shop.http.base_url), model=served["model"]) as encoder:
        np.testing.assert_array_equal(encoder.encode(["a"]).dense, shop.new.encode(["a"]).dense)

    shop.migration.rollback()
    assert_searched_by(shop, shop.old, tiny, epoch=until_epoch(shop, after=after))
    assert_named_by_what_serves(shop, shop.old, epoch=shop.serving()["epoch"])


def until_epoch(shop: Shop, *, after: int) -> int:
    """Wait for the next epoch that the server knows: it looks once a second."""
    wait_until(lambda: shop.serving()["epoch"] > after)
    answer: int = shop.serving()["epoch"]
    return answer


def test_a_migration_without_its_old_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    config = tmp_path / "migration.toml"
    config.write_text('[store]\nurl = "lancedb:data"\ncollection = "docs"\n[models]\nnew = "nowhere"\n')
    command = [sys.executable, "-m", "vecferry.cli", "serve", "--config", str(config), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "[models] old" in done.stderr


def test_a_model_cannot_have_the_name_of_what_serves(shop: Shop, library: Encoder) -> None:
    service = Service(ServedModels([Served("serving", Loaded(library, "first choice"))]), ServerLimits())
    with Router(shop.migration.store, old=library, new=library) as router:
        with pytest.raises(SettingsError, match="--serving-name"):
            create_app(service, ServerOptions(), router)
        create_app(service, ServerOptions(serving_name="current"), router)
        create_app(service, ServerOptions())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"where": {"secret": "secret 7"}}, "'secret' is no field to search by here"),
        ({"where": {"$or": [{"lang": "en"}, {"$and": [{"secret": {"$gte": "s"}}]}]}}, "'secret' is no field"),
        ({"where": {"lang": {"$gte": "a"}, "embedding": 1}}, "'embedding' is no field"),
        ({"where": {"language": "en"}}, "'language' is no field"),
        ({"where": {"lang.secret": "en"}}, "the filter at lang.secret: the table has no such column"),
        ({"where": {"lang": 7}}, "to be compared with a text"),
        ({"where": {"lang": {"$like": "%"}}}, "the filter at lang.$like"),
        ({"where": {"lang": {"$in": ["en"] * 1001}}}, "a list of 1 to 1000"),
        ({"where": {"$or": [{"$or": [{"lang": "en"}] * 64}] * 64}}, "more than 64 comparisons"),
        ({"where": {"lang": "x" * 5000}}, "up to 4096 characters"),
        ({"where": {"lang": "\0"}}, "up to 4096 characters"),
        ({"where": {}}, "an object"),
        ({"where": "lang = 'en'"}, "where"),
        ({"where": {"lang": "en"}, "with_text": "yes"}, "with_text"),
        ({"filter": {"lang": "en"}}, "filter"),
        ({"where": {"\x1b[31m`;--": 1}}, "printable"),
        ({"where": {"lang`;--": 1}}, "is no field"),
    ],
)
def test_a_filter_is_for_the_fields_that_the_operator_has_named(shop: Shop, body: dict[str, Any], reason: str) -> None:
    answer = shop.search("a", **body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]
    assert len(answer.content) < 1000


def test_what_looks_like_a_condition_is_a_value(shop: Shop) -> None:
    for value in ("' OR 1=1 --", "en' OR lang = 'de", "\\' OR true --", 'en"', "%", "🙂"):
        assert shop.search("a", where={"lang": value}).json()["hits"] == []
        assert len(shop.search("a", k=40, where={"lang": {"$nin": [value]}}).json()["hits"]) == len(TEXTS)


def test_nothing_can_be_read_or_searched_by_unless_it_was_named(library: Encoder, tmp_path: Path) -> None:
    strange: dict[str, Any] = {"n": {"a": [2**80, b"\xff", "\ud800", float("nan")], 7: None}, "hidden": 1}
    backend = MemoryBackend({"docs": [Point("1", "one", TextVectors(library.encode(["one"]).dense[0]), strange)]})
    store = MirrorStore(backend, "docs", SqliteLedger.open(tmp_path / "control.db"))

    def router(_: Service) -> Router:
        return Router(store, old=library, new=library)

    for fields, statuses in (((), (400, 400, 400)), (("n.a",), (400, 200, 200)), (("text", "n"), (200, 200, 200))):
        with (
            inside(library, router=router, options=ServerOptions(search_fields=fields)) as server,
            server.client() as http,
        ):
            bodies = ({"with_text": True}, {"with_payload": True}, {"where": {"n.a": {"$ne": 1}}})
            answers = [http.post("/search", json={"query": "one", **body}) for body in bodies]
            assert tuple(answer.status_code for answer in answers) == statuses
            if fields:
                read = answers[1].json()["hits"][0]["payload"]
                numbers = [str(2**80), "/w==", "?", None]
                assert read == ({"n.a": numbers} if fields == ("n.a",) else {"n": {"a": numbers, "7": None}})
    store.close()


def test_a_precision_for_queries_alone_is_asked_and_its_passages_are_refused(
    library: Encoder, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    changes = {"precision": "int8", "recipe": "int8-1", "verdicts": {"dense": "queries only"}}
    manifest = tiny_artifact.manifest
    manifest = manifest.model_copy(update={"space": manifest.space.model_copy(update=changes)})
    asking = Encoder(open_tokenizer(tiny_artifact), OnnxRuntime(replace(tiny_artifact, manifest=manifest)))
    backend = MemoryBackend({"docs": [Point("1", "one", TextVectors(library.encode(["one"]).dense[0]))]})
    ledger = SqliteLedger.open(tmp_path / "control.db")
    ledger.serve("docs", Serving(1, 1, "docs", library.fingerprint))

    def router(_: Service) -> Router:
        return Router(MirrorStore(backend, "docs", ledger), old=asking, new=asking)

    with inside(asking, router=router) as server, server.client() as http:
        found = http.post("/search", json={"query": "one"}).json()
        assert (found["fingerprint"], found["hits"][0]["key"]) == (library.fingerprint, ["1"])
        for path, field, role in (("/v1/embeddings", "input", "prompt_name"), ("/embed", "inputs", "prompt_name"),
                                  ("/v1/m3", "inputs", "role")):  # fmt: skip
            body = {"model": "serving", field: "a"}
            assert http.post(path, json=body | {role: "query"}).status_code == 200
            refused = http.post(path, json=body | {role: "passage"})
            assert refused.status_code == 409
            assert "int8-1 may be used for queries alone" in refused.text


class StoreAway:
    """A double of a store that cannot be reached."""

    target = "docs"

    @property
    def ledger(self) -> SqliteLedger:
        raise StoreUnreachable("double", "nobody is there")

    def another(self) -> StoreAway:
        return self

    def reconnect(self) -> None:
        raise StoreUnreachable("double", "nobody is there")

    def close(self) -> None:
        """Close nothing."""


def test_the_models_are_listed_while_the_store_is_away(library: Encoder) -> None:
    def router(_: Service) -> Router:
        return Router(StoreAway(), old=library, new=library)  # type: ignore[arg-type]  # what a router asks of one

    with inside(library, router=router) as server, server.client() as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny"]
        assert http.post("/embed", json={"inputs": "a"}).status_code == 200
        assert http.get("/v1/models/serving").status_code == 503


def test_searches_that_cannot_be_done_are_refused_by_their_field(shop: Shop) -> None:
    for k in (1, 1000):
        assert len(shop.search("a", k=k).json()["hits"]) == min(k, len(TEXTS))
    assert len(shop.search("a").json()["hits"]) == 10
    assert len(shop.search("").json()["hits"]) == 10
    for wrong, place in (({"k": 0}, "k"), ({"k": 1001}, "k"), ({"k": 1.5}, "k"), ({"query": ["a"]}, "query")):
        refused = shop.search(**{"query": "a"} | wrong)
        assert (refused.status_code, refused.json()["error_type"]) == (400, "Validation")
        assert refused.json()["error"].startswith(f"{place}: ")
    surrogate = shop.http.post("/search", content=b'{"query": "\\ud800"}', headers={"content-type": "application/json"})
    assert (surrogate.status_code, surrogate.json()["error_type"]) == (400, "Validation")
    long = shop.search("word " * 9000)
    assert long.status_code == 200, "a query is cut, as the library cuts it"
