"""The ledger's tables and statements, the same in both databases.

They are written for PostgreSQL, which takes them as they are; `sqlite/dialect.py` says what SQLite takes instead.
Keys and details are JSON in text.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol, Self

from vecferry.errors import LeaseLost, Locked, MigrationConflict, MigrationsOpen
from vecferry.stores.lease import is_gone, process_mark, process_of
from vecferry.stores.ledger import (
    Control,
    DeadLetter,
    Event,
    Lease,
    MigrationRecord,
    MigrationSpec,
    Paused,
    RangeRecord,
    RunningProcess,
    Serving,
)
from vecferry.stores.values import NO_TEXT_DIGEST, Key, KeyRange, Side

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS vecferry.migrations (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        target text NOT NULL,
        spec text NOT NULL,
        state text NOT NULL,
        version integer NOT NULL DEFAULT 1,
        verification text,
        paused text,
        followed text NOT NULL DEFAULT '[]',
        begun_at timestamptz NOT NULL
    )
    """,
    """
    CREATE UNIQUE INDEX IF NOT EXISTS migrations_one_at_a_time ON vecferry.migrations (target)
        WHERE state NOT IN ('finalized', 'aborted')
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.ranges (
        migration_id bigint NOT NULL REFERENCES vecferry.migrations,
        number integer NOT NULL,
        lo text,  -- exclusive; NULL is without limit
        hi text,  -- inclusive
        done boolean NOT NULL DEFAULT false,
        PRIMARY KEY (migration_id, number)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.dead_letters (
        migration_id bigint NOT NULL REFERENCES vecferry.migrations,
        side text NOT NULL,
        key text NOT NULL,
        reason text NOT NULL,
        text_sha256 bytea NOT NULL,  -- empty where there is no text
        at timestamptz NOT NULL,
        PRIMARY KEY (migration_id, side, key)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.row_forms (  -- of new vectors that are not in the form of their index
        migration_id bigint NOT NULL REFERENCES vecferry.migrations,
        key text NOT NULL,
        form text NOT NULL,
        PRIMARY KEY (migration_id, key)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.events (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        migration_id bigint NOT NULL REFERENCES vecferry.migrations,
        at timestamptz NOT NULL,
        what text NOT NULL,
        detail text NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.serving (
        target text PRIMARY KEY,
        epoch bigint NOT NULL,
        generation integer NOT NULL,
        locator text NOT NULL,
        fingerprint text,
        thresholds text NOT NULL,
        since timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.control (
        migration_id bigint PRIMARY KEY REFERENCES vecferry.migrations,
        rows_per_s double precision,
        postponed boolean NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS vecferry.leases (
        target text PRIMARY KEY,
        holder text NOT NULL,
        token bigint NOT NULL,
        expires_at timestamptz NOT NULL,  -- 1970 where it was given back; the row stays, so that no token comes twice
        since timestamptz NOT NULL,
        rows_per_s double precision,  -- of late, as its holder says; NULL where it has not said so
        rows_encoded integer NOT NULL DEFAULT 0,  -- that its holder has not written yet
        -- makes the token part of a key, so that a takeover waits for FOR KEY SHARE and a renewal does not
        UNIQUE (target, token)
    )
    """,
)


class SqlDatabase(Protocol):
    """A connection that takes the statements of this file, each kept at once unless in `transaction`."""

    def rows(self, query: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]: ...
    def execute(self, query: str, params: Sequence[object] = ()) -> int:
        """Return the number of rows that were written."""

    def execute_many(self, query: str, params: Sequence[Sequence[object]]) -> None: ...
    def transaction(self) -> AbstractContextManager[None]:
        """Keep what is written inside as a whole or not at all; inside another one, with that one."""

    def close(self) -> None: ...


class Ledger(ABC):
    """What must not be forgotten. Every writing method may stand in a transaction of the store, and is kept with it."""

    _db: SqlDatabase

    @abstractmethod
    def install(self) -> None:
        """Leave an empty ledger where there is none. Repeating is safe; undone by dropping it."""

    @abstractmethod
    def is_installed(self) -> bool: ...

    @abstractmethod
    def another(self) -> Self:
        """Return the same ledger through a connection of its own, for another thread; to be closed."""

    def close(self) -> None:
        """Close the connection, and so a store that it is shared with."""
        self._db.close()

    @abstractmethod
    def forget(self) -> int:
        """Remove the ledger of all targets; return of how many migrations it was.

        Raises MigrationsOpen while one of them needs it.
        """

    def _count_ended(self) -> int:
        """Return how many migrations there were. Raises MigrationsOpen."""
        rows = self._db.rows("SELECT target, state FROM vecferry.migrations ORDER BY target")
        if are_open := [f"{target} ({state})" for target, state in rows if state not in ("finalized", "aborted")]:
            raise MigrationsOpen(", ".join(are_open))
        return len(rows)

    # --- the record -------------------------------------------------------------------------------

    def find(self, target: str) -> MigrationRecord | None:
        """Return the latest migration of that name that was not aborted; None too where there is no ledger."""
        return self._latest(target, but="aborted")

    def last(self, target: str) -> MigrationRecord | None:
        """Return the latest migration of that name, aborted or not."""
        return self._latest(target, but="")

    def _latest(self, target: str, *, but: str) -> MigrationRecord | None:
        if not self.is_installed():
            return None
        rows = self._db.rows(
            "SELECT id, spec, state, version, verification, paused FROM vecferry.migrations"
            " WHERE target = %s AND state <> %s ORDER BY id DESC LIMIT 1",
            [target, but],
        )
        return _record(*rows[0]) if rows else None

    def create(self, spec: MigrationSpec, state: str, detail: Mapping[str, Any] | None = None) -> MigrationRecord:
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO vecferry.migrations (target, spec, state, begun_at)"
                " VALUES (%s, %s, %s, clock_timestamp())",
                [spec.target, json.dumps(asdict(spec)), state],
            )
            record = self.last(spec.target)
            assert record is not None
            self.add_event(record, state, detail or {})
        return record

    def move(
        self, record: MigrationRecord, state: str, detail: Mapping[str, Any], paused: Paused | None = None
    ) -> MigrationRecord:
        """Compare and set on (state, version), with an event. Raises MigrationConflict if somebody moved it."""
        target = record.spec.target
        with self._db.transaction():
            num_moved = self._db.execute(
                "UPDATE vecferry.migrations SET state = %s, version = version + 1, paused = %s"
                " WHERE id = %s AND state = %s AND version = %s",
                [state, json.dumps(asdict(paused)) if paused else None, record.id, record.state, record.version],
            )
            if not num_moved:
                present = self.find(target)
                stored = f"{present.state}, version {present.version}" if present else "nothing"
                raise MigrationConflict(target, "state", stored, f"{record.state}, version {record.version}")
            self.add_event(record, state, detail)
            moved = self.last(target)  # only the latest can be moved: the others have ended
            assert moved is not None
        return moved

    def add_event(self, record: MigrationRecord, what: str, detail: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO vecferry.events (migration_id, at, what, detail) VALUES (%s, clock_timestamp(), %s, %s)",
            [record.id, what, json.dumps(detail)],
        )

    def events(self, record: MigrationRecord, last: int) -> list[Event]:
        """Return the last ones, oldest first."""
        rows = self._db.rows(
            "SELECT date_part('epoch', at), what, detail FROM vecferry.events"
            " WHERE migration_id = %s ORDER BY id DESC LIMIT %s",
            [record.id, last],
        )
        return [Event(_as_iso(at), what, json.loads(detail)) for at, what, detail in reversed(rows)]

    def keep_verification(self, record: MigrationRecord, report: Mapping[str, Any]) -> None:
        self._db.execute(
            "UPDATE vecferry.migrations SET verification = %s WHERE id = %s", [json.dumps(report), record.id]
        )

    def control(self, record: MigrationRecord) -> Control:
        rows = self._db.rows("SELECT rows_per_s, postponed FROM vecferry.control WHERE migration_id = %s", [record.id])
        return Control(rows[0][0], bool(rows[0][1])) if rows else Control()

    def set_control(self, record: MigrationRecord, control: Control) -> None:
        self._db.execute(
            "INSERT INTO vecferry.control (migration_id, rows_per_s, postponed) VALUES (%s, %s, %s)"
            " ON CONFLICT (migration_id) DO UPDATE"
            " SET rows_per_s = excluded.rows_per_s, postponed = excluded.postponed",
            [record.id, control.rows_per_s, control.postponed],
        )

    def set_followed(self, record: MigrationRecord, sides: Collection[Side]) -> None:
        """Leave on record which sides the run has a model for; the last run's word counts."""
        names = json.dumps(sorted(side.value for side in sides))
        self._db.execute("UPDATE vecferry.migrations SET followed = %s WHERE id = %s", [names, record.id])

    def followed(self, record: MigrationRecord) -> frozenset[Side]:
        ((names,),) = self._db.rows("SELECT followed FROM vecferry.migrations WHERE id = %s", [record.id])
        return frozenset(map(Side, json.loads(names)))

    # --- ranges -----------------------------------------------------------------------------------

    def add_ranges(self, record: MigrationRecord, ranges: Sequence[KeyRange]) -> None:
        """Leave these, all open, in the place of any that were listed before; numbered from 1."""
        with self._db.transaction():
            self._db.execute("DELETE FROM vecferry.ranges WHERE migration_id = %s", [record.id])
            self._db.execute_many(
                "INSERT INTO vecferry.ranges (migration_id, number, lo, hi) VALUES (%s, %s, %s, %s)",
                [
                    (record.id, i, *(key_text(limit) if limit else None for limit in (keys.lo, keys.hi)))
                    for i, keys in enumerate(ranges, start=1)
                ],
            )

    def open_ranges(self, record: MigrationRecord) -> list[RangeRecord]:
        rows = self._db.rows(
            "SELECT number, lo, hi FROM vecferry.ranges WHERE migration_id = %s AND NOT done ORDER BY number",
            [record.id],
        )
        return [
            RangeRecord(number, KeyRange(*(as_key(limit) if limit else None for limit in limits)))
            for number, *limits in rows
        ]

    def close_range(self, record: MigrationRecord, number: int) -> None:
        self._db.execute(
            "UPDATE vecferry.ranges SET done = true WHERE migration_id = %s AND number = %s", [record.id, number]
        )

    def count_ranges(self, record: MigrationRecord) -> tuple[int, int]:
        """Return (done, in all)."""
        ((done, total),) = self._db.rows(
            "SELECT count(*) FILTER (WHERE done), count(*) FROM vecferry.ranges WHERE migration_id = %s", [record.id]
        )
        return done, total

    # --- dead letters -----------------------------------------------------------------------------

    def add_dead_letters(self, record: MigrationRecord, dead_letters: Sequence[DeadLetter]) -> None:
        """Keep them; a later letter for the same row and side replaces the earlier."""
        if dead_letters:
            self._db.execute_many(
                "INSERT INTO vecferry.dead_letters (migration_id, side, key, reason, text_sha256, at)"
                " VALUES (%s, %s, %s, %s, %s, clock_timestamp()) ON CONFLICT (migration_id, side, key) DO UPDATE"
                " SET reason = excluded.reason, text_sha256 = excluded.text_sha256, at = excluded.at",
                [(record.id, each.side, key_text(each.key), each.reason, each.digest) for each in dead_letters],
            )

    def remove_dead_letters(self, record: MigrationRecord, side: Side, keys: Sequence[Key]) -> None:
        if keys:
            self._db.execute(
                "DELETE FROM vecferry.dead_letters WHERE migration_id = %s AND side = %s AND key = ANY(%s)",
                [record.id, side.value, [key_text(key) for key in keys]],
            )

    def reopen_dead_letters(self, record: MigrationRecord, side: Side, keys: Sequence[Key]) -> None:
        """Let these be tried again: they stay, and are of no present text any more."""
        if keys:
            self._db.execute(
                "UPDATE vecferry.dead_letters SET text_sha256 = %s WHERE migration_id = %s AND side = %s"
                " AND key = ANY(%s)",
                [NO_TEXT_DIGEST, record.id, side.value, [key_text(key) for key in keys]],
            )

    def dead_letters(self, record: MigrationRecord, limit: int, side: Side | None = None) -> list[DeadLetter]:
        """Return the oldest; of one side, or of both."""
        rows = self._db.rows(
            "SELECT key, reason, text_sha256, side FROM vecferry.dead_letters"
            " WHERE migration_id = %s AND side = coalesce(%s, side) ORDER BY at, key LIMIT %s",
            [record.id, side and side.value, limit],
        )
        return [DeadLetter(as_key(key), reason, digest, of) for key, reason, digest, of in rows]

    def count_dead_letters(self, record: MigrationRecord, side: Side) -> int:
        ((count,),) = self._db.rows(
            "SELECT count(*) FROM vecferry.dead_letters WHERE migration_id = %s AND side = %s", [record.id, side.value]
        )
        return int(count)

    def dead_letter_digests(self, record: MigrationRecord, side: Side, keys: Sequence[Key]) -> dict[Key, bytes]:
        """Return those of the rows that are dead letters, with the digest of the text that could not be embedded."""
        rows = self._db.rows(
            "SELECT key, text_sha256 FROM vecferry.dead_letters"
            " WHERE migration_id = %s AND side = %s AND key = ANY(%s)",
            [record.id, side.value, [key_text(key) for key in keys]],
        )
        return {as_key(key): digest for key, digest in rows}

    # --- precisions -------------------------------------------------------------------------------

    def note_forms(self, record: MigrationRecord, form: str, keys: Sequence[Key]) -> None:
        """Keep that the new vectors of these rows are in that form, which is not their index's."""
        self._db.execute_many(
            "INSERT INTO vecferry.row_forms (migration_id, key, form) VALUES (%s, %s, %s)"
            " ON CONFLICT (migration_id, key) DO UPDATE SET form = excluded.form",
            [(record.id, key_text(key), form) for key in keys],
        )

    def forget_forms(self, record: MigrationRecord, keys: Sequence[Key]) -> None:
        """Keep that these rows are gone, without a vector, or in the form of their index."""
        if keys:
            self._db.execute(
                "DELETE FROM vecferry.row_forms WHERE migration_id = %s AND key = ANY(%s)",
                [record.id, [key_text(key) for key in keys]],
            )

    def count_forms(self, record: MigrationRecord) -> dict[str, int]:
        """Return how many rows have a new vector in each form but the index's."""
        rows = self._db.rows(
            "SELECT form, count(*) FROM vecferry.row_forms WHERE migration_id = %s GROUP BY form ORDER BY form",
            [record.id],
        )
        return {form: int(count) for form, count in rows}

    # --- who serves -------------------------------------------------------------------------------

    def serving(self, target: str) -> Serving | None:
        if not self.is_installed():
            return None
        rows = self._db.rows(
            "SELECT epoch, generation, locator, fingerprint, thresholds FROM vecferry.serving WHERE target = %s",
            [target],
        )
        if not rows:
            return None
        epoch, generation, locator, fingerprint, thresholds = rows[0]
        return Serving(epoch, generation, locator, fingerprint, json.loads(thresholds))

    def serve(self, target: str, serving: Serving) -> None:
        self._db.execute(
            "INSERT INTO vecferry.serving (target, epoch, generation, locator, fingerprint, thresholds, since)"
            " VALUES (%s, %s, %s, %s, %s, %s, clock_timestamp())"
            " ON CONFLICT (target) DO UPDATE SET epoch = excluded.epoch, generation = excluded.generation,"
            " locator = excluded.locator, fingerprint = excluded.fingerprint, thresholds = excluded.thresholds,"
            " since = excluded.since",
            [
                target, serving.epoch, serving.generation, serving.locator, serving.fingerprint,
                json.dumps(dict(serving.thresholds)),
            ],
        )  # fmt: skip

    # --- who may write ----------------------------------------------------------------------------

    def acquire(self, target: str, holder: str, seconds: float, former: Lease | None = None) -> Lease:
        """Take the lease if nobody has it, or its time is over, or its holder's process is gone, or it is `former`.

        A transaction that the former holder is in ends first. Raises Locked.
        """
        self.install()
        rows = self._db.rows(
            "SELECT holder, token, expires_at <= clock_timestamp() FROM vecferry.leases WHERE target = %s", [target]
        )
        before, token, is_over = rows[0] if rows else ("", 0, True)
        gone = not is_over and (is_gone(before) or Lease(target, before, token) == former)
        if not is_over and not gone:
            raise Locked(target, before)
        lease = Lease(target, holder, token + 1)
        if not self._take(lease, seconds, from_the_gone=gone):
            raise Locked(target, self._lease_holder(target))
        return lease

    def _take(self, lease: Lease, seconds: float, *, from_the_gone: bool) -> bool:
        """Compare and set on the token; false if somebody was faster."""
        num_taken = self._db.execute(
            "INSERT INTO vecferry.leases AS held (target, holder, token, expires_at, since)"
            " VALUES (%s, %s, %s, to_timestamp(date_part('epoch', clock_timestamp()) + %s), clock_timestamp())"
            " ON CONFLICT (target) DO UPDATE"
            " SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at,"
            " since = excluded.since, rows_per_s = NULL, rows_encoded = 0"
            " WHERE held.token = excluded.token - 1 AND (held.expires_at <= clock_timestamp() OR %s)",
            [lease.target, lease.holder, lease.token, seconds, from_the_gone],
        )
        return bool(num_taken)

    def _lease_holder(self, target: str) -> str:
        rows = self._db.rows("SELECT holder FROM vecferry.leases WHERE target = %s", [target])
        return rows[0][0] if rows else "a run that has ended since"

    def running(self, target: str) -> RunningProcess | None:
        """Return who has the lease and is not known to be gone; None if nobody has."""
        rows = self._db.rows(
            "SELECT holder, date_part('epoch', since), rows_per_s, rows_encoded FROM vecferry.leases"
            " WHERE target = %s AND expires_at > clock_timestamp()",
            [target],
        )
        if not rows or is_gone(holder := rows[0][0]):
            return None
        pid, host = process_of(holder)
        return RunningProcess(host, pid, _as_iso(rows[0][1]), rows[0][2], rows[0][3])

    def note_rate(self, target: str, rows_per_s: float) -> None:
        """Leave the rate of this process beside its lease; to be called outside of transactions, or renewals wait."""
        self._db.execute(
            "UPDATE vecferry.leases SET rows_per_s = %s WHERE target = %s AND holder = %s",
            [rows_per_s, target, process_mark()],
        )

    def note_encoded(self, target: str, rows: int) -> None:
        """Leave beside its lease how many rows this process has encoded and not written; called as `note_rate` is."""
        self._db.execute(
            "UPDATE vecferry.leases SET rows_encoded = %s WHERE target = %s AND holder = %s",
            [rows, target, process_mark()],
        )

    def renew(self, lease: Lease, seconds: float) -> None:
        """Raise LeaseLost if somebody else has it, or it was given back."""
        num_renewed = self._db.execute(
            "UPDATE vecferry.leases SET expires_at = to_timestamp(date_part('epoch', clock_timestamp()) + %s)"
            " WHERE target = %s AND token = %s AND expires_at > to_timestamp(0)",
            [seconds, lease.target, lease.token],
        )
        if not num_renewed:
            raise LeaseLost(lease.target)

    def release(self, lease: Lease) -> None:
        """Give the lease back; nothing happens if somebody else has it."""
        self._db.execute(
            "UPDATE vecferry.leases SET expires_at = to_timestamp(0) WHERE target = %s AND token = %s",
            [lease.target, lease.token],
        )

    def guard(self, lease: Lease) -> None:
        """Raise LeaseLost if somebody else has it; in a transaction, nobody can take it before its end."""
        rows = self._db.rows(
            "SELECT 1 FROM vecferry.leases WHERE target = %s AND token = %s AND expires_at > to_timestamp(0)"
            " FOR KEY SHARE",
            [lease.target, lease.token],
        )
        if not rows:
            raise LeaseLost(lease.target)


def _record(
    number: int, spec: str, state: str, version: int, verification: str | None, paused: str | None
) -> MigrationRecord:
    fields = json.loads(spec)
    return MigrationRecord(
        number,
        MigrationSpec(**{**fields, "outputs": tuple(fields["outputs"])}),
        state,
        version,
        json.loads(verification) if verification else None,
        Paused(**json.loads(paused)) if paused else None,
    )


def _as_iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def key_text(key: Key) -> str:
    """Return a JSON list, as `pgvector/capture.py` has the server write it; any text at all can be in a key."""
    return json.dumps(list(key), ensure_ascii=False).encode(errors="backslashreplace").decode()


def as_key(text: str) -> Key:
    return tuple(json.loads(text))
