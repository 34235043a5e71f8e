"""Which store a URL names."""

from __future__ import annotations

from pathlib import Path

from vecferry.errors import InvalidStoreUrl, VecferryError
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.protocol import Store

POSTGRES = ("postgresql", "postgres")


def open_store(url: str, collection: str, *, text: str, vector: str, key: str, control: Path) -> Store:
    """Open the collection at that URL; close it when done. Its scheme says which store, and with `+` how it is reached.

    text, vector, key: columns or fields; PostgreSQL knows its key. control: the SQLite file of the ledger,
    for all but PostgreSQL, which keeps it itself. Raises InvalidStoreUrl, MissingExtra,
    StoreUnreachable, StoreSchemaError.
    """
    if url.partition(":")[0].lower() in POSTGRES:
        from vecferry.stores.pgvector import PgVectorStore

        return PgVectorStore.connect(url, collection, text, vector)
    return _mirrored(open_backend(url, Fields(key, text, vector)), collection, control)


def open_backend(url: str, fields: Fields) -> Backend:
    """Open the store at that URL, any but PostgreSQL; to be closed. Raises as `open_store` does."""
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    openers = {"chroma": _chroma, "lancedb": _lancedb, "milvus": _milvus, "qdrant": _qdrant}
    if (opener := openers.get(scheme.partition("+")[0])) is None:
        known = ", ".join(f"{name}:" for name in (POSTGRES[0], *openers))
        raise InvalidStoreUrl(f"{scheme}:…", f"one that begins with {known}")  # the rest may hold a password
    return opener(url, fields)


def _mirrored(backend: Backend, collection: str, control: Path) -> Store:
    from vecferry.stores.mirror import MirrorStore
    from vecferry.stores.sqlite import SqliteLedger

    try:
        return MirrorStore(backend, collection, SqliteLedger.open(control))
    except VecferryError:
        backend.close()
        raise


def _chroma(url: str, fields: Fields) -> Backend:  # noqa: ARG001  # Chroma has its own places for all three
    from vecferry.stores.chroma import ChromaBackend

    return ChromaBackend.open(url)


def _lancedb(url: str, fields: Fields) -> Backend:
    from vecferry.stores.lancedb import LanceBackend

    return LanceBackend.open(url, fields)


def _milvus(url: str, fields: Fields) -> Backend:
    from vecferry.stores.milvus import MilvusBackend

    return MilvusBackend.open(url, fields)


def _qdrant(url: str, fields: Fields) -> Backend:
    from vecferry.stores.qdrant import QdrantBackend

    return QdrantBackend.open(url, fields)
