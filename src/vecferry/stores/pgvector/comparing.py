"""What state each row is in, on the side that a migration makes and on the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from psycopg import sql

from vecferry.embeddings import Float32
from vecferry.stores.pgvector.connection import Fragment, identifier
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.pgvector.side_resolver import UNMARKED
from vecferry.stores.values import (
    EVERYTHING,
    NORM_TOLERANCE,
    NOTHING,
    Counts,
    Examination,
    Finding,
    Key,
    KeyRange,
    Row,
    Side,
)

NORM_FUNCTIONS = {"vector": "vector_norm", "halfvec": "l2_norm"}


class PgComparison:
    """What is current on the sides."""

    def __init__(self, session: TableSession) -> None:
        self._session, self._db, self._table, self._sql = session, session.db, session.table, session.sql
        self._catalogue = session.catalogue

    def new_space(self) -> str | None:
        columns = self._catalogue.columns()
        side = columns.of_side(Side.NEW)
        return None if side is None else columns.by_name[side].space or UNMARKED

    def counts(self) -> Counts:
        with self._session.pinned():
            columns = self._catalogue.columns()
            if (side := columns.of_side(Side.NEW)) is not None:
                dead_letters: Fragment = self._without_vector(side)
            elif columns.by_name[self._table.vector].space is not None:
                side, dead_letters = self._table.vector, sql.SQL("false")  # finalized
            else:
                return Counts(*self._db.row(sql.SQL("SELECT count(*), 0, 0 FROM {} AS t").format(self._sql.rows)))
            query = sql.SQL(
                "SELECT count(*), count({side}), count(*) FILTER (WHERE {dead_letters}),"
                " count(*) FILTER (WHERE {unembedded}) FROM {rows} AS t"
            ).format(
                side=self._sql.column(side),
                dead_letters=dead_letters,
                unembedded=self._session.is_unembedded(columns),
                rows=self._session.with_sides(columns),
            )
            return Counts(*self._db.row(query))

    def _without_vector(self, column: str) -> sql.Composed:
        return sql.SQL("{} IS NULL AND {}").format(self._sql.column(column), self._session.is_dead_letter(Side.NEW))

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        numbered = sql.SQL(", ").join(
            sql.SQL("{}::text AS {}").format(self._sql.column(column.name), identifier(f"vecferry_{i}"))
            for i, column in enumerate(self._table.key)
        )
        query = sql.SQL(
            "SELECT {names} FROM (SELECT {numbered}, row_number() OVER w AS vecferry_number,"
            " lead(1) OVER w IS NULL AS vecferry_last FROM {table} AS t WINDOW w AS (ORDER BY {keys})) AS numbered"
            " WHERE vecferry_number %% %s = 0 OR vecferry_last ORDER BY vecferry_number"
        ).format(
            names=sql.SQL(", ").join(identifier(f"vecferry_{i}") for i in range(len(self._table.key))),
            numbered=numbered,
            table=self._sql.rows,
            keys=self._sql.keys,
        )
        ends: list[Key | None] = [None, *(tuple(row) for row in self._db.rows(query, [rows_each]))]
        return [KeyRange(lo, hi) for lo, hi in pairwise(ends)]

    def outdated(self, side: Side, among: Sequence[Key] | KeyRange = EVERYTHING, limit: int | None = None) -> list[Row]:
        if not isinstance(among, KeyRange) and not among:
            return []
        selected, params = self._sql.within(among) if isinstance(among, KeyRange) else self._sql.among(among)
        with self._session.pinned():
            columns = self._catalogue.columns()
            if not columns.is_compared(side):
                return []
            condition = sql.SQL("{} AND {}").format(selected, self._session.outdated(side, columns))
            of, unembedded = self._session.with_sides(columns), self._session.is_unembedded(columns)
            return self._session.rows(condition, params, limit, of=of, unembedded=unembedded)

    def count_outdated(self, side: Side, max_keys: int = 10, *, with_vector: bool = False) -> Finding:
        with self._session.pinned():
            columns = self._catalogue.columns()
            if not columns.is_compared(side):
                return NOTHING
            outdated = self._session.outdated(side, columns)
            if with_vector:
                vector = self._sql.column(columns.required(side))
                outdated = sql.SQL("{} IS NOT NULL AND ({})").format(vector, outdated)
            rows = sql.SQL("{} AS t").format(self._session.with_sides(columns))
            (count,) = self._db.row(sql.SQL("SELECT count(*) FROM {} WHERE {}").format(rows, outdated))
            return Finding(count, self._keys_where(rows, outdated, max_keys)) if count else NOTHING

    def orphans(self, limit: int) -> list[Key]:
        with self._session.pinned():
            return list(self._orphans(limit)) if self._catalogue.columns().beside else []

    def _orphans(self, max_keys: int) -> tuple[Key, ...]:
        """Return the keys of deleted rows of which something is left in the side table."""
        query = sql.SQL("SELECT {} FROM {} AS s WHERE {} LIMIT %s").format(
            self._sql.side_keys_as_text, self._sql.side_table, self._sql.without_row()
        )
        return tuple(map(tuple, self._db.rows(query, [max_keys])))

    def check_integrity(self, dimension: int, max_keys: int = 10) -> Examination:
        with self._session.pinned():
            columns = self._catalogue.columns()
            rows_sql, defects = sql.SQL("{} AS t").format(self._session.with_sides(columns)), self._defects(dimension)
            counts_sql = sql.SQL(", ").join(
                sql.SQL("count(*) FILTER (WHERE {})").format(each) for each in defects.values()
            )
            unembedded = self._session.is_unembedded(columns)
            query = sql.SQL("SELECT count(*), count(*) FILTER (WHERE {}), {} FROM {}")
            rows, unembedded_rows, *counts = self._db.row(query.format(unembedded, counts_sql, rows_sql))
            findings = {
                name: Finding(count, self._keys_where(rows_sql, defects[name], max_keys))
                for name, count in zip(defects, counts, strict=True)
                if count
            }
            if columns.beside:
                counted = sql.SQL("SELECT count(*) FROM {} AS s WHERE {}")
                (count,) = self._db.row(counted.format(self._sql.side_table, self._sql.without_row()))
                findings["orphaned"] = Finding(count, self._orphans(max_keys) if count else ())
            missing = [index.new_name for index in self._catalogue.missing_indexes()]
            missing += [index.name for index in self._catalogue.pending_indexes()]
            lost = [f"one like {name}" for name in self._catalogue.lost_twins()]
            return Examination(rows, unembedded_rows, missing_indexes=(*missing, *lost), **findings)

    def _defects(self, dimension: int) -> dict[str, sql.Composed]:
        """Return the condition of each defect, by its name in `Examination`."""
        columns = self._catalogue.columns()
        side = self._sql.column(columns.required(Side.NEW))
        extension = self._table.extension
        length = sql.SQL("{}({})").format(identifier(extension, NORM_FUNCTIONS[self._table.kind]), side)
        lo, hi = sql.Literal(1 - NORM_TOLERANCE), sql.Literal(1 + NORM_TOLERANCE)
        return {
            "outdated": self._session.outdated(Side.NEW, columns),
            "without_vector": self._without_vector(columns.required(Side.NEW)),
            "wrong_dimension": sql.SQL("{}({}) <> {}").format(
                identifier(extension, "vector_dims"), side, sql.Literal(dimension)
            ),
            "not_finite": sql.SQL("{} IN ('NaN', 'Infinity')").format(length),
            "zero": sql.SQL("{} = 0").format(length),
            "off_norm": sql.SQL("NOT {} BETWEEN {} AND {}").format(length, lo, hi),
        }

    def _keys_where(self, rows: Fragment, condition: sql.Composed, max_keys: int) -> tuple[Key, ...]:
        query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s")
        query_of_all = query.format(self._sql.keys_as_text, rows, condition, self._sql.keys)
        return tuple(tuple(key) for key in self._db.rows(query_of_all, [max_keys]))

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        with self._session.pinned():
            columns = self._catalogue.columns()
            query = sql.SQL(
                "WITH drawn AS MATERIALIZED ("
                "SELECT {place} FROM {rows} AS t WHERE {side} IS NOT NULL ORDER BY random())"
                " SELECT {text}, {side}::real[], {keys} FROM drawn JOIN {rows} AS t ON {at_place}"
                " WHERE NOT ({outdated}) LIMIT %s"  # so that few vectors are read
            ).format(
                place=self._sql.place,
                at_place=self._sql.at_place("drawn"),
                text=self._sql.text,
                side=self._sql.column(columns.required(Side.NEW)),
                keys=self._sql.keys_as_text,
                rows=self._session.with_sides(columns),
                outdated=self._session.outdated(Side.NEW, columns),
            )
            return [
                (self._sql.text_sql.row(tuple(key), text), np.asarray(vector, np.float32))
                for text, vector, *key in self._db.rows(query, [num_rows])
            ]
