"""The ledger: tables in the schema `vecferry` of the database that is migrated."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vecferry.errors import LeaseLost, Locked, MigrationConflict
from vecferry.stores.lease import is_gone
from vecferry.stores.ledger import (
    Control,
    DeadLetter,
    Event,
    Lease,
    MigrationRecord,
    MigrationSpec,
    Paused,
    RangeRecord,
    Serving,
)
from vecferry.stores.pgvector.connection import Database, LockTimedOut
from vecferry.stores.values import Key, KeyRange, Side

TAKEOVER_WAIT_S = 10
"""For a transaction of the former holder to end; the server ends one that was stopped in it (`connection.py`)."""

INSTALL = """
SELECT pg_advisory_xact_lock(7521364290180);  -- two runners, of two tables, may come here at once
CREATE SCHEMA IF NOT EXISTS vecferry;
CREATE TABLE IF NOT EXISTS vecferry.migrations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target text NOT NULL,
    spec jsonb NOT NULL,
    state text NOT NULL,
    version integer NOT NULL DEFAULT 1,
    verification jsonb,
    paused jsonb,
    followed text[] NOT NULL DEFAULT '{}',
    begun_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS migrations_one_at_a_time ON vecferry.migrations (target)
    WHERE state NOT IN ('finalized', 'aborted');
CREATE TABLE IF NOT EXISTS vecferry.ranges (
    migration_id bigint NOT NULL REFERENCES vecferry.migrations,
    number integer NOT NULL,
    lo text[],  -- exclusive; NULL is without limit
    hi text[],  -- inclusive
    done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (migration_id, number)
);
CREATE TABLE IF NOT EXISTS vecferry.dead_letters (
    migration_id bigint NOT NULL REFERENCES vecferry.migrations,
    side text NOT NULL,
    key text NOT NULL,  -- a JSON list, one text for each column of the primary key
    reason text NOT NULL,
    text_sha256 bytea NOT NULL,  -- empty where the text is NULL
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (migration_id, side, key)
);
CREATE TABLE IF NOT EXISTS vecferry.events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration_id bigint NOT NULL REFERENCES vecferry.migrations,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    what text NOT NULL,
    detail jsonb NOT NULL
);
CREATE TABLE IF NOT EXISTS vecferry.serving (
    target text PRIMARY KEY,
    epoch bigint NOT NULL,
    generation integer NOT NULL,
    locator text NOT NULL,
    fingerprint text,
    since timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE vecferry.serving ADD COLUMN IF NOT EXISTS thresholds jsonb NOT NULL DEFAULT '{}';  -- later than the rest
CREATE TABLE IF NOT EXISTS vecferry.control (
    migration_id bigint PRIMARY KEY REFERENCES vecferry.migrations,
    rows_per_s double precision,
    postponed boolean NOT NULL
);
CREATE TABLE IF NOT EXISTS vecferry.leases (
    target text PRIMARY KEY,
    holder text NOT NULL,
    token bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    -- makes the token part of a key, so that a takeover waits for FOR KEY SHARE and a renewal does not
    UNIQUE (target, token)
);
CREATE TABLE IF NOT EXISTS vecferry.changes (
    number bigint GENERATED ALWAYS AS IDENTITY,
    target text NOT NULL,
    key text NOT NULL,  -- as in dead_letters
    side text  -- on which it is to be followed; NULL is both
);
CREATE INDEX IF NOT EXISTS changes_of_both_sides ON vecferry.changes (target, number) WHERE side IS NULL;
CREATE INDEX IF NOT EXISTS changes_of_a_side ON vecferry.changes (target, side, number) WHERE side IS NOT NULL;
CREATE INDEX IF NOT EXISTS changes_of_a_key ON vecferry.changes (target, side, key) WHERE side IS NOT NULL
"""


class PgLedger:
    """`ledger.Ledger` on the store's own connection, so that it shares the store's transactions."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def install(self) -> None:
        if not self._is_current():
            self._db.script(INSTALL)

    def _is_current(self) -> bool:
        rows = self._db.rows(
            "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('vecferry.serving') AND attname = 'thresholds'"
            " AND to_regclass('vecferry.changes') IS NOT NULL"
        )
        return bool(rows)

    def is_installed(self) -> bool:
        (found,) = self._db.row("SELECT to_regclass('vecferry.changes') IS NOT NULL")
        return bool(found)

    def find(self, target: str) -> MigrationRecord | None:
        return self._latest("target = %s AND state <> 'aborted'", target)

    def last(self, target: str) -> MigrationRecord | None:
        return self._latest("target = %s", target)

    def _latest(self, condition: str, target: str) -> MigrationRecord | None:
        if not self.is_installed():
            return None
        rows = self._db.rows(
            "SELECT id, spec, state, version, verification, paused FROM vecferry.migrations"  # noqa: S608  # ours
            f" WHERE {condition} ORDER BY id DESC LIMIT 1",
            [target],
        )
        return _record(rows[0]) if rows else None

    def create(self, spec: MigrationSpec, state: str) -> MigrationRecord:
        row = self._db.row(
            "INSERT INTO vecferry.migrations (target, spec, state) VALUES (%s, %s::jsonb, %s)"
            " RETURNING id, spec, state, version, verification, paused",
            [spec.target, json.dumps(asdict(spec)), state],
        )
        self.add_event(_record(row), state, {})
        return _record(row)

    def move(
        self, record: MigrationRecord, state: str, detail: Mapping[str, Any], paused: Paused | None = None
    ) -> MigrationRecord:
        with self._db.transaction():
            rows = self._db.rows(
                "UPDATE vecferry.migrations SET state = %s, version = version + 1, paused = %s::jsonb"
                " WHERE id = %s AND state = %s AND version = %s"
                " RETURNING id, spec, state, version, verification, paused",
                [state, json.dumps(asdict(paused)) if paused else None, record.id, record.state, record.version],
            )
            if not rows:
                found = self.find(record.spec.target)
                stored = f"{found.state}, version {found.version}" if found else "nothing"
                raise MigrationConflict(
                    record.spec.target, "state", stored, f"{record.state}, version {record.version}"
                )
            self.add_event(record, state, detail)
        return _record(rows[0])

    def add_event(self, record: MigrationRecord, what: str, detail: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO vecferry.events (migration_id, what, detail) VALUES (%s, %s, %s::jsonb)",
            [record.id, what, json.dumps(detail)],
        )

    def events(self, record: MigrationRecord, last: int) -> list[Event]:
        rows = self._db.rows(
            "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), what, detail"
            " FROM vecferry.events WHERE migration_id = %s ORDER BY id DESC LIMIT %s",
            [record.id, last],
        )
        return [Event(*row) for row in reversed(rows)]

    def keep_verification(self, record: MigrationRecord, report: Mapping[str, Any]) -> None:
        self._db.execute(
            "UPDATE vecferry.migrations SET verification = %s::jsonb WHERE id = %s", [json.dumps(report), record.id]
        )

    def add_ranges(self, record: MigrationRecord, ranges: Sequence[KeyRange]) -> None:
        with self._db.transaction():
            self._db.execute("DELETE FROM vecferry.ranges WHERE migration_id = %s", [record.id])
            self._db.execute_many(
                "INSERT INTO vecferry.ranges (migration_id, number, lo, hi) VALUES (%s, %s, %s::text[], %s::text[])",
                [(record.id, i, _as_list(keys.lo), _as_list(keys.hi)) for i, keys in enumerate(ranges, start=1)],
            )

    def open_ranges(self, record: MigrationRecord) -> list[RangeRecord]:
        rows = self._db.rows(
            "SELECT number, lo, hi FROM vecferry.ranges WHERE migration_id = %s AND NOT done ORDER BY number",
            [record.id],
        )
        return [RangeRecord(number, KeyRange(_as_key(lo), _as_key(hi))) for number, lo, hi in rows]

    def close_range(self, record: MigrationRecord, number: int) -> None:
        self._db.execute(
            "UPDATE vecferry.ranges SET done = true WHERE migration_id = %s AND number = %s", [record.id, number]
        )

    def count_ranges(self, record: MigrationRecord) -> tuple[int, int]:
        done, total = self._db.row(
            "SELECT count(*) FILTER (WHERE done), count(*) FROM vecferry.ranges WHERE migration_id = %s", [record.id]
        )
        return done, total

    def add_dead_letters(self, record: MigrationRecord, dead_letters: Sequence[DeadLetter]) -> None:
        if dead_letters:
            self._db.execute_many(
                "INSERT INTO vecferry.dead_letters (migration_id, side, key, reason, text_sha256)"
                " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (migration_id, side, key) DO UPDATE"
                " SET reason = excluded.reason, text_sha256 = excluded.text_sha256, at = now()",
                [(record.id, each.side, key_text(each.key), each.reason, each.digest) for each in dead_letters],
            )

    def remove_dead_letters(self, record: MigrationRecord, side: Side, keys: Sequence[Key]) -> None:
        if keys:
            self._db.execute(
                "DELETE FROM vecferry.dead_letters WHERE migration_id = %s AND side = %s AND key = ANY(%s::text[])",
                [record.id, side.value, [key_text(key) for key in keys]],
            )

    def dead_letters(self, record: MigrationRecord, limit: int, side: Side | None = None) -> list[DeadLetter]:
        rows = self._db.rows(
            "SELECT key, reason, text_sha256, side FROM vecferry.dead_letters"
            " WHERE migration_id = %s AND side = coalesce(%s, side) ORDER BY at, key LIMIT %s",
            [record.id, side.value if side else None, limit],
        )
        return [DeadLetter(as_key(key), reason, bytes(digest), of) for key, reason, digest, of in rows]

    def count_dead_letters(self, record: MigrationRecord, side: Side) -> int:
        (found,) = self._db.row(
            "SELECT count(*) FROM vecferry.dead_letters WHERE migration_id = %s AND side = %s", [record.id, side.value]
        )
        return int(found)

    # --- who serves, and what is asked for --------------------------------------------------------

    def serving(self, target: str) -> Serving | None:
        if not self.is_installed():
            return None
        rows = self._db.rows(  # the thresholds so that a ledger without that column can be read too
            "SELECT epoch, generation, locator, fingerprint, coalesce(to_jsonb(serving) -> 'thresholds', '{}')"
            " FROM vecferry.serving WHERE target = %s",
            [target],
        )
        return Serving(*rows[0]) if rows else None

    def serve(self, target: str, serving: Serving) -> None:
        self._db.execute(
            "INSERT INTO vecferry.serving (target, epoch, generation, locator, fingerprint, thresholds)"
            " VALUES (%s, %s, %s, %s, %s, %s::jsonb)"
            " ON CONFLICT (target) DO UPDATE SET epoch = excluded.epoch, generation = excluded.generation,"
            " locator = excluded.locator, fingerprint = excluded.fingerprint, thresholds = excluded.thresholds,"
            " since = now()",
            [
                target, serving.epoch, serving.generation, serving.locator, serving.fingerprint,
                json.dumps(dict(serving.thresholds)),
            ],
        )  # fmt: skip

    def recorded_spaces(self, target: str) -> tuple[str | None, str | None]:
        """Fingerprints of what serves, and of the old side of the migration that is open; None for what is unknown."""
        if not self.is_installed():
            return None, None
        serving, old = self._db.row(
            "SELECT (SELECT fingerprint FROM vecferry.serving WHERE target = %s),"
            " (SELECT spec ->> 'old_fingerprint' FROM vecferry.migrations"
            "  WHERE target = %s AND state NOT IN ('finalized', 'aborted'))",
            [target, target],
        )
        return serving, old

    def was_switched(self, target: str) -> bool:
        """Whether the migration that is open was switched at least once."""
        if not self.is_installed():
            return False
        (was_switched,) = self._db.row(
            "SELECT EXISTS (SELECT FROM vecferry.migrations m JOIN vecferry.serving s USING (target)"
            " WHERE m.target = %s AND m.state NOT IN ('finalized', 'aborted')"
            " AND s.epoch > (m.spec ->> 'epoch')::bigint)",
            [target],
        )
        return bool(was_switched)

    def control(self, record: MigrationRecord) -> Control:
        rows = self._db.rows("SELECT rows_per_s, postponed FROM vecferry.control WHERE migration_id = %s", [record.id])
        return Control(*rows[0]) if rows else Control()

    def set_control(self, record: MigrationRecord, control: Control) -> None:
        self._db.execute(
            "INSERT INTO vecferry.control (migration_id, rows_per_s, postponed) VALUES (%s, %s, %s)"
            " ON CONFLICT (migration_id) DO UPDATE"
            " SET rows_per_s = excluded.rows_per_s, postponed = excluded.postponed",
            [record.id, control.rows_per_s, control.postponed],
        )

    def set_followed(self, record: MigrationRecord, sides: Collection[Side]) -> None:
        query = "UPDATE vecferry.migrations SET followed = %s WHERE id = %s"
        self._db.execute(query, [sorted(side.value for side in sides), record.id])

    def followed(self, record: MigrationRecord) -> frozenset[Side]:
        (sides,) = self._db.row("SELECT followed FROM vecferry.migrations WHERE id = %s", [record.id])
        return frozenset(map(Side, sides))

    # --- who may write ----------------------------------------------------------------------------

    def acquire(self, target: str, holder: str, seconds: float, former: Lease | None = None) -> Lease:
        """Take the lease, or raise Locked. A transaction that the former holder is in ends first."""
        self.install()
        rows = self._db.rows(
            "SELECT holder, token, expires_at < clock_timestamp() FROM vecferry.leases WHERE target = %s", [target]
        )
        before, token, is_over = rows[0] if rows else ("", 0, True)
        gone = not is_over and (is_gone(before) or Lease(target, before, token) == former)
        if not is_over and not gone:
            raise Locked(target, before)
        try:
            acquired = self._take(Lease(target, holder, token + 1), seconds, from_the_gone=gone)
        except LockTimedOut as exc:
            raise Locked(target, before) from exc
        if not acquired:
            raise Locked(target, self._holder(target))
        return Lease(target, holder, token + 1)

    def _take(self, lease: Lease, seconds: float, *, from_the_gone: bool) -> bool:
        """Compare and set on the token; false if somebody was faster."""
        with self._db.transaction():
            self._db.rows("SELECT set_config('lock_timeout', %s, true)", [f"{TAKEOVER_WAIT_S}s"])
            acquired = self._db.execute(
                "INSERT INTO vecferry.leases AS held (target, holder, token, expires_at)"
                " VALUES (%s, %s, %s, clock_timestamp() + make_interval(secs => %s))"
                " ON CONFLICT (target) DO UPDATE"
                " SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at"
                " WHERE held.token = excluded.token - 1 AND (held.expires_at < clock_timestamp() OR %s)",
                [lease.target, lease.holder, lease.token, seconds, from_the_gone],
            )
            return bool(acquired)

    def _holder(self, target: str) -> str:
        rows = self._db.rows("SELECT holder FROM vecferry.leases WHERE target = %s", [target])
        return rows[0][0] if rows else "a run that has ended since"

    def renew(self, lease: Lease, seconds: float) -> None:
        renewed = self._db.execute(
            "UPDATE vecferry.leases SET expires_at = clock_timestamp() + make_interval(secs => %s)"
            " WHERE target = %s AND token = %s AND expires_at > '-infinity'",
            [seconds, lease.target, lease.token],
        )
        if not renewed:
            raise LeaseLost(lease.target)

    def release(self, lease: Lease) -> None:
        """Give the lease back. The row stays, so that tokens go on ascending."""
        self._db.execute(
            "UPDATE vecferry.leases SET expires_at = '-infinity' WHERE target = %s AND token = %s",
            [lease.target, lease.token],
        )

    def guard(self, lease: Lease) -> None:
        query = "SELECT 1 FROM vecferry.leases WHERE target = %s AND token = %s FOR KEY SHARE"
        if not self._db.rows(query, [lease.target, lease.token]):
            raise LeaseLost(lease.target)

    def another(self) -> PgLedger:
        return PgLedger(self._db.another())

    def close(self) -> None:
        """Closes the connection, and so the store that it is shared with."""
        self._db.close()


def _record(row: Sequence[Any]) -> MigrationRecord:
    number, spec, state, version, verification, paused = row
    fields = spec | {"outputs": tuple(spec["outputs"])}
    return MigrationRecord(
        number, MigrationSpec(**fields), state, version, verification, Paused(**paused) if paused else None
    )


def _as_list(key: Key | None) -> list[str] | None:
    return None if key is None else list(key)


def _as_key(parts: Sequence[str] | None) -> Key | None:
    return None if parts is None else tuple(parts)


def key_text(key: Key) -> str:
    """A JSON list; `capture.py` has the server write the same."""
    return json.dumps(list(key), ensure_ascii=False)


def as_key(text: str) -> Key:
    return tuple(json.loads(text))
