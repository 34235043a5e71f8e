"""The ledger in the control database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from vecferry.stores.sql_ledger import Ledger
from vecferry.stores.sqlite.connection import BUSY_TIMEOUT_S, SqliteDatabase
from vecferry.stores.sqlite.journal import ABANDONED_AFTER_S, SqliteJournal


class SqliteLedger(SqliteJournal, Ledger):
    """The ledger and the journal in one SQLite file, or in memory."""

    _db: SqliteDatabase

    @classmethod
    def open(
        cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S, abandoned_after_s: float = ABANDONED_AFTER_S
    ) -> SqliteLedger:
        """Open a ledger. Nothing is looked at before the first use; the first write makes the file and its folder."""
        return cls(SqliteDatabase(path, busy_timeout_s), abandoned_after_s)

    @classmethod
    def in_memory(cls, *, abandoned_after_s: float = ABANDONED_AFTER_S) -> SqliteLedger:
        """Open a ledger for this process alone; shared by all its `another`, gone when the last of them is closed."""
        return cls(SqliteDatabase(None), abandoned_after_s)

    @property
    def location(self) -> str:
        """For people: the path of the file."""
        return self._db.location

    def install(self) -> None:
        with self._db.transaction():
            pass

    def is_installed(self) -> bool:
        return self._db.is_installed

    def transaction(self) -> AbstractContextManager[None]:
        """Keep what is written inside as a whole or not at all; nobody else writes meanwhile.

        Inside another one, it is part of that. Raises StoreFailed if others write for too long.
        """
        return self._db.transaction()

    def forget(self) -> int:
        """Remove the file. Raises MigrationsOpen."""
        if not self.is_installed():
            return 0
        with self.transaction():  # nobody begins another meanwhile
            number = self._count_ended()
            self._db.remove_file()
        self._db.disconnect()
        return number

    def another(self) -> SqliteLedger:
        return SqliteLedger(self._db.another(), self._abandoned_after_s)
