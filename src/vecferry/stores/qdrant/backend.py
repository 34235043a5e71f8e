"""The backend over Qdrant's client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Self
from uuid import UUID

import numpy as np
from qdrant_client import models

from vecferry.embeddings import Float32, Outputs, SparseVector, TextVectors
from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.backend import PEEKED, BackendHit, Fields, Point, VectorField
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.qdrant.connection import KIND, QdrantConnection
from vecferry.stores.qdrant.filters import qdrant_filter
from vecferry.stores.qdrant.kept_vectors import VECTORS, KeptVectors
from vecferry.stores.qdrant.layout import (
    COLBERT,
    NO_VECTOR_NAME,
    SPARSE,
    QdrantLayout,
    create,
    dense_vectors,
    missing_indexes,
)
from vecferry.stores.request_batches import RequestBatches, slices

MAX_NUMBER = 2**64 - 1
INDEX_TIMEOUT_S = 3600
INDEX_POLL_S = 1.0
PORTION = RequestBatches(num_points=500, num_bytes=16 * 2**20)  # a server takes 32 MiB unless told otherwise
BYTES_PER_NUMBER = 20
DELETED_AT_A_TIME = 1000
READ_AT_A_TIME = 200
READ_WITH_COLBERT = 10  # a point with a vector for each token has megabytes
SCROLL_PAGE = 5000
COLBERT_DECIMALS = 5  # as exact as float16 is below 0.1, in half of the bytes


class QdrantBackend:
    """`Backend`, `Aliased`, `OptionalVectors` and `Browsable` over one Qdrant.

    An id is a whole number below 2^64 or a UUID, in its usual spelling.
    """

    def __init__(self, connection: QdrantConnection, fields: Fields) -> None:
        self._connection = connection
        self._fields = fields
        self._is_closed = False

    @classmethod
    def open(cls, url: str, fields: Fields, api_key: str | None = None) -> Self:
        """Open a URL: `qdrant:///folder`, `qdrant:folder`, `qdrant+http://host:6333`, `qdrant+https://:KEY@host:6333`.

        Raises StoreUnreachable; no message carries the key. A folder must be there.
        """
        return cls(QdrantConnection.open(url, api_key), fields)

    @property
    def kind(self) -> str:
        return KIND

    @property
    def text_field(self) -> str:
        return self._fields.text

    @property
    def outputs(self) -> Outputs:
        return Outputs.ALL

    def another(self) -> Self:
        self._connection.share()
        return type(self)(self._connection, self._fields)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._connection.release()

    # --- collections ------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        with self._connection.client() as client:
            collections = [each.name for each in client.get_collections().collections]
        return {name: name for name in collections} | self._aliases()

    def exists(self, collection: str) -> bool:
        with self._connection.client() as client:
            return client.collection_exists(collection)

    def dimension(self, collection: str) -> int | None:
        return self._layout(collection).dense.size

    def count(self, collection: str) -> int:
        with self._connection.client() as client:
            return client.count(collection, exact=True).count

    def vector_fields(self) -> list[VectorField]:
        """Return the dense vectors of every collection, by the alias that applications use where there is one."""
        with self._connection.client() as client:
            names = [each.name for each in client.get_collections().collections]
        aliases = {collection: alias for alias, collection in self._aliases().items()}
        return [field for name in names for field in self._vector_fields(name, aliases.get(name, name))]

    def _vector_fields(self, collection: str, called: str) -> Iterator[VectorField]:
        with self._connection.client() as client:
            records, _ = client.scroll(collection, limit=PEEKED)
        names = tuple(dict.fromkeys(name for record in records for name in record.payload or {}))
        for vector, size in dense_vectors(self._info(collection)).items():
            rows = self.count(collection)
            yield VectorField(called, vector, (size,), rows, names, next(iter(names), self.text_field))

    def check(self, like: str, outputs: Outputs) -> None:
        layout = self._layout(like)
        layout.check(outputs, self._new_name(layout))

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        """Create an empty collection; further vectors and all settings are those of `like`, payload indexes too."""
        if self.exists(collection):
            raise StoreSchemaError(f"there is a collection {collection} already", "Rename or drop it.")
        self.check(like, outputs)
        info = self._info(like)
        layout = QdrantLayout.of(info, like, self._fields)
        with self._connection.client() as client:
            create(client, collection, info, layout, dimension, outputs, self._new_name(layout))
        self._create_payload_indexes(collection, info)

    def drop(self, collection: str) -> None:
        with self._connection.client() as client:
            client.delete_collection(collection)

    def _info(self, collection: str) -> models.CollectionInfo:
        with self._connection.client() as client:
            return client.get_collection(collection)

    def _layout(self, collection: str) -> QdrantLayout:
        return QdrantLayout.of(self._info(collection), collection, self._fields)

    def _new_name(self, like: QdrantLayout) -> str:
        """Return the name of the dense vector in a new collection."""
        return like.name if self._fields.new_vector is None else self._fields.new_vector

    # --- points -----------------------------------------------------------------------------------

    def ids(self, collection: str) -> Iterator[str]:
        offset: models.ExtendedPointId | None = None
        while True:
            with self._connection.client() as client:
                records, offset = client.scroll(
                    collection,
                    limit=SCROLL_PAGE,
                    offset=offset,
                    with_payload=False,
                    consistency=models.ReadConsistencyType.MAJORITY,
                )
            yield from (str(record.id) for record in records)
            if offset is None:
                return

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        layout = self._layout(collection)
        names = [*(layout.names if vectors else ()), *layout.other_names]
        numbers = [_point_id(id_) for id_ in ids]
        points: list[Point] = []
        for part in slices(numbers, READ_WITH_COLBERT if names and layout.has_multivectors else READ_AT_A_TIME):
            with self._connection.client() as client:
                records = client.retrieve(
                    collection, part, with_vectors=names or False, consistency=models.ReadConsistencyType.MAJORITY
                )
            points += [self._point(layout, record) for record in records]
        return points

    def put(self, collection: str, points: Sequence[Point]) -> None:
        layout = self._layout(collection)
        structs = {point.id: _point_id(point.id) for point in points}
        for batch in PORTION.split(points, BYTES_PER_NUMBER):
            with self._connection.client() as client:
                written = [self._struct(layout, structs[point.id], point) for point in batch]
                client.upsert(collection, written, wait=True, ordering=models.WriteOrdering.STRONG)

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        for part in slices([_point_id(id_) for id_ in ids], DELETED_AT_A_TIME):
            with self._connection.client() as client:
                selector = models.PointIdsList(points=list(part))
                client.delete(collection, selector, wait=True, ordering=models.WriteOrdering.STRONG)

    def without_vector(self, collection: str, ids: Sequence[str]) -> set[str]:
        """Ask for points without the named vector; every point has the one without a name."""
        found: set[str] = set()
        name = self._layout(collection).name
        for part in slices([_point_id(id_) for id_ in ids] if name else [], READ_AT_A_TIME):
            among = _without(name, models.HasIdCondition(has_id=list(part)))
            with self._connection.client() as client:
                records, _ = client.scroll(collection, among, limit=len(part), with_payload=False)
            found.update(str(record.id) for record in records)
        return found

    def count_without_vector(self, collection: str) -> int:
        if not (name := self._layout(collection).name):
            return 0
        with self._connection.client() as client:
            return client.count(collection, _without(name), exact=True).count

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        layout, where = self._layout(collection), qdrant_filter(selection.where)
        with self._connection.client() as client:
            answer = client.query_points(
                collection,
                vector.tolist(),
                using=layout.name or None,
                query_filter=where,
                limit=k,
                with_payload=selection.wants_points,
            )
        return [
            BackendHit(
                str(point.id),
                _cosine(point.score, layout.dense.distance),
                self._point(layout, point) if selection.wants_points else None,
            )
            for point in answer.points
        ]

    def _point(self, layout: QdrantLayout, record: models.Record | models.ScoredPoint) -> Point:
        payload = dict(record.payload or {})
        text = payload.pop(self._fields.text, None)
        if text is not None and not isinstance(text, str):
            what = f"the field {self._fields.text} of point {record.id} is no text but {type(text).__name__}"
            raise StoreSchemaError(what, "Name the payload field that holds the text.")
        vectors = record.vector if isinstance(record.vector, dict) else {NO_VECTOR_NAME: record.vector}
        if layout.other_names:
            if VECTORS in payload:
                raise StoreSchemaError(f"point {record.id} has a payload field {VECTORS!r}", "Rename it.")
            kept = KeptVectors({name: vectors[name] for name in layout.other_names if name in vectors})
            payload |= {VECTORS: kept} if kept else {}
        if (dense := _numbers(vectors.get(layout.name))) is None:
            return Point(str(record.id), text, None, payload)
        sparse = _sparse(vectors.get(SPARSE)) if Outputs.SPARSE in layout.heads else None
        colbert = _numbers(vectors.get(COLBERT)) if Outputs.COLBERT in layout.heads else None
        return Point(str(record.id), text, TextVectors(dense, sparse, colbert), payload)

    def _struct(self, layout: QdrantLayout, number: int | str, point: Point) -> models.PointStruct:
        payload = dict(point.payload)
        vectors: dict[str, Any] = dict(payload.pop(VECTORS, ())) if layout.other_names else {}
        if strange := vectors.keys() - set(layout.other_names):
            raise StoreSchemaError(f"{layout.collection} has no further vector {min(strange)!r}", "Leave it out.")
        if point.text is not None:
            payload[self._fields.text] = point.text
        if point.vectors is None:
            if not layout.name:
                raise StoreSchemaError(f"no vector for point {point.id}", "Every point has one where it has no name.")
            return models.PointStruct(id=number, payload=payload, vector=vectors)
        if refused := point.vectors.outputs & ~layout.heads:
            what = f"{layout.collection} has no place for {', '.join(refused.names)}"
            raise StoreSchemaError(what, "Its migration was begun without it.")
        vectors[layout.name] = point.vectors.dense.tolist()
        sparse, colbert = point.vectors.sparse, point.vectors.colbert
        if sparse is not None and len(sparse.indices):
            vectors[SPARSE] = models.SparseVector(indices=sparse.indices.tolist(), values=sparse.weights.tolist())
        if colbert is not None and len(colbert):
            vectors[COLBERT] = np.round(colbert.astype(np.float64), COLBERT_DECIMALS).tolist()
        return models.PointStruct(id=number, payload=payload, vector=vectors)

    # --- indexes ----------------------------------------------------------------------------------

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        """Wait for the index. A server builds HNSW by itself; this waits for it, an hour at most."""
        missing = self.missing_indexes(collection, like)
        self._create_payload_indexes(collection, self._info(like))
        end = time.monotonic() + INDEX_TIMEOUT_S
        while self.missing_indexes(collection, like):
            if time.monotonic() > end:
                raise StoreFailed(KIND, f"{collection} is still being indexed after {INDEX_TIMEOUT_S} s")
            time.sleep(INDEX_POLL_S)
        return missing

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        return missing_indexes(self._info(collection), self._info(like))

    def _create_payload_indexes(self, collection: str, like: models.CollectionInfo) -> None:
        indexed = self._info(collection).payload_schema
        for name, index in like.payload_schema.items():
            if name not in indexed:
                with self._connection.client() as client:
                    client.create_payload_index(collection, name, index.params or index.data_type, wait=True)

    # --- aliases ----------------------------------------------------------------------------------

    def resolve(self, name: str) -> str:
        return self._aliases().get(name, name)

    def is_alias(self, name: str) -> bool:
        return name in self._aliases()

    def point_alias(self, alias: str, collection: str) -> None:
        gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
        made = models.CreateAliasOperation(
            create_alias=models.CreateAlias(alias_name=alias, collection_name=self.resolve(collection))
        )
        steps: list[models.AliasOperations] = [gone, made] if self.is_alias(alias) else [made]
        with self._connection.client() as client:
            client.update_collection_aliases(steps)

    def drop_alias(self, alias: str) -> None:
        if self.is_alias(alias):
            gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
            with self._connection.client() as client:
                client.update_collection_aliases([gone])

    def _aliases(self) -> dict[str, str]:
        with self._connection.client() as client:
            return {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}


# --- values ---------------------------------------------------------------------------------------


def _without(name: str, *also: models.Condition) -> models.Filter:
    """Return a filter for points without the vector of that name."""
    return models.Filter(must=list(also), must_not=[models.HasVectorCondition(has_vector=name)])


def _point_id(id_: str) -> int | str:
    """Return the id as Qdrant takes it. Raises StoreSchemaError for any other spelling of it, and for no id."""
    if id_.isascii() and id_.isdecimal() and len(id_) <= len(str(MAX_NUMBER)):
        number = int(id_)
        if str(number) == id_ and number <= MAX_NUMBER:
            return number
    try:
        canonical = str(UUID(id_))
    except ValueError:
        canonical = None
    if canonical != id_:
        hint = f"Write {canonical}." if canonical else f"An id is a whole number from 0 to {MAX_NUMBER}, or a UUID."
        raise StoreSchemaError(f"{id_!r} is not an id of a Qdrant point", hint)
    return id_


def _numbers(stored: object) -> Float32 | None:
    return None if stored is None else np.asarray(stored, np.float32)


def _sparse(stored: object) -> SparseVector | None:
    if not isinstance(stored, models.SparseVector):
        return None
    ids, weights = np.asarray(stored.indices, np.int32), np.asarray(stored.values, np.float32)
    order = np.argsort(ids)
    return SparseVector(ids[order], weights[order])


def _cosine(score: float, distance: models.Distance) -> float:
    """Return the cosine of two unit vectors, from the score that Qdrant gives them."""
    return 1 - score**2 / 2 if distance == models.Distance.EUCLID else score
