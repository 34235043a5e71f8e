"""Index files of FAISS in a folder, with documents as LangChain pickles them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.stores.backends import COLLECTION, DIMENSION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.faiss import FaissBackend
from vecferry.stores.faiss.docstore import LangChainDocstore


def made(folder: Path, index: Any = None) -> str:
    """Make the application's collection, without a vector; return the URL of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index or faiss.IndexFlatIP(DIMENSION), str(folder / f"{COLLECTION}.faiss"))
    (folder / f"{COLLECTION}.pkl").write_bytes(LangChainDocstore().written([]))
    return f"faiss://{folder}"


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    index = faiss.read_index(str(folder / f"{COLLECTION}.faiss"))
    _, documents = LangChainDocstore().read(folder / f"{COLLECTION}.pkl")
    _, positions = index.search(vector[np.newaxis], 1)
    return documents[int(positions[0, 0])].id


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    with closing(FaissBackend.open(made(folder), Fields())) as backend:
        yield backend


PARQUET = pa.schema([("id", pa.string()), ("text", pa.string()), ("lang", pa.string()), ("year", pa.int64())])


def nearest_in_parquet(backend: Backend, folder: Path, vector: Float32) -> str:
    index = faiss.read_index(str(folder / f"{COLLECTION}.faiss"))
    _, positions = index.search(vector[np.newaxis], 1)
    return str(pq.read_table(folder / f"{COLLECTION}.parquet")["id"][int(positions[0, 0])])


@contextmanager
def opened_parquet(folder: Path) -> Iterator[Backend]:
    """Yield a backend on an index whose documents are in a Parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(faiss.IndexFlatIP(DIMENSION), str(folder / f"{COLLECTION}.faiss"))
    pq.write_table(PARQUET.empty_table(), folder / f"{COLLECTION}.parquet")
    with closing(FaissBackend.open(f"faiss://{folder}", Fields())) as backend:
        yield backend
