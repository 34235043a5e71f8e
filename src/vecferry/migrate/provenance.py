"""What stored vectors were made from: a sample is encoded with the old model and compared with what is stored.

A file says which text and which model; whether that is so, only the vectors know. A cosine of 0.99 or more for 95 % of
the rows confirms it. Otherwise the likely causes are tried one after the other on the rows that do not fit, the best is
kept, and others are tried on top of it: another text of the row (LlamaIndex's metadata, a title before it), a prefix,
lower case, a text that was cut, vectors that were filled up with zeros.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import Float32, Value
from vecferry.encode.adapted import Adaptation, adapted
from vecferry.encode.encoder import Encoder, TextEncoder
from vecferry.encode.loading import LazyEncoder
from vecferry.stores.text_source import FieldText, LlamaIndexText, TemplateText, TextSource, scalar_paths, stored_node
from vecferry.stores.values import StoredRow

MATCH = 0.99
"""A cosine from here on is the same text and model: other runtimes, fp16 and int8 columns stay above it."""
CONFIRMED = 0.95
"""The share of rows that must match; the others may have been edited since."""
FOREIGN = 0.4
"""A median below this is no variant of the text but another model: unrelated spaces meet at about 0."""
SCREENED = 12
"""Rows on which the causes are tried."""
MAX_FIELDS = 12
MAX_STEPS = 5
MIN_GAIN = 0.002
"""By which the median must rise for a cause to be kept, if it does not explain everything."""
PREFIXES = (
    "passage: ", "query: ", "search_document: ", "search_query: ", "title: none | text: ",
    "Represent this sentence for searching relevant passages: ", "Represent this document for retrieval: ",
    "Document: ",
)  # fmt: skip
CHARACTERS = (200, 256, 300, 400, 500, 512, 600, 750, 800, 1000, 1024, 1200, 1500, 2000, 2048, 3000, 4000, 4096, 8000)
NEARBY = (80, 85, 90, 94, 97, 99, 101, 103, 106, 110, 115, 120)
"""Percent of the best number of characters so far."""
TOKENS = (64, 128, 256, 384, 512)
UNIT_TOLERANCE = 0.01
FORMS = (
    "FIELD\nTEXT", "TEXT\nFIELD", "# FIELD\n\nTEXT", "# FIELDTEXT", "FIELDTEXT", "FIELD: TEXT", "FIELD. TEXT",
    "FIELD - TEXT", "NAME: FIELD\n\nTEXT", "NAME: FIELD\ntext: TEXT", "FIELD | TEXT",
)  # fmt: skip
"""How a field is put beside a text. White space is all the same to a BERT tokenizer, so a line break stands for any."""
LIKELY = ("title", "name", "heading", "header", "subject", "headline", "question", "summary", "description", "category")
"""Fields that are looked at first, by a part of their names."""


class Verdict(StrEnum):
    """CONFIRMED: as the file says. EXPLAINED: otherwise, and it is known how. MIXED: a part is as the file says."""

    CONFIRMED = "confirmed"
    EXPLAINED = "explained"
    MIXED = "mixed"
    UNEXPLAINED = "unexplained"
    NOTHING = "nothing to compare"


@dataclass(frozen=True)
class Making(Value):
    """How vectors are made of rows. text: a text source, by its name in migration.toml; then the old model's part."""

    text: str
    adaptation: Adaptation = Adaptation()

    def as_toml(self) -> str:
        """Return it as lines of migration.toml."""
        given = {name: value for name, value in self.adaptation.to_dict().items() if value}
        lines = ["[store]", f"text = {json.dumps(self.text, ensure_ascii=False)}"]
        lines += ["[old]", *(f"{name} = {json.dumps(value)}" for name, value in given.items())] if given else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Provenance(Value):
    """What a sample of stored vectors was made from.

    rows: that were compared; matching: the share of them with a cosine of 0.99 or more; median and lowest: of the
    cosines; all of these as the file says. dimensions: how many rows have vectors of each length. shortest, longest:
    vectors by their Euclidean length, 1 where they were normalised. making: what fits better than what the file says,
    and explained: the share that matches with it. message: the same in sentences.
    """

    verdict: Verdict
    message: str
    rows: int = 0
    matching: float = 0.0
    median: float = 0.0
    lowest: float = 0.0
    dimensions: Mapping[int, int] = field(default_factory=dict)
    shortest: float = 1.0
    longest: float = 1.0
    making: Making | None = None
    explained: float | None = None

    @property
    def is_confirmed(self) -> bool:
        return self.verdict is Verdict.CONFIRMED


def examine(encoder: TextEncoder, rows: Sequence[StoredRow], source: TextSource, adaptation: Adaptation) -> Provenance:
    """Compare stored vectors with what the old model makes of their rows, and look for the cause of a difference.

    source and adaptation: as the file says. Rows without a text or a vector are left out. Raises what `encode` raises.
    """
    usable = [row for row in rows if source.render(row.fields) and row.vector.any() and np.isfinite(row.vector).all()]
    if not usable:
        return Provenance(Verdict.NOTHING, "No row of the sample has both a text and a vector.")
    return _Examination(encoder, usable).provenance(_Candidate(source, adaptation))


@dataclass(frozen=True)
class _Candidate:
    """A way in which the vectors may have been made. what: of the text, where it is not the file's."""

    source: TextSource
    adaptation: Adaptation
    what: str = ""

    def adapted(self, **changes: Any) -> _Candidate:
        """With another step between text and vector."""
        return replace(self, adaptation=replace(self.adaptation, **changes))

    def of(self, source: TextSource, what: str) -> _Candidate:
        """With another text."""
        return replace(self, source=source, what=f"{self.what} and {what}" if self.what else what)

    def causes(self, as_told: _Candidate) -> str:
        """What makes this one different."""
        changed = {
            name: value
            for name, value in self.adaptation.to_dict().items()
            if value != getattr(as_told.adaptation, name)
        }
        return " and ".join(filter(None, (self.what, str(Adaptation(**changed)))))


class _Examination:
    """One sample and one model; each text is encoded once."""

    def __init__(self, encoder: TextEncoder, rows: Sequence[StoredRow]) -> None:
        self._encoder = encoder.get().encoder if isinstance(encoder, LazyEncoder) else encoder
        self._rows = rows

    def provenance(self, as_told: _Candidate) -> Provenance:
        lengths = [float(np.linalg.norm(row.vector)) for row in self._rows]
        cosines = self._cosines(as_told, self._rows)
        measured = Provenance(
            Verdict.CONFIRMED,
            "",
            rows=len(self._rows),
            matching=_share(cosines),
            median=float(np.median(cosines)),
            lowest=float(cosines.min()),
            dimensions=dict(Counter(len(row.vector) for row in self._rows)),
            shortest=min(lengths),
            longest=max(lengths),
        )
        if measured.matching >= CONFIRMED:
            return replace(measured, message=_confirmed(measured))
        explanation, share = self._explained(as_told, cosines)
        if share >= CONFIRMED:
            making = Making(explanation.source.name, explanation.adaptation)
            measured = replace(measured, verdict=Verdict.EXPLAINED, making=making, explained=share)
            return replace(measured, message=_explained(measured, explanation.causes(as_told)))
        if measured.matching >= 1 - CONFIRMED:
            others = float(np.median(cosines[cosines < MATCH]))
            return replace(measured, verdict=Verdict.MIXED, message=_mixed(measured, others))
        return replace(measured, verdict=Verdict.UNEXPLAINED, message=_unexplained(measured, self._encoder.dimension))

    def _cosines(self, candidate: _Candidate, rows: Sequence[StoredRow]) -> Float32:
        """Of stored and made vectors, float32 [N]; 0 where their lengths differ or a row has no such text."""
        texts = [candidate.source.render(row.fields) or "" for row in rows]
        encoder = adapted(self._encoder, candidate.adaptation)
        made = encoder.encode(texts).dense
        cosines = np.zeros(len(rows), np.float32)
        for i, row in enumerate(rows):
            if texts[i] and len(row.vector) == made.shape[1]:
                cosines[i] = row.vector @ made[i] / (np.linalg.norm(row.vector) * np.linalg.norm(made[i]))
        return cosines

    def _explained(self, as_told: _Candidate, cosines: Float32) -> tuple[_Candidate, float]:
        """The making that fits best, and the share of all rows that match with it.

        Tried on a few of the rows that do not fit; the best cause is kept, and others are tried on top of it.
        """
        screened = [self._rows[i] for i in _spread(np.flatnonzero(cosines < MATCH), SCREENED)]
        best, best_cosines = as_told, self._cosines(as_told, screened)
        for _ in range(MAX_STEPS):
            if _share(best_cosines) >= CONFIRMED:
                break
            tried = [(c, self._cosines(c, screened)) for c in self._causes(best, screened)]
            if not tried:
                break
            candidate, its_cosines = max(tried, key=lambda pair: (_share(pair[1]), float(pair[1].mean())))
            if its_cosines.mean() < best_cosines.mean() + MIN_GAIN:
                break
            best, best_cosines = candidate, its_cosines
        return best, _share(self._cosines(best, self._rows)) if best is not as_told else _share(cosines)

    def _causes(self, base: _Candidate, rows: Sequence[StoredRow]) -> Iterator[_Candidate]:
        """The likely causes on top of what is known, one at a time; of equally good ones the first is kept."""
        yield from _paddings(base, rows, self._encoder.dimension)
        yield from _frameworks(base, rows)
        yield from _fields(base, rows)
        if isinstance(self._encoder, Encoder):
            yield from _model_inputs(base, self._encoder)
            yield from _cuts(base, rows)


def _model_inputs(base: _Candidate, encoder: Encoder) -> Iterator[_Candidate]:
    """What may be done to any text on its way to the model."""
    if base.adaptation.prefix is None:
        yield from (base.adapted(prefix=prefix) for prefix in PREFIXES)
    if not base.adaptation.lowercase:
        yield base.adapted(lowercase=True)
    limit, possible = encoder.space.max_tokens, encoder.max_positions or 0
    yield from (base.adapted(max_tokens=n) for n in TOKENS if n != limit and n <= max(limit, possible))


def _paddings(base: _Candidate, rows: Sequence[StoredRow], dimension: int) -> Iterator[_Candidate]:
    """Zeros at the end of vectors that are longer than the model's."""
    lengths = {len(row.vector) for row in rows}
    if len(lengths) == 1 and max(lengths) > dimension and not any(row.vector[dimension:].any() for row in rows):
        yield base.adapted(dimension=max(lengths))


def _frameworks(base: _Candidate, rows: Sequence[StoredRow]) -> Iterator[_Candidate]:
    """What a framework embeds beside the text, where it has left its marks."""
    if isinstance(base.source, FieldText) and any(stored_node(row.fields) for row in rows):
        yield base.of(LlamaIndexText(base.source.name), "metadata before the text, as LlamaIndex embeds it")


def _fields(base: _Candidate, rows: Sequence[StoredRow]) -> Iterator[_Candidate]:
    """Another field before the text or after it."""
    if isinstance(base.source, FieldText | TemplateText):
        inner = base.source.name if isinstance(base.source, TemplateText) else f"{{{base.source.name}}}"
        for path in _other_fields(rows, base.source):
            for form in FORMS if _likelihood(path) < len(LIKELY) else FORMS[:2]:
                template = form.replace("FIELD", f"{{{path}}}").replace("NAME", path).replace("TEXT", inner)
                place = "after" if form.startswith("TEXT") else "before"
                yield base.of(TemplateText(template), f"{path} {place} the text")


def _other_fields(rows: Sequence[StoredRow], source: TextSource) -> list[str]:
    """Paths of fields that could stand beside the text, the likely ones first."""
    counts, texts = Counter[str](), [source.render(row.fields) for row in rows]
    for row, text in zip(rows, texts, strict=True):
        for path, value in scalar_paths(row.fields):
            if value.strip() and value != text and value not in (text or "")[: len(value) + 8] and len(value) < 4000:
                counts[path] += 1
    paths = [path for path, count in counts.items() if 3 * count >= len(rows) and not set("{}") & set(path)]
    return sorted(paths, key=_likelihood)[:MAX_FIELDS]


def _likelihood(path: str) -> int:
    """A rank, 0 for a title."""
    name = path.rsplit(".", 1)[-1].lower()
    return next((rank for rank, word in enumerate(LIKELY) if word in name), len(LIKELY))


def _cuts(base: _Candidate, rows: Sequence[StoredRow]) -> Iterator[_Candidate]:
    """The first characters of longer texts: usual numbers, and once one of these is best, those around it."""
    longest = max(len(base.source.render(row.fields) or "") for row in rows)
    now = base.adaptation.max_characters
    if now is None:
        yield from (base.adapted(max_characters=n) for n in CHARACTERS if n < longest)
    else:
        yield from (base.adapted(max_characters=now * percent // 100) for percent in NEARBY)


def _spread(numbers: NDArray[np.intp], count: int) -> list[int]:
    """At most `count` of them, evenly."""
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    return [int(numbers[place]) for place in places]


def _share(cosines: Float32) -> float:
    return float((cosines >= MATCH).mean())


# --- what is said about it --------------------------------------------------------------------------


def _confirmed(seen: Provenance) -> str:
    return f"{_matching(seen.matching, seen.rows)} what the old model makes of their text.{_unusual(seen)}"


def _explained(seen: Provenance, causes: str) -> str:
    assert seen.explained is not None, "it was explained"
    return (
        f"The vectors were not made as migration.toml says (median cosine {seen.median:.3f}), but with {causes}: so"
        f" {seen.explained:.0%} of {seen.rows} rows match.{_unusual(seen)}"
    )


def _mixed(seen: Provenance, others: float) -> str:
    what = "of another model" if others < FOREIGN else "made from something else, or their texts were edited since"
    return (
        f"Only {_matching(seen.matching, seen.rows)} what the old model makes of their text; the others are {what}"
        f" (median cosine {others:.3f}).{_unusual(seen)}"
    )


def _unexplained(seen: Provenance, dimension: int) -> str:
    if dimension not in seen.dimensions and seen.median == 0:
        lengths = ", ".join(f"{length:,}" for length in sorted(seen.dimensions))
        return f"The vectors have {lengths} numbers and those of the old model {dimension:,}: it is another model."
    if seen.median < FOREIGN:
        return (
            f"The vectors were made by another model than the old one that is named (median cosine {seen.median:.3f},"
            f" and vectors of the same model and text have 1).{_unusual(seen)}"
        )
    return (
        f"The vectors were made from something else than this text (median cosine {seen.median:.3f}): a longer text,"
        f" another version of the model, a prefix, a text cut elsewhere. None of the usual causes fits.{_unusual(seen)}"
    )


def _matching(share: float, rows: int) -> str:
    return f"{share:.0%} of {rows} sampled vectors are"


def _unusual(seen: Provenance) -> str:
    """What else there is to say about the vectors; begins with a space, or is empty."""
    notes = []
    if len(seen.dimensions) > 1:
        lengths = ", ".join(f"{count} of {length:,}" for length, count in sorted(seen.dimensions.items()))
        notes.append(f" The vectors have different lengths: {lengths} numbers.")
    if not 1 - UNIT_TOLERANCE <= seen.shortest <= seen.longest <= 1 + UNIT_TOLERANCE:
        notes.append(
            f" The vectors were not normalised (lengths {seen.shortest:.2f} to {seen.longest:.2f}); the new ones are, so"
            " search by cosine, not by inner product."
        )
    return "".join(notes)
