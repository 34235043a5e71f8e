"""Where vectors are kept: the `Store` protocol, and the values that pass through it.

A store is one collection with its keys, its texts and its vectors. During a migration every row has
a *new side* beside the vector that serves: a nullable vector, and the digest of the text that was
last tried for it. From these two the state of a row can be read without any other record:

    digest is not the text's    the row is to be done: new, changed, or never tried
    digest is, vector is there  done
    digest is, vector is not    a dead letter; its reason is in the ledger

One file per store, all of the same shape; `tests/stores/test_contract.py` runs over every one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from vecferry.embeddings import Float32
from vecferry.stores.ledger import Ledger

T = TypeVar("T")
Key = tuple[str, ...]
"""The values of a row's primary key, each as the store writes it in text."""

NO_TEXT_DIGEST = b""


class Value:
    """A frozen dataclass whose `to_dict` is ready for JSON."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # every subclass is a dataclass


@dataclass(frozen=True)
class Row:
    """A row as it was read; text is None where the store holds none."""

    key: Key
    text: str | None

    @property
    def digest(self) -> bytes:
        return text_digest(self.text)


@dataclass(frozen=True)
class KeyRange:
    """Keys above `lo` up to and including `hi`; None means no limit on that side."""

    lo: Key | None = None
    hi: Key | None = None


EVERYTHING = KeyRange()


@dataclass(frozen=True)
class NewVector:
    """What is to be written for a row: float32 [D], or None for a dead letter.

    digest: of the text that it was made from; the row is left alone if its text is another by now.
    """

    key: Key
    digest: bytes
    vector: Float32 | None


@dataclass(frozen=True)
class IndexInfo(Value):
    """A vector index. recreated: whether `build_indexes` makes one like it for the new vectors."""

    name: str
    definition: str
    bytes: int
    recreated: bool


@dataclass(frozen=True)
class TableInfo(Value):
    """The collection before a migration. fingerprint: the space of the serving vectors, where it is recorded.

    row_bytes: what a rewrite of every row costs; index_bytes: all indexes, those of vectors included.
    views and triggers: what an operator should look at; views stay bound to the old vectors, and
    the triggers fire for each row that is written.
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


@dataclass(frozen=True)
class Counts(Value):
    """rows: all; done: with a new vector; dead_letters: tried, and without one."""

    rows: int
    done: int
    dead_letters: int


@dataclass(frozen=True)
class Changes(Value):
    """changed: rows whose text is not the one last tried, with some of their keys; dead_letters: as in `Counts`."""

    changed: int
    keys: tuple[Key, ...]
    dead_letters: int


@dataclass(frozen=True)
class Examination(Value):
    """What a look at every new vector found. off_norm: length farther than 1e-3 from 1."""

    rows: int
    changed: int
    without_vector: int
    wrong_dimension: int
    not_finite: int
    off_norm: int
    missing_indexes: tuple[str, ...]


@dataclass(frozen=True)
class Hit(Value):
    """One answer to a search. score: the cosine."""

    key: Key
    score: float


@dataclass(frozen=True)
class Patience:
    """How long to wait for a lock: `tries` times `timeout_s`, with pauses that double from `pause_s`."""

    timeout_s: float = 2.0
    tries: int = 5
    pause_s: float = 0.5


class Store(Protocol):
    """One collection. Not thread-safe: a thread has a store of its own.

    All methods raise StoreUnreachable, StoreSchemaError or StoreFailed where the store does not do
    as it should. What is written is kept at once, unless inside `transaction` or `exclusively`.
    """

    @property
    def target(self) -> str:
        """The name of what is migrated; a migration is kept under it."""

    @property
    def text_source(self) -> str:
        """Where in a row the text is: a column, a field."""

    @property
    def ledger(self) -> Ledger: ...

    # reading; nothing is written, a read-only role will do
    def describe(self) -> TableInfo: ...
    def sample(self, num_rows: int) -> list[Row]:
        """Random rows that have a text."""

    def search(self, vector: Float32, k: int, *, fingerprint: str) -> list[Hit]:
        """The k rows nearest to `vector` [D] in the serving vectors, exactly, best first.

        Raises SpaceMismatch if `fingerprint` is not the space that serves.
        """

    # the new side; from `prepare` on
    def new_space(self) -> str | None:
        """Fingerprint recorded on the new side; None if there is no new side."""

    def counts(self) -> Counts: ...
    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        """All keys of now, ascending, in ranges of `rows_each` rows; the last may have fewer."""

    def pending(self, within: KeyRange, limit: int) -> list[Row]:
        """Rows to be done, by ascending key, at most `limit`."""

    def changes(self, max_keys: int = 10) -> Changes: ...
    def examine(self, dimension: int) -> Examination: ...
    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        """Random rows that are done, with their new vectors."""

    # writing; each says what it leaves behind and whether it may be repeated
    def prepare(self, dimension: int, fingerprint: str) -> None:
        """Leaves an empty new side that carries `fingerprint`. Only inside `exclusively`, and only once."""

    def write(self, vectors: Sequence[NewVector]) -> int:
        """Leaves those whose row is there with the same text; how many. Repeating is safe."""

    def retry_dead_letters(self) -> None:
        """Leaves every dead letter to be done again. Repeating is safe."""

    def build_indexes(self) -> tuple[str, ...]:
        """Leaves, for each index on the serving vectors, an equal one on the new; the names of those built.

        Repeating is safe: a half-built one is built anew. Outside of a transaction.
        """

    def switch(self) -> None:
        """Leaves the new vectors serving, the old beside them. Only inside `exclusively`. Undone by `switch_back`."""

    def switch_back(self, *, not_null: bool) -> bool:
        """Undoes `switch`; true if the serving vectors were made required again, as `not_null` asks."""

    def drop_old(self) -> None:
        """Leaves the new vectors alone. Only inside `exclusively`. Cannot be undone."""

    # keeping things together
    def transaction(self) -> AbstractContextManager[None]:
        """What is written inside, the ledger included, is kept as a whole or not at all."""

    def exclusively(self, work: Callable[[], T], patience: Patience) -> T:
        """`work` in a transaction while nobody else writes to the collection. Raises Locked when patience ends."""

    def runner(self) -> AbstractContextManager[None]:
        """Inside, no other process migrates this collection. Raises Locked, naming who does."""


def text_digest(text: str | None) -> bytes:
    """SHA-256 of the text's UTF-8 form; empty where there is no text."""
    return NO_TEXT_DIGEST if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def shown(keys: Sequence[Key]) -> tuple[str, ...]:
    """Keys for people: `7`, or `(eu, 7)` where a key has several parts."""
    return tuple(key[0] if len(key) == 1 else f"({', '.join(key)})" for key in keys)
