"""A backend in dicts: the double for tests of what is above it. Nothing outlives the process."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock

import numpy as np

from vecferry.embeddings import Float32, Outputs
from vecferry.errors import StoreSchemaError
from vecferry.stores.backend import BackendHit, Point
from vecferry.stores.filters import EVERY_ROW, Selection, matches, portable


@dataclass
class _Collection:
    """dimension: None until the first vector, where nobody has said it."""

    dimension: int | None = None
    points: dict[str, Point] = field(default_factory=dict)


@dataclass
class _Held:
    """What the handles of one store share."""

    lock: RLock = field(default_factory=RLock)
    collections: dict[str, _Collection] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class MemoryBackend:
    """`Backend`, `Aliased` and `OptionalVectors`. What goes in or out is copied; an alias may be a collection."""

    kind = "memory"
    text_field = "text"
    outputs = Outputs.ALL

    def __init__(self, points: Mapping[str, Sequence[Point]] | None = None) -> None:
        self._held = _Held()
        for name, initial in (points or {}).items():
            self._held.collections[name] = _Collection()
            self.put(name, initial)

    def another(self) -> MemoryBackend:
        other = MemoryBackend()
        other._held = self._held
        return other

    def close(self) -> None:
        pass

    def names(self) -> dict[str, str]:
        with self._held.lock:
            return {name: name for name in self._held.collections} | self._held.aliases

    def exists(self, collection: str) -> bool:
        return self.resolve(collection) in self._held.collections

    def dimension(self, collection: str) -> int | None:
        return self._collection(collection).dimension

    def count(self, collection: str) -> int:
        return len(self._collection(collection).points)

    def check(self, like: str, outputs: Outputs) -> None:  # noqa: ARG002  # holds all
        self._collection(like)

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:  # noqa: ARG002  # holds all
        with self._held.lock:
            self._collection(like)
            self._refuse_taken(collection)
            self._held.collections[collection] = _Collection(dimension)

    def drop(self, collection: str) -> None:
        with self._held.lock:
            self._held.collections.pop(collection, None)
            self._held.aliases = {alias: to for alias, to in self._held.aliases.items() if to != collection}

    def ids(self, collection: str) -> Iterator[str]:
        with self._held.lock:
            return iter(list(self._collection(collection).points))

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        with self._held.lock:
            held = self._collection(collection).points
            points = [copy.deepcopy(held[i]) for i in dict.fromkeys(ids) if i in held]
        return points if vectors else [replace(point, vectors=None) for point in points]

    def put(self, collection: str, points: Sequence[Point]) -> None:
        with self._held.lock:
            held = self._collection(collection)
            lengths = {len(point.vectors.dense) for point in points if point.vectors is not None}
            expected = held.dimension or next(iter(lengths), None)
            if lengths - {expected}:
                raise StoreSchemaError(
                    f"{collection} has vectors of {expected} numbers, not {sorted(lengths)}", "Make them so."
                )
            held.dimension = expected
            held.points.update({point.id: copy.deepcopy(point) for point in points})

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        with self._held.lock:
            for i in ids:
                self._collection(collection).points.pop(i, None)

    def without_vector(self, collection: str, ids: Sequence[str]) -> set[str]:
        return {point.id for point in self.get(collection, ids, vectors=True) if point.vectors is None}

    def count_without_vector(self, collection: str) -> int:
        return len(self.without_vector(collection, list(self.ids(collection))))

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        where = portable(selection.where, self.kind)
        with self._held.lock:
            points = [copy.deepcopy(point) for point in self._collection(collection).points.values()]
        hits = [
            BackendHit(point.id, _cosine(point.vectors.dense, vector), replace(point, vectors=None))
            for point in points
            if point.vectors is not None and (where is None or matches(where, point.payload))
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002  # a search is exact
        return ()

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def resolve(self, name: str) -> str:
        return self._held.aliases.get(name, name)

    def is_alias(self, name: str) -> bool:
        return name in self._held.aliases

    def point_alias(self, alias: str, collection: str) -> None:
        with self._held.lock:
            self._collection(collection)
            if not self.is_alias(alias):
                self._refuse_taken(alias)
            self._held.aliases[alias] = self.resolve(collection)

    def drop_alias(self, alias: str) -> None:
        with self._held.lock:
            self._held.aliases.pop(alias, None)

    def _collection(self, name: str) -> _Collection:
        try:
            return self._held.collections[self.resolve(name)]
        except KeyError:
            raise StoreSchemaError(f"there is no collection {name!r}", "Look at its name.") from None

    def _refuse_taken(self, name: str) -> None:
        if self.exists(name):
            raise StoreSchemaError(f"there is a collection {name!r} already", "Drop it first, or take another name.")


def _cosine(a: Float32, b: Float32) -> float:
    return float(a @ b) / (float(np.linalg.norm(a) * np.linalg.norm(b)) or 1.0)  # a zero vector is near nothing
