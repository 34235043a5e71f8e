"""What passes through a store: keys, rows, vectors, findings, and how long others may be kept waiting."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

import numpy as np

from vecferry.embeddings import Float32, Outputs, TextVectors, Value
from vecferry.options import Checked, Help, Seconds
from vecferry.stores.text_source import TextSource

T = TypeVar("T")
Key = tuple[str, ...]
"""The values of a row's primary key, each as the store writes it in text."""
NO_TEXT_DIGEST = b""
NORM_TOLERANCE = 1e-3


class Side(StrEnum):
    """Both are kept until `finalize`; which one serves is said by the serving epoch alone."""

    OLD = "old"
    NEW = "new"

    @property
    def other(self) -> Side:
        return Side.NEW if self is Side.OLD else Side.OLD


BOTH_SIDES = frozenset(Side)


class Layout(StrEnum):
    """Where the vectors of the side that does not serve are: in columns of the table, or in a table of their own."""

    COLUMNS = "columns"
    SIDE_TABLE = "side-table"


@dataclass(frozen=True)
class StoreTraits:
    """What holds for a store as long as it is open.

    source: where in a row the text is, a column or a field, or how it is made of several. outputs: the heads that
    the store can hold. rows_outlive_vectors: whether a row without a new vector stays in the collection when the old
    side is dropped. embed_missing: whether a row without a vector is given one; otherwise it has none on either side.
    locks_rows: whether others wait for rows that are written, until those written with them are kept.
    """

    source: TextSource
    outputs: Outputs
    rows_outlive_vectors: bool
    embed_missing: bool = False
    locks_rows: bool = True

    @property
    def text_source(self) -> str:
        """The name of the source, by which a migration is known to go on with the same."""
        return self.source.name


@dataclass(frozen=True)
class Row:
    """A row as it was read; text is None where the store holds none.

    source: what the text was rendered from, where the store cannot render it; the digest is of that. takes_vector:
    false where it has no vector on the side that serves, on purpose, and so is to have none on the other.
    """

    key: Key
    text: str | None
    source: str | None = None
    takes_vector: bool = True

    @property
    def digest(self) -> bytes:
        return text_digest(self.text if self.source is None else self.source)


@dataclass(frozen=True, eq=False)
class StoredRow:
    """A row as it lies in the store. fields: all that is kept with it, its text included; vector: float32 [D]."""

    key: Key
    fields: Mapping[str, Any]
    vector: Float32


@dataclass(frozen=True, eq=False)
class Record:
    """A row as an application writes it, such as `Record(("7",), text, embeddings[0])`.

    vectors: each that the side that serves has a place for. payload: other columns, fields or metadata by name; those
    that are left out keep their values.
    """

    key: Key
    text: str | None
    vectors: TextVectors | None
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KeyRange:
    """Keys above `lo` up to and including `hi`; None means no limit on that side."""

    lo: Key | None = None
    hi: Key | None = None


EVERYTHING = KeyRange()


@dataclass(frozen=True, eq=False)
class NewVector:
    """What is to be written for a row; no vectors for a dead letter, and for a row that takes none.

    digest: of the text that they were made from; the row is left alone if its text is another by now.
    vectors: with the outputs that the migration was begun with.
    """

    key: Key
    digest: bytes
    vectors: TextVectors | None


@dataclass(frozen=True)
class Change:
    """One captured write to a row: inserted, changed or deleted. number: ascending, of the capture alone.

    side: on which it is to be followed; None is both.
    """

    number: int
    key: Key
    side: Side | None = None


@dataclass(frozen=True)
class IndexInfo(Value):
    """An index that knows the vectors; `build_indexes` makes one like it for the new ones.

    holds_vectors: whether it grows with them. cast_length: the numbers that it casts them to; None without a cast.
    """

    name: str
    definition: str
    bytes: int
    holds_vectors: bool = True
    cast_length: int | None = None


@dataclass(frozen=True)
class Dependent(Value):
    """What stands on the vectors. fate: what becomes of it at the switch; is_carried: it changes places with them."""

    kind: str
    name: str
    definition: str
    fate: str
    is_carried: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.fate}"


@dataclass(frozen=True)
class TableInfo(Value):
    """The collection before a migration. fingerprint: the space of the serving vectors, where it is recorded.

    row_bytes: what a rewrite of every row costs; index_bytes: all indexes, those of vectors included.
    views and triggers: what an operator should look at; views stay bound to the old vectors, and
    the triggers fire for each row that is written. creates: what `start` will make, by name. undo:
    how that is taken away again. dependents: what stands on the vectors; one that is not carried stops `start`, unless
    it is accepted by name. notices: what else an operator should know. rows_without_vector: that have none now;
    texts_without_vector: those of them that have a text. Bytes are 0 where the store does not say them.
    """

    rows: int
    null_texts: int
    empty_texts: int
    dimension: int | None
    fingerprint: str | None
    vector_not_null: bool
    table_bytes: int
    row_bytes: int
    index_bytes: int
    vector_bytes: int
    vector_indexes: tuple[IndexInfo, ...] = ()
    views: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    creates: tuple[str, ...] = ()
    dependents: tuple[Dependent, ...] = ()
    notices: tuple[str, ...] = ()
    rows_without_vector: int = 0
    texts_without_vector: int = 0

    def rows_to_embed(self, *, embed_missing: bool) -> int:
        """Return how many rows are to have a new vector."""
        return self.rows if embed_missing else self.rows - self.rows_without_vector


@dataclass(frozen=True)
class LayoutCost(Value):
    """What a migration in one of the layouts does to a collection and to those who use it.

    shape: what becomes of the collection's shape; lock: what a switch locks, and for what; switch_s: how long, about,
    0 for a moment whatever the size. obstacle: why it is not possible here; empty if it is.
    """

    layout: Layout
    is_chosen: bool
    shape: str
    lock: str
    switch_s: float
    obstacle: str = ""


@dataclass(frozen=True)
class Counts(Value):
    """rows: all; done: with a new vector; dead_letters: tried, and without one; unembedded: that take no vector."""

    rows: int
    done: int
    dead_letters: int
    unembedded: int = 0


@dataclass(frozen=True)
class Finding(Value):
    """How many rows have a defect, and the keys of some of them."""

    count: int = 0
    keys: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        return self.count > 0


NOTHING = Finding()


@dataclass(frozen=True)
class Examination(Value):
    """What a look at every row and every new vector found.

    outdated: rows whose new side is not of their present text, the untried included; orphaned: new
    vectors without a row; without_vector: tried, and without a vector. off_norm: length farther than
    1e-3 from 1, zero vectors included. unembedded: rows that take no vector, which is no defect.
    """

    rows: int
    unembedded: int = 0
    outdated: Finding = NOTHING
    orphaned: Finding = NOTHING
    without_vector: Finding = NOTHING
    wrong_dimension: Finding = NOTHING
    not_finite: Finding = NOTHING
    zero: Finding = NOTHING
    off_norm: Finding = NOTHING
    missing_indexes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hit(Value):
    """One answer to a search. score: the cosine. text, payload: None where they were not asked for; as in `Record`."""

    key: Key
    score: float
    text: str | None = None
    payload: Mapping[str, Any] | None = None


def tell_nobody(message: str) -> None:
    """Do nothing; for a `Patience` without `notify`."""


MaxPause = Annotated[Seconds, Help("seconds that others wait for a switch at most; three times as long for a rollback")]


@dataclass(frozen=True)
class Patience(Checked):
    """How long to try for a moment in which nobody else uses the collection, and how long others may wait for it.

    In each try those who have begun are waited for, and whoever comes later waits behind us: `first_pause_s` at
    first, twice as long in each further try, `max_pause_s` at most. Between two tries all go on, for as long as they
    have waited. wait_s: of all tries together; None is until it is had. notify: told before each further try what was
    in the way.
    """

    max_pause_s: MaxPause = 1.0
    wait_s: float | None = 30.0
    first_pause_s: float = 0.1
    notify: Callable[[str], None] = tell_nobody

    def surer(self) -> Patience:
        """Return the patience for the way back: thrice the pause, twice the time."""
        wait_s = None if self.wait_s is None else 2 * self.wait_s
        return replace(self, max_pause_s=3 * self.max_pause_s, wait_s=wait_s)


@dataclass(frozen=True)
class Held(Generic[T]):
    """What was done while others were held off. pause_s: how long whoever came meanwhile had to wait at most."""

    result: T
    pause_s: float


def text_digest(text: str | None) -> bytes:
    """Return the SHA-256 of the text's UTF-8 form; empty where there is no text."""
    return NO_TEXT_DIGEST if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def has_direction(vector: Float32) -> bool:
    """Return whether a cosine with it is a number."""
    return bool(np.isfinite(vector).all() and vector.any())


def in_order(values: Mapping[Key, T], keys: Sequence[Key]) -> dict[Key, T]:
    """Return the values in the order of `keys`, each once; a key without a value is left out."""
    return {key: values[key] for key in keys if key in values}


def shown(keys: Sequence[Key]) -> tuple[str, ...]:
    """Write keys for people: `7`, or `(eu, 7)` where a key has several parts."""
    return tuple(key[0] if len(key) == 1 else f"({', '.join(key)})" for key in keys)
