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
        """Those that are not there already. side: on which they are to be followed; None is both."""
        if keys and self._ledger.is_installed():
            self._db.execute(
                "INSERT INTO vecferry.changes (target, key, side)"
                " SELECT %(target)s, given.key, %(side)s FROM unnest(%(keys)s::text[]) AS given(key)"
                " WHERE NOT EXISTS (SELECT FROM vecferry.changes AS c WHERE c.target = %(target)s"
                " AND c.key = given.key AND (c.side IS NULL OR c.side = %(side)s))",
                {"target": self._target, "side": side and side.value, "keys": [key_text(key) for key in keys]},
            )

    def oldest(self, limit: int, sides: Collection[Side]) -> list[Change]:
        if not self._ledger.is_installed():
            return []
        rows = self._db.rows(
            "SELECT number, key, side FROM vecferry.changes"
            " WHERE target = %s AND (side IS NULL OR side = ANY(%s::text[])) ORDER BY number LIMIT %s",
            [self._target, [side.value for side in sides], limit],
        )
        return [Change(number, as_key(key), None if side is None else Side(side)) for number, key, side in rows]

    def count(self, side: Side | None) -> int:
        if not self._ledger.is_installed():
            return 0
        (count,) = self._db.row(
            "SELECT count(*) FROM vecferry.changes WHERE target = %(target)s"
            " AND (side IS NULL OR %(side)s::text IS NULL OR side = %(side)s)",
            {"target": self._target, "side": side and side.value},
        )
        return int(count)

    def remove(self, changes: Sequence[Change]) -> None:
        if changes:
            query = "DELETE FROM vecferry.changes WHERE target = %s AND number = ANY(%s::bigint[])"
            self._db.execute(query, [self._target, [change.number for change in changes]])

    def clear(self) -> None:
        if self._ledger.is_installed():
            self._db.execute("DELETE FROM vecferry.changes WHERE target = %s", [self._target])
