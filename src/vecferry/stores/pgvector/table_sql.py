"""The pieces of SQL that name a table, its key and its text. No database is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from psycopg import sql

from vecferry.stores.pgvector.connection import Fragment, identifier, literal, verbatim
from vecferry.stores.pgvector.keys import Column
from vecferry.stores.pgvector.table import SCHEMA, Table
from vecferry.stores.pgvector.text_sql import TextSql
from vecferry.stores.values import Key, KeyRange


class TableSql:
    """name: of the table. keys, keys_as_text: the columns of the key, by commas. text: the row's text.

    rows: what is read as `t`: the table, or the part of it that is migrated. in_part: that condition on a row of the
    table called `t`, for what locks or writes rows; true of a whole table's.

    In every query the table is called `t`, and its columns are named with it: an ORDER BY of a bare name would
    take a key's text in the answer for the key. place: where a row is, for a SELECT list.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.name = identifier(table.schema, table.name)
        self.side_table = identifier(SCHEMA, table.side_table)
        self.key_names = sql.SQL(", ").join(identifier(column.name) for column in table.key)
        self.side_key_names = sql.SQL(", ").join(map(identifier, table.side_keys))
        self.keys = sql.SQL(", ").join(self._key_of("t"))
        self.keys_as_text = _as_text(self._key_of("t"))
        self.side_keys_as_text = _as_text(self._key_of("s"))
        self.text_sql = TextSql(table.source, table.text_types, table.name)
        self.text = self.text_sql.expression(self.column)
        self.place = sql.SQL("t.ctid AS place, t.tableoid AS part" if table.is_partitioned else "t.ctid AS place")
        self.in_part = sql.SQL("true") if table.where is None else table.where.over("t")
        part = sql.SQL("(SELECT t.ctid, t.tableoid, t.* FROM {} AS t WHERE {})").format(self.name, self.in_part)
        self.rows: Fragment = self.name if table.where is None else part

    def column(self, name: str) -> sql.Composed:
        return sql.SQL("t.{}").format(identifier(name))

    def has_length(self, column: str, length: int) -> sql.Composed:
        """Return a condition on the numbers of a row's vector; NULL where it has none."""
        dims = identifier(self._table.extension, "vector_dims")
        return sql.SQL("{}({}) = {}").format(dims, self.column(column), sql.Literal(length))

    def at_place(self, of: str) -> sql.SQL:
        """Return a condition: the row is at the place that something called `of` has. A place is one of a partition."""
        return sql.SQL(f"t.ctid = {of}.place" + (f" AND t.tableoid = {of}.part" if self._table.is_partitioned else ""))

    def with_sides(self, beside: Sequence[str], partition: sql.Identifier | None = None) -> Fragment:
        """Return what is read as `t` where a query needs both sides. beside: the columns of the side table; none: the
        table has them itself. partition: for its rows alone.
        """
        table = partition or self.name
        if not beside:
            return partition or self.rows
        columns = sql.SQL(", ").join(sql.SQL("s.{}").format(identifier(name)) for name in beside)
        return sql.SQL("(SELECT t.ctid, t.tableoid, t.*, {} FROM {} AS t LEFT JOIN {} AS s ON {} WHERE {})").format(
            columns, table, self.side_table, self.same_row(), self.in_part
        )

    def same_row(self) -> sql.Composed:
        """Return a condition: a row of the table, called `t`, and one of the side table, `s`, have the same key."""
        return self.same_key(self._key_of("s"))

    def without_row(self) -> sql.Composed:
        """Return a condition: the row of the side table, called `s`, has none in the table."""
        return sql.SQL("NOT EXISTS (SELECT FROM {} AS t WHERE {})").format(self.rows, self.same_row())

    def _key_of(self, row: str) -> list[sql.Composed]:
        """Return the key of a row of the table, called `t`, or of the side table, called `s`."""
        names = self._table.side_keys if row == "s" else [column.name for column in self._table.key]
        return [sql.SQL("{}.{}").format(sql.SQL(row), identifier(name)) for name in names]

    def upsert_sides(self, values: Mapping[str, Fragment], keys: Sequence[Fragment], rows: Fragment) -> sql.Composed:
        """Return what writes to the side table. values: by its column; keys: in their types; rows: a FROM clause."""
        return sql.SQL(
            "INSERT INTO {sides} ({keys}, {columns}) SELECT {key_values}, {values} FROM {rows}"
            " ON CONFLICT ({keys}) DO UPDATE SET {assigned}"
        ).format(
            sides=self.side_table,
            keys=self.side_key_names,
            columns=sql.SQL(", ").join(map(identifier, values)),
            key_values=sql.SQL(", ").join(keys),
            values=sql.SQL(", ").join(values.values()),
            rows=rows,
            assigned=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(identifier(name)) for name in values),
        )

    def among(self, keys: Collection[Key], row: str = "t") -> tuple[sql.Composed, list[list[str]]]:
        """Return a condition that is true of the rows with these keys, and its parameters.

        A key of more or fewer parts than the table's is no row's. row: what the rows are called.
        """
        names = [identifier(f"k{i}") for i in range(len(self._table.key))]
        template = "({keys}) IN (SELECT {values} FROM unnest({arrays}) AS given({names}))"
        if not self._is_plain:
            template = "EXISTS (SELECT FROM unnest({arrays}) AS given({names}) WHERE {same})"
        condition = sql.SQL(template).format(
            keys=sql.SQL(", ").join(self._key_of(row)),
            values=sql.SQL(", ").join(self.cast(names)),
            same=self.same_key(self.cast(names), row),
            arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
            names=sql.SQL(", ").join(names),
        )
        whole = [key for key in keys if len(key) == len(names)]
        return condition, [[key[i] for key in whole] for i in range(len(names))]

    def within(self, keys: KeyRange) -> tuple[sql.Composed, list[str]]:
        """Return a condition that is true of the rows in that range, and its parameters."""
        bounds, params = list[Fragment](), list[str]()
        for operator, end in ((">", keys.lo), ("<=", keys.hi)):
            if end is not None:
                bound, values = self._bound(operator, end)
                bounds.append(bound)
                params += values
        return sql.SQL(" AND ").join(bounds or [sql.SQL("true")]), params

    def _bound(self, operator: str, key: Key) -> tuple[sql.Composed, list[str]]:
        """Return a condition on the whole key, in the order of its index. operator: > or <=."""
        values = self.cast([sql.SQL("%s::text")] * len(self._table.key))
        if self._is_plain:
            parts = (self.keys, sql.SQL(operator), sql.SQL(", ").join(values))
            return sql.SQL("({}) {} ({})").format(*parts), list(key)
        columns, ways, params = self._table.key, list[sql.Composed](), list[str]()
        for place, column in enumerate(columns):  # equal in the parts before this one, and greater in this
            equal = [self._compared(*pair, "=") for pair in zip(columns[:place], values[:place], strict=True)]
            ways.append(sql.SQL(" AND ").join([*equal, self._compared(column, values[place], ">")]))
            params += key[: place + 1]
        above = sql.SQL("(({}))").format(sql.SQL(") OR (").join(ways))
        return above if operator == ">" else sql.SQL("NOT {}").format(above), params

    def _compared(self, column: Column, value: Fragment, operator: str) -> sql.Composed:
        return _compared(column.operators, self.column(column.name), value, operator)

    @property
    def _is_plain(self) -> bool:
        """Whether the server's own operators compare the keys, so that several can be compared at once."""
        return all(column.operators == "pg_catalog" for column in self._table.key)

    def type_name(self, kind: str) -> sql.Composed:
        """Return the name of one of pgvector's types, or of an array of it."""
        name, brackets, _ = kind.partition("[]")
        return identifier(self._table.extension, name) + sql.SQL(brackets)

    def placeholder(self, kind: str) -> sql.Composed:
        """Return a placeholder for a `Binary` of that type."""
        return sql.SQL("%s::{}").format(self.type_name(kind))

    def same_key(self, values: Sequence[Fragment], row: str = "t") -> sql.Composed:
        """Return a condition. values: a key in the types of its columns; row: what the row is called."""
        parts = zip(self._table.key, self._key_of(row), values, strict=True)
        return sql.SQL(" AND ").join(_compared(column.operators, own, value, "=") for column, own, value in parts)

    def side_key_text(self) -> sql.Composed:
        """Return the same as `key_text_sql`, of a row of the side table."""
        return _key_text(self._key_of("s"))

    def cast(self, values: Sequence[Fragment]) -> list[sql.Composed]:
        """Return the parts of a key, given as text, in the types of their columns."""
        pairs = zip(values, self._table.key, strict=True)
        return [sql.SQL("{}::{}").format(value, verbatim(column.type)) for value, column in pairs]


def _compared(schema: str, column: Fragment, value: Fragment, operator: str) -> sql.Composed:
    """Return a comparison by the operator of that schema."""
    return sql.SQL("{} OPERATOR({}.{}) {}").format(column, identifier(schema), sql.SQL(operator), value)


def _as_text(columns: Sequence[Fragment]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("{}::text").format(column) for column in columns)


def key_text_sql(
    row: str, table: Table, quoted: Callable[[str], Fragment] = identifier, member: str | None = None
) -> sql.Composed:
    """Return the JSON of `sql_ledger.key_text`, of a row by that name. quoted: for a statement without placeholders.

    member: stands before the key, if it is given.
    """
    columns: list[Fragment] = [] if member is None else [literal(member)]
    return _key_text(columns + [sql.SQL("{}.{}").format(sql.SQL(row), quoted(column.name)) for column in table.key])


def _key_text(columns: Sequence[Fragment]) -> sql.Composed:
    parts = [sql.SQL("to_json({}::text)::text").format(column) for column in columns]
    return sql.SQL("('[' || {} || ']')").format(sql.SQL(" || ', ' || ").join(parts))
