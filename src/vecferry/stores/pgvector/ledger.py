"""The ledger in the database that is migrated, in the schema `vecferry`."""

from __future__ import annotations

from vecferry.errors import Locked, StoreSchemaError
from vecferry.stores.ledger import BEFORE_CAPTURE, Lease
from vecferry.stores.pgvector.connection import Database, LockTimedOut
from vecferry.stores.sql_ledger import TABLES, Ledger

TAKEOVER_WAIT_S = 10
"""For a transaction of the former holder to end; the server ends one that was stopped in it (`connection.py`)."""

INSTALL_WAIT_S = 10.0
FOREIGN = """
SELECT kind, name, pg_get_userbyid(owner)::text FROM (
    SELECT 'schema' AS kind, 'vecferry' AS name, nspowner AS owner FROM pg_namespace WHERE nspname = 'vecferry'
    UNION ALL SELECT 'relation', relname::text, relowner FROM pg_class
        WHERE relnamespace = to_regnamespace('vecferry') AND relkind IN ('r', 'v', 'm', 'p', 'f', 'S')
    UNION ALL SELECT 'function', proname::text, proowner FROM pg_proc WHERE pronamespace = to_regnamespace('vecferry')
    UNION ALL SELECT 'trigger', t.tgname::text, p.proowner FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = to_regnamespace('vecferry') AND NOT t.tgisinternal
) AS parts JOIN pg_roles r ON r.oid = parts.owner
WHERE r.rolname <> current_user AND NOT r.rolsuper ORDER BY kind, name LIMIT 1
"""

INSTALL = (
    "SELECT pg_advisory_xact_lock(7521364290180)",  # two runners, of two tables, may come here at once
    "SELECT FROM pg_namespace LIMIT 0",  # only a relation's lock makes the server look what others have created since
    "CREATE SCHEMA IF NOT EXISTS vecferry",
    *TABLES,
    """
    CREATE TABLE IF NOT EXISTS vecferry.changes (
        number bigint GENERATED ALWAYS AS IDENTITY,
        target text NOT NULL,
        key text NOT NULL,  -- as in dead_letters
        side text  -- on which it is to be followed; NULL is both
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.members (
        target text PRIMARY KEY,
        of_group text NOT NULL,  -- the target of the migration that it is in
        not_null boolean NOT NULL  -- whether each row had to have a vector
    )
    """,
    "CREATE INDEX IF NOT EXISTS changes_of_both_sides ON vecferry.changes (target, number) WHERE side IS NULL",
    "CREATE INDEX IF NOT EXISTS changes_of_a_side ON vecferry.changes (target, side, number) WHERE side IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS changes_of_a_key ON vecferry.changes (target, side, key) WHERE side IS NOT NULL",
)
OWN_TABLES = (
    "migrations", "ranges", "dead_letters", "row_forms", "events", "serving", "control", "leases", "changes", "members",
)  # fmt: skip


class PgLedger(Ledger):
    """The ledger on the store's own connection, so that it shares the store's transactions."""

    _db: Database

    def __init__(self, database: Database) -> None:
        self._db = database

    def install(self) -> None:
        self.refuse_foreign()
        if not self.is_installed():
            wait = f"SET LOCAL lock_timeout = '{INSTALL_WAIT_S}s'"
            try:
                self._db.script(";".join((wait, *INSTALL)))
            except LockTimedOut as exc:
                raise Locked("the installation of the schema vecferry", "another session that installs it") from exc
            self.refuse_foreign()

    def refuse_foreign(self) -> None:
        """Raise StoreSchemaError if another role made a part of the schema: what it put there acts with our rights.

        A superuser may have made it, who needs no migration for that.
        """
        for kind, name, owner in self._db.rows(FOREIGN):
            what = f"the {kind} {name} in the schema vecferry" if name != "vecferry" else "the schema vecferry"
            remedy = f"Connect as {owner}, if it runs the migrations; or look at what is there, and drop it."
            raise StoreSchemaError(f"{what} belongs to the role {owner}", remedy)

    def is_installed(self) -> bool:
        (is_there,) = self._db.row("SELECT to_regclass('vecferry.changes') IS NOT NULL")
        return bool(is_there)

    def forget(self) -> int:
        """Remove the schema. Raises StoreSchemaError, which names it, for something of somebody else that stands there.

        Raises MigrationsOpen, and LockTimedOut while another session works with it.
        """
        with self._db.transaction():
            if not self.is_installed():
                return 0
            self._db.execute("LOCK TABLE vecferry.migrations")  # so that nobody begins another
            number = self._count_ended()
            self._db.execute(f"DROP TABLE {', '.join(f'vecferry.{name}' for name in OWN_TABLES)}")
            self._db.execute("DROP SCHEMA vecferry")
        return number

    def another(self) -> PgLedger:
        return PgLedger(self._db.another())

    def recorded_spaces(self, target: str) -> tuple[str | None, str | None]:
        """Return what serves and the old side of the open migration, as fingerprints; None for what is unknown."""
        if not self.is_installed():
            return None, None
        serving, old = self._db.row(
            "SELECT (SELECT fingerprint FROM vecferry.serving WHERE target = %s),"
            " (SELECT spec::json ->> 'old_fingerprint' FROM vecferry.migrations"
            "  WHERE target = %s AND state NOT IN ('finalized', 'aborted'))",
            [target, target],
        )
        return serving, old

    def is_captured(self, target: str) -> bool:
        """Return whether the triggers of a migration that is open ought to be there."""
        if not self.is_installed():
            return False
        (is_later,) = self._db.row(
            "SELECT EXISTS (SELECT FROM vecferry.migrations WHERE target = %s"
            " AND state NOT IN ('finalized', 'aborted') AND state <> ALL(%s))",
            [target, list(BEFORE_CAPTURE)],
        )
        return bool(is_later)

    def was_switched(self, target: str) -> bool:
        """Return whether the migration that is open was switched at least once; every write asks, so in one query."""
        if not self.is_installed():
            return False
        (is_later,) = self._db.row(
            "SELECT EXISTS (SELECT FROM vecferry.migrations m JOIN vecferry.serving s USING (target)"
            " WHERE m.target = %s AND m.state NOT IN ('finalized', 'aborted')"
            " AND s.epoch > (m.spec::json ->> 'epoch')::bigint)",
            [target],
        )
        return bool(is_later)

    def _take(self, lease: Lease, seconds: float, *, from_the_gone: bool) -> bool:
        try:
            with self._db.transaction():
                self._db.rows("SELECT set_config('lock_timeout', %s, true)", [f"{TAKEOVER_WAIT_S}s"])
                return super()._take(lease, seconds, from_the_gone=from_the_gone)
        except LockTimedOut as exc:
            raise Locked(lease.target, self._lease_holder(lease.target)) from exc
