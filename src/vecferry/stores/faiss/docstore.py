"""The documents beside an index: LangChain's pickle, and JSON lines, in the order of the vectors.

LangChain's pickle is read as `plain_pickle` says. The writer needs no LangChain: it puts together pickles of plain
values, which in protocol 3 say where in the reader's memory each value lies, so that one after another can stand in
one file.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vecferry.errors import StoreSchemaError
from vecferry.stores.backend import Fields
from vecferry.stores.faiss.plain_pickle import PROTOCOL, StandIn, pickled, unpickled

BEGIN, END = pickle.PROTO + bytes([PROTOCOL]), pickle.STOP
DOCSTORE = b"clangchain_community.docstore.in_memory\nInMemoryDocstore\n)\x81"
DOCUMENT = b"clangchain_core.documents.base\nDocument\n)\x81"


@dataclass(frozen=True)
class Entry:
    """A document. payload: LangChain's metadata, or the other fields of a JSON line."""

    id: str
    text: str | None
    payload: Mapping[str, Any] = field(default_factory=dict)


class Docstore(Protocol):
    """One form of documents. name: of the form; suffix: of its files."""

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    def read(self, file: Path) -> tuple[Docstore, list[Entry]]:
        """Return the form that the file has, and its documents in the order of the vectors.

        Raises StoreSchemaError, StoreFailed.
        """

    def written(self, entries: Sequence[Entry]) -> bytes:
        """Return the bytes of a file with these documents."""


class LangChainDocstore:
    """`index.pkl` of LangChain's FAISS: (InMemoryDocstore, position → id)."""

    name = "langchain"
    suffix = ".pkl"

    def read(self, file: Path) -> tuple[Docstore, list[Entry]]:
        saved = unpickled(file.read_bytes(), file)
        entries: list[Entry | None] = [None]
        match saved:
            case (StandIn(state={"_dict": dict(documents)}), dict(ids)):
                order = [ids.get(position) for position in range(len(ids))]
                entries = [_entry(key, documents.get(key)) for key in order]
        known = [entry for entry in entries if entry is not None]
        if len(known) < len(entries):
            raise StoreSchemaError(f"{file} is not what FAISS.save_local of LangChain writes", "Save it anew.")
        return self, known

    def written(self, entries: Sequence[Entry]) -> bytes:
        documents = b"".join(_plain(entry.id) + DOCUMENT + _plain(_state(entry)) + pickle.BUILD for entry in entries)
        state = pickle.EMPTY_DICT + _plain("_dict") + pickle.EMPTY_DICT + pickle.MARK + documents + pickle.SETITEMS
        order = _plain({position: entry.id for position, entry in enumerate(entries)})
        return BEGIN + DOCSTORE + state + pickle.SETITEM + pickle.BUILD + order + pickle.TUPLE2 + END


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON lines: an object for each vector, with its key and text by the names in `fields`.

    has_numbers: whether keys are whole numbers there, not texts.
    """

    fields: Fields
    has_numbers: bool = False
    suffix: ClassVar[str] = ".jsonl"

    @property
    def name(self) -> str:
        return "json lines with numbers" if self.has_numbers else "json lines"

    def read(self, file: Path) -> tuple[Docstore, list[Entry]]:
        with file.open(encoding="utf-8", newline="\n") as lines:
            read = [self._entry(line, file, number) for number, line in enumerate(lines, 1)]
        kinds = {type(key) for key, _ in read} or {str}
        if kinds not in ({str}, {int}):
            raise StoreSchemaError(f"keys in {file} are {_names(kinds)}", "Texts alone, or whole numbers alone.")
        return replace(self, has_numbers=kinds == {int}), [entry for _, entry in read]

    def written(self, entries: Sequence[Entry]) -> bytes:
        names = {self.fields.key, self.fields.text}
        if strange := {name for entry in entries for name in entry.payload} & names:
            raise StoreSchemaError(f"a payload has the field {sorted(strange)} of the key or text", "Rename it.")
        lines = ({self.fields.key: self._key(e.id), self.fields.text: e.text, **e.payload} for e in entries)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "surrogatepass")

    def _key(self, key: str) -> str | int:
        return whole_number(key) if self.has_numbers else key

    def _entry(self, line: str, file: Path, number: int) -> tuple[Any, Entry]:
        try:
            fields = json.loads(line)
            key, text = fields.pop(self.fields.key), fields.pop(self.fields.text, None)
        except (ValueError, LookupError, AttributeError, TypeError) as exc:
            expected = f"An object with {self.fields.key!r} and {self.fields.text!r} in each line."
            raise StoreSchemaError(f"line {number} of {file} cannot be used", expected) from exc
        return key, Entry(str(key), text, fields)


def whole_number(key: str) -> int:
    """Return the number that a key is. Raises StoreSchemaError for a text that is not how one is written."""
    if not re.fullmatch(r"0|-?[1-9][0-9]*", key, re.ASCII):
        raise StoreSchemaError(f"{key!r} is no whole number", "The keys of this collection are.")
    return int(key)


def require_plain(payloads: Iterable[Mapping[str, Any]]) -> None:
    """Raise StoreSchemaError for a payload that could not be read again."""
    for payload in payloads:
        unpickled(pickled(dict(payload)), Path("a payload"))


def _names(kinds: Iterable[type]) -> str:
    return " and ".join(sorted(kind.__name__ for kind in kinds))


def _plain(value: Any) -> bytes:
    return pickled(value)[len(BEGIN) : -len(END)]


def _entry(key: Any, document: Any) -> Entry | None:
    """Return a document with its id; None for anything else."""
    match key, document:
        case str(), StandIn(state={"__dict__": {"page_content": (str() | None) as text, "metadata": dict(metadata)}}):
            return Entry(key, text, metadata)
    return None


def _state(entry: Entry) -> dict[str, Any]:
    """Return the state of a Document as pydantic 2 sets it."""
    values = {"id": entry.id, "metadata": dict(entry.payload), "page_content": entry.text, "type": "Document"}
    return {
        "__dict__": values,
        "__pydantic_extra__": None,
        "__pydantic_fields_set__": {"id", "metadata", "page_content"},
        "__pydantic_private__": None,
    }
