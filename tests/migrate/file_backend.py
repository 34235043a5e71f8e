"""A backend whose points are files: as small and as fast as one in memory, and it outlives its process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import get_native_id
from urllib.parse import quote, unquote

import numpy as np

from vecferry.embeddings import DENSE, Float32, Outputs, TextVectors
from vecferry.errors import StoreSchemaError
from vecferry.stores.backend import BackendHit, Point
from vecferry.stores.filters import EVERY_ROW, Selection, matches, portable


class FileBackend:
    """A `Backend` and `Renamable` in a folder: a folder per collection, a file per point, each replaced as a whole.

    between: called after each point that is written; a batch is not kept as a whole here.
    """

    kind = "file"
    text_field = "text"
    outputs = DENSE

    def __init__(self, folder: Path, between: Callable[[], None] = lambda: None) -> None:
        self._folder, self._between = folder, between

    def another(self) -> FileBackend:
        return FileBackend(self._folder, self._between)

    def close(self) -> None:
        pass

    def names(self) -> dict[str, str]:
        return {path.name: path.name for path in self._folder.iterdir() if not path.name.startswith(".")}

    def exists(self, collection: str) -> bool:
        return (self._folder / collection).is_dir()

    def dimension(self, collection: str) -> int | None:
        return int((self._there(collection) / ".dimension").read_text())

    def count(self, collection: str) -> int:
        return len(list(self.ids(collection)))

    def check(self, like: str, outputs: Outputs) -> None:
        self._there(like)
        if refused := outputs & ~self.outputs:
            raise StoreSchemaError(f"{like} has no place for {', '.join(refused.names)}", "Leave it out.")

    def create(self, collection: str, *, like: str | None = None, dimension: int, outputs: Outputs = DENSE) -> None:
        if like is not None:
            self.check(like, outputs)
        self._refuse_taken(collection)
        made = self._folder / f".{collection}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        (made / ".dimension").write_text(str(dimension))
        if like is not None:
            (made / ".created_as").write_text(collection)
        made.rename(self._folder / collection)

    def drop(self, collection: str) -> None:
        if self.exists(collection):
            trash = self._folder / f".dropped {collection}"
            shutil.rmtree(trash, ignore_errors=True)
            (self._folder / collection).rename(trash)

    def rename(self, collection: str, name: str) -> None:
        self._refuse_taken(name)
        self._there(collection).rename(self._folder / name)

    def created_as(self, collection: str) -> str | None:
        noted = self._there(collection) / ".created_as"
        return noted.read_text() if noted.exists() else None

    def ids(self, collection: str) -> Iterator[str]:
        names = [path.name for path in self._there(collection).iterdir()]
        return iter([unquote(name) for name in names if not name.startswith(".")])

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        paths = [self._there(collection) / quote(i, safe="") for i in dict.fromkeys(ids)]
        return [_read(path, vectors=vectors) for path in paths if path.exists()]

    def put(self, collection: str, points: Sequence[Point]) -> None:
        folder, dimension = self._there(collection), self.dimension(collection)
        dense = [point.vectors.dense for point in points if point.vectors is not None]
        assert len(dense) == len(points)
        if others := {len(vector) for vector in dense} - {dimension}:
            raise StoreSchemaError(f"{collection} has vectors of {dimension} numbers, not {others}", "Make them so.")
        partial = folder / f".partial {get_native_id()}"
        for point, vector in zip(points, dense, strict=True):
            fields = {"text": point.text, "vector": vector.tolist(), "payload": dict(point.payload)}
            partial.write_text(json.dumps(fields))
            partial.rename(folder / quote(point.id, safe=""))
            self._between()

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        for i in ids:
            (self._there(collection) / quote(i, safe="")).unlink(missing_ok=True)

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        where = portable(selection.where, self.kind)
        hits = [
            BackendHit(point.id, _cosine(point.vectors.dense, vector), replace(point, vectors=None))
            for point in self.get(collection, list(self.ids(collection)), vectors=True)
            if point.vectors is not None and (where is None or matches(where, point.payload))
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        return ()

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        return ()

    def _refuse_taken(self, collection: str) -> None:
        if self.exists(collection):
            raise StoreSchemaError(f"there is a collection {collection!r} already", "Drop it, or take another name.")

    def _there(self, collection: str) -> Path:
        if not self.exists(collection):
            raise StoreSchemaError(f"there is no collection {collection!r}", "Look at its name.")
        return self._folder / collection


def _cosine(a: Float32, b: Float32) -> float:
    return float(a @ b) / (float(np.linalg.norm(a) * np.linalg.norm(b)) or 1.0)


def _read(path: Path, *, vectors: bool) -> Point:
    fields = json.loads(path.read_text())
    stored = TextVectors(np.asarray(fields["vector"], np.float32)) if vectors else None
    return Point(unquote(path.name), fields["text"], stored, fields["payload"])
