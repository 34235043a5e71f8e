"""The pieces of SQL that name a table, its key and its text. No database is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psycopg import sql

from vecferry.stores.pgvector.connection import Fragment, identifier, verbatim
from vecferry.stores.pgvector.table import Table
from vecferry.stores.pgvector.text_sql import TextSql
from vecferry.stores.values import Key, KeyRange


class TableSql:
    """name: of the table. keys, keys_as_text: the columns of the key, by commas. text: the row's text.

    In every query the table is called `t`, and its columns are named with it: an ORDER BY of a bare name would
    take a key's text in the answer for the key.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.name = identifier(table.schema, table.name)
        keys = [self.column(column.name) for column in table.key]
        self.keys = sql.SQL(", ").join(keys)
        self.keys_as_text = sql.SQL(", ").join(sql.SQL("{}::text").format(key) for key in keys)
        self.text_sql = TextSql(table.source, table.text_types, table.name)
        self.text = self.text_sql.expression(self.column)

    def column(self, name: str) -> sql.Composed:
        return sql.SQL("t.{}").format(identifier(name))

    def among(self, keys: Sequence[Key]) -> tuple[sql.Composed, list[list[str]]]:
        """Return a condition that is true of the rows with these keys, and its parameters.

        A key of more or fewer parts than the table's is no row's.
        """
        names = [identifier(f"k{i}") for i in range(len(self._table.key))]
        condition = sql.SQL("({keys}) IN (SELECT {values} FROM unnest({arrays}) AS given({names}))").format(
            keys=self.keys,
            values=sql.SQL(", ").join(self.cast(names)),
            arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
            names=sql.SQL(", ").join(names),
        )
        whole = [key for key in keys if len(key) == len(names)]
        return condition, [[key[i] for key in whole] for i in range(len(names))]

    def within(self, keys: KeyRange) -> tuple[sql.Composed, list[str]]:
        """Return a condition that is true of the rows in that range, and its parameters."""
        ends = [(sql.SQL(">"), keys.lo), (sql.SQL("<="), keys.hi)]
        values = sql.SQL(", ").join(sql.SQL("%s::text::") + verbatim(column.type) for column in self._table.key)
        bounds: list[Fragment] = [
            sql.SQL("true") if end is None else sql.SQL("({}) {} ({})").format(self.keys, operator, values)
            for operator, end in ends
        ]
        return sql.SQL(" AND ").join(bounds), [part for _, end in ends if end is not None for part in end]

    def type_name(self, kind: str) -> sql.Composed:
        """Return the name of one of pgvector's types, or of an array of it."""
        name, brackets, _ = kind.partition("[]")
        return identifier(self._table.extension, name) + sql.SQL(brackets)

    def placeholder(self, kind: str) -> sql.Composed:
        """Return a placeholder for a `Binary` of that type."""
        return sql.SQL("%s::{}").format(self.type_name(kind))

    def same_key(self, values: Sequence[Fragment]) -> sql.Composed:
        """Return a condition. values: a key in the types of its columns; the row is called `t`."""
        pairs = zip(self._table.key, values, strict=True)
        return sql.SQL(" AND ").join(sql.SQL("{} = {}").format(self.column(c.name), value) for c, value in pairs)

    def cast(self, values: Sequence[Fragment]) -> list[sql.Composed]:
        """Return the parts of a key, given as text, in the types of their columns."""
        pairs = zip(values, self._table.key, strict=True)
        return [sql.SQL("{}::{}").format(value, verbatim(column.type)) for value, column in pairs]


def key_text_sql(row: str, table: Table, quoted: Callable[[str], Fragment] = identifier) -> sql.Composed:
    """Return the JSON of `sql_ledger.key_text`, of a row by that name. quoted: for a statement without placeholders."""
    parts = [sql.SQL("to_json({}.{}::text)::text").format(sql.SQL(row), quoted(column.name)) for column in table.key]
    return sql.SQL("('[' || {} || ']')").format(sql.SQL(" || ', ' || ").join(parts))
