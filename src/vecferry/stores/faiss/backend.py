"""`FaissBackend`: collections of a folder, in index files or being made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Self

import numpy as np
from filelock import FileLock, Timeout

from vecferry.embeddings import DENSE, Float32, Outputs, TextVectors
from vecferry.errors import Locked, StoreSchemaError, StoreUnreachable, without_secrets
from vecferry.stores.backend import PEEKED, BackendHit, Fields, Point, VectorField, path_in
from vecferry.stores.faiss import kinds
from vecferry.stores.faiss.docstore import Docstore, Entry, JsonLines, LangChainDocstore, require_plain
from vecferry.stores.faiss.index_files import IndexFiles, Loaded
from vecferry.stores.faiss.parquet import FORM, ParquetDocuments, names_in
from vecferry.stores.faiss.staged import SUFFIX, StagedCollection, Vectors
from vecferry.stores.filters import EVERY_ROW, Condition, Selection, matches, portable

URLS = "faiss:///absolute/folder, or faiss:relative/folder"
LOCK = ".vecferry-lock"
LOCK_TIMEOUT_S = 600


class FaissBackend:
    """`Backend`, `Renamable` and `Browsable` over the files of one folder. Dense vectors only.

    What is read is held in memory until the files change, as an application of FAISS does.
    """

    kind = "faiss"
    outputs = DENSE

    def __init__(self, folder: Path, fields: Fields) -> None:
        """Open the folder. Raises StoreUnreachable if there is none."""
        if not folder.is_dir():
            raise StoreUnreachable("faiss", f"there is no folder {without_secrets(str(folder))}")
        self._folder, self._fields = folder, fields
        self._docstores = _docstores(fields)
        self._lock = FileLock(folder / LOCK, timeout=LOCK_TIMEOUT_S)
        self._loaded: dict[str, Loaded] = {}
        self._vectors: dict[str, Vectors] = {}

    @classmethod
    def open(cls, url: str, fields: Fields) -> Self:
        """Open a URL: faiss:///an/absolute/folder, or faiss:a/relative/one."""
        return cls(Path(path_in(url, URLS)), fields)

    @property
    def text_field(self) -> str:
        return self._fields.text

    def another(self) -> FaissBackend:
        return FaissBackend(self._folder, self._fields)

    def close(self) -> None:
        self._loaded.clear()
        self._vectors.clear()

    # --- collections ------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        files = [*self._folder.glob("*.faiss"), *self._folder.glob(f"*{SUFFIX}")]
        names = {file.name.removesuffix(SUFFIX).removesuffix(".faiss") for file in files}
        return {name: name for name in names if self.exists(name)}

    def exists(self, collection: str) -> bool:
        return self._staged(collection) is not None or self._files(collection).docstore() is not None

    def dimension(self, collection: str) -> int | None:
        staged = self._staged(collection)
        return int(staged.empty_index().d if staged else self._load(collection).index.d)

    def count(self, collection: str) -> int:
        staged = self._staged(collection)
        return staged.count() if staged else len(self._load(collection).entries)

    def vector_fields(self) -> list[VectorField]:
        """Return the index of every file with documents beside it, which are all read."""
        names = sorted(file.stem for file in self._folder.glob("*.faiss"))
        fields = {name: _fields_of(self._folder / f"{name}.jsonl") for name in names}
        files = {name: IndexFiles(self._folder, name, _docstores(fields[name])) for name in names}
        return [_vector_field(name, fields[name], files[name].load()) for name in names if files[name].docstore()]

    def check(self, like: str, outputs: Outputs) -> None:
        if refused := outputs & ~self.outputs:
            raise StoreSchemaError(f"FAISS has no place for {', '.join(refused.names)}", "Leave it out.")
        if self._staged(like) is None:
            kinds.like(self._load(like).index, 1, like)

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        self.check(like, outputs)
        with self._locked():
            if self.exists(collection):
                raise StoreSchemaError(
                    f"there is a collection {collection!r} already", "Drop it, or take another name."
                )
            if staged := self._staged(like):
                index, docstore = staged.empty_index(), staged.docstore()
            else:
                loaded = self._load(like)
                index, docstore = loaded.index, loaded.docstore.name
            StagedCollection(self._staged_file(collection)).create(kinds.like(index, dimension, like), docstore)

    def drop(self, collection: str) -> None:
        with self._locked():
            StagedCollection(self._staged_file(collection)).drop()
            self._files(collection).drop()

    def rename(self, collection: str, name: str) -> None:
        """Make index files of that name; a process that is killed leaves what was there, and maybe them beside it."""
        with self._locked():
            if self.exists(name):
                raise StoreSchemaError(f"there is a collection {name!r} already", "Drop it, or take another name.")
            staged = self._staged(collection)
            if staged is None:
                loaded, created_as = self._load(collection), self.created_as(collection)
                self._files(name).replace(loaded.index, loaded.docstore, loaded.entries, created_as)
                self._files(collection).drop()
                return
            docstore = self._docstore(staged.docstore())
            index = kinds.filled(staged.empty_index(), staged.vectors().matrix)
            self._files(name).replace(index, docstore, staged.entries(), collection)
            staged.drop()

    def _docstore(self, name: str) -> Docstore:
        """Return the form of documents with that name."""
        if name.startswith(FORM):
            return ParquetDocuments.named(self._fields, name)
        return next(form for form in self._docstores if form.name == name)

    def created_as(self, collection: str) -> str | None:
        if not self.exists(collection):
            raise StoreSchemaError(f"there is no collection {collection!r} in {self._folder}", "Look at its name.")
        return collection if self._staged(collection) else self._files(collection).created_as()

    # --- points -----------------------------------------------------------------------------------

    def ids(self, collection: str) -> Iterator[str]:
        staged = self._staged(collection)
        return iter(staged.ids() if staged else list(self._load(collection).positions))

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        wanted = list(dict.fromkeys(ids))
        if staged := self._staged(collection):
            return staged.get(wanted, vectors=vectors)
        loaded = self._load(collection)
        positions = [loaded.positions[key] for key in wanted if key in loaded.positions]
        return [_point(loaded, position, vectors=vectors) for position in positions]

    def put(self, collection: str, points: Sequence[Point]) -> None:
        """Write points. Raises StoreSchemaError, with nothing written, for vectors of another length."""
        with self._locked():
            self._require_fit(collection, points)
            if staged := self._staged(collection):
                self._docstore(staged.docstore()).written([_entry(point) for point in points])  # or the end would fail
                staged.put(points)
            elif points:
                self._rewrite(collection, {point.id: point for point in points}, set())

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        with self._locked():
            if staged := self._staged(collection):
                staged.delete(ids)
            elif gone := self._load(collection).positions.keys() & set(ids):
                self._rewrite(collection, {}, gone)

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        """Search by the index of FAISS; while a collection is being made, compare with every vector.

        With a filter, which FAISS has none of, compare with the vectors of those documents that match.
        """
        query, where = np.asarray(vector, np.float32), portable(selection.where, "FAISS")
        if staged := self._staged(collection):
            known = self._vectors[collection] = staged.vectors(self._vectors.get(collection))
            entries = staged.entries() if where or selection.wants_points else []
            return _compared(known.matrix, known.ids, entries, query, k, where)
        loaded = self._load(collection)
        k = min(k, len(loaded.entries))
        if not k:
            return []
        if where is not None:
            ids = [entry.id for entry in loaded.entries]
            return _compared(loaded.vectors, ids, loaded.entries, query, k, where)
        distances, positions = loaded.index.search(query[np.newaxis], k)
        cosine = kinds.COSINES[loaded.index.metric_type]
        found = [(d, p) for d, p in zip(distances[0].tolist(), positions[0].tolist(), strict=True) if p >= 0]
        return [_hit(loaded.entries[position], cosine(distance)) for distance, position in found]

    def _rewrite(self, collection: str, put: dict[str, Point], gone: set[str]) -> None:
        """Write the files anew with these points in them, and without those that are gone."""
        loaded = self._load(collection)
        kept = [n for n, entry in enumerate(loaded.entries) if entry.id not in gone and entry.id not in put]
        entries = [loaded.entries[n] for n in kept]
        entries += map(_entry, put.values())
        added = [np.asarray(p.vectors.dense, np.float32)[np.newaxis] for p in put.values() if p.vectors is not None]
        vectors = np.concatenate([loaded.vectors[kept], *added])
        files = self._files(collection)
        index = loaded.index
        del self._loaded[collection]
        kinds.replaced(index, vectors)
        files.replace(index, loaded.docstore, entries, files.created_as())

    def _require_fit(self, collection: str, points: Sequence[Point]) -> None:
        size = self.dimension(collection)
        vectors = [point.vectors for point in points if point.vectors is not None]
        if any(each.outputs != DENSE for each in vectors):
            raise StoreSchemaError(f"{collection} has no place for sparse or ColBERT vectors", "Leave them out.")
        if len(vectors) < len(points) or any(each.dense.shape != (size,) for each in vectors):
            raise StoreSchemaError(f"{collection} has vectors of {size} numbers", "Every point needs such a vector.")
        if not all(np.isfinite(each.dense).all() for each in vectors):
            raise StoreSchemaError(f"{collection} takes finite numbers only", "Make the vectors anew.")
        require_plain(point.payload for point in points)

    # --- indexes ----------------------------------------------------------------------------------

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002
        """Build nothing: the index is made with its file, by `rename`."""
        return ()

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    # --- files ------------------------------------------------------------------------------------

    def _staged_file(self, collection: str) -> Path:
        return self._folder / f"{collection}{SUFFIX}"

    def _staged(self, collection: str) -> StagedCollection | None:
        file = self._staged_file(collection)
        return StagedCollection(file) if file.is_file() else None

    def _files(self, collection: str) -> IndexFiles:
        """Return the files, in their places."""
        files = IndexFiles(self._folder, collection, self._docstores)
        if files.is_committed():
            with self._locked():
                files.settle()
        return files

    def _load(self, collection: str) -> Loaded:
        files = self._files(collection)
        loaded = self._loaded[collection] = files.load(self._loaded.get(collection))
        return loaded

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes of ours from writing to the folder."""
        try:
            with self._lock:
                yield
        except Timeout as exc:
            raise Locked(str(self._folder), "another process of vecferry, for 10 minutes") from exc


def _docstores(fields: Fields) -> tuple[Docstore, ...]:
    """Return the forms that documents may have."""
    return LangChainDocstore(), JsonLines(fields), JsonLines(fields, has_numbers=True), ParquetDocuments(fields)


def _vector_field(name: str, fields: Fields, loaded: Loaded) -> VectorField:
    names = dict.fromkeys(name for entry in loaded.entries[:PEEKED] for name in entry.payload)
    dimensions, marks = (int(loaded.index.d),), (loaded.docstore.name.partition(" ")[0],)
    rows = len(loaded.entries)
    return VectorField(name, "embedding", dimensions, rows, (fields.text, *names), fields.text, fields.key, marks)


def _fields_of(lines: Path) -> Fields:
    """Return the names in the first of some JSON lines, or in a Parquet file beside; the usual ones without either."""
    if not lines.is_file():
        parquet = lines.with_suffix(".parquet")
        return names_in(parquet) if parquet.is_file() else Fields()
    with lines.open(encoding="utf-8") as opened:
        first = json.loads(opened.readline() or "{}")
    names = list(first) if isinstance(first, dict) else []
    key = "id" if "id" in names else next(iter(names), Fields.key)
    return Fields(key, next((name for name in names if name != key and isinstance(first[name], str)), Fields.text))


def _entry(point: Point) -> Entry:
    return Entry(point.id, point.text, dict(point.payload))


def _compared(
    matrix: Float32, ids: Sequence[str], entries: Sequence[Entry], query: Float32, k: int, where: Condition | None
) -> list[BackendHit]:
    """Compare with every vector, or those of documents that match. matrix: [N, D]. entries: none, or all N."""
    if where is not None:
        rows = [n for n, entry in enumerate(entries) if matches(where, entry.payload)]
        matrix, ids, entries = matrix[rows], [ids[n] for n in rows], [entries[n] for n in rows]
    length = float(np.linalg.norm(query)) or 1.0
    lengths = np.maximum(np.linalg.norm(matrix, axis=1), np.finfo(np.float32).tiny)
    scores = matrix @ query / lengths / length  # [N]
    best = np.argsort(-scores, kind="stable")[:k]
    if not entries:
        return [BackendHit(ids[n], float(scores[n])) for n in best]
    return [_hit(entries[n], float(scores[n])) for n in best]


def _hit(entry: Entry, score: float) -> BackendHit:
    return BackendHit(entry.id, score, Point(entry.id, entry.text, None, deepcopy(dict(entry.payload))))


def _point(loaded: Loaded, position: int, *, vectors: bool) -> Point:
    entry = loaded.entries[position]
    vector = TextVectors(loaded.vectors[position].copy()) if vectors else None
    return Point(entry.id, entry.text, vector, deepcopy(dict(entry.payload)))
