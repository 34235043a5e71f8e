"""Transactions that are kept only while the lease is ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vecferry.stores.lease import held
from vecferry.stores.ledger import Lease
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.ledger import PgLedger


class LeaseGuard:
    """What one connection may write; all that is made of it shares the object."""

    def __init__(self, database: Database, ledger: PgLedger) -> None:
        self._db = database
        self._ledger = ledger
        self._lease: Lease | None = None
        self._former: Lease | None = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction, or a part of the one around it. Raises LeaseLost if the lease was held and is no more."""
        outermost = not self._db.in_transaction
        with self._db.transaction():
            if outermost and self._lease is not None:
                self._ledger.guard(self._lease)
            yield

    def check(self) -> None:
        """Raise LeaseLost if the lease was held and is no more; for what cannot stand in a transaction."""
        with self.transaction():
            pass

    @contextmanager
    def holding(self, target: str, lease_s: float) -> Iterator[None]:
        """Hold the lease of `target` inside; raise Locked, naming the holder, if it is taken.

        Raises StoreSchemaError if another role made a part of the ledger.
        """
        self._ledger.refuse_foreign()
        with held(self._ledger, target, lease_s, self._former) as lease:
            self._lease = self._former = lease
            try:
                yield
            finally:
                self._lease = None
