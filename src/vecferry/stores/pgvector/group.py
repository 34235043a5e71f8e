"""Several tables as one: each has a `PgVectorStore` of its own, over one connection, under one migration.

What is written for a migration, the switch above all, is one transaction over all tables, which are locked in the
order of their names. A key of the group is the table's full name, `public.docs`, and the row's key there. The ledger
has the group's keys; the notes of a capture are the table's (docs/decisions/0044).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, pairwise
from typing import Self, TypeVar

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import StoreSchemaError, VecferryError
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.group import Member, group_name, named
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.group_merging import (
    TextsOfMembers,
    merged_counts,
    merged_examination,
    merged_finding,
    merged_info,
    merged_layouts,
    own_keys,
    shares,
    source_of_all,
)
from vecferry.stores.pgvector.group_tables import find_tables, matching
from vecferry.stores.pgvector.lease_guard import LeaseGuard
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.pgvector.locks import TableLocks
from vecferry.stores.pgvector.session import Membership
from vecferry.stores.pgvector.store import PgVectorStore
from vecferry.stores.pgvector.table import Table
from vecferry.stores.protocol import Store, Then, nothing_more
from vecferry.stores.text_source import TextSource
from vecferry.stores.values import (
    BOTH_SIDES,
    EVERYTHING,
    Change,
    Counts,
    Examination,
    Finding,
    Held,
    Hit,
    Key,
    KeyRange,
    Layout,
    LayoutCost,
    NewVector,
    Patience,
    Record,
    Row,
    Side,
    StoredRow,
    StoreTraits,
    TableInfo,
    in_order,
)

T = TypeVar("T")


@dataclass(frozen=True)
class GroupOptions:
    """How the tables of a group are found and opened; the fields are those of `PgVectorStore.connect`."""

    members: tuple[Member, ...]
    text: str
    vector: str
    key: str | None = None
    embed_missing: bool = False
    layout: Layout = Layout.COLUMNS

    @property
    def name(self) -> str:
        return group_name([member.name for member in self.members])


class PgGroupStore(Store):
    """`Store` and `StoreGroup` over the tables that were there when it was opened."""

    def __init__(self, database: Database, options: GroupOptions, tables: Mapping[str, Table]) -> None:
        """Take these tables, by their full names in order, for one."""
        self._db, self._options, self._tables = database, options, tables
        self._ledger = PgLedger(database)
        self._guard = LeaseGuard(database, self._ledger)
        self._locks = TableLocks(database, self._guard, *tables.values(), name=options.name)
        self._members = {
            name: PgVectorStore(
                database,
                table,
                embed_missing=options.embed_missing,
                layout=options.layout,
                membership=Membership(options.name, name, self._ledger, self._guard),
            )
            for name, table in tables.items()
        }

    # --- the connection ---------------------------------------------------------------------------

    @classmethod
    def connect(cls, database_url: str, options: GroupOptions) -> Self:
        """Open the tables of the group with one connection; to be closed. Writes nothing.

        Raises StoreUnreachable, and StoreSchemaError for a table that is not there or cannot be migrated.
        """
        database = Database(database_url)
        try:
            own = {"text": options.text, "vector": options.vector, "key": options.key}
            return cls(database, options, find_tables(database, options.members, **own))  # type: ignore[arg-type]
        except BaseException:
            database.close()
            raise

    @property
    def target(self) -> str:
        return self._options.name

    @property
    def traits(self) -> StoreTraits:
        traits = [member.traits for member in self._members.values()]
        texts = {member.name: member.text or self._options.text for member in self._options.members}
        return replace(traits[0], source=source_of_all([each.source for each in traits], texts))

    @property
    def ledger(self) -> PgLedger:
        return self._ledger

    def another(self) -> Self:
        return type(self)(self._db.another(), self._options, self._tables)

    def reconnect(self) -> None:
        self._db.reconnect()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- members ----------------------------------------------------------------------------------

    def members(self) -> tuple[str, ...]:
        return tuple(self._members)

    def key_within(self, member: str, key: Key) -> Key:
        return (self._named(member), *key)

    def _named(self, member: str) -> str:
        """Return the full name of a table, which may be given without its schema. Raises StoreSchemaError."""
        found = [member] if member in self._tables else [
            name for name, table in self._tables.items() if member == table.name
        ]  # fmt: skip
        if len(found) == 1:
            return found[0]
        what = f"{member!r} is {'more than one' if found else 'no'} table of {self.target}"
        remedy = f"They are {named([*self._tables])}; one that came later is there once the store is opened anew."
        raise StoreSchemaError(what, remedy)

    def key_of_member(self, key: Key) -> tuple[str, Key]:
        return key[0], key[1:]

    def source_within(self, member: str) -> TextSource:
        return self._members[self._named(member)].traits.source

    def locator_within(self, locator: str, member: str) -> str:  # noqa: ARG002  # columns keep their names
        return self._members[self._named(member)].target

    def search_within(
        self,
        member: str,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        name = self._named(member)
        hits = self._members[name].search(vector, k, fingerprint=fingerprint, exact=exact, selection=selection)
        return [replace(hit, key=(name, *hit.key)) for hit in hits]

    def without_new_side(self) -> tuple[str, ...]:
        """Return those that have one side alone, as a table that has come since."""
        return tuple(name for name, member in self._members.items() if not member.shape().has_other_side)

    def check_switch(self, to: Side) -> None:  # noqa: ARG002  # either way all of them
        self._refuse_unseen()
        if lacking := self.without_new_side():
            raise StoreSchemaError(*_left_behind(lacking, self.target))

    def drop_ahead(self, side: Side, patience: Patience) -> None:
        """Do nothing: the drop of columns takes a moment, and is one transaction."""

    def _refuse_unseen(self) -> None:
        """Raise StoreSchemaError for tables that match by now."""
        own, there = {(table.schema, table.name) for table in self._tables.values()}, self._options
        come = [f"{schema}.{name}" for schema, name in matching(self._db, there.members, there.vector)
                if (schema, name) not in own]  # fmt: skip
        if come:
            raise StoreSchemaError(*_left_behind(come, self.target))

    # --- keys -------------------------------------------------------------------------------------

    def _of(self, keys: Collection[Key]) -> Iterator[tuple[str, PgVectorStore, list[Key]]]:
        """Yield the tables that some of the keys are of, with their own; what is of none is left out."""
        for name, own in own_keys(keys).items():
            if name in self._members:
                yield name, self._members[name], own

    def _within(self, keys: KeyRange) -> Iterator[tuple[str, PgVectorStore, KeyRange]]:
        """Yield the tables that a range goes over, in order, with what of it is theirs."""
        for name, member in self._members.items():
            lo, hi = keys.lo, keys.hi
            if (lo is None or lo[0] <= name) and (hi is None or name <= hi[0]):
                own_lo = lo[1:] if lo is not None and lo[0] == name else None
                own_hi = hi[1:] if hi is not None and hi[0] == name else None
                yield name, member, KeyRange(own_lo, own_hi)

    def _drawn(self, num_rows: int, draw: Callable[[PgVectorStore, int], list[T]]) -> list[tuple[str, T]]:
        """Draw from each table by its share of all rows, in any order."""
        rows = {name: member.counts().rows for name, member in self._members.items()}
        drawn = [
            (name, each) for name, share in shares(rows, num_rows).items() for each in draw(self._members[name], share)
        ]
        return random.sample(drawn, min(num_rows, len(drawn)))  # no secret

    # --- for anybody ------------------------------------------------------------------------------

    def describe(self) -> TableInfo:
        return merged_info([member.describe() for member in self._members.values()])

    def sample(self, num_rows: int) -> list[Row]:
        return [_row(name, row) for name, row in self._drawn(num_rows, PgVectorStore.sample)]

    def sample_stored(self, num_rows: int) -> list[StoredRow]:
        source = self.traits.source
        drawn = self._drawn(num_rows, PgVectorStore.sample_stored)
        rows = [replace(row, key=(name, *row.key)) for name, row in drawn]
        if not isinstance(source, TextsOfMembers):
            return rows
        texts = [self._members[row.key[0]].traits.source.render(row.fields) for row in rows]
        return [replace(row, fields={**row.fields, source.name: text}) for row, text in zip(rows, texts, strict=True)]

    def rows(self, keys: Sequence[Key]) -> list[Row]:
        there = [_row(name, row) for name, member, own in self._of(keys) for row in member.rows(own)]
        return list(in_order({row.key: row for row in there}, keys).values())

    def rows_within(self, within: KeyRange, limit: int) -> list[Row]:
        return self._taken(within, limit, lambda member, own, left: member.rows_within(own, left or 0))

    def _taken(
        self, keys: KeyRange, limit: int | None, take: Callable[[PgVectorStore, KeyRange, int | None], list[Row]]
    ) -> list[Row]:
        """Take the first rows of a range, table by table."""
        rows: list[Row] = []
        for name, member, own in self._within(keys):
            left = None if limit is None else limit - len(rows)
            if left is None or left > 0:
                rows += [_row(name, row) for row in take(member, own, left)]
        return rows

    def vectors(self, keys: Sequence[Key], *, fingerprint: str) -> dict[Key, Float32]:
        found = {
            (name, *key): vector
            for name, member, own in self._of(keys)
            for key, vector in member.vectors(own, fingerprint=fingerprint).items()
        }
        return in_order(found, keys)

    def search(
        self,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        """Return the k rows nearest to the vector in all tables, each of which is asked, under one epoch."""
        ask = {"fingerprint": fingerprint, "exact": exact, "selection": selection}
        with self._db.transaction():  # the first table's lock keeps a switch away from all of them
            hits = [hit for name in self._members for hit in self.search_within(name, vector, k, **ask)]  # type: ignore[arg-type]
        return sorted(hits, key=lambda hit: (-hit.score, hit.key))[:k]

    def layouts(self, dimension: int) -> tuple[LayoutCost, ...]:
        return merged_layouts({name: member.layouts(dimension) for name, member in self._members.items()})

    def switch_s(self, dimension: int) -> float:
        return sum(member.switch_s(dimension) for member in self._members.values())

    def users(self) -> str:
        return self._locks.users()

    def serving_locator(self, side: Side) -> str:  # noqa: ARG002  # the columns that serve keep their names
        return self.target

    # --- the application's own writes -------------------------------------------------------------

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        """Write rows of any of the tables, in one transaction. Raises StoreSchemaError for one of no table."""
        by_key = {record.key: record for record in records}
        for key in by_key:
            self._named(key[0] if key else "")
        with self._db.transaction():
            for name, member, own in self._of(by_key):
                member.put([replace(by_key[name, *key], key=key) for key in own], fingerprint=fingerprint)

    def remove(self, keys: Sequence[Key]) -> None:
        with self._db.transaction():
            for _, member, own in self._of(keys):
                member.remove(own)

    # --- capture ----------------------------------------------------------------------------------

    def start_capture(self, patience: Patience) -> None:
        for member in self._members.values():
            member.start_capture(patience)

    def stop_capture(self) -> None:
        for member in self._members.values():
            member.stop_capture()

    def captured(self, limit: int, sides: Collection[Side] = BOTH_SIDES) -> list[Change]:
        changes = (
            replace(change, key=(name, *change.key))
            for name, member in self._members.items()
            for change in member.captured(limit, sides)
        )
        return sorted(changes, key=lambda change: change.number)[:limit]

    def backlog(self, side: Side | None = None) -> int:
        return sum(member.backlog(side) for member in self._members.values())

    def acknowledge(self, changes: Sequence[Change]) -> None:
        with self._guard.transaction():
            for name, member in self._members.items():
                own = [replace(each, key=each.key[1:]) for each in changes if each.key[:1] == (name,)]
                member.acknowledge(own)

    def capture_again(self, keys: Sequence[Key], side: Side) -> None:
        with self._guard.transaction():
            for _, member, own in self._of(keys):
                member.capture_again(own, side)

    def adopt(self, keys: Sequence[Key]) -> set[Key]:
        return {(name, *key) for name, member, own in self._of(keys) for key in member.adopt(own)}

    def apply_deletes(self, keys: Sequence[Key]) -> set[Key]:
        gone = {(name, *key) for name, member, own in self._of(keys) for key in member.apply_deletes(own)}
        return gone | {key for key in keys if key[0] not in self._members}

    # --- the sides, and what is not current on them -----------------------------------------------

    def new_space(self) -> str | None:
        """Return the space of the new sides that are there; another one than the first's is named with its table."""
        spaces = {name: space for name, member in self._members.items() if (space := member.new_space()) is not None}
        first = next(iter(spaces.values()), None)
        return next((f"{space} ({name})" for name, space in spaces.items() if space != first), first)

    def counts(self) -> Counts:
        return merged_counts(member.counts() for member in self._members.values())

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        """Divide all keys; a range that begins in one table and ends in the next has what there is between."""
        ends = [
            (name, *own.hi)
            for name, member in self._members.items()
            for own in member.key_ranges(rows_each) if own.hi is not None
        ]  # fmt: skip
        return [KeyRange(lo, hi) for lo, hi in pairwise([None, *ends])]

    def outdated(self, side: Side, among: Sequence[Key] | KeyRange = EVERYTHING, limit: int | None = None) -> list[Row]:
        if isinstance(among, KeyRange):
            return self._taken(among, limit, lambda member, own, left: member.outdated(side, own, left))
        rows = (_row(name, row) for name, member, own in self._of(among) for row in member.outdated(side, own, limit))
        return list(islice(rows, limit))

    def count_outdated(self, side: Side, max_keys: int = 10, *, with_vector: bool = False) -> Finding:
        found = (
            (name, member.count_outdated(side, max_keys, with_vector=with_vector))
            for name, member in self._members.items()
        )
        return merged_finding(found, max_keys)

    def orphans(self, limit: int) -> list[Key]:
        found = ((name, *key) for name, member in self._members.items() for key in member.orphans(limit))
        return list(islice(found, limit))

    def check_integrity(self, dimension: int, max_keys: int = 10) -> Examination:
        found = {name: member.check_integrity(dimension, max_keys) for name, member in self._members.items()}
        return merged_examination(found, max_keys)

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        drawn = self._drawn(num_rows, PgVectorStore.sample_vectors)
        return [(_row(name, row), vector) for name, (row, vector) in drawn]

    # --- what a migration changes -----------------------------------------------------------------

    def check_new_side(self, dimension: int, outputs: Outputs = DENSE) -> None:
        """Raise StoreSchemaError, which names them, for tables that cannot have one, or are not as most others."""
        reasons = {
            name: _refusal(partial(member.check_new_side, dimension, outputs)) for name, member in self._members.items()
        }
        sizes = {name: member.shape().dimension for name, member in self._members.items()}
        known = [size for size in sizes.values() if size is not None]
        usual = max(sorted(set(known)), key=known.count, default=None)
        for name, size in sizes.items():
            if size not in (None, usual):
                reasons[name] = f"its vectors have {size} numbers, where most have {usual}"
        refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
        if refused:
            what = f"{len(refused)} of {len(self._members)} tables of {self.target} do not fit: {named(refused)}"
            raise StoreSchemaError(what, "Mend that, or name the others alone in [store] collections.")

    def prepare(self, dimension: int, fingerprint: str, outputs: Outputs = DENSE) -> None:
        """Make the new sides that are missing. Raises StoreSchemaError for a table that has come after a switch."""
        shapes = {name: member.shape() for name, member in self._members.items()}
        lacking = [name for name, shape in shapes.items() if not shape.has_other_side]
        if len(lacking) == len(shapes):
            self._db.execute("DELETE FROM vecferry.members WHERE of_group = %s", [self.target])  # of an ended migration
        elif lacking and any(shape.has_other_side and shape.serving is Side.NEW for shape in shapes.values()):
            raise StoreSchemaError(*_left_behind(lacking, self.target))
        for name, member in self._members.items():
            member.prepare(dimension, fingerprint, outputs)
            if name in lacking:
                self._db.execute(
                    "INSERT INTO vecferry.members (target, of_group, not_null) VALUES (%s, %s, %s)"
                    " ON CONFLICT (target) DO UPDATE SET of_group = excluded.of_group, not_null = excluded.not_null",
                    [member.target, self.target, shapes[name].is_required],
                )

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        by_key = {new.key: new for new in vectors}
        with self._guard.transaction():
            written = {
                (name, *key)
                for name, member, own in self._of(by_key)
                for key in member.write(side, [replace(by_key[name, *key], key=key) for key in own])
            }
            then(written)
        return written

    def build_indexes(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(member.build_indexes() for member in self._members.values()))

    def switch(self, to: Side) -> None:
        for member in self._members.values():
            member.switch(to)

    def restore_constraints(self, patience: Patience, *, required: bool) -> bool:
        """Do so for each table; a vector is required where it was in that table."""
        rows = self._db.rows("SELECT target FROM vecferry.members WHERE of_group = %s AND not_null", [self.target])
        were_required = {target for (target,) in rows}
        restored = [
            member.restore_constraints(patience, required=required and member.target in were_required)
            for member in self._members.values()
        ]
        wanted = [member.target in were_required for member in self._members.values()]
        return required and all(is_so or not is_wanted for is_so, is_wanted in zip(restored, wanted, strict=True))

    def drop(self, side: Side) -> None:
        for member in self._members.values():
            member.drop(side)

    def replace_old(self) -> None:
        for member in self._members.values():
            member.replace_old()

    def transaction(self) -> AbstractContextManager[None]:
        return self._guard.transaction()

    def exclusively(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """Run `work` in one transaction while nobody else uses any of the tables; readers wait too."""
        try:
            return self._locks.alone(work, patience)
        except StoreSchemaError:
            for member in self._members.values():
                member.refuse_changed()  # which can say more
            raise

    def pause_left_s(self) -> float:
        return self._locks.pause_left_s()

    def runner(self, lease_s: float) -> AbstractContextManager[None]:
        return self._guard.holding(self.target, lease_s)


def _row(member: str, row: Row) -> Row:
    return replace(row, key=(member, *row.key))


def _refusal(check: Callable[[], None]) -> str:
    """Return what it is refused with; empty if it is not."""
    try:
        check()
    except VecferryError as exc:
        return exc.message
    return ""


def _left_behind(tables: Collection[str], group: str) -> tuple[str, str]:
    """Return what is said of tables that a switch would leave behind, and what to type."""
    what = f"{named(list(tables))} of {group} came since the migration began, and has no new side"
    remedy = "Before the switch: vecferry migrate start. After it: vecferry migrate rollback, then start, and cut over"
    return what, f"{remedy} again; or name the tables that are meant in [store] collections."
