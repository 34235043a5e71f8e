"""Groups of collections that look like one collection `docs` to a test: each id has its member by a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.migrate.file_backend import FileBackend
from tests.stores.backends import COLLECTION, DIMENSION
from vecferry.embeddings import DENSE, Float32
from vecferry.stores.backend import Backend, BackendHit, OptionalVectors, Point
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.group import GroupBackend, Part, WithOptionalVectors
from vecferry.stores.memory import MemoryBackend

MEMBERS = ("docs-a", "docs-b", "docs-c")
GROUPS = ("group", "group-of-files")
PREFIX = "group-of-"
"""Before the name of a store: three of its collections."""


def _in_group(id_: str) -> str:
    return f"{MEMBERS[zlib.crc32(id_.encode()) % len(MEMBERS)]}/{id_}"


def _plain(id_: str) -> str:
    return id_.partition("/")[2]


class SpreadGroup(GroupBackend):
    """A group in which a test may leave out the member's name."""

    def ids(self, collection: str) -> Iterator[str]:
        return map(_plain, super().ids(collection))

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        points = super().get(collection, [*map(_in_group, ids)], vectors=vectors)
        return [replace(point, id=_plain(point.id)) for point in points]

    def put(self, collection: str, points: Sequence[Point]) -> None:
        super().put(collection, [replace(point, id=_in_group(point.id)) for point in points])

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        super().delete(collection, [*map(_in_group, ids)])

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        hits = super().search(collection, vector, k, selection)
        return [
            BackendHit(_plain(hit.id), hit.score, hit.point and replace(hit.point, id=_plain(hit.id))) for hit in hits
        ]


class SpreadMemoryGroup(SpreadGroup, WithOptionalVectors):
    """Such a group in which a point may be without a vector."""

    def without_vector(self, collection: str, ids: Sequence[str]) -> set[str]:
        return {_plain(id_) for id_ in super().without_vector(collection, [*map(_in_group, ids)])}


def spread_group(name: str, folder: Path) -> GroupBackend:
    """Return a group of three empty collections in memory, or in files of the folder."""
    if name == "group":
        return spread_over(MemoryBackend({member: [] for member in MEMBERS}))
    FileBackend(folder).create(COLLECTION, dimension=DIMENSION)
    return spread_over(divided(FileBackend(folder)))


def divided(backend: Backend) -> Backend:
    """Make three empty collections like `docs` and drop it."""
    for member in MEMBERS:
        backend.create(member, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    backend.drop(COLLECTION)
    return backend


def spread_over(backend: Any) -> GroupBackend:
    """Return the group of the three collections."""
    kind = SpreadMemoryGroup if isinstance(backend, OptionalVectors) else SpreadGroup
    return kind([Part("docs-*", backend)], COLLECTION)
