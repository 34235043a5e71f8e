"""Tables of a LanceDB folder.

A point is a whole row, and columns of any Arrow type are its payload; values with nanoseconds stay Arrow
scalars, since Python's own types would round them. ColBERT vectors have a column `<vector>_colbert`
in float16: for 200 tokens of 1,024 numbers that is 400 kB.

Each call opens its table anew (2 ms), so that it never reads an old version or a dropped table. Each
write is one commit. LanceDB has no unique keys: of two writers that insert the same new key at once,
both leave a row. Writers through this file wait for each other on a lock file in the folder. Where a table has
no key, each row's is made of its content (`content_keys.py`), and found again by LanceDB's row id, which is one
version's own.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from filelock import FileLock

from vecferry.embeddings import DENSE, Float32, Outputs, TextVectors
from vecferry.errors import (
    InvalidFilter,
    MissingExtra,
    StoreFailed,
    StoreSchemaError,
    StoreUnreachable,
    without_secrets,
)
from vecferry.stores.backend import BackendHit, Fields, Point, VectorField, path_in
from vecferry.stores.filters import (
    EVERY_ROW,
    RANGES,
    Comparison,
    Condition,
    NativeFilter,
    Scalar,
    Selection,
    kind_of,
    written,
)
from vecferry.stores.request_batches import slices

try:
    import lancedb
    import pyarrow as pa
    import pyarrow.compute as pc
    from lancedb import index as kinds
    from lancedb.query import LanceVectorQueryBuilder as VectorQuery
    from lancedb.table import Table

    from vecferry.stores.content_keys import ContentKeys, by_digest, digests, numbered
except ImportError as exc:
    raise MissingExtra("lancedb", "lancedb") from exc

WHOLE_ROW = "*"
"""Instead of a column with keys: they are made of the content."""
NEEDLESS_KEY = "id"
"""The column that is looked for where nobody names one; it need not be there."""
ROW_ID = "_rowid"
MAX_ROWS = 4096
MAX_IDS = 500
ALL_ROWS = 2**31 - 1
LOCK_TIMEOUT_S = 60
CONFLICT = re.compile("conflict|concurrent writers", re.IGNORECASE)
CONFLICT_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
CREATED_AS = b"vecferry"
"""In the metadata of the tables that were made here."""
COMMITS_BETWEEN_COMPACTIONS = 256  # each adds a file that a read must open: tenfold time after 600 of them
OLD_VERSIONS_KEPT = timedelta(hours=1)
MIN_INDEXED_ROWS = 256  # fewer do not make good partitions, and comparing with each is as fast
REFINE = 10  # a quantized index gives estimates, off by up to 0.5; those of the k * 10 best are computed anew
INDEX_KINDS: dict[str, Callable[..., Any]] = {
    "IvfFlat": kinds.IvfFlat,
    "IvfSq": kinds.IvfSq,
    "IvfPq": kinds.IvfPq,
    "IvfRq": kinds.IvfRq,
    "IvfHnswFlat": kinds.HnswFlat,
    "IvfHnswSq": kinds.HnswSq,
    "IvfHnswPq": kinds.HnswPq,
}
BAD_FILTER = re.compile("(?:Invalid user input|Schema error|sql parser error|Invalid input)[^/]{0,200}")
"""What an error says of a condition."""
Metric = Literal["cosine", "dot", "l2"]
COSINES: dict[Metric, Callable[[float], float]] = {
    "cosine": lambda distance: 1 - distance,
    "dot": lambda distance: 1 - distance,
    "l2": lambda distance: 1 - distance / 2,  # squared, of unit vectors
}


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what lancedb and pyarrow raise as StoreFailed."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, OSError, OverflowError, pa.ArrowException) as exc:
        reason = re.sub(r", /\S+\.rs:\d+:\d+", "", str(exc))[:500]
        raise StoreFailed("lancedb", reason) from exc


class LanceBackend:
    """`Backend`, `Renamable`, `OptionalVectors`, `Noticing` and `Browsable` over the tables of one folder.

    Keys are strings or integers, or made of the content.
    """

    kind = "lancedb"
    outputs = Outputs.DENSE | Outputs.COLBERT

    def __init__(self, folder: Path, fields: Fields) -> None:
        """Open the folder. Raises StoreUnreachable if there is none."""
        if not folder.is_dir():
            raise StoreUnreachable("lancedb", f"there is no folder {without_secrets(str(folder))}")
        self._folder, self._fields = folder, fields
        self._colbert = f"{fields.vector}_colbert"
        self._content: dict[str, ContentKeys] = {}
        with _translated():
            self._database = lancedb.connect(folder, read_consistency_interval=timedelta(0))

    @classmethod
    def open(cls, url: str, fields: Fields) -> Self:
        """Open a URL: lancedb:///an/absolute/path, or lancedb:a/relative/one."""
        return cls(Path(path_in(url, "lancedb:///absolute/path, or lancedb:relative/path")), fields)

    def another(self) -> LanceBackend:
        return LanceBackend(self._folder, self._fields)

    def close(self) -> None:
        """Do nothing: nothing is held between calls."""

    @property
    def text_field(self) -> str:
        return self._fields.text

    # --- collections ------------------------------------------------------------------------------

    @_translated()
    def names(self) -> dict[str, str]:
        return {file.stem: file.stem for file in self._folder.glob("*.lance")}

    @_translated()
    def exists(self, collection: str) -> bool:
        return self._opened(collection) is not None

    @_translated()
    def dimension(self, collection: str) -> int | None:
        size: int = self._table(collection).schema.field(self._fields.vector).type.list_size
        return size

    @_translated()
    def count(self, collection: str) -> int:
        return self._table(collection).count_rows()

    @_translated()
    def vector_fields(self) -> list[VectorField]:
        names, answer = list[str](), self._database.list_tables()
        while answer.tables:
            names += answer.tables
            answer = self._database.list_tables(page_token=answer.page_token) if answer.page_token else answer
            if not answer.page_token:
                break
        return [field for name in names for field in _vector_fields(self._database.open_table(name))]

    @_translated()
    def check(self, like: str, outputs: Outputs) -> None:
        """Also raises StoreSchemaError if two rows have the same key, or one none."""
        if refused := outputs & ~self.outputs:
            raise StoreSchemaError(f"a LanceDB table has no place for {', '.join(refused.names)}", "Leave it out.")
        table = self._table(like)
        self._metric(table)
        if self._key_of(table.schema) is not None:
            self._require_unique_keys(table)

    @_translated()
    def notices(self, collection: str) -> tuple[str, ...]:
        """Say that keys are made of the content, where they are."""
        if self._key_of(self._table(collection).schema) is not None:
            return ()
        notice = (
            f"rows of {collection} have no key: each one's is made of its content without the vector, and a row that is"
            " changed is a new one; the application writes by LanceDB's own client, and that is found by comparing"
        )
        return (notice,)

    @_translated()
    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        if self._opened(collection) is not None:
            raise StoreSchemaError(f"there is a table {collection!r} already", "Drop it first, or take another name.")
        self.check(like, outputs)
        table = self._table(like)
        schema = self._new_schema(table.schema, dimension, colbert=Outputs.COLBERT in outputs)
        schema = schema.with_metadata(schema.metadata | {CREATED_AS: collection.encode()})
        self._database.create_table(collection, schema=schema)

    @_translated()
    def drop(self, collection: str) -> None:
        if self._opened(collection) is not None:
            self._database.drop_table(collection)

    @_translated()
    def rename(self, collection: str, name: str) -> None:
        """Rename a table: its folder, where this version of LanceDB cannot rename it itself."""
        self._table(collection)
        if self._opened(name) is not None:
            raise StoreSchemaError(f"there is a table {name!r} already", "Drop it first, or take another name.")
        with self._lock(collection):
            try:
                self._database.rename_table(collection, name)
            except NotImplementedError:
                folder = self._table_folder(name)
                if folder.exists():  # what a drop that was killed has left
                    shutil.rmtree(folder)
                self._table_folder(collection).rename(folder)

    @_translated()
    def created_as(self, collection: str) -> str | None:
        name = (self._table(collection).schema.metadata or {}).get(CREATED_AS)
        return None if name is None else name.decode()

    def _table_folder(self, collection: str) -> Path:
        return self._folder / f"{collection}.lance"

    def _lock(self, collection: str) -> FileLock:
        """Return what writers of the table take in turn."""
        return FileLock(self._folder / f".{collection}.vecferry-lock", timeout=LOCK_TIMEOUT_S)

    def _new_schema(self, schema: pa.Schema, dimension: int, *, colbert: bool) -> pa.Schema:
        old = schema.field(self._fields.vector)
        new = old.with_type(pa.list_(old.type.value_type, dimension))
        fields = [new if field.name == old.name else field for field in schema if field.name != self._colbert]
        if colbert:
            fields.append(pa.field(self._colbert, pa.list_(pa.list_(pa.float16(), dimension))))
        metadata = dict(schema.metadata or {})
        metadata.pop(b"embedding_functions", None)  # it would embed queries with the old model
        return pa.schema(fields, metadata=metadata)

    def _require_unique_keys(self, table: Table) -> None:
        keys = self._read(table, None, [self._fields.key])[self._fields.key]
        if surplus := len(keys) - pc.count_distinct(keys).as_py():
            reason = f"{table.name} has {surplus} rows without a key of their own in {self._fields.key!r}"
            hint = f"Every row needs a key of its own, or [store] key = {WHOLE_ROW!r}: then its content is its key."
            raise StoreSchemaError(reason, hint)

    def _key_of(self, schema: pa.Schema) -> str | None:
        """Return the column with the keys; None where they are made of the content."""
        key = self._fields.key
        return None if key == WHOLE_ROW or (key == NEEDLESS_KEY and key not in schema.names) else key

    # --- points -----------------------------------------------------------------------------------

    @_translated()
    def ids(self, collection: str) -> Iterator[str]:
        table = self._table(collection)
        if self._key_of(table.schema) is None:
            return iter(self._content_of(collection)[1])
        keys = self._read(table, None, [self._fields.key])[self._fields.key]
        return (str(key) for chunk in keys.chunks for key in chunk.to_pylist())

    @_translated()
    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        table, keys = self._keyed(collection)
        heads = () if vectors else (self._fields.vector, self._colbert)
        names = [name for name in table.schema.names if name not in heads]
        if keys is not None:
            chosen = keys.row_ids(set(ids))
            return [
                point
                for rows in self._rows_of(table, chosen, names)
                for point in self._points(rows, [chosen[row] for row in rows[ROW_ID].to_pylist()])
            ]
        return [
            point
            for condition in self._filters(table.schema, ids)
            for rows in (self._read(table, condition, names),)
            for point in self._points(rows, rows[self._fields.key].to_pylist())
        ]

    @_translated()
    def put(self, collection: str, points: Sequence[Point]) -> None:
        """Write points. Raises StoreSchemaError, with nothing written, for what the table has no place for."""
        schema = self._table(collection).schema
        self._require_fit(collection, schema, points)
        for batch in slices(points, MAX_ROWS):
            rows = pa.Table.from_arrays([self._column(field, batch) for field in schema], schema=schema)
            if self._key_of(schema) is None:
                self._put_by_content(collection, rows, [point.id for point in batch])
            else:
                self._write(collection, partial(self._merge, rows))

    def _put_by_content(self, collection: str, rows: pa.Table, ids: Sequence[str]) -> None:
        """Add the rows, and delete those that had their keys; a kill in between leaves rows too many, as orphans."""
        for id_, digest in zip(ids, digests(rows, self._heads), strict=True):
            if id_.partition("-")[0] != digest:
                expected = "Write such rows by LanceDB's own client, or name a column with keys by [store] key."
                raise StoreSchemaError(f"{id_!r} is no key of {collection}, which has them of the content", expected)
        with self._lock(collection):
            _, keys = self._content_of(collection)
            add = methodcaller("add", rows, on_bad_vectors="null" if _has_null_vectors(rows) else "error")
            self._again_on_conflict(collection, add)
            self._replace_by_content(collection, keys, keys.row_ids(ids), num_commits=1)

    def _replace_by_content(
        self, collection: str, keys: ContentKeys, gone: Mapping[int, str], *, num_commits: int
    ) -> None:
        """Delete rows, and keep in mind the keys of what is there then, if nobody else has written meanwhile.

        keys: before `num_commits` commits of ours, of which the rows added since are.
        """
        parts = list(slices([*map(str, gone)], MAX_IDS))
        for part in parts:
            self._again_on_conflict(collection, methodcaller("delete", f"{ROW_ID} IN ({', '.join(part)})"))
        table = self._table(collection)
        self._compact_at_times(collection, table)
        stamp = self._stamp(collection, table)
        if stamp[0] != keys.stamp[0] + num_commits + len(parts):
            self._content.pop(collection, None)
            return
        table.checkout(stamp[0])
        added = self._read_content(table, f"{ROW_ID} >= {keys.last_row_id + 1}")
        self._content[collection] = keys.changed(stamp, added, gone)

    @_translated()
    def delete(self, collection: str, ids: Sequence[str]) -> None:
        schema = self._table(collection).schema
        if self._key_of(schema) is None:
            with self._lock(collection):
                _, keys = self._content_of(collection)
                self._replace_by_content(collection, keys, keys.row_ids(set(ids)), num_commits=0)
            return
        for condition in self._filters(schema, ids):
            self._write(collection, methodcaller("delete", condition))

    @_translated()
    def without_vector(self, collection: str, ids: Sequence[str]) -> set[str]:
        table, keys = self._keyed(collection)
        if not table.schema.field(self._fields.vector).nullable:
            return set()
        if keys is not None:
            chosen = keys.row_ids(set(ids))
            bare = self._rows_of(table, chosen, [], f"{self._is_null} AND ")
            return {chosen[row] for rows in bare for row in rows[ROW_ID].to_pylist()}
        key = self._fields.key
        conditions = (f"{self._is_null} AND {condition}" for condition in self._filters(table.schema, ids))
        return {str(found) for where in conditions for found in self._read(table, where, [key])[key].to_pylist()}

    @_translated()
    def count_without_vector(self, collection: str) -> int:
        return self._table(collection).count_rows(self._is_null)

    @property
    def _is_null(self) -> str:
        return f"`{self._fields.vector}` IS NULL"

    @_translated()
    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        """Score by the cosine; by an index with another metric, only that of unit vectors."""
        table = self._table(collection)
        metric = self._metric(table)
        key = self._key_of(table.schema)
        columns = [key] if key is not None else [name for name in table.schema.names if name not in self._heads]
        query = cast(VectorQuery, table.search(vector, vector_column_name=self._fields.vector)).distance_type(metric)
        if selection.wants_points:
            columns = [name for name in table.schema.names if name not in self._heads]
        if selection.where is not None:
            query = query.where(lance_condition(selection.where, table.schema), prefilter=True)
        query = query.refine_factor(REFINE).select([*columns, "_distance"]).limit(k)
        rows = query.to_arrow() if selection.where is None else _filtered(query.to_arrow)
        scores = map(COSINES[metric], rows["_distance"].to_pylist())
        found = rows[key].to_pylist() if key is not None else [*numbered(digests(rows, {"_distance"}))]
        if selection.wants_points:
            points = self._points(rows.drop_columns(["_distance"]), found)
            return [BackendHit(point.id, score, point) for point, score in zip(points, scores, strict=True)]
        return [BackendHit(str(key), score) for key, score in zip(found, scores, strict=True)]

    def _require_fit(self, collection: str, schema: pa.Schema, points: Sequence[Point]) -> None:
        own = {self._key_of(schema), self._fields.text, *self._heads}
        if strange := {name for point in points for name in point.payload} - (set(schema.names) - own):
            raise StoreSchemaError(f"{collection} has no payload column {sorted(strange)}", "Add it to the table.")
        column = schema.field(self._fields.vector)
        size, vectors = column.type.list_size, [point.vectors for point in points if point.vectors is not None]
        lacking = len(vectors) < len(points) and not column.nullable
        if lacking or any(each.dense.shape != (size,) for each in vectors):
            raise StoreSchemaError(f"{collection} has vectors of {size} numbers", "Every point needs such a vector.")
        if not all(np.isfinite(each.dense).all() for each in vectors):
            raise StoreSchemaError(f"{collection} takes finite numbers only", "Make the vectors anew.")
        storable = DENSE | Outputs.COLBERT if self._colbert in schema.names else DENSE
        if any(each.outputs & ~storable for each in vectors):
            raise StoreSchemaError(f"{collection} has no place for sparse or ColBERT vectors", "Leave them out.")

    def _column(self, field: pa.Field, points: Sequence[Point]) -> pa.Array:
        if field.name == self._fields.key:  # there is none where keys are made of the content
            return pa.array([_key(point.id, field.type) for point in points], field.type)
        if field.name == self._fields.text:
            return pa.array([point.text for point in points], field.type)
        if field.name == self._fields.vector:
            nothing = np.zeros(field.type.list_size, np.float32)
            bare = pa.array([point.vectors is None for point in points])
            numbers = np.concatenate([nothing if p.vectors is None else p.vectors.dense for p in points])
            values = pa.array(numbers).cast(field.type.value_type)
            return pa.FixedSizeListArray.from_arrays(values, type=field.type, mask=bare)
        if field.name == self._colbert:
            colberts = [None if point.vectors is None else point.vectors.colbert for point in points]
            halfvecs = [None if each is None else list(each.astype(np.float16)) for each in colberts]
            return pa.array(halfvecs, field.type)
        return pa.array([point.payload.get(field.name) for point in points], field.type)

    def _points(self, rows: pa.Table, ids: Sequence[object]) -> list[Point]:
        text, vector = self._fields.text, self._fields.vector
        own = (self._fields.key, text, *self._heads, ROW_ID)
        payload = {n: _values(rows[n]) for n in rows.column_names if n not in own}
        nothing = [None] * len(rows)
        vectors = _vectors(rows[vector]) if vector in rows.column_names else nothing
        colberts = _colberts(rows[self._colbert]) if self._colbert in rows.column_names else nothing
        parts = zip(ids, rows[text].to_pylist(), vectors, colberts, strict=True)
        return [
            Point(
                str(i),
                t,
                None if v is None else TextVectors(v, colbert=c),
                {name: values[n] for name, values in payload.items()},
            )
            for n, (i, t, v, c) in enumerate(parts)
        ]

    # --- indexes ----------------------------------------------------------------------------------

    @_translated()
    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        """Return the missing indexes; none for fewer than 256 rows: a search compares with each of them."""
        table, wanted = self._table(collection), self._index(self._table(like))
        wants = wanted is not None and self._index(table) is None and table.count_rows() >= MIN_INDEXED_ROWS
        return (wanted.name,) if wants else ()

    @_translated()
    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        """Build indexes; writers need not wait, and later rows are compared one by one until a compaction."""
        missing = self.missing_indexes(collection, like)
        for name in missing:
            model = self._table(like)
            config = INDEX_KINDS[self._index(model).index_type](distance_type=self._metric(model))
            create_index = methodcaller("create_index", self._fields.vector, config=config, name=name)
            self._again_on_conflict(collection, create_index)
        return missing

    def _index(self, table: Table) -> Any:
        return next((index for index in table.list_indices() if index.columns == [self._fields.vector]), None)

    def _metric(self, table: Table) -> Metric:
        """Return the metric of the index, which a search with any other passes by; cosine where there is none."""
        index = self._index(table)
        stats = table.index_stats(index.name) if index else None
        metric = stats.distance_type if stats and stats.distance_type else "cosine"
        if metric not in COSINES or (index and index.index_type not in INDEX_KINDS):
            raise StoreSchemaError(f"{table.name} has a {metric} index", f"One of {', '.join(COSINES)}.")
        return metric

    # --- tables -----------------------------------------------------------------------------------

    def _opened(self, collection: str) -> Table | None:
        try:
            return self._database.open_table(collection)
        except ValueError as exc:
            if "was not found" in str(exc):
                return None
            raise

    def _table(self, collection: str) -> Table:
        """Open a table as it is now. Raises StoreSchemaError if it is not there, or its columns are not as expected."""
        table = self._opened(collection)
        if table is None:
            raise StoreSchemaError(f"there is no table {collection!r} in {self._folder}", "Look at its name.")
        key = self._key_of(table.schema)
        for name, fits, expected in (
            *(((key, _is_key, f"text or a whole number; {WHOLE_ROW!r} is the content"),) if key is not None else ()),
            (self._fields.text, _is_text, "text"),
            (self._fields.vector, _is_vector, "a list of fixed size of float16, float32 or float64"),
        ):
            kind = table.schema.field(name).type if name in table.schema.names else "not there"
            if kind == "not there" or not fits(kind):
                raise StoreSchemaError(f"column {name!r} of {collection} is {kind}", f"It has to be {expected}.")
        return table

    @property
    def _heads(self) -> set[str]:
        """The columns with vectors of the model."""
        return {self._fields.vector, self._colbert}

    def _keyed(self, collection: str) -> tuple[Table, ContentKeys | None]:
        """Open a table, at the version of its keys where they are made of the content."""
        table = self._table(collection)
        return (table, None) if self._key_of(table.schema) is not None else self._content_of(collection)

    def _content_of(self, collection: str) -> tuple[Table, ContentKeys]:
        """Open a table at its latest version, and return the keys of its rows; read anew for another version."""
        table = self._table(collection)
        stamp = self._stamp(collection, table)
        table.checkout(stamp[0])
        keys = self._content.get(collection)
        if keys is None or keys.stamp != stamp:
            keys = self._content[collection] = ContentKeys(stamp, self._read_content(table, None))
        return table, keys

    def _stamp(self, collection: str, table: Table) -> tuple[int, int]:
        """Return by what another version is known, also one of a table that was made anew under its name."""
        return table.version, (self._table_folder(collection) / "_versions").stat().st_mtime_ns

    def _read_content(self, table: Table, where: str | None) -> dict[str, list[int]]:
        """Return row ids by the digest of what is in the row."""
        rows = self._read(table, where, [name for name in table.schema.names if name not in self._heads], row_ids=True)
        return by_digest(digests(rows, {ROW_ID}), rows[ROW_ID].to_pylist())

    def _rows_of(
        self, table: Table, row_ids: Collection[int], columns: list[str], condition: str = ""
    ) -> Iterator[pa.Table]:
        """Yield the rows with these row ids, in parts."""
        for part in slices([*map(str, row_ids)], MAX_IDS):
            yield self._read(table, f"{condition}{ROW_ID} IN ({', '.join(part)})", columns, row_ids=True)

    def _filters(self, schema: pa.Schema, ids: Sequence[str]) -> Iterator[str]:
        """Yield SQL that finds these keys, in parts; a text that can be no key of the table is in none."""
        literals = [_literal(key, schema.field(self._fields.key).type) for key in ids]
        for batch in slices([literal for literal in literals if literal is not None], MAX_IDS):
            yield f"`{self._fields.key}` IN ({', '.join(batch)})"

    def _read(self, table: Table, where: str | None, columns: list[str], *, row_ids: bool = False) -> pa.Table:
        query = table.search().select(columns).limit(ALL_ROWS)
        query = query.with_row_id(True) if row_ids else query  # noqa: FBT003  # LanceDB's
        return (query.where(where) if where else query).to_arrow()

    def _merge(self, rows: pa.Table, table: Table) -> None:
        merge = table.merge_insert(self._fields.key).when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows, on_bad_vectors="null" if _has_null_vectors(rows) else "error")

    def _write(self, collection: str, work: Callable[[Table], object]) -> None:
        """Do `work` on the latest version, again if another writer was faster.

        Tables that were made here are compacted at times; what compactions replace is kept for an hour.
        """
        with self._lock(collection):
            self._compact_at_times(collection, self._again_on_conflict(collection, work))

    def _compact_at_times(self, collection: str, table: Table) -> None:
        made_here = CREATED_AS in (table.schema.metadata or {})
        if made_here and table.version % COMMITS_BETWEEN_COMPACTIONS == 0:
            self._again_on_conflict(collection, methodcaller("optimize", cleanup_older_than=OLD_VERSIONS_KEPT))

    def _again_on_conflict(self, collection: str, work: Callable[[Table], object]) -> Table:
        for pause_s in (*CONFLICT_PAUSES_S, None):
            table = self._table(collection)
            try:
                work(table)
            except (RuntimeError, OSError) as exc:
                if pause_s is None or not CONFLICT.search(str(exc)):
                    raise
                time.sleep(pause_s)
            else:
                break
        return table


def _vector_fields(table: Table) -> Iterator[VectorField]:
    schema = table.schema
    keys = [field.name for field in schema if _is_key(field.type)]
    key = "id" if "id" in keys else next(iter(keys), "id")
    vectors = [field.name for field in schema if _is_vector(field.type)]
    names = [name for name in schema.names if name not in (key, *vectors)]
    texts = [name for name in names if _is_text(schema.field(name).type)]
    for vector in vectors:
        dimensions, obstacle = (schema.field(vector).type.list_size,), "" if texts else "it has no column of text"
        yield VectorField(
            table.name, vector, dimensions, table.count_rows(), tuple(names), next(iter(texts), "text"), key,
            obstacle=obstacle,
        )  # fmt: skip


def _filtered(read: Callable[[], pa.Table]) -> pa.Table:
    """Return what is read with a filter. Raises InvalidFilter for one that LanceDB does not understand."""
    try:
        return read()
    except (RuntimeError, ValueError) as exc:
        if reason := BAD_FILTER.search(str(exc)):
            raise InvalidFilter("", f"LanceDB refuses it ({reason[0].strip(' ,')})") from exc
        raise


def lance_condition(where: Condition | NativeFilter, schema: pa.Schema) -> str:
    """Return SQL. Raises InvalidFilter for a field that the table has no column for, or a value of another kind."""
    if isinstance(where, NativeFilter):
        return str(where.condition)
    return written(where, lambda comparison: _compared(comparison, schema))


def _compared(comparison: Comparison, schema: pa.Schema) -> str:
    path, kind = _column_at(comparison.field, schema)
    literals = [_filter_literal(value, kind, comparison.field) for value in comparison.values]
    place = ".".join(f"`{part}`" for part in path)
    if pa.types.is_integer(kind) and any(_whole_number(str(value), kind) is None for value in comparison.values):
        place = f"CAST({place} AS {'BIGINT' if all(isinstance(v, int) for v in comparison.values) else 'DOUBLE'})"
    if comparison.operator in RANGES:
        return f"{place} {dict(zip(RANGES, ('>', '>=', '<', '<='), strict=True))[comparison.operator]} {literals[0]}"
    listed = f"IN ({', '.join(literals)})"
    return f"({place} NOT {listed} OR {place} IS NULL)" if comparison.is_negated else f"{place} {listed}"


def _column_at(field: str, schema: pa.Schema) -> tuple[list[str], pa.DataType]:
    """Return the path of a column, into structs, and its type. Raises InvalidFilter where there is none."""
    path = [field] if field in schema.names else field.split(".")
    kind: pa.DataType = pa.struct(list(schema))
    for name in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0 or "`" in name:
            raise InvalidFilter(field, "the table has no such column")
        kind = kind.field(name).type
    return path, kind


def _filter_literal(value: Scalar, kind: pa.DataType, field: str) -> str:
    expected = "boolean" if pa.types.is_boolean(kind) else "number"
    if _is_text(kind) or pa.types.is_temporal(kind):
        expected = "text"
    elif not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InvalidFilter(field, f"the column is {kind}, which cannot be compared")
    if kind_of(value) != expected:
        raise InvalidFilter(field, f"the column is {kind}, to be compared with a {expected}")
    if isinstance(value, str):
        text = "'" + value.replace("'", "''") + "'"
        return text if _is_text(kind) else f"CAST({text} AS {'DATE' if pa.types.is_date(kind) else 'TIMESTAMP'})"
    return str(value).lower()


def _is_key(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))  # LanceDB has no string views


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type))


def _whole_number(key: str, kind: pa.DataType) -> int | None:
    """Return the number; None if the text is not how one of this type is written."""
    if not re.fullmatch(r"0|-?[1-9][0-9]*", key, re.ASCII) or len(key) > 20:
        return None
    bits = kind.bit_width
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if pa.types.is_signed_integer(kind) else (0, 2**bits)
    return number if lowest <= (number := int(key)) < highest else None


def _literal(key: str, kind: pa.DataType) -> str | None:
    if _is_text(kind):
        return "'" + key.replace("'", "''") + "'"
    number = _whole_number(key, kind)
    return None if number is None else str(number)


def _key(key: str, kind: pa.DataType) -> str | int:
    number = key if _is_text(kind) else _whole_number(key, kind)
    if number is None:
        raise StoreSchemaError(f"{key!r} is no key of type {kind}", "The table's keys are whole numbers.")
    return number


def _values(column: pa.ChunkedArray) -> list[Any]:
    if "[ns" in str(column.type):
        return [value if value.is_valid else None for value in column]
    return list(column.to_pylist())


def _vectors(column: pa.ChunkedArray) -> Iterable[Float32 | None]:
    size = column.type.list_size
    for chunk in column.chunks:
        filled = iter(chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size))  # no nulls
        yield from (next(filled) if is_there else None for is_there in chunk.is_valid().to_pylist())


def _colberts(column: pa.ChunkedArray) -> Iterable[Float32 | None]:
    for value in column:
        if value.is_valid:
            flat = value.values.flatten().to_numpy(zero_copy_only=False)
            yield flat.astype(np.float32).reshape(-1, column.type.value_type.list_size)
        else:
            yield None


def _has_null_vectors(rows: pa.Table) -> bool:
    """Return whether a payload of vectors lacks some. lancedb would refuse them, or take away those with NaN too."""
    columns = [rows[field.name].combine_chunks() for field in rows.schema if _is_vector(field.type)]
    if any(pc.any(pc.is_nan(column.flatten().cast(pa.float64()))).as_py() for column in columns):
        return False
    return any(column.null_count for column in columns)
