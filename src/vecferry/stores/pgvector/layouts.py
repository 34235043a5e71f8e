"""What a migration in each of the two layouts costs others, and how long its switch takes, about."""

from __future__ import annotations

import math
from dataclasses import dataclass

from psycopg import sql

from vecferry.stores.pgvector.dependents import obstacles
from vecferry.stores.pgvector.indexes import BUILD_MEMORY_KIB, BUILD_SETTINGS
from vecferry.stores.pgvector.partitions import sizes
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.values import Layout, LayoutCost

NUMBER_BYTES = {"vector": 4, "halfvec": 2}
WRITTEN_BYTES_PER_S = 80e6
"""Of a table that the server writes anew, with its large values and the indexes that are no graphs."""
EXCHANGED_PER_S = 3_000.0
"""Rows of a part that are locked, compared by their checksums, and entered in the other indexes of the table."""
LOOKED_UP_PER_S = 50_000.0
"""Rows whose other vector is fetched from the side table."""
GRAPH_STEPS_PER_S = 6e6
"""Of an HNSW index that one process builds: numbers of its vectors, times the logarithm of their count to the base 2.

All of them as `python -m bench.side_table` saw them, on 2 cores with other work.
"""
OVERFLOW = 10
"""How much longer an index takes whose graph is larger than the memory for builds."""
LINKS_BYTES = 400
"""Of a vector in a graph, at m = 16."""
ROWS_AND_MEMORY = f"""
SELECT (SELECT count(*) FROM {{}} AS t), (SELECT {BUILD_MEMORY_KIB} FROM {BUILD_SETTINGS}) * 1024
"""  # noqa: S608  # ours
SHAPES = {
    Layout.COLUMNS: "three columns at the end of the table until finalize",
    Layout.SIDE_TABLE: "the table keeps its columns and their places; both vectors lie in a table beside it too",
}
LOCKS = {
    Layout.COLUMNS: "the table is locked for each switch while columns exchange their names",
    Layout.SIDE_TABLE: "the table is locked for each switch and rollback while it is written anew, with its indexes",
}

BESIDE = "the table keeps its columns and their places; both vectors of the part lie in a table beside it too"
EXCHANGED = (
    "the part's rows are locked for each switch and rollback while their vectors are written; others read and write on"
)
DROPPED = (
    "the table is locked for each switch and rollback while the part's vectors are written, because of {}, built anew"
    " after that beside writers"
)
SHARED = "other rows share the table, which gets no columns for a part of it"


@dataclass(frozen=True)
class Sizes:
    """Of a table. table_bytes: without its indexes; index_bytes: of those that hold no vectors; graphs: how many do.

    memory_bytes: that the build of an index may take.
    """

    rows: int
    table_bytes: int
    index_bytes: int
    graphs: int
    memory_bytes: int


def rewrite_s(sizes: Sizes, dimension: int, number_bytes: int) -> float:
    """Return how many seconds the server takes to write a table anew with vectors of that length, about."""
    written = sizes.table_bytes + sizes.index_bytes + sizes.rows * dimension * number_bytes
    graph_s = sizes.rows * dimension * math.log2(sizes.rows + 1) / GRAPH_STEPS_PER_S
    if sizes.rows * (dimension * number_bytes + LINKS_BYTES) > sizes.memory_bytes:
        graph_s *= OVERFLOW
    return written / WRITTEN_BYTES_PER_S + sizes.rows / LOOKED_UP_PER_S + sizes.graphs * graph_s


def layout_costs(session: TableSession, dimension: int) -> tuple[LayoutCost, ...]:
    """Return both layouts, for a switch to vectors of that length."""
    if session.table.where is not None:
        return _costs_of_part(session, dimension)
    chosen = session.catalogue.columns().layout
    in_the_way = [f"{each.kind} {each.name} {each.fate}" for each in obstacles(session.db, session.table)]
    obstacle = {Layout.COLUMNS: "", Layout.SIDE_TABLE: "; ".join(in_the_way)}
    seconds = {Layout.COLUMNS: 0.0, Layout.SIDE_TABLE: _rewrite_s(session, dimension)}
    return tuple(
        LayoutCost(each, each is chosen, SHAPES[each], LOCKS[each], seconds[each], obstacle[each]) for each in Layout
    )


def _costs_of_part(session: TableSession, dimension: int) -> tuple[LayoutCost, ...]:
    """Return the one layout that a part can have, with the other and why not."""
    own = session.catalogue.own_indexes()
    lock = DROPPED.format(", ".join(index.name for index in own)) if own else EXCHANGED
    return (
        LayoutCost(Layout.COLUMNS, False, SHAPES[Layout.COLUMNS], LOCKS[Layout.COLUMNS], 0.0, SHARED),  # noqa: FBT003
        LayoutCost(Layout.SIDE_TABLE, True, BESIDE, lock, switch_s(session, dimension)),  # noqa: FBT003
    )


def exchange_s(sizes: Sizes, dimension: int, number_bytes: int) -> float:
    """Return how many seconds the server takes to write a part's rows with vectors of that length, about."""
    return sizes.rows * dimension * number_bytes / WRITTEN_BYTES_PER_S + sizes.rows / EXCHANGED_PER_S


def switch_s(session: TableSession, dimension: int) -> float:
    """Return how many seconds a switch takes in the layout that the migration has, about."""
    session.catalogue.refuse_changed()
    if session.table.where is not None:
        return exchange_s(_sizes(session), dimension, NUMBER_BYTES[session.table.kind])
    is_beside = session.catalogue.columns().layout is Layout.SIDE_TABLE
    return _rewrite_s(session, dimension) if is_beside else 0.0


def _rewrite_s(session: TableSession, dimension: int) -> float:
    return rewrite_s(_sizes(session), dimension, NUMBER_BYTES[session.table.kind])


def _sizes(session: TableSession) -> Sizes:
    size = sizes(session.db, session.table.oid)
    rows, memory_bytes = session.db.row(sql.SQL(ROWS_AND_MEMORY).format(session.sql.rows))
    graphs = [index for index in session.catalogue.vector_indexes(session.table.vector) if index.holds_vectors]
    return Sizes(rows, size.table, size.indexes - sum(index.bytes for index in graphs), len(graphs), memory_bytes)
