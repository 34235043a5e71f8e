"""A sample of stored vectors held against what the old model makes of the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import Float32
from vecferry.encode.adapted import NOT_ADAPTED, Adaptation, AdaptedEncoder, adapted
from vecferry.encode.encoder import TextEncoder
from vecferry.encode.loading import LazyEncoder
from vecferry.migrate.embed import embed
from vecferry.migrate.provenance import text
from vecferry.migrate.provenance.candidates import Candidate, causes_on_top, other_texts, poolings, repooled
from vecferry.migrate.provenance.values import Making, Provenance, Verdict
from vecferry.stores.protocol import Store
from vecferry.stores.text_source import TextSource
from vecferry.stores.values import Row, StoredRow, tell_nobody

MATCH = 0.99
"""A cosine from here on is the same text and model; an int8 form of the model stays above it."""
CONFIRMED = 0.95
"""The share of rows that must match; the others may have been edited since."""
ALIKE = 0.999
"""A median below this is looked into though the rows match: a prefix before a long text moves its vector by 0.005."""
EXACT = 0.9995
"""A median from here on leaves nothing to be explained: other runtimes and columns in half precision stay above it."""
SAMPLE = 64
"""Rows that are compared."""
SCREENED = 12
"""Rows on which the causes are tried, of those that do not match."""
FEW = 4
"""Of these, on which all causes are tried; then the FINALISTS that fit best on all of them."""
FINALISTS = 6
MAX_STEPS = 8
MIN_GAIN = 0.0005
"""By which the mean must rise for a cause to be kept."""
UNRELATED = 0.2
"""A median below this is no variant of the text; unrelated spaces meet at about 0."""


def provenance_of(
    store: Store, old: TextEncoder | None, sample: int = SAMPLE, stage: Callable[[str], None] = tell_nobody
) -> Provenance:
    """Return what a store's vectors were made from, by encoding a sample with the old model. Writes nothing.

    stage: told what is being done.
    """
    stage("reading a sample of the stored vectors")
    rows = store.sample_stored(sample)
    if not rows:
        return Provenance(Verdict.NO_VECTORS, "No row has a vector yet.")
    if old is None:
        message = "No old model is named, so nobody can tell what the vectors were made from."
        return Provenance(Verdict.NO_MODEL, message, dimensions=_dimensions(rows))
    model, adaptation = (old.model, old.adaptation) if isinstance(old, AdaptedEncoder) else (old, NOT_ADAPTED)
    if isinstance(model, LazyEncoder):
        stage("loading the old model")
        model.get()
    return examine(model, rows, store.traits.source, adaptation, stage)


def examine(
    model: TextEncoder,
    rows: Sequence[StoredRow],
    source: TextSource,
    adaptation: Adaptation = NOT_ADAPTED,
    stage: Callable[[str], None] = tell_nobody,
) -> Provenance:
    """Compare stored vectors with what the old model makes of their rows, and look for the cause of a difference.

    source and adaptation: as the file says. Rows without a text are left out. Raises what `encode` raises.
    """
    usable = [row for row in rows if source.render(row.fields) and row.vector.any() and np.isfinite(row.vector).all()]
    encoder = model.get().encoder if isinstance(model, LazyEncoder) else model
    stage(f"comparing {len(usable)} stored vectors with what the old model makes of their texts")
    examination = _Examination(encoder, usable, Candidate(source, adaptation), stage)
    if examination.is_empty:
        message = f"No row of the sample has both a vector and a text in {source.name!r} that can be encoded."
        return Provenance(Verdict.NO_TEXTS, message, dimensions=_dimensions(rows))
    return examination.provenance()


def closest(
    model: TextEncoder, rows: Sequence[StoredRow], sources: Sequence[TextSource], adaptation: Adaptation = NOT_ADAPTED
) -> TextSource:
    """Return the source whose texts fit the stored vectors best, by the mean cosine; the first of those alike.

    A row without that text counts as one that does not fit. Raises what `encode` raises.
    """
    encoder = model.get().encoder if isinstance(model, LazyEncoder) else model
    few = rows[: 2 * FEW]
    fits = [_Examination(encoder, few, Candidate(source, adaptation)).mean_cosine(len(few)) for source in sources]
    return next(source for source, fit in zip(sources, fits, strict=True) if fit >= max(fits) - MIN_GAIN)


def _dimensions(rows: Sequence[StoredRow]) -> dict[int, int]:
    return dict(Counter(len(row.vector) for row in rows))


class _Examination:
    """One sample and one model. as_told: how the vectors were made, by the file; rows that it cannot encode go."""

    def __init__(
        self,
        encoder: TextEncoder,
        rows: Sequence[StoredRow],
        as_told: Candidate,
        stage: Callable[[str], None] = tell_nobody,
    ) -> None:
        self._stage = stage
        self._encoder, self._as_told, self._repooled = encoder, as_told, dict[str, TextEncoder]()
        cosines = self._cosines_or_nan(as_told, rows)
        self._rows = [row for row, cosine in zip(rows, cosines, strict=True) if np.isfinite(cosine)]
        self._cosines_as_told = cosines[np.isfinite(cosines)]

    @property
    def is_empty(self) -> bool:
        return not self._rows

    def mean_cosine(self, num_rows: int) -> float:
        """Return the mean over so many rows, of which those that went count as 0."""
        return float(self._cosines_as_told.sum()) / num_rows

    def provenance(self) -> Provenance:
        as_told, cosines = self._as_told, self._cosines_as_told
        lengths = [float(np.linalg.norm(row.vector)) for row in self._rows]
        measured = Provenance(
            Verdict.CONFIRMED,
            "",
            rows=len(self._rows),
            matching=_share(cosines),
            median=float(np.median(cosines)),
            lowest=float(cosines.min()),
            dimensions=_dimensions(self._rows),
            shortest=min(lengths),
            longest=max(lengths),
        )
        if measured.matching >= CONFIRMED and measured.median >= ALIKE:
            return replace(measured, message=text.confirmed(measured))
        explanation, explained = self._explained(as_told, cosines)
        share = _share(explained)
        if measured.matching >= CONFIRMED and float(np.median(explained)) < EXACT:
            return replace(measured, message=text.confirmed(measured))
        if share >= CONFIRMED:
            making = Making(explanation.source.name, explanation.adaptation, explanation.pooling)
            measured = replace(measured, verdict=Verdict.EXPLAINED, making=making, explained=share)
            return replace(measured, message=text.explained(measured, explanation.causes(as_told)))
        if measured.matching >= 1 - CONFIRMED:
            others = float(np.median(cosines[cosines < MATCH]))
            return replace(measured, verdict=Verdict.MIXED, message=text.mixed(measured, others))
        message = text.unexplained(measured, self._encoder.dimension)
        return replace(measured, verdict=Verdict.UNEXPLAINED, message=message)

    def _cosines(self, candidate: Candidate, rows: Sequence[StoredRow]) -> Float32:
        """Return the cosines of stored and made vectors, float32 [N]; 0 where a row has no such text."""
        return np.nan_to_num(self._cosines_or_nan(candidate, rows))

    def _cosines_or_nan(self, candidate: Candidate, rows: Sequence[StoredRow]) -> Float32:
        """Return these, not a number where there is no text or it cannot be encoded; 0 where the lengths differ."""
        texts = [Row((str(i),), candidate.source.render(row.fields) or None) for i, row in enumerate(rows)]
        made = embed(adapted(self._encoder_of(candidate), candidate.adaptation), texts).vectors
        cosines = np.full(len(rows), np.nan, np.float32)
        for i, (row, new) in enumerate(zip(rows, made, strict=True)):
            if new.vectors is not None:
                cosines[i] = _cosine(row.vector, new.vectors.dense)
        return cosines

    def _encoder_of(self, candidate: Candidate) -> TextEncoder:
        if (pooling := candidate.pooling) is None:
            return self._encoder
        if pooling not in self._repooled:
            self._repooled[pooling] = repooled(self._encoder, pooling)
        return self._repooled[pooling]

    def _explained(self, as_told: Candidate, cosines: Float32) -> tuple[Candidate, Float32]:
        """Return the making that fits best, and its cosines for all rows.

        Causes are tried on a few of the rows that do not fit; the best is kept, and others are tried on top of it.
        """
        places = _spread(np.flatnonzero(cosines < ALIKE), SCREENED)
        screened = [self._rows[place] for place in places]
        best, best_cosines = as_told, cosines[places]
        for step in range(MAX_STEPS):
            self._stage(f"looking for what explains the vectors, step {step + 1}")
            if float(np.median(best_cosines)) >= EXACT:
                break
            candidate = self._best_cause(best, screened, best_cosines)
            its_cosines = self._cosines(candidate, screened)
            if its_cosines.mean() < best_cosines.mean() + MIN_GAIN:
                break
            best, best_cosines = candidate, its_cosines
        return best, self._cosines(best, self._rows)

    def _best_cause(self, base: Candidate, rows: Sequence[StoredRow], cosines: Float32) -> Candidate:
        """Return the first cause that explains a few rows exactly; else the best on all, of the best on a few.

        Vectors that have nothing to do with the texts, by their cosines, may be of other texts of the same rows.
        """
        is_foreign = len(rows[0].vector) == self._encoder.dimension and float(np.median(cosines)) < UNRELATED
        others = chain(poolings(base, self._encoder), other_texts(base, rows))
        causes = others if is_foreign else causes_on_top(base, rows, self._encoder)
        few, tried = rows[:: -(-len(rows) // (1 if is_foreign else FEW))], list[tuple[float, Candidate]]()
        for candidate in causes:
            its_cosines = self._cosines(candidate, few)
            if its_cosines.min() >= EXACT:
                return candidate
            tried.append((float(its_cosines.mean()), candidate))
        finalists = [candidate for _, candidate in sorted(tried, key=lambda pair: -pair[0])[:FINALISTS]]
        return max(finalists, key=lambda candidate: float(self._cosines(candidate, rows).mean()), default=base)


def _cosine(a: Float32, b: Float32) -> float:
    """Return the cosine of two vectors; 0 where one is longer."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) if len(a) == len(b) else 0.0


def _spread(numbers: NDArray[np.intp], count: int) -> list[int]:
    """At most `count` of them, evenly."""
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    return [int(numbers[place]) for place in places]


def _share(cosines: Float32) -> float:
    return float((cosines >= MATCH).mean())
