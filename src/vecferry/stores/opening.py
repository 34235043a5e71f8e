"""Which store a URL names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from vecferry.errors import InvalidStoreUrl, SettingsError, VecferryError
from vecferry.stores.backend import ANYONE, Backend, Fields, ServerAccess
from vecferry.stores.group import GroupBackend, Member, Part, group_name, group_of
from vecferry.stores.protocol import Store
from vecferry.stores.text_source import FieldText, TextSource, framework_source, text_source
from vecferry.stores.values import Layout

POSTGRES = "postgresql"
TEXT, VECTOR, KEY_FIELD, CONTROL = "text", "embedding", "id", Path(".vecferry/control.db")
"""What a collection's fields, and the file of its ledger, are called where nobody says so."""
MadeFunction = Callable[[], Any]
"""Makes a function of Chroma, once a collection is created."""


@dataclass(frozen=True)
class PostgresOptions:
    """What a table of PostgreSQL is opened with. source: a view or query that has the key, and the text as a column.

    layout: where a migration that is yet to begin keeps the other vectors; None is in columns, and beside `where` in a
    side table, the only place for them there. where: a condition of SQL on the rows that are meant, where the table has
    others too.
    """

    source: str | None = None
    layout: Layout | None = None
    where: str | None = None


@dataclass(frozen=True)
class ChromaOptions:
    """What a collection of Chroma is opened with. tenant, database: if not its default ones.

    embedding_function: makes the function by which a new collection embeds texts itself.
    """

    tenant: str | None = None
    database: str | None = None
    embedding_function: MadeFunction | None = None


@dataclass(frozen=True)
class QdrantOptions:
    """What a collection of Qdrant is opened with. new_vector: as in `backend.Fields`."""

    new_vector: str | None = None


StoreOptions = PostgresOptions | ChromaOptions | QdrantOptions
KINDS: Mapping[type[StoreOptions], tuple[str, str]] = {
    PostgresOptions: (POSTGRES, "PostgreSQL"),
    ChromaOptions: ("chroma", "Chroma"),
    QdrantOptions: ("qdrant", "Qdrant"),
}
"""Which store takes them, by its scheme and its name."""


def open_store(
    url: str,
    collection: str | Sequence[Member],
    *,
    text: str = TEXT,
    vector: str = VECTOR,
    key: str | None = None,
    control: Path = CONTROL,
    embed_missing: bool = False,
    token: str | None = None,
    options: StoreOptions | None = None,
    client: object | None = None,
) -> Store:
    """Open the collection at that URL; close it when done. Its scheme says which store, and with `+` how it is reached.

    collection: its name; or several, which are migrated as one (`group.py`, and `pgvector/group.py` for tables).
    text, vector, key: columns or fields; Chroma has places of its own. key: `id` if not said; in PostgreSQL a unique
    key (`pgvector/keys.py`) in the place of the one that is found without a name. text may be a template, or what a
    framework embeds (`text_source.py`), and in PostgreSQL an expression of SQL. control: the SQLite file of the ledger,
    which PostgreSQL keeps in the database instead. embed_missing: as in `StoreTraits`. token: of a server of Chroma,
    Qdrant or Milvus. options: of this kind of store. client: the application's own, of Chroma or Qdrant, which stays
    open; of the URL its scheme alone counts then.
    Raises InvalidStoreUrl, SettingsError, MissingExtra, StoreUnreachable, StoreSchemaError.
    """
    _refuse_others(url, options, client)
    if store_kind(url) == POSTGRES:
        from vecferry.stores.pgvector import GroupOptions, PgGroupStore, PgVectorStore

        own = options if isinstance(options, PostgresOptions) else PostgresOptions()
        if not isinstance(collection, str):
            _refuse_of_one_table(own)
            group = GroupOptions(tuple(collection), text, vector, key, embed_missing, own.layout or Layout.COLUMNS)
            return PgGroupStore.connect(url, group)
        return PgVectorStore.connect(
            url,
            collection,
            text,
            vector,
            own.source,
            where=own.where,
            embed_missing=embed_missing,
            layout=own.layout,
            key=key,
        )
    chroma = options if isinstance(options, ChromaOptions) else ChromaOptions()
    new_vector = options.new_vector if isinstance(options, QdrantOptions) else None
    framework = framework_source(text, store_kind(url))
    told = framework or text_source(text)
    places = Fields(key or KEY_FIELD, told.field, vector, new_vector)
    access = ServerAccess(token, chroma.tenant, chroma.database)

    def opened(fields: Fields) -> Backend:
        if client is not None:
            return _over(client, fields, chroma)
        return open_backend(url, fields, access, chroma.embedding_function)

    if isinstance(collection, str):
        backend = opened(places)
    else:
        _refuse_what_is_the_whole_stores(collection, told, store_kind(url))
        backend = _group(collection, places, opened)
    if framework is not None:
        _require_text(backend, _name_of(collection), text)
    return _mirrored(backend, _name_of(collection), control, told, embed_missing=embed_missing)


def _name_of(collection: str | Sequence[Member]) -> str:
    return collection if isinstance(collection, str) else group_name([member.name for member in collection])


def _refuse_of_one_table(options: PostgresOptions) -> None:
    """Raise SettingsError for what says something of one table, and is not said of several."""
    for name in ("source", "where"):
        if (value := getattr(options, name)) is not None:
            expected = "none beside [store] collections; it is of one table, which has a migration of its own"
            raise SettingsError(f"[store] {name}", value, expected)


def _refuse_what_is_the_whole_stores(members: Sequence[Member], source: TextSource, kind: str) -> None:
    """Raise SettingsError for what a member cannot have by itself."""
    for member in members:
        for name in ("text", "vector", "key"):
            if (value := getattr(member, name)) is not None and kind == "chroma":
                raise SettingsError(f"[[collections]] {name}", value, "none; Chroma has its own places for them")
        if member.text is not None and not (isinstance(source, FieldText) and _is_field(member.text, kind)):
            expected = "the name of a field; a template stands in [store] text alone, and holds for all"
            raise SettingsError("[[collections]] text", member.text, expected)


def _is_field(text: str, kind: str) -> bool:
    return framework_source(text, kind) is None and isinstance(text_source(text), FieldText)


def _group(members: Sequence[Member], fields: Fields, opened: Callable[[Fields], Backend]) -> GroupBackend:
    """Open a backend for all members that have the same fields."""
    own = [
        replace(fields, text=each.text or fields.text, key=each.key or fields.key, vector=_vector(each, fields))
        for each in members
    ]
    backends: dict[Fields, Backend] = {}
    try:
        for each in own:
            backends[each] = backends.get(each) or opened(each)
    except VecferryError:
        for backend in backends.values():
            backend.close()
        raise
    return group_of([Part(member.name, backends[each]) for member, each in zip(members, own, strict=True)])


def _vector(member: Member, fields: Fields) -> str:
    return fields.vector if member.vector is None else member.vector


def store_kind(url: str) -> str:
    """Return which store a URL names: its scheme, without the way by which it is reached."""
    kind = _scheme(url).partition("+")[0]
    return POSTGRES if kind == "postgres" else kind


def _scheme(url: str) -> str:
    """Return what stands before the colon; empty where there is none."""
    return url.partition(":")[0].lower() if ":" in url else ""


def _refuse_others(url: str, options: StoreOptions | None, client: object | None) -> None:
    """Raise SettingsError for what would be left unheard: an option or a client of another kind of store."""
    if client is not None and store_kind(url) not in ("chroma", "qdrant"):
        raise SettingsError("client", type(client).__name__, "none; only Chroma or Qdrant takes one")
    if options is None or store_kind(url) == KINDS[type(options)][0]:
        return
    for each in fields_of(options):
        if (value := getattr(options, each.name)) != each.default:
            shown = True if callable(value) else value
            raise SettingsError(f"[store] {each.name}", shown, f"none; only {KINDS[type(options)][1]} takes one")


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
    if (opener := openers.get(store_kind(url))) is None:
        known = ", ".join(f"{name}:" for name in (POSTGRES, *openers))
        raise InvalidStoreUrl(f"{_scheme(url)}:…", f"one that begins with {known}")  # the rest may hold a password
    return opener(url, fields, access)


def _over(client: Any, places: Fields, chroma: ChromaOptions) -> Backend:
    """Return the store that the application's client has open. Raises SettingsError for any other client."""
    module = type(client).__module__.partition(".")[0]
    if module == "chromadb":
        from vecferry.stores.chroma import ChromaBackend

        return ChromaBackend(client, chroma.embedding_function)
    if module == "qdrant_client":
        from vecferry.stores.qdrant import QdrantBackend
        from vecferry.stores.qdrant.connection import QdrantConnection

        return QdrantBackend(QdrantConnection.over(client), places)
    raise SettingsError("client", type(client).__name__, "chromadb's or qdrant_client's client")


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
    from vecferry.stores.mirror import GroupStore, MirrorStore
    from vecferry.stores.sqlite import SqliteLedger

    try:
        own = source.at(backend.text_field)
        if isinstance(backend, GroupBackend):
            return GroupStore(backend, SqliteLedger.open(control), own, embed_missing=embed_missing)
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
