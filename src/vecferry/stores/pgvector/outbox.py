"""The notes of which rows were written: by the triggers, and by a run that had to leave a row for later.

What the triggers note is to be followed on both sides; what a run notes, on one. Without the old model there can be a
note of every row for the old side, so the two kinds have indexes of their own, and a trigger's insert one to care for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from psycopg import sql

from vecferry.stores.pgvector.connection import Database, Fragment, literal
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.sql_ledger import as_key, key_text
from vecferry.stores.values import Change, Key, Side

NO_KEY = "[]"
"""Instead of a key, in the note of a write to another table, or of a row whose key cannot be read."""
OLDEST = (
    "(SELECT number, key, side FROM vecferry.changes WHERE target = %(target)s AND {} ORDER BY number LIMIT %(limit)s)"
)
COUNT = "(SELECT count(*) FROM vecferry.changes WHERE target = %(target)s AND {})"
REMOVE = "DELETE FROM vecferry.changes WHERE target = %(target)s AND {} AND number = ANY(%(numbers)s::bigint[])"


class Outbox:
    """`vecferry.changes`, as far as it is about one target. Before it is installed it is empty, and stays so."""

    def __init__(self, database: Database, ledger: PgLedger, target: str) -> None:
        self._db = database
        self._ledger = ledger
        self._target = target

    def add(self, keys: Sequence[Key], side: Side) -> None:
        """Add those that are not noted for that side already."""
        if keys and self._ledger.is_installed():
            self._db.execute(
                "INSERT INTO vecferry.changes (target, key, side)"
                " SELECT %(target)s, given.key, %(side)s FROM unnest(%(keys)s::text[]) AS given(key)"
                " WHERE NOT EXISTS (SELECT FROM vecferry.changes AS c"
                " WHERE c.target = %(target)s AND c.side = %(side)s AND c.key = given.key)",
                {"target": self._target, "side": side.value, "keys": [key_text(key) for key in keys]},
            )

    def add_where(self, rows: Fragment, key: Fragment, condition: Fragment, side: Side) -> None:
        """Add those rows of which the condition is true and that are not noted for that side already."""
        query = sql.SQL(
            "INSERT INTO vecferry.changes (target, key, side) SELECT {target}, {key}, {side} FROM {rows}"
            " WHERE {condition} AND NOT EXISTS (SELECT FROM vecferry.changes AS c"
            " WHERE c.target = {target} AND c.side = {side} AND c.key = {key})"
        )
        names = {"target": literal(self._target), "side": literal(side.value)}
        self._db.execute(query.format(rows=rows, key=key, condition=condition, **names))

    def without_key(self) -> list[Change]:
        """Return the notes of writes that nobody knows the key of."""
        if not self._ledger.is_installed():
            return []
        query = "SELECT number FROM vecferry.changes WHERE target = %s AND key = %s AND side IS NULL"
        return [Change(number, ()) for (number,) in self._db.rows(query, [self._target, NO_KEY])]

    def oldest(self, limit: int, sides: Collection[Side]) -> list[Change]:
        if not self._ledger.is_installed():
            return []
        parts = sql.SQL(" UNION ALL ").join(sql.SQL(OLDEST).format(_of(side)) for side in (None, *sides))
        query = sql.SQL("SELECT * FROM ({}) AS oldest ORDER BY number LIMIT %(limit)s").format(parts)
        rows = self._db.rows(query, {"target": self._target, "limit": limit})
        return [Change(number, as_key(key), None if side is None else Side(side)) for number, key, side in rows]

    def count(self, side: Side | None) -> int:
        """Count notes. side: None counts all."""
        if not self._ledger.is_installed():
            return 0
        sides = (None, *(Side if side is None else (side,)))
        query = sql.SQL("SELECT {}").format(sql.SQL(" + ").join(sql.SQL(COUNT).format(_of(each)) for each in sides))
        (count,) = self._db.row(query, {"target": self._target})
        return int(count)

    def remove(self, changes: Sequence[Change]) -> None:
        for side in {change.side for change in changes}:
            numbers = [change.number for change in changes if change.side is side]
            self._db.execute(sql.SQL(REMOVE).format(_of(side)), {"target": self._target, "numbers": numbers})

    def clear(self) -> None:
        if self._ledger.is_installed():
            self._db.execute("DELETE FROM vecferry.changes WHERE target = %s", [self._target])


def _of(side: Side | None) -> sql.Composable:
    """Return a condition, as the indexes have it: a note for that side, or for both."""
    return sql.SQL("side IS NULL") if side is None else sql.SQL("side = {}").format(sql.Literal(side.value))
