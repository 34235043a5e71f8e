"""Which store a URL names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from vecferry.errors import InvalidStoreUrl, SettingsError, VecferryError
from vecferry.stores.backend import ANYONE, Backend, Fields, ServerAccess
from vecferry.stores.protocol import Store
from vecferry.stores.text_source import TextSource, framework_source, text_source
from vecferry.stores.values import Layout

POSTGRES = ("postgresql", "postgres")
KEY_FIELD = "id"
"""Of points in other stores, where nothing is said."""
MadeFunction = Callable[[], Any]
"""Makes a function of Chroma, once a collection is created."""


def open_store(
    url: str,
    collection: str,
    *,
    text: str,
    vector: str,
    key: str | None,
    control: Path,
    source: str | None = None,
    embed_missing: bool = False,
    layout: Layout = Layout.COLUMNS,
    new_vector: str | None = None,
    access: ServerAccess = ANYONE,
    embedding_function: MadeFunction | None = None,
) -> Store:
    """Open the collection at that URL; close it when done. Its scheme says which store, and with `+` how it is reached.

    text, vector, key: columns or fields. key: `id` if not said; in PostgreSQL a unique key (`pgvector/keys.py`)
    in the place of the one that is found without a name. text may be a template, or what a framework embeds
    (`text_source.py`), and in PostgreSQL an expression of SQL. control: the SQLite file of the ledger, for all but
    PostgreSQL, which keeps it itself. source: a view or query of PostgreSQL that has the key, and `text` as a column.
    new_vector: as in `backend.Fields`. embed_missing: as in `StoreTraits`. layout: where a migration that is yet to
    begin keeps the other vectors; only PostgreSQL has a choice. access: PostgreSQL has it in the URL, and takes
    none of it. embedding_function: makes the function by which a new collection of Chroma embeds texts itself.
    Raises InvalidStoreUrl, SettingsError, MissingExtra, StoreUnreachable, StoreSchemaError.
    """
    _refuse_what_is_chromas(url, access, embedding_function)
    if new_vector is not None and _kind(url) != "qdrant":
        raise SettingsError("[store] new_vector", new_vector, "none; only in Qdrant a vector has a name of its own")
    if url.partition(":")[0].lower() in POSTGRES:
        from vecferry.stores.pgvector import PgVectorStore

        return PgVectorStore.connect(
            url, collection, text, vector, source, embed_missing=embed_missing, layout=layout, key=key
        )
    if source is not None:
        raise SettingsError("[store] source", source, "none; only PostgreSQL takes a view or query")
    if layout is not Layout.COLUMNS:
        raise SettingsError("[store] layout", layout.value, "none; only PostgreSQL has a choice")
    framework = framework_source(text, _kind(url))
    told = framework or text_source(text)
    backend = open_backend(url, Fields(key or KEY_FIELD, told.field, vector, new_vector), access, embedding_function)
    if framework is not None:
        _require_text(backend, collection, text)
    return _mirrored(backend, collection, control, told, embed_missing=embed_missing)


def _refuse_what_is_chromas(url: str, access: ServerAccess, embedding_function: MadeFunction | None) -> None:
    """Raise SettingsError for what would be left unheard."""
    is_embedding = None if embedding_function is None else True
    options = {"tenant": access.tenant, "database": access.database, "embedding_function": is_embedding}
    for name, value in options.items():
        if value is not None and _kind(url) != "chroma":
            raise SettingsError(f"[store] {name}", value, "none; only Chroma takes one")


def _kind(url: str) -> str:
    """Return the scheme as far as it says which store."""
    return _scheme(url).partition("+")[0]


def _scheme(url: str) -> str:
    """Return what stands before the colon; empty where there is none."""
    return url.partition(":")[0].lower() if ":" in url else ""


def open_backend(
    url: str, fields: Fields, access: ServerAccess = ANYONE, embedding_function: MadeFunction | None = None
) -> Backend:
    """Open the store at that URL, any but PostgreSQL; to be closed. Raises as `open_store` does."""
    openers: dict[str, Callable[[str, Fields, ServerAccess], Backend]] = {
        "chroma": partial(_chroma, embedding_function=embedding_function),
        "lancedb": _lancedb,
        "milvus": _milvus,
        "qdrant": _qdrant,
        "sqlite": _sqlite_vec,
        "faiss": _faiss,
    }
    if (opener := openers.get(_kind(url))) is None:
        known = ", ".join(f"{name}:" for name in (POSTGRES[0], *openers))
        raise InvalidStoreUrl(f"{_scheme(url)}:…", f"one that begins with {known}")  # the rest may hold a password
    return opener(url, fields, access)


def _require_text(backend: Backend, collection: str, framework: str) -> None:
    """Raise StoreSchemaError if the first point has no text where the framework keeps it; close the backend then."""
    try:
        points = backend.get(collection, [*islice(backend.ids(collection), 1)])
        if points and points[0].text is None:
            framework_source(framework, backend.kind, points[0].payload)
    except VecferryError:
        backend.close()
        raise


def _mirrored(backend: Backend, collection: str, control: Path, source: TextSource, *, embed_missing: bool) -> Store:
    """Open the ledger beside the backend. A plain field is where the backend has its texts."""
    from vecferry.stores.mirror import MirrorStore
    from vecferry.stores.sqlite import SqliteLedger

    try:
        own = source.at(backend.text_field)
        return MirrorStore(backend, collection, SqliteLedger.open(control), own, embed_missing=embed_missing)
    except VecferryError:
        backend.close()
        raise


def _chroma(
    url: str,
    fields: Fields,  # noqa: ARG001  # it has places of its own
    access: ServerAccess,
    embedding_function: MadeFunction | None,
) -> Backend:
    from vecferry.stores.chroma import ChromaBackend

    return ChromaBackend.open(url, access, embedding_function)


def _faiss(url: str, fields: Fields, access: ServerAccess) -> Backend:  # noqa: ARG001  # a folder
    from vecferry.stores.faiss import FaissBackend

    return FaissBackend.open(url, fields)


def _lancedb(url: str, fields: Fields, access: ServerAccess) -> Backend:  # noqa: ARG001  # a folder
    from vecferry.stores.lancedb import LanceBackend

    return LanceBackend.open(url, fields)


def _milvus(url: str, fields: Fields, access: ServerAccess) -> Backend:
    from vecferry.stores.milvus import MilvusBackend

    return MilvusBackend.open(url, fields, access.token)


def _qdrant(url: str, fields: Fields, access: ServerAccess) -> Backend:
    from vecferry.stores.qdrant import QdrantBackend

    return QdrantBackend.open(url, fields, access.token)


def _sqlite_vec(url: str, fields: Fields, access: ServerAccess) -> Backend:  # noqa: ARG001  # a file
    from vecferry.stores.sqlite_vec import SqliteVecBackend

    return SqliteVecBackend.open(url, fields)
