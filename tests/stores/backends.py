"""Every backend of `stores/backend.py`, by name, each over an empty collection `docs` that its application has made.

A module `backends_X` has `opened(folder)`: a context with a backend on a store in `folder`; and `nearest`: the id that
the store's own client finds under the collection's name. The
collection has the cosine metric, vectors of `DIMENSION` numbers, and the payload fields `lang`
(text) and `year` (a whole number).
"""

import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import pytest

from vecferry.embeddings import Float32
from vecferry.errors import MissingExtra
from vecferry.stores.backend import Backend, Fields, Point
from vecferry.stores.opening import open_backend

COLLECTION = "docs"
DIMENSION = 8
Opened = Callable[[Path], AbstractContextManager[Backend]]

MODULES = {
    "memory": ("tests.stores.backends_memory", "opened", "nearest"),
    "chroma": ("tests.stores.backends_chroma", "opened", "nearest"),
    "chroma-server": ("tests.stores.backends_chroma", "opened_server", "nearest_on_server"),
    "lancedb": ("tests.stores.backends_lancedb", "opened", "nearest"),
    "qdrant": ("tests.stores.backends_qdrant", "opened", "nearest"),
    "milvus": ("tests.stores.backends_milvus", "opened", "nearest"),
    "sqlite-vec": ("tests.stores.backends_sqlite_vec", "opened", "nearest"),
    "faiss": ("tests.stores.backends_faiss", "opened", "nearest"),
    "file": ("tests.stores.backends_file", "opened", "nearest"),
    "sqlite-vec-rows": ("tests.stores.backends_sqlite_vec", "opened_beside_rows", "nearest_beside_rows"),
    "faiss-parquet": ("tests.stores.backends_faiss", "opened_parquet", "nearest_in_parquet"),
    "milvus-partitions": ("tests.stores.backends_milvus", "opened_divided", "nearest"),
    "qdrant-hybrid": ("tests.stores.backends_qdrant", "opened_hybrid", "nearest_hybrid"),
}
NAMES = tuple(MODULES)

WITHOUT_NULL = {"milvus", "milvus-partitions"}
"""Where every point has a text."""
NUMBERS_ONLY = {"qdrant", "qdrant-hybrid"}
"""Where an id is a whole number or a UUID."""
NORMALIZING = {"chroma", "chroma-server", "qdrant", "qdrant-hybrid"}
"""Where vectors are brought to length 1 again, so that their last bits may change."""
LONGEST_TEXT = {"milvus": 60_000, "milvus-partitions": 60_000}
"""Bytes, where the collection sets a limit."""
ONE_PROCESS = {"chroma", "qdrant", "qdrant-hybrid", "milvus", "milvus-partitions"}
"""Where one process at a time has the folder."""
SHAPES = {"sqlite-vec-rows", "faiss-parquet", "qdrant-hybrid", "milvus-partitions"}
"""Collections of another shape in a store that is there already: all tests run on these with `make test-slow`."""
RUN_APART = {"faiss", "file", "sqlite-vec", *SHAPES}
"""What is above the backends runs on these with `make test-slow`."""


def import_or_skip(module: str) -> ModuleType:
    """Import a module of a store; skip what needs it where its package is missing, except in CI, which has all."""
    try:
        return importlib.import_module(module)
    except MissingExtra as exc:
        if "CI" in os.environ:
            raise
        pytest.skip(exc.message, allow_module_level=True)


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Backend]:
    """Yield the backend of that name on a store in `folder`."""
    module, function, _ = MODULES[name]
    opener: Opened = getattr(import_or_skip(module), function)
    with opener(folder) as backend:
        yield backend


def nearest(name: str, backend: Backend, folder: Path, vector: Float32) -> str:
    """Return the id of the point that the store's own client finds nearest in the collection `docs`."""
    module, _, function = MODULES[name]
    ask: Callable[[Backend, Path, Float32], str] = getattr(importlib.import_module(module), function)
    return ask(backend, folder, vector)


def fields(url: str) -> Fields:
    """Return where the parts of a point are in the collection that a module makes."""
    return Fields(vector="") if url.startswith("qdrant:") else Fields()


class AtNeed:
    """A backend that is opened for each call alone, so that other processes have the store in between."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __getattr__(self, name: str) -> Any:
        with self._open() as backend:
            attribute = getattr(backend, name)
        if not inspect.ismethod(attribute):
            return attribute

        def call(*args: Any, **named: Any) -> Any:
            with self._open() as backend:
                result = getattr(backend, name)(*args, **named)
                return list(result) if isinstance(result, Iterator) else result

        return call

    @contextmanager
    def _open(self) -> Iterator[Backend]:
        with closing(open_backend(self._url, fields(self._url))) as backend:
            yield backend
        if self._url.startswith("milvus:"):
            importlib.import_module("tests.stores.backends_milvus").end(Path(self._url.removeprefix("milvus://")))

    def another(self) -> Self:
        return self

    def close(self) -> None:
        pass


def unit(seed: int, dimension: int = DIMENSION) -> Float32:
    """Return a direction of its own for each seed: float32 [dimension], length 1."""
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def vector_of(point: Point) -> Float32:
    """Return the vector of a point that must have one."""
    assert point.vectors is not None, point.id
    return point.vectors.dense
