"""sqlite-vec in a file: a vec0 table alone, and an ordinary table with a vec0 table of its vectors."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.stores.backends import COLLECTION, DIMENSION
from vecferry.embeddings import Float32
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.sqlite_vec import SqliteVecBackend, _connected

ALONE = (
    f"CREATE VIRTUAL TABLE {COLLECTION} USING vec0(id TEXT PRIMARY KEY, vector float[{DIMENSION}]"
    " distance_metric=cosine, +text TEXT, +lang TEXT, +year INTEGER, chunk_size=16)"
)
BESIDE_ROWS = (
    f"CREATE TABLE {COLLECTION} (id TEXT PRIMARY KEY NOT NULL, text TEXT, lang TEXT, year INTEGER)",
    f"CREATE VIRTUAL TABLE {COLLECTION}_vec"
    f" USING vec0(vector float[{DIMENSION}] distance_metric=cosine, chunk_size=16)",
)


@contextmanager
def application(folder: Path) -> Iterator[Any]:
    """Yield a connection of the application to the file in `folder`, with the extension."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "docs.sqlite"
    file.touch()
    with closing(_connected(file)) as connection:
        yield connection


def made(folder: Path, *statements: str) -> str:
    """Run statements as the application; return the URL of the file."""
    with application(folder) as connection:
        for statement in statements:
            connection.execute(statement)
    return f"sqlite://{folder / 'docs.sqlite'}"


def nearest(backend: Backend, folder: Path, vector: Float32) -> str:
    query = f"SELECT id FROM {COLLECTION} WHERE vector MATCH ? AND k = 1"
    with application(folder) as connection:
        return str(connection.execute(query, [vector.tobytes()]).fetchone()[0])


def nearest_beside_rows(backend: Backend, folder: Path, vector: Float32) -> str:
    query = (
        f"SELECT {COLLECTION}.id FROM {COLLECTION}_vec AS v JOIN {COLLECTION} ON {COLLECTION}.rowid = v.rowid"
        " WHERE v.vector MATCH ? AND v.k = 1"
    )
    with application(folder) as connection:
        return str(connection.execute(query, [vector.tobytes()]).fetchone()[0])


@contextmanager
def opened(folder: Path) -> Iterator[Backend]:
    with closing(SqliteVecBackend.open(made(folder, ALONE), Fields())) as backend:
        yield backend


@contextmanager
def opened_beside_rows(folder: Path) -> Iterator[Backend]:
    with closing(SqliteVecBackend.open(made(folder, *BESIDE_ROWS), Fields())) as backend:
        yield backend
