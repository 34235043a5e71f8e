"""Keys of rows that have none, made of what is in them: the digest of all columns but the vectors.

Rows that are alike in all of these are told apart by a number: `DIGEST`, `DIGEST-2`, `DIGEST-3`. Which of them has
which number does not matter, since their texts are the same. A row that is changed is another row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

DIGEST_BYTES = 16


@dataclass(frozen=True)
class ContentKeys:
    """The keys of one version of a table. stamp: by which a later version is known. rows: row ids by digest."""

    stamp: tuple[int, int]
    rows: dict[str, list[int]]

    def __iter__(self) -> Iterator[str]:
        """Yield all keys."""
        return (key for digest, rows in self.rows.items() for key in numbered([digest] * len(rows)))

    def row_ids(self, keys: Collection[str]) -> dict[int, str]:
        """Return the keys of those rows that are there, by their row ids."""
        return {row: key for key in keys if (row := self._row_id(key)) is not None}

    def _row_id(self, key: str) -> int | None:
        digest, _, number = key.partition("-")
        rows = self.rows.get(digest, [])
        place = 0 if not number else int(number) - 1 if number.isdecimal() and number.isascii() else -1
        return rows[place] if 0 <= place < len(rows) and key == _key(digest, place) else None

    @property
    def last_row_id(self) -> int:
        """Return the highest row id; -1 without a row."""
        return max((row for rows in self.rows.values() for row in rows), default=-1)

    def changed(self, stamp: tuple[int, int], added: dict[str, list[int]], gone: Collection[int]) -> ContentKeys:
        """Return the keys of a later version, with these rows and without those."""
        rows = dict(self.rows)
        for digest, new in added.items():
            rows[digest] = [*rows.get(digest, []), *new]
        if gone:
            rows = {digest: kept for digest, old in rows.items() if (kept := [row for row in old if row not in gone])}
        return ContentKeys(stamp, rows)


def digests(rows: pa.Table, vectors: Collection[str]) -> list[str]:
    """Return the digest of each row. vectors: columns that are left out."""
    columns = [_values(rows[name]) for name in sorted(rows.column_names) if name not in vectors]
    contents = (repr(row).encode("utf-8", "surrogatepass") for row in zip(*columns, strict=True))
    return [hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest() for content in contents]


def by_digest(all_digests: Sequence[str], row_ids: Sequence[int]) -> dict[str, list[int]]:
    """Return row ids by digest."""
    rows: dict[str, list[int]] = {}
    for digest, row in zip(all_digests, row_ids, strict=True):
        rows.setdefault(digest, []).append(row)
    return rows


def numbered(all_digests: Sequence[str]) -> Iterator[str]:
    """Yield the key of each row, in the order given."""
    counts: dict[str, int] = {}
    for digest in all_digests:
        place = counts[digest] = counts.get(digest, -1) + 1
        yield _key(digest, place)


def _key(digest: str, place: int) -> str:
    return digest if place == 0 else f"{digest}-{place + 1}"


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return values of which equal ones are written alike. Python's own would round nanoseconds."""
    return [repr(value) for value in column] if "[ns" in str(column.type) else list(column.to_pylist())
