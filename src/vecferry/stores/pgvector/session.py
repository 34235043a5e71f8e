"""One connection and one table: what all parts of the store stand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from psycopg import sql

from vecferry.stores import Key, Row
from vecferry.stores.pgvector.catalogue import Catalogue
from vecferry.stores.pgvector.connection import Database, Fragment, identifier, verbatim
from vecferry.stores.pgvector.fence import Fence
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.pgvector.locks import TableLocks
from vecferry.stores.pgvector.spaces import Spaces
from vecferry.stores.pgvector.table import DIGEST, Table, find_table, suffixed


class Session:
    """The connection, its ledger, and the pieces of SQL that name the table, its key and its text."""

    def __init__(self, database: Database, table: Table) -> None:
        self._db = database
        self._table = table
        self._ledger = PgLedger(database)
        self._fence = Fence(database, self._ledger)
        self._locks = TableLocks(database, self._fence, table)
        self._catalogue = Catalogue(database, table)
        self._spaces = Spaces(self._catalogue, self._ledger, table.target)
        self._name = identifier(table.schema, table.name)
        self._keys = sql.SQL(", ").join(identifier(column.name) for column in table.key)
        self._keys_as_text = sql.SQL(", ").join(
            sql.SQL("{}::text").format(identifier(column.name)) for column in table.key
        )
        self._text = sql.SQL("{}::text").format(identifier(table.text))
        self._digest = identifier(suffixed(table.vector, DIGEST))
        self._changed = sql.SQL("{} IS DISTINCT FROM {}").format(self._digest, digest_of(self._text))

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

    def another(self) -> Self:
        return type(self)(self._db.another(), self._table)

    def reconnect(self) -> None:
        self._db.reconnect()
        self._fence.restore()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def target(self) -> str:
        return self._table.target

    @property
    def text_source(self) -> str:
        return self._table.text

    @property
    def ledger(self) -> PgLedger:
        return self._ledger

    # --- for the parts ----------------------------------------------------------------------------

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        """A transaction in which the columns keep their names: a switch waits for its end."""
        with self._db.transaction():
            self._locks.lock("ACCESS SHARE")
            yield

    def _rows(self, chosen: Fragment, params: Sequence[object]) -> list[Row]:
        """chosen: what follows WHERE."""
        query = sql.SQL("SELECT {}, {} FROM {} WHERE {}").format(self._text, self._keys_as_text, self._name, chosen)
        return [Row(tuple(key), text) for text, *key in self._db.rows(query, params)]

    def _among(self, keys: Sequence[Key]) -> tuple[sql.Composed, list[list[str]]]:
        """A condition that is true of the rows with these keys, and its parameters.

        A key of more or fewer parts than the table's is no row's.
        """
        names = [identifier(f"k{i}") for i in range(len(self._table.key))]
        condition = sql.SQL("({keys}) IN (SELECT {values} FROM unnest({arrays}) AS given({names}))").format(
            keys=self._keys,
            values=sql.SQL(", ").join(self._cast(names)),
            arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
            names=sql.SQL(", ").join(names),
        )
        whole = [key for key in keys if len(key) == len(names)]
        return condition, [[key[i] for key in whole] for i in range(len(names))]

    def _type(self, kind: str) -> sql.Composed:
        """One of pgvector's types, or an array of it."""
        name, brackets, _ = kind.partition("[]")
        return identifier(self._table.extension, name) + sql.SQL(brackets)

    def _given_as(self, kind: str) -> sql.Composed:
        """A placeholder for a `Binary` of that type."""
        return sql.SQL("%s::{}").format(self._type(kind))

    def _same_key(self, values: Sequence[Fragment]) -> sql.Composed:
        """values: a key in the types of its columns; the row is called `t`."""
        pairs = zip(self._table.key, values, strict=True)
        return sql.SQL(" AND ").join(sql.SQL("t.{} = {}").format(identifier(c.name), value) for c, value in pairs)

    def _cast(self, values: Sequence[Fragment]) -> list[sql.Composed]:
        """The parts of a key, given as text, in the types of their columns."""
        pairs = zip(values, self._table.key, strict=True)
        return [sql.SQL("{}::{}").format(value, verbatim(column.type)) for value, column in pairs]


def digest_of(text: Fragment) -> sql.Composed:
    """`text_digest`, computed by the server."""
    return sql.SQL("coalesce(sha256(convert_to({}, 'UTF8')), ''::bytea)").format(text)
