"""Qdrant's local mode in a folder."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from qdrant_client import QdrantClient, models

from tests.stores.backends import COLLECTION, DIMENSION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.qdrant import QdrantBackend

FIELDS = Fields(vector="")
COSINE = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)


def make(folder: Path, vectors: models.VectorParams | dict[str, models.VectorParams] = COSINE) -> str:
    """Make the application's collection; return the URL of the folder."""
    with closing(QdrantClient(path=str(folder))) as application:
        application.create_collection(COLLECTION, vectors)
    return f"qdrant://{folder}"


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    """Ask through the client of the backend: local mode allows no other."""
    assert isinstance(backend, QdrantBackend)
    with backend._connection.client() as application:
        return str(application.query_points(COLLECTION, vector.tolist(), limit=1).points[0].id)


HYBRID = {"dense": COSINE, "image": models.VectorParams(size=3, distance=models.Distance.DOT)}
WORDS = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}


@contextmanager
def opened_hybrid(folder: Path) -> Iterator[Backend]:
    """Yield a backend on a collection with two further vectors, in which the dense one gets another name."""
    with closing(QdrantClient(path=str(folder))) as application:
        application.create_collection(COLLECTION, HYBRID, WORDS)
    with closing(QdrantBackend.open(f"qdrant://{folder}", Fields(vector="dense", new_vector="bge-m3"))) as backend:
        yield backend


def nearest_hybrid(backend: Backend, folder: Path, vector: Float32) -> str:
    """Ask through the client of the backend, by the name that the vector has."""
    assert isinstance(backend, QdrantBackend)
    name = "dense" if len(vector) == DIMENSION else "bge-m3"
    with backend._connection.client() as application:
        return str(application.query_points(COLLECTION, vector.tolist(), using=name, limit=1).points[0].id)


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    with closing(QdrantBackend.open(make(folder), FIELDS)) as backend:
        yield backend
