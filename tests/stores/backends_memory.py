"""The backend in dicts; a folder says nothing to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.stores.backends import COLLECTION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend
from vecferry.stores.memory import MemoryBackend


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    return backend.search(COLLECTION, vector, 1)[0].id


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    yield MemoryBackend({COLLECTION: []})
