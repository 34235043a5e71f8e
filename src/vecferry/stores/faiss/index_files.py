"""Index files of an application: `NAME.faiss` and its documents, read as a whole and replaced as a whole.

Two files cannot be replaced in one step. Both are written into a folder, whose rename is the commit; then they are
moved to their places. Whoever comes to a folder that was left so moves them first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss

from vecferry.embeddings import Float32
from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.faiss.docstore import Docstore, Entry
from vecferry.stores.faiss.kinds import vectors_of

COMMITTED = ".vecferry-new"
BEGUN = ".vecferry-begun"
RECORD = ".vecferry.json"


@dataclass(frozen=True, eq=False)
class Loaded:
    """What the files hold. stamp: by which a later version is known. positions: of each id in `entries` and vectors."""

    stamp: tuple[object, ...]
    index: Any
    docstore: Docstore
    entries: list[Entry]
    positions: dict[str, int]
    vectors: Float32


@dataclass(frozen=True)
class IndexFiles:
    """The files of one name in one folder. docstores: the forms that its documents may have."""

    folder: Path
    name: str
    docstores: Sequence[Docstore]

    @property
    def index(self) -> Path:
        return self.folder / f"{self.name}.faiss"

    def documents(self, docstore: Docstore) -> Path:
        return self.folder / f"{self.name}{docstore.suffix}"

    def docstore(self) -> Docstore | None:
        """Return the form of the documents that are there; None where the collection is not."""
        if not self.index.is_file():
            return None
        return next((form for form in self.docstores if self.documents(form).is_file()), None)

    def created_as(self) -> str | None:
        record = self.folder / f"{self.name}{RECORD}"
        return str(json.loads(record.read_text())["created_as"]) if record.is_file() else None

    def is_committed(self) -> bool:
        """Return whether files wait to be moved to their places."""
        return (self.folder / f"{self.name}{COMMITTED}").is_dir()

    def load(self, known: Loaded | None = None) -> Loaded:
        """Return what the files hold; `known` itself if they are still those. Raises StoreSchemaError, StoreFailed."""
        docstore = self.docstore()
        if docstore is None:
            raise StoreSchemaError(f"there is no collection {self.name!r} in {self.folder}", "Look at its name.")
        stamp = tuple(
            (s.st_ino, s.st_mtime_ns, s.st_size) for s in map(os.stat, (self.index, self.documents(docstore)))
        )
        if known is not None and known.stamp == stamp:
            return known
        try:
            index = faiss.read_index(str(self.index))
            form, entries = docstore.read(self.documents(docstore))
            vectors = vectors_of(index)
        except RuntimeError as exc:
            raise StoreFailed("faiss", f"{self.index}: {exc!s:.300}") from exc
        positions = {entry.id: position for position, entry in enumerate(entries)}
        if not len(positions) == len(entries) == len(vectors):
            counts = f"{len(vectors)} vectors and {len(entries)} documents with {len(positions)} ids"
            raise StoreSchemaError(f"{self.name} has {counts}", "Each vector needs one document with an id of its own.")
        return Loaded(stamp, index, form, entries, positions, vectors)

    def replace(self, index: Any, docstore: Docstore, entries: Sequence[Entry], created_as: str | None) -> None:
        """Put other files into the places of these, both or none. Repeating is safe."""
        self.settle()
        begun = self.folder / f"{self.name}{BEGUN}"
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir()
        documents = docstore.written(entries)
        faiss.write_index(index, str(begun / self.index.name))
        (begun / self.documents(docstore).name).write_bytes(documents)
        if created_as is not None:
            (begun / f"{self.name}{RECORD}").write_text(json.dumps({"created_as": created_as}))
        for file in (*begun.iterdir(), begun):
            _sync(file)
        begun.rename(self.folder / f"{self.name}{COMMITTED}")
        _sync(self.folder)
        self.settle()

    def settle(self) -> None:
        """Move committed files to their places. Repeating is safe."""
        committed = self.folder / f"{self.name}{COMMITTED}"
        if committed.is_dir():
            for file in committed.iterdir():
                file.replace(self.folder / file.name)
            _sync(self.folder)
            committed.rmdir()

    def drop(self) -> None:
        """Delete the files; the index first, without which there is no collection. Repeating is safe."""
        for folder in (BEGUN, COMMITTED):
            shutil.rmtree(self.folder / f"{self.name}{folder}", ignore_errors=True)
        for file in (self.index, *map(self.documents, self.docstores), self.folder / f"{self.name}{RECORD}"):
            file.unlink(missing_ok=True)
        _sync(self.folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
