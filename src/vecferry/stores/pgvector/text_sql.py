"""The SQL of a row's text, where it is made of several columns.

A template is filled by the server, and an expression computed. What LlamaIndex and Haystack embed is rendered here, as
Python writes it: the server then gives its source, a JSON array of the columns, and a row's digest is that of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from psycopg import sql

from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector.connection import Fragment, literal
from vecferry.stores.pgvector.sql_source import computed
from vecferry.stores.text_source import FieldText, HaystackText, LlamaIndexText, SqlText, TemplateText, TextSource
from vecferry.stores.values import Key, Row

ColumnSql = Callable[[str], Fragment]
JSON_TYPES = frozenset({"json", "jsonb"})


class TextSql:
    """How the text of a source is asked for, and read.

    types: of its columns, such as "text" or "jsonb". table: by whose name an expression may call them.
    """

    def __init__(self, source: TextSource, types: Mapping[str, str], table: str) -> None:
        self._source, self._types, self._table = source, types, table

    def expression(self, column: ColumnSql) -> sql.Composed:
        """Return an expression of type text, NULL where the row has no text; `row` reads its value."""
        if isinstance(self._source, TemplateText):
            return self._filled(self._source, column)
        if isinstance(self._source, SqlText):
            return computed(self._source, self._table, {name: column(name) for name in self._source.columns})
        text = sql.SQL("{}::text").format(column(self._source.field))
        if isinstance(self._source, FieldText):
            return text
        name, columns = literal(self._source.name), map(column, self._source.fields)
        array = sql.SQL("pg_catalog.json_build_array({}::text, {})::text").format(name, sql.SQL(", ").join(columns))
        return sql.SQL("CASE WHEN {} IS NULL THEN NULL ELSE {} END").format(text, array)

    def row(self, key: Key, value: str | None) -> Row:
        """Return the row of such an expression's value."""
        if value is None or not isinstance(self._source, LlamaIndexText | HaystackText):
            return Row(key, value)
        fields = dict(zip(self._source.fields, json.loads(value)[1:], strict=True))
        return Row(key, self._source.render(fields), source=value)

    def _filled(self, template: TemplateText, column: ColumnSql) -> sql.Composed:
        paths = list(dict.fromkeys(path for _, path in template.parts() if path))
        values = {path: self._value(path, column) for path in paths}
        parts: list[Fragment] = []
        for text, path in template.parts():
            if text:
                parts.append(sql.SQL("{}::text").format(literal(text)))
            if path:
                parts.append(values[path])
        return sql.SQL("CASE WHEN coalesce({}) IS NULL THEN NULL ELSE pg_catalog.concat({}) END").format(
            sql.SQL(", ").join(values.values()), sql.SQL(", ").join(parts)
        )

    def _value(self, path: str, column: ColumnSql) -> sql.Composed:
        """Return a value as text: a column's, or one inside a column of JSON."""
        name, *inner = path.split(".")
        if self._types[name] not in JSON_TYPES:
            if inner:
                kind = self._types[name]
                raise StoreSchemaError(f"{{{path}}} goes into the column {name}, of type {kind}", "Expected JSON.")
            return sql.SQL("{}::text").format(column(name))
        if not inner:
            raise StoreSchemaError(f"{{{path}}} is a whole column of JSON", f"Name a value in it: {{{path}.KEY}}.")
        keys = sql.SQL(", ").join(map(literal, inner))
        at = sql.SQL("({} OPERATOR(pg_catalog.#>>) ARRAY[{}]::text[])").format(column(name), keys)
        kind_of = sql.SQL("pg_catalog.{}({} OPERATOR(pg_catalog.#>) ARRAY[{}]::text[])").format(
            sql.SQL(f"{self._types[name]}_typeof"), column(name), keys
        )
        return sql.SQL("CASE WHEN {} IN ('object', 'array') THEN NULL ELSE {} END").format(kind_of, at)
