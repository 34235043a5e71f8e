"""What there is in a store: which vectors, of how many numbers, and a few of their rows. Nothing is written.

A store says itself where vectors are, by the method of `Browsable`; how its rows are read stands in its backend. Chroma
and SQLite change a file that is only opened: a folder of Chroma is looked at in a copy, SQLite opens read-only.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from vecferry.errors import SettingsError
from vecferry.stores.backend import ANYONE, Backend, Browsable, Fields, Point, ServerAccess, VectorField, path_in
from vecferry.stores.group import OURS
from vecferry.stores.opening import POSTGRES, open_backend, store_kind
from vecferry.stores.values import StoredRow

DRAWN_FROM = 2000
"""The first points, among which a sample is drawn."""
SAMPLED_MEMBERS = 8
"""Collections of a group from which points are drawn."""


MARKS = {
    "chroma": "chroma.sqlite3",
    "faiss": "*.faiss",
    "lancedb": "*.lance",
    "qdrant": "collection/*/storage.sqlite",
}
"""What the folder of a store that needs no server has in it, by the store's scheme."""
SQLITE_FILES = ("*.db", "*.sqlite", "*.sqlite3")
NEARBY = 3


def nearby_stores(folder: Path) -> list[str]:
    """Return URLs of stores that seem to lie in a folder or directly below it, relative to it; three at most."""
    try:
        folders = [folder, *sorted(each for each in folder.iterdir() if each.is_dir() and each.name[0] != ".")]
        urls = [
            f"{scheme}:{each.relative_to(folder)}"
            for each in folders
            for scheme, mark in MARKS.items()
            if next(each.glob(mark), None) is not None
        ]
        files = sorted(file for name in SQLITE_FILES for file in folder.glob(name) if file.name != MARKS["chroma"])
    except OSError:  # a folder that may not be looked at
        return []
    return [*urls, *(f"sqlite:{file.relative_to(folder)}" for file in files)][:NEARBY]


class Browser(Protocol):
    """One store that is looked at. All methods raise as a `Backend` does."""

    @property
    def kind(self) -> str:
        """Return the scheme of the URL: "postgresql", "chroma"."""

    def vector_fields(self) -> list[VectorField]:
        """Return what can be migrated, by name; what is made by migrations is left out."""

    def sample(self, field: VectorField, num_rows: int) -> list[StoredRow]:
        """Return some rows with a vector, whole."""


@dataclass(frozen=True)
class BackendBrowser:
    """`Browser` over a backend. opened: opens it for the names of a collection, to be closed."""

    kind: str
    opened: Callable[[Fields], Backend]

    def vector_fields(self) -> list[VectorField]:
        with closing(self.opened(Fields())) as backend:
            assert isinstance(backend, Browsable), "every backend that a URL opens"
            fields = [field for field in backend.vector_fields() if not OURS.search(field.collection)]
            return sorted(fields, key=lambda field: (field.collection, field.vector))

    def sample(self, field: VectorField, num_rows: int) -> list[StoredRow]:
        with closing(self.opened(Fields(field.key, field.text, field.vector))) as backend:
            collections = spread(field.members or (field.collection,), SAMPLED_MEMBERS)
            each = -(-num_rows // len(collections))
            points = [point for collection in collections for point in _points(backend, collection, each)]
            return [_stored(point, backend.text_field) for point in points if point.vectors is not None]


def _points(backend: Backend, collection: str, num_points: int) -> list[Point]:
    """Return some of the first points, with their vectors."""
    return backend.get(collection, spread(list(islice(backend.ids(collection), DRAWN_FROM)), num_points), vectors=True)


def spread(names: Sequence[str], count: int) -> list[str]:
    """Return at most so many of them, evenly."""
    return list(names[:: max(1, len(names) // count)][:count])


def _stored(point: Point, text_field: str) -> StoredRow:
    assert point.vectors is not None, "it was asked for"
    return StoredRow((point.id,), {**point.payload, text_field: point.text}, point.vectors.dense)


@contextmanager
def open_browser(url: str, access: ServerAccess = ANYONE) -> Iterator[Browser]:
    """Yield what looks at the store of a URL. Raises as `open_store` does."""
    for name, value in {"--tenant": access.tenant, "--database": access.database}.items():
        if value is not None and store_kind(url) != "chroma":
            raise SettingsError(name, value, "none; only Chroma takes one")
    if store_kind(url) == POSTGRES:
        from vecferry.stores.pgvector.browsing import PgBrowser

        with closing(PgBrowser.connect(url)) as browser:
            yield browser
        return
    is_folder_of_chroma = url.lower().startswith("chroma:")
    with _copied(url) if is_folder_of_chroma else nullcontext(url) as place:
        yield BackendBrowser(store_kind(url), lambda fields: _backend(place, fields, access))


def _backend(url: str, fields: Fields, access: ServerAccess) -> Backend:
    """Open a backend to be read."""
    if store_kind(url) == "sqlite":
        from vecferry.stores.sqlite_vec import SqliteVecBackend

        return SqliteVecBackend.open(url, fields, read_only=True)
    return open_backend(url, fields, access)


@contextmanager
def _copied(url: str) -> Iterator[str]:
    """Yield the URL of a copy of a local folder of Chroma; the copy goes at the end."""
    from vecferry.stores.sqlite.connection import copy_database

    folder = Path(path_in(url, "chroma:///absolute/path, or chroma:relative/path"))
    with tempfile.TemporaryDirectory(prefix="vecferry-") as temporary:
        copy = Path(temporary) / "chroma"
        if (folder / "chroma.sqlite3").is_file():
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("chroma.sqlite3*", ".vecferry-lock"))
            copy_database(folder / "chroma.sqlite3", copy / "chroma.sqlite3")
        yield f"chroma://{copy}" if copy.is_dir() else url
