"""Transactions that are kept only while the lease is ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vecferry.stores.lease import held
from vecferry.stores.ledger import Lease
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.ledger import PgLedger

IDLE_S = 5.0
"""Of a process that is stopped inside a transaction: its locks are kept no longer, whatever the lease."""


class LeaseGuard:
    """What one connection may write; all that is made of it shares the object."""

    def __init__(self, database: Database, ledger: PgLedger) -> None:
        self._db = database
        self._ledger = ledger
        self._lease: Lease | None = None
        self._former: Lease | None = None
        self._idle_s = 0.0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Raises LeaseLost if the lease was held and is no more. Inside another one, it is part of that."""
        outermost = not self._db.in_transaction
        with self._db.transaction():
            if outermost and self._lease is not None:
                self._ledger.guard(self._lease)
            yield

    def check(self) -> None:
        """Raises LeaseLost; for what cannot stand in a transaction."""
        with self.transaction():
            pass

    @contextmanager
    def holding(self, target: str, lease_s: float) -> Iterator[None]:
        """See `Writing.runner`."""
        with held(self._ledger, target, lease_s, self._former) as lease:
            self._lease = self._former = lease
            try:
                self._limit_idle(IDLE_S)
                yield
            finally:
                self._lease = None
                if self._db.is_open and not self._db.in_transaction:
                    self._limit_idle(0)

    def restore(self) -> None:
        """After the connection was made anew."""
        self._limit_idle(self._idle_s)

    def _limit_idle(self, seconds: float) -> None:
        self._idle_s = seconds
        name = "idle_in_transaction_session_timeout"
        self._db.rows("SELECT set_config(%s, %s, false)", [name, f"{round(seconds * 1000)}ms"])
