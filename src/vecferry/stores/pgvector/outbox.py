"""The notes of which rows were written: by the triggers, and by a run that had to leave a row for later."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vecferry.stores import Change, Key, Side
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.ledger import PgLedger, as_key, key_text


class Outbox:
    """`vecferry.changes`, as far as it is about one target. Before it is installed it is empty, and stays so."""

    def __init__(self, database: Database, ledger: PgLedger, target: str) -> None:
        self._db = database
        self._ledger = ledger
        self._target = target

    def add(self, keys: Sequence[Key], side: Side | None = None) -> None:
        """side: on which they are to be followed; None is both."""
        if keys and self._ledger.is_installed():
            query = "INSERT INTO vecferry.changes (target, key, side) SELECT %s, unnest(%s::text[]), %s"
            self._db.execute(query, [self._target, [key_text(key) for key in keys], side and side.value])

    def oldest(self, limit: int, sides: Collection[Side]) -> list[Change]:
        if not self._ledger.is_installed():
            return []
        rows = self._db.rows(
            "SELECT number, key FROM vecferry.changes WHERE target = %s AND coalesce(side = ANY(%s::text[]), true)"
            " ORDER BY number LIMIT %s",
            [self._target, [side.value for side in sides], limit],
        )
        return [Change(number, as_key(key)) for number, key in rows]

    def count(self, side: Side | None) -> int:
        if not self._ledger.is_installed():
            return 0
        (count,) = self._db.row(
            "SELECT count(*) FROM vecferry.changes WHERE target = %s AND coalesce(side = %s, true)",
            [self._target, side and side.value],
        )
        return int(count)

    def remove(self, changes: Sequence[Change]) -> None:
        if changes:
            query = "DELETE FROM vecferry.changes WHERE target = %s AND number = ANY(%s::bigint[])"
            self._db.execute(query, [self._target, [change.number for change in changes]])

    def clear(self) -> None:
        if self._ledger.is_installed():
            self._db.execute("DELETE FROM vecferry.changes WHERE target = %s", [self._target])
