"""The store itself: which of its parts does what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Self, TypeVar

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import SettingsError, StoreSchemaError
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.pgvector.application import PgApplicationWriter
from vecferry.stores.pgvector.capture import PgCapture
from vecferry.stores.pgvector.comparing import PgComparison
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.layouts import layout_costs, switch_s
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.pgvector.preconditions import refuse_new_side
from vecferry.stores.pgvector.reading import PgReader
from vecferry.stores.pgvector.session import Membership, TableSession
from vecferry.stores.pgvector.switching import PgSwitch
from vecferry.stores.pgvector.table import Table, find_table
from vecferry.stores.pgvector.writing import PgWriter
from vecferry.stores.protocol import Store, Then, nothing_more
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
)

T = TypeVar("T")
BESIDE_WHERE = "side-table, or none, beside [store] where: the columns of a shared table are everybody's"


class Shape(NamedTuple):
    """What the catalogue says of the vectors. dimension: None where their type says none."""

    serving: Side
    has_other_side: bool
    is_required: bool
    dimension: int | None


class PgVectorStore(Store):
    """`stores.Store` over one table, one text column and one vector column."""

    def __init__(
        self,
        database: Database,
        table: Table,
        *,
        embed_missing: bool = False,
        layout: Layout = Layout.COLUMNS,
        membership: Membership | None = None,
    ) -> None:
        """Take a table. membership: of one that is migrated with others (`group.py`)."""
        self._layout = layout
        self._session = TableSession(database, table, embed_missing=embed_missing, layout=layout, membership=membership)
        self._reader = PgReader(self._session)
        self._application = PgApplicationWriter(self._session)
        self._capture = PgCapture(self._session)
        self._comparison = PgComparison(self._session)
        self._writer = PgWriter(self._session)
        self._switch = PgSwitch(self._session)

    # --- the connection ---------------------------------------------------------------------------

    @classmethod
    def connect(
        cls,
        database_url: str,
        table: str,
        text: str,
        vector_column: str,
        source: str | None = None,
        *,
        where: str | None = None,
        embed_missing: bool = False,
        layout: Layout | None = None,
        key: str | None = None,
    ) -> Self:
        r"""Open a store with a connection of its own; close it, or use it in `with`. Writes nothing.

        table: NAME or SCHEMA.NAME, as it is spelled in the database; quote a part that has a dot. text: a column, a
        template over several such as `{title}\n{body}`, "llama-index" (`text_source.py`), or an expression of SQL.
        source: a view or query with the table's key, which has `text` as a column. embed_missing: as in `StoreTraits`.
        layout: of a migration that is yet to begin, by default `columns`; one that has begun goes on in its own. key:
        the columns of a unique key, or its index; by default the primary key, else the one that `keys.chosen` says.
        where: a condition of SQL on the rows that are migrated, where the table has others too; they are always in the
        layout `side-table`.
        Raises StoreUnreachable, StoreSchemaError for a table that cannot be migrated, SettingsError for the layout
        `columns` beside `where`.
        """
        if where is not None and layout is Layout.COLUMNS:
            raise SettingsError("[store] layout", layout, BESIDE_WHERE)
        database = Database(database_url)
        try:
            found = find_table(database, table, text, vector_column, source, key_name=key, where=where)
            own = Layout.SIDE_TABLE if where is not None else layout or Layout.COLUMNS
            return cls(database, found, embed_missing=embed_missing, layout=own)
        except BaseException:
            database.close()
            raise

    @property
    def target(self) -> str:
        return self._session.table.target

    @property
    def traits(self) -> StoreTraits:
        source, embed_missing = self._session.table.source, self._session.embed_missing
        outputs = DENSE if self._layout is Layout.SIDE_TABLE else Outputs.ALL
        return StoreTraits(source, outputs, rows_outlive_vectors=True, embed_missing=embed_missing)

    @property
    def table(self) -> Table:
        return self._session.table

    @property
    def ledger(self) -> PgLedger:
        return self._session.ledger

    def another(self) -> Self:
        session = self._session
        again = session.db.another()
        return type(self)(again, session.table, embed_missing=session.embed_missing, layout=self._layout)

    def reconnect(self) -> None:
        self._session.db.reconnect()

    def close(self) -> None:
        self._session.db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- for anybody ------------------------------------------------------------------------------

    def describe(self) -> TableInfo:
        return self._reader.describe()

    def sample(self, num_rows: int) -> list[Row]:
        return self._reader.sample(num_rows)

    def sample_stored(self, num_rows: int) -> list[StoredRow]:
        return self._reader.sample_stored(num_rows)

    def rows(self, keys: Sequence[Key]) -> list[Row]:
        return self._reader.rows(keys)

    def rows_within(self, within: KeyRange, limit: int) -> list[Row]:
        return self._reader.rows_within(within, limit)

    def vectors(self, keys: Sequence[Key], *, fingerprint: str) -> dict[Key, Float32]:
        return self._reader.vectors(keys, fingerprint=fingerprint)

    def search(
        self,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        return self._reader.search(vector, k, fingerprint=fingerprint, exact=exact, selection=selection)

    def layouts(self, dimension: int) -> tuple[LayoutCost, ...]:
        return layout_costs(self._session, dimension)

    def switch_s(self, dimension: int) -> float:
        return switch_s(self._session, dimension)

    def users(self) -> str:
        return self._session.locks.users()

    def serving_locator(self, side: Side) -> str:  # noqa: ARG002  # the column that serves keeps its name
        return self.target

    # --- the application's own writes -------------------------------------------------------------

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        self._application.put(records, fingerprint=fingerprint)

    def remove(self, keys: Sequence[Key]) -> None:
        self._application.remove(keys)

    # --- capture ----------------------------------------------------------------------------------

    def start_capture(self, patience: Patience) -> None:
        self._capture.start_capture(patience)

    def stop_capture(self) -> None:
        self._capture.stop_capture()

    def captured(self, limit: int, sides: Collection[Side] = BOTH_SIDES) -> list[Change]:
        return self._capture.captured(limit, sides)

    def backlog(self, side: Side | None = None) -> int:
        """Count the writes that are to be followed; those that have not ended cannot be seen."""
        return self._session.outbox.count(side)

    def acknowledge(self, changes: Sequence[Change]) -> None:
        self._capture.acknowledge(changes)

    def capture_again(self, keys: Sequence[Key], side: Side) -> None:
        self._capture.capture_again(keys, side)

    def adopt(self, keys: Sequence[Key]) -> set[Key]:
        return self._capture.adopt(keys)

    def apply_deletes(self, keys: Sequence[Key]) -> set[Key]:
        return self._capture.apply_deletes(keys)

    # --- the sides, and what is not current on them -----------------------------------------------

    def new_space(self) -> str | None:
        return self._comparison.new_space()

    def counts(self) -> Counts:
        return self._comparison.counts()

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        return self._comparison.key_ranges(rows_each)

    def outdated(self, side: Side, among: Sequence[Key] | KeyRange = EVERYTHING, limit: int | None = None) -> list[Row]:
        return self._comparison.outdated(side, among, limit)

    def count_outdated(self, side: Side, max_keys: int = 10, *, with_vector: bool = False) -> Finding:
        return self._comparison.count_outdated(side, max_keys, with_vector=with_vector)

    def orphans(self, limit: int) -> list[Key]:
        return self._comparison.orphans(limit)

    def check_integrity(self, dimension: int, max_keys: int = 10) -> Examination:
        return self._comparison.check_integrity(dimension, max_keys)

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        return self._comparison.sample_vectors(num_rows)

    # --- what a migration changes -----------------------------------------------------------------

    def check_new_side(self, dimension: int, outputs: Outputs = DENSE) -> None:
        # until the end of the transaction nobody else begins: what is seen of other migrations stays true
        self._session.db.rows("SELECT pg_advisory_xact_lock(%s)", [self._session.table.beginning_lock])
        refuse_new_side(self._session, dimension, outputs)

    def prepare(self, dimension: int, fingerprint: str, outputs: Outputs = DENSE) -> None:
        self._switch.prepare(dimension, fingerprint, outputs)

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        return self._writer.write(side, vectors, then)

    def build_indexes(self) -> tuple[str, ...]:
        return self._switch.build_indexes()

    def switch(self, to: Side) -> None:
        self._switch.switch(to)

    def restore_constraints(self, patience: Patience, *, required: bool) -> bool:
        return self._switch.restore_constraints(patience, required=required)

    def drop(self, side: Side) -> None:
        self._switch.drop(side)

    def replace_old(self) -> None:
        self._switch.replace_old()

    def transaction(self) -> AbstractContextManager[None]:
        return self._session.guard.transaction()

    def refuse_changed(self) -> None:
        """Raise StoreSchemaError if the table is not what it was when it was opened."""
        self._session.catalogue.refuse_changed()

    def shape(self) -> Shape:
        columns = self._session.catalogue.columns()
        vector = columns.by_name[self.table.vector]
        has_other = columns.of_side(columns.serving.other) is not None
        return Shape(columns.serving, has_other, vector.is_required, vector.dimension)

    def exclusively(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """Run `work` in a transaction while nobody else uses the table; readers wait too.

        Of a part, while none of ours uses it; others wait only where an index of the part is made anew.
        """
        hold = self._session.locks.alone if self._switch.needs_table else self._session.locks.part_alone
        try:
            return hold(work, patience)
        except StoreSchemaError:
            self.refuse_changed()  # which can say more
            raise

    def pause_left_s(self) -> float:
        return self._session.locks.pause_left_s()

    def runner(self, lease_s: float) -> AbstractContextManager[None]:
        return self._session.guard.holding(self.target, lease_s)
