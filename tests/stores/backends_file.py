"""A backend of plain files, the smallest that outlives its process: a new store is begun with it (CONTRIBUTING.md)."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.migrate.file_backend import FileBackend
from tests.stores.backends import COLLECTION, DIMENSION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    return FileBackend(folder).search(COLLECTION, vector, 1)[0].id


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    backend = FileBackend(folder)
    backend.create(COLLECTION, dimension=DIMENSION)
    with closing(backend):
        yield backend
