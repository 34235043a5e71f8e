"""What a store was found to have, and which of it a migration can be of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

from vecferry.errors import MissingOption, NothingFound, StoreSchemaError
from vecferry.stores.backend import VectorField
from vecferry.stores.frameworks import framework_of
from vecferry.stores.group import MAGIC

SHOWN = 20
"""Collections that a message names."""
PLACES: Mapping[str, str] = {
    "postgresql": "the role sees no column of pgvector's types vector and halfvec, in any schema",
    "sqlite": "it has no vec0 table with vectors of floats",
    "faiss": "the folder has no NAME.faiss with NAME.pkl or NAME.jsonl beside it",
}
"""Where vectors were looked for, by the kind of store."""
ID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{16,}"
MADE_FOR_EACH = re.compile(rf"(?P<prefix>[A-Za-z][\w-]*?[-_])(?:{ID})")
"""The name of a collection that an application makes for each of its files or users, as Open WebUI does."""


@dataclass(frozen=True)
class Found:
    """All vectors of a store. store: its URL, as it may be shown. kind: of the store."""

    store: str
    kind: str
    fields: Sequence[VectorField]

    def candidates(self, collection: str | None, vector: str | None) -> list[VectorField]:
        """Return those of that name that can be migrated; without a name, those that have vectors.

        collection: a pattern such as file-* is the group of all that match and are alike.
        Raises StoreSchemaError for a name that is not there, NothingFound where none is left.
        """
        fields = [field for field in self.fields if vector in (None, field.vector)]
        named = list(self._named(fields, collection))
        if self.fields and not named:
            name = ".".join(filter(None, (collection, vector)))
            raise StoreSchemaError(f"there are no vectors called {name}", f"There are: {_names(self.fields)}.")
        usable = [field for field in named if not field.obstacle and (field.rows or collection)]
        if not usable:
            raise self._nothing(named)
        return usable

    def _named(self, fields: Sequence[VectorField], collection: str | None) -> Iterator[VectorField]:
        """Yield the fields of that name; without one all, those that an application makes by the dozen as groups."""
        if collection is None:
            yield from _grouped(fields, finds_keys=self._finds_keys)
        elif MAGIC.search(collection):
            matching = [field for field in fields if not field.where and fnmatchcase(field.collection, collection)]
            yield from _groups(matching, collection, finds_keys=self._finds_keys)
        else:
            yield from (field for field in fields if field.is_called(collection))

    @property
    def _finds_keys(self) -> bool:
        """Whether the store knows the key of each collection, so that those of a group need not be called alike."""
        return self.kind == "postgresql"

    def choice_missing(self, fields: Sequence[VectorField]) -> MissingOption:
        """Return the error that says which option chooses among several."""
        collections = list(dict.fromkeys(field.part or field.collection for field in fields))
        if len(collections) == 1:
            vectors = [field.vector for field in fields]
            return MissingOption("--vector", f"one of {', '.join(vectors)}", f"--vector {shlex.quote(vectors[0])}")
        more = ", or a pattern: '*' is all of them, switched together"
        example = f"--collection {shlex.quote(collections[0])}"
        return MissingOption("--collection", f"one of {_names(fields)}{more}", example)

    def framework(self, field: VectorField) -> str:
        """Return by whose layout a field is made; empty where it is none that is known."""
        framework = framework_of(self.kind, field)
        return framework.name if framework else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the store and all that it has, ready for JSON."""
        names = ("collection", "part", "where", "vector", "rows", "dimensions", "key", "obstacle")
        found = [{n: getattr(each, n) for n in names} | {"framework": self.framework(each)} for each in self.fields]
        return {"store": self.store, "found": found}

    def _nothing(self, fields: Sequence[VectorField]) -> NothingFound:
        """Return the error that says at what was looked, and why none of it will do."""
        reasons = [f"{each.name} {f'cannot be: {each.obstacle}' if each.obstacle else 'is empty'}" for each in fields]
        looked_at = "; ".join(reasons[:SHOWN]) or PLACES.get(self.kind, "it has no collection with dense vectors")
        remedy = "Check the URL, and what may be read by whom it names."
        if empty := [each.collection for each in fields if not each.obstacle]:
            remedy = f"To write the file all the same: --collection {shlex.quote(empty[0])}"
        return NothingFound(self.store, looked_at, remedy)


def _grouped(fields: Sequence[VectorField], *, finds_keys: bool) -> Iterator[VectorField]:
    """Yield groups of collections that are made for each file or user, and the others one by one, parts of one too."""
    by_pattern: dict[str, list[VectorField]] = {}
    for field in fields:
        match = None if field.where else MADE_FOR_EACH.fullmatch(field.collection)
        by_pattern.setdefault(f"{match['prefix']}*" if match else field.collection, []).append(field)
    for pattern, alike in by_pattern.items():
        is_group = len(alike) > 1 and MAGIC.search(pattern)
        yield from _groups(alike, pattern, finds_keys=finds_keys) if is_group else alike


def _groups(fields: Sequence[VectorField], pattern: str, *, finds_keys: bool) -> Iterator[VectorField]:
    """Yield one field for all with vectors of one name and length; more than one cannot be of one migration."""

    def shape(field: VectorField) -> tuple[str, tuple[int, ...], str]:
        return field.vector, field.dimensions, "" if finds_keys else field.key

    usable = [field for field in fields if not field.obstacle and field.rows]
    groups = [list(alike) for _, alike in groupby(sorted(usable, key=shape), key=shape)]
    for alike in groups:
        names = tuple(dict.fromkeys(name for field in alike for name in field.names))
        members = tuple(field.collection for field in alike)
        obstacle = (
            "" if len(groups) == 1 else f"others that are called {pattern} have vectors of another length or name"
        )
        rows = sum(field.rows for field in alike)
        yield replace(alike[0], collection=pattern, members=members, names=names, rows=rows, obstacle=obstacle)


def _names(fields: Sequence[VectorField]) -> str:
    """Return the names of collections, as many as can be read."""
    names = list(dict.fromkeys(field.part or field.collection for field in fields))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
