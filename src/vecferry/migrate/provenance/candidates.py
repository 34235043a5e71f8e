"""The likely ways in which a vector was made of a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vecferry.encode.adapted import Adaptation
from vecferry.encode.encoder import Encoder, TextEncoder
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.stores.text_source import (
    FieldText,
    LlamaIndexText,
    TemplateText,
    TextSource,
    scalar_paths,
    stored_node,
)
from vecferry.stores.values import StoredRow

if TYPE_CHECKING:
    from vecferry.encode.runtime.repooled import OtherPooling

MAX_FIELDS = 12
PREFIXES = (
    "passage: ", "query: ", "search_document: ", "search_query: ", "title: none | text: ",
    "Represent this sentence for searching relevant passages: ", "Represent this document for retrieval: ",
    "Document: ",
)  # fmt: skip
CHARACTERS = (200, 256, 300, 400, 500, 512, 600, 750, 800, 1000, 1024, 1200, 1500, 2000, 2048, 3000, 4000, 4096, 8000)
NEARBY = (80, 85, 90, 94, 97, 103, 106, 110, 115, 120)
"""Percent of the best number of characters so far."""
NEARER = 8
"""Characters around the best number so far, of which each is tried."""
TOKENS = (64, 128, 256, 384, 512)
POOLINGS: Mapping[OtherPooling, str] = {"cls": "CLS", "max": "max"}
FORMS = (
    "{field}\n{text}", "{text}\n{field}", "# {field}\n\n{text}", "# {field}{text}", "{field}{text}", "{field}: {text}",
    "{field}. {text}", "{field} - {text}", "{name}: {field}\n\n{text}", "{name}: {field}\ntext: {text}",
    "{field} | {text}",
)  # fmt: skip
"""How a field is put beside a text. White space is all the same to a BERT tokenizer, so a line break stands for any."""
LIKELY = ("title", "name", "heading", "header", "subject", "headline", "question", "summary", "description", "category")
"""Fields that are looked at first, by a part of their names."""


@dataclass(frozen=True)
class Candidate:
    """A way in which the vectors may have been made. what: of the text, where it is not the file's.

    pooling: None is the old model's own.
    """

    source: TextSource
    adaptation: Adaptation
    what: str = ""
    pooling: OtherPooling | None = None

    def adapted(self, **changes: Any) -> Candidate:
        """With another step between text and vector."""
        return replace(self, adaptation=replace(self.adaptation, **changes))

    def of(self, source: TextSource, what: str) -> Candidate:
        """With another text."""
        return replace(self, source=source, what=f"{self.what} and {what}" if self.what else what)

    def causes(self, as_told: Candidate) -> str:
        """Say what makes this one different."""
        changed = {
            name: value
            for name, value in self.adaptation.to_dict().items()
            if value != getattr(as_told.adaptation, name)
        }
        pooling = f"{POOLINGS[self.pooling]} pooling" if self.pooling else ""
        return " and ".join(filter(None, (self.what, pooling, str(Adaptation(**changed)))))


def causes_on_top(base: Candidate, rows: Sequence[StoredRow], encoder: TextEncoder) -> Iterator[Candidate]:
    """Return the likely causes on top of what is known, one at a time; the likelier ones first."""
    yield from _paddings(base, rows, encoder.dimension)
    if not any(len(row.vector) == (base.adaptation.dimension or encoder.dimension) for row in rows):
        return  # no text makes a vector longer
    yield from poolings(base, encoder)
    yield from other_texts(base, rows)
    if isinstance(encoder, Encoder):
        yield from _model_inputs(base, encoder)
        yield from _cuts(base, rows)


def poolings(base: Candidate, encoder: TextEncoder) -> Iterator[Candidate]:
    """Pool otherwise, where the old model's graph computes every token."""
    runtime = encoder.runtime if isinstance(encoder, Encoder) else None
    if base.pooling is None and isinstance(runtime, OnnxRuntime) and runtime.space.pooling == "mean":
        yield from (replace(base, pooling=pooling) for pooling in POOLINGS)


def repooled(encoder: TextEncoder, pooling: OtherPooling) -> Encoder:
    """Return the model of `poolings`, with that pooling."""
    from vecferry.encode.runtime.repooled import RepooledRuntime  # which needs onnx

    assert isinstance(encoder, Encoder), "a model in this process"
    assert isinstance(encoder.runtime, OnnxRuntime), "with a graph"
    return Encoder(encoder.tokenizer, RepooledRuntime(encoder.runtime.artifact, pooling), encoder.limits)


def other_texts(base: Candidate, rows: Sequence[StoredRow]) -> Iterator[Candidate]:
    """Return other texts that could be made of the same rows."""
    yield from _frameworks(base, rows)
    yield from _fields(base, rows)


def _model_inputs(base: Candidate, encoder: Encoder) -> Iterator[Candidate]:
    """Do to texts what may be done to any on its way to the model."""
    if base.adaptation.prefix is None:
        yield from (base.adapted(prefix=prefix) for prefix in PREFIXES)
    if not base.adaptation.lowercase:
        yield base.adapted(lowercase=True)
    limit, possible = encoder.space.max_tokens, encoder.max_positions or 0
    yield from (base.adapted(max_tokens=n) for n in TOKENS if n != limit and n <= max(limit, possible))


def _paddings(base: Candidate, rows: Sequence[StoredRow], dimension: int) -> Iterator[Candidate]:
    """Fill up with zeros, where the vectors are longer than the model's and end so."""
    lengths = {len(row.vector) for row in rows}
    if len(lengths) == 1 and max(lengths) > dimension and not any(row.vector[dimension:].any() for row in rows):
        yield base.adapted(dimension=max(lengths))


def _frameworks(base: Candidate, rows: Sequence[StoredRow]) -> Iterator[Candidate]:
    """Add what a framework embeds beside the text, where it has left its marks."""
    if isinstance(base.source, FieldText) and any(stored_node(row.fields) for row in rows):
        yield base.of(LlamaIndexText(base.source.name), "metadata before the text, as LlamaIndex embeds it")


def _fields(base: Candidate, rows: Sequence[StoredRow]) -> Iterator[Candidate]:
    """Put another field before the text, after it or in its place."""
    if isinstance(base.source, FieldText):
        for path in _other_fields(rows, base.source):
            alone = TemplateText(f"{{{path}}}") if "." in path else FieldText(path)
            yield base.of(alone, f"{path} in the place of the text")
    if isinstance(base.source, FieldText | TemplateText):
        inner = base.source.name if isinstance(base.source, TemplateText) else f"{{{base.source.name}}}"
        for path in _other_fields(rows, base.source):
            for form in FORMS if _likelihood(path) < len(LIKELY) else FORMS[:2]:
                template = form.format(field=f"{{{path}}}", name=path, text=inner)
                place = "after" if form.startswith("{text}") else "before"
                yield base.of(TemplateText(template), f"{path} {place} the text")


def _other_fields(rows: Sequence[StoredRow], source: TextSource) -> list[str]:
    """Return the paths of fields that could stand beside the text, the likely ones first."""
    counts, texts = Counter[str](), [source.render(row.fields) for row in rows]
    for row, text in zip(rows, texts, strict=True):
        for path, value in scalar_paths(row.fields):
            if value.strip() and value != text and value not in (text or "")[: len(value) + 8]:
                counts[path] += 1
    paths = [path for path, count in counts.items() if 3 * count >= len(rows) and not set("{}") & set(path)]
    return sorted(paths, key=_likelihood)[:MAX_FIELDS]


def _likelihood(path: str) -> int:
    """Return a rank, 0 for a title."""
    name = path.rsplit(".", 1)[-1].lower()
    return next((rank for rank, word in enumerate(LIKELY) if word in name), len(LIKELY))


def _cuts(base: Candidate, rows: Sequence[StoredRow]) -> Iterator[Candidate]:
    """Keep the first characters of longer texts: usual numbers, and once one of these is best, those around it."""
    longest = max(len(base.source.render(row.fields) or "") for row in rows)
    now = base.adaptation.max_characters
    if now is None:
        yield from (base.adapted(max_characters=n, max_tokens=None) for n in CHARACTERS if n < longest)
    else:
        nearby = {now * percent // 100 for percent in NEARBY} | set(range(now - NEARER, now + NEARER + 1))
        yield from (base.adapted(max_characters=n) for n in sorted(nearby - {now}) if n > 0)
