"""The application's side of a migration: each request is answered by the model and the index that belong together.

A request pins one serving epoch: it encodes with that epoch's model and asks that epoch's index, wherever
that lies by then. Since the index that no longer serves is kept current until `finalize`, a request
that began before the switch is answered rightly after it. An epoch is read again after `max_age_s`,
and whenever the store says that its space is gone or serves no more; so a process that was there
before the switch follows within that time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from vecferry.embeddings import DENSE, Embeddings, Float32, Outputs
from vecferry.encode.encoder import Role, TextEncoder
from vecferry.errors import InvalidText, SpaceMismatch, StoreSchemaError, StoreUnreachable
from vecferry.migrate.config import read_config
from vecferry.migrate.opening import open_configured_store, serving_encoders
from vecferry.precisions import FP32, Mark
from vecferry.stores.filters import Filter, Selection
from vecferry.stores.ledger import MigrationRecord, Serving
from vecferry.stores.protocol import Store, StoreGroup
from vecferry.stores.text_source import TextSource
from vecferry.stores.values import Hit, Key, Record, Row, Side

T = TypeVar("T")

TRIES = 4
"""Each but the first follows a switch that came between looking and asking."""


@dataclass(frozen=True)
class Document:
    """What an application stores. payload: other columns, fields or metadata by name, as in `Record`."""

    key: Key
    text: str | None
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """A query for one epoch. vector: float32 [D]. locator: the index to ask, a column or a collection.

    thresholds: of that epoch, as in `Serving`. fingerprint: of the index, as `Store.search` takes it.
    """

    epoch: int
    generation: int
    fingerprint: str
    locator: str
    vector: Float32
    thresholds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Passages:
    """Passages for one epoch. vectors: float32 [N, D]. locator: where they belong, a column or a collection."""

    epoch: int
    generation: int
    fingerprint: str
    locator: str
    vectors: Float32


@dataclass(frozen=True)
class Answer:
    """hits: best first, all from the index of that space. thresholds: cut-offs for their scores, as in `Serving`."""

    epoch: int
    generation: int
    fingerprint: str
    hits: tuple[Hit, ...]
    thresholds: Mapping[str, float]


class Router:
    """For all threads of a process; each asks through a store of its own, by `store.another`.

    old and new: the two models. max_age_s: how long a serving epoch is taken for the present one.
    Requests raise SpaceMismatch if neither model is in the space that serves, and StoreUnreachable,
    StoreSchemaError or StoreFailed as the store does.
    """

    def __init__(self, store: Store, *, old: TextEncoder, new: TextEncoder, max_age_s: float = 1.0) -> None:
        self._store = store
        self._old = old
        self._new = new
        self._max_age_s = max_age_s
        self._lock = threading.Lock()  # of the epoch
        self._opening = threading.Lock()  # of the stores
        self._stores: dict[threading.Thread, Store] = {}
        self._serving: Serving | None = None
        self._read_at = 0.0
        self._closed = False
        self._owned: Store | None = None

    @classmethod
    def from_config(cls, path: Path | str, *, max_age_s: float = 1.0, client: object | None = None) -> Self:
        """Open the store and the models of a migration's file, as the command line does; close it when done.

        The environment says what the file does not: VECFERRY_STORE_URL, VECFERRY_STORE_TOKEN. A model is loaded once
        something is encoded with it; `warm` loads both. client: the application's own, of Chroma or Qdrant, which stays
        open. Raises SettingsError, and as `open_store` does.
        """
        config = read_config(Path(path))
        old, new = serving_encoders(config)
        store = open_configured_store(config, client=client)
        router = cls(store, old=old, new=new, max_age_s=max_age_s)
        router._owned = store
        return router

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm(self) -> None:
        """Leave both models loaded, so that the switch slows no request down."""
        for encoder in (self._old, self._new):
            encoder.encode(["warm"], role="query")

    def search(
        self,
        text: str,
        k: int = 10,
        *,
        where: Filter | None = None,
        with_text: bool = False,
        with_payload: bool = False,
    ) -> Answer:
        """Return the k rows nearest to the text, of all or of those that `where` lets through.

        where: such as {"lang": "en"} (`stores/filters.py`), which means the same to every store and on both sides of a
        migration; or a `NativeFilter`, the store's own. with_text, with_payload: let each hit carry what is stored
        beside its key.
        Raises InvalidText, InvalidFilter, ModelRuntimeError.
        """
        selection = Selection.of(where, with_text=with_text, with_payload=with_payload)

        def search(store: Store, query: Query) -> Sequence[Hit]:
            return store.search(query.vector, k, fingerprint=query.fingerprint, selection=selection)

        return self._answered(text, search)

    @property
    def text_source(self) -> TextSource:
        """Return how the text of a row is made, of which fields."""
        return self._store.traits.source

    def encode_query(self, text: str) -> Query:
        """Encode for applications that search the index themselves, which must be at once. Raises as `search` does."""
        return self._following(lambda _, serving: self._encoded(serving, text))

    def encode_passages(self, texts: Sequence[str]) -> Passages:
        """Encode for applications that write their rows themselves. Raises as `search` does.

        A row that is written with them after a switch is noted, and gets the vector of its side: nothing is lost, but
        a column of another dimension refuses it. Compare the epoch with the store's in the transaction of the write.
        """

        def encode(_: Store, serving: Serving) -> Passages:
            encoder = self._encoder(serving, "passage")
            vectors = _encode(encoder, texts, "passage").dense
            index = _index_of(serving, encoder)
            return Passages(serving.epoch, serving.generation, index, serving.locator, vectors)

        return self._following(encode)

    def serving(self) -> Serving:
        """Return the present epoch. Raises StoreUnreachable, StoreFailed."""
        return self._following(lambda _, serving: serving)

    def serving_encoder(self, role: Role = "query") -> tuple[Serving, TextEncoder]:
        """Return the present epoch and its model, for texts in that role."""
        return self._following(lambda _, serving: (serving, self._encoder(serving, role)))

    def put(self, documents: Sequence[Document]) -> Serving:
        """Leave these rows in the index that serves, new or replaced; return its epoch. Repeating is safe.

        A text of None has no vector. Raises InvalidText, by the document's position, and then nothing is written.
        """

        def write(store: Store, serving: Serving) -> Serving:
            encoder, record = self._encoder(serving, "passage"), _record_of(store, serving)
            outputs = DENSE if record is None else Outputs.of(record.spec.outputs)
            if serving.fingerprint is not None:
                where = f"a write to {store.target}"
                encoder.space.mark(outputs).require(Mark.parse(serving.fingerprint), "passage", where)
            records = _records(encoder, documents, outputs, _sources(store, documents))
            store.put(records, fingerprint=_index_of(serving, encoder))
            if record is not None:
                _note_form(store, record, encoder, records)
            return serving

        return self._following(write)

    def remove(self, keys: Sequence[Key]) -> None:
        """Leave the collection without these rows. Repeating is safe."""
        self._connected(lambda store: store.remove(keys))

    def get(self, keys: Sequence[Key]) -> list[Row]:
        """Return those of these rows that are there, with their texts, in the order of `keys`."""
        return self._connected(lambda store: store.rows(keys))

    def within(self, member: str) -> MemberRouter:
        """Return the router of one collection of a group. Raises StoreSchemaError for a name that it cannot have."""
        group = _as_group(self._store)
        group.key_within(member, ("",))
        return MemberRouter(self, group, member)

    def search_within(
        self,
        member: str,
        text: str,
        k: int = 10,
        *,
        where: Filter | None = None,
        with_text: bool = False,
        with_payload: bool = False,
    ) -> Answer:
        """Search one collection of a group alone, otherwise as `search`; its hits have the keys of the group."""
        selection = Selection.of(where, with_text=with_text, with_payload=with_payload)

        def search(store: Store, query: Query) -> Sequence[Hit]:
            within = _as_group(store).search_within
            return within(member, query.vector, k, fingerprint=query.fingerprint, selection=selection)

        return self._answered(text, search)

    def close(self) -> None:
        """Close the stores that the router has opened, once no thread asks any more. Repeating is safe."""
        with self._opening:
            self._closed = True
            stores = [*self._stores.values(), *([self._owned] if self._owned else [])]
            self._stores.clear()
            self._owned = None
        for store in stores:
            store.close()

    # --- the epoch --------------------------------------------------------------------------------

    def _following(self, request: Callable[[Store, Serving], T]) -> T:
        """Make `request` with the present epoch, and with the next one if it was switched meanwhile."""

        def followed(store: Store) -> T:
            serving = self._present(store, self._max_age_s)
            for _ in range(TRIES - 1):
                try:
                    return request(store, serving)
                except SpaceMismatch:
                    later = self._present(store, max_age_s=0)
                    if later == serving:
                        raise
                    serving = later
            return request(store, serving)

        return self._connected(followed)

    def _present(self, store: Store, max_age_s: float) -> Serving:
        """Return what serves, as of at most `max_age_s` ago; never an earlier epoch than one that was seen here."""
        with self._lock:
            if self._serving is not None and time.monotonic() - self._read_at < max_age_s:
                return self._serving
        asked_at = time.monotonic()
        serving = store.ledger.serving(store.target) or Serving(0, 0, store.serving_locator(Side.OLD), None)
        with self._lock:
            if self._serving is None or serving.epoch >= self._serving.epoch:
                self._serving = serving
                self._read_at = max(self._read_at, asked_at)
            return self._serving

    def _encoder(self, serving: Serving, role: Role) -> TextEncoder:
        """Return the model that serves; vectors whose space nobody has recorded are those from before the migration.

        Raises PrecisionMismatch for a precision that may not be used in that role.
        """
        if serving.fingerprint is None:
            return self._old
        index, refused = Mark.parse(serving.fingerprint), list[Mark]()
        for encoder in (self._new, self._old):  # once the new one serves, the old one may be gone
            mark = encoder.space.mark()
            if not mark.refusal(index, role):
                return encoder
            refused += [mark] if mark.fingerprint == index.fingerprint else []
        for mark in refused:
            mark.require(index, role, f"the vectors of {self._store.target} that serve")
        where = f"neither of the router's models made the vectors of {self._store.target} that serve; its new model"
        raise SpaceMismatch(expected=str(index), found=str(self._new.space.mark()), where=where)

    def _encoded(self, serving: Serving, text: str) -> Query:
        encoder = self._encoder(serving, "query")
        vector = _encode(encoder, [text], "query").dense[0]
        index = _index_of(serving, encoder)
        return Query(serving.epoch, serving.generation, index, serving.locator, vector, serving.thresholds)

    def _answered(self, text: str, search: Callable[[Store, Query], Sequence[Hit]]) -> Answer:
        def answer(store: Store, serving: Serving) -> Answer:
            query = self._encoded(serving, text)
            hits = search(store, query)
            return Answer(query.epoch, query.generation, query.fingerprint, tuple(hits), query.thresholds)

        return self._following(answer)

    # --- a store for each thread ------------------------------------------------------------------

    def _connected(self, request: Callable[[Store], T]) -> T:
        """Make `request` through this thread's store; once more, by a new connection, if the old one is gone."""
        store = self._stores.get(threading.current_thread()) or self._open()
        try:
            return request(store)
        except StoreUnreachable:
            store.reconnect()
            return request(store)

    def _open(self) -> Store:
        """Open a store for this thread; those of threads that have ended are closed."""
        with self._opening:
            assert not self._closed, "the router is closed"
            ended = [self._stores.pop(thread) for thread in list(self._stores) if not thread.is_alive()]
            own = self._stores[threading.current_thread()] = self._store.another()
        for store in ended:
            store.close()
        return own


class MemberRouter:
    """One collection of a group, by the keys that its points have there, under the epoch of the whole group.

    A collection that is not there yet is made by the first `put`, as the others are. Requests raise what those of
    `Router` do.
    """

    def __init__(self, router: Router, group: StoreGroup, member: str) -> None:
        self._router, self._group, self._member = router, group, member

    def search(
        self,
        text: str,
        k: int = 10,
        *,
        where: Filter | None = None,
        with_text: bool = False,
        with_payload: bool = False,
    ) -> Answer:
        """Return the k rows of this collection nearest to the text, as `Router.search` does."""
        answer = self._router.search_within(
            self._member, text, k, where=where, with_text=with_text, with_payload=with_payload
        )
        return replace(answer, hits=tuple(replace(hit, key=self._own(hit.key)) for hit in answer.hits))

    def encode_query(self, text: str) -> Query:
        """Encode for applications that search the collection themselves, by the name that is the query's locator."""
        query = self._router.encode_query(text)
        return replace(query, locator=self._group.locator_within(query.locator, self._member))

    def encode_passages(self, texts: Sequence[str]) -> Passages:
        """Encode for applications that write to the collection themselves; as `Router.encode_passages`."""
        passages = self._router.encode_passages(texts)
        return replace(passages, locator=self._group.locator_within(passages.locator, self._member))

    def put(self, documents: Sequence[Document]) -> Serving:
        """Leave these rows in the collection, new or replaced; as `Router.put`."""
        return self._router.put([replace(each, key=self._key(each.key)) for each in documents])

    def remove(self, keys: Sequence[Key]) -> None:
        """Leave the collection without these rows. Repeating is safe."""
        self._router.remove([self._key(key) for key in keys])

    def get(self, keys: Sequence[Key]) -> list[Row]:
        """Return those of these rows that are there, in the order of `keys`."""
        rows = self._router.get([self._key(key) for key in keys])
        return [replace(row, key=self._own(row.key)) for row in rows]

    def _key(self, key: Key) -> Key:
        return self._group.key_within(self._member, key)

    def _own(self, key: Key) -> Key:
        return self._group.key_of_member(key)[1]


def _as_group(store: Store) -> StoreGroup:
    """Return the store as a group. Raises StoreSchemaError if it is one collection."""
    if isinstance(store, StoreGroup):
        return store
    raise StoreSchemaError(
        f"{store.target} is one collection", "Ask the router itself, or open it with [store] collections."
    )


def _index_of(serving: Serving, encoder: TextEncoder) -> str:
    """Return the mark of the index that serves; of one that nobody has recorded, the model's own."""
    return serving.fingerprint or str(encoder.space.mark())


def _record_of(store: Store, serving: Serving) -> MigrationRecord | None:
    """Return the migration whose new side serves, if one does."""
    record = store.ledger.find(store.target)
    return None if record is None or record.spec.fingerprint != serving.fingerprint else record


def _note_form(store: Store, migration: MigrationRecord, encoder: TextEncoder, records: Sequence[Record]) -> None:
    """Keep in which precision these rows are, where it is not their index's; an index of fp32 alone costs nothing."""
    form, index = encoder.space.form().name, Mark.parse(migration.spec.fingerprint).form.name
    if form == index == FP32.name:
        return
    keys = [each.key for each in records if each.vectors is not None]
    with store.transaction():
        if form == index:
            store.ledger.forget_forms(migration, keys)
        else:
            store.ledger.note_forms(migration, form, keys)


def _encode(encoder: TextEncoder, texts: Sequence[str], role: Role, outputs: Outputs = DENSE) -> Embeddings:
    embeddings = encoder.encode(texts, outputs=outputs, role=role)
    embeddings.require_key(encoder.space.key, "the encoder's answer")
    return embeddings


def _sources(store: Store, documents: Sequence[Document]) -> list[TextSource]:
    """Return how the text of each document is made: in a group as its member says. Raises StoreSchemaError."""
    if not isinstance(store, StoreGroup):
        return [store.traits.source] * len(documents)
    return [store.source_within(store.key_of_member(document.key)[0]) for document in documents]


def _records(
    encoder: TextEncoder, documents: Sequence[Document], outputs: Outputs, sources: Sequence[TextSource]
) -> list[Record]:
    """Encode documents, each by its text and those fields of its payload that its source reads.

    Raises InvalidText by the document's position.
    """
    records = [Record(document.key, document.text, None, document.payload) for document in documents]
    pairs = zip(documents, sources, strict=True)
    rendered = {
        i: source.render({**(document.payload or {}), source.field: document.text})
        for i, (document, source) in enumerate(pairs)
    }
    texts = {i: text for i, text in rendered.items() if text is not None and documents[i].text is not None}
    if texts:
        try:
            embeddings = _encode(encoder, list(texts.values()), "passage", outputs)
        except InvalidText as exc:
            raise exc.at(list(texts)[exc.row]) from exc
        for row, i in enumerate(texts):
            records[i] = replace(records[i], vectors=embeddings[row])
    return records
