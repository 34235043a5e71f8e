"""The backend in dicts; a folder says nothing to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.stores.backends import COLLECTION
from vecferry.stores.backend import Backend
from vecferry.stores.memory import MemoryBackend


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    yield MemoryBackend({COLLECTION: []})
