"""Which rows the application writes: three triggers note their keys in an outbox, `vecferry.changes`.

The triggers fire for every writer: they are of the kind ALWAYS, so also for what a subscription or
`session_replication_role = replica` writes, and their function has the rights of whoever installed
it, so that a writer needs none on our schema. A write that is rolled back takes its note with it.
A changed row is noted only if its text or its key changed, or a vector whose checksum did not change
with it, as everybody's but ours. TRUNCATE is not noted: it leaves no row, and so nothing to be done.

Where texts are made of other tables too, a trigger on each notes that something was written there, whatever it was.
So is a write whose key cannot be read, since its column has another name by now. After such a note all rows are
compared, and those that are not current noted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from psycopg import sql

from vecferry.errors import CaptureLost
from vecferry.stores.ledger import LEFT_THE_PART
from vecferry.stores.pgvector.catalogue import Columns
from vecferry.stores.pgvector.checksum import digest_sql
from vecferry.stores.pgvector.connection import KEY_SETTINGS, Fragment, identifier, literal, verbatim
from vecferry.stores.pgvector.outbox import NO_KEY
from vecferry.stores.pgvector.partitions import leaves, relations
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.pgvector.sql_source import OtherTable
from vecferry.stores.pgvector.table import SCHEMA, Table, target_digest
from vecferry.stores.pgvector.table_sql import key_text_sql
from vecferry.stores.values import Change, Key, Patience, Side, shown

OPERATIONS = ("insert", "update", "delete")
ALWAYS = "A"
PARTITIONS = "\npartitions: "
"""What stands between the mark and the numbers of partitions, in the comment of a capture's function."""
EXCHANGE = "vecferry.exchange"
"""A setting that has the number of a transaction while a switch writes the vectors of a part, which is no news."""

SAME_IN_EVERY_SESSION = {"smallint", "integer", "bigint", "text", "uuid", "boolean", "numeric"}
"""Types of keys that are written the same whatever the settings; each setting costs a writer a microsecond."""


@dataclass(frozen=True)
class CaptureNames:
    """What a capture is called in the database; two vector columns of one table have two captures."""

    function: str
    triggers: tuple[str, ...]
    others_function: str
    others_trigger: str
    truncate_trigger: str

    @classmethod
    def of(cls, target: str) -> CaptureNames:
        digest = target_digest(target)
        triggers = tuple(f"vecferry_{operation}_{digest}" for operation in OPERATIONS)
        others, truncate = f"vecferry_others_{digest}", f"vecferry_truncate_{digest}"
        return cls(f"capture_{digest}", triggers, f"capture_others_{digest}", others, truncate)


class PgCapture:
    """What was captured, and what of it can be done without a model."""

    def __init__(self, session: TableSession) -> None:
        self._session, self._db, self._table, self._sql = session, session.db, session.table, session.sql
        self._guard, self._locks, self._outbox = session.guard, session.locks, session.outbox
        self._ledger, self._catalogue = session.ledger, session.catalogue

    def start_capture(self, patience: Patience) -> None:
        """Capture every write from now on; waits for those that have begun, since they would go unnoticed."""
        with self._guard.transaction():
            self._ledger.install()
        if self._is_capturing():
            return
        hold = self._locks.alone if self._has_triggers() else self._locks.without_writers
        hold(self._make_triggers, patience)

    def _is_capturing(self) -> bool:
        """Return whether our triggers are all there, enabled, and of the text, key and vectors of this store."""
        names = CaptureNames.of(self._table.target)
        rows = self._db.rows(
            "SELECT t.tgrelid::bigint, t.tgname::text, t.tgenabled::text, obj_description(p.oid, 'pg_proc')"
            " FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
            " WHERE p.proname = ANY(%s) AND p.pronamespace = to_regnamespace(%s)",
            [[names.function, names.others_function], SCHEMA],
        )
        mark = _mark(self._table, self._vector_columns(self._catalogue.columns()))
        now = {
            (oid, trigger, enabled, (comment or "").partition(PARTITIONS)[0]) for oid, trigger, enabled, comment in rows
        }
        expected = {(oid, trigger, ALWAYS, mark) for oid, trigger in self._expected_triggers(names)}
        return expected <= now and all(each[2:] == (ALWAYS, mark) for each in now)

    def _expected_triggers(self, names: CaptureNames) -> set[tuple[int, str]]:
        """Return the triggers that must be there, each with the number of its table.

        The server makes those for rows on a new partition, and not those for TRUNCATE, which leave something behind at
        most that the next comparison finds.
        """
        table, columns = self._table, self._catalogue.columns()
        expected = {(part.oid, name) for part in relations(self._db, table.oid) for name in names.triggers}
        expected |= {(other.oid, names.others_trigger) for other in table.others}
        if columns.beside and not table.is_partitioned:
            expected.add((table.oid, names.truncate_trigger))
        return expected

    def _make_triggers(self) -> None:
        self._drop_triggers()
        names, table, columns = CaptureNames.of(self._table.target), self._sql.name, self._catalogue.columns()
        vectors = self._vector_columns(columns)
        mark = _mark(self._table, vectors)
        function = self._make_function(names.function, _body(self._table), mark)
        conditions = _conditions(self._table, vectors)
        for operation, trigger in zip(OPERATIONS, names.triggers, strict=True):
            event = sql.SQL(operation.upper())
            self._make_trigger(trigger, event, table, _each_row(conditions.get(operation)), function)
        if self._table.others or columns.beside:
            function = self._make_function(names.others_function, _body_for_others(self._table), mark)
        if columns.beside:
            for part in leaves(self._db, self._table.oid):
                self._make_trigger(names.truncate_trigger, sql.SQL("TRUNCATE"), part.identifier, sql.SQL(""), function)
        for other in self._table.others:
            self._capture_other(names, other, function)
        self._remember_partitions()

    def _capture_other(self, names: CaptureNames, other: OtherTable, function: sql.Identifier) -> None:
        """Capture the writes to another table; one with partitions for each row, since those may be written to."""
        name, writes = verbatim(other.name), sql.SQL("INSERT OR UPDATE OR DELETE")
        if not other.is_partitioned:
            everything = writes + sql.SQL(" OR TRUNCATE")
            self._make_trigger(names.others_trigger, everything, name, sql.SQL(""), function)
            return
        self._make_trigger(names.others_trigger, writes, name, sql.SQL("FOR EACH ROW"), function)
        for part in leaves(self._db, other.oid):
            self._make_trigger(names.truncate_trigger, sql.SQL("TRUNCATE"), part.identifier, sql.SQL(""), function)

    def _make_function(self, name: str, body: str, mark: str) -> sql.Identifier:
        function = identifier(SCHEMA, name)
        self._db.execute(_create_function(function, self._table, body))
        self._db.execute(sql.SQL("REVOKE ALL ON FUNCTION {}() FROM PUBLIC").format(function))
        self._db.execute(sql.SQL("COMMENT ON FUNCTION {}() IS {}").format(function, literal(mark)))
        return function

    def _make_trigger(
        self, name: str, event: Fragment, table: Fragment, each: Fragment, function: sql.Identifier
    ) -> None:
        """Make a trigger that fires for every writer. each: for each row, and under which condition."""
        create = sql.SQL("CREATE TRIGGER {} AFTER {} ON {} {} EXECUTE FUNCTION {}()")
        self._db.execute(create.format(identifier(name), event, table, each, function))
        self._db.execute(sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(table, identifier(name)))

    def _vector_columns(self, columns: Columns) -> list[VectorColumn]:
        """Return the vectors of both sides that have a checksum beside them, as far as they are in the table; none
        before `prepare`.
        """
        if columns.beside:
            return [VectorColumn(self._table.vector, self._table.kind, None)]
        return [
            VectorColumn(name, columns.by_name[name].kind, columns.checksum(side))
            for side in Side
            if columns.is_compared(side)
            for name in (columns.required(side), columns.heads(side).sparse, columns.heads(side).colbert)
            if name is not None
        ]

    def stop_capture(self) -> None:
        """Remove the capture. Waits for whoever uses the table, and raises Locked in the end; inside
        `exclusively`, the patience of that holds. A table that was dropped is no obstacle.
        """
        if self._has_triggers() and not self._db.in_transaction:
            self._locks.alone(self._unmake, Patience())
        else:
            with self._guard.transaction():
                self._unmake()

    def _has_triggers(self) -> bool:
        (exists,) = self._db.row(
            "SELECT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = %s::oid"
            " AND p.proname = %s AND p.pronamespace = to_regnamespace(%s))",
            [self._table.oid, CaptureNames.of(self._table.target).function, SCHEMA],
        )
        return bool(exists)

    def _unmake(self) -> None:
        self._drop_triggers()
        self._outbox.clear()

    def _drop_triggers(self) -> None:
        (schema,) = self._db.row("SELECT to_regnamespace(%s) IS NOT NULL", [SCHEMA])
        if schema:
            names = CaptureNames.of(self._table.target)
            for name in (names.function, names.others_function):
                self._db.execute(sql.SQL("DROP FUNCTION IF EXISTS {}() CASCADE").format(identifier(SCHEMA, name)))

    # --- partitions that come and go --------------------------------------------------------------

    def _remember_partitions(self) -> None:
        """Note in the comment of the capture's function which partitions are looked after, below its mark."""
        if self._table.is_partitioned:
            numbers = sorted(part.oid for part in leaves(self._db, self._table.oid))
            mark = _mark(self._table, self._vector_columns(self._catalogue.columns()))
            function = identifier(SCHEMA, CaptureNames.of(self._table.target).function)
            comment = literal(mark + PARTITIONS + " ".join(map(str, numbers)))
            self._db.execute(sql.SQL("COMMENT ON FUNCTION {}() IS {}").format(function, comment))

    def _remembered_partitions(self) -> set[int]:
        name = CaptureNames.of(self._table.target).function
        query = "SELECT obj_description(to_regproc(%s), 'pg_proc')"
        (comment,) = self._db.row(query, [f"{SCHEMA}.{name}"])
        return {int(number) for number in (comment or "").partition(PARTITIONS)[2].split()}

    def _note_partitions(self) -> None:
        """Note the rows of a partition that was attached, which fires no trigger, as far as they are not current.

        Of one that was detached, or dropped, what is left in a side table. Only one process at a time does that.
        """
        if {part.oid for part in leaves(self._db, self._table.oid)} == self._remembered_partitions():
            return
        with self._guard.transaction(), self._session.pinned():
            self._db.rows("SELECT pg_advisory_xact_lock(%s)", [self._table.oid])
            known, columns = self._remembered_partitions(), self._catalogue.columns()
            key = key_text_sql("t", self._table)
            for part in leaves(self._db, self._table.oid):
                rows = sql.SQL("{} AS t").format(self._sql.with_sides(columns.beside, part.identifier))
                for side in filter(columns.is_compared, Side) if part.oid not in known else ():
                    self._outbox.add_where(rows, key, self._session.outdated(side, columns), side)
            self._note_left_beside(columns)
            self._remember_partitions()

    def _note_left_beside(self, columns: Columns) -> None:
        """Note what a side table has of rows that are gone."""
        if columns.beside:
            left, without_row = sql.SQL("{} AS s").format(self._sql.side_table), self._sql.without_row()
            self._outbox.add_where(left, self._sql.side_key_text(), without_row, columns.serving.other)

    def captured(self, limit: int, sides: Collection[Side]) -> list[Change]:
        """Return the oldest notes; one without a key becomes notes of the rows that are not current.

        Raises StoreSchemaError if the table is not as it was, CaptureLost if writes may be missing among the notes.
        """
        if self._ledger.is_captured(self._session.migration):
            self._refuse_unnoted()
            if self._table.is_partitioned:
                self._note_partitions()
        changes = self._outbox.oldest(limit, sides)
        if not any(change.key == () for change in changes):
            return changes
        with self._guard.transaction(), self._session.pinned():
            notes, columns, key = self._outbox.without_key(), self._catalogue.columns(), key_text_sql("t", self._table)
            rows = sql.SQL("{} AS t").format(self._session.with_sides(columns))
            for side in filter(columns.is_compared, Side):
                self._outbox.add_where(rows, key, self._session.outdated(side, columns), side)
            self._note_left_beside(columns)
            self._outbox.remove(notes)
        return self._outbox.oldest(limit, sides)

    def _refuse_unnoted(self) -> None:
        self._catalogue.refuse_changed()
        if not self._is_capturing():
            raise CaptureLost(self._table.full_name, "Run start again: it makes them anew, and compares every row.")

    def acknowledge(self, changes: Sequence[Change]) -> None:
        if changes:
            with self._guard.transaction():
                self._outbox.remove(changes)

    def capture_again(self, keys: Sequence[Key], side: Side) -> None:
        if keys:
            with self._guard.transaction():
                self._outbox.add(keys, side)

    def adopt(self, keys: Sequence[Key]) -> set[Key]:
        """Take the old vectors of these rows for right.

        The checksum of these rows' old vectors is noted; the vectors stay as they are.
        """
        if not keys:
            return set()
        with self._guard.transaction():
            self._locks.lock("ROW EXCLUSIVE")
            if self._ledger.was_switched(
                self._session.migration
            ):  # just now: the old side is to be followed from now on
                self._outbox.add(keys, Side.OLD)
                return set()
            columns = self._catalogue.columns()
            among, params = self._sql.among(keys)
            outdated = self._session.outdated(Side.OLD, columns)
            condition, of = sql.SQL("{} AND {}").format(among, outdated), self._session.with_sides(columns)
            query = sql.SQL(
                "WITH late AS MATERIALIZED (SELECT {place} FROM {rows} AS t WHERE {condition}),"
                " free AS MATERIALIZED (SELECT {place} FROM {table} AS t JOIN late ON {at_late}"
                " FOR NO KEY UPDATE OF t SKIP LOCKED) {adopt}"
            ).format(
                place=self._sql.place,
                at_late=self._sql.at_place("late"),
                rows=of,
                condition=condition,
                table=self._sql.name,
                adopt=self._adopt_free(columns),
            )
            self._db.execute(query, params)
            left_out = [row.key for row in self._session.rows(condition, params, of=of)]
            self._outbox.add(left_out, Side.OLD)
        return set(keys) - set(left_out)

    def _adopt_free(self, columns: Columns) -> sql.Composed:
        """Return what adopts the rows whose places are in `free`."""
        adoption, table = self._session.adoption(columns), self._sql.name
        if columns.beside:
            rows = sql.SQL("{} AS t JOIN free ON {}").format(table, self._sql.at_place("free"))
            return self._sql.upsert_sides(adoption, [self._sql.keys], rows)
        assigned = [sql.SQL("{} = {}").format(identifier(name), value) for name, value in adoption.items()]
        return sql.SQL("UPDATE {} AS t SET {} FROM free WHERE {}").format(
            table, sql.SQL(", ").join(assigned), self._sql.at_place("free")
        )

    def apply_deletes(self, keys: Sequence[Key]) -> set[Key]:
        """Return the keys that have no row any more.

        A row goes with both its vectors; its other columns are one for both sides. In a side table what is left of it
        is deleted here.
        """
        if not keys:
            return set()
        self._forget_letters(keys)
        with self._guard.transaction(), self._session.pinned():
            if (columns := self._catalogue.columns()).beside:
                deleted = self._delete_beside(keys)
                self._outbox.add(sorted(deleted - self._without_row(deleted)), columns.serving.other)
                self._name_leavers(sorted(deleted), columns)
            return self._without_row(keys)

    def _delete_beside(self, keys: Sequence[Key]) -> set[Key]:
        """Delete the rows of the side table that have none in the table, and return their keys."""
        among, params = self._sql.among(keys, "s")
        query = sql.SQL(
            "WITH free AS MATERIALIZED (SELECT s.ctid AS place FROM {sides} AS s WHERE {among} AND {without_row}"
            " FOR UPDATE SKIP LOCKED)"  # another process of ours may be at the same rows
            " DELETE FROM {sides} AS s USING free WHERE s.ctid = free.place RETURNING {keys}"
        ).format(
            sides=self._sql.side_table,
            among=among,
            without_row=self._sql.without_row(),
            keys=self._sql.side_keys_as_text,
        )
        return {tuple(key) for key in self._db.rows(query, params)}

    def _name_leavers(self, keys: Sequence[Key], columns: Columns) -> None:
        """Leave an event with the rows that are of another part by now and took a new vector along: they are not ours
        to write.
        """
        record, where = self._ledger.find(self._session.migration), self._table.where
        if where is None or record is None or columns.serving is Side.OLD or not keys:
            return
        among, params = self._sql.among(keys)
        query = sql.SQL("SELECT {} FROM {} AS t WHERE {} AND {} IS NOT TRUE AND {} ORDER BY {}").format(
            self._sql.keys_as_text,
            self._sql.name,
            among,
            self._sql.in_part,
            self._sql.has_length(self._table.vector, record.spec.dimension),
            self._sql.keys,
        )
        if left := [tuple(key) for key in self._db.rows(query, params)]:
            self._ledger.add_event(record, LEFT_THE_PART, {"keys": shown(left)})

    def _without_row(self, keys: Collection[Key]) -> set[Key]:
        """Return those of the keys that have no row now."""
        if not keys:
            return set()
        names = [identifier(f"k{i}") for i in range(len(self._table.key))]
        parts = [sql.SQL("given.{}").format(name) for name in names]
        query = sql.SQL(
            "SELECT {parts} FROM unnest({arrays}) AS given({names})"
            " WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same})"
        ).format(
            parts=sql.SQL(", ").join(parts),
            arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
            names=sql.SQL(", ").join(names),
            table=self._sql.rows,
            same=self._sql.same_key(self._sql.cast(parts)),
        )
        return {tuple(key) for key in self._db.rows(query, [list(part) for part in zip(*keys, strict=True)])}

    def _forget_letters(self, keys: Sequence[Key]) -> None:
        """Forget dead letters whose row is gone, takes none, has another text, or has got its vector in another way.

        One of the side that serves outlives the text: by it alone is known that the row takes a vector.
        """
        if not self._ledger.is_installed():
            return
        among, params = self._sql.among(keys)
        with self._guard.transaction(), self._session.pinned():
            columns = self._catalogue.columns()
            for side in filter(columns.is_compared, Side):
                query = sql.SQL(
                    "DELETE FROM vecferry.dead_letters AS d USING vecferry.migrations AS m"
                    " WHERE m.id = d.migration_id AND m.target = %s AND m.state NOT IN ('finalized', 'aborted')"
                    " AND d.side = %s AND d.key = ANY(%s::text[]) AND NOT EXISTS (SELECT FROM {rows} AS t"
                    " WHERE {among} AND {key} = d.key AND {vector} IS NULL AND {holds})"
                ).format(
                    rows=self._session.with_sides(columns),
                    among=among,
                    key=self._session.letter_key(),
                    vector=self._sql.column(columns.required(side)),
                    holds=self._holds(side, columns),
                )
                letters = self._session.letter_keys(keys)
                self._db.execute(query, [self._session.migration, side.value, letters, *params])

    def _holds(self, side: Side, columns: Columns) -> Fragment:
        """Return a condition: a dead letter `d` of a row without a vector on that side is still to be kept."""
        if side is columns.serving and not self._session.embed_missing:
            return sql.SQL("true")
        unembedded = self._session.is_unembedded(columns)
        return sql.SQL("{} = d.text_sha256 AND NOT {}").format(digest_sql(self._sql.text), unembedded)


@dataclass(frozen=True)
class VectorColumn:
    """A column with vectors, the name of its type, and the column with the checksum of what we wrote into it.

    checksum: None where it is in a side table; then what we write is noted too, and found to be current.
    """

    name: str
    kind: str
    checksum: str | None


def _mark(table: Table, vectors: Sequence[VectorColumn]) -> str:
    """Say what the function and the triggers were made for; another text column needs others.

    The columns keep their numbers when they change names, and so the triggers go with them through a switch.
    """
    checksums = sorted({vector.checksum or f"{vector.name} alone" for vector in vectors})
    keys = ", ".join(column.name for column in table.key)
    return f"keys of {table.target} whose {table.source.name} changed, by {keys}; {checksums}"


def _conditions(table: Table, vectors: Sequence[VectorColumn]) -> dict[str, Fragment]:
    """Return which rows are noted, by operation, where not all are: of a part, those in it before or after."""
    is_other = _is_other_row(table, vectors)
    if table.where is None:
        return {"update": is_other}
    old, new = table.where.over("OLD"), table.where.over("NEW")
    update = sql.SQL(
        "({old} IS TRUE OR {new} IS TRUE) AND ({is_other} OR {old} IS DISTINCT FROM {new})"
        " AND current_setting({exchange}, true) IS DISTINCT FROM txid_current_if_assigned()::text"
    ).format(old=old, new=new, is_other=is_other, exchange=literal(EXCHANGE))
    return {"insert": new, "update": update, "delete": old}


def _each_row(condition: Fragment | None) -> Fragment:
    return sql.SQL("FOR EACH ROW") if condition is None else sql.SQL("FOR EACH ROW WHEN ({})").format(condition)


def _is_other_row(table: Table, vectors: Sequence[VectorColumn]) -> sql.Composed:
    """Return whether the text, the key, or a vector that we did not write is another one than before.

    Byte by byte: two texts that a collation or a type takes for equal have two vectors all the same.
    """
    names = [*table.text_types, *(column.name for column in table.key)]
    conditions = [
        sql.SQL('OLD.{0}::text COLLATE "C" IS DISTINCT FROM NEW.{0}::text COLLATE "C"').format(identifier(name))
        for name in names
    ]
    return sql.SQL(" OR ").join([*conditions, *(_is_other_vector(vector, table.extension) for vector in vectors)])


def _is_other_vector(vector: VectorColumn, extension: str) -> sql.Composed:
    """Return a condition. Whoever knows checksums writes a new one with a new vector, and none with no vector."""
    by_function, by_operator = "{equal}(OLD.{vector}, NEW.{vector})", "OLD.{vector} OPERATOR(pg_catalog.=) NEW.{vector}"
    is_equal = by_operator if vector.kind.startswith("_") else by_function  # the elements of an array are compared
    is_other = sql.SQL(f"((OLD.{{vector}} IS NULL) <> (NEW.{{vector}} IS NULL) OR NOT {is_equal})").format(
        vector=identifier(vector.name), equal=identifier(extension, f"{vector.kind}_eq")
    )
    if vector.checksum is None:
        return is_other
    return sql.SQL(
        "((OLD.{checksum} IS NOT DISTINCT FROM NEW.{checksum} OR NEW.{checksum} IS NULL) AND {is_other})"
    ).format(checksum=identifier(vector.checksum), is_other=is_other)


def _create_function(name: sql.Identifier, table: Table, body: str) -> sql.Composed:
    settings = {"search_path": "pg_catalog, pg_temp"}
    if not {column.type for column in table.key} <= SAME_IN_EVERY_SESSION:
        settings |= KEY_SETTINGS
    return sql.SQL("CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {} AS {}").format(
        name,
        verbatim(" ".join(f"SET {setting} = {value}" for setting, value in settings.items())),
        literal(body),
    )


def _body_for_others(table: Table) -> str:
    """Return the code of the trigger on another table: somebody may be writing there whose rows nobody can see yet."""
    note = sql.SQL("BEGIN\n    INSERT INTO vecferry.changes (target, key) VALUES ({}, {});\n    RETURN NULL;\nEND")
    return note.format(sql.Literal(table.target), sql.Literal(NO_KEY)).as_string()


def _body(table: Table) -> str:
    """Return the trigger's code. An update notes one key, or both if the key was changed.

    Where a key cannot be read (its column was renamed, say) the write is noted without one: no write of the application
    fails because of a capture. The block with the exception writes nothing, so that it takes no transaction number.
    """
    old, new = (key_text_sql(row, table, sql.Identifier) for row in ("OLD", "NEW"))
    return (
        sql.SQL(
            "DECLARE\n"
            "    old_key text;\n"
            "    new_key text;\n"
            "BEGIN\n"
            "    BEGIN\n"
            "        IF TG_OP <> 'INSERT' THEN old_key := {old}; END IF;\n"
            "        IF TG_OP <> 'DELETE' THEN new_key := {new}; END IF;\n"
            "    EXCEPTION WHEN others THEN\n"
            "        new_key := {no_key};\n"
            "        old_key := NULL;\n"
            "    END;\n"
            "    IF new_key IS NOT NULL THEN\n"
            "        INSERT INTO vecferry.changes (target, key) VALUES ({target}, new_key);\n"
            "    END IF;\n"
            "    IF old_key <> new_key OR (old_key IS NOT NULL AND new_key IS NULL) THEN\n"
            "        INSERT INTO vecferry.changes (target, key) VALUES ({target}, old_key);\n"
            "    END IF;\n"
            "    RETURN NULL;\n"
            "END"
        )
        .format(target=sql.Literal(table.target), no_key=sql.Literal(NO_KEY), old=old, new=new)
        .as_string()
    )
