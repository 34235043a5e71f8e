"""A PostgreSQL table with a pgvector column. The only file that imports psycopg.

Names of columns, for a vector column `embedding`:

    before the switch   embedding (old), embedding_vecferry_new, embedding_vecferry_sha256
    after it            embedding (new), embedding_vecferry_old, embedding_vecferry_sha256
    finalized           embedding (new)

so where the sides are is read from the catalogue and never remembered. The space of new vectors is
in a comment on their column. Keys travel as text and are cast back to the type of their column.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self, TypeVar

import numpy as np

from vecferry.embeddings import Float32
from vecferry.errors import Locked, MissingExtra, SpaceMismatch, StoreFailed, StoreSchemaError, StoreUnreachable
from vecferry.stores import (
    Changes,
    Counts,
    Examination,
    Hit,
    IndexInfo,
    Key,
    KeyRange,
    NewVector,
    Patience,
    Row,
    TableInfo,
)
from vecferry.stores.pgvector_ledger import PgLedger

try:
    import psycopg
    from psycopg import sql
except ImportError as exc:  # the package, or the libpq that it needs
    raise MissingExtra("pgvector", "psycopg") from exc

T = TypeVar("T")
Fragment = sql.SQL | sql.Composed | sql.Identifier

NEW, OLD, DIGEST = "_vecferry_new", "_vecferry_old", "_vecferry_sha256"
COMMENT_PREFIX = "vecferry:space:"
UNMARKED = "not recorded"
MAX_IDENTIFIER_BYTES = 63
MAX_INDEXED_DIMENSION = 2000
"""pgvector's limit for HNSW and IVFFlat on the type `vector`."""
NORM_TOLERANCE = 1e-3
CONNECT_TIMEOUT_S = 10


# --- the connection -------------------------------------------------------------------------------


class LockTimedOut(StoreFailed):
    """A lock was not had in time; caught in this file."""


class Database:
    """One connection, each statement kept at once unless in `transaction`. All errors of psycopg end here."""

    def __init__(self, database_url: str) -> None:
        """Raises StoreUnreachable; no message carries the password."""
        try:
            given = psycopg.conninfo.conninfo_to_dict(database_url)
        except psycopg.ProgrammingError:
            reason = "the database URL is not of the form postgresql://USER@HOST:PORT/DATABASE"
            raise StoreUnreachable("pgvector", reason) from None  # psycopg's message repeats the URL
        self._password = str(given.get("password") or "")
        with self._translated():
            self._connection = psycopg.connect(
                database_url,
                autocommit=True,
                connect_timeout=int(given.get("connect_timeout") or CONNECT_TIMEOUT_S),
                fallback_application_name=f"vecferry (pid {os.getpid()} on {socket.gethostname()})",
            )
            self._set_up()

    def _set_up(self) -> None:
        # keys are written as text in one session and read in another
        self._connection.execute("SET DateStyle = ISO; SET IntervalStyle = postgres; SET bytea_output = hex")
        self._connection.execute("SET client_encoding = 'UTF8'; SET extra_float_digits = 1")
        # a policy must not hide rows from a migration of all rows
        self._connection.execute("SET row_security = off")
        if self._connection.info.server_version >= 140000:
            # so that the server ends a long statement, and frees our lock, soon after we were killed
            self._connection.execute("SET client_connection_check_interval = '1s'")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as exc:
            raise LockTimedOut("pgvector", self._reason(exc)) from exc
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
            raise StoreSchemaError(self._reason(exc), "The table was changed meanwhile; put it back.") from exc
        except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
            if self._is_lost(exc):
                raise StoreUnreachable("pgvector", self._reason(exc)) from exc
            raise StoreFailed("pgvector", self._reason(exc)) from exc
        except psycopg.Error as exc:
            raise StoreFailed("pgvector", self._reason(exc)) from exc

    def _is_lost(self, exc: psycopg.Error) -> bool:
        """Whether the server went away or was never there: no state at all, connection errors (08), shutdown (57P)."""
        state = exc.sqlstate or ""
        return not hasattr(self, "_connection") or self._connection.closed or state.startswith(("08", "57P"))

    def _reason(self, exc: psycopg.Error) -> str:
        reason = " ".join((exc.diag.message_primary or str(exc)).split())
        return reason.replace(self._password, "***") if self._password else reason

    def rows(self, query: Fragment | str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._connection.execute(_query(query), params).fetchall()

    def row(self, query: Fragment | str, params: Sequence[object] = ()) -> tuple[Any, ...]:
        """The only row of an answer that always has one."""
        (row,) = self.rows(query, params)
        return row

    def execute(self, query: Fragment | str, params: Sequence[object] = ()) -> int:
        """The number of rows that were written."""
        with self._translated():
            return self._connection.execute(_query(query), params).rowcount

    def script(self, statements: str) -> None:
        """Several statements without parameters, in one transaction."""
        with self._translated(), self._connection.transaction():
            self._connection.execute(sql.SQL(statements))

    def execute_many(self, query: Fragment | str, params: Sequence[Sequence[object]]) -> None:
        with self._translated(), self._connection.cursor() as cursor:
            cursor.executemany(_query(query), params)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._translated(), self._connection.transaction():
            yield

    @property
    def is_open(self) -> bool:
        return not self._connection.closed

    def close(self) -> None:
        self._connection.close()


def _query(query: Fragment | str) -> sql.SQL | sql.Composed:
    if isinstance(query, str):
        return sql.SQL(query)
    return query if isinstance(query, sql.SQL | sql.Composed) else sql.Composed([query])


class Name(sql.Identifier):
    """A quoted name. Every statement here may have placeholders, so that a % in a name is doubled."""

    def as_bytes(self, context: Any = None) -> bytes:
        return super().as_bytes(context).replace(b"%", b"%%")


def _id(*parts: str) -> Name:
    return Name(*parts)


def _verbatim(text: str) -> sql.SQL:
    """SQL that the server itself has written: a type, a condition."""
    return sql.SQL(text.replace("%", "%%"))


def _literal(value: str) -> sql.SQL:
    """A constant where the server takes no parameter."""
    return _verbatim(sql.Literal(value).as_string())


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """type: as PostgreSQL writes it, quoted where needed."""

    name: str
    type: str


@dataclass(frozen=True)
class Table:
    """A table that can be migrated, as its catalogue entry says. extension: pgvector's schema."""

    oid: int
    schema: str
    name: str
    key: tuple[Column, ...]
    text: str
    vector: str
    extension: str


class PgVectorStore:
    """`stores.Store` over one table, one text column and one vector column."""

    def __init__(self, database: Database, table: Table) -> None:
        self._db = database
        self._table = table
        self._name = _id(table.schema, table.name)
        self._keys = sql.SQL(", ").join(_id(column.name) for column in table.key)
        self._keys_as_text = sql.SQL(", ").join(sql.SQL("{}::text").format(_id(column.name)) for column in table.key)
        self._text = sql.SQL("{}::text").format(_id(table.text))
        self._digest = _id(suffixed(table.vector, DIGEST))
        self._changed = sql.SQL("{} IS DISTINCT FROM {}").format(self._digest, _digest_of(self._text))
        self._ledger = PgLedger(database)

    @classmethod
    def connect(cls, database_url: str, table: str, text_column: str, vector_column: str) -> Self:
        """A store with a connection of its own; close it, or use it in `with`. Writes nothing.

        table: NAME or SCHEMA.NAME, as it is spelled in the database; quote a part that has a dot.
        Raises StoreUnreachable, and StoreSchemaError for a table that cannot be migrated.
        """
        database = Database(database_url)
        try:
            return cls(database, find_table(database, table, text_column, vector_column))
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def target(self) -> str:
        return f"{self._table.schema}.{self._table.name}.{self._table.vector}"

    @property
    def text_source(self) -> str:
        return self._table.text

    @property
    def ledger(self) -> PgLedger:
        return self._ledger

    # --- reading ----------------------------------------------------------------------------------

    def describe(self) -> TableInfo:
        with self._pinned():
            serving = _id(self._table.vector)
            rows, null_texts, empty_texts, vector_bytes = self._db.row(
                sql.SQL(
                    "SELECT count(*), count(*) FILTER (WHERE {text} IS NULL), count(*) FILTER (WHERE {text} = ''),"
                    " coalesce(sum(pg_column_size({vector})), 0)::bigint FROM {table}"
                ).format(text=self._text, vector=serving, table=self._name)
            )
            table_bytes, heap_bytes, index_bytes = self._db.row(
                "SELECT pg_total_relation_size(%s::oid), pg_relation_size(%s::oid), pg_indexes_size(%s::oid)",
                [self._table.oid] * 3,
            )
            _, dimension, not_null = self._columns()[self._table.vector]
            return TableInfo(
                rows=rows,
                null_texts=null_texts,
                empty_texts=empty_texts,
                dimension=dimension,
                fingerprint=self._space_of(self._table.vector),
                vector_not_null=not_null,
                table_bytes=table_bytes,
                row_bytes=heap_bytes,
                index_bytes=index_bytes,
                vector_bytes=vector_bytes,
                vector_indexes=tuple(index.info(self._table) for index in self._vector_indexes(self._table.vector)),
                views=self._views(),
                triggers=self._update_triggers(),
            )

    def sample(self, num_rows: int) -> list[Row]:
        return self._rows(sql.SQL("{} IS NOT NULL ORDER BY random() LIMIT %s").format(self._text), [num_rows])

    def search(self, vector: Float32, k: int, *, fingerprint: str) -> list[Hit]:
        """See `Store.search`. The epoch and the vectors are read under one lock, so they belong together."""
        with self._pinned():
            self._refuse_other_space(fingerprint, len(vector))
            # an index answers approximately
            self._db.execute("SET LOCAL enable_indexscan = off")
            query = sql.SQL(
                "SELECT 1 - ({vector} OPERATOR({ext}.<=>) %s::text::{type}), {keys} FROM {table}"
                " WHERE {vector} IS NOT NULL ORDER BY {vector} OPERATOR({ext}.<=>) %s::text::{type}, {order} LIMIT %s"
            ).format(
                vector=_id(self._table.vector),
                ext=_id(self._table.extension),
                type=self._vector_type(),
                keys=self._keys_as_text,
                table=self._name,
                order=self._keys,
            )
            literal = vector_literal(vector)
            return [Hit(tuple(key), float(score)) for score, *key in self._db.rows(query, [literal, literal, k])]

    def _refuse_other_space(self, fingerprint: str, dimension: int) -> None:
        serving = self._ledger.serving(self.target)
        expected = serving.fingerprint if serving else self._space_of(self._table.vector)
        if expected is not None and expected != fingerprint:
            raise SpaceMismatch(expected=expected, found=fingerprint, where=f"a search in {self.target}")
        stored = self._columns()[self._table.vector][1]
        if stored not in (None, dimension):
            what = f"a search in {self.target} with {dimension} numbers, which has {stored}"
            raise SpaceMismatch(expected=UNMARKED, found=fingerprint, where=what)

    # --- the new side -----------------------------------------------------------------------------

    def new_space(self) -> str | None:
        side = self._new_side()
        return None if side is None else self._space_of(side) or UNMARKED

    def counts(self) -> Counts:
        with self._pinned():
            if (side := self._new_side()) is not None:
                letters: Fragment = sql.SQL("{} IS NULL AND {} IS NOT NULL").format(_id(side), self._digest)
            elif (self._space_of(self._table.vector)) is not None:
                side, letters = self._table.vector, sql.SQL("false")  # finalized
            else:
                return Counts(*self._db.row(sql.SQL("SELECT count(*), 0, 0 FROM {}").format(self._name)))
            query = sql.SQL("SELECT count(*), count({side}), count(*) FILTER (WHERE {letters}) FROM {table}")
            return Counts(*self._db.row(query.format(side=_id(side), letters=letters, table=self._name)))

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        numbered = sql.SQL(", ").join(
            sql.SQL("{}::text AS {}").format(_id(column.name), _id(f"vecferry_{i}"))
            for i, column in enumerate(self._table.key)
        )
        query = sql.SQL(
            "SELECT {names} FROM (SELECT {numbered}, row_number() OVER w AS vecferry_number,"
            " lead(1) OVER w IS NULL AS vecferry_last FROM {table} WINDOW w AS (ORDER BY {keys})) AS numbered"
            " WHERE vecferry_number %% %s = 0 OR vecferry_last ORDER BY vecferry_number"
        ).format(
            names=sql.SQL(", ").join(_id(f"vecferry_{i}") for i in range(len(self._table.key))),
            numbered=numbered,
            table=self._name,
            keys=self._keys,
        )
        ends: list[Key | None] = [None, *(tuple(row) for row in self._db.rows(query, [rows_each]))]
        return [KeyRange(lo, hi) for lo, hi in pairwise(ends)]

    def pending(self, within: KeyRange, limit: int) -> list[Row]:
        above, above_params = self._beyond(sql.SQL(">"), within.lo)
        up_to, up_to_params = self._beyond(sql.SQL("<="), within.hi)
        chosen = sql.SQL("{} AND {} AND {} ORDER BY {} LIMIT %s").format(self._changed, above, up_to, self._keys)
        return self._rows(chosen, [*above_params, *up_to_params, limit])

    def _beyond(self, operator: sql.SQL, end: Key | None) -> tuple[Fragment, Key]:
        if end is None:
            return sql.SQL("true"), ()
        values = sql.SQL(", ").join(sql.SQL("%s::text::") + _verbatim(column.type) for column in self._table.key)
        return sql.SQL("({}) {} ({})").format(self._keys, operator, values), end

    def changes(self, max_keys: int = 10) -> Changes:
        side = self._require_new_side()
        changed, letters = self._db.row(
            sql.SQL(
                "SELECT count(*) FILTER (WHERE {changed}), count(*) FILTER (WHERE {side} IS NULL AND NOT ({changed}))"
                " FROM {table}"
            ).format(changed=self._changed, side=_id(side), table=self._name)
        )
        query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s").format(
            self._keys_as_text, self._name, self._changed, self._keys
        )
        keys = self._db.rows(query, [max_keys]) if changed else []
        return Changes(changed, tuple(tuple(key) for key in keys), letters)

    def examine(self, dimension: int) -> Examination:
        side = self._require_new_side()
        query = sql.SQL(
            "SELECT count(*), count(*) FILTER (WHERE {changed}),"
            " count(*) FILTER (WHERE {side} IS NULL AND NOT ({changed})),"
            " count(*) FILTER (WHERE {ext}.vector_dims({side}) <> %s),"
            " count(*) FILTER (WHERE {ext}.vector_norm({side}) IN ('NaN', 'Infinity')),"
            " count(*) FILTER (WHERE NOT {ext}.vector_norm({side}) BETWEEN %s AND %s) FROM {table}"
        ).format(changed=self._changed, side=_id(side), ext=_id(self._table.extension), table=self._name)
        found = self._db.row(query, [dimension, 1 - NORM_TOLERANCE, 1 + NORM_TOLERANCE])
        rows, changed, without_vector, wrong_dimension, not_finite, off_norm = found
        missing = tuple(index.new_name for index in self._wanted_indexes() if not self._is_built(index))
        return Examination(rows, changed, without_vector, wrong_dimension, not_finite, off_norm, missing)

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        side = _id(self._require_new_side())
        query = sql.SQL(
            "SELECT {text}, {side}::real[], {keys} FROM {table}"
            " WHERE {side} IS NOT NULL AND NOT ({changed}) ORDER BY random() LIMIT %s"
        ).format(text=self._text, side=side, keys=self._keys_as_text, table=self._name, changed=self._changed)
        return [
            (Row(tuple(key), text), np.asarray(vector, np.float32))
            for text, vector, *key in self._db.rows(query, [num_rows])
        ]

    # --- writing ----------------------------------------------------------------------------------

    def prepare(self, dimension: int, fingerprint: str) -> None:
        """Adds two nullable columns, which rewrites nothing. Raises StoreSchemaError if an index could not hold D."""
        if dimension > MAX_INDEXED_DIMENSION and self._wanted_indexes():
            raise StoreSchemaError(
                f"an index on {self.target} cannot be made anew for {dimension} numbers",
                f"pgvector indexes at most {MAX_INDEXED_DIMENSION}; drop the index, or choose a smaller model.",
            )
        side = _id(suffixed(self._table.vector, NEW))
        self._db.execute(
            sql.SQL("ALTER TABLE {table} ADD COLUMN {side} {type}({dimension}), ADD COLUMN {digest} bytea").format(
                table=self._name,
                side=side,
                type=self._vector_type(),
                dimension=sql.Literal(dimension),
                digest=self._digest,
            )
        )
        self._db.execute(
            sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(self._name, side, _literal(COMMENT_PREFIX + fingerprint))
        )

    def write(self, vectors: Sequence[NewVector]) -> int:
        """See `Store.write`. A row that somebody else is writing just now is left alone too, and stays pending:
        so we wait for nobody, and nobody can be in a deadlock with us.
        """
        if not vectors:
            return 0
        key = self._table.key
        names = [_id(f"k{i}") for i in range(len(key))]
        given, free = ([sql.SQL("{}.{}").format(sql.SQL(alias), name) for name in names] for alias in ("given", "free"))
        stored = [sql.SQL("t.{}").format(_id(column.name)) for column in key]
        casts = [
            sql.SQL("{}::{}").format(value, _verbatim(column.type)) for value, column in zip(given, key, strict=True)
        ]
        query = sql.SQL(
            "WITH given AS (SELECT * FROM unnest({arrays}, %s::bytea[], %s::text[]) AS u({names}, digest, vector)),"
            " free AS MATERIALIZED (SELECT {named}, given.digest, given.vector FROM {table} AS t, given"
            " WHERE {same_as_given} AND {text_digest} = given.digest FOR NO KEY UPDATE OF t SKIP LOCKED)"
            " UPDATE {table} AS t SET {side} = free.vector::{type}, {digest} = free.digest FROM free"
            " WHERE {same_as_free} AND {text_digest} = free.digest"
        ).format(
            arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(key)),
            names=sql.SQL(", ").join(names),
            named=sql.SQL(", ").join(
                sql.SQL("{} AS {}").format(value, name) for value, name in zip(stored, names, strict=True)
            ),
            table=self._name,
            same_as_given=_equal(stored, casts),
            same_as_free=_equal(stored, free),
            text_digest=_digest_of(sql.SQL("t.{}::text").format(_id(self._table.text))),
            side=_id(self._require_new_side()),
            type=self._vector_type(),
            digest=self._digest,
        )
        parts = [list(part) for part in zip(*(vector.key for vector in vectors), strict=True)]
        digests = [vector.digest for vector in vectors]
        literals = [None if v.vector is None else vector_literal(v.vector) for v in vectors]
        return self._db.execute(query, [*parts, digests, literals])

    def retry_dead_letters(self) -> None:
        side = _id(self._require_new_side())
        query = sql.SQL("UPDATE {table} SET {digest} = NULL WHERE {side} IS NULL AND {digest} IS NOT NULL")
        self._db.execute(query.format(table=self._name, digest=self._digest, side=side))

    def build_indexes(self) -> tuple[str, ...]:
        """See `Store.build_indexes`. Writers go on; the build waits for transactions older than itself to end."""
        built = []
        # A parallel build puts maintenance_work_mem into /dev/shm, which has 64 MiB in a container;
        # pgvector then fails with "could not resize shared memory segment".
        self._db.execute("SET max_parallel_maintenance_workers = 0")
        for index in self._wanted_indexes():
            if self._is_built(index):
                continue
            name = _id(self._table.schema, index.new_name)
            self._db.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(name))  # half-built
            self._db.execute(index.create_statement(self._name, _id(suffixed(self._table.vector, NEW))))
            built.append(index.new_name)
        return tuple(built)

    def switch(self) -> None:
        vector = self._table.vector
        renames = [
            rename
            for index in self._vector_indexes(vector)
            if (new := suffixed(index.name, NEW)) in self._index_names(suffixed(vector, NEW))
            for rename in ((index.name, suffixed(index.name, OLD)), (new, index.name))
        ]
        self._lock_out_readers()
        if self._columns()[vector][2]:  # so that rows can be written without an old vector
            self._alter(sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(_id(vector)))
        self._rename_columns((vector, suffixed(vector, OLD)), (suffixed(vector, NEW), vector))
        self._rename_indexes(renames)

    def switch_back(self, *, not_null: bool) -> bool:
        vector = self._table.vector
        renames = [
            rename
            for index in self._vector_indexes(vector)
            if (old := suffixed(index.name, OLD)) in self._index_names(suffixed(vector, OLD))
            for rename in ((index.name, suffixed(index.name, NEW)), (old, index.name))
        ]
        self._lock_out_readers()
        self._rename_columns((vector, suffixed(vector, NEW)), (suffixed(vector, OLD), vector))
        self._rename_indexes(renames)
        (missing,) = self._db.row(
            sql.SQL("SELECT count(*) FROM {} WHERE {} IS NULL").format(self._name, _id(vector)),
        )
        if not_null and not missing:
            self._alter(sql.SQL("ALTER COLUMN {} SET NOT NULL").format(_id(vector)))
        return not_null and not missing

    def drop_old(self) -> None:
        self._lock_out_readers()
        old = _id(suffixed(self._table.vector, OLD))
        self._alter(sql.SQL("DROP COLUMN {}, DROP COLUMN {}").format(old, self._digest))

    def _alter(self, change: Fragment) -> None:
        self._db.execute(sql.SQL("ALTER TABLE {} {}").format(self._name, change))

    def _rename_columns(self, *pairs: tuple[str, str]) -> None:
        for before, after in pairs:
            self._alter(sql.SQL("RENAME COLUMN {} TO {}").format(_id(before), _id(after)))

    def _rename_indexes(self, pairs: Sequence[tuple[str, str]]) -> None:
        for before, after in pairs:
            name = _id(self._table.schema, before)
            self._db.execute(sql.SQL("ALTER INDEX {} RENAME TO {}").format(name, _id(after)))

    # --- keeping things together ------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._db.transaction():
            yield

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        """A transaction in which the columns keep their names: a switch waits for its end."""
        with self._db.transaction():
            self._db.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(self._name))
            yield

    def exclusively(self, work: Callable[[], T], patience: Patience) -> T:
        """See `Store.exclusively`. Readers are let through until `work` changes the table itself."""
        pause_s = patience.pause_s
        for attempt in range(patience.tries):
            if attempt:
                time.sleep(pause_s)
                pause_s *= 2
            try:
                with self._db.transaction():
                    self._limit_lock_wait(patience.timeout_s)
                    self._db.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(self._name))
                    return work()
            except LockTimedOut as exc:
                failure, holders = exc, self._table_users()
        tried = f"{patience.tries} times {patience.timeout_s:g} s"
        what = f"{self._table.schema}.{self._table.name} (waited {tried}; the same vectors still serve)"
        raise Locked(what, holders or "a transaction that has ended since") from failure

    def _limit_lock_wait(self, timeout_s: float) -> None:
        self._db.rows("SELECT set_config('lock_timeout', %s, true)", [f"{max(int(timeout_s * 1000), 1)}ms"])

    def _lock_out_readers(self) -> None:
        """A transaction that has read the table and now waits to write it would be in a deadlock with us,
        and PostgreSQL might end that one; so we give up well before it looks.
        """
        (limit_ms,) = self._db.row(
            "SELECT least(t.setting::int, d.setting::int / 2) FROM pg_settings t, pg_settings d"
            " WHERE t.name = 'lock_timeout' AND d.name = 'deadlock_timeout'"
        )
        self._limit_lock_wait(limit_ms / 1000)
        self._db.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(self._name))

    def _table_users(self) -> str:
        return self._people(
            "SELECT DISTINCT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.relation = %s::oid AND l.granted AND a.pid <> pg_backend_pid() ORDER BY a.pid LIMIT 5",
            [self._table.oid],
        )

    def _people(self, query: str, params: Sequence[object]) -> str:
        return ", ".join(f"pid {pid} ({name or 'unnamed'})" for pid, name in self._db.rows(query, params))

    @contextmanager
    def runner(self) -> Iterator[None]:
        """See `Store.runner`. An advisory lock of the session: it ends with the connection, however that ends."""
        number = int.from_bytes(hashlib.sha256(f"vecferry {self.target}".encode()).digest()[:8], "big", signed=True)
        (got,) = self._db.row("SELECT pg_try_advisory_lock(%s)", [number])
        if not got:
            holder = self._people(
                "SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
                " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND (l.classid::bigint << 32) | l.objid::bigint = %s",
                [number],
            )
            raise Locked(self.target, holder or "a run that has ended since")
        try:
            yield
        finally:
            if self._db.is_open:
                self._db.rows("SELECT pg_advisory_unlock(%s)", [number])

    # --- the catalogue ----------------------------------------------------------------------------

    def _vector_type(self) -> sql.Identifier:
        return _id(self._table.extension, "vector")

    def _columns(self) -> dict[str, tuple[str, int | None, bool]]:
        """By name: (type, dimension of a vector or None, required)."""
        rows = self._db.rows(
            "SELECT attname, atttypid::regtype::text, nullif(atttypmod, -1), attnotnull FROM pg_attribute"
            " WHERE attrelid = %s::oid AND attnum > 0 AND NOT attisdropped",
            [self._table.oid],
        )
        return {name: (kind, dimension, not_null) for name, kind, dimension, not_null in rows}

    def _new_side(self) -> str | None:
        columns = self._columns()
        if suffixed(self._table.vector, OLD) in columns:
            return self._table.vector
        side = suffixed(self._table.vector, NEW)
        return side if side in columns else None

    def _require_new_side(self) -> str:
        side = self._new_side()
        if side is None:
            raise StoreSchemaError(f"{self.target} has no new side", "It was dropped: run start again.")
        return side

    def _space_of(self, column: str) -> str | None:
        rows = self._db.rows(
            "SELECT col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = %s::oid AND attname = %s",
            [self._table.oid, column],
        )
        comment = rows[0][0] if rows else None
        return comment.removeprefix(COMMENT_PREFIX) if comment and comment.startswith(COMMENT_PREFIX) else None

    def _vector_indexes(self, column: str) -> list[VectorIndex]:
        rows = self._db.rows(_VECTOR_INDEXES, [self._table.oid, column])
        return [VectorIndex(*row) for row in rows]

    def _wanted_indexes(self) -> list[VectorIndex]:
        """Those on the serving vectors that have, or should have, a twin on the new."""
        if suffixed(self._table.vector, OLD) in self._columns():
            return []
        return [index for index in self._vector_indexes(self._table.vector) if index.can_be_recreated(self._table)]

    def _index_names(self, column: str) -> set[str]:
        return {index.name for index in self._vector_indexes(column)}

    def _is_built(self, index: VectorIndex) -> bool:
        twins = self._vector_indexes(suffixed(self._table.vector, NEW))
        return any(twin.name == index.new_name and twin.valid for twin in twins)

    def _views(self) -> tuple[str, ...]:
        rows = self._db.rows(
            "SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend d"
            " JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
            " JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
            " WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s::oid AND a.attname = %s ORDER BY 1",
            [self._table.oid, self._table.vector],
        )
        return tuple(name for (name,) in rows)

    def _update_triggers(self) -> tuple[str, ...]:
        """Those that fire for an UPDATE of any column."""
        rows = self._db.rows(
            "SELECT tgname::text FROM pg_trigger WHERE tgrelid = %s::oid AND NOT tgisinternal AND tgenabled <> 'D'"
            " AND (tgtype & 16) <> 0 AND cardinality(tgattr::int2[]) = 0 ORDER BY 1",
            [self._table.oid],
        )
        return tuple(name for (name,) in rows)

    def _rows(self, chosen: sql.Composed, params: Sequence[object]) -> list[Row]:
        """chosen: what follows WHERE."""
        query = sql.SQL("SELECT {}, {} FROM {} WHERE {}").format(self._text, self._keys_as_text, self._name, chosen)
        return [Row(tuple(key), text) for text, *key in self._db.rows(query, params)]


# --- indexes --------------------------------------------------------------------------------------

_VECTOR_INDEXES = """
SELECT i.relname::text, pg_get_indexdef(i.oid), pg_relation_size(i.oid), x.indisvalid, m.amname::text,
       n.nspname::text, o.opcname::text, i.reloptions, pg_get_expr(x.indpred, x.indrelid), s.spcname::text,
       x.indnatts
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_am m ON m.oid = i.relam
JOIN pg_opclass o ON o.oid = x.indclass[0]
JOIN pg_namespace n ON n.oid = o.opcnamespace
LEFT JOIN pg_tablespace s ON s.oid = i.reltablespace
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = x.indrelid
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE x.indrelid = %s::oid AND a.attname = %s AND m.amname IN ('hnsw', 'ivfflat')
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, x.indkey ORDER BY 1
"""
"""Vector indexes whose key, expression or condition mentions the column."""


@dataclass(frozen=True)
class VectorIndex:
    """definition: as PostgreSQL writes it; condition: of a partial index."""

    name: str
    definition: str
    bytes: int
    valid: bool
    method: str
    opclass_schema: str
    opclass: str
    options: list[str] | None
    condition: str | None
    tablespace: str | None
    num_columns: int

    @property
    def new_name(self) -> str:
        return suffixed(self.name, NEW)

    def can_be_recreated(self, table: Table) -> bool:
        """Not one over an expression, nor one whose condition speaks of the vector: that is for its owner."""
        mentioned = self.condition is not None and table.vector.lower() in self.condition.lower()
        return self.opclass.startswith("vector_") and "((" not in self._key_part() and not mentioned

    def _key_part(self) -> str:
        return self.definition.partition(f" USING {self.method} ")[2].partition(" WITH ")[0].partition(" WHERE ")[0]

    def info(self, table: Table) -> IndexInfo:
        return IndexInfo(self.name, self.definition, self.bytes, self.can_be_recreated(table))

    def create_statement(self, table: sql.Identifier, column: sql.Identifier) -> sql.Composed:
        parts = [
            sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING {} ({} {})").format(
                _id(self.new_name), table, _id(self.method), column, _id(self.opclass_schema, self.opclass)
            )
        ]
        if self.options:
            pairs = [option.partition("=") for option in self.options]
            settings = [sql.SQL("{} = {}").format(_id(key), _literal(value)) for key, _, value in pairs]
            parts.append(sql.SQL("WITH ({})").format(sql.SQL(", ").join(settings)))
        if self.tablespace:
            parts.append(sql.SQL("TABLESPACE {}").format(_id(self.tablespace)))
        if self.condition:
            parts.append(sql.SQL("WHERE ") + _verbatim(self.condition))
        return sql.SQL(" ").join(parts)


# --- finding the table ----------------------------------------------------------------------------


def find_table(database: Database, table: str, text_column: str, vector_column: str) -> Table:
    """Raises StoreSchemaError for what is not there, and for a table that cannot be migrated."""
    schema, name = split_name(table)
    found = database.rows(
        "SELECT c.oid, n.nspname::text, c.relkind::text, c.relhassubclass FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = %s AND"
        " CASE WHEN %s::text IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = %s END",
        [name, schema, schema],
    )
    if not found:
        raise StoreSchemaError(f"there is no table {table}", "Check --table; names are spelled as in the database.")
    oid, schema, kind, has_children = found[0]
    if kind != "r" or has_children:
        raise StoreSchemaError(f"{table} is not an ordinary table", "Views and partitioned tables cannot be migrated.")
    _require_column(database, oid, table, text_column, "a text type", "t.typcategory = 'S'")
    _require_column(database, oid, table, vector_column, "pgvector's type vector", "t.typname = 'vector'")
    ((extension, encoding),) = database.rows(
        "SELECT n.nspname::text, current_setting('server_encoding') FROM pg_extension e"
        " JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    )
    if encoding == "SQL_ASCII":
        raise StoreSchemaError("the database does not say how its texts are encoded (SQL_ASCII)", "Use UTF8.")
    return Table(oid, schema, name, _key_columns(database, oid, table), text_column, vector_column, extension)


def _require_column(database: Database, oid: int, table: str, column: str, expected: str, condition: str) -> None:
    found = database.rows(
        f"SELECT {condition}, a.attgenerated <> '', format_type(t.oid, NULL) FROM pg_attribute a"  # noqa: S608  # ours
        " JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = %s::oid AND a.attname = %s AND a.attnum > 0 AND NOT a.attisdropped",
        [oid, column],
    )
    if not found:
        raise StoreSchemaError(f"{table} has no column {column}", "Names are spelled as in the database.")
    ((is_right, is_generated, kind),) = found
    if not is_right:
        raise StoreSchemaError(f"the column {column} of {table} is of type {kind}", f"Expected {expected}.")
    if is_generated and "vector" in condition:
        raise StoreSchemaError(f"the column {column} of {table} is generated", "Expected an ordinary column.")


def _key_columns(database: Database, oid: int, table: str) -> tuple[Column, ...]:
    rows = database.rows(
        "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod)"
        " FROM pg_index x CROSS JOIN unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)"
        " JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.attnum"
        " WHERE x.indrelid = %s::oid AND x.indisprimary AND k.place <= x.indnkeyatts ORDER BY k.place",
        [oid],
    )
    if not rows:
        raise StoreSchemaError(f"{table} has no primary key", "Add one, so that a row can be found again.")
    return tuple(Column(*row) for row in rows)


_NAME_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def split_name(table: str) -> tuple[str | None, str]:
    """'docs' -> (None, 'docs'); 'a.docs' -> ('a', 'docs'); '"a.b".docs' -> ('a.b', 'docs'). Raises StoreSchemaError."""
    parts = [quoted.replace('""', '"') or plain for quoted, plain in _NAME_PART.findall(table)]
    if _NAME_PART.sub("", table) != "." * (len(parts) - 1) or len(parts) not in (1, 2):
        raise StoreSchemaError(f"{table} is not the name of a table", 'Write NAME, SCHEMA.NAME or "quoted.NAME".')
    return (parts[0], parts[1]) if len(parts) == 2 else (None, parts[0])


def suffixed(name: str, suffix: str) -> str:
    """The name with the suffix; one that PostgreSQL would cut at 63 bytes is shortened and given a digest."""
    if len((name + suffix).encode()) <= MAX_IDENTIFIER_BYTES:
        return name + suffix
    mark = "_" + hashlib.sha256(name.encode()).hexdigest()[:8]
    room = MAX_IDENTIFIER_BYTES - len((mark + suffix).encode())
    return name.encode()[:room].decode(errors="ignore") + mark + suffix


def vector_literal(vector: Float32) -> str:
    """'[0.5,-1.0]'; every float32 comes back as it was."""
    return "[" + ",".join(map(repr, vector.astype(np.float32).tolist())) + "]"


def _digest_of(text: Fragment) -> sql.Composed:
    """`text_digest`, computed by the server."""
    return sql.SQL("coalesce(sha256(convert_to({}, 'UTF8')), ''::bytea)").format(text)


def _equal(left: Sequence[Fragment], right: Sequence[Fragment]) -> sql.Composed:
    pairs = zip(left, right, strict=True)
    return sql.SQL(" AND ").join(sql.SQL("{} = {}").format(a, b) for a, b in pairs)
