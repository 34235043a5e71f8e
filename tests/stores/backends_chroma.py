"""Chroma embedded in this process, and behind a server of its own."""

import atexit
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.api import ClientAPI
from chromadb.api.client import Client
from chromadb.config import Settings

from tests.stores.backends import COLLECTION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend
from vecferry.stores.chroma import ChromaBackend

CONFIGURATION_OF_0_5 = (
    '{"hnsw_configuration": {"space": "l2", "ef_construction": 100, "ef_search": 10, "num_threads": 2, "M": 16,'
    ' "resize_factor": 1.2, "batch_size": 100, "sync_threshold": 1000, "_type": "HNSWConfigurationInternal"},'
    ' "_type": "CollectionConfigurationInternal"}'
)
START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    with persistent_client(folder) as application:
        create_docs(application)
    with closing(ChromaBackend.open(f"chroma://{folder}")) as backend:
        yield backend


@contextmanager
def opened_server(folder: Path) -> Iterator[Backend]:
    """Yield a backend on a server that all tests of this process share, emptied."""
    url = emptied_server()
    with http_client(url) as application:
        create_docs(application)
    with closing(ChromaBackend.open(url)) as backend:
        yield backend


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    with persistent_client(folder) as application:
        return _nearest(application, vector)


def nearest_on_server(backend: Backend, folder: Path, vector: Float32) -> str:
    with http_client(shared_server()) as application:
        return _nearest(application, vector)


def _nearest(application: ClientAPI, vector: Float32) -> str:
    collection = application.get_collection(COLLECTION, embedding_function=None)
    return collection.query(query_embeddings=[vector.tolist()], n_results=1)["ids"][0][0]


@cache
def shared_server() -> str:
    """Return the URL of the server that all tests of this process share."""
    folder = Path(tempfile.mkdtemp(prefix="vecferry-chroma-"))
    running = chroma_server(folder)
    url, _ = running.__enter__()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(running.__exit__, None, None, None)
    return url


def emptied_server() -> str:
    """Return the URL of that server, without any collection."""
    url = shared_server()
    with http_client(url) as application:
        for collection in application.list_collections():
            application.delete_collection(collection.name)
    return url


@contextmanager
def persistent_client(folder: Path | str, settings: Settings | None = None) -> Iterator[Client]:
    """Yield the application's client of that folder, closed at the end."""
    with _closable(chromadb.PersistentClient(folder, settings)) as client:
        yield client


@contextmanager
def http_client(url: str, **place: Any) -> Iterator[Client]:
    """Yield the application's client of the server at that URL. place: its tenant and database."""
    host, _, port = url.removeprefix("chroma+http://").partition(":")
    with _closable(chromadb.HttpClient(host, int(port), **place)) as client:
        try:
            yield client
        finally:
            holders: tuple[Any, ...] = (client, client._admin_client)  # a server's have a session
            for holder in holders:
                holder._server._session.close()  # which the end of the client does not do


def _closable(client: ClientAPI) -> Client:
    """Return the client as it is: Chroma declares an interface that cannot be closed."""
    assert isinstance(client, Client)
    return client


def create_docs(client: ClientAPI) -> None:
    client.create_collection(COLLECTION, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)


def date_back(folder: Path) -> None:
    """Leave the collections of a closed folder as Chroma 0.5.23 does: settings in metadata, defaults elsewhere."""
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database, database:
        database.execute("UPDATE collections SET schema_str = NULL, config_json_str = ?", [CONFIGURATION_OF_0_5])
        database.execute(
            "INSERT INTO segment_metadata (segment_id, key, str_value, int_value, float_value)"
            " SELECT segments.id, key, str_value, int_value, float_value FROM segments"
            " JOIN collection_metadata ON collection_id = collection WHERE scope = 'VECTOR' AND key LIKE 'hnsw:%'"
        )


@contextmanager
def chroma_server(folder: Path, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yield the URL and the process of a server over `folder`, which answers; stopped at the end, if it still runs.

    port: one that is free, where it is not said; that of a server that was killed, to start it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    at: tuple[str | Path, ...] = ("--path", folder, "--host", "127.0.0.1", "--port", str(port))
    command = [Path(sys.executable).parent / "chroma", "run", *at]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"chroma+http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the Chroma server ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the Chroma server did not listen within {START_TIMEOUT_S} s")
