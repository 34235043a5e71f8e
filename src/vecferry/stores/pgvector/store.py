"""The store itself: reading, writing and switching the two sides of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
from psycopg import sql

from vecferry.embeddings import Float32
from vecferry.errors import SpaceMismatch, StoreSchemaError
from vecferry.stores import Changes, Counts, Examination, Hit, Key, KeyRange, NewVector, Patience, Row, TableInfo
from vecferry.stores.pgvector.catalogue import COMMENT_PREFIX, Catalogue
from vecferry.stores.pgvector.connection import Database, Fragment, identifier, literal, verbatim
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.pgvector.locks import TableLocks
from vecferry.stores.pgvector.table import DIGEST, NEW, OLD, Table, find_table, suffixed

T = TypeVar("T")

UNMARKED = "not recorded"
MAX_INDEXED_DIMENSION = 2000
"""pgvector's limit for HNSW and IVFFlat on the type `vector`."""
NORM_TOLERANCE = 1e-3


class PgVectorStore:
    """`stores.Store` over one table, one text column and one vector column."""

    def __init__(self, database: Database, table: Table) -> None:
        self._db = database
        self._table = table
        self._name = identifier(table.schema, table.name)
        self._keys = sql.SQL(", ").join(identifier(column.name) for column in table.key)
        self._keys_as_text = sql.SQL(", ").join(
            sql.SQL("{}::text").format(identifier(column.name)) for column in table.key
        )
        self._text = sql.SQL("{}::text").format(identifier(table.text))
        self._digest = identifier(suffixed(table.vector, DIGEST))
        self._changed = sql.SQL("{} IS DISTINCT FROM {}").format(self._digest, _digest_of(self._text))
        self._ledger = PgLedger(database)
        self._catalogue = Catalogue(database, table)
        self._locks = TableLocks(database, table, self.target)

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
            serving = identifier(self._table.vector)
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
            _, dimension, not_null = self._catalogue.columns()[self._table.vector]
            return TableInfo(
                rows=rows,
                null_texts=null_texts,
                empty_texts=empty_texts,
                dimension=dimension,
                fingerprint=self._catalogue.space_of(self._table.vector),
                vector_not_null=not_null,
                table_bytes=table_bytes,
                row_bytes=heap_bytes,
                index_bytes=index_bytes,
                vector_bytes=vector_bytes,
                vector_indexes=tuple(
                    index.info(self._table) for index in self._catalogue.vector_indexes(self._table.vector)
                ),
                views=self._catalogue.views(),
                triggers=self._catalogue.update_triggers(),
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
                vector=identifier(self._table.vector),
                ext=identifier(self._table.extension),
                type=self._catalogue.vector_type(),
                keys=self._keys_as_text,
                table=self._name,
                order=self._keys,
            )
            literal = vector_literal(vector)
            return [Hit(tuple(key), float(score)) for score, *key in self._db.rows(query, [literal, literal, k])]

    def _refuse_other_space(self, fingerprint: str, dimension: int) -> None:
        serving = self._ledger.serving(self.target)
        expected = serving.fingerprint if serving else self._catalogue.space_of(self._table.vector)
        if expected is not None and expected != fingerprint:
            raise SpaceMismatch(expected=expected, found=fingerprint, where=f"a search in {self.target}")
        stored = self._catalogue.columns()[self._table.vector][1]
        if stored not in (None, dimension):
            what = f"a search in {self.target} with {dimension} numbers, which has {stored}"
            raise SpaceMismatch(expected=UNMARKED, found=fingerprint, where=what)

    # --- the new side -----------------------------------------------------------------------------

    def new_space(self) -> str | None:
        side = self._catalogue.new_side()
        return None if side is None else self._catalogue.space_of(side) or UNMARKED

    def counts(self) -> Counts:
        with self._pinned():
            if (side := self._catalogue.new_side()) is not None:
                letters: Fragment = sql.SQL("{} IS NULL AND {} IS NOT NULL").format(identifier(side), self._digest)
            elif (self._catalogue.space_of(self._table.vector)) is not None:
                side, letters = self._table.vector, sql.SQL("false")  # finalized
            else:
                return Counts(*self._db.row(sql.SQL("SELECT count(*), 0, 0 FROM {}").format(self._name)))
            query = sql.SQL("SELECT count(*), count({side}), count(*) FILTER (WHERE {letters}) FROM {table}")
            return Counts(*self._db.row(query.format(side=identifier(side), letters=letters, table=self._name)))

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        numbered = sql.SQL(", ").join(
            sql.SQL("{}::text AS {}").format(identifier(column.name), identifier(f"vecferry_{i}"))
            for i, column in enumerate(self._table.key)
        )
        query = sql.SQL(
            "SELECT {names} FROM (SELECT {numbered}, row_number() OVER w AS vecferry_number,"
            " lead(1) OVER w IS NULL AS vecferry_last FROM {table} WINDOW w AS (ORDER BY {keys})) AS numbered"
            " WHERE vecferry_number %% %s = 0 OR vecferry_last ORDER BY vecferry_number"
        ).format(
            names=sql.SQL(", ").join(identifier(f"vecferry_{i}") for i in range(len(self._table.key))),
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
        values = sql.SQL(", ").join(sql.SQL("%s::text::") + verbatim(column.type) for column in self._table.key)
        return sql.SQL("({}) {} ({})").format(self._keys, operator, values), end

    def changes(self, max_keys: int = 10) -> Changes:
        side = self._catalogue.require_new_side()
        changed, letters = self._db.row(
            sql.SQL(
                "SELECT count(*) FILTER (WHERE {changed}), count(*) FILTER (WHERE {side} IS NULL AND NOT ({changed}))"
                " FROM {table}"
            ).format(changed=self._changed, side=identifier(side), table=self._name)
        )
        query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s").format(
            self._keys_as_text, self._name, self._changed, self._keys
        )
        keys = self._db.rows(query, [max_keys]) if changed else []
        return Changes(changed, tuple(tuple(key) for key in keys), letters)

    def examine(self, dimension: int) -> Examination:
        side = self._catalogue.require_new_side()
        query = sql.SQL(
            "SELECT count(*), count(*) FILTER (WHERE {changed}),"
            " count(*) FILTER (WHERE {side} IS NULL AND NOT ({changed})),"
            " count(*) FILTER (WHERE {ext}.vector_dims({side}) <> %s),"
            " count(*) FILTER (WHERE {ext}.vector_norm({side}) IN ('NaN', 'Infinity')),"
            " count(*) FILTER (WHERE NOT {ext}.vector_norm({side}) BETWEEN %s AND %s) FROM {table}"
        ).format(changed=self._changed, side=identifier(side), ext=identifier(self._table.extension), table=self._name)
        found = self._db.row(query, [dimension, 1 - NORM_TOLERANCE, 1 + NORM_TOLERANCE])
        rows, changed, without_vector, wrong_dimension, not_finite, off_norm = found
        missing = tuple(
            index.new_name for index in self._catalogue.wanted_indexes() if not self._catalogue.is_built(index)
        )
        return Examination(rows, changed, without_vector, wrong_dimension, not_finite, off_norm, missing)

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        side = identifier(self._catalogue.require_new_side())
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
        if dimension > MAX_INDEXED_DIMENSION and self._catalogue.wanted_indexes():
            raise StoreSchemaError(
                f"an index on {self.target} cannot be made anew for {dimension} numbers",
                f"pgvector indexes at most {MAX_INDEXED_DIMENSION}; drop the index, or choose a smaller model.",
            )
        side = identifier(suffixed(self._table.vector, NEW))
        self._db.execute(
            sql.SQL("ALTER TABLE {table} ADD COLUMN {side} {type}({dimension}), ADD COLUMN {digest} bytea").format(
                table=self._name,
                side=side,
                type=self._catalogue.vector_type(),
                dimension=sql.Literal(dimension),
                digest=self._digest,
            )
        )
        self._db.execute(
            sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(self._name, side, literal(COMMENT_PREFIX + fingerprint))
        )

    def write(self, vectors: Sequence[NewVector]) -> int:
        """See `Store.write`. A row that somebody else is writing just now is left alone too, and stays pending:
        so we wait for nobody, and nobody can be in a deadlock with us.
        """
        if not vectors:
            return 0
        key = self._table.key
        names = [identifier(f"k{i}") for i in range(len(key))]
        given, free = ([sql.SQL("{}.{}").format(sql.SQL(alias), name) for name in names] for alias in ("given", "free"))
        stored = [sql.SQL("t.{}").format(identifier(column.name)) for column in key]
        casts = [
            sql.SQL("{}::{}").format(value, verbatim(column.type)) for value, column in zip(given, key, strict=True)
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
            text_digest=_digest_of(sql.SQL("t.{}::text").format(identifier(self._table.text))),
            side=identifier(self._catalogue.require_new_side()),
            type=self._catalogue.vector_type(),
            digest=self._digest,
        )
        parts = [list(part) for part in zip(*(vector.key for vector in vectors), strict=True)]
        digests = [vector.digest for vector in vectors]
        literals = [None if v.vector is None else vector_literal(v.vector) for v in vectors]
        return self._db.execute(query, [*parts, digests, literals])

    def retry_dead_letters(self) -> None:
        side = identifier(self._catalogue.require_new_side())
        query = sql.SQL("UPDATE {table} SET {digest} = NULL WHERE {side} IS NULL AND {digest} IS NOT NULL")
        self._db.execute(query.format(table=self._name, digest=self._digest, side=side))

    def build_indexes(self) -> tuple[str, ...]:
        """See `Store.build_indexes`. Writers go on; the build waits for transactions older than itself to end."""
        built = []
        # A parallel build puts maintenance_work_mem into /dev/shm, which has 64 MiB in a container;
        # pgvector then fails with "could not resize shared memory segment".
        self._db.execute("SET max_parallel_maintenance_workers = 0")
        for index in self._catalogue.wanted_indexes():
            if self._catalogue.is_built(index):
                continue
            name = identifier(self._table.schema, index.new_name)
            self._db.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(name))  # half-built
            self._db.execute(index.create_statement(self._name, identifier(suffixed(self._table.vector, NEW))))
            built.append(index.new_name)
        return tuple(built)

    def switch(self) -> None:
        vector = self._table.vector
        renames = [
            rename
            for index in self._catalogue.vector_indexes(vector)
            if (new := suffixed(index.name, NEW)) in self._catalogue.index_names(suffixed(vector, NEW))
            for rename in ((index.name, suffixed(index.name, OLD)), (new, index.name))
        ]
        self._locks.lock_out_readers()
        if self._catalogue.columns()[vector][2]:  # so that rows can be written without an old vector
            self._alter(sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(identifier(vector)))
        self._rename_columns((vector, suffixed(vector, OLD)), (suffixed(vector, NEW), vector))
        self._rename_indexes(renames)

    def switch_back(self, *, not_null: bool) -> bool:
        vector = self._table.vector
        renames = [
            rename
            for index in self._catalogue.vector_indexes(vector)
            if (old := suffixed(index.name, OLD)) in self._catalogue.index_names(suffixed(vector, OLD))
            for rename in ((index.name, suffixed(index.name, NEW)), (old, index.name))
        ]
        self._locks.lock_out_readers()
        self._rename_columns((vector, suffixed(vector, NEW)), (suffixed(vector, OLD), vector))
        self._rename_indexes(renames)
        (missing,) = self._db.row(
            sql.SQL("SELECT count(*) FROM {} WHERE {} IS NULL").format(self._name, identifier(vector)),
        )
        if not_null and not missing:
            self._alter(sql.SQL("ALTER COLUMN {} SET NOT NULL").format(identifier(vector)))
        return not_null and not missing

    def drop_old(self) -> None:
        self._locks.lock_out_readers()
        old = identifier(suffixed(self._table.vector, OLD))
        self._alter(sql.SQL("DROP COLUMN {}, DROP COLUMN {}").format(old, self._digest))

    def _alter(self, change: Fragment) -> None:
        self._db.execute(sql.SQL("ALTER TABLE {} {}").format(self._name, change))

    def _rename_columns(self, *pairs: tuple[str, str]) -> None:
        for before, after in pairs:
            self._alter(sql.SQL("RENAME COLUMN {} TO {}").format(identifier(before), identifier(after)))

    def _rename_indexes(self, pairs: Sequence[tuple[str, str]]) -> None:
        for before, after in pairs:
            name = identifier(self._table.schema, before)
            self._db.execute(sql.SQL("ALTER INDEX {} RENAME TO {}").format(name, identifier(after)))

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
        """See `Store.exclusively`."""
        return self._locks.exclusively(work, patience)

    @contextmanager
    def runner(self) -> Iterator[None]:
        """See `Store.runner`."""
        with self._locks.runner():
            yield

    def _rows(self, chosen: sql.Composed, params: Sequence[object]) -> list[Row]:
        """chosen: what follows WHERE."""
        query = sql.SQL("SELECT {}, {} FROM {} WHERE {}").format(self._text, self._keys_as_text, self._name, chosen)
        return [Row(tuple(key), text) for text, *key in self._db.rows(query, params)]


def vector_literal(vector: Float32) -> str:
    """'[0.5,-1.0]'; every float32 comes back as it was."""
    return "[" + ",".join(map(repr, vector.astype(np.float32).tolist())) + "]"


def _digest_of(text: Fragment) -> sql.Composed:
    """`text_digest`, computed by the server."""
    return sql.SQL("coalesce(sha256(convert_to({}, 'UTF8')), ''::bytea)").format(text)


def _equal(left: Sequence[Fragment], right: Sequence[Fragment]) -> sql.Composed:
    pairs = zip(left, right, strict=True)
    return sql.SQL(" AND ").join(sql.SQL("{} = {}").format(a, b) for a, b in pairs)
