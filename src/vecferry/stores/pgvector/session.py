"""One connection and one table: what all parts of the store stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from psycopg import sql

from vecferry.embeddings import TextVectors
from vecferry.stores.pgvector.binary import colbert_array, sparse_bytes, vector_bytes
from vecferry.stores.pgvector.catalogue import Catalogue, Columns, HeadColumns
from vecferry.stores.pgvector.checksum import Stored, StoredColumns, checksum_sql, digest_sql
from vecferry.stores.pgvector.connection import Database, Fragment, identifier, literal, verbatim
from vecferry.stores.pgvector.lease_guard import LeaseGuard
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.pgvector.locks import TableLocks
from vecferry.stores.pgvector.outbox import Outbox
from vecferry.stores.pgvector.side_resolver import Spaces
from vecferry.stores.pgvector.table import Table, find_table
from vecferry.stores.values import Key, Row, Side


class TableSession:
    """The connection, its ledger, and the pieces of SQL that name the table, its key and its text.

    In every query the table is called `t`, and its columns are named with it: an ORDER BY of a bare name would
    take a key's text in the answer for the key.
    """

    def __init__(self, database: Database, table: Table) -> None:
        self._db = database
        self._table = table
        self._ledger = PgLedger(database)
        self._guard = LeaseGuard(database, self._ledger)
        self._locks = TableLocks(database, self._guard, table)
        self._outbox = Outbox(database, self._ledger, table.target)
        self._catalogue = Catalogue(database, table)
        self._spaces = Spaces(self._catalogue, self._ledger, table.target)
        self._name = identifier(table.schema, table.name)
        keys = [self._column(column.name) for column in table.key]
        self._keys = sql.SQL(", ").join(keys)
        self._keys_as_text = sql.SQL(", ").join(sql.SQL("{}::text").format(key) for key in keys)
        self._text = sql.SQL("{}::text").format(self._column(table.text))

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

    def _column(self, name: str) -> sql.Composed:
        return sql.SQL("t.{}").format(identifier(name))

    def _rows(self, condition: Fragment, params: Sequence[object], limit: int | None = None) -> list[Row]:
        """Those for which it is true, by ascending key; the first `limit` of them."""
        query = sql.SQL("SELECT {}, {} FROM {} AS t WHERE {} ORDER BY {} LIMIT %s").format(
            self._text, self._keys_as_text, self._name, condition, self._keys
        )
        return [Row(tuple(key), text) for text, *key in self._db.rows(query, [*params, limit])]

    def _outdated(self, side: Side, columns: Columns) -> sql.Composed:
        """A condition: the row's vector on that side is not known to be of its text, or missing and the text untried.

        Until the first switch the application alone keeps the old side, and what it has there counts as right:
        then it is that there is a vector whose checksum has not been noted (`PgCapture.adopt`).
        """
        vector, checksum = self._column(columns.required(side)), self._column(columns.checksum(side))
        changed = sql.SQL("{} IS DISTINCT FROM {}").format(checksum, self._checksum(side, columns))
        if side is Side.OLD and not self._ledger.was_switched(self.target):
            return sql.SQL("{} IS NOT NULL AND {}").format(vector, changed)
        untried = sql.SQL("NOT {}").format(self._is_dead_letter(side))
        return sql.SQL("CASE WHEN {} IS NULL THEN {} ELSE {} END").format(vector, untried, changed)

    def _is_dead_letter(self, side: Side) -> sql.Composed:
        """A condition: the ledger says of the row's present text that it cannot be embedded."""
        if not self._ledger.is_installed():
            return sql.Composed([sql.SQL("false")])
        return sql.SQL(
            "EXISTS (SELECT FROM vecferry.dead_letters AS d JOIN vecferry.migrations AS m ON m.id = d.migration_id"
            " WHERE m.target = {target} AND m.state NOT IN ('finalized', 'aborted') AND d.side = {side}"
            " AND d.key = {key} AND d.text_sha256 = {digest})"
        ).format(
            target=literal(self.target),
            side=literal(side.value),
            key=key_text_sql("t", self._table),
            digest=digest_sql(self._text),
        )

    def _checksum(self, side: Side, columns: Columns) -> sql.Composed:
        """What the row's checksum is if its vector on that side was made of its text."""
        heads, table = columns.heads(side), self._table
        return checksum_sql(
            StoredColumns(
                table.extension,
                table.kind,
                self._text,
                self._column(columns.required(side)),
                None if heads.sparse is None else self._column(heads.sparse),
                None if heads.colbert is None else self._column(heads.colbert),
            )
        )

    def _stored(self, digest: bytes, vectors: TextVectors | None, heads: HeadColumns) -> Stored:
        """The vectors of a row, in the form in which they are sent. digest: of the row's text."""
        if vectors is None:
            return Stored(digest, None)
        kind, types = self._table.kind, self._table.types
        sparse = None if heads.sparse is None else vectors.sparse
        colbert = None if heads.colbert is None else vectors.colbert
        return Stored(
            digest,
            vector_bytes(vectors.dense, kind),
            None if sparse is None else sparse_bytes(sparse),
            None if colbert is None else colbert_array(colbert, types["halfvec"]),
        )

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
        return sql.SQL(" AND ").join(sql.SQL("{} = {}").format(self._column(c.name), value) for c, value in pairs)

    def _cast(self, values: Sequence[Fragment]) -> list[sql.Composed]:
        """The parts of a key, given as text, in the types of their columns."""
        pairs = zip(values, self._table.key, strict=True)
        return [sql.SQL("{}::{}").format(value, verbatim(column.type)) for value, column in pairs]


def key_text_sql(row: str, table: Table, quoted: Callable[[str], Fragment] = identifier) -> sql.Composed:
    """The same JSON as `ledger.key_text`, of a row by that name. quoted: for a statement that has no placeholders."""
    parts = [sql.SQL("to_json({}.{}::text)::text").format(sql.SQL(row), quoted(column.name)) for column in table.key]
    return sql.SQL("('[' || {} || ']')").format(sql.SQL(" || ', ' || ").join(parts))
