"""The tables of the control database: those of every ledger, and those of the journal. Times are seconds since 1970."""

from vecferry.stores.sql_ledger import TABLES
from vecferry.stores.sqlite.dialect import as_statement

APPLICATION_ID = 0x76666572
VERSION = 2

CREATE = (
    *map(as_statement, TABLES),
    """
    CREATE TABLE journal (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        target TEXT NOT NULL,
        key TEXT NOT NULL,
        write_id INTEGER NOT NULL,
        begun_at REAL NOT NULL,
        finished INTEGER NOT NULL DEFAULT 0,
        acknowledged INTEGER NOT NULL DEFAULT 0,  -- as abandoned; it may still finish
        side TEXT  -- on which it is to be followed; NULL is both
    )
    """,
    "CREATE INDEX journal_of_a_side ON journal (target, acknowledged, side, number)",
    "CREATE INDEX journal_of_a_key ON journal (target, key)",
    "CREATE INDEX journal_of_a_write ON journal (write_id)",
    "CREATE TABLE captures (target TEXT PRIMARY KEY) WITHOUT ROWID",
    """
    CREATE TABLE holds (
        target TEXT PRIMARY KEY,
        token TEXT NOT NULL,
        holder TEXT NOT NULL,
        until REAL NOT NULL
    ) WITHOUT ROWID
    """,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)
