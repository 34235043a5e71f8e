"""The table that is migrated, as PostgreSQL's catalogue describes it; names of columns on both sides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vecferry.errors import SettingsError, StoreSchemaError
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.keys import Column, find_key
from vecferry.stores.pgvector.partitions import find_shape
from vecferry.stores.pgvector.row_condition import RowCondition, row_condition
from vecferry.stores.pgvector.sql_source import OtherTable, joined_source, other_tables, sql_source
from vecferry.stores.pgvector.vector_type import vector_type
from vecferry.stores.text_source import (
    LLAMA_INDEX,
    FieldText,
    SqlText,
    TemplateText,
    TextSource,
    framework_source,
    text_source,
)

NEW, OLD = "_vecferry_new", "_vecferry_old"
NEW_CHECKSUM, OLD_CHECKSUM = "_vecferry_new_sha256", "_vecferry_old_sha256"
SPARSE, COLBERT = "_sparse", "_colbert"
REQUIRED = "_vecferry_not_null"
"""Of a constraint that is there while NOT NULL is being made anew."""
MAX_IDENTIFIER_BYTES = 63
PART = " where "
"""Between the vector column and the condition in the name of what is migrated."""
WHOLE = "Leave [store] where out, and all of its rows are migrated."
SCHEMA = "vecferry"
"""Of what a migration makes beside the application's tables."""


@dataclass(frozen=True)
class Table:
    """A table that can be migrated, as its catalogue entry says.

    source: what a row's text is; text_types: of the columns that it is made of. kind: the vector column's type,
    "vector" or "halfvec". extension: pgvector's schema. types: the number that each of pgvector's types has in this
    database. others: the tables that a text is made of beside this one. read: the columns of the key, the text and the
    condition, by their numbers, which they keep whatever they are called. key_index: the unique index that stands for a
    primary key; None where there is one and it is the key. is_partitioned: whether its rows are in partitions
    (`partitions.py`). where: which rows are migrated; None is all. domain: that the vectors are of before a switch, as
    PostgreSQL writes it; None if they are of pgvector's own type.
    """

    oid: int
    schema: str
    name: str
    key: tuple[Column, ...]
    source: TextSource
    text_types: Mapping[str, str]
    vector: str
    kind: str
    extension: str
    types: Mapping[str, int]
    others: tuple[OtherTable, ...]
    read: Mapping[int, str]
    key_index: str | None = None
    is_partitioned: bool = False
    where: RowCondition | None = None
    domain: str | None = None

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def text(self) -> str:
        """The column that `Record.text` is written to."""
        return self.source.field

    @property
    def target(self) -> str:
        whole = whole_target(self.schema, self.name, self.vector)
        return whole if self.where is None else f"{whole}{PART}{self.where.text}"

    @property
    def digest(self) -> str:
        """Of the target: two vector columns, or parts, of one table have names of their own for what is theirs."""
        return target_digest(self.target)

    @property
    def side_keys(self) -> tuple[str, ...]:
        """The columns of the key in the side table, whatever they are called in this one, or will be."""
        return tuple(f"key_{number}" for number in range(1, len(self.key) + 1))

    @property
    def side_table(self) -> str:
        """The name, in `SCHEMA`, of the table that has what the layout `side-table` keeps beside this one."""
        return f"sides_{self.digest}"

    @property
    def part_lock(self) -> int:
        """The number of the advisory lock that stands for the part."""
        return _lock_number(self.target)

    @property
    def beginning_lock(self) -> int:
        """The number of the advisory lock under which a migration of these vectors is begun, of all rows or a part."""
        return _lock_number(whole_target(self.schema, self.name, self.vector))


def find_table(
    database: Database,
    table: str,
    text: str,
    vector_column: str,
    joined: str | None = None,
    *,
    key_name: str | None = None,
    where: str | None = None,
) -> Table:
    """Find a table. text: a column, a source of that name (`text_source.py`), or an expression of SQL.

    joined: a view or query that has the table's key, and `text` as a column. key_name: of the key (`keys.py`), where
    it is not the one that is chosen without a name. where: which of its rows, in SQL.
    Raises StoreSchemaError for what is not there, and for a table that cannot be migrated.
    """
    schema, name = split_name(table)
    schemas = [schema] if schema else database.schemas
    oid, schema, is_partitioned = find_shape(database, table, name, schemas)
    unique = find_key(database, oid, table, key_name)
    key = unique.columns
    if joined is None:
        source, text_types = _source(database, oid, name, text)
    else:
        source, text_types = joined_source(database, oid, name, unique.names, joined, text)
    own_reads = 1 if joined is None else 2
    others = other_tables(database, oid, source, own_reads) if isinstance(source, SqlText) else ()
    kind, domain = vector_type(database, oid, table, vector_column)
    extension, numbers = _extension(database)
    if where is not None and is_partitioned:
        raise StoreSchemaError(f"{table} has partitions, and [store] where takes a part of an ordinary table", WHOLE)
    if where is not None and domain is not None:
        what = f"{table}.{vector_column} is of the domain {domain}, and [store] where takes plain vectors"
        raise StoreSchemaError(what, f"ALTER TABLE {table} ALTER {vector_column} TYPE {kind}.")
    part = None if where is None else row_condition(database, schema, name, where)
    read = _numbers(database, oid, [*unique.names, *text_types, *(part.columns if part else ())])
    index = None if unique.is_primary else unique.index
    return Table(
        oid, schema, name, key, source, text_types, vector_column, kind, extension, numbers, others, read, index,
        is_partitioned, part, domain,
    )  # fmt: skip


def _numbers(database: Database, oid: int, names: Sequence[str]) -> dict[int, str]:
    query = "SELECT attnum::integer, attname::text FROM pg_attribute WHERE attrelid = %s::oid AND attname = ANY(%s)"
    return dict(database.rows(query, [oid, list(names)]))


def _source(database: Database, oid: int, table: str, text: str) -> tuple[TextSource, Mapping[str, str]]:
    """Return the column of that name; else a recipe, a template over columns, or an expression; and its columns' types.

    Raises SettingsError and StoreSchemaError.
    """
    query = "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::oid AND attnum > 0 AND NOT attisdropped"
    columns = {name for (name,) in database.rows(query, [oid])}
    source = FieldText(text) if text in columns else framework_source(text, "postgresql", columns) or _as_template(text)
    if source is None or (isinstance(source, TemplateText) and not columns.issuperset(source.fields)):
        try:
            return sql_source(database, oid, table, text)
        except StoreSchemaError:
            if source is None:
                raise
    return source, _text_types(database, oid, table, source)


def _as_template(text: str) -> TextSource | None:
    """Return the source of that name; None for what can only be an expression of SQL."""
    if text != LLAMA_INDEX and not text.isidentifier() and not set("{}") & set(text):
        return None
    try:
        return text_source(text)
    except SettingsError:
        return None


def _text_types(database: Database, oid: int, table: str, source: TextSource) -> dict[str, str]:
    """Return the types of the columns that a text is made of. Raises StoreSchemaError."""
    if isinstance(source, FieldText):
        return {source.name: _require_column(database, oid, table, source.name, "a text type", "t.typcategory = 'S'")}
    scalar = "t.typcategory NOT IN ('A', 'C', 'U', 'Z') OR t.typname IN ('json', 'jsonb', 'uuid')"
    return {
        name: _require_column(database, oid, table, name, "a type of single values, or JSON", scalar)
        for name in source.fields
    }


def _extension(database: Database) -> tuple[str, dict[str, int]]:
    """Return the schema of pgvector, and the numbers of its types."""
    rows = database.rows(
        "SELECT n.nspname::text, t.typname::text, t.oid::bigint, current_setting('server_encoding')"
        " FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " JOIN pg_type t ON t.typnamespace = n.oid AND t.typname IN ('vector', 'halfvec', 'sparsevec')"
        " WHERE e.extname = 'vector'"
    )
    if rows[0][3] == "SQL_ASCII":
        raise StoreSchemaError("the database does not say how its texts are encoded (SQL_ASCII)", "Use UTF8.")
    return rows[0][0], {name: number for _, name, number, _ in rows}


def _require_column(database: Database, oid: int, table: str, column: str, expected: str, condition: str) -> str:
    """Return the name of the column's type. Raises StoreSchemaError if it is not there, or not as expected."""
    columns = database.rows(
        f"SELECT {condition}, format_type(t.oid, NULL), t.typname::text FROM pg_attribute a"  # noqa: S608  # ours
        " JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = %s::oid AND a.attname = %s AND a.attnum > 0 AND NOT a.attisdropped",
        [oid, column],
    )
    if not columns:
        raise StoreSchemaError(f"{table} has no column {column}", "Names are spelled as in the database.")
    ((is_right, kind, name),) = columns
    if not is_right:
        raise StoreSchemaError(f"the column {column} of {table} is of type {kind}", f"Expected {expected}.")
    return str(name)


_NAME_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def split_name(table: str) -> tuple[str | None, str]:
    """Split a name: 'docs' -> (None, 'docs'); 'a.docs' -> ('a', 'docs'); quotes keep a dot. Raises StoreSchemaError."""
    parts = [quoted.replace('""', '"') or plain for quoted, plain in _NAME_PART.findall(table)]
    if _NAME_PART.sub("", table) != "." * (len(parts) - 1) or len(parts) not in (1, 2):
        raise StoreSchemaError(f"{table} is not the name of a table", 'Write NAME, SCHEMA.NAME or "quoted.NAME".')
    return (parts[0], parts[1]) if len(parts) == 2 else (None, parts[0])


def whole_target(schema: str, table: str, vector: str) -> str:
    """Return what a migration of all rows is kept under."""
    return f"{schema}.{table}.{vector}"


def _lock_number(target: str) -> int:
    return int.from_bytes(hashlib.sha256(target.encode()).digest()[:8], "big", signed=True)


def target_digest(target: str) -> str:
    """Return what tells the names of what is made for one target from those for another."""
    return hashlib.sha256(target.encode()).hexdigest()[:12]


def suffixed(name: str, suffix: str) -> str:
    """Return the name with the suffix; one that PostgreSQL would cut at 63 bytes is shortened and given a digest."""
    if len((name + suffix).encode()) <= MAX_IDENTIFIER_BYTES:
        return name + suffix
    mark = "_" + hashlib.sha256(name.encode()).hexdigest()[:8]
    room = MAX_IDENTIFIER_BYTES - len((mark + suffix).encode())
    return name.encode()[:room].decode(errors="ignore") + mark + suffix
