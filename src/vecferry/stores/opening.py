"""Which store a URL names."""

from __future__ import annotations

from pathlib import Path

from vecferry.errors import InvalidStoreUrl, VecferryError
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.protocol import Store
from vecferry.stores.text_source import TextSource, text_source

POSTGRES = ("postgresql", "postgres")


def open_store(url: str, collection: str, *, text: str, vector: str, key: str, control: Path) -> Store:
    """Open the collection at that URL; close it when done. Its scheme says which store, and with `+` how it is reached.

    text, vector, key: columns or fields; PostgreSQL knows its key. text may be a template too, or "llama-index"
    (`text_source.py`). control: the SQLite file of the ledger,
    for all but PostgreSQL, which keeps it itself. Raises InvalidStoreUrl, MissingExtra,
    StoreUnreachable, StoreSchemaError.
    """
    if url.partition(":")[0].lower() in POSTGRES:
        from vecferry.stores.pgvector import PgVectorStore

        return PgVectorStore.connect(url, collection, text, vector)
    source = text_source(text)
    return _mirrored(open_backend(url, Fields(key, source.field, vector)), collection, control, source)


def open_backend(url: str, fields: Fields) -> Backend:
    """Open the store at that URL, any but PostgreSQL; to be closed. Raises as `open_store` does."""
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    openers = {"chroma": _chroma, "lancedb": _lancedb, "milvus": _milvus, "qdrant": _qdrant}
    if (opener := openers.get(scheme.partition("+")[0])) is None:
        known = ", ".join(f"{name}:" for name in (POSTGRES[0], *openers))
        raise InvalidStoreUrl(f"{scheme}:…", f"one that begins with {known}")  # the rest may hold a password
    return opener(url, fields)


def _mirrored(backend: Backend, collection: str, control: Path, source: TextSource) -> Store:
    """Open the ledger beside the backend. A plain field is where the backend has its texts."""
    from vecferry.stores.mirror import MirrorStore
    from vecferry.stores.sqlite import SqliteLedger

    try:
        own = source.at(backend.text_field)
        return MirrorStore(backend, collection, SqliteLedger.open(control), own)
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
