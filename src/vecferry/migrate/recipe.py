"""Which text of its rows a collection embeds, as far as names, contents and the vectors themselves tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from vecferry.embeddings import Value
from vecferry.encode.adapted import NOT_ADAPTED, Adaptation
from vecferry.encode.encoder import TextEncoder
from vecferry.migrate.provenance import Provenance, Verdict, closest, examine
from vecferry.stores.backend import VectorField
from vecferry.stores.browsing import Browser
from vecferry.stores.frameworks import Framework, framework_of
from vecferry.stores.text_source import (
    HAYSTACK,
    FieldText,
    HaystackText,
    LlamaIndexText,
    TemplateText,
    TextSource,
    framework_source,
    scalar_paths,
    text_source,
    value_at,
)
from vecferry.stores.values import StoredRow

SAMPLE = 24
"""Rows that are compared."""
MAX_TEXTS = 8
EXAMINED = 3
"""Texts for which a prefix, a title beside it and other causes are tried."""
KNOWN = frozenset({Verdict.CONFIRMED, Verdict.EXPLAINED})
MIN_PADDING = 64
"""Zeros at the end of every vector, from which on they were filled up: no model ends so."""
NAMES = (
    "page_content", "content", "document", "text", "chunk", "body", "passage", "description", "data", "summary",
    "title", "name",
)  # fmt: skip
"""What a field with texts is usually called, the likeliest first."""
MODELS: Mapping[int, str] = {
    384: "all-MiniLM-L6-v2, as of other small models (e5-small, bge-small)",
    512: "smaller OpenAI or Jina models",
    768: "all-mpnet-base-v2, nomic-embed-text and other models of base size",
    1024: "bge-m3, bge-large, mxbai-embed-large and other large models",
    1536: "OpenAI's text-embedding-3-small and text-embedding-ada-002",
    3072: "OpenAI's text-embedding-3-large",
}
"""Models that are used often, by the length of their vectors."""


@dataclass(frozen=True)
class Recipe(Value):
    """How the vectors of a field were made, as far as it is known.

    framework: whose layout it is, or empty. text, adaptation: as [store] text and [old] of migration.toml. others: what
    else could be the text, the likeliest first. dimension: of the model that made the vectors, None where none is
    known. provenance: what the vectors say of the text.
    """

    framework: str
    text: str
    adaptation: Adaptation
    others: tuple[str, ...]
    dimension: int | None
    provenance: Provenance

    @property
    def is_confirmed(self) -> bool:
        """Return whether the vectors are what the old model makes of that text, in that way."""
        return self.provenance.verdict in KNOWN and self.pooling is None

    @property
    def pooling(self) -> str | None:
        """Return how the vectors were pooled, where the old model that was compared pools otherwise."""
        return self.provenance.making.pooling if self.provenance.making else None

    @property
    def likely_model(self) -> str:
        """Say which models make vectors of that length; empty where none that is used often does."""
        known = MODELS.get(self.dimension or 0)
        return f"{self.dimension:,} numbers are the length of vectors of {known}." if known else ""


def recipe_of(browser: Browser, field: VectorField, old: TextEncoder | None) -> Recipe:
    """Return the recipe of a field, by a sample of its rows. old: the model that may have made its vectors.

    Without it the likeliest text is returned, unconfirmed. Raises what reading and encoding raise.
    """
    rows = browser.sample(field, SAMPLE)
    framework = framework_of(browser.kind, _with_names(field, rows))
    sources = _sources(browser.kind, field, framework, rows)
    recipe = Recipe(
        framework.name if framework else "",
        sources[0].name if sources else field.text,
        _padding(rows),
        tuple(source.name for source in sources[1:]),
        field.dimension if not rows else _model_dimension(rows),
        Provenance(Verdict.NO_MODEL, "The old model was not at hand to compare with."),
    )
    if not rows:
        return replace(recipe, provenance=Provenance(Verdict.NO_VECTORS, "No row has a vector yet."))
    if not sources:
        return replace(recipe, provenance=Provenance(Verdict.NO_TEXTS, "No row has a text beside its vector."))
    return recipe if old is None else _compared(recipe, sources, rows, old)


def _compared(recipe: Recipe, sources: Sequence[TextSource], rows: Sequence[StoredRow], old: TextEncoder) -> Recipe:
    """Return the recipe as the vectors say: of the text that fits best, or of another, if that one explains them."""
    best = closest(old, rows, sources, recipe.adaptation)
    examined: list[tuple[TextSource, Provenance]] = []
    for source in [best, *(each for each in sources if each is not best)][:EXAMINED]:
        examined.append((source, examine(old, rows, source, recipe.adaptation)))
        if examined[-1][1].verdict in KNOWN:
            break
    source, provenance = max(examined, key=lambda pair: pair[1].verdict in KNOWN)  # else the one that fits best
    making = provenance.making
    text = making.text if making else source.name
    others = tuple(each.name for each in sources if each.name != text)
    adaptation = making.adaptation if making else recipe.adaptation
    return replace(recipe, text=text, adaptation=adaptation, others=others, provenance=provenance)


def _sources(kind: str, field: VectorField, framework: Framework | None, rows: Sequence[StoredRow]) -> list[TextSource]:
    """Return what may be the text of a row, the likeliest first; of the framework's own only what some row has."""
    known = list(_framework_sources(kind, field, framework, rows)) if framework and framework.text else []
    sources = chain(known, (_field_source(kind, path) for path in _text_paths(rows)))
    by_name = {source.name: source for source in sources}
    usable = [each for each in by_name.values() if not rows or any(each.render(row.fields) for row in rows)]
    return usable[:MAX_TEXTS]


def _framework_sources(
    kind: str, field: VectorField, framework: Framework, rows: Sequence[StoredRow]
) -> Iterator[TextSource]:
    """Yield what the framework embeds, in the ways that it may have been told."""
    source = framework_source(framework.text, kind) or text_source(framework.text)
    names = {*field.names, *(name for row in rows for name in row.fields)}
    if framework.name.startswith("LangChain") and kind == "postgresql":
        source = framework_source(framework.text, kind, names) or source
    yield source.at(field.text) if isinstance(source, LlamaIndexText) and kind == "chroma" else source
    if framework.text == HAYSTACK:
        metas = [value_at(row.fields, "meta") for row in rows]
        keys = dict.fromkeys(key for meta in metas if isinstance(meta, Mapping) for key in meta)
        yield from (HaystackText((key,), text=source.field) for key in list(keys)[:MAX_TEXTS])


def _field_source(kind: str, path: str) -> TextSource:
    """Return the source of one field. Chroma's document goes by its own name, its metadata by a template alone."""
    is_alone = "." not in path and (kind != "chroma" or path == "document")
    return FieldText(path) if is_alone else TemplateText(f"{{{path}}}")


def _text_paths(rows: Sequence[StoredRow]) -> list[str]:
    """Return the fields of the rows with texts in them: those that are called so first, then the longer ones."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        for path, text in scalar_paths(row.fields):
            if isinstance(value_at(row.fields, path), str) and text.strip() and not set("{}") & set(path):
                texts.setdefault(path, []).append(text)

    def rank(path: str) -> tuple[bool, int, float]:
        values, name = texts[path], path.rsplit(".", 1)[-1].lower()
        has_words = 2 * sum(len(value.split()) > 1 for value in values) >= len(values)
        return not has_words, _place(name), -sum(map(len, values)) / len(values)

    return sorted(texts, key=rank)


def _place(name: str) -> int:
    """Return how likely a field of that name has the text, 0 for the likeliest."""
    return NAMES.index(name) if name in NAMES else len(NAMES)


def _model_dimension(rows: Sequence[StoredRow]) -> int | None:
    """Return how many numbers the model gave, without zeros after them; None for vectors of different lengths."""
    lengths = {len(row.vector) for row in rows}
    if len(lengths) > 1:
        return None
    used = max(int(row.vector.nonzero()[0].max(initial=-1)) + 1 for row in rows)
    return used if max(lengths) - used >= MIN_PADDING else max(lengths)


def _padding(rows: Sequence[StoredRow]) -> Adaptation:
    """Return the length up to which vectors were filled with zeros, if they were."""
    dimension = _model_dimension(rows) if rows else None
    is_padded = dimension is not None and dimension < len(rows[0].vector)
    return Adaptation(dimension=len(rows[0].vector)) if is_padded else NOT_ADAPTED


def _with_names(field: VectorField, rows: Sequence[StoredRow]) -> VectorField:
    """Return the field with the names of its rows, of which a store may not know all."""
    return replace(field, names=tuple(dict.fromkeys(chain(field.names, *(row.fields for row in rows)))))
