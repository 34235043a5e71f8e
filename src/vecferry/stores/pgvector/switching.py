"""How the columns of the two sides are made, change names, and are dropped.

In the layout `columns` both are the table's. In `side-table` both are the side table's, under the same names, and the
table's own column holds what that calls so too: it is written anew at each switch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from psycopg import sql

from vecferry.embeddings import DENSE, Outputs
from vecferry.errors import Locked, SpaceMismatch, StoreSchemaError
from vecferry.stores.pgvector import carrying, part_indexes
from vecferry.stores.pgvector.binary import SPARSE_DIMENSION
from vecferry.stores.pgvector.capture import EXCHANGE
from vecferry.stores.pgvector.catalogue import COMMENT_PREFIX, Columns
from vecferry.stores.pgvector.connection import (
    ConstraintViolated,
    Fragment,
    LockTimedOut,
    identifier,
    literal,
    run,
    verbatim,
)
from vecferry.stores.pgvector.indexes import (
    BUILD_MEMORY_KIB,
    BUILD_SETTINGS,
    VectorIndex,
    attach_statements,
    with_parts,
)
from vecferry.stores.pgvector.preconditions import refuse_new_side, refuse_overlap
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.pgvector.side_resolver import UNMARKED
from vecferry.stores.pgvector.table import COLBERT, NEW, OLD, REQUIRED, SCHEMA, SPARSE, suffixed
from vecferry.stores.values import Layout, Patience, Side


class PgSwitch:
    """What a migration changes of columns and indexes."""

    def __init__(self, session: TableSession) -> None:
        self._session, self._db, self._table, self._sql = session, session.db, session.table, session.sql
        self._guard, self._locks, self._catalogue = session.guard, session.locks, session.catalogue
        self._ledger = session.ledger

    # --- making the new side ----------------------------------------------------------------------

    def prepare(self, dimension: int, fingerprint: str, outputs: Outputs = DENSE) -> None:
        """Add nullable columns for the new side, which rewrites nothing; in the layout `side-table` to a table of ours.

        Sparse vectors are a `sparsevec` whose ids PostgreSQL shows from 1: token id + 1. Raises StoreSchemaError as
        `refuse_new_side` does, and for a column that is there and not ours; SpaceMismatch for a new side of another
        space.
        """
        columns = self._catalogue.columns()
        side = columns.of_side(Side.NEW) or suffixed(self._table.vector, NEW)
        existing = columns.by_name.get(side)
        if existing is not None and existing.space != fingerprint:
            raise SpaceMismatch(fingerprint, existing.space or UNMARKED, f"the new side of {self._table.target}")
        if existing is None:
            refuse_new_side(self._session, dimension, outputs)
            if columns.layout is Layout.SIDE_TABLE:
                columns = self._make_side_table(columns)
        wanted = {side: self._sized(self._table.kind, dimension)} | self._heads(dimension, outputs)
        self._refuse_foreign(wanted, columns, fingerprint)
        missing = {name: kind for name, kind in wanted.items() if name not in columns.by_name}
        checksums = {columns.checksum(each) for each in Side}
        relation = self._relation(columns)
        if missing or checksums - columns.by_name.keys():
            self._add_columns(relation, missing | dict.fromkeys(sorted(checksums), sql.SQL("bytea")))
            for name in missing:
                self._mark(relation, name, fingerprint)
        if side in missing and (settings := carrying.settings(self._db, self._table, side)):
            self._alter(verbatim(settings), relation)

    def _make_side_table(self, columns: Columns) -> Columns:
        """Make the table that holds both sides, with a copy of the vectors that serve; return the columns of now."""
        table, vector = self._table, identifier(self._table.vector)
        self._ledger.install()
        side, keys = self._sql.side_table, self._sql.side_key_names
        make = sql.SQL("CREATE TABLE {} ({}, {}) AS SELECT {}, {} FROM {} WITH NO DATA")
        self._db.execute(make.format(side, keys, vector, self._sql.key_names, vector, self._sql.name))
        changes = [sql.SQL("ADD PRIMARY KEY ({})").format(keys)]
        if storage := carrying.storage(self._db, table.oid, table.vector, table.vector):
            changes.append(sql.Composed([verbatim(storage)]))
        if (space := columns.by_name[table.vector].space) is not None:
            self._mark(side, table.vector, space)
        self._alter(sql.SQL(", ").join(changes), side)
        names = sql.SQL(", ADD COLUMN ").join(
            sql.SQL("{} bytea").format(identifier(columns.checksum(each))) for each in Side
        )
        self._alter(sql.SQL("ADD COLUMN ") + names, side)
        return self._catalogue.columns()

    def _relation(self, columns: Columns) -> sql.Identifier:
        """Return the name of the table that has the columns of both sides."""
        return self._sql.side_table if columns.beside else self._sql.name

    def _mark(self, relation: sql.Identifier, column: str, space: str) -> None:
        """Note the space of a column's vectors in its comment."""
        comment = literal(COMMENT_PREFIX + space)
        name = sql.SQL("{}.{}").format(relation, identifier(column))
        self._db.execute(sql.SQL("COMMENT ON COLUMN {} IS {}").format(name, comment))

    def _sized(self, kind: str, dimension: int) -> sql.Composed:
        return sql.SQL("{}({})").format(self._sql.type_name(kind), sql.Literal(dimension))

    def _heads(self, dimension: int, outputs: Outputs) -> dict[str, sql.Composed]:
        """Return column and type of each head besides the dense one."""
        vector, heads = self._table.vector, {}
        if Outputs.SPARSE in outputs:
            heads[suffixed(vector, SPARSE)] = self._sized("sparsevec", SPARSE_DIMENSION)
        if Outputs.COLBERT in outputs:
            heads[suffixed(vector, COLBERT)] = self._sized("halfvec", dimension) + sql.SQL("[]")
        return heads

    def _refuse_foreign(self, wanted: dict[str, sql.Composed], columns: Columns, fingerprint: str) -> None:
        for name in wanted:
            existing = columns.by_name.get(name)
            if existing is not None and existing.space != fingerprint:
                what = f"{self._table.full_name} has a column {name} already"
                raise StoreSchemaError(what, "Rename or drop it.")

    def _add_columns(self, relation: sql.Identifier, kinds: Mapping[str, Fragment]) -> None:
        additions = [
            sql.SQL("ADD COLUMN IF NOT EXISTS {} {}").format(identifier(name), kind) for name, kind in kinds.items()
        ]
        self._alter(sql.SQL(", ").join(additions), relation)

    def build_indexes(self) -> tuple[str, ...]:
        """Build the new side's indexes, and return their names.

        Writers go on; the build waits for transactions older than itself to end.
        """
        missing = self._catalogue.missing_indexes()
        if missing:
            self._size_builds()
            columns, names = self._catalogue.columns(), (self._table.vector, suffixed(self._table.vector, NEW))
            lengths = self._lengths(columns, *names)
        for index in missing:
            if columns.beside:
                statement = index.create_statement(index.new_name, names, lengths, self._sql.side_table)
                self._build(identifier(SCHEMA, index.new_name), statement)
            elif index.is_whole:
                self._build_parts(index, names, lengths)
            else:
                statement = index.create_statement(index.new_name, names, lengths)
                self._build(identifier(index.schema, index.new_name), statement)
        return (*(index.new_name for index in missing), *self._build_pending())

    def _build(self, name: sql.Identifier, statement: sql.Composed) -> None:
        """Build one index beside writers, in the place of one that is half-built."""
        self._guard.check()
        self._db.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(name))
        self._db.execute(statement)

    def _build_parts(self, index: VectorIndex, names: tuple[str, str], lengths: tuple[int, int]) -> None:
        """Build the index of each partition beside writers, and then, for a moment without them, the whole of these.

        The server builds no index on a partitioned table concurrently. A partition that comes meanwhile gets its own
        from the server if the whole is there, and is built in the next round if not.
        """
        while self._is_missing(index):
            for part in self._loose_parts(index, names):
                statement = part.create_statement(part.new_name, names, lengths)
                self._build(identifier(part.schema, part.new_name), statement)
            self._locks.alone(partial(self._join_parts, index, names, lengths), Patience())

    def _is_missing(self, index: VectorIndex) -> bool:
        return index.oid in {each.oid for each in self._catalogue.missing_indexes()}

    def _loose_parts(self, index: VectorIndex, names: tuple[str, str]) -> list[VectorIndex]:
        """Return the indexes of partitions whose like is not valid yet."""
        valid = {(twin.relation, twin.name) for twin in self._catalogue.all_indexes(names[1]) if twin.valid}
        return [part for part in self._unjoined(index, names) if (part.relation, part.new_name) not in valid]

    def _unjoined(self, index: VectorIndex, names: tuple[str, str]) -> list[VectorIndex]:
        """Return the indexes of partitions whose like is no part of the like of the whole."""
        twins, whole = self._catalogue.all_indexes(names[1]), (index.relation, index.new_name)
        joined = {
            part.relation
            for twin in twins if (twin.relation, twin.name) == whole
            for part in with_parts(twin, twins)
        }  # fmt: skip
        family = with_parts(index, self._catalogue.all_indexes(names[0]))
        return [part for part in family if not part.is_whole and part.relation not in joined]

    def _join_parts(self, index: VectorIndex, names: tuple[str, str], lengths: tuple[int, int]) -> None:
        """Make the index of a partitioned table of those of its partitions; one that is not valid is left for later."""
        twins = {
            (twin.relation, twin.name) for twin in self._catalogue.all_indexes(names[1]) if twin.valid or twin.is_whole
        }
        parts = [part for part in self._unjoined(index, names) if (part.relation, part.new_name) in twins]
        wholes = [each for each in with_parts(index, self._catalogue.all_indexes(names[0])) if each.is_whole]
        for whole in wholes:
            if (whole.relation, whole.new_name) not in twins:
                self._db.execute(whole.create_statement(whole.new_name, names, lengths))
        family = [*wholes, *parts]
        for statement in attach_statements(family, {each.oid: each.new_name for each in family}):
            self._db.execute(statement)

    def _build_pending(self) -> tuple[str, ...]:
        """Build the part's indexes that a switch has dropped, beside all writers, and return their names."""
        if pending := self._catalogue.pending_indexes():
            self._size_builds()
        for index in pending:
            name = identifier(self._table.schema, index.name)
            self._build(name, sql.Composed([verbatim(index.statement)]))
            if index.comment is not None:
                self._db.execute(sql.SQL("COMMENT ON INDEX {} IS {}").format(name, literal(index.comment)))
        return tuple(index.name for index in pending)

    def _lengths(self, columns: Columns, before: str, after: str) -> tuple[int, int]:
        """Return how many numbers the vectors of two columns have; 0 where there are none."""
        return self._session.length(columns, before) or 0, self._session.length(columns, after) or 0

    def _size_builds(self) -> None:
        """Set the memory of index builds: a graph that outgrows maintenance_work_mem is finished many times slower.

        A parallel build would put that memory into /dev/shm, which has 64 MiB in a container, and fail
        with "could not resize shared memory segment"; so there are no workers, and the memory is the
        process's own. A server can spare once more what it was given as shared_buffers, which by custom
        is a quarter of the machine; it takes only what the graph needs. What is set higher stays.
        """
        self._db.execute("SET max_parallel_maintenance_workers = 0")
        self._db.rows(
            f"SELECT set_config('maintenance_work_mem', {BUILD_MEMORY_KIB}::text || 'kB', false) FROM {BUILD_SETTINGS}"  # noqa: S608  # ours
        )

    # --- changing places --------------------------------------------------------------------------

    def switch(self, to: Side) -> None:
        """Let the vectors of that side serve, by exchanging the columns' names and what stands on them.

        Sparse and ColBERT columns are of the new side alone, and keep their names.
        """
        vector, columns = self._table.vector, self._catalogue.columns()
        comes, goes = (NEW, OLD) if to is Side.NEW else (OLD, NEW)
        if self._table.where is not None:
            self._exchange(to, columns, suffixed(vector, comes), suffixed(vector, goes))
            return
        if columns.beside:
            self._refill(columns, suffixed(vector, comes), suffixed(vector, goes))
            return
        renames = self._index_renames(came_from=comes, goes_to=goes)
        incoming = suffixed(vector, comes)
        handover = carrying.handover(self._db, self._table, incoming)
        run(self._db, handover.before)
        if to is Side.NEW:
            self._allow_nulls(columns)  # so that no row needs an old vector
        self._rename_columns(self._sql.name, (vector, suffixed(vector, goes)), (incoming, vector))
        self._rename_indexes(renames)
        self._carry_comments(renames)
        run(self._db, handover.after)

    def _allow_nulls(self, columns: Columns) -> None:
        if columns.by_name[self._table.vector].is_required:
            self._alter(sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(identifier(self._table.vector)))
        self._drop_constraint()

    def _refill(self, columns: Columns, comes: str, goes: str) -> None:
        """Let the columns of the side table exchange their names, and the server write the table's own column anew.

        The vectors that serve, which are the table's alone until then, are first brought to the side table as they are,
        whoever has written them. The column keeps its place, its number, its privileges and its statistics target.
        """
        table, vector = self._table, self._table.vector
        assert columns.side_oid is not None, "there is a side table"
        self._locks.lock_side_table()
        lengths = self._lengths(columns, vector, comes)
        self._copy_serving(columns)
        self._rename_columns(self._sql.side_table, (vector, goes), (comes, vector))
        indexes = self._catalogue.all_indexes(vector)
        handover = carrying.refilling(self._db, table, columns.side_oid)
        run(self._db, handover.before)
        self._drop_indexes(indexes)
        self._allow_nulls(columns)
        self._db.execute("SET CONSTRAINTS ALL IMMEDIATE")  # a table with deferred ones to be looked at takes no change
        self._take_from_side_table(columns.side_oid)
        run(self._db, handover.after)
        self._size_builds()
        self._make_indexes(indexes, vector, lengths)

    def _drop_indexes(self, indexes: Sequence[VectorIndex]) -> None:
        """Drop indexes; those that are parts of others go with these."""
        for index in indexes:
            if index.parent is None:
                self._db.execute(sql.SQL("DROP INDEX {}").format(index.identifier))

    def _make_indexes(self, indexes: Sequence[VectorIndex], vector: str, lengths: tuple[int, int]) -> None:
        """Make indexes again that were dropped, with their parts, names and comments; in a transaction."""
        for index in indexes:
            self._db.execute(index.create_statement(index.name, (vector, vector), lengths))
            if index.comment is not None:
                self._db.execute(index.comment_statement())
        for statement in attach_statements(indexes, {index.oid: index.name for index in indexes}):
            self._db.execute(statement)

    @property
    def needs_table(self) -> bool:
        """Whether a switch changes more than rows, so that nobody may use the table meanwhile."""
        return self._table.where is None or bool(self._catalogue.own_indexes())

    def _exchange(self, to: Side, columns: Columns, comes: str, goes: str) -> None:
        """Let the columns of the side table exchange their names, and write the vectors of the part's rows.

        Others go on writing: rows that there are now are locked until the end, and one that comes meanwhile, whose
        vector is not known to be current on that side, keeps what it has and is noted. So no vector is lost, and none
        of another text is put in its place. An index of the part alone, which takes neither length beside the other,
        is dropped, and noted: a transaction cannot build it, which still sees the rows that it has replaced.
        """
        vector = self._table.vector
        if to is Side.NEW:
            refuse_overlap(self._session)  # of rows that have come since the beginning
        self._locks.lock_side_table()
        lengths = self._lengths(columns, vector, comes)
        own, pending = self._catalogue.own_indexes(), self._catalogue.pending_indexes()
        anew = [part_indexes.PendingIndex.like(index, vector, lengths) for index in own]
        lock = sql.SQL("SELECT count(*) FROM (SELECT FROM {} AS t WHERE {} FOR NO KEY UPDATE) AS locked")
        self._db.rows(lock.format(self._sql.name, self._sql.in_part))
        self._copy_serving(columns)
        self._drop_indexes(own)
        self._put_in_place(comes, self._known(to, columns), columns)
        self._rename_columns(self._sql.side_table, (vector, goes), (comes, vector))
        anew += [index.over(vector, lengths) for index in pending]
        noted = literal(part_indexes.as_comment(anew))
        self._db.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(self._sql.side_table, noted))

    def _known(self, side: Side, columns: Columns) -> sql.Composed:
        """Return a condition: what the row has on that side, a vector or none, is what it is to have there."""
        outdated, dead_letter = self._session.outdated(side, columns), self._session.has_dead_letter(side)
        return sql.SQL("(NOT ({}) OR {})").format(outdated, dead_letter)

    def _put_in_place(self, comes: str, known: Fragment, columns: Columns) -> None:
        """Write what the side table has into the rows of which that is true. Raises StoreSchemaError where one would
        have no vector and has to.
        """
        incoming, rows = self._sql.column(comes), self._session.with_sides(columns)
        if columns.by_name[self._table.vector].is_required:
            count = sql.SQL("SELECT count(*) FROM {} AS t WHERE {} IS NULL AND {}").format(rows, incoming, known)
            if (without := self._db.row(count)[0]) > 0:
                what = (
                    f"{without} rows would have no vector, and {self._table.full_name}.{self._table.vector} is NOT NULL"
                )
                raise StoreSchemaError(what, "Repair their texts (vecferry migrate retry), or remove the rows.")
        self._db.rows("SELECT set_config(%s, txid_current()::text, true)", [EXCHANGE])
        self._db.execute(
            sql.SQL(
                "WITH known AS MATERIALIZED (SELECT t.ctid AS place, {incoming} AS vector FROM {rows} AS t"
                " WHERE {known} AND NOT ({incoming} IS NULL AND {serving} IS NULL))"
                " UPDATE {table} AS t SET {vector} = known.vector FROM known WHERE t.ctid = known.place"
            ).format(
                incoming=incoming,
                rows=rows,
                known=known,
                serving=self._sql.column(self._table.vector),
                table=self._sql.name,
                vector=identifier(self._table.vector),
            )
        )

    def _copy_serving(self, columns: Columns) -> None:
        """Leave in the side table what the table has, for a column that is written anew keeps nothing.

        Vectors of another length than those that serve, which a shared table takes, are noted and of no use.
        """
        table, vector = self._table, identifier(self._table.vector)
        values: dict[str, Fragment] = {table.vector: self._sql.column(table.vector)}
        if columns.serving is Side.OLD and not self._ledger.was_switched(self._session.migration):
            values = self._session.adoption(columns)
        rows = sql.SQL(
            "{table} AS t LEFT JOIN {sides} AS s ON {same} WHERE {fits}"
            " AND ((s.{vector} IS NULL) <> (t.{vector} IS NULL) OR NOT {equal}(s.{vector}, t.{vector}))"
        ).format(
            table=self._sql.rows,
            sides=self._sql.side_table,
            same=self._sql.same_row(),
            fits=self._fits(columns),
            vector=vector,
            equal=identifier(table.extension, f"{table.kind}_eq"),
        )
        self._db.execute(self._sql.upsert_sides(values, [self._sql.keys], rows))

    def _fits(self, columns: Columns) -> Fragment:
        """Return a condition: the side table takes the row's vector."""
        length = columns.by_name[self._table.vector].dimension
        if self._table.where is None or length is None:
            return sql.SQL("true")
        return sql.SQL("coalesce({}, true)").format(self._sql.has_length(self._table.vector, length))

    def _take_from_side_table(self, side_table: int) -> None:
        """Write the table's column anew, with the vectors that the side table has under its name.

        The server takes no subquery there, but a function that looks each of them up.
        """
        table, vector = self._table, identifier(self._table.vector)
        (kind,) = self._db.row(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::oid AND attname = %s",
            [side_table, table.vector],
        )
        function = identifier(SCHEMA, f"vector_{table.digest}")
        types = sql.SQL(", ").join(verbatim(column.type) for column in table.key)
        places = [sql.SQL(f"${number}") for number in range(1, len(table.key) + 1)]
        body = sql.SQL("SELECT s.{} FROM {} AS s WHERE {}").format(
            sql.Identifier(table.vector), sql.Identifier(SCHEMA, table.side_table), self._sql.same_key(places, "s")
        )
        create = sql.SQL("CREATE FUNCTION {}({}) RETURNS {} LANGUAGE sql STABLE AS {}")
        kind_name = self._sql.type_name(table.kind)
        self._db.execute(create.format(function, types, kind_name, literal(body.as_string().replace("%%", "%"))))
        change = sql.SQL("ALTER COLUMN {} TYPE {} USING {}({})").format(
            vector, verbatim(kind), function, self._sql.key_names
        )
        storage = carrying.storage(self._db, side_table, table.vector, table.vector)
        self._alter(sql.SQL(", ").join([change, *([verbatim(storage)] if storage else [])]))
        self._db.execute(sql.SQL("DROP FUNCTION {}({})").format(function, types))

    def restore_constraints(self, patience: Patience, *, required: bool) -> bool:
        """Validate constraints, which holds up nobody; a row that does not keep to one leaves it as it is.

        Those of a shared table were never taken away; the indexes of the part are built.
        """
        if self._table.where is not None:
            self._build_in_time(patience)
            return required
        for name in self._catalogue.constraints_to_validate():
            with suppress(ConstraintViolated):
                self._alter(sql.SQL("VALIDATE CONSTRAINT {}").format(identifier(name)))
        return required and self._require_vectors(patience)

    def _build_in_time(self, patience: Patience) -> None:
        """Build what is pending, unless older transactions go on for longer than others may wait. Raises Locked."""
        self._db.rows("SELECT set_config('lock_timeout', %s, false)", [f"{round(1000 * patience.max_pause_s)}ms"])
        try:
            self._build_pending()
        except LockTimedOut as exc:
            raise Locked(f"the build of an index on {self._table.full_name}", self._locks.users()) from exc
        finally:
            self._db.rows("SELECT set_config('lock_timeout', '0', false)")

    def _require_vectors(self, patience: Patience) -> bool:
        """Require vectors again (NOT NULL). A constraint is added that binds new rows alone, and then looked through
        without a lock that anybody waits for; by it the server knows that no row is without a vector.
        """
        vector = self._table.vector
        if self._catalogue.columns().by_name[vector].is_required:
            return True
        if self._lacks_vectors():
            return False
        name = identifier(suffixed(vector, REQUIRED))
        check = sql.SQL("ADD CONSTRAINT {} CHECK ({} IS NOT NULL) NOT VALID").format(name, identifier(vector))
        require = sql.SQL("ALTER COLUMN {} SET NOT NULL, DROP CONSTRAINT {}").format(identifier(vector), name)
        if not self._has_constraint():
            self._locks.alone(lambda: self._alter(check), patience)
        try:
            self._alter(sql.SQL("VALIDATE CONSTRAINT {}").format(name))
        except ConstraintViolated:
            self._locks.alone(self._drop_constraint, patience)
            return False
        self._locks.alone(lambda: self._alter(require), patience)
        return True

    def _lacks_vectors(self) -> bool:
        query = sql.SQL("SELECT EXISTS (SELECT FROM {} AS t WHERE {} IS NULL)")
        return bool(self._db.row(query.format(self._sql.name, self._sql.column(self._table.vector)))[0])

    def _has_constraint(self) -> bool:
        query = "SELECT count(*) FROM pg_constraint WHERE conrelid = %s::oid AND conname = %s"
        return bool(self._db.row(query, [self._table.oid, suffixed(self._table.vector, REQUIRED)])[0])

    def _drop_constraint(self) -> None:
        """Drop the constraint of a `restore_constraints` that was killed."""
        name = identifier(suffixed(self._table.vector, REQUIRED))
        self._alter(sql.SQL("DROP CONSTRAINT IF EXISTS {}").format(name))

    def _index_renames(self, *, came_from: str, goes_to: str) -> list[tuple[VectorIndex, str]]:
        """Return the renames for each index that serves and has a twin: out of the way, and the twin in its place.

        The same for the parts of both, which are twins where they are on the same partition.
        """
        vector = self._table.vector
        serving, others = self._catalogue.all_indexes(vector), self._catalogue.all_indexes(suffixed(vector, came_from))
        twins = {(other.relation, other.name): other for other in others}
        renames = list[tuple[VectorIndex, str]]()
        for index in serving:
            twin = twins.get((index.relation, suffixed(index.name, came_from)))
            if index.parent is not None or twin is None:
                continue
            of_twin = {part.relation: part for part in with_parts(twin, others)}
            for part in with_parts(index, serving):
                renames.append((part, suffixed(part.name, goes_to)))
                if part.relation in of_twin:
                    renames.append((of_twin[part.relation], part.name))
        return renames

    # --- dropping ---------------------------------------------------------------------------------

    def drop(self, side: Side) -> None:
        """Drop the vectors of one side; sparse and ColBERT columns go with the new vectors.

        Raises StoreSchemaError for the new side while it serves; the old is left as it is while it does.
        """
        columns = self._catalogue.columns()
        if side is Side.NEW:
            self._drop_new(columns)
        elif columns.beside and columns.serving is Side.NEW:
            self._drop_side_table()
        elif columns.serving is Side.NEW:
            self._drop_columns([columns.required(Side.OLD), *map(columns.checksum, Side)])

    def _drop_side_table(self) -> None:
        """Drop it with what it says. Raises StoreSchemaError while an index that it has a note of is not built."""
        if pending := ", ".join(index.name for index in self._catalogue.pending_indexes()):
            what = f"of {self._table.target} these indexes are not built again yet: {pending}"
            raise StoreSchemaError(what, "vecferry migrate start builds them.")
        self._locks.lock_side_table()
        self._db.execute(sql.SQL("DROP TABLE {}").format(self._sql.side_table))

    def replace_old(self) -> None:
        """Write the new vectors into the column of the old ones, which then has the name, and drop their own.

        So the table has the shape that it had. The server writes the table anew; indexes are made anew after that.
        """
        columns, vector = self._catalogue.columns(), self._table.vector
        if columns.serving is not Side.NEW:
            return
        if columns.beside:  # they stand there already
            self._drop_side_table()
            return
        old = columns.required(Side.OLD)
        indexes = self._catalogue.all_indexes(vector)
        serving = columns.by_name[vector]
        self._mark(self._sql.name, old, serving.space or UNMARKED)
        handover = carrying.handover(self._db, self._table, old)
        self._drop_indexes(self._catalogue.all_indexes(old))
        run(self._db, handover.before)
        kind = self._sized(self._table.kind, serving.dimension or 0)
        change = sql.SQL("ALTER COLUMN {} TYPE {} USING {}")
        self._alter(change.format(identifier(old), kind, identifier(vector)))
        new = suffixed(vector, NEW)
        self._rename_columns(self._sql.name, (vector, new), (old, vector))
        run(self._db, handover.after)
        self._drop_columns([new, *map(columns.checksum, Side)])
        self._make_indexes(indexes, vector, (0, 0))

    def _drop_new(self, columns: Columns) -> None:
        if columns.serving is Side.NEW:
            raise StoreSchemaError(f"the new vectors of {self._table.target} serve", "Roll back first.")
        if self._table.where is None:
            self._drop_constraint()
        if columns.beside:
            self._drop_side_table()
        elif (side := columns.of_side(Side.NEW)) is not None:
            heads = [head for suffix in (SPARSE, COLBERT) if (head := columns.head(suffix)) is not None]
            self._drop_columns([side, *map(columns.checksum, Side), *heads])

    def _drop_columns(self, names: Sequence[str]) -> None:
        drops = [sql.SQL("DROP COLUMN IF EXISTS {}").format(identifier(name)) for name in names]
        self._alter(sql.SQL(", ").join(drops))

    def _alter(self, change: Fragment, relation: sql.Identifier | None = None) -> None:
        """Change the table, or another one."""
        self._db.execute(sql.SQL("ALTER TABLE {} {}").format(relation or self._sql.name, change))

    def _rename_columns(self, relation: sql.Identifier, *pairs: tuple[str, str]) -> None:
        for before, after in pairs:
            change = sql.SQL("RENAME COLUMN {} TO {}").format(identifier(before), identifier(after))
            self._alter(change, relation)

    def _rename_indexes(self, renames: Sequence[tuple[VectorIndex, str]]) -> None:
        for index, name in renames:
            self._db.execute(sql.SQL("ALTER INDEX {} RENAME TO {}").format(index.identifier, identifier(name)))

    def _carry_comments(self, renames: Sequence[tuple[VectorIndex, str]]) -> None:
        """Give each index the comment of the one whose name it has now."""
        comments = {(index.relation, index.name): index.comment for index, _ in renames}
        for index, name in renames:
            comment = comments.get((index.relation, name), index.comment)
            if comment != index.comment:
                self._db.execute(replace(index, name=name, comment=comment).comment_statement())
