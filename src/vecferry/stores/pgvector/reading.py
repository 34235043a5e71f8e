"""What anybody may ask of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from vecferry.embeddings import Float32
from vecferry.errors import InvalidFilter, StoreFailed, StoreSchemaError
from vecferry.stores.filters import EVERY_ROW, NativeFilter, Selection
from vecferry.stores.pgvector.binary import Binary, vector_bytes
from vecferry.stores.pgvector.capture import CaptureNames
from vecferry.stores.pgvector.catalogue import Columns
from vecferry.stores.pgvector.connection import identifier
from vecferry.stores.pgvector.dependents import dependents
from vecferry.stores.pgvector.filters import filter_sql
from vecferry.stores.pgvector.indexes import VectorIndex
from vecferry.stores.pgvector.notices import notices
from vecferry.stores.pgvector.partitions import Sizes, sizes
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.pgvector.side_resolver import ResolvedSide
from vecferry.stores.pgvector.table import NEW, NEW_CHECKSUM, OLD_CHECKSUM, SCHEMA, suffixed
from vecferry.stores.pgvector.views import views_of
from vecferry.stores.text_source import FieldText, SqlText
from vecferry.stores.values import Hit, Key, KeyRange, Layout, Row, Side, StoredRow, TableInfo, in_order

MAX_EF_SEARCH = 1000
"""How many rows an HNSW index can find at once."""


LET_INDEX_GO_ON = """
SELECT set_config(setting, 'relaxed_order', true)
FROM pg_extension, unnest(ARRAY['hnsw.iterative_scan', 'ivfflat.iterative_scan']) AS setting
WHERE extname = 'vector' AND string_to_array(substring(extversion FROM '^[0-9]+[.][0-9]+'), '.')::int[] >= '{0,8}'
"""
"""Lets an index of pgvector look further, as long as a filter leaves out what it finds; what it returns is sorted."""
BAD_FILTER = ("22", "42")
"""Classes of errors: values that are none of their type; SQL that means nothing, or that the role may not."""


@dataclass(frozen=True, eq=False)
class _Search:
    place: ResolvedSide
    dimension: int
    vector: Binary
    k: int
    selection: Selection


class PgReader:
    """What anybody may ask."""

    def __init__(self, session: TableSession) -> None:
        self._session, self._db, self._table, self._sql = session, session.db, session.table, session.sql
        self._ledger, self._catalogue, self._side_resolver = session.ledger, session.catalogue, session.side_resolver

    def describe(self) -> TableInfo:
        with self._session.pinned():
            serving = self._sql.column(self._table.vector)
            rows, null_texts, empty_texts, rows_without_vector, texts_without_vector, vector_bytes = self._db.row(
                sql.SQL(
                    "SELECT count(*), count(*) FILTER (WHERE {text} IS NULL), count(*) FILTER (WHERE {text} = ''),"
                    " count(*) FILTER (WHERE {vector} IS NULL),"
                    " count(*) FILTER (WHERE {vector} IS NULL AND {text} IS NOT NULL),"
                    " coalesce(sum(pg_column_size({vector})), 0)::bigint FROM {table} AS t"
                ).format(text=self._sql.text, vector=serving, table=self._sql.rows)
            )
            size = self._size()
            columns = self._catalogue.columns()
            column = columns.by_name[self._table.vector]
            dimension = (
                column.dimension if self._table.where is None else self._session.length(columns, self._table.vector)
            )
            return TableInfo(
                rows=rows,
                null_texts=null_texts,
                empty_texts=empty_texts,
                dimension=dimension,
                fingerprint=column.space,
                vector_not_null=column.is_required,
                table_bytes=size.total,
                row_bytes=size.rows,
                index_bytes=size.indexes,
                vector_bytes=vector_bytes,
                vector_indexes=tuple(index.info() for index in self._indexes()),
                views=tuple(view.name for view in views_of(self._db, self._table) if not view.is_carried),
                triggers=self._catalogue.update_triggers(),
                creates=self._creates(columns),
                dependents=dependents(self._db, self._table, columns.layout),
                rows_without_vector=rows_without_vector,
                texts_without_vector=texts_without_vector,
                notices=notices(self._db, self._table, dimension),
            )

    def _size(self) -> Sizes:
        """Return the bytes of the table; of a part, those of its rows, and none of indexes."""
        if self._table.where is None:
            return sizes(self._db, self._table.oid)
        query = sql.SQL(
            "SELECT coalesce(sum(pg_column_size(t.*)), 0)::bigint, coalesce(sum(pg_column_size({})), 0)::bigint"
            " FROM {} AS t WHERE {}"
        ).format(self._sql.column(self._table.vector), self._sql.name, self._sql.in_part)
        row_bytes, vector_bytes = self._db.row(query)
        return Sizes(row_bytes + vector_bytes, row_bytes, row_bytes + vector_bytes, 0)

    def _indexes(self) -> list[VectorIndex]:
        """Return those that are made anew for the new vectors."""
        if self._table.where is None:
            return self._catalogue.vector_indexes(self._table.vector)
        return self._catalogue.own_indexes()

    def _creates(self, columns: Columns) -> tuple[str, ...]:
        """Name what `start` creates. Sparse and ColBERT columns come on top, where the migration asks for them."""
        table, names = self._table.full_name, CaptureNames.of(self._table.target)
        made = [f"column {table}.{suffixed(self._table.vector, end)}" for end in (NEW, NEW_CHECKSUM, OLD_CHECKSUM)]
        triggers, functions, schema = [*names.triggers], [names.function], self._table.schema
        if columns.layout is Layout.SIDE_TABLE:
            made, schema = [f"table {SCHEMA}.{self._table.side_table}"], SCHEMA
            triggers.append(names.truncate_trigger)
            functions.append(names.others_function)
        return (
            *(() if self._ledger.is_installed() else ("schema vecferry",)),
            *([] if columns.of_side(Side.NEW) else made),
            *(f"trigger {trigger} on {table}" for trigger in triggers),
            *(f"function {SCHEMA}.{function}" for function in functions),
            *(f"index {schema}.{index.new_name}" for index in self._catalogue.missing_indexes()),
        )

    def sample(self, num_rows: int) -> list[Row]:
        unembedded = self._session.is_unembedded(self._catalogue.columns())
        query = sql.SQL("SELECT {}, {} FROM {} AS t WHERE {} IS NOT NULL AND NOT {} ORDER BY random() LIMIT %s").format(
            self._sql.text, self._sql.keys_as_text, self._sql.rows, self._sql.text, unembedded
        )
        return [self._sql.text_sql.row(tuple(key), text) for text, *key in self._db.rows(query, [num_rows])]

    def sample_stored(self, num_rows: int) -> list[StoredRow]:
        with self._session.pinned():
            query = sql.SQL(
                "WITH drawn AS MATERIALIZED ("
                "SELECT {place} FROM {table} AS t WHERE {in_part} AND {vector} IS NOT NULL"
                " ORDER BY random() LIMIT %s)"
                " SELECT to_json(t.*), {text}, {vector}::real[], {keys}"
                " FROM drawn JOIN {table} AS t ON {at_place}"
            ).format(
                place=self._sql.place,
                at_place=self._sql.at_place("drawn"),
                table=self._sql.name,
                in_part=self._sql.in_part,
                text=self._sql.text,
                vector=self._sql.column(self._table.vector),
                keys=self._sql.keys_as_text,
            )
            vectors, source = self._catalogue.columns().of_vectors(), self._table.source
            return [
                StoredRow(
                    tuple(key),
                    {name: value for name, value in fields.items() if name not in vectors}
                    | ({source.name: text} if isinstance(source, SqlText) else {}),
                    np.asarray(vector, np.float32),
                )
                for fields, text, vector, *key in self._db.rows(query, [num_rows])
            ]

    def rows(self, keys: Sequence[Key]) -> list[Row]:
        rows = {row.key: row for row in self._session.rows(*self._sql.among(keys))}
        return list(in_order(rows, keys).values())

    def rows_within(self, within: KeyRange, limit: int) -> list[Row]:
        return self._session.rows(*self._sql.within(within), limit)

    def vectors(self, keys: Sequence[Key], *, fingerprint: str) -> dict[Key, Float32]:
        among, params = self._sql.among(keys)
        with self._session.pinned():
            query = sql.SQL("SELECT {vector}::real[], {keys} FROM {rows} AS t WHERE {is_there} AND {among}").format(
                vector=self._sql.column((place := self._side_resolver.read(fingerprint)).column),
                is_there=self._is_there(place, place.dimension),
                keys=self._sql.keys_as_text,
                rows=self._sql.with_sides(place.beside),
                among=among,
            )
            vectors: dict[Key, Float32] = {
                tuple(key): np.asarray(vector, np.float32) for vector, *key in self._db.rows(query, params)
            }
        return in_order(vectors, keys)

    def search(
        self, vector: Float32, k: int, *, fingerprint: str, exact: bool = False, selection: Selection = EVERY_ROW
    ) -> list[Hit]:
        """Return the k rows nearest to `vector`, best first.

        The epoch and the vectors are read under one lock, so they belong together.

        Without `exact`, an index with `*_cosine_ops` answers, if the column has one. It looks at rows that a filter
        leaves out too, and gives up at some time; where it finds too few, all rows of the filter are compared.
        """
        with self._session.pinned():
            place = self._side_resolver.searched(fingerprint, len(vector))
            search = _Search(place, len(vector), Binary(vector_bytes(vector, self._table.kind)), k, selection)
            if exact or k > MAX_EF_SEARCH:
                return self._found_by_comparing(search)
            self._let_index_find(k)
            if selection.where is None:
                return self._found_by_index(search)
            self._db.rows(LET_INDEX_GO_ON)
            hits = self._found_by_index(search)
            return hits if len(hits) == k else self._found_by_comparing(search)

    def _found_by_comparing(self, search: _Search) -> list[Hit]:
        self._db.execute("SET LOCAL enable_indexscan = off")
        return self._found(search, limited=sql.SQL(""), sorted_limit=sql.SQL(" LIMIT %s"))

    def _found_by_index(self, search: _Search) -> list[Hit]:
        limited = sql.SQL(" ORDER BY vecferry_distance LIMIT %s")
        return self._found(search, limited=limited, sorted_limit=sql.SQL(""))

    def _found(self, search: _Search, *, limited: sql.SQL, sorted_limit: sql.SQL) -> list[Hit]:
        """Return the nearest rows.

        limited: inside, where nothing but the distance may be sorted by, so that an index can do it.
        sorted_limit: after rows of equal distance were sorted by key.
        """
        columns, selection = self._catalogue.columns(), search.selection
        condition, params = sql.SQL("true").format(), list[object]()
        if selection.where is not None:
            condition, params = filter_sql(selection.where, columns)
        nothing, itself = sql.SQL("NULL"), sql.SQL(" AS t")
        place = sql.SQL("t.ctid AS vecferry_place, t.tableoid AS vecferry_part")  # which a table alone would not need
        joined = sql.SQL(" AS n JOIN {} AS t ON t.ctid = n.vecferry_place AND t.tableoid = n.vecferry_part").format(
            self._sql.name
        )
        query = sql.SQL(
            "SELECT 1 - vecferry_distance, {text}, {payload}, {keys_as_text} FROM (SELECT {sized} OPERATOR({ext}.<=>)"
            " {query} AS vecferry_distance, {inside} FROM {rows} AS t"
            " WHERE {is_there} AND {condition}{limited}){nearest}"
            " ORDER BY vecferry_distance, {keys}{sorted_limit}"
        ).format(
            text=self._sql.text if selection.with_text else nothing,
            payload=self._payload(columns) if selection.with_payload else nothing,
            keys_as_text=self._sql.keys_as_text,
            sized=self._sized(search.place.column, search.dimension),
            is_there=self._is_there(search.place, search.dimension),
            ext=identifier(self._table.extension),
            query=self._sql.placeholder(self._table.kind),
            inside=place if selection.wants_points else self._sql.keys,
            keys=self._sql.keys,
            rows=self._sql.with_sides(search.place.beside),
            condition=condition,
            limited=limited,
            nearest=joined if selection.wants_points else itself,
            sorted_limit=sorted_limit,
        )
        rows = self._filtered_rows(query, [search.vector, *params, search.k], selection)
        return [
            Hit(tuple(key), float(score), self._sql.text_sql.row(tuple(key), text).text, payload)
            for score, text, payload, *key in rows
        ]

    def _filtered_rows(self, query: sql.Composed, params: list[object], selection: Selection) -> list[tuple[Any, ...]]:
        """Return rows. Raises InvalidFilter for a value that is none of its column's, or SQL that is none."""
        if selection.where is None:
            return self._db.rows(query, params)
        try:
            return self._db.rows(query, params)
        except StoreSchemaError as exc:
            if isinstance(selection.where, NativeFilter):
                raise InvalidFilter("", f"PostgreSQL refuses it ({exc.what:.200})") from exc
            raise
        except StoreFailed as exc:
            state = getattr(exc.__cause__, "sqlstate", None)
            if state is None or state.startswith(BAD_FILTER):
                raise InvalidFilter("", f"PostgreSQL refuses it ({exc.reason:.200})") from exc
            raise

    def _payload(self, columns: Columns) -> sql.Composed:
        """Return an object of the columns that are neither key, text nor vectors."""
        reserved = columns.ours() | columns.of_vectors() | {column.name for column in self._table.key}
        reserved |= {*columns.beside, *([self._table.source.name] if isinstance(self._table.source, FieldText) else [])}
        names = sorted(name for name in columns.by_name if name not in reserved)
        if not names:
            return sql.SQL("'{{}}'::json").format()
        values = sql.SQL(", ").join(map(self._sql.column, names))
        return sql.SQL("(SELECT to_json(p) FROM (SELECT {}) AS p)").format(values)

    def _let_index_find(self, k: int) -> None:
        """Let the index return `k` rows. The setting, 40 by default, is there once a session has used pgvector."""
        self._db.rows(
            "SELECT set_config('hnsw.ef_search',"
            " greatest(%s, coalesce(nullif(now.setting, ''), '40')::int)::text, true)"
            " FROM current_setting('hnsw.ef_search', true) AS now(setting)",
            [k],
        )

    def _is_there(self, place: ResolvedSide, dimension: int | None) -> sql.Composed:
        """Return a condition: the row has a vector there; of a part, one of that length, since a column that takes any
        may have others that are not followed yet.
        """
        if self._table.where is None or dimension is None:
            return sql.SQL("{} IS NOT NULL").format(self._sql.column(place.column))
        # not the comparison alone, of which the server expects that one row in 200 has it, and so no use of an index
        return sql.SQL("coalesce({}, false)").format(self._sql.has_length(place.column, dimension))

    def _sized(self, column: str, dimension: int) -> sql.Composed:
        vector = self._sql.column(column)
        if self._table.where is None:
            return vector
        return sql.SQL("({}::{}({}))").format(vector, self._sql.type_name(self._table.kind), sql.Literal(dimension))
