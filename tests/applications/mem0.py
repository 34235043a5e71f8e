"""mem0's own store on pgvector."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.applications.application import Listing, encode_with
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder


class Mem0Application:
    """PGVector with the payload that mem0 gives it: a memory's text is its `data`."""

    listing = Listing("mem0 `PGVector`", "mem0ai", "memories", "{payload.data}", vector="vector", layout="mem0")
    site = "postgres"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        self._encode = encode_with(encoder)
        self._store = mem0_store()(
            dbname=None,
            collection_name=collection,
            embedding_model_dims=encoder.dimension,
            user=None,
            password=None,
            host=None,
            port=None,
            diskann=False,
            hnsw=True,
            connection_string=site.url,
        )

    def add(self, key: str, text: str) -> None:
        payload = {"data": text, "user_id": "somebody", "text_lemmatized": text}
        if self._store.get(key):
            self._store.update(key, self._encode(text), payload)
        else:
            self._store.insert([self._encode(text)], [payload], [key])

    def remove(self, key: str) -> None:
        self._store.delete(key)

    def read(self, key: str) -> str | None:
        memory = self._store.get(key)
        return memory.payload["data"] if memory else None

    def first(self, text: str) -> str | None:
        memories = self._store.search(text, self._encode(text), top_k=1, filters={"user_id": "somebody"})
        return memories[0].payload["data"] if memories else None

    def close(self) -> None:
        self._store.connection_pool.close()


def mem0_store() -> Any:
    """Return mem0's class, imported so that it reports nothing and leaves nothing in the home folder."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setenv("MEM0_TELEMETRY", "False")
        patch.setenv("MEM0_DIR", folder)
        return pytest.importorskip("mem0.vector_stores.pgvector").PGVector
