"""The table of Open WebUI on pgvector, asked by SQL of our own: the package itself brings a whole web application."""

from __future__ import annotations

import psycopg
from psycopg.types.json import Jsonb

from tests.applications.application import Listing, encode_with
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder


class OpenWebUIApplication:
    """One table for all knowledge, each under its own `collection_name`; an IVFFlat index."""

    listing = Listing("The table of Open WebUI", None, "document_chunk", "text", vector="vector", layout="Open WebUI")
    site = "postgres"
    SCHEMA = """
        CREATE TABLE document_chunk (
            id text PRIMARY KEY, vector vector({dimension}), collection_name text NOT NULL, text text, vmetadata jsonb
        );
        CREATE INDEX idx_document_chunk_vector ON document_chunk USING ivfflat (vector vector_cosine_ops)
            WITH (lists = 100);
        CREATE INDEX idx_document_chunk_collection_name ON document_chunk (collection_name);
    """

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        self._encode = encode_with(encoder)
        self._connection = psycopg.connect(site.url, autocommit=True)
        if self._connection.execute("SELECT to_regclass('document_chunk')").fetchone() == (None,):
            self._connection.execute(self.SCHEMA.format(dimension=encoder.dimension))

    def add(self, key: str, text: str) -> None:
        self._connection.execute(
            "INSERT INTO document_chunk (id, vector, collection_name, text, vmetadata)"
            " VALUES (%(id)s, %(vector)s::real[], 'knowledge', %(text)s, %(metadata)s) ON CONFLICT (id) DO UPDATE"
            " SET vector = EXCLUDED.vector, text = EXCLUDED.text, vmetadata = EXCLUDED.vmetadata",
            {"id": key, "vector": self._encode(text), "text": text, "metadata": Jsonb({"source": "a.txt"})},
        )

    def remove(self, key: str) -> None:
        self._connection.execute("DELETE FROM document_chunk WHERE collection_name = 'knowledge' AND id = %s", [key])

    def read(self, key: str) -> str | None:
        row = self._connection.execute("SELECT text FROM document_chunk WHERE id = %s", [key]).fetchone()
        return row[0] if row else None

    def first(self, text: str) -> str | None:
        row = self._connection.execute(
            "SELECT text FROM document_chunk WHERE collection_name = 'knowledge'"
            " ORDER BY vector <=> %s::vector LIMIT 1",
            [str(self._encode(text))],
        ).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self._connection.close()
