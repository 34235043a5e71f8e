"""Index files of FAISS in a folder, with documents as LangChain pickles them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

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
