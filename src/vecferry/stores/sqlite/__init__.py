"""The control database of stores that cannot keep a ledger: one SQLite file, on a local disk.

It is read and written by every process that uses the collection: the application, for each of its
writes, the migration, and whoever looks on. A file that is not there reads as an empty ledger; the
first write makes it.
"""

from vecferry.stores.sqlite.journal import ABANDONED_AFTER_S
from vecferry.stores.sqlite.ledger import SqliteLedger

__all__ = ["ABANDONED_AFTER_S", "SqliteLedger"]
