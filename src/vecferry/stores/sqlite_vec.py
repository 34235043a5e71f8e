"""Vectors of the extension sqlite-vec in a SQLite file.

A collection is a `vec0` table that holds the whole points, or an ordinary table with keys, texts and payload, and a
`vec0` table with the vectors of its rows: `docs` and `docs_vec`, as LangChain's SQLiteVec makes them, or any two that
are said as `vector = "TABLE.COLUMN"`. An INTEGER key of the `vec0` table is the rowid of the row, a TEXT key its key.

Each `put` and `delete`, and each change of a table, is one transaction. Points are read by their keys one by one: a
`vec0` table answers `IN (...)` by reading all of its rows.
"""

from __future__ import annotations

import importlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from vecferry.embeddings import DENSE, Float32, Outputs, TextVectors
from vecferry.errors import (
    ExtensionsDisabled,
    MissingExtra,
    StoreFailed,
    StoreSchemaError,
    StoreUnreachable,
    without_secrets,
)
from vecferry.stores.backend import BackendHit, Fields, Point, VectorField, path_in
from vecferry.stores.filters import EVERY_ROW, Condition, NativeFilter, Selection
from vecferry.stores.sqlite.connection import read_only_uri
from vecferry.stores.sqlite.filters import sqlite_condition

try:
    import sqlite_vec
except ImportError as exc:
    raise MissingExtra("sqlite-vec", "sqlite-vec") from exc

URLS = "sqlite:///absolute/file, or sqlite:relative/file"
BUSY_TIMEOUT_S = 60.0
MAX_NEIGHBOURS = 4096  # which vec0 sets
RECORDS = "vecferry_collections"
"""The table of what was made here, in the same file; it goes with its last row."""
CREATE_RECORDS = f"""CREATE TABLE IF NOT EXISTS {RECORDS} (
    name TEXT PRIMARY KEY, created_as TEXT NOT NULL, vectors TEXT NOT NULL, model TEXT, objects TEXT
)"""
"""vectors: name of the vec0 table. objects: SQL of the model's indexes and triggers, as JSON, once it was dropped."""
NAME = r"""(?:"(?:[^"]|"")+"|`[^`]+`|\[[^\]]+\]|'(?:[^']|'')+'|[^\s("`\[']+)"""
TABLE = re.compile(rf"\s*CREATE\s+TABLE\s+{NAME}(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
VEC0 = re.compile(rf"\s*CREATE\s+VIRTUAL\s+TABLE\s+{NAME}\s+USING\s+vec0\s*\((?P<arguments>.*)\)[\s;]*", re.I | re.S)
ARGUMENTS = re.compile(r",(?![^()]*\))")
VECTOR = re.compile(r"\s*\w+\s+(?P<type>float|f32|int8|i8|bit)\s*\[\s*(?P<size>\d+)\s*\](?P<options>.*)", re.I | re.S)
METRIC = re.compile(r"distance_metric\s*=\s*(\w+)", re.IGNORECASE)
SHADOW = r"_(?:info|chunks|rowids|auxiliary|(?:vector_chunks|metadatachunks|metadatatext)\d\d)"
"""How the tables are called in which vec0 keeps its data, after its own name."""
AS_VECTOR = {"int8": "vec_int8(?)", "i8": "vec_int8(?)", "bit": "vec_bit(?)"}
COSINES: dict[str, Callable[[float], float]] = {
    "cosine": lambda distance: 1 - distance,
    "l2": lambda distance: 1 - distance**2 / 2,
}


def _loadable() -> ModuleType:
    """Return this Python's sqlite3; pysqlite3 where that one was built without extensions.

    Never the other one where both can: two copies of SQLite in one process do not see each other's locks on a file.
    """
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    try:
        return importlib.import_module("pysqlite3")
    except ImportError as exc:
        raise ExtensionsDisabled from exc


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what SQLite raises as errors of a store."""
    try:
        yield
    except _loadable().OperationalError as exc:
        if "database is locked" in str(exc):
            raise StoreUnreachable("sqlite-vec", f"locked by another process for {BUSY_TIMEOUT_S:g} s") from exc
        raise StoreFailed("sqlite-vec", str(exc)[:500]) from exc
    except (_loadable().Error, ValueError, TypeError, OverflowError) as exc:
        raise StoreFailed("sqlite-vec", str(exc)[:500]) from exc


@dataclass(frozen=True)
class VectorTable:
    """A vec0 table. arguments: what stands in its parentheses, for each column and option. key: "rowid" without one."""

    name: str
    arguments: tuple[str, ...]
    columns: tuple[str, ...]
    key: str
    vector: str

    @cached_property
    def types(self) -> dict[str, re.Match[str]]:
        """Return the columns with vectors, and how they are declared."""
        matches = {_column_of(argument): VECTOR.fullmatch(argument) for argument in self.arguments}
        return {name: match for name, match in matches.items() if match}

    @property
    def dimension(self) -> int:
        return int(self.types[self.vector]["size"])

    @property
    def metric(self) -> str:
        metric = METRIC.search(self.types[self.vector]["options"])
        return metric[1].lower() if metric else "l2"

    @property
    def has_text_key(self) -> bool:
        """Return whether keys are texts, not whole numbers."""
        declared = (argument.split() for argument in self.arguments if _column_of(argument) == self.key)
        return any(len(words) > 1 and words[1].lower() == "text" for words in declared)

    def created(self, name: str, dimension: int) -> str:
        """Return the statement that makes one like it."""
        size = f"[{dimension}]"
        arguments = [
            re.sub(r"\[\s*\d+\s*\]", size, argument, count=1) if _column_of(argument) == self.vector else argument
            for argument in self.arguments
        ]
        return f"CREATE VIRTUAL TABLE {_quoted(name)} USING vec0({','.join(arguments)})"

    def inserted(self, columns: Sequence[str], key: str = "?") -> str:
        """Return the statement that inserts a row with these columns after its key, which is computed by `key`."""
        values = [AS_VECTOR.get(self.types[c]["type"].lower(), "?") if c in self.types else "?" for c in columns]
        names = ", ".join(map(_quoted, (self.key, *columns)))
        return f"INSERT INTO {_quoted(self.name)} ({names}) VALUES ({', '.join((key, *values))})"


@dataclass(frozen=True)
class RowTable:
    """The ordinary table of a collection. columns: those that can be written. is_rowid: whether its key is that."""

    name: str
    sql: str
    columns: tuple[str, ...]
    key: str
    has_text_key: bool
    is_rowid: bool

    def created(self, name: str) -> str:
        """Return the statement that makes one like it."""
        match = TABLE.fullmatch(self.sql)
        if match is None:
            raise StoreSchemaError(f"{self.name} is no ordinary table", "Say the table that has the texts.")
        return f"CREATE TABLE {_quoted(name)}{match['rest']}"


@dataclass(frozen=True)
class Layout:
    """The tables of a collection, and where its parts are. rows: None where the vec0 table has all."""

    vectors: VectorTable
    rows: RowTable | None
    key: str
    text: str

    @property
    def has_text_key(self) -> bool:
        return (self.rows or self.vectors).has_text_key

    @property
    def payload(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name not in (self.key, self.text, self.vectors.vector))

    @property
    def columns(self) -> tuple[str, ...]:
        """Return all names, the vector's among them, without the key of a vec0 table beside another table."""
        return tuple(dict.fromkeys((*(self.rows.columns if self.rows else (self.key,)), *self.beside)))

    @property
    def beside(self) -> tuple[str, ...]:
        """Return the columns of the vec0 table but its key."""
        return tuple(name for name in self.vectors.columns if name != self.vectors.key)

    @property
    def link(self) -> str:
        """Return SQL for the key in the vec0 table, with one parameter, the key of the point."""
        if self.rows is None or self.vectors.has_text_key or self.rows.is_rowid:
            return "?"
        return f"(SELECT rowid FROM {_quoted(self.rows.name)} WHERE {_quoted(self.key)} = ?)"

    @property
    def source(self) -> str:
        """Return what points are selected from: r is where their keys are, v where the vectors are."""
        vectors = _quoted(self.vectors.name)
        if self.rows is None:
            return f"{vectors} AS r"
        return f"{_quoted(self.rows.name)} AS r LEFT JOIN {vectors} AS v ON {self.joined}"

    @property
    def joined(self) -> str:
        """Return the condition under which a row of `r` and one of `v` belong together."""
        return f"v.{_quoted(self.vectors.key)} = r.{_quoted(self.key) if self.vectors.has_text_key else 'rowid'}"

    def place(self, column: str) -> str:
        """Return the column with the table that it is read from."""
        is_of_rows = self.rows is None or (column in (self.key, *self.rows.columns) and column != self.vectors.vector)
        return f"{'r' if is_of_rows else 'v'}.{_quoted(column)}"

    @cached_property
    def placed(self) -> dict[str, str]:
        """Return the columns that can be compared, as they are read from `source`."""
        return {name: self.place(name) for name in (self.key, self.text, *self.payload)}

    def native(self, key: str) -> str | int | None:
        """Return the key as the table has it; None if it can have no such key."""
        if self.has_text_key:
            return key
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", key, re.ASCII):
            return None
        return number if -(2**63) <= (number := int(key)) < 2**63 else None


@dataclass(frozen=True)
class ColumnInfo:
    """A column that can be read by name."""

    name: str
    kind: str
    is_key: bool

    @property
    def is_text(self) -> bool:
        return re.search("CHAR|CLOB|TEXT", self.kind, re.IGNORECASE) is not None


class SqliteVecBackend:
    """`Backend`, `Renamable` and `Browsable` over the tables of one file. Dense vectors in float32 only."""

    kind = "sqlite-vec"
    outputs = DENSE

    def __init__(self, file: Path, fields: Fields, *, read_only: bool = False) -> None:
        """Open the file. Raises StoreUnreachable without one, ExtensionsDisabled where sqlite-vec cannot be loaded.

        read_only: not even what SQLite keeps beside the file is changed.
        """
        if not file.is_file():
            raise StoreUnreachable("sqlite-vec", f"there is no file {without_secrets(str(file))}")
        self._file, self._fields, self._is_read_only = file, fields, read_only
        table, _, self._vector = fields.vector.rpartition(".")
        self._vectors_of_others = table or None
        with _translated():
            self._connection = _connected(file, read_only=read_only)

    @classmethod
    def open(cls, url: str, fields: Fields, *, read_only: bool = False) -> Self:
        """Open a URL: sqlite:///an/absolute/file, or sqlite:a/relative/one."""
        return cls(Path(path_in(url, URLS)), fields, read_only=read_only)

    @property
    def text_field(self) -> str:
        return self._fields.text

    def another(self) -> SqliteVecBackend:
        return SqliteVecBackend(self._file, self._fields, read_only=self._is_read_only)

    def close(self) -> None:
        self._connection.close()

    # --- collections ------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        """Return the tables with whole points, and those whose vectors have a table of their own, as `docs_vec`."""
        tables = self._rows("SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql IS NOT NULL")
        ordinary = {name for name, sql in tables if not VEC0.fullmatch(sql)}
        vectors = [name for name, sql in tables if VEC0.fullmatch(sql)]
        rows = {name: name.removesuffix("_vec") for name in vectors}
        return {known: known for known in (rows[name] if rows[name] in ordinary else name for name in vectors)}

    def exists(self, collection: str) -> bool:
        return self._sql(collection) is not None

    def dimension(self, collection: str) -> int | None:
        return self._layout(collection).vectors.dimension

    def count(self, collection: str) -> int:
        layout = self._layout(collection)
        ((count,),) = self._rows(f"SELECT count(*) FROM {_quoted((layout.rows or layout.vectors).name)}")
        return int(count)

    def vector_fields(self) -> list[VectorField]:
        """Return the columns of every vec0 table, each with the table whose rows its vectors are of."""
        tables = {
            name: sql for name, sql in self._rows("SELECT name, sql FROM sqlite_schema WHERE type = 'table'") if sql
        }
        vectors = [name for name, sql in tables.items() if VEC0.fullmatch(sql)]
        shadows = re.compile(f"(?:{'|'.join(map(re.escape, vectors))}){SHADOW}|sqlite_.*|{RECORDS}")
        others = [name for name in tables if name not in vectors and not shadows.fullmatch(name)]
        return [field for name in vectors for field in self._vector_fields(name, others)]

    def _vector_fields(self, name: str, tables: Sequence[str]) -> Iterator[VectorField]:
        own = self._described(name)
        ((rows,),) = self._rows(f"SELECT count(*) FROM {_quoted(name)}")
        table = self._table_beside(name, tables, rows)
        columns = own if table == name else self._described(table)
        vectors = {each.name: match for each in own if (match := VECTOR.fullmatch(f"{each.name} {each.kind}"))}
        key = next((each.name for each in columns if each.is_key), "rowid")
        names = [each.name for each in columns if each.name != key and each.name not in vectors]
        texts = [each.name for each in columns if each.name in names and each.is_text]
        for vector, declared in vectors.items():
            if declared["type"].lower() in ("float", "f32"):
                yield VectorField(
                    table,
                    vector if name in (table, f"{table}_vec") else f"{name}.{vector}",
                    (int(declared["size"]),),
                    int(rows),
                    tuple(names),
                    next(iter(texts), Fields.text),
                    key,
                    obstacle="" if texts else "no table with texts belongs to it",
                )

    def _table_beside(self, name: str, tables: Sequence[str], rows: int) -> str:
        """Return the table whose rows the vectors are of: NAME of NAME_vec, itself, or one with as many rows."""
        if name.removesuffix("_vec") in tables:
            return name.removesuffix("_vec")
        if any(each.is_text and not each.is_key for each in self._described(name)):
            return name
        counted = (table for table in tables if self._rows(f"SELECT count(*) FROM {_quoted(table)}") == [(rows,)])
        return next((table for table in counted if any(each.is_text for each in self._described(table))), name)

    def _described(self, table: str) -> list[ColumnInfo]:
        """Return the columns that can be read by name; those of a vec0 table have types in its arguments alone."""
        match = VEC0.fullmatch(self._sql(table) or "")
        arguments = ARGUMENTS.split(match["arguments"]) if match else []
        declared = {_column_of(each): each.strip().lstrip("+").partition(" ")[2] for each in arguments}
        return [
            ColumnInfo(column, kind or declared.get(column, ""), bool(rank) or column == "rowid")
            for _, column, kind, _, _, rank, is_hidden in self._rows(f"PRAGMA table_xinfo({_quoted(table)})")
            if not is_hidden
        ]

    def check(self, like: str, outputs: Outputs) -> None:
        if refused := outputs & ~self.outputs:
            raise StoreSchemaError(f"sqlite-vec has no place for {', '.join(refused.names)}", "Leave it out.")
        layout = self._layout(like)
        if (metric := layout.vectors.metric) not in COSINES:
            raise StoreSchemaError(f"{like} has the metric {metric}", f"One of {', '.join(COSINES)}.")
        if layout.rows and self._rows(
            f"SELECT 1 FROM {_quoted(like)} WHERE {_quoted(layout.key)} IS NULL LIMIT 1"
        ):  # SQLite's primary keys may be NULL
            raise StoreSchemaError(f"{like} has rows without a key in {layout.key!r}", "Every row needs a key.")

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        """Create the tables. Indexes and triggers of `like` stand on it once it is dropped, and this has its name."""
        self.check(like, outputs)
        layout = self._layout(like)
        vectors = f"{collection}_vec" if layout.rows else collection
        with self._writing():
            for name in {collection, vectors}:
                if self.exists(name):
                    raise StoreSchemaError(f"there is a table {name!r} already", "Drop it, or take another name.")
            self._execute(layout.vectors.created(vectors, dimension))
            if layout.rows:
                self._execute(layout.rows.created(collection))
                sequence = "INSERT INTO sqlite_sequence (name, seq) SELECT ?, seq FROM sqlite_sequence WHERE name = ?"
                self._execute(sequence, collection, like)
            self._execute(CREATE_RECORDS)
            record = f"INSERT OR REPLACE INTO {RECORDS} (name, created_as, vectors, model) VALUES (?, ?, ?, ?)"
            self._execute(record, collection, collection, vectors, like)

    def drop(self, collection: str) -> None:
        with self._writing():
            if not self.exists(collection):
                return
            layout = self._layout(collection)
            if self.exists(RECORDS):
                objects = json.dumps(self._objects(collection))
                self._execute(
                    f"UPDATE {RECORDS} SET objects = ? WHERE model = ? AND objects IS NULL",
                    objects,
                    collection,
                )
                self._execute(f"DELETE FROM {RECORDS} WHERE name = ?", collection)
            for table in (layout.rows, layout.vectors):
                if table:
                    self._execute(f"DROP TABLE {_quoted(table.name)}")
            if self.exists(RECORDS) and not self._rows(f"SELECT 1 FROM {RECORDS}"):
                self._execute(f"DROP TABLE {RECORDS}")

    def rename(self, collection: str, name: str) -> None:
        """Rename the tables, and make the indexes and triggers that stood on the table of that name before."""
        vectors = (self._vectors_of_others or f"{name}_vec") if self._layout(collection).rows else name
        with self._writing():
            if self.exists(name):
                raise StoreSchemaError(f"there is a collection {name!r} already", "Drop it, or take another name.")
            layout = self._layout(collection)
            self._rename_vectors(layout.vectors.name, vectors)
            if layout.rows:
                self._drop_triggers(collection)
                self._execute(f"ALTER TABLE {_quoted(collection)} RENAME TO {_quoted(name)}")
            for statement in json.loads(self._recorded("objects", collection) or "[]"):
                self._execute(statement)
            if self.exists(RECORDS):
                renamed = f"UPDATE {RECORDS} SET name = ?, vectors = ?, model = NULL, objects = NULL WHERE name = ?"
                self._execute(renamed, name, vectors, collection)

    def created_as(self, collection: str) -> str | None:
        self._layout(collection)
        return self._recorded("created_as", collection)

    def _rename_vectors(self, table: str, name: str) -> None:
        """Rename a vec0 table, and the tables of its data, which vec0 0.1 does not do itself."""
        self._execute(f"ALTER TABLE {_quoted(table)} RENAME TO {_quoted(name)}")
        for (shadow,) in self._rows("SELECT name FROM sqlite_schema WHERE type = 'table'"):
            if re.fullmatch(re.escape(table) + SHADOW, shadow):
                renamed = name + shadow.removeprefix(table)
                self._execute(f"ALTER TABLE {_quoted(shadow)} RENAME TO {_quoted(renamed)}")
        new, vector = _quoted(name), _quoted(self._vector)
        for (stored,) in self._rows(f"SELECT {vector} FROM {new} LIMIT 1"):  # it finds its data, or nothing is changed
            self._rows(f"SELECT * FROM {new} WHERE {vector} MATCH ? AND k = 1", stored)

    def _drop_triggers(self, table: str) -> None:
        """Drop what a client has made on the table: it names the vectors by their name before the rename."""
        for (name,) in self._rows("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?", table):
            self._execute(f"DROP TRIGGER {_quoted(name)}")

    def _objects(self, table: str) -> list[str]:
        """Return the SQL of the table's own indexes and triggers."""
        found = "SELECT sql FROM sqlite_schema WHERE type IN ('index', 'trigger') AND tbl_name = ? AND sql IS NOT NULL"
        return [sql for (sql,) in self._rows(found, table)]

    def _recorded(self, column: str, collection: str) -> str | None:
        if not self.exists(RECORDS):
            return None
        rows = self._rows(f"SELECT {column} FROM {RECORDS} WHERE name = ?", collection)
        return rows[0][0] if rows else None

    # --- points -----------------------------------------------------------------------------------

    def ids(self, collection: str) -> Iterator[str]:
        layout = self._layout(collection)
        keys = f"SELECT {_quoted(layout.key)} FROM {_quoted((layout.rows or layout.vectors).name)}"
        return (str(key) for (key,) in self._rows(keys))

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        layout = self._layout(collection)
        names = (layout.key, layout.text, *layout.payload, *((layout.vectors.vector,) if vectors else ()))
        columns = ", ".join(map(layout.place, names))
        statement = f"SELECT {columns} FROM {layout.source} WHERE r.{_quoted(layout.key)} = ?"
        keys = [key for key in map(layout.native, dict.fromkeys(ids)) if key is not None]
        rows = [dict(zip(names, row, strict=True)) for key in keys for row in self._rows(statement, key)]
        return [_point(layout, row) for row in rows]

    def put(self, collection: str, points: Sequence[Point]) -> None:
        """Write points. Raises StoreSchemaError, with nothing written, for what the tables have no place for."""
        with self._writing():
            layout = self._layout(collection)
            _require_fit(collection, layout, points)
            for point in points:
                self._put(layout, point)

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        with self._writing():
            layout = self._layout(collection)
            for key in map(layout.native, ids):
                if key is not None:
                    self._delete_vector(layout, key)
                    if layout.rows:
                        where = f"{_quoted(layout.rows.name)} WHERE {_quoted(layout.key)} = ?"
                        self._execute(f"DELETE FROM {where}", key)

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        """Compare with every vector; 4,096 answers at most. Without the metric cosine, scores are of unit vectors.

        With a filter the vectors of those rows are compared one by one, since vec0 takes its k before a join.
        """
        layout = self._layout(collection)
        if selection.where is not None:
            hits = self._search_among(layout, selection.where, np.asarray(vector, np.float32).tobytes(), k)
        else:
            hits = self._search_all(layout, vector, k)
        if not selection.wants_points:
            return hits
        points = {point.id: point for point in self.get(collection, [hit.id for hit in hits])}
        return [replace(hit, point=points[hit.id]) for hit in hits if hit.id in points]

    def _search_among(self, layout: Layout, where: Condition | NativeFilter, vector: bytes, k: int) -> list[BackendHit]:
        metric = layout.vectors.metric
        condition, params = sqlite_condition(where, layout.placed)
        distance = f"vec_distance_{'cosine' if metric == 'cosine' else 'L2'}"
        stored = layout.place(layout.vectors.vector)
        statement = (
            f"SELECT r.{_quoted(layout.key)}, {distance}({stored}, ?) AS distance FROM {layout.source}"
            f" WHERE {stored} IS NOT NULL AND {condition} ORDER BY distance LIMIT ?"
        )
        rows = self._rows(statement, vector, *params, k)
        return [BackendHit(str(key), COSINES[metric](distance)) for key, distance in rows if distance is not None]

    def _search_all(self, layout: Layout, vector: Float32, k: int) -> list[BackendHit]:
        name, cosine = _quoted(layout.vectors.name), COSINES[layout.vectors.metric]
        rows = f" JOIN {_quoted(layout.rows.name)} AS r ON {layout.joined}" if layout.rows else ""
        key = f"{'r' if rows else 'v'}.{_quoted(layout.key)}"
        nearest = f"v.{_quoted(layout.vectors.vector)} MATCH ? AND v.k = ? ORDER BY v.distance"
        statement = f"SELECT {key}, v.distance FROM {name} AS v{rows} WHERE {nearest}"
        hits = self._rows(statement, np.asarray(vector, np.float32).tobytes(), min(k, MAX_NEIGHBOURS))
        return [BackendHit(str(key), cosine(distance)) for key, distance in hits if distance is not None]

    def _put(self, layout: Layout, point: Point) -> None:
        """Write one point; twice without its vector: a trigger may have written that with the row."""
        key = layout.native(point.id)
        if key is None:
            raise StoreSchemaError(f"{point.id!r} is no key of {layout.vectors.name}", "Its keys are whole numbers.")
        assert point.vectors is not None
        vector = np.asarray(point.vectors.dense, np.float32).tobytes()
        values = {layout.text: point.text, **point.payload, layout.vectors.vector: vector}
        self._delete_vector(layout, key)
        if layout.rows:
            self._put_row(layout.rows, key, values)
            self._delete_vector(layout, key)
        names = [name for name in layout.beside if name in values]
        self._execute(layout.vectors.inserted(names, layout.link), key, *(values[name] for name in names))

    def _put_row(self, rows: RowTable, key: str | int, values: dict[str, Any]) -> None:
        """Replace a row; a new one has its own defaults where no value is said."""
        others = [name for name in rows.columns if name != rows.key]
        assignments = (
            ", ".join(f"{_quoted(name)} = ?" for name in others) or f"{_quoted(rows.key)} = {_quoted(rows.key)}"
        )
        table, where = _quoted(rows.name), f"{_quoted(rows.key)} = ?"
        changed = f"UPDATE {table} SET {assignments} WHERE {where}"
        if self._execute(changed, *(values.get(name) for name in others), key) == 0:
            names = [name for name in others if name in values]
            columns = ", ".join(map(_quoted, (rows.key, *names)))
            inserted = f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * (1 + len(names)))})"
            self._execute(inserted, key, *(values[name] for name in names))

    def _delete_vector(self, layout: Layout, key: str | int) -> None:
        where = f"{_quoted(layout.vectors.name)} WHERE {_quoted(layout.vectors.key)} = {layout.link}"
        self._execute(f"DELETE FROM {where}", key)

    # --- indexes ----------------------------------------------------------------------------------

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002
        """Build nothing: vec0 compares with every vector."""
        return ()

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    # --- tables -----------------------------------------------------------------------------------

    def _layout(self, collection: str) -> Layout:
        """Return the tables as they are now. Raises StoreSchemaError where one, or a column, is not there."""
        sql = self._sql(collection)
        if sql is None:
            raise StoreSchemaError(f"there is no table {collection!r} in {self._file}", "Look at its name.")
        rows = None if VEC0.fullmatch(sql) else self._row_table(collection, sql)
        name = collection if rows is None else self._recorded("vectors", collection) or self._vectors_of_others
        vectors = self._vector_table(name or f"{collection}_vec")
        key = rows.key if rows else self._known(self._fields.key, (vectors.key,), collection, "key")
        layout = Layout(vectors, rows, key, self._fields.text)
        self._known(self._fields.text, layout.columns, collection, "text")
        return layout

    def _vector_table(self, name: str) -> VectorTable:
        match = VEC0.fullmatch(self._sql(name) or "")
        if match is None:
            expected = 'Say where the vectors are: vector = "TABLE.COLUMN", a table of vec0.'
            raise StoreSchemaError(f"there is no vec0 table {name!r} in {self._file}", expected)
        described = [row for row in self._rows(f"PRAGMA table_xinfo({_quoted(name)})") if not row[6]]
        key = next((row[1] for row in described if row[5]), "rowid")
        arguments = tuple(ARGUMENTS.split(match["arguments"]))
        columns = tuple(row[1] for row in described)
        table = VectorTable(name, arguments, columns, key, self._vector)
        floats = [column for column, of in table.types.items() if of["type"].lower() in ("float", "f32")]
        self._known(self._vector, floats, name, "vector")
        return table

    def _row_table(self, name: str, sql: str) -> RowTable:
        described = self._rows(f"PRAGMA table_xinfo({_quoted(name)})")
        primary = [(column, kind) for _, column, kind, _, _, rank, _ in described if rank]
        column, kind = primary[0] if len(primary) == 1 else ("rowid", "INTEGER")
        is_rowid = kind.upper() == "INTEGER"
        known = (column, "rowid") if is_rowid else (column,)
        self._known(self._fields.key, known, name, "key")
        if "INT" not in kind.upper() and not re.search("CHAR|CLOB|TEXT", kind, re.IGNORECASE):
            raise StoreSchemaError(f"column {column!r} of {name} is {kind}", "It has to be text or a whole number.")
        columns = tuple(row[1] for row in described if not row[6])  # without those that are generated
        return RowTable(name, sql, columns, column, "INT" not in kind.upper(), is_rowid)

    def _known(self, name: str, among: Sequence[str], table: str, role: str) -> str:
        if name not in among:
            choices = ", ".join(repr(each) for each in among) or "nothing"
            raise StoreSchemaError(f"{table} has no {role} {name!r}", f"{role} can be {choices} here.")
        return name

    def _sql(self, table: str) -> str | None:
        rows = self._rows("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?", table)
        return str(rows[0][0]) if rows else None

    @_translated()
    def _rows(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._connection.execute(statement, params).fetchall()
        return rows

    @_translated()
    def _execute(self, statement: str, *params: object) -> int:
        """Return the number of rows that were written."""
        return int(self._connection.execute(statement, params).rowcount)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep all that is written inside, or nothing; other writers wait."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise


def _connected(file: Path, *, read_only: bool = False) -> Any:
    """Open the file, and load sqlite-vec. A renamed table takes no other statement of the schema with it."""
    sqlite = _loadable()
    uri = read_only_uri(file) if read_only else f"{file.absolute().as_uri()}?mode=rw"
    connection = sqlite.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False,
    )  # fmt: skip
    if not hasattr(connection, "enable_load_extension"):
        connection.close()
        raise ExtensionsDisabled
    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    connection.enable_load_extension(False)
    connection.execute("PRAGMA legacy_alter_table = ON")
    return connection


def _require_fit(collection: str, layout: Layout, points: Sequence[Point]) -> None:
    if strange := {name for point in points for name in point.payload} - set(layout.payload):
        raise StoreSchemaError(f"{collection} has no payload column {sorted(strange)}", "Add it to the table.")
    vectors = [point.vectors for point in points if point.vectors is not None]
    size = layout.vectors.dimension
    if len(vectors) < len(points) or any(each.dense.shape != (size,) for each in vectors):
        raise StoreSchemaError(f"{collection} has vectors of {size} numbers", "Every point needs such a vector.")
    if not all(np.isfinite(each.dense).all() for each in vectors):
        raise StoreSchemaError(f"{collection} takes finite numbers only", "Make the vectors anew.")
    if any(each.outputs != DENSE for each in vectors):
        raise StoreSchemaError(f"{collection} has no place for sparse or ColBERT vectors", "Leave them out.")


def _point(layout: Layout, row: dict[str, Any]) -> Point:
    vector = row.get(layout.vectors.vector)
    vectors = None if vector is None else TextVectors(np.frombuffer(vector, np.float32).copy())
    text = row[layout.text]
    return Point(str(row[layout.key]), text, vectors, {name: row[name] for name in layout.payload})


def _column_of(argument: str) -> str:
    """Return the name of the column that an argument of vec0 declares; of an option, the option's."""
    match = re.match(r"\s*\+?\s*(\w+)", argument)
    return match[1] if match else ""


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
