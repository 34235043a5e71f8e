"""The journal of the application's writes, for stores that cannot say what was written, and when writers are held off.

A write is `begin`, the store's own write, `finish`. What was begun and never finished (its process died)
is captured too, after `ABANDONED_AFTER_S`. An entry is one key of one write. It gets a new number when its
write finishes. So a number that was read while the write was under way, and looked abandoned, never
acknowledges what the write has left.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from vecferry.errors import Locked, SpaceMismatch, StoreError
from vecferry.stores.lease import process_mark
from vecferry.stores.sql_ledger import as_key, key_text
from vecferry.stores.sqlite.connection import SqliteDatabase
from vecferry.stores.values import BOTH_SIDES, Change, Key, Side

ABANDONED_AFTER_S = 30.0
FORGOTTEN_AFTER_S = 86_400.0
PAUSE_S = 0.02

NO_KEY: Key = ()
"""Of a write that is not the application's: '[]' in the journal, and never captured."""


class SqliteJournal:
    """The application's writes, noted before they are made, in the control database."""

    def __init__(self, database: SqliteDatabase, abandoned_after_s: float = ABANDONED_AFTER_S) -> None:
        self._db = database
        self._abandoned_after_s = abandoned_after_s
        self._holds: dict[str, str] = {}
        self._is_open = True

    def close(self) -> None:
        """Close the connection. Repeating is safe."""
        if self._is_open:
            self._is_open = False
            self._db.close()

    # --- writes -----------------------------------------------------------------------------------

    def begin(self, target: str, keys: Sequence[Key], fingerprint: str | None) -> int:
        """Return a number for `finish`, after waiting while the switch holds writers off.

        Raises SpaceMismatch if `fingerprint` is given and is not what serves.
        """
        assert not self._db.is_inside, "a write must be noted for good before it is made"
        while True:
            while self._holder(target):
                time.sleep(PAUSE_S)
            with self._db.transaction():
                if not self._holder(target):
                    self._check_space(target, fingerprint)
                    return self._note(target, keys)

    def _check_space(self, target: str, fingerprint: str | None) -> None:
        serving = self._db.value("SELECT fingerprint FROM serving WHERE target = ?", [target])
        if fingerprint is not None and serving is not None and serving != fingerprint:
            raise SpaceMismatch(expected=serving, found=fingerprint, where=f"a write to {target}")

    def _note(self, target: str, keys: Sequence[Key]) -> int:
        write_id: int = self._db.value("SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'journal'")
        self._db.execute_many(
            "INSERT INTO journal (target, key, write_id, begun_at) VALUES (?, ?, ?, ?)",
            [(target, key_text(key), write_id, time.time()) for key in dict.fromkeys(keys)],
        )
        return write_id if keys else 0

    def finish(self, target: str, number: int) -> None:
        """Note that the write has ended; it is captured if a capture is on."""
        with self._db.transaction():
            if self._is_started(target):
                self._db.execute(
                    "INSERT INTO journal (target, key, write_id, begun_at, finished)"
                    " SELECT target, key, write_id, begun_at, 1 FROM journal"
                    " WHERE target = ? AND write_id = ? AND NOT finished ORDER BY number",
                    [target, number],
                )
            self._db.execute("DELETE FROM journal WHERE target = ? AND write_id = ? AND NOT finished", [target, number])

    @contextmanager
    def passing(self, target: str) -> Iterator[None]:
        """Let the migration itself write: it waits while writers are held, and they for it; it is not captured."""
        number = self.begin(target, [NO_KEY], None)
        try:
            yield
        finally:
            with suppress(StoreError):  # it is abandoned in time, and must not hide what the body raised
                self._db.execute("DELETE FROM journal WHERE target = ? AND write_id = ?", [target, number])

    # --- capture ----------------------------------------------------------------------------------

    def _is_started(self, target: str) -> bool:
        return bool(self._db.rows("SELECT 1 FROM captures WHERE target = ?", [target]))

    def start_journal(self, target: str) -> None:
        """Capture what finishes from now on. Repeating is safe."""
        self._db.execute("INSERT OR IGNORE INTO captures (target) VALUES (?)", [target])

    def stop_journal(self, target: str) -> None:
        """Capture nothing more, and forget what was captured. Repeating is safe.

        Unfinished writes stay noted: they may finish after the next `start_journal`.
        """
        with self._db.transaction():
            self._db.execute("DELETE FROM captures WHERE target = ?", [target])
            self._db.execute(
                "DELETE FROM journal WHERE target = ? AND (finished OR begun_at < ? AND (acknowledged OR key = '[]'))",
                [target, time.time() - FORGOTTEN_AFTER_S],
            )

    def note(self, target: str, keys: Sequence[Key], side: Side) -> None:
        """Capture these keys for that side, as if a write to them had just finished; if a capture is on.

        Repeating is safe.
        """
        with self._db.transaction():
            missing = self._not_noted(target, keys, side) if self._is_started(target) else []
            if missing:
                self._db.execute(
                    "UPDATE journal SET finished = 1, side = ? WHERE target = ? AND write_id = ?",
                    [side.value, target, self._note(target, missing)],
                )

    def _not_noted(self, target: str, keys: Sequence[Key], side: Side) -> list[Key]:
        rows = self._db.rows(
            "SELECT key FROM journal WHERE target = ? AND side = ? AND key IN (SELECT value FROM json_each(?))",
            [target, side.value, json.dumps([key_text(key) for key in keys])],
        )
        noted = {as_key(key) for (key,) in rows}
        return [key for key in keys if key not in noted]

    def journalled(self, target: str, limit: int, sides: Collection[Side] = BOTH_SIDES) -> list[Change]:
        """Return the oldest finished or abandoned ones that are to be followed on one of these sides; one per key."""
        if not self._is_started(target):
            return []
        query = (
            "SELECT number, key, side FROM journal WHERE target = ? AND acknowledged = 0 AND side IS ?"
            " AND (finished OR begun_at <= ?) AND key <> '[]' ORDER BY number LIMIT ?"
        )
        rows = sorted(
            row
            for side in (None, *sides)  # each by itself, so that an index has them in their order
            for row in self._db.rows(query, [target, side and side.value, self._abandoned_before(), limit])
        )
        return [Change(number, as_key(key), None if side is None else Side(side)) for number, key, side in rows[:limit]]

    def journal_backlog(self, target: str, side: Side | None = None) -> int:
        """Count those to be followed on that side, or at all, and those of unfinished writes."""
        query = "SELECT count(*) FROM journal WHERE target = ? AND acknowledged = 0 AND side IS ? AND key <> '[]'"
        sides = (None, *(Side if side is None else (side,)))
        return sum(self._db.value(query, [target, each and each.value]) or 0 for each in sides)

    def acknowledge(self, target: str, changes: Sequence[Change]) -> None:
        """Remember an abandoned write, so that it is captured if it finishes after all."""
        numbers = [(target, change.number) for change in changes]
        with self._db.transaction():
            self._db.execute_many("DELETE FROM journal WHERE target = ? AND number = ? AND finished", numbers)
            self._db.execute_many("UPDATE journal SET acknowledged = 1 WHERE target = ? AND number = ?", numbers)

    def _abandoned_before(self) -> float:
        return time.time() - self._abandoned_after_s

    # --- holding writers off ----------------------------------------------------------------------

    @contextmanager
    def writers_held(self, target: str, wait_s: float, hold_s: float | None = None) -> Iterator[None]:
        """Let nobody `begin`, after all that had begun has finished. Raises Locked if that takes over `wait_s`.

        Writers go on by themselves after `hold_s`, by default as long, and `still_held` is then false.
        """
        assert not self._db.is_inside, "writers could neither see the hold nor finish"
        now, token = time.time(), uuid.uuid4().hex
        try:
            self._hold(target, token, now + wait_s, now + (wait_s if hold_s is None else hold_s))
            self._await_ends(target, now + wait_s)
            self._holds[target] = token
            yield
        finally:
            self._holds.pop(target, None)
            with suppress(StoreError):  # it ends by itself, and must not hide what the body raised
                self._db.execute("DELETE FROM holds WHERE target = ? AND token = ?", [target, token])

    def still_held(self, target: str) -> bool:
        query = "SELECT 1 FROM holds WHERE target = ? AND token = ? AND until > ?"
        return bool(self._db.rows(query, [target, self._holds.get(target), time.time()]))

    def _hold(self, target: str, token: str, wait_until: float, hold_until: float) -> None:
        while True:
            with self._db.transaction():
                holder = self._holder(target)
                if holder is None:
                    self._db.execute(
                        "INSERT OR REPLACE INTO holds (target, token, holder, until) VALUES (?, ?, ?, ?)",
                        [target, token, process_mark(), hold_until],
                    )
                    return
            if time.time() >= wait_until:
                raise Locked(target, holder)
            time.sleep(PAUSE_S)

    def _holder(self, target: str) -> str | None:
        """Return who holds writers off now."""
        holder: str | None = self._db.value(
            "SELECT holder FROM holds WHERE target = ? AND until > ?", [target, time.time()]
        )
        return holder

    def _await_ends(self, target: str, until: float) -> None:
        while unended := self._unended(target):
            if time.time() >= until:
                raise Locked(target, f"others, whose writes have not ended ({unended} so far)")
            time.sleep(PAUSE_S)

    def _unended(self, target: str) -> int:
        count: int = self._db.value(
            "SELECT count(DISTINCT write_id) FROM journal"
            " WHERE target = ? AND acknowledged = 0 AND NOT finished AND begun_at > ?",
            [target, self._abandoned_before()],
        )
        return count
