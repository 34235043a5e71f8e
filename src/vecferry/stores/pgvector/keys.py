"""By which columns a row is found again: those of the primary key, or of a unique index that can stand for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector.connection import Database, identifier

UNIQUE_INDEXES = """
SELECT i.relname::text, x.indisprimary, x.indisreplident, sum(CASE WHEN a.attlen > 0 THEN a.attlen ELSE 64 END)::int,
    CASE WHEN x.indisprimary THEN NULL
         WHEN x.indpred IS NOT NULL THEN 'is partial'
         WHEN x.indexprs IS NOT NULL THEN 'is over an expression'
         WHEN NOT x.indimmediate THEN 'is deferrable'
         WHEN NOT x.indisvalid THEN 'is not valid'
         WHEN bool_or(a.attcollation <> (x.indcollation::oid[])[k.place - 1]) THEN 'sorts by another collation'
         WHEN bool_or(NOT a.attnotnull) THEN 'lets ' || min(quote_ident(a.attname)) FILTER (WHERE NOT a.attnotnull)
              || ' be NULL' END,
    array_agg(ARRAY[a.attname::text, format_type(a.atttypid, a.atttypmod), n.nspname::text] ORDER BY k.place)
        FILTER (WHERE a.attname IS NOT NULL)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    CROSS JOIN unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
    LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.attnum
    JOIN pg_opclass c ON c.oid = (x.indclass::oid[])[k.place - 1]
    JOIN pg_amop o ON o.amopfamily = c.opcfamily AND o.amopstrategy = 3
        AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype
    JOIN pg_operator p ON p.oid = o.amopopr JOIN pg_namespace n ON n.oid = p.oprnamespace
WHERE x.indrelid = %s::oid AND x.indisunique AND k.place <= x.indnkeyatts
GROUP BY i.relname, x.indexrelid ORDER BY i.relname
"""
"""Each with the bytes of its values, about, and what keeps it from standing for a primary key."""


@dataclass(frozen=True)
class Column:
    """type: as PostgreSQL writes it, quoted where needed. operators: the schema of those that sort its index."""

    name: str
    type: str
    operators: str = "pg_catalog"


@dataclass(frozen=True)
class UniqueKey:
    """index: its name. obstacle: what keeps it from being the key of a migration; None if nothing does."""

    index: str
    is_primary: bool
    is_replica_identity: bool
    bytes: int
    obstacle: str | None
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def is_called(self, name: str) -> bool:
        """Return whether the name is that of the index, or those of its columns by commas, in any order."""
        return name == self.index or sorted(part.strip() for part in name.split(",")) == sorted(self.names)

    def __str__(self) -> str:
        return f"{self.index} ({', '.join(self.names)})"


def find_key(database: Database, oid: int, table: str, name: str | None) -> UniqueKey:
    """Return the key with that name, see `UniqueKey.is_called`; without one `chosen`. Raises StoreSchemaError."""
    keys = [
        UniqueKey(index, is_primary, is_replica, width, obstacle, tuple(Column(*column) for column in columns or ()))
        for index, is_primary, is_replica, width, obstacle, columns in database.rows(UNIQUE_INDEXES, [oid])
    ]
    usable = [key for key in keys if key.obstacle is None]
    if name is not None:
        return _named(keys, table, name)
    if not usable:
        reasons = "; ".join(f"the unique index {key} {key.obstacle}" for key in keys)
        what = f"{table} has no primary key" + (f", and {reasons}" if reasons else "")
        raise StoreSchemaError(what, f"Add one, so that a row can be found again: {_remedy(keys, table)}.")
    return chosen(usable)


def chosen(keys: Sequence[UniqueKey]) -> UniqueKey:
    """Return the primary key, else the replica identity, else the one of fewest columns, and bytes; then by name."""
    return min(
        keys, key=lambda key: (not key.is_primary, not key.is_replica_identity, len(key.columns), key.bytes, key.index)
    )


def _named(keys: Sequence[UniqueKey], table: str, name: str) -> UniqueKey:
    matching = [key for key in keys if key.is_called(name)]
    usable = [key for key in matching if key.obstacle is None]
    if usable:
        return chosen(usable)
    if matching:
        what = f"the unique index {matching[0]} of {table} {matching[0].obstacle}"
        raise StoreSchemaError(f"{what}, and so is no key", f"{_remedy(matching, table)}; or name another key.")
    known = "; ".join(str(key) for key in keys if key.obstacle is None) or "none"
    expected = f"Its keys, of which [store] key takes the columns or the name of the index: {known}."
    raise StoreSchemaError(f"{table} has no unique key {name}", expected)


def _remedy(keys: Sequence[UniqueKey], table: str) -> str:
    """Return what to type for a key."""
    for key in keys:
        if key.obstacle is not None and key.obstacle.endswith(" be NULL"):
            changes = ", ".join(f"ALTER {identifier(each).as_string()} SET NOT NULL" for each in key.names)
            return f"ALTER TABLE {table} {changes}"
    return f"ALTER TABLE {table} ADD PRIMARY KEY (...)"
