"""One connection and one table: what all parts of the store share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from psycopg import sql

from vecferry.embeddings import TextVectors
from vecferry.stores.pgvector.binary import colbert_array, sparse_bytes, vector_bytes
from vecferry.stores.pgvector.catalogue import Catalogue, Columns, HeadColumns
from vecferry.stores.pgvector.checksum import Stored, StoredColumns, checksum_sql, digest_sql
from vecferry.stores.pgvector.connection import Database, Fragment, identifier, literal
from vecferry.stores.pgvector.lease_guard import LeaseGuard
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.pgvector.locks import TableLocks
from vecferry.stores.pgvector.outbox import Outbox
from vecferry.stores.pgvector.side_resolver import SideResolver
from vecferry.stores.pgvector.table import Table
from vecferry.stores.pgvector.table_sql import TableSql, key_text_sql
from vecferry.stores.sql_ledger import key_text
from vecferry.stores.values import Key, Layout, Row, Side

FALSE, EMPTY = sql.SQL("false"), sql.SQL("")


@dataclass(frozen=True)
class Membership:
    """Of a table that is migrated with others. group: under which the migration is kept; name: the table's in it.

    ledger, guard: shared by all tables of a store.
    """

    group: str
    name: str
    ledger: PgLedger
    guard: LeaseGuard


class TableSession:
    """Each part of the store works by this one, and so in the same transactions and under the same lease."""

    def __init__(
        self,
        database: Database,
        table: Table,
        *,
        embed_missing: bool = False,
        layout: Layout = Layout.COLUMNS,
        membership: Membership | None = None,
    ) -> None:
        self.embed_missing = embed_missing
        self.membership = membership
        self.db = database
        self.table = table
        self.sql = TableSql(table)
        self.ledger = membership.ledger if membership else PgLedger(database)
        self.guard = membership.guard if membership else LeaseGuard(database, self.ledger)
        self.locks = TableLocks(database, self.guard, table)
        self.outbox = Outbox(database, self.ledger, table.target)
        self.catalogue = Catalogue(database, table, layout)
        self.side_resolver = SideResolver(self.catalogue, self.ledger, self.migration, self._known_length)

    @property
    def migration(self) -> str:
        """Under which the ledger has the migration: the target of the table, or the group that it is in."""
        return self.table.target if self.membership is None else self.membership.group

    def letter_keys(self, keys: Sequence[Key]) -> list[str]:
        """Return the keys as the ledger has them, in which that of a group's row begins with the table's name."""
        member = () if self.membership is None else (self.membership.name,)
        return [key_text((*member, *key)) for key in keys]

    def letter_key(self) -> sql.Composed:
        """Return the same as `letter_keys`, of a row called `t`."""
        return key_text_sql("t", self.table, member=None if self.membership is None else self.membership.name)

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Open a transaction in which the columns keep their names: a switch waits for its end."""
        with self.db.transaction():
            self.locks.lock("ACCESS SHARE")
            yield

    def with_sides(self, columns: Columns) -> Fragment:
        """Return what is read as `t`, where a query needs the columns of both sides."""
        return self.sql.with_sides(columns.beside)

    def _known_length(self, columns: Columns, column: str) -> int | None:
        """Return how many numbers vectors of that column have to have; None where they may be of any length, which
        those of a part may not, whatever the column of its table says.
        """
        return columns.by_name[column].dimension if self.table.where is None else self.length(columns, column)

    def length(self, columns: Columns, column: str) -> int | None:
        """Return how many numbers its vectors have: as the column says, else the first of them; None without any."""
        if (dimension := columns.by_name[column].dimension) is not None:
            return dimension
        rows, name = self.with_sides(columns), self.sql.column(column)
        query = sql.SQL("SELECT {}({}) FROM {} AS t WHERE {} IS NOT NULL LIMIT 1").format(
            identifier(self.table.extension, "vector_dims"), name, rows, name
        )
        return next((int(length) for (length,) in self.db.rows(query)), None)

    def rows(
        self,
        condition: Fragment,
        params: Sequence[object],
        limit: int | None = None,
        *,
        of: Fragment | None = None,
        unembedded: Fragment = FALSE,
    ) -> list[Row]:
        """Return the rows for which it is true, by ascending key; the first `limit` of them.

        of: `with_sides`, where a condition is about more than the application's own columns. unembedded: a condition
        for those that take no vector.
        """
        query = sql.SQL("SELECT {}, {}, {} FROM {} AS t WHERE {} ORDER BY {} LIMIT %s").format(
            self.sql.text, unembedded, self.sql.keys_as_text, of or self.sql.rows, condition, self.sql.keys
        )
        return [
            replace(self.sql.text_sql.row(tuple(key), text), takes_vector=not is_unembedded)
            for text, is_unembedded, *key in self.db.rows(query, [*params, limit])
        ]

    def outdated(self, side: Side, columns: Columns) -> sql.Composed:
        """Return a condition: the vector on that side is not known to be of the text, or missing and the text untried.

        Or it is there though the row takes none. On the side that serves, a vector is missing only where a dead letter
        says that it is, unless all that miss one are given it. Until the first switch the application alone keeps the
        old side, and what it has there counts as right: then it is that there is a vector whose checksum has not been
        noted (`PgCapture.adopt`).
        """
        vector, checksum = self.sql.column(columns.required(side)), self.sql.column(columns.checksum(side))
        if side is Side.OLD and not self.ledger.was_switched(self.migration):
            return sql.SQL("{} IS DISTINCT FROM {}").format(checksum, self.adopted(columns))
        changed = sql.SQL("{} IS DISTINCT FROM {}").format(checksum, self.checksum(side, columns))
        untried: Fragment = sql.SQL("NOT {}").format(self.is_dead_letter(side))
        if side is columns.serving and not self.embed_missing:
            untried = sql.SQL("{} AND {}").format(self.has_dead_letter(side), untried)
        return sql.SQL("CASE WHEN {} THEN {} IS NOT NULL WHEN {} IS NULL THEN {} ELSE {} END").format(
            self.is_unembedded(columns), vector, vector, untried, changed
        )

    def is_unembedded(self, columns: Columns) -> Fragment:
        """Return a condition: the row has no vector on the side that serves, and nobody has tried to make one."""
        if self.embed_missing:
            return FALSE
        vector = self.sql.column(self.table.vector)
        return sql.SQL("({} IS NULL AND NOT {})").format(vector, self.has_dead_letter(columns.serving))

    def is_dead_letter(self, side: Side) -> Fragment:
        """Return a condition: the ledger says of the row's present text that it cannot be embedded."""
        return self.has_dead_letter(side, sql.SQL(" AND d.text_sha256 = {}").format(digest_sql(self.sql.text)))

    def has_dead_letter(self, side: Side, also: Fragment = EMPTY) -> Fragment:
        """Return a condition: the ledger says so of the row, whatever its text was. also: more about the letter `d`."""
        if not self.ledger.is_installed():
            return FALSE
        return sql.SQL(
            "EXISTS (SELECT FROM vecferry.dead_letters AS d JOIN vecferry.migrations AS m ON m.id = d.migration_id"
            " WHERE m.target = {target} AND m.state NOT IN ('finalized', 'aborted') AND d.side = {side}"
            " AND d.key = {key}{also})"
        ).format(
            target=literal(self.migration),
            side=literal(side.value),
            key=self.letter_key(),
            also=also,
        )

    def checksum(self, side: Side, columns: Columns, digest: Fragment | None = None) -> sql.Composed:
        """Return what the row's checksum is if its vector on that side was made of its text.

        digest: of the text, where the statement has compared it already, so that a long text is not read twice.
        """
        heads, table = columns.heads(side), self.table
        return checksum_sql(
            StoredColumns(
                table.extension,
                table.kind,
                digest_sql(self.sql.text) if digest is None else digest,
                self.sql.column(columns.required(side)),
                None if heads.sparse is None else self.sql.column(heads.sparse),
                None if heads.colbert is None else self.sql.column(heads.colbert),
            )
        )

    def adopted(self, columns: Columns, digest: Fragment | None = None) -> sql.Composed:
        """Return what the checksum of a row's old vector is if what the application has there counts as right."""
        return sql.SQL("CASE WHEN {} IS NOT NULL THEN {} END").format(
            self.sql.column(columns.required(Side.OLD)), self.checksum(Side.OLD, columns, digest)
        )

    def adoption(self, columns: Columns, digest: Fragment | None = None) -> dict[str, Fragment]:
        """Return what columns of the old side become where it counts as right: its checksum and, in a side table, the
        vector itself, which a switch takes away from the table. digest: as `checksum` takes it.
        """
        adopted: dict[str, Fragment] = {columns.checksum(Side.OLD): self.adopted(columns, digest)}
        if columns.beside:
            adopted[self.table.vector] = self.sql.column(self.table.vector)
        return adopted

    def stored(self, digest: bytes, vectors: TextVectors | None, heads: HeadColumns) -> Stored:
        """Return the vectors of a row in the form in which they are sent. digest: of the row's text."""
        if vectors is None:
            return Stored(digest, None)
        kind, types = self.table.kind, self.table.types
        sparse = None if heads.sparse is None else vectors.sparse
        colbert = None if heads.colbert is None else vectors.colbert
        return Stored(
            digest,
            vector_bytes(vectors.dense, kind),
            None if sparse is None else sparse_bytes(sparse),
            None if colbert is None else colbert_array(colbert, types["halfvec"]),
        )
