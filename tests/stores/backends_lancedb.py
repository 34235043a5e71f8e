"""LanceDB in a folder."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import lancedb
import pyarrow as pa

from tests.stores.backends import COLLECTION, DIMENSION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.lancedb import LanceBackend

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), DIMENSION)),
        pa.field("lang", pa.string()),
        pa.field("year", pa.int64()),
    ]
)


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    rows = lancedb.connect(folder).open_table(COLLECTION).search(vector).limit(1).to_list()
    return str(rows[0]["id"])


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    folder.mkdir(parents=True, exist_ok=True)
    lancedb.connect(folder).create_table(COLLECTION, schema=SCHEMA)
    with closing(LanceBackend.open(f"lancedb://{folder}", Fields())) as backend:
        yield backend
