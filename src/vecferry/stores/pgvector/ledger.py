"""The ledger: five tables in the schema `vecferry` of the database that is migrated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vecferry.errors import MigrationConflict
from vecferry.stores import Key, KeyRange
from vecferry.stores.ledger import DeadLetter, Event, MigrationRecord, MigrationSpec, RangeRecord, Serving
from vecferry.stores.pgvector.connection import Database

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
    key text NOT NULL,  -- a JSON list, one text for each column of the primary key
    reason text NOT NULL,
    text_sha256 bytea NOT NULL,  -- empty where the text is NULL
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (migration_id, key)
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
    column_name text NOT NULL,
    fingerprint text,
    since timestamptz NOT NULL DEFAULT now()
)
"""


class PgLedger:
    """`ledger.Ledger` on the store's own connection, so that it shares the store's transactions."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def install(self) -> None:
        if not self._is_installed():
            self._db.script(INSTALL)

    def _is_installed(self) -> bool:
        (found,) = self._db.row(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'vecferry' AND c.relname = 'serving'"
        )
        return bool(found)

    def find(self, target: str) -> MigrationRecord | None:
        if not self._is_installed():
            return None
        rows = self._db.rows(
            "SELECT id, spec, state, version, verification FROM vecferry.migrations"
            " WHERE target = %s AND state <> 'aborted' ORDER BY id DESC LIMIT 1",
            [target],
        )
        return _record(rows[0]) if rows else None

    def create(self, spec: MigrationSpec, state: str) -> MigrationRecord:
        row = self._db.row(
            "INSERT INTO vecferry.migrations (target, spec, state) VALUES (%s, %s::jsonb, %s)"
            " RETURNING id, spec, state, version, verification",
            [spec.target, json.dumps(asdict(spec)), state],
        )
        self.add_event(_record(row), state, {})
        return _record(row)

    def move(self, record: MigrationRecord, state: str, detail: Mapping[str, Any]) -> MigrationRecord:
        with self._db.transaction():
            rows = self._db.rows(
                "UPDATE vecferry.migrations SET state = %s, version = version + 1"
                " WHERE id = %s AND state = %s AND version = %s RETURNING id, spec, state, version, verification",
                [state, record.id, record.state, record.version],
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

    def bury(self, record: MigrationRecord, letters: Sequence[DeadLetter]) -> None:
        if letters:
            self._db.execute_many(
                "INSERT INTO vecferry.dead_letters (migration_id, key, reason, text_sha256) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (migration_id, key) DO UPDATE"
                " SET reason = excluded.reason, text_sha256 = excluded.text_sha256, at = now()",
                [(record.id, _key_text(letter.key), letter.reason, letter.digest) for letter in letters],
            )

    def unbury(self, record: MigrationRecord, keys: Sequence[Key]) -> None:
        self._db.execute(
            "DELETE FROM vecferry.dead_letters WHERE migration_id = %s AND key = ANY(%s::text[])",
            [record.id, [_key_text(key) for key in keys]],
        )

    def forget_dead_letters(self, record: MigrationRecord) -> None:
        self._db.execute("DELETE FROM vecferry.dead_letters WHERE migration_id = %s", [record.id])

    def dead_letters(self, record: MigrationRecord, limit: int) -> list[DeadLetter]:
        rows = self._db.rows(
            "SELECT key, reason, text_sha256 FROM vecferry.dead_letters"
            " WHERE migration_id = %s ORDER BY at, key LIMIT %s",
            [record.id, limit],
        )
        return [DeadLetter(tuple(json.loads(key)), reason, bytes(digest)) for key, reason, digest in rows]

    def serving(self, target: str) -> Serving | None:
        if not self._is_installed():
            return None
        rows = self._db.rows(
            "SELECT epoch, generation, column_name, fingerprint FROM vecferry.serving WHERE target = %s", [target]
        )
        return Serving(*rows[0]) if rows else None

    def serve(self, target: str, serving: Serving) -> None:
        self._db.execute(
            "INSERT INTO vecferry.serving (target, epoch, generation, column_name, fingerprint)"
            " VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (target) DO UPDATE SET epoch = excluded.epoch, generation = excluded.generation,"
            " column_name = excluded.column_name, fingerprint = excluded.fingerprint, since = now()",
            [target, serving.epoch, serving.generation, serving.column, serving.fingerprint],
        )


def _record(row: Sequence[Any]) -> MigrationRecord:
    number, spec, state, version, verification = row
    return MigrationRecord(number, MigrationSpec(**spec), state, version, verification)


def _as_list(key: Key | None) -> list[str] | None:
    return None if key is None else list(key)


def _as_key(parts: Sequence[str] | None) -> Key | None:
    return None if parts is None else tuple(parts)


def _key_text(key: Key) -> str:
    return json.dumps(list(key), ensure_ascii=False)
