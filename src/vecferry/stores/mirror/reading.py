"""What anybody may ask of the collections."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from vecferry.embeddings import Float32
from vecferry.errors import InvalidFilter, SpaceMismatch, StoreFailed, StoreSchemaError
from vecferry.stores.backend import Noticing, Point
from vecferry.stores.filters import EVERY_ROW, NativeFilter, Selection, matches
from vecferry.stores.mirror.sides import MirrorSides, Sides
from vecferry.stores.values import Hit, Key, Row, Side, StoredRow, TableInfo, has_direction, in_order

T = TypeVar("T")
UNKNOWN = "not recorded"


class MirrorReader:
    """What anybody may ask."""

    def __init__(self, sides: MirrorSides) -> None:
        self._sides, self._backend, self._target, self._ledger = sides, sides.backend, sides.target, sides.ledger

    def describe(self) -> TableInfo:
        return self._sides.retried(self._described)

    def _described(self, sides: Sides) -> TableInfo:
        rows = null_texts = empty_texts = text_bytes = without_vector = texts_without_vector = 0
        for points in self._sides.pages(sides.serving):
            rows += len(points)
            texts = [self._sides.text(point) for point in points]
            bare = self._sides.without_vector(sides.serving, [point.id for point in points])
            without_vector += len(bare)
            texts_without_vector += sum(
                point.id in bare and text is not None for point, text in zip(points, texts, strict=True)
            )
            null_texts += sum(text is None for text in texts)
            empty_texts += sum(text == "" for text in texts)
            text_bytes += sum(len((text or "").encode("utf-8", "surrogatepass")) for text in texts)
        dimension = self._backend.dimension(sides.serving)
        serving = self._ledger.serving(self._target)
        vector_bytes = 4 * (dimension or 0) * (rows - without_vector)
        return TableInfo(
            rows=rows,
            null_texts=null_texts,
            empty_texts=empty_texts,
            dimension=dimension,
            fingerprint=serving.fingerprint if serving else None,
            vector_not_null=False,
            table_bytes=text_bytes + vector_bytes,
            row_bytes=text_bytes,  # the new collection holds texts and payload again
            index_bytes=0,
            vector_bytes=vector_bytes,
            creates=(
                f"collection {self._sides.serving_locator(Side.NEW)}",
                f"control database {self._ledger.location}",
            ),
            notices=self._notices(sides.serving),
            rows_without_vector=without_vector,
            texts_without_vector=texts_without_vector,
        )

    def _notices(self, collection: str) -> tuple[str, ...]:
        backend = self._backend
        return backend.notices(collection) if isinstance(backend, Noticing) else ()

    def sample(self, num_rows: int) -> list[Row]:
        points = self._sides.retried(lambda sides: self._embedded(sides.serving, num_rows))
        return [row for row in map(self._sides.row, points) if row.text is not None]

    def sample_stored(self, num_rows: int) -> list[StoredRow]:
        points = self._sides.retried(lambda sides: self._chosen(sides.serving, num_rows, vectors=True))
        return [
            StoredRow((point.id,), self._sides.fields(point), point.vectors.dense)
            for point in points
            if point.vectors is not None
        ]

    def _embedded(self, collection: str, num_points: int) -> list[Point]:
        """Return random points of those that take a vector."""
        points = self._chosen(collection, num_points)
        unembedded = self._sides.unembedded(collection, [point.id for point in points])
        return [point for point in points if point.id not in unembedded]

    def _chosen(self, collection: str, num_points: int, *, vectors: bool = False) -> list[Point]:
        """Return random points."""
        ids = list(self._backend.ids(collection))
        return self._backend.get(collection, random.sample(ids, min(num_points, len(ids))), vectors=vectors)

    def rows(self, keys: Sequence[Key]) -> list[Row]:
        points = self._sides.retried(lambda sides: self._points(sides.serving, keys))
        rows: dict[Key, Row] = {(point.id,): self._sides.row(point) for point in points}
        return list(in_order(rows, keys).values())

    def vectors(self, keys: Sequence[Key], *, fingerprint: str) -> dict[Key, Float32]:
        def read(collection: str) -> list[Point]:
            return self._points(collection, keys, vectors=True)

        points = self._read_in(fingerprint, f"a read of vectors in {self._target}", read)
        vectors: dict[Key, Float32] = {(p.id,): p.vectors.dense for p in points if p.vectors is not None}
        return in_order(vectors, keys)

    def _points(self, collection: str, keys: Sequence[Key], *, vectors: bool = False) -> list[Point]:
        """Return those that are there, in any order; a key of several parts is no point's."""
        ids = list(dict.fromkeys(key[0] for key in keys if len(key) == 1))
        return [point for points in self._sides.pages_of(collection, ids, vectors=vectors) for point in points]

    def search(
        self,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        def search(collection: str) -> list[Hit]:
            self._refuse_dimension(collection, vector, fingerprint)
            if exact:
                return self._exact_search(collection, vector, k, selection)
            hits = self._backend.search(collection, vector, k, selection)
            return [self._hit(hit.id, hit.score, hit.point, selection) for hit in hits]

        return self._read_in(fingerprint, f"a search in {self._target}", search)

    def _hit(self, id_: str, score: float, point: Point | None, selection: Selection) -> Hit:
        text = self._sides.text(point) if point and selection.with_text else None
        return Hit((id_,), score, text, dict(point.payload) if point and selection.with_payload else None)

    def _refuse_dimension(self, collection: str, vector: Float32, fingerprint: str) -> None:
        stored = self._backend.dimension(collection)
        if stored not in (None, len(vector)):
            what = f"a search in {collection} with {len(vector)} numbers, which has {stored}"
            raise SpaceMismatch(expected=UNKNOWN, found=fingerprint, where=what)

    def _read_in(self, fingerprint: str, where: str, read: Callable[[str], T]) -> T:
        """Read from the collection of that space. Raises SpaceMismatch, also if a `finalize` drops it meanwhile."""

        def read_on(sides: Sides) -> T:
            collection = self._found_in(sides, fingerprint, where)
            try:
                return read(collection)
            except (StoreSchemaError, StoreFailed):
                if self._sides.now() != sides or collection == sides.serving or self._backend.exists(collection):
                    raise
                raise SpaceMismatch(expected=UNKNOWN, found=fingerprint, where=where) from None

        return self._sides.retried(read_on)

    def _found_in(self, sides: Sides, fingerprint: str, where: str) -> str:
        spec = self._sides.open_spec()
        if spec is not None and spec.fingerprint == fingerprint and self._backend.exists(sides.name(Side.NEW)):
            return sides.name(Side.NEW)
        if spec is not None and self._sides.is_half_finalized(sides):
            raise SpaceMismatch(expected=spec.fingerprint, found=fingerprint, where=where)
        serving = self._ledger.serving(self._target)
        expected = spec.old_fingerprint if spec else serving.fingerprint if serving else None
        if expected is not None and expected != fingerprint:
            raise SpaceMismatch(expected=expected, found=fingerprint, where=where)
        return sides.old

    def _exact_search(self, collection: str, vector: Float32, k: int, selection: Selection) -> list[Hit]:
        """Compare with every point. A store's own filter is applied by its index alone: InvalidFilter."""
        if isinstance(selection.where, NativeFilter):
            raise InvalidFilter("", "an exact search takes one such as Chroma's, which means the same to every store")
        query = vector.astype(np.float64) / np.linalg.norm(vector)
        best: list[Hit] = []
        for points in self._sides.pages(collection, vectors=True):
            among = [p for p in points if selection.where is None or matches(selection.where, self._sides.fields(p))]
            dense = [(point, point.vectors.dense) for point in among if point.vectors is not None]
            if filled := [(point, stored) for point, stored in dense if has_direction(stored)]:
                matrix = np.stack([stored for _, stored in filled]).astype(np.float64)  # [n, D]
                scores = matrix @ query / np.linalg.norm(matrix, axis=1)
                pairs = zip(filled, scores, strict=True)
                best += [self._hit(point.id, float(score), point, selection) for (point, _), score in pairs]
                best = sorted(best, key=lambda hit: (-hit.score, hit.key))[:k]
        return best
