"""The backend over Milvus's client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from pymilvus import MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.milvus_client import IndexParams

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import StoreError, StoreFailed, StoreSchemaError
from vecferry.stores.backend import BackendHit, Fields, Point, VectorField
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.milvus.connection import KIND, TIMEOUT_S, Address, translated
from vecferry.stores.milvus.filters import milvus_expression
from vecferry.stores.milvus.layout import (
    DEFAULT_PARTITION,
    DYNAMIC,
    PARTITION,
    SPARSE,
    TAKES_IDS,
    MilvusLayout,
    has_partition_key,
    vector_fields,
)
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
    """`Backend`, `Aliased`, `Noticing` and `Browsable` over one database of Milvus.

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

    def vector_fields(self) -> list[VectorField]:
        """Return the dense vectors of every collection; an entry of a dynamic field is seen in its rows alone."""
        with self._client() as client:
            names = client.list_collections(timeout=TIMEOUT_S)
        return [field for name in names for field in self._vector_fields(name)]

    def _vector_fields(self, collection: str) -> list[VectorField]:
        with self._client() as client:
            described = client.describe_collection(collection, timeout=TIMEOUT_S)
            rows = int(client.get_collection_stats(collection, timeout=TIMEOUT_S)["row_count"])
            called = next(iter(client.list_aliases(collection, timeout=TIMEOUT_S)["aliases"]), collection)
        return vector_fields(described, called, rows)

    def check(self, like: str, outputs: Outputs) -> None:
        for head in (outputs & ~self.outputs).names:
            raise StoreSchemaError(f"a collection of Milvus cannot keep {head} vectors", "Leave that head out.")
        layout = self._layout(like)
        layout.check(outputs)
        if layout.makes_ids and self._address.is_lite:
            what = f"{like} makes its ids by itself, and Milvus Lite would count from the beginning in a new collection"
            raise StoreSchemaError(what, "It would give ids again that points have; migrate it on a server.")
        self._metric(layout)
        self._require_unique_keys(layout)

    def notices(self, collection: str) -> tuple[str, ...]:
        layout = self._layout(collection)
        if not layout.makes_ids:
            return ()
        notice = (
            f"{collection} makes its ids by itself: points keep theirs by the property {TAKES_IDS} of the new"
            f" collection, and of {collection} itself with the first write that follows a switch; Milvus 2.6 knows it"
        )
        return (notice,)

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        """Create an empty collection. Properties, shards, partitions, all indexes are those of `like`; it is loaded."""
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
                    properties=layout.new_properties(outputs),
                    num_shards=layout.described["num_shards"],
                    consistency_level=layout.described["consistency_level_name"],
                    **({"num_partitions": layout.num_key_partitions} if layout.num_key_partitions else {}),
                )
                client.create_index(collection, _as_params(indexes), timeout=TIMEOUT_S, sync=False)
                client.load_collection(collection, timeout=TIMEOUT_S)  # waits for the indexes
            self._create_partitions(collection, layout.partitions)
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
            is_divided = described.get("num_partitions", 1) > 1 and not has_partition_key(described)
            partitions = client.list_partitions(collection, timeout=TIMEOUT_S) if is_divided else ()
        return MilvusLayout.of(described, self._fields, partitions)

    def _create_partitions(self, collection: str, partitions: Iterable[str]) -> None:
        """Create those that are not there."""
        with self._client() as client:
            for missing in set(partitions).difference(client.list_partitions(collection, timeout=TIMEOUT_S)):
                client.create_partition(collection, missing, timeout=TIMEOUT_S)

    def _require_unique_keys(self, layout: MilvusLayout) -> None:
        """Raise StoreSchemaError where two partitions have a point of one key: it would be written to one of them."""
        if layout.partitions:
            ids = list(self.ids(layout.collection))
            if surplus := len(ids) - len(set(ids)):
                what = f"{layout.collection} has {surplus} points whose key another partition has too"
                raise StoreSchemaError(what, "Give each point a key of its own.")

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
        fields, wanted = layout.read_fields(vectors=vectors), set(ids)
        points: list[Point] = []
        for partition in layout.partitions or ("",):
            rows = self._rows(layout, collection, list(wanted), fields, [partition] if partition else ())
            points += [layout.point(row, partition, keeps_nulls=not self._address.is_lite) for row in rows]
            wanted.difference_update(point.id for point in points)
        return points

    def put(self, collection: str, points: Sequence[Point]) -> None:
        """Write points, each into its partition, which is made if need be.

        Where the store makes the ids, an upsert would change them on a server: points are deleted and inserted.
        """
        layout = self._layout(collection)
        by_partition: dict[str, list[Point]] = {}
        for point in points:
            by_partition.setdefault(str(point.payload.get(PARTITION, DEFAULT_PARTITION)), []).append(point)
        if by_partition.keys() - {DEFAULT_PARTITION, *layout.partitions}:
            self._create_partitions(collection, by_partition)
            layout = self._layout(collection)
        for partition, members in by_partition.items():
            for batch in PORTION.split(members, BYTES_PER_NUMBER):
                rows = [layout.row(point) for point in batch]
                self._name_what_goes(layout, collection, rows)
                self._write(layout, collection, rows, partition if layout.partitions else "")

    def _write(self, layout: MilvusLayout, collection: str, rows: list[dict[str, Any]], partition: str) -> None:
        keys = [row[self._fields.key] for row in rows]
        if self._address.is_lite or not layout.makes_ids:
            with self._client() as client:
                client.upsert(collection, rows, partition_name=partition, timeout=TIMEOUT_S)
            if not self._address.is_lite:  # it knows one point of a key in all partitions
                self._delete_elsewhere(layout, collection, keys, partition)
            return
        if not layout.takes_ids:
            with self._client() as client:
                client.alter_collection_properties(collection, {TAKES_IDS: "true"}, timeout=TIMEOUT_S)
        self._delete(layout, collection, keys)
        with self._client() as client:
            written = client.insert(collection, rows, partition_name=partition, timeout=TIMEOUT_S)
        if list(written["ids"]) != keys:
            raise StoreFailed(KIND, f"{collection} does not take given ids, and has made others; it needs {TAKES_IDS}")

    def _delete_elsewhere(
        self, layout: MilvusLayout, collection: str, keys: Sequence[str | int], partition: str
    ) -> None:
        """Delete the points with these keys from all other partitions: a server's upsert looks in its own alone."""
        others = [other for other in layout.partitions if other != partition]
        ids = [str(key) for key in keys] if others else []
        strays = [
            layout.key(str(row[self._fields.key]))
            for row in self._rows(layout, collection, ids, [self._fields.key], others)
        ]
        for other in others if strays else ():
            self._delete(layout, collection, strays, other)

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
        self._delete(layout, collection, [layout.key(id_) for id_ in ids])

    def _delete(
        self, layout: MilvusLayout, collection: str, keys: Sequence[str | int], partition: str | None = None
    ) -> None:
        for part in slices(keys, IDS_AT_A_TIME):
            with self._client() as client:
                client.delete(collection, filter=layout.is_in(part), partition_name=partition, timeout=TIMEOUT_S)

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        layout = self._layout(collection)
        condition = milvus_expression(selection.where, layout)
        metric = self._metric(layout)
        with self._client(loaded=collection) as client:
            (hits,) = client.search(
                collection,
                [vector.tolist()],
                anns_field=self._fields.vector,
                filter=condition,
                limit=min(k, MAX_HITS),
                output_fields=layout.read_fields(vectors=False) if selection.wants_points else None,
                consistency_level=STRONG,
                timeout=TIMEOUT_S,
            )
        return [self._hit(layout, hit, metric, selection) for hit in hits]

    def _hit(self, layout: MilvusLayout, hit: Mapping[str, Any], metric: str, selection: Selection) -> BackendHit:
        key, score = hit[self._fields.key], _cosine(hit["distance"], metric)
        if not selection.wants_points:
            return BackendHit(str(key), score)
        row = {**hit["entity"], self._fields.key: key}
        return BackendHit(str(key), score, layout.point(row, "", keeps_nulls=not self._address.is_lite))

    def _rows(
        self,
        layout: MilvusLayout,
        collection: str,
        ids: Sequence[str],
        fields: list[str],
        partitions: Sequence[str] = (),
    ) -> list[Mapping[str, Any]]:
        """Return those that are there; partitions: in these alone."""
        parts = slices([layout.key(id_) for id_ in ids], IDS_AT_A_TIME)
        where = {"partition_names": list(partitions)} if partitions else {}
        return [row for part in parts for row in self._query(collection, layout.is_in(part), fields, **where)]

    def _query(self, collection: str, condition: str, fields: list[str], **options: object) -> list[Mapping[str, Any]]:
        with self._client(loaded=collection) as client:
            rows = client.query(
                collection, condition, output_fields=fields, timeout=TIMEOUT_S, consistency_level=STRONG, **options
            )
        return list(rows)

    # --- indexes ----------------------------------------------------------------------------------

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        missing = self.missing_indexes(collection, like)
        self._create_partitions(collection, self._layout(like).partitions)
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
