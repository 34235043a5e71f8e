"""Collections of Chroma, in a server or embedded in this process.

The text is Chroma's document, the payload its metadata, where a field that is None is one that is not
there. Chroma embeds nothing by itself here; a new collection has no embedding function unless it is given one.

An embedded folder belongs to one process. A second one that writes leaves points out of the first
one's index for good, and one that reads does not find what is written later. `open` therefore locks
the folder against other processes of vecferry; an application of several needs a server (`chroma run`).
Inside one process a folder that the application has open is opened by its spelling and with its settings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, cast
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock, Timeout

from vecferry.embeddings import DENSE, Float32, Outputs, TextVectors
from vecferry.errors import (
    InvalidFilter,
    InvalidStoreUrl,
    Locked,
    MissingExtra,
    StoreFailed,
    StoreSchemaError,
    StoreUnreachable,
)
from vecferry.stores.backend import ANYONE, PEEKED, BackendHit, Point, ServerAccess, VectorField, path_in
from vecferry.stores.filters import EVERY_ROW, RANGES, Condition, Junction, NativeFilter, Operator, Selection
from vecferry.stores.request_batches import RequestBatches, slices

try:
    import chromadb
    import httpx
    from chromadb.api import ClientAPI
    from chromadb.api.client import Client
    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.Collection import Collection
    from chromadb.api.shared_system_client import SharedSystemClient
    from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings
    from chromadb.errors import ChromaError, NotFoundError
except ImportError as exc:
    raise MissingExtra("chroma", "chromadb") from exc

T = TypeVar("T")

URLS = "chroma:///absolute/path, chroma:relative/path or chroma+http://host:port"
DIMENSION = "vecferry:dimension"
CREATED_AS = "vecferry:created_as"
SPACE = "hnsw:space"
LEGACY_SETTINGS = {
    "hnsw:construction_ef": "ef_construction",
    "hnsw:search_ef": "ef_search",
    "hnsw:M": "max_neighbors",
    "hnsw:num_threads": "num_threads",
    "hnsw:batch_size": "batch_size",
    "hnsw:sync_threshold": "sync_threshold",
    "hnsw:resize_factor": "resize_factor",
}
"""Metadata by which a collection was set up before Chroma 0.6, and what its configuration calls them now."""
DEFAULT_FUNCTION = "Chroma's default function (all-MiniLM-L6-v2)"
DEFAULT_DIMENSION = 384
BYTES_PER_NUMBER = 6  # float32 in base64
REQUEST_BYTES = 8 * 2**20  # a server refuses more than 40 MB in one
READ_AT_A_TIME = 1000
LISTED_AT_A_TIME = 500
TIMEOUT_S = 120
READ_PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2)
PASSING = ("Error finding id", "Nothing found on disk")
"""What a read says that met a delete half-way, or the index on its way to the disk."""
_OPENING = threading.Lock()
"""chromadb counts the clients of a folder, and filelock the holders of a lock, without one."""
NOT_OPENED = (ChromaError, ValueError, AttributeError)  # the last from its cleaning up after a failed start
COSINES: dict[str, Callable[[float], float]] = {
    "cosine": lambda distance: 1 - distance,
    "ip": lambda distance: 1 - distance,
    "l2": lambda distance: 1 - distance / 2,  # squared, of unit vectors
}


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what chromadb raises as errors of a store."""
    try:
        yield
    except NotFoundError as exc:
        raise StoreSchemaError(f"not in the chroma store: {exc}", "Names are spelled as in the store.") from exc
    except httpx.TransportError as exc:
        raise StoreUnreachable("chroma", str(exc)) from exc
    except (ChromaError, httpx.HTTPError, ValueError, TypeError, OverflowError) as exc:
        raise StoreFailed("chroma", str(exc)[:500]) from exc
    except Exception as exc:
        if type(exc) is not Exception:  # which is how the client reports an answer that it does not know
            raise
        raise StoreFailed("chroma", str(exc)[:500]) from exc


class ChromaBackend:
    """`Backend`, `Renamable`, `Noticing` and `Browsable` over one database of Chroma. Dense vectors only."""

    kind = "chroma"
    text_field = "document"
    outputs = DENSE

    def __init__(self, client: ClientAPI, embedding_function: Callable[[], Any] | None = None) -> None:
        """Use a client: the application's own, left open by `close`. embedding_function: as in `open`."""
        self._client = client
        self._url: str | None = None
        self._access = ANYONE
        self._embedding_function = embedding_function
        self._lock: FileLock | None = None
        with _translated():
            self._portion = RequestBatches(client.get_max_batch_size(), REQUEST_BYTES)

    @classmethod
    def open(cls, url: str, access: ServerAccess = ANYONE, embedding_function: Callable[[], Any] | None = None) -> Self:
        """Open a URL: chroma:///an/absolute/path, chroma:a/relative/one, or chroma+http://host:port (or https).

        embedding_function: makes the one that new collections keep, for query texts of the application.
        A folder has tenants and databases too, but asks for no token. Raises StoreUnreachable; no message carries the
        token. Raises Locked if another process has the folder open.
        """
        scheme, _, rest = url.partition(":")
        lock = None
        with _OPENING:
            if scheme == "chroma":
                folder = _folder(rest)
                lock = _locked(folder)
            try:
                client = _embedded(folder, access) if lock else _connected(url, access)
                backend = cls(client, embedding_function)
            except BaseException:
                if lock:
                    lock.release()
                raise
        backend._url, backend._lock, backend._access = url, lock, access
        return backend

    def another(self) -> ChromaBackend:
        if self._url is None:
            return ChromaBackend(self._client, self._embedding_function)
        return ChromaBackend.open(self._url, self._access, self._embedding_function)

    def close(self) -> None:
        with _OPENING:
            if self._url and isinstance(self._client, Client):
                self._client.close()
                for session in _sessions(self._client):
                    session.close()
            if self._lock:
                self._lock.release()
                self._lock = None

    # --- collections ------------------------------------------------------------------------------

    @_translated()
    def names(self) -> dict[str, str]:
        return {each.name: each.name for each in self._client.list_collections()}

    @_translated()
    def exists(self, collection: str) -> bool:
        try:
            self._collection(collection)
        except NotFoundError:
            return False
        return True

    @_translated()
    def dimension(self, collection: str) -> int | None:
        opened = self._collection(collection)
        if recorded := (opened.metadata or {}).get(DIMENSION):
            return int(recorded)
        embeddings = _steady(lambda: opened.get(limit=1, include=["embeddings"]))["embeddings"]
        return None if embeddings is None or len(embeddings) == 0 else len(embeddings[0])

    @_translated()
    def count(self, collection: str) -> int:
        return self._collection(collection).count()

    @_translated()
    def check(self, like: str, outputs: Outputs) -> None:
        if refused := outputs & ~self.outputs:
            raise StoreSchemaError(f"a Chroma collection has no place for {', '.join(refused.names)}", "Leave it out.")
        _space(self._collection(like))

    @_translated()
    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        """Record the dimension in the collection's metadata, since Chroma itself learns it from the first point."""
        self.check(like, outputs)
        if self.exists(collection):
            raise StoreSchemaError(f"there is a collection {collection!r} already", "Drop it, or take another name.")
        model = self._collection(like)
        space, metadata = _space(model), dict(model.metadata or {})
        if SPACE in metadata:
            metadata[SPACE] = space
        self._client.create_collection(
            collection,
            configuration=cast(CreateCollectionConfiguration, _index(model, space)),
            metadata=metadata | {DIMENSION: dimension, CREATED_AS: collection},
            embedding_function=self._embedding_function() if self._embedding_function else None,
        )

    @_translated()
    def notices(self, collection: str) -> tuple[str, ...]:
        """Say which function embeds. Where none is recorded, vectors of MiniLM's length hint at the default one."""
        recorded = self._collection(collection).configuration_json.get("embedding_function") or {}
        name = recorded.get("name")
        if name is None and self.dimension(collection) != DEFAULT_DIMENSION:
            return ()
        who = DEFAULT_FUNCTION if name == "default" else f"the function {name!r}"
        who = who if name else f"the application's function or, if it gives none, with {DEFAULT_FUNCTION}"
        return (f"Chroma embeds texts of {collection} with {who}; {self._advice()}",)

    def _advice(self) -> str:
        if self._embedding_function is not None:
            return (
                "the new collection embeds with the new model, once the application imports"
                " vecferry.integrations.chroma and opens it without a function of its own"
            )
        return (
            "after the switch an unchanged query(query_texts=...) would ask with the old model: set [store]"
            " embedding_function = true and import vecferry.integrations.chroma in the application, or pass"
            " query_embeddings of the new model"
        )

    @_translated()
    def drop(self, collection: str) -> None:
        try:
            self._client.delete_collection(collection)
        except NotFoundError:
            return

    @_translated()
    def rename(self, collection: str, name: str) -> None:
        """Rename a collection; its points, metadata and configuration stay as they are."""
        if self.exists(name):
            raise StoreSchemaError(f"there is a collection {name!r} already", "Drop it, or take another name.")
        self._collection(collection).modify(name=name)

    @_translated()
    def created_as(self, collection: str) -> str | None:
        name = (self._collection(collection).metadata or {}).get(CREATED_AS)
        return None if name is None else str(name)

    def _collection(self, name: str) -> Collection:
        """Open a collection by its name each time (1 ms): a handle is bound to one that may have been dropped since."""
        return self._client.get_collection(name, embedding_function=None)

    @_translated()
    def vector_fields(self) -> list[VectorField]:
        names, page = list[str](), self._client.list_collections(LISTED_AT_A_TIME)
        while page:
            names += [collection.name for collection in page]
            page = self._client.list_collections(LISTED_AT_A_TIME, len(names))
        return [self._vector_field(name) for name in names]

    def _vector_field(self, name: str) -> VectorField:
        opened = self._collection(name)
        answer = _steady(lambda: opened.get(limit=PEEKED, include=["embeddings", "metadatas"]))
        metadata = dict.fromkeys(key for each in answer["metadatas"] or () for key in each or ())
        dimensions = {len(embedding) for embedding in ([] if answer["embeddings"] is None else answer["embeddings"])}
        text = self.text_field
        return VectorField(name, "embedding", tuple(dimensions), opened.count(), (text, *metadata), text)

    # --- points -----------------------------------------------------------------------------------

    @_translated()
    def ids(self, collection: str) -> Iterator[str]:
        """Read ids in one request: pages are by offset, and a delete between two of them would hide a point."""
        return iter(self._collection(collection).get(include=[])["ids"])

    @_translated()
    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        opened, points = self._collection(collection), []
        for batch in slices(list(dict.fromkeys(ids)), READ_AT_A_TIME):
            points += _points(opened, list(batch), vectors=vectors)
        return points

    @_translated()
    def put(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; in two steps for one that loses its text: Chroma can only delete it and insert it again.

        Raises StoreSchemaError, with nothing written, for vectors of another dimension.
        """
        self._require_fit(collection, points)
        opened = self._collection(collection)
        for batch in self._portion.split(points, BYTES_PER_NUMBER):
            _put(opened, batch)

    @_translated()
    def delete(self, collection: str, ids: Sequence[str]) -> None:
        opened = self._collection(collection)
        for batch in slices(list(dict.fromkeys(ids)), READ_AT_A_TIME):
            opened.delete(ids=list(batch))

    @_translated()
    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        """Score by the cosine; in a collection with another distance, only that of unit vectors."""
        where = chroma_where(selection.where)
        opened = self._collection(collection)
        cosine = COSINES[_space(opened)]
        include: Any = ["distances", *(["documents", "metadatas"] if selection.wants_points else [])]
        query = [vector.tolist()]
        answer = _steady(lambda: opened.query(query_embeddings=query, n_results=k, where=where, include=include))
        ids, distances = answer["ids"][0], (answer["distances"] or [[]])[0]
        points: list[Point | None] = [None] * len(ids)
        if selection.wants_points:
            rows = zip(ids, (answer["documents"] or [[]])[0], (answer["metadatas"] or [[]])[0], strict=True)
            points = [Point(i, text, None, dict(payload or {})) for i, text, payload in rows]
        return [BackendHit(i, cosine(d), point) for i, d, point in zip(ids, distances, points, strict=True)]

    def _require_fit(self, collection: str, points: Sequence[Point]) -> None:
        vectors = [point.vectors for point in points if point.vectors is not None]
        if any(each.outputs != DENSE for each in vectors):
            raise StoreSchemaError(f"{collection} has no place for sparse or ColBERT vectors", "Leave them out.")
        if points:
            size = self.dimension(collection) or (len(vectors[0].dense) if vectors else 0)
            if len(vectors) < len(points) or any(each.dense.shape != (size,) for each in vectors):
                raise StoreSchemaError(f"{collection} has vectors of {size} numbers", "Every point needs such a one.")

    # --- indexes ----------------------------------------------------------------------------------

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002
        """Build nothing: Chroma keeps its one index by itself."""
        return ()

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()


def chroma_where(where: Condition | NativeFilter | None) -> dict[str, Any] | None:
    """Return a filter as Chroma takes it. Raises InvalidFilter: it compares numbers alone by their order."""
    if isinstance(where, NativeFilter):
        return dict(where.condition)
    if where is None:
        return None
    if isinstance(where, Junction):
        return {where.operator: [chroma_where(part) for part in where.parts]}
    if where.operator in RANGES and isinstance(where.values[0], str):
        raise InvalidFilter(f"{where.field}.{where.operator}", "Chroma orders numbers alone")
    single: dict[str, Operator] = {"$in": "$eq", "$nin": "$ne"}
    operator = single.get(where.operator, where.operator)
    terms: list[dict[str, Any]] = [{where.field: {operator: value}} for value in where.values]
    junction = "$and" if where.is_negated else "$or"
    return terms[0] if len(terms) == 1 else {junction: terms}


def _steady(read: Callable[[], T]) -> T:
    """Return what a read answers; try a few times more where its refusal is known to pass."""
    for pause_s in READ_PAUSES_S:
        try:
            return read()
        except ChromaError as exc:
            if not any(message in str(exc) for message in PASSING):
                raise
            time.sleep(pause_s)
    return read()


def _points(collection: Collection, ids: list[str], *, vectors: bool) -> list[Point]:
    include: Any = ["documents", "metadatas", *(["embeddings"] if vectors else [])]
    answer = _steady(lambda: collection.get(ids=ids, include=include))
    keys = answer["ids"]
    texts = answer["documents"] or [None] * len(keys)  # type: ignore[list-item]
    payloads = answer["metadatas"] or [None] * len(keys)  # type: ignore[list-item]
    numbers = [None] * len(keys) if answer["embeddings"] is None else np.asarray(answer["embeddings"], np.float32)
    return [
        Point(i, text, None if vector is None else TextVectors(vector), dict(payload or {}))
        for i, text, payload, vector in zip(keys, texts, payloads, numbers, strict=True)
    ]


def _put(collection: Collection, points: Sequence[Point]) -> None:
    """Write points whole. An upsert only adds, so a field has to be taken away by name, and a text by the point."""
    without_text = {point.id for point in points if point.text is None}
    before = {point.id: point for point in _points(collection, [point.id for point in points], vectors=False)}
    losing = [i for i in without_text if i in before and before[i].text is not None]
    if losing:
        collection.delete(ids=losing)
    collection.upsert(
        ids=[point.id for point in points],
        embeddings=np.stack([point.vectors.dense for point in points if point.vectors is not None]),
        documents=[point.text for point in points],  # type: ignore[misc]
        metadatas=[_metadata(point.payload, before.get(point.id)) for point in points],  # type: ignore[misc]
    )


def _metadata(payload: Mapping[str, Any], before: Point | None) -> dict[str, Any] | None:
    """Return the metadata of a point; None instead of an empty dict, which Chroma refuses."""
    gone: dict[str, Any] = dict.fromkeys(before.payload) if before else {}
    return {**gone, **payload} or None


def _space(collection: Collection) -> str:
    """Return the distance by which the index was built. Raises StoreSchemaError for one without a cosine.

    Of a collection made before Chroma 0.6 the metadata says it, and the configuration has the default; where a later
    one was made with both, the configuration counts. A stored vector tells these two cases apart.
    """
    configured = _configured(collection).get("space")
    space = str((collection.metadata or {}).get(SPACE) or configured)
    if configured in COSINES and space in COSINES and space != configured and _is_measured_as(configured, collection):
        space = configured
    if space not in COSINES:
        raise StoreSchemaError(f"{collection.name} has the distance {space}", f"One of {', '.join(COSINES)}.")
    return space


def _configured(collection: Collection) -> Mapping[str, Any]:
    configuration = collection.configuration_json
    return configuration.get("hnsw") or configuration.get("spann") or {}


def _is_measured_as(space: str, collection: Collection) -> bool:
    """Return whether the distance between a stored vector and its opposite is that of `space`; false if none is."""
    answer = _steady(lambda: collection.get(limit=1, include=["embeddings"]))
    if not answer["ids"] or answer["embeddings"] is None:
        return False
    stored = np.asarray(answer["embeddings"][0], np.float64)
    opposite = [(-stored).tolist()]
    nearest = _steady(lambda: collection.query(query_embeddings=opposite, ids=answer["ids"], include=["distances"]))
    measured, square = (nearest["distances"] or [[]])[0][0], float(stored @ stored)
    expected = {"cosine": 2.0, "ip": 1 + square, "l2": 4 * square}
    return abs(measured - expected[space]) <= min(abs(measured - distance) for distance in expected.values())


def _index(collection: Collection, space: str) -> dict[str, Any]:
    """Return the configuration of an index like this one. Settings in the metadata go before defaults, as in 0.5."""
    configuration, metadata = collection.configuration_json, collection.metadata or {}
    if spann := configuration.get("spann"):
        return {"spann": spann}
    hnsw = {**(configuration.get("hnsw") or {}), "space": space}
    if metadata.get(SPACE, space) == space:  # else it is the configuration that was followed
        hnsw |= {setting: metadata[name] for name, setting in LEGACY_SETTINGS.items() if name in metadata}
    return {"hnsw": hnsw}


def _folder(path: str) -> str:
    """Return the folder as it is spelled: chromadb takes two spellings for two stores."""
    folder = path_in(f"chroma:{path}", URLS)
    if not (Path(folder) / "chroma.sqlite3").is_file():
        raise StoreUnreachable("chroma", f"there is no Chroma database in {folder}")
    return folder


def _locked(folder: str) -> FileLock:
    lock = FileLock(Path(folder) / ".vecferry-lock", timeout=0, is_singleton=True, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise Locked(folder, "another process; Chroma's folders allow one, `chroma run --path` allows many") from None
    except OSError as exc:
        raise StoreUnreachable("chroma", f"{folder}: {exc.strerror}") from exc
    return lock


def _embedded(folder: str, access: ServerAccess) -> ClientAPI:
    """Open a folder; one that this process has open already, as it was opened: chromadb refuses other settings."""
    spelling, settings = _opened_as(folder)
    try:
        return chromadb.PersistentClient(spelling, settings, *_place(access))
    except NOT_OPENED as exc:
        raise StoreUnreachable("chroma", f"{folder} does not open: {exc}") from exc


def _opened_as(folder: str) -> tuple[str, Settings]:
    """Return how the folder is spelled, and with which settings, where it is open in this process; else the usual."""
    systems = getattr(SharedSystemClient, "_identifier_to_system", {})
    for system in list(systems.values()):
        settings = system.settings
        if settings.is_persistent and Path(settings.persist_directory).resolve() == Path(folder).resolve():
            return settings.persist_directory, settings
    return folder, Settings()


def _place(access: ServerAccess) -> tuple[str, str]:
    return access.tenant or DEFAULT_TENANT, access.database or DEFAULT_DATABASE


def _headers(access: ServerAccess) -> dict[str, str] | None:
    """Return the token as a proxy or Chroma's own service takes it."""
    return {"Authorization": f"Bearer {access.token}", "X-Chroma-Token": access.token} if access.token else None


def _connected(url: str, access: ServerAccess) -> ClientAPI:
    parts = urlsplit(url)
    if parts.scheme not in ("chroma+http", "chroma+https") or not parts.hostname:
        raise InvalidStoreUrl(f"{parts.scheme}:…", URLS)
    if parts.username or parts.password or parts.path not in ("", "/"):
        raise InvalidStoreUrl(
            f"{parts.scheme}:…",
            "no user, password or path; a token in VECFERRY_STORE_TOKEN, or a client of your own",
        )
    ssl = parts.scheme.endswith("https")
    try:
        client = chromadb.HttpClient(
            parts.hostname,
            parts.port or (443 if ssl else 8000),
            ssl,
            _headers(access),
            Settings(anonymized_telemetry=False),
            *_place(access),
        )
    except (ValueError, ChromaError, httpx.HTTPError) as exc:
        reason = str(exc).replace(access.token, "***") if access.token else str(exc)
        raise StoreUnreachable("chroma", f"{parts.hostname}: {reason}") from exc
    for session in _sessions(client):
        session.timeout = httpx.Timeout(TIMEOUT_S)
    return client


def _sessions(client: ClientAPI) -> list[httpx.Client]:
    """Return the connections of an HTTP client, which it neither closes nor gives a time limit."""
    servers = [getattr(holder, "_server", None) for holder in (client, getattr(client, "_admin_client", None))]
    sessions = [getattr(server, "_session", None) for server in servers]
    return [session for session in sessions if isinstance(session, httpx.Client)]
