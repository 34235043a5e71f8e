"""Which store a URL names."""

from __future__ import annotations

from pathlib import Path

from vecferry.errors import InvalidStoreUrl, SettingsError, VecferryError
from vecferry.stores.backend import ANYONE, Backend, Fields, ServerAccess
from vecferry.stores.protocol import Store
from vecferry.stores.text_source import TextSource, text_source

POSTGRES = ("postgresql", "postgres")


def open_store(
    url: str, collection: str, *, text: str, vector: str, key: str, control: Path, access: ServerAccess = ANYONE
) -> Store:
    """Open the collection at that URL; close it when done. Its scheme says which store, and with `+` how it is reached.

    text, vector, key: columns or fields; PostgreSQL knows its key. text may be a template too, or "llama-index"
    (`text_source.py`). control: the SQLite file of the ledger,
    for all but PostgreSQL, which keeps it itself. access: PostgreSQL has it in the URL, and takes none of it.
    Raises InvalidStoreUrl, SettingsError, MissingExtra, StoreUnreachable, StoreSchemaError.
    """
    _refuse_places(url, access)
    if url.partition(":")[0].lower() in POSTGRES:
        from vecferry.stores.pgvector import PgVectorStore

        return PgVectorStore.connect(url, collection, text, vector)
    source = text_source(text)
    return _mirrored(open_backend(url, Fields(key, source.field, vector), access), collection, control, source)


def _refuse_places(url: str, access: ServerAccess) -> None:
    """Raise SettingsError for a tenant or database where it would be left unheard."""
    for name, value in (("tenant", access.tenant), ("database", access.database)):
        if value is not None and _kind(url) != "chroma":
            raise SettingsError(f"[store] {name}", value, "none; only Chroma takes one, others have it in the URL")


def _kind(url: str) -> str:
    """Return the scheme as far as it says which store; empty where there is none."""
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    return scheme.partition("+")[0]


def open_backend(url: str, fields: Fields, access: ServerAccess = ANYONE) -> Backend:
    """Open the store at that URL, any but PostgreSQL; to be closed. Raises as `open_store` does."""
    openers = {"chroma": _chroma, "lancedb": _lancedb, "milvus": _milvus, "qdrant": _qdrant}
    if (opener := openers.get(_kind(url))) is None:
        known = ", ".join(f"{name}:" for name in (POSTGRES[0], *openers))
        scheme = url.partition(":")[0].lower() if ":" in url else ""
        raise InvalidStoreUrl(f"{scheme}:…", f"one that begins with {known}")  # the rest may hold a password
    return opener(url, fields, access)


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


def _chroma(url: str, fields: Fields, access: ServerAccess) -> Backend:  # noqa: ARG001  # it has places of its own
    from vecferry.stores.chroma import ChromaBackend

    return ChromaBackend.open(url, access)


def _lancedb(url: str, fields: Fields, access: ServerAccess) -> Backend:  # noqa: ARG001  # a folder
    from vecferry.stores.lancedb import LanceBackend

    return LanceBackend.open(url, fields)


def _milvus(url: str, fields: Fields, access: ServerAccess) -> Backend:
    from vecferry.stores.milvus import MilvusBackend

    return MilvusBackend.open(url, fields, access.token)


def _qdrant(url: str, fields: Fields, access: ServerAccess) -> Backend:
    from vecferry.stores.qdrant import QdrantBackend

    return QdrantBackend.open(url, fields, access.token)
