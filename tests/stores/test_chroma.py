"""What is Chroma's own: its URLs, one process to a folder, its distances, a server that goes away."""

import json
import threading
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.api.types import Space
from chromadb.config import Settings
from chromadb.errors import ChromaError

from tests.stores.backends import COLLECTION, DIMENSION, unit
from tests.stores.backends_chroma import (
    chroma_server,
    create_docs,
    date_back,
    http_client,
    opened,
    opened_server,
    persistent_client,
    shared_server,
)
from tests.stores.processes import Child
from vecferry.embeddings import DENSE, TextVectors
from vecferry.errors import (
    InvalidStoreUrl,
    Locked,
    SettingsError,
    StoreFailed,
    StoreSchemaError,
    StoreUnreachable,
)
from vecferry.stores.backend import Point, ServerAccess
from vecferry.stores.chroma import ChromaBackend
from vecferry.stores.opening import open_store

NEW = "docs_new"
HOLD = """
import sys
from vecferry.errors import Locked
from vecferry.stores.chroma import ChromaBackend
try:
    backend = ChromaBackend.open(sys.argv[1])
except Locked:
    print("locked")
else:
    print("open", flush=True)
    input()
"""

# --- what a URL names -----------------------------------------------------------------------------


def test_a_folder_without_a_database_is_not_made_into_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreUnreachable):
            ChromaBackend.open(f"chroma://{folder}")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_unreachable_and_stays_unlocked(tmp_path: Path) -> None:
    (tmp_path / "chroma.sqlite3").write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(StoreUnreachable):
            ChromaBackend.open(f"chroma://{tmp_path}")


def test_a_relative_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with persistent_client("vectors") as application:
        create_docs(application)
    with closing(ChromaBackend.open("chroma:vectors")) as backend:
        assert backend.exists(COLLECTION)


@pytest.mark.parametrize(
    "url",
    ["chroma://vectors", "chroma+ftp://host", "chroma+http://", "chroma+http://me:pw@host", "chroma+http://h/api"],
)
def test_a_url_that_names_no_chroma_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidStoreUrl) as caught:
        ChromaBackend.open(url)
    assert "pw" not in str(caught.value)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(StoreUnreachable):
        ChromaBackend.open("chroma+http://127.0.0.1:1")


def test_a_tenant_and_a_database_have_collections_of_their_own(tmp_path: Path) -> None:
    url, access = shared_server(), ServerAccess(tenant="shop", database=f"catalogue-{tmp_path.name}")
    with http_client(url) as admin:
        with suppress(ChromaError):
            admin._admin_client.create_tenant("shop")
        admin._admin_client.create_database(str(access.database), "shop")
    with http_client(url, tenant="shop", database=str(access.database)) as application:
        application.create_collection("orders", embedding_function=None)
    with closing(ChromaBackend.open(url, access)) as backend, closing(backend.another()) as other:
        backend.put("orders", [Point("1", "text", TextVectors(unit(1)))])
        assert other.count("orders") == 1
    with closing(ChromaBackend.open(url)) as backend:
        assert not backend.exists("orders")


def test_a_token_is_sent_and_shown_nowhere() -> None:
    sent: list[dict[str, str]] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(dict(self.headers))
            body = json.dumps({"error": "AuthError", "message": "not hunter2"}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    access = ServerAccess(token="hunter2")
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(StoreUnreachable) as refused:
            ChromaBackend.open(f"chroma+http://127.0.0.1:{server.server_port}", access)
        server.shutdown()
        thread.join()
    headers = {name.lower(): value for name, value in sent[0].items()}
    assert (headers["authorization"], headers["x-chroma-token"]) == ("Bearer hunter2", "hunter2")
    assert "hunter2" not in f"{refused.value} {access!r}"


# --- one folder, one process ----------------------------------------------------------------------


def test_a_folder_that_another_process_has_open_is_locked_until_it_ends(tmp_path: Path) -> None:
    url = f"chroma://{tmp_path}"
    with persistent_client(tmp_path) as application:
        create_docs(application)
    with Child(HOLD, url) as holder:
        assert holder.hear() == "open"
        with pytest.raises(Locked):
            ChromaBackend.open(url)
        holder.kill()
        holder.collect()
    with closing(ChromaBackend.open(url)) as backend, closing(backend.another()), Child(HOLD, url) as refused:
        assert refused.hear() == "locked"


def test_the_folder_is_free_once_the_last_handle_is_closed(tmp_path: Path) -> None:
    url = f"chroma://{tmp_path}"
    with persistent_client(tmp_path) as application:
        create_docs(application)
    first = ChromaBackend.open(url)
    second = first.another()
    first.close()
    first.close()
    with Child(HOLD, url) as refused:
        assert refused.hear() == "locked"
    second.close()
    with Child(HOLD, url) as next_one:
        assert next_one.hear() == "open"


@pytest.mark.parametrize("settings", [None, Settings(anonymized_telemetry=False), Settings(allow_reset=True)])
def test_an_application_in_the_same_process_may_have_the_folder_open(tmp_path: Path, settings: Settings | None) -> None:
    with persistent_client(tmp_path, settings) as application:
        create_docs(application)
        with closing(ChromaBackend.open(f"chroma://{tmp_path}")) as backend, closing(backend.another()) as other:
            backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1)))])
            assert application.get_collection(COLLECTION).get()["ids"] == ["1"]
            assert other.count(COLLECTION) == 1
        assert application.get_collection(COLLECTION).count() == 1


def test_a_folder_that_the_application_has_spelled_otherwise_is_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with persistent_client("data/../data", Settings(allow_reset=True)) as application:
        create_docs(application)
        with closing(ChromaBackend.open(f"chroma://{tmp_path}/data")) as backend:
            application.get_collection(COLLECTION).add(ids=["1"], embeddings=[unit(1).tolist()], documents=["text"])
            assert [hit.id for hit in backend.search(COLLECTION, unit(1), 1)] == ["1"]


def test_an_application_with_the_usual_settings_may_come_later(tmp_path: Path) -> None:
    with persistent_client(tmp_path) as application:
        create_docs(application)
    with closing(ChromaBackend.open(f"chroma://{tmp_path}")), persistent_client(tmp_path) as application:
        assert application.get_collection(COLLECTION).count() == 0
        with pytest.raises(ValueError, match="different settings"):  # Chroma's own, to the one that comes last
            chromadb.PersistentClient(str(tmp_path), Settings(allow_reset=True))


def test_a_store_goes_by_the_client_of_the_application(tmp_path: Path) -> None:
    with persistent_client(tmp_path, Settings(allow_reset=True)) as application:
        create_docs(application)
        with closing(open_store("chroma:", COLLECTION, control=tmp_path / "control.db", client=application)) as store:
            application.get_collection(COLLECTION).add(ids=["1"], embeddings=[unit(1).tolist()], documents=["text"])
            with closing(store.another()) as other:
                assert [row.text for row in other.rows([("1",)])] == ["text"]
        assert application.get_collection(COLLECTION).count() == 1


def test_a_client_is_for_the_stores_that_take_one(tmp_path: Path) -> None:
    for url in ("postgresql://localhost/app", f"lancedb://{tmp_path}"):
        with pytest.raises(SettingsError, match="Chroma or Qdrant"):
            open_store(url, COLLECTION, client=object())


def test_a_client_that_was_given_stays_open(tmp_path: Path) -> None:
    with persistent_client(tmp_path, Settings(allow_reset=True)) as application:
        create_docs(application)
        with closing(ChromaBackend(application)) as backend, closing(backend.another()) as other:
            backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1)))])
            assert other.count(COLLECTION) == 1
        assert application.get_collection(COLLECTION).count() == 1


# --- collections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_every_distance_is_kept_and_gives_cosines(tmp_path: Path, space: Space) -> None:
    with persistent_client(tmp_path) as application:
        application.create_collection("model", configuration={"hnsw": {"space": space, "max_neighbors": 24}})
        with closing(ChromaBackend(application)) as backend:
            backend.create(NEW, like="model", dimension=DIMENSION, outputs=DENSE)
            backend.put(NEW, [Point(str(n), None, TextVectors(unit(n))) for n in range(50)])
            index = application.get_collection(NEW).configuration_json["hnsw"]
            assert (index["space"], index["max_neighbors"]) == (space, 24)
            hits = backend.search(NEW, unit(99), 50)
    scores = [float(unit(int(hit.id)) @ unit(99)) for hit in hits]
    assert len(hits) == 50
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], scores, rtol=0, atol=1e-5)  # float32


def test_a_new_collection_has_the_metadata_of_the_old_but_embeds_nothing(tmp_path: Path) -> None:
    with persistent_client(tmp_path) as application:
        with_minilm = application.create_collection("model", metadata={"hnsw:space": "cosine", "owner": "us"})
        with closing(ChromaBackend(application)) as backend:
            backend.create(NEW, like="model", dimension=DIMENSION, outputs=DENSE)
        made = application.get_collection(NEW, embedding_function=None)
        assert (made.metadata or {})["owner"] == "us"
        assert made.configuration_json["hnsw"]["space"] == "cosine"
        assert with_minilm.configuration_json["embedding_function"]["name"] == "default"
        assert "name" not in (made.configuration_json["embedding_function"] or {})


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_a_collection_of_chroma_0_5_has_the_distance_of_its_metadata(tmp_path: Path, space: Space) -> None:
    with persistent_client(tmp_path) as application:
        collection = application.create_collection("model", metadata={"hnsw:space": space, "hnsw:M": 24, "owner": "us"})
        collection.add(ids=[str(n) for n in range(20)], embeddings=np.stack([unit(n) for n in range(20)]))
    date_back(tmp_path)
    with persistent_client(tmp_path) as application, closing(ChromaBackend(application)) as backend:
        index = application.get_collection("model", embedding_function=None).configuration_json["hnsw"]
        assert (index["space"], index["max_neighbors"]) == ("l2", 16)  # which is not so
        assert_cosines(backend, "model")
        backend.create(NEW, like="model", dimension=DIMENSION, outputs=DENSE)
        backend.put(NEW, [Point(str(n), None, TextVectors(unit(n))) for n in range(20)])
        assert_cosines(backend, NEW)
        made = application.get_collection(NEW, embedding_function=None)
        index = made.configuration_json["hnsw"]
        assert (index["space"], index["max_neighbors"]) == (space, 24)
        assert {"hnsw:space": space, "hnsw:M": 24, "owner": "us"}.items() <= dict(made.metadata or {}).items()


def test_a_configuration_that_was_followed_goes_before_the_metadata(tmp_path: Path) -> None:
    with persistent_client(tmp_path) as application, closing(ChromaBackend(application)) as backend:
        collection = application.create_collection(
            "model", configuration={"hnsw": {"max_neighbors": 20}}, metadata={"hnsw:space": "cosine", "hnsw:M": 24}
        )
        collection.add(ids=[str(n) for n in range(20)], embeddings=np.stack([unit(n) for n in range(20)]))
        assert_cosines(backend, "model")
        backend.create(NEW, like="model", dimension=DIMENSION, outputs=DENSE)
        backend.put(NEW, [Point(str(n), None, TextVectors(unit(n))) for n in range(20)])
        assert_cosines(backend, NEW)
        made = application.get_collection(NEW, embedding_function=None)
        assert made.configuration_json["hnsw"]["max_neighbors"] == 20
        assert made.metadata["hnsw:space"] == made.configuration_json["hnsw"]["space"] == "l2"


def assert_cosines(backend: ChromaBackend, collection: str) -> None:
    """Assert that a search for `unit(99)` tells the cosine of each of 20 points, exact but for float32."""
    hits = backend.search(collection, unit(99), 20)
    scores = [float(unit(int(hit.id)) @ unit(99)) for hit in hits]
    assert len(hits) == 20
    np.testing.assert_allclose([hit.score for hit in hits], scores, rtol=0, atol=1e-5)


def test_an_empty_collection_made_here_refuses_vectors_of_another_length(tmp_path: Path) -> None:
    with opened(tmp_path) as backend:
        backend.create(NEW, like=COLLECTION, dimension=16, outputs=DENSE)
        assert backend.dimension(NEW) == 16
        with pytest.raises(StoreSchemaError):
            backend.put(NEW, [Point("1", "text", TextVectors(unit(1)))])
        assert backend.dimension(COLLECTION) is None


def test_an_id_of_no_characters_is_refused_by_the_store(tmp_path: Path) -> None:
    with opened(tmp_path) as backend, pytest.raises(StoreFailed):
        backend.put(COLLECTION, [Point("", "text", TextVectors(unit(1)))])


# --- a server -------------------------------------------------------------------------------------


def test_more_than_a_server_takes_in_one_request_is_sent_in_several(tmp_path: Path) -> None:
    with opened_server(tmp_path) as backend:
        backend.put(COLLECTION, [Point(str(n), "text", TextVectors(unit(n)), {"page": "x" * 2**20}) for n in range(45)])
        assert backend.count(COLLECTION) == 45


def test_a_server_that_was_killed_is_unreachable_and_comes_back_with_what_was_written(tmp_path: Path) -> None:
    with chroma_server(tmp_path) as (url, process), http_client(url) as application:
        create_docs(application)
        with closing(ChromaBackend.open(url)) as backend:
            backend.put(COLLECTION, [Point(str(n), f"text {n}", TextVectors(unit(n))) for n in range(100)])
            process.kill()
            process.wait()
            for use in (
                lambda: backend.count(COLLECTION),
                lambda: backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1)))]),
                lambda: backend.another(),
            ):
                with pytest.raises(StoreUnreachable):
                    use()
            with chroma_server(tmp_path, int(url.rpartition(":")[2])):
                assert backend.count(COLLECTION) == 100
                assert backend.search(COLLECTION, unit(42), 1)[0].id == "42"
