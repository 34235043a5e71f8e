"""The ledger in the control database."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
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
from vecferry.stores.sqlite.connection import BUSY_TIMEOUT_S, SqliteDatabase
from vecferry.stores.sqlite.journal import ABANDONED_AFTER_S, SqliteJournal, as_key, as_text
from vecferry.stores.values import Key, KeyRange, Side


class SqliteLedger(SqliteJournal):
    """`ledger.Ledger` and `ledger.Journal` in one SQLite file, or in memory."""

    @classmethod
    def open(
        cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S, abandoned_after_s: float = ABANDONED_AFTER_S
    ) -> SqliteLedger:
        """Nothing is made, nor looked at, before the first use; the first write makes the file and its folder."""
        return cls(SqliteDatabase(path, busy_timeout_s), abandoned_after_s)

    @classmethod
    def in_memory(cls, *, abandoned_after_s: float = ABANDONED_AFTER_S) -> SqliteLedger:
        """For this process alone; shared by all its `another`, and gone when the last of them is closed."""
        return cls(SqliteDatabase(None), abandoned_after_s)

    @property
    def location(self) -> str:
        """For people: the path of the file."""
        return self._db.location

    def install(self) -> None:
        with self._db.transaction():
            pass

    def transaction(self) -> AbstractContextManager[None]:
        """What is written inside is kept as a whole or not at all; nobody else writes meanwhile.

        Inside another one, it is part of that. Raises StoreFailed if others write for too long.
        """
        return self._db.transaction()

    def another(self) -> SqliteLedger:
        return SqliteLedger(self._db.another(), self._abandoned_after_s)

    # --- the record -------------------------------------------------------------------------------

    def find(self, target: str) -> MigrationRecord | None:
        return self._latest("target = ? AND state <> 'aborted'", target)

    def last(self, target: str) -> MigrationRecord | None:
        return self._latest("target = ?", target)

    def _latest(self, condition: str, target: str) -> MigrationRecord | None:
        rows = self._db.rows(
            "SELECT id, spec, state, version, verification, paused FROM migrations"  # noqa: S608  # ours
            f" WHERE {condition} ORDER BY id DESC LIMIT 1",
            [target],
        )
        return _record(rows[0]) if rows else None

    def create(self, spec: MigrationSpec, state: str) -> MigrationRecord:
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO migrations (target, spec, state, begun_at) VALUES (?, ?, ?, ?)",
                [spec.target, json.dumps(asdict(spec)), state, _now()],
            )
            record = self.find(spec.target)
            assert record is not None
            self.add_event(record, state, {})
        return record

    def move(
        self, record: MigrationRecord, state: str, detail: Mapping[str, Any], paused: Paused | None = None
    ) -> MigrationRecord:
        with self._db.transaction():
            num_moved = self._db.execute(
                "UPDATE migrations SET state = ?, version = version + 1, paused = ?"
                " WHERE id = ? AND state = ? AND version = ?",
                [state, json.dumps(asdict(paused)) if paused else None, record.id, record.state, record.version],
            )
            if not num_moved:
                found = self.find(record.spec.target)
                stored = f"{found.state}, version {found.version}" if found else "nothing"
                raise MigrationConflict(
                    record.spec.target, "state", stored, f"{record.state}, version {record.version}"
                )
            self.add_event(record, state, detail)
            return self._reread(record)

    def _reread(self, record: MigrationRecord) -> MigrationRecord:
        (row,) = self._db.rows(
            "SELECT id, spec, state, version, verification, paused FROM migrations WHERE id = ?", [record.id]
        )
        return _record(row)

    def add_event(self, record: MigrationRecord, what: str, detail: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO events (migration_id, at, what, detail) VALUES (?, ?, ?, ?)",
            [record.id, _now(), what, json.dumps(detail)],
        )

    def events(self, record: MigrationRecord, last: int) -> list[Event]:
        rows = self._db.rows(
            "SELECT at, what, detail FROM events WHERE migration_id = ? ORDER BY id DESC LIMIT ?", [record.id, last]
        )
        return [Event(at, what, json.loads(detail)) for at, what, detail in reversed(rows)]

    def keep_verification(self, record: MigrationRecord, report: Mapping[str, Any]) -> None:
        self._db.execute("UPDATE migrations SET verification = ? WHERE id = ?", [json.dumps(report), record.id])

    def control(self, record: MigrationRecord) -> Control:
        ((rows_per_s, postponed),) = self._db.rows(
            "SELECT rows_per_s, postponed FROM migrations WHERE id = ?", [record.id]
        )
        return Control(rows_per_s, bool(postponed))

    def set_control(self, record: MigrationRecord, control: Control) -> None:
        self._db.execute(
            "UPDATE migrations SET rows_per_s = ?, postponed = ? WHERE id = ?",
            [control.rows_per_s, control.postponed, record.id],
        )

    def set_followed(self, record: MigrationRecord, sides: Collection[Side]) -> None:
        names = json.dumps(sorted(side.value for side in sides))
        self._db.execute("UPDATE migrations SET followed = ? WHERE id = ?", [names, record.id])

    def followed(self, record: MigrationRecord) -> frozenset[Side]:
        names = self._db.value("SELECT followed FROM migrations WHERE id = ?", [record.id])
        return frozenset(map(Side, json.loads(names)))

    # --- ranges -----------------------------------------------------------------------------------

    def add_ranges(self, record: MigrationRecord, ranges: Sequence[KeyRange]) -> None:
        with self._db.transaction():
            self._db.execute("DELETE FROM ranges WHERE migration_id = ?", [record.id])
            self._insert_ranges(record, ranges)

    def _insert_ranges(self, record: MigrationRecord, ranges: Sequence[KeyRange]) -> None:
        self._db.execute_many(
            "INSERT INTO ranges (migration_id, number, lo, hi) VALUES (?, ?, ?, ?)",
            [(record.id, i, _as_limit(keys.lo), _as_limit(keys.hi)) for i, keys in enumerate(ranges, start=1)],
        )

    def open_ranges(self, record: MigrationRecord) -> list[RangeRecord]:
        rows = self._db.rows(
            "SELECT number, lo, hi FROM ranges WHERE migration_id = ? AND NOT done ORDER BY number", [record.id]
        )
        return [RangeRecord(number, KeyRange(_of_limit(lo), _of_limit(hi))) for number, lo, hi in rows]

    def close_range(self, record: MigrationRecord, number: int) -> None:
        self._db.execute("UPDATE ranges SET done = 1 WHERE migration_id = ? AND number = ?", [record.id, number])

    def count_ranges(self, record: MigrationRecord) -> tuple[int, int]:
        ((done, total),) = self._db.rows(
            "SELECT coalesce(sum(done), 0), count(*) FROM ranges WHERE migration_id = ?", [record.id]
        )
        return done, total

    # --- dead letters -----------------------------------------------------------------------------

    def add_dead_letters(self, record: MigrationRecord, dead_letters: Sequence[DeadLetter]) -> None:
        at = _now()
        self._db.execute_many(
            "INSERT OR REPLACE INTO dead_letters (migration_id, side, key, reason, text_sha256, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (record.id, dead_letter.side, as_text(dead_letter.key), dead_letter.reason, dead_letter.digest, at)
                for dead_letter in dead_letters
            ],
        )

    def remove_dead_letters(self, record: MigrationRecord, side: Side, keys: Sequence[Key]) -> None:
        self._db.execute(
            "DELETE FROM dead_letters WHERE migration_id = ? AND side = ? AND key IN (SELECT value FROM json_each(?))",
            [record.id, side, _as_texts(keys)],
        )

    def dead_letters(self, record: MigrationRecord, limit: int, side: Side | None = None) -> list[DeadLetter]:
        rows = self._db.rows(
            "SELECT key, reason, text_sha256, side FROM dead_letters"
            " WHERE migration_id = ?1 AND (?2 IS NULL OR side = ?2) ORDER BY at, key LIMIT ?3",
            [record.id, side, limit],
        )
        return [DeadLetter(as_key(key), *rest) for key, *rest in rows]

    def count_dead_letters(self, record: MigrationRecord, side: Side) -> int:
        query = "SELECT count(*) FROM dead_letters WHERE migration_id = ? AND side = ?"
        return self._db.value(query, [record.id, side]) or 0

    def letters_of(self, record: MigrationRecord, side: Side, keys: Sequence[Key]) -> dict[Key, bytes]:
        """Those of the rows that are dead letters, with the digest of the text that could not be embedded."""
        rows = self._db.rows(
            "SELECT key, text_sha256 FROM dead_letters WHERE migration_id = ? AND side = ?"
            " AND key IN (SELECT value FROM json_each(?))",
            [record.id, side, _as_texts(keys)],
        )
        return {as_key(key): digest for key, digest in rows}

    # --- who serves -------------------------------------------------------------------------------

    def serving(self, target: str) -> Serving | None:
        rows = self._db.rows("SELECT * FROM serving WHERE target = ?", [target])
        if not rows:
            return None
        _, epoch, generation, locator, fingerprint, _, *thresholds = rows[0]  # none in a database of an earlier form
        return Serving(epoch, generation, locator, fingerprint, json.loads(thresholds[0]) if thresholds else {})

    def serve(self, target: str, serving: Serving) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO serving (target, epoch, generation, locator, fingerprint, since, thresholds)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                target, serving.epoch, serving.generation, serving.locator, serving.fingerprint, _now(),
                json.dumps(dict(serving.thresholds)),
            ],
        )  # fmt: skip

    # --- who may write ----------------------------------------------------------------------------

    def acquire(self, target: str, holder: str, seconds: float, former: Lease | None = None) -> Lease:
        with self._db.transaction():
            rows = self._db.rows("SELECT holder, token, until FROM leases WHERE target = ?", [target])
            before, token, until = rows[0] if rows else (None, 0, 0.0)
            is_held = before is not None and until > time.time()
            if is_held and not is_gone(before) and Lease(target, before, token) != former:
                raise Locked(target, before)
            self._db.execute(
                "INSERT OR REPLACE INTO leases (target, token, holder, until) VALUES (?, ?, ?, ?)",
                [target, token + 1, holder, time.time() + seconds],
            )
        return Lease(target, holder, token + 1)

    def renew(self, lease: Lease, seconds: float) -> None:
        num_renewed = self._db.execute(
            "UPDATE leases SET until = ? WHERE target = ? AND token = ? AND holder IS NOT NULL",
            [time.time() + seconds, lease.target, lease.token],
        )
        if not num_renewed:
            raise LeaseLost(lease.target)

    def release(self, lease: Lease) -> None:
        self._db.execute("UPDATE leases SET holder = NULL WHERE target = ? AND token = ?", [lease.target, lease.token])

    def guard(self, lease: Lease) -> None:
        query = "SELECT 1 FROM leases WHERE target = ? AND token = ? AND holder IS NOT NULL"
        if not self._db.rows(query, [lease.target, lease.token]):
            raise LeaseLost(lease.target)


def _record(row: Sequence[Any]) -> MigrationRecord:
    number, spec, state, version, verification, paused = row
    return MigrationRecord(
        number,
        _spec(json.loads(spec)),
        state,
        version,
        json.loads(verification) if verification else None,
        Paused(**json.loads(paused)) if paused else None,
    )


def _spec(fields: dict[str, Any]) -> MigrationSpec:
    return MigrationSpec(**{**fields, "outputs": tuple(fields["outputs"])})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _as_limit(key: Key | None) -> str | None:
    return None if key is None else as_text(key)


def _of_limit(text: str | None) -> Key | None:
    return None if text is None else as_key(text)


def _as_texts(keys: Sequence[Key]) -> str:
    return json.dumps([as_text(key) for key in keys])
