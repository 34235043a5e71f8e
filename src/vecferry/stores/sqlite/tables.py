"""The tables of the control database. Keys and details are JSON; times are ISO 8601 in UTC, or seconds since 1970."""

APPLICATION_ID = 0x76666572
VERSION = 1

ADD_THRESHOLDS = "ALTER TABLE serving ADD COLUMN thresholds TEXT NOT NULL DEFAULT '{}'"
"""Later than the rest: a control database without them can be read, and has them before its next write."""

CREATE = (
    """
    CREATE TABLE migrations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        target TEXT NOT NULL,
        spec TEXT NOT NULL,
        state TEXT NOT NULL,
        version INTEGER NOT NULL DEFAULT 1,
        verification TEXT,
        paused TEXT,
        followed TEXT NOT NULL DEFAULT '[]',
        rows_per_s REAL,
        postponed INTEGER NOT NULL DEFAULT 0,
        begun_at TEXT NOT NULL
    )
    """,
    """
    CREATE UNIQUE INDEX migrations_one_at_a_time ON migrations (target)
        WHERE state NOT IN ('finalized', 'aborted')
    """,
    """
    CREATE TABLE ranges (
        migration_id INTEGER NOT NULL REFERENCES migrations,
        number INTEGER NOT NULL,
        lo TEXT,  -- exclusive; NULL is without limit
        hi TEXT,  -- inclusive
        done INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (migration_id, number)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE dead_letters (
        migration_id INTEGER NOT NULL REFERENCES migrations,
        side TEXT NOT NULL,
        key TEXT NOT NULL,
        reason TEXT NOT NULL,
        text_sha256 BLOB NOT NULL,  -- empty where there is no text
        at TEXT NOT NULL,
        PRIMARY KEY (migration_id, side, key)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        migration_id INTEGER NOT NULL REFERENCES migrations,
        at TEXT NOT NULL,
        what TEXT NOT NULL,
        detail TEXT NOT NULL
    )
    """,
    "CREATE INDEX events_of_a_migration ON events (migration_id)",
    """
    CREATE TABLE serving (
        target TEXT PRIMARY KEY,
        epoch INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        locator TEXT NOT NULL,
        fingerprint TEXT,
        since TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE leases (
        target TEXT PRIMARY KEY,
        token INTEGER NOT NULL,
        holder TEXT,  -- NULL is nobody; the row stays, so that no token comes twice
        until REAL NOT NULL
    ) WITHOUT ROWID
    """,
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
    ADD_THRESHOLDS,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)
