"""Milvus Lite in a folder."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from milvus_lite.server_manager import server_manager_instance
from pymilvus import CollectionSchema, DataType, MilvusClient
from pymilvus.client.cache import GlobalCache

from tests.stores.backends import COLLECTION, DIMENSION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.milvus import MilvusBackend

FIELDS = Fields()


def schema(key: DataType = DataType.VARCHAR, *, dynamic: bool = True, nullable: bool = True) -> CollectionSchema:
    made = MilvusClient.create_schema(enable_dynamic_field=dynamic)
    made.add_field("id", key, is_primary=True, **({"max_length": 512} if key == DataType.VARCHAR else {}))
    made.add_field("text", DataType.VARCHAR, max_length=65_535, nullable=nullable)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    made.add_field("lang", DataType.VARCHAR, max_length=16, nullable=True)
    made.add_field("year", DataType.INT64, nullable=True)
    return made


def make(file: Path, made: CollectionSchema | None = None, metric: str = "COSINE") -> str:
    """Make the application's collection; return the URL of the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    index = MilvusClient.prepare_index_params()
    index.add_index("vector", "HNSW", metric_type=metric)
    with closing(MilvusClient(str(file))) as application:
        application.create_collection(COLLECTION, schema=made or schema())
        application.create_index(COLLECTION, index, sync=False)  # it would wait half a second for nothing
        application.load_collection(COLLECTION)
    return f"milvus://{file}"


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    with closing(MilvusClient(str(folder / "docs.db"))) as application:
        (hits,) = application.search(COLLECTION, [vector.tolist()], limit=1, consistency_level="Strong")
    return str(hits[0]["id"])


def end(file: Path) -> None:
    """Give the file up, as the end of the process does: Milvus Lite keeps a file to its process.

    Its client keeps schemas by address, which the next server may have with other collections of the same name.
    """
    server_manager_instance.release_server(str(file))
    GlobalCache.schema.clear()


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    file = folder / "docs.db"
    with closing(MilvusBackend.open(make(file), FIELDS)) as backend:
        yield backend
    end(file)


@contextmanager
def opened_divided(folder: Path) -> Iterator[Backend]:
    """Yield a backend on a collection with partitions of the application's."""
    url = make(folder / "docs.db")
    with closing(MilvusClient(str(folder / "docs.db"))) as application:
        for name in ("north", "south"):
            application.create_partition(COLLECTION, name)
    with closing(MilvusBackend.open(url, FIELDS)) as backend:
        yield backend
    end(folder / "docs.db")
