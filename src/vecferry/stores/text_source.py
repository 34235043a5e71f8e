r"""Which text of a row is embedded: a field, a template over several, or a rendering that a framework makes.

    body                       the field alone
    {title}\n{body}            a template; {metadata.title} goes into nested values, {{ and }} are braces
    llama-index                metadata before the text, by the templates that LlamaIndex stores in each node
    langchain                  the field that LangChain keeps the text in, in that store
    haystack(title, author)    the same of Haystack, after the values of `meta_fields_to_embed`
    title || E'\n' || body     in PostgreSQL, an expression of SQL

A text source is a pure function of the row's fields, so that it means the same to every store, and before a migration
can be tried on a sample (`migrate/provenance`).
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vecferry.errors import SettingsError, StoreSchemaError

Fields = Mapping[str, Any]
LLAMA_INDEX, LANGCHAIN, HAYSTACK = "llama-index", "langchain", "haystack"
NODE = "_node_content"
"""Where LlamaIndex keeps a node as JSON, in the metadata of every store."""

FRAMEWORK_FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    LANGCHAIN: {
        "postgresql": ("document", "content"),  # PGVector, PGVectorStore
        "qdrant": ("page_content",),
        "chroma": ("document",),
        "milvus": ("text",),
        "lancedb": ("text",),
    },
    HAYSTACK: {"postgresql": ("content",), "qdrant": ("content",), "chroma": ("document",)},
}
"""Where a framework keeps the text, by the kind of store; the first that is there counts."""
HAYSTACK_FORM = re.compile(r'haystack(?:\(([^()"=]*?)(?:,\s*separator\s*=\s*("(?:[^"\\]|\\.)*"))?\s*\))?')


class TextSource(Protocol):
    """How the text of a row is made. name: as in migration.toml."""

    @property
    def name(self) -> str: ...

    @property
    def field(self) -> str:
        """The field that `Record.text` is written to; what else is read comes with the payload."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The top-level fields that are read, that one included."""

    def at(self, text_field: str) -> TextSource:
        """Return the same source in a store that has its texts in that field."""

    def render(self, fields: Fields) -> str | None:
        """Return the text of a row; None where it has none."""


@dataclass(frozen=True)
class FieldText:
    """The text of one field, as it is."""

    name: str

    @property
    def field(self) -> str:
        return self.name

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)

    def at(self, text_field: str) -> TextSource:
        return FieldText(text_field)

    def render(self, fields: Fields) -> str | None:
        return as_text(fields.get(self.name))


@dataclass(frozen=True)
class TemplateText:
    """Several fields in a template. A field that is missing or null adds nothing; without any there is no text."""

    name: str

    def __post_init__(self) -> None:
        try:
            parts = self.parts()
        except ValueError as exc:
            raise SettingsError("text", self.name, f"a template such as {{title}}\\n{{body}} ({exc})") from exc
        if not any(path for _, path in parts):
            raise SettingsError("text", self.name, "a template that names a field, such as {title}\\n{body}")

    @property
    def field(self) -> str:
        """The last field that is no nested value; the last of all where each is."""
        plain = [path for _, path in self.parts() if path and "." not in path]
        return (plain or self.fields)[-1]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path.split(".")[0] for _, path in self.parts() if path))

    def at(self, text_field: str) -> TextSource:  # noqa: ARG002  # a template names its fields
        return self

    def render(self, fields: Fields) -> str | None:
        values = {path: as_text(value_at(fields, path)) for _, path in self.parts() if path}
        if all(value is None for value in values.values()):
            return None
        return "".join(literal + (values[path] or "" if path else "") for literal, path in self.parts())

    def parts(self) -> list[tuple[str, str | None]]:
        """Return (literal text, path of the field that follows it) pairs. Raises ValueError."""
        parts = []
        for literal, path, form, conversion in string.Formatter().parse(self.name):
            if path == "" or form or conversion:
                raise ValueError("a field is its name in braces and nothing else")
            parts.append((literal, path))
        return parts


@dataclass(frozen=True)
class LlamaIndexText:
    """What LlamaIndex embeds of a node: `TextNode.get_content(metadata_mode=MetadataMode.EMBED)`.

    text: the field that holds the text where the stored node has none of its own (PGVectorStore, Chroma).
    """

    text: str = "text"
    metadata: str = "metadata_"
    """The column of PGVectorStore."""
    name: str = LLAMA_INDEX

    @property
    def field(self) -> str:
        return self.text

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.text, self.metadata)

    def at(self, text_field: str) -> TextSource:
        return LlamaIndexText(text_field)

    def render(self, fields: Fields) -> str | None:
        node = stored_node(fields)
        text = (node.get("text") if node else None) or as_text(fields.get(self.text))
        if text is None or node is None:
            return text
        excluded = set(node.get("excluded_embed_metadata_keys") or ())
        line = node.get("metadata_template") or node.get("metadata_tmpl") or "{key}: {value}"
        separator = node.get("metadata_separator", node.get("metadata_seperator", "\n"))
        metadata = separator.join(
            _filled(line, {"key": key, "value": str(value)})
            for key, value in (node.get("metadata") or {}).items()
            if key not in excluded
        ).strip()
        if not metadata:
            return text
        template = node.get("text_template") or node.get("text_tmpl") or "{metadata_str}\n\n{content}"
        return _filled(template, {"content": text, "metadata_str": metadata}).strip()


@dataclass(frozen=True)
class HaystackText:
    """What Haystack's embedders embed of a document: values of its metadata, and its content, joined.

    meta_fields: `meta_fields_to_embed`. text: the field with the content; meta: the one with the metadata, which in
    Chroma stand beside the content.
    """

    meta_fields: tuple[str, ...]
    separator: str = "\n"
    text: str = "content"
    meta: str = "meta"

    @property
    def name(self) -> str:
        separator = "" if self.separator == "\n" else f", separator={json.dumps(self.separator, ensure_ascii=False)}"
        return f"{HAYSTACK}({', '.join(self.meta_fields)}{separator})"

    @property
    def field(self) -> str:
        return self.text

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.text, self.meta)

    def at(self, text_field: str) -> TextSource:
        return replace(self, text=text_field)

    def render(self, fields: Fields) -> str | None:
        content, meta = as_text(fields.get(self.text)), fields.get(self.meta)
        if isinstance(meta, str):
            meta = _parsed(meta)
        values: Fields = meta if isinstance(meta, Mapping) else fields
        before = [str(values[name]) for name in self.meta_fields if values.get(name) is not None]
        return None if content is None else self.separator.join([*before, content])


@dataclass(frozen=True)
class SqlText:
    """An expression of SQL, which PostgreSQL computes. columns: of the table, that it reads.

    expression: the same with every name as the server has looked it up.
    A row as it is read has the text under the name of the expression.
    """

    name: str
    columns: tuple[str, ...]
    expression: str

    @property
    def field(self) -> str:
        """Raise StoreSchemaError: no field can be written so that the text is a given one."""
        expected = "Write such rows by SQL of your own, and they are followed; or say the text as a template."
        raise StoreSchemaError(f"the text {self.name} is computed by the database", expected)

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.columns, self.name)

    def at(self, text_field: str) -> TextSource:  # noqa: ARG002  # it names its columns
        return self

    def render(self, fields: Fields) -> str | None:
        return as_text(fields.get(self.name))


def text_source(name: str) -> TextSource:
    """Return the source that a name in migration.toml stands for. Raises SettingsError."""
    if name == LLAMA_INDEX:
        return LlamaIndexText()
    return TemplateText(name) if "{" in name or "}" in name else FieldText(name)


def framework_source(name: str, kind: str, present: Collection[str] | None = None) -> TextSource | None:
    """Return what a framework embeds by default in a store of that kind; None where the name is no framework's.

    present: the fields that there are, where that is known. Raises SettingsError for a kind whose layout is not known,
    StoreSchemaError where the text is in none of the fields.
    """
    framework = name.partition("(")[0]
    if framework not in FRAMEWORK_FIELDS:
        return None
    form = HAYSTACK_FORM.fullmatch(name)
    if form is None and name != LANGCHAIN:
        raise SettingsError("text", name, 'langchain, haystack, or haystack(title, author, separator=" | ")')
    field = _framework_field(framework, kind, present)
    meta = tuple(filter(None, (part.strip() for part in (form[1] or "").split(",")))) if form else ()
    if form is None or not meta:
        return FieldText(field)
    return HaystackText(meta, json.loads(form[2]) if form[2] else "\n", field)


def _framework_field(framework: str, kind: str, present: Collection[str] | None) -> str:
    by_kind = FRAMEWORK_FIELDS[framework]
    if kind not in by_kind:
        raise SettingsError("text", framework, f"the name of the field; {framework} is known in {', '.join(by_kind)}")
    candidates = by_kind[kind]
    field = candidates[0] if present is None else next((each for each in candidates if each in present), None)
    if field is None:
        what = (
            f"{framework} keeps the text in {' or '.join(candidates)}, and there is {', '.join(sorted(present or ()))}"
        )
        raise StoreSchemaError(what, "Name the field that holds the text.")
    return field


def value_at(fields: Fields, path: str) -> Any:
    """Return the value at a dotted path; None where there is none. A name with dots in it goes before its parts."""
    if path in fields:
        return fields[path]
    head, _, rest = path.partition(".")
    inner = fields.get(head)
    if isinstance(inner, str) and inner.startswith("{"):
        inner = _parsed(inner)
    return value_at(inner, rest) if rest and isinstance(inner, Mapping) else None


def as_text(value: Any) -> str | None:
    """Return a value as text: numbers and booleans as JSON has them; None for null, for lists and objects."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None


def scalar_paths(fields: Fields, depth: int = 3) -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every value that is not nested."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and depth > 1:
            for path, inner in scalar_paths(value, depth - 1):
                yield f"{name}.{path}", inner
        elif (text := as_text(value)) is not None:
            yield str(name), text


def stored_node(fields: Fields) -> dict[str, Any] | None:
    """LlamaIndex's node as it is stored beside a vector; None where there is none."""
    for value in (fields.get(NODE), *(value_at(fields, f"{name}.{NODE}") for name in fields)):
        if isinstance(value, str) and (node := _parsed(value)):
            return node
    return None


def _filled(template: str, values: Mapping[str, str]) -> str:
    """`template.format(**values)`, for a template out of a database: nothing but these names is looked up.

    Raises ValueError for any other replacement.
    """
    parts = []
    for literal, name, form, conversion in string.Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            if name not in values or form or conversion:
                raise ValueError(f"a template with the field {name!r}")
            parts.append(values[name])
    return "".join(parts)


def _parsed(value: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(value)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
