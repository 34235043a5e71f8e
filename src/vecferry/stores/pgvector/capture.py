"""Which rows the application writes: three triggers note their keys in an outbox, `vecferry.changes`.

The triggers fire for every writer: they are of the kind ALWAYS, so also for what a subscription or
`session_replication_role = replica` writes, and their function has the rights of whoever installed
it, so that a writer needs none on our schema. A write that is rolled back takes its note with it.
A changed row is noted only if its text or its key changed. TRUNCATE is not noted: it leaves no row,
and so nothing to be done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from vecferry.stores import Change, Key, Patience, Row, Side
from vecferry.stores.pgvector.connection import KEY_SETTINGS, identifier, literal, verbatim
from vecferry.stores.pgvector.ledger import as_key
from vecferry.stores.pgvector.session import Session
from vecferry.stores.pgvector.table import Table

OPERATIONS = ("insert", "update", "delete")
SCHEMA = "vecferry"
ALWAYS = "A"

SAME_IN_EVERY_SESSION = {"smallint", "integer", "bigint", "text", "uuid", "boolean", "numeric"}
"""Types of keys that are written the same whatever the settings; each setting costs a writer a microsecond."""


@dataclass(frozen=True)
class CaptureNames:
    """What a capture is called in the database; two vector columns of one table have two captures."""

    function: str
    triggers: tuple[str, ...]

    @classmethod
    def of(cls, target: str) -> CaptureNames:
        digest = hashlib.sha256(target.encode()).hexdigest()[:12]
        return cls(f"capture_{digest}", tuple(f"vecferry_{operation}_{digest}" for operation in OPERATIONS))


class PgCapture(Session):
    """`stores.Capture`."""

    def start_capture(self, patience: Patience) -> None:
        """See `Capture.start_capture`. Waits for writes that have begun, since they would go unnoticed."""
        with self._fence.transaction():
            self._ledger.install()
        if not self._is_capturing():
            self._locks.without_writers(self._make_triggers, patience)

    def _is_capturing(self) -> bool:
        """Whether our triggers are all there, enabled, and of the text and key that this store knows."""
        names = CaptureNames.of(self.target)
        rows = self._db.rows(
            "SELECT t.tgname::text, t.tgenabled::text, obj_description(p.oid, 'pg_proc')"
            " FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
            " WHERE t.tgrelid = %s::oid AND p.proname = %s AND p.pronamespace = to_regnamespace(%s)",
            [self._table.oid, names.function, SCHEMA],
        )
        mark = _mark(self._table)
        return sorted(rows) == sorted((trigger, ALWAYS, mark) for trigger in names.triggers)

    def _make_triggers(self) -> None:
        self._drop_triggers()
        names, table = CaptureNames.of(self.target), self._name
        function = identifier(SCHEMA, names.function)
        self._db.execute(_create_function(function, self._table))
        self._db.execute(sql.SQL("REVOKE ALL ON FUNCTION {}() FROM PUBLIC").format(function))
        self._db.execute(sql.SQL("COMMENT ON FUNCTION {}() IS {}").format(function, literal(_mark(self._table))))
        conditions = {"update": sql.SQL("WHEN ({})").format(_is_other_row(self._table))}
        for operation, trigger in zip(OPERATIONS, names.triggers, strict=True):
            self._db.execute(
                sql.SQL("CREATE TRIGGER {} AFTER {} ON {} FOR EACH ROW {} EXECUTE FUNCTION {}()").format(
                    identifier(trigger),
                    sql.SQL(operation.upper()),
                    table,
                    conditions.get(operation, sql.SQL("")),
                    function,
                )
            )
            self._db.execute(sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(table, identifier(trigger)))

    def stop_capture(self) -> None:
        """See `Capture.stop_capture`. Waits for whoever uses the table, and raises Locked in the end; inside
        `exclusively`, the patience of that holds. A table that was dropped is no obstacle.
        """
        if self._has_triggers() and not self._db.in_transaction:
            self._locks.without_writers(self._unmake, Patience())
        else:
            with self._fence.transaction():
                self._unmake()

    def _has_triggers(self) -> bool:
        (found,) = self._db.row(
            "SELECT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = %s::oid"
            " AND p.proname = %s AND p.pronamespace = to_regnamespace(%s))",
            [self._table.oid, CaptureNames.of(self.target).function, SCHEMA],
        )
        return bool(found)

    def _unmake(self) -> None:
        self._drop_triggers()
        if self._ledger.is_installed():
            self._db.execute("DELETE FROM vecferry.changes WHERE target = %s", [self.target])

    def _drop_triggers(self) -> None:
        if self._has_triggers():
            self._locks.lock_out_readers()
        (schema,) = self._db.row("SELECT to_regnamespace(%s) IS NOT NULL", [SCHEMA])
        if schema:
            function = identifier(SCHEMA, CaptureNames.of(self.target).function)
            self._db.execute(sql.SQL("DROP FUNCTION IF EXISTS {}() CASCADE").format(function))

    def captured(self, limit: int) -> list[Change]:
        if not self._ledger.is_installed():
            return []
        rows = self._db.rows(
            "SELECT number, key FROM vecferry.changes WHERE target = %s ORDER BY number LIMIT %s", [self.target, limit]
        )
        return [Change(number, as_key(key)) for number, key in rows]

    def backlog(self) -> int:
        """See `Capture.backlog`. Writes that have not ended cannot be seen."""
        if not self._ledger.is_installed():
            return 0
        (found,) = self._db.row("SELECT count(*) FROM vecferry.changes WHERE target = %s", [self.target])
        return int(found)

    def acknowledge(self, changes: Sequence[Change]) -> None:
        if changes:
            with self._fence.transaction():
                self._db.execute(
                    "DELETE FROM vecferry.changes WHERE target = %s AND number = ANY(%s::bigint[])",
                    [self.target, [change.number for change in changes]],
                )

    def stale(self, side: Side, keys: Sequence[Key]) -> list[Row]:
        """See `Capture.stale`. An old vector does not say of which text it is, so that all of that side may be."""
        among, params = self._among(keys)
        chosen = among if side is Side.OLD else sql.SQL("{} AND {}").format(among, self._changed)
        return self._rows(sql.SQL("{} ORDER BY {}").format(chosen, self._keys), params) if keys else []

    def settle(self, keys: Sequence[Key]) -> set[Key]:
        """See `Capture.settle`. A row goes with both its vectors, and its other columns are one for both sides."""
        if not keys:
            return set()
        names = [identifier(f"k{i}") for i in range(len(self._table.key))]
        given = [sql.SQL("given.{}").format(name) for name in names]
        query = sql.SQL(
            "SELECT {given} FROM unnest({arrays}) AS given({names})"
            " WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same})"
        ).format(
            given=sql.SQL(", ").join(given),
            arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
            names=sql.SQL(", ").join(names),
            table=self._name,
            same=self._same_key(self._cast(given)),
        )
        return {tuple(key) for key in self._db.rows(query, [list(part) for part in zip(*keys, strict=True)])}

    def orphans(self, limit: int) -> list[Key]:  # noqa: ARG002  # both vectors are in the row
        return []


def _mark(table: Table) -> str:
    """What the function and the triggers were made for; another text column needs others."""
    return f"keys of {table.target} whose {table.text} changed, by {', '.join(c.name for c in table.key)}"


def _is_other_row(table: Table) -> sql.Composed:
    """Byte by byte: two texts that a collation or a type takes for equal have two vectors all the same."""
    return sql.SQL(" OR ").join(
        sql.SQL('OLD.{0}::text COLLATE "C" IS DISTINCT FROM NEW.{0}::text COLLATE "C"').format(identifier(column))
        for column in (table.text, *(column.name for column in table.key))
    )


def _create_function(name: sql.Identifier, table: Table) -> sql.Composed:
    settings = {"search_path": "pg_catalog, pg_temp"}
    if not {column.type for column in table.key} <= SAME_IN_EVERY_SESSION:
        settings |= KEY_SETTINGS
    return sql.SQL("CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {} AS {}").format(
        name,
        verbatim(" ".join(f"SET {setting} = {value}" for setting, value in settings.items())),
        literal(_body(table)),
    )


def _body(table: Table) -> str:
    """An update notes one key, or both if the key was changed."""
    note = sql.SQL("INSERT INTO vecferry.changes (target, key) VALUES ({}, {});")
    target, old, new = sql.Literal(table.target), _key_text("OLD", table), _key_text("NEW", table)
    return (
        sql.SQL(
            "BEGIN\n"
            "    IF TG_OP = 'DELETE' THEN\n"
            "        {note_old}\n"
            "    ELSE\n"
            "        {note_new}\n"
            "        IF TG_OP = 'UPDATE' THEN\n"
            "            IF {old} <> {new} THEN\n"
            "                {note_old}\n"
            "            END IF;\n"
            "        END IF;\n"
            "    END IF;\n"
            "    RETURN NULL;\n"
            "END"
        )
        .format(note_old=note.format(target, old), note_new=note.format(target, new), old=old, new=new)
        .as_string()
    )


def _key_text(row: str, table: Table) -> sql.Composed:
    """The same JSON as `ledger.key_text`."""
    parts = [
        sql.SQL("to_json({}.{}::text)::text").format(sql.SQL(row), sql.Identifier(column.name)) for column in table.key
    ]
    return sql.SQL("('[' || {} || ']')").format(sql.SQL(" || ', ' || ").join(parts))
