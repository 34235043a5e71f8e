"""The backend over Milvus's client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from pymilvus import MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.milvus_client import IndexParams

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import StoreError, StoreSchemaError
from vecferry.stores.backend import BackendHit, Fields, Point
from vecferry.stores.milvus.connection import KIND, TIMEOUT_S, Address, translated
from vecferry.stores.milvus.layout import DYNAMIC, SPARSE, MilvusLayout
from vecferry.stores.request_batches import RequestBatches, slices

STRONG = "Strong"
METRICS = ("COSINE", "IP", "L2")
INDEX_TIMEOUT_S = 3600
PORTION = RequestBatches(num_points=1000, num_bytes=16 * 2**20)  # a server takes 64 MiB unless told otherwise
BYTES_PER_NUMBER = 4
IDS_AT_A_TIME = 500
PAGE = 5000  # of 16,384 that a server gives at most
MAX_HITS = 16_384
_STATISTICS = ("total_rows", "indexed_rows", "pending_index_rows", "state", "field_name", "index_name", "index_type")


class MilvusBackend:
    """`Backend` and `Aliased` over one database of Milvus.

    An id is any text, or a whole number of 64 bits, as the primary key is.
    """

    def __init__(self, address: Address, fields: Fields) -> None:
        self._address = address
        self._fields = fields
        self._connected = address.connect()
        self._turn = address.turn()
        self._loaded: set[str] = set()

    @classmethod
    def open(cls, url: str, fields: Fields, token: str | None = None) -> Self:
        """Open a URL: `milvus:///path.db`, `milvus:relative.db`, `milvus+http://USER:PASSWORD@host:19530/DATABASE`.

        Raises StoreUnreachable; no message carries the token. A folder must be there.
        """
        return cls(Address.parse(url, token), fields)

    @property
    def kind(self) -> str:
        return KIND

    @property
    def text_field(self) -> str:
        return self._fields.text

    @property
    def outputs(self) -> Outputs:
        return DENSE | Outputs.SPARSE

    def another(self) -> Self:
        return type(self)(self._address, self._fields)

    def close(self) -> None:
        with translated(self._address):
            self._connected.close()

    @contextmanager
    def _client(self, loaded: str | None = None) -> Iterator[MilvusClient]:
        """Yield the client, for one thread at a time. loaded: a collection that is going to be read."""
        with translated(self._address), self._turn:
            if loaded is not None and loaded not in self._loaded:
                state = self._connected.get_load_state(loaded, timeout=TIMEOUT_S)
                if state["state"] == LoadState.NotLoad:
                    self._connected.load_collection(loaded, timeout=INDEX_TIMEOUT_S)
                self._loaded.add(loaded)
            yield self._connected

    # --- collections ------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        with self._client() as client:
            collections = client.list_collections(timeout=TIMEOUT_S)
            aliases = client.list_aliases(timeout=TIMEOUT_S)["aliases"]
        return {name: name for name in collections} | {alias: self.resolve(alias) for alias in aliases}

    def exists(self, collection: str) -> bool:
        with self._client() as client:
            return bool(client.has_collection(collection, timeout=TIMEOUT_S))

    def dimension(self, collection: str) -> int | None:
        return self._layout(collection).dimension

    def count(self, collection: str) -> int:
        (row,) = self._query(collection, "", ["count(*)"])
        return int(row["count(*)"])

    def check(self, like: str, outputs: Outputs) -> None:
        for head in (outputs & ~self.outputs).names:
            raise StoreSchemaError(f"a collection of Milvus cannot keep {head} vectors", "Leave that head out.")
        layout = self._layout(like)
        layout.check()
        self._metric(layout)

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        """Create an empty collection. Properties, shards and all indexes are those of `like`; it is loaded."""
        if self.exists(collection):
            raise StoreSchemaError(f"there is a collection {collection} already", "Rename or drop it.")
        self.check(like, outputs)
        layout = self._layout(like)
        indexes = {name: index for name, index in self._indexes(like).items() if name != SPARSE}
        if Outputs.SPARSE in outputs:
            indexes[SPARSE] = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"}
        try:
            with self._client() as client:
                client.create_collection(
                    collection,
                    schema=layout.copied(dimension, outputs),
                    timeout=TIMEOUT_S,
                    properties=layout.described["properties"],
                    num_shards=layout.described["num_shards"],
                    consistency_level=layout.described["consistency_level_name"],
                )
                client.create_index(collection, _as_params(indexes), timeout=TIMEOUT_S, sync=False)
                client.load_collection(collection, timeout=TIMEOUT_S)  # waits for the indexes
        except StoreError:
            self.drop(collection)  # it may be there without its indexes
            raise

    def drop(self, collection: str) -> None:
        if self.is_alias(collection):
            raise StoreSchemaError(f"{collection} is an alias", "Drop the collection behind it by its own name.")
        self._loaded.discard(collection)
        if self.exists(collection):
            with self._client() as client:
                for alias in client.list_aliases(collection, timeout=TIMEOUT_S)["aliases"]:
                    client.drop_alias(alias, timeout=TIMEOUT_S)
                client.drop_collection(collection, timeout=TIMEOUT_S)

    def _layout(self, collection: str) -> MilvusLayout:
        with self._client() as client:
            described = client.describe_collection(collection, timeout=TIMEOUT_S)
        return MilvusLayout.of(described, self._fields)

    # --- points -----------------------------------------------------------------------------------

    def ids(self, collection: str) -> Iterator[str]:
        layout = self._layout(collection)
        last: str | int | None = None
        while True:
            rows = self._query(
                collection,
                layout.is_above(last),
                [self._fields.key],
                limit=PAGE,
                iterator="True",  # with these two a server gives the lowest keys, ascending
                reduce_stop_for_best="True",
            )
            if not rows:
                return
            yield from (str(row[self._fields.key]) for row in rows)
            last = rows[-1][self._fields.key]

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        layout = self._layout(collection)
        rows = self._rows(layout, collection, ids, layout.read_fields(vectors=vectors))
        return [layout.point(row, keeps_nulls=not self._address.is_lite) for row in rows]

    def put(self, collection: str, points: Sequence[Point]) -> None:
        layout = self._layout(collection)
        for batch in PORTION.split(points, BYTES_PER_NUMBER):
            rows = [layout.row(point) for point in batch]
            self._name_what_goes(layout, collection, rows)
            with self._client() as client:
                client.upsert(collection, rows, timeout=TIMEOUT_S)

    def _name_what_goes(self, layout: MilvusLayout, collection: str, rows: Sequence[dict[str, Any]]) -> None:
        """Name the entries that go: Milvus Lite keeps those of the dynamic field that an upsert does not name."""
        if not (self._address.is_lite and layout.is_dynamic):
            return
        new = {str(row[self._fields.key]): row for row in rows}
        for old in self._rows(layout, collection, list(new), [self._fields.key, DYNAMIC]):
            row = new[str(old[self._fields.key])]
            row |= dict.fromkeys(layout.dynamic(old) - row.keys())

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        layout = self._layout(collection)
        for part in slices([layout.key(id_) for id_ in ids], IDS_AT_A_TIME):
            with self._client() as client:
                client.delete(collection, filter=layout.is_in(part), timeout=TIMEOUT_S)

    def search(self, collection: str, vector: Float32, k: int) -> list[BackendHit]:
        layout = self._layout(collection)
        metric = self._metric(layout)
        with self._client(loaded=collection) as client:
            (hits,) = client.search(
                collection,
                [vector.tolist()],
                anns_field=self._fields.vector,
                limit=min(k, MAX_HITS),
                consistency_level=STRONG,
                timeout=TIMEOUT_S,
            )
        return [BackendHit(str(hit[self._fields.key]), _cosine(hit["distance"], metric)) for hit in hits]

    def _rows(
        self, layout: MilvusLayout, collection: str, ids: Sequence[str], fields: list[str]
    ) -> list[Mapping[str, Any]]:
        keys = [layout.key(id_) for id_ in ids]
        parts = slices(keys, IDS_AT_A_TIME)
        return [row for part in parts for row in self._query(collection, layout.is_in(part), fields)]

    def _query(self, collection: str, condition: str, fields: list[str], **options: object) -> list[Mapping[str, Any]]:
        with self._client(loaded=collection) as client:
            rows = client.query(
                collection, condition, output_fields=fields, timeout=TIMEOUT_S, consistency_level=STRONG, **options
            )
        return list(rows)

    # --- indexes ----------------------------------------------------------------------------------

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        missing = self.missing_indexes(collection, like)
        if missing:
            indexes = self._indexes(like)
            with self._client() as client:
                params = _as_params({name: indexes[name] for name in missing})
                client.create_index(collection, params, timeout=INDEX_TIMEOUT_S, sync=not self._address.is_lite)
        return missing

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        """Return the fields of missing indexes."""
        indexed, fields = self._indexes(collection), self._layout(collection).fields
        return tuple(name for name in self._indexes(like) if name in fields and name not in indexed)

    def _indexes(self, collection: str) -> dict[str, dict[str, Any]]:
        """Return the indexes by field."""
        with self._client() as client:
            names = client.list_indexes(collection, timeout=TIMEOUT_S)
            described = [client.describe_index(collection, name, timeout=TIMEOUT_S) for name in names]
        return {index["field_name"]: index for index in described}

    def _metric(self, layout: MilvusLayout) -> str:
        metric = str(self._indexes(layout.collection).get(self._fields.vector, {}).get("metric_type"))
        if metric not in METRICS:
            what = f"the metric of {layout.collection} is {metric}"
            raise StoreSchemaError(what, f"Its index on {self._fields.vector} must be by one of {', '.join(METRICS)}.")
        return metric

    # --- aliases ----------------------------------------------------------------------------------

    def resolve(self, name: str) -> str:
        if not self.is_alias(name):
            return name
        with self._client() as client:
            return str(client.describe_alias(name, timeout=TIMEOUT_S)["collection_name"])

    def is_alias(self, name: str) -> bool:
        with self._client() as client:
            return name in client.list_aliases(timeout=TIMEOUT_S)["aliases"]

    def point_alias(self, alias: str, collection: str) -> None:
        is_there, resolved = self.is_alias(alias), self.resolve(collection)
        self._loaded.discard(alias)
        with self._client() as client:
            point = client.alter_alias if is_there else client.create_alias
            point(resolved, alias, timeout=TIMEOUT_S)

    def drop_alias(self, alias: str) -> None:
        if self.is_alias(alias):
            self._loaded.discard(alias)
            with self._client() as client:
                client.drop_alias(alias, timeout=TIMEOUT_S)


def _as_params(indexes: Mapping[str, Mapping[str, Any]]) -> IndexParams:
    """Return indexes, as the store describes them, in the form in which it takes them."""
    params = MilvusClient.prepare_index_params()
    for field, index in indexes.items():
        settings = {name: value for name, value in index.items() if name not in _STATISTICS and value != "NONE"}
        params.add_index(field, index["index_type"], index.get("index_name", field), **settings)
    return params


def _cosine(distance: float, metric: str) -> float:
    """Return the cosine of two unit vectors; L2 is told as its square."""
    return 1 - distance / 2 if metric == "L2" else distance
