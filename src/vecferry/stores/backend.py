"""What a vector store must be able to do so that `mirror.MirrorStore` can migrate it. One file per store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from vecferry.embeddings import Float32, Outputs, TextVectors, Value
from vecferry.errors import InvalidStoreUrl
from vecferry.stores.filters import EVERY_ROW, Selection


@dataclass(frozen=True, eq=False)
class Point:
    """One entry of a collection, whole. id: as text, whatever the store's type is.

    vectors: None where they were not asked for, or the point has none. payload: all else that the store
    keeps with it, in values that can be put back as they are.
    """

    id: str
    text: str | None
    vectors: TextVectors | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BackendHit:
    """One answer to a search, best first. score: the cosine. point: without its vectors, where it was asked for."""

    id: str
    score: float
    point: Point | None = None


@dataclass(frozen=True)
class Fields:
    """Where the parts of a point are, by the names that the store has for them.

    vector: "" is Qdrant's unnamed vector. Chroma has its own places for all three and takes none of these.
    new_vector: the name of the vector in a new collection of Qdrant, if it is to be another.
    """

    key: str = "id"
    text: str = "text"
    vector: str = "vector"
    new_vector: str | None = None


@dataclass(frozen=True)
class ServerAccess:
    """What a server asks for beside its address. token: Chroma's, Qdrant's or Milvus's; tenant, database: Chroma's."""

    token: str | None = field(default=None, repr=False)
    tenant: str | None = None
    database: str | None = None


ANYONE = ServerAccess()

PEEKED = 5
"""Points by which the names of a payload are known."""


@dataclass(frozen=True)
class VectorField(Value):
    """Vectors that one migration can be of.

    collection, vector, key: as in migration.toml. dimensions: of the vectors, as declared or as seen; rows: that have
    one, about where they are many. names: of what lies beside them, at the top level; text: one of these with texts, by
    which a backend can be opened. marks: of who made the collection, beside its columns (`frameworks.py`).
    obstacle: why it cannot be migrated; empty where nothing is in the way. part, where: the name of a collection that
    shares its table with others, and the condition on its rows. members: the collections of a group, for which
    `collection` is the pattern.
    """

    collection: str
    vector: str
    dimensions: tuple[int, ...]
    rows: int
    names: tuple[str, ...] = ()
    text: str = "text"
    key: str = "id"
    marks: tuple[str, ...] = ()
    obstacle: str = ""
    part: str = ""
    where: str = ""
    members: tuple[str, ...] = ()

    @property
    def dimension(self) -> int | None:
        """Return how many numbers each vector has; None where there is none, or they differ."""
        return self.dimensions[0] if len(self.dimensions) == 1 else None

    @property
    def name(self) -> str:
        """Return the name for people: collection and vector."""
        place = f"{self.collection}.{self.vector}" if self.vector else self.collection
        return f"{self.part} in {place}" if self.part else place

    def is_called(self, name: str) -> bool:
        """Return whether that is the name of the collection, or of the part of it."""
        return name == (self.part or self.collection)


def is_made_by_migration(collection: str) -> bool:
    """Return whether a collection that keeps its name was made by a migration, as its new side."""
    return re.search(r"_vecferry_[0-9]+$", collection) is not None


def path_in(url: str, forms: str) -> str:
    """Return the path of a local store's URL, scheme:///an/absolute/one or scheme:a/relative/one, as it is spelled.

    forms: the two for a message. Raises InvalidStoreUrl for a URL with a host.
    """
    path = url.partition(":")[2]
    if path.startswith("//") and not path.startswith("///"):
        raise InvalidStoreUrl(url, forms)
    return path.removeprefix("//")


class Backend(Protocol):
    """A store as a set of named collections of points. Not thread-safe; a thread has its own by `another`.

    All methods raise StoreUnreachable, StoreSchemaError or StoreFailed, from the client's own errors.
    What `put` and `delete` have written is durable when they return, as far as the store promises it.
    """

    @property
    def kind(self) -> str:
        """For messages: "chroma", "lancedb"."""

    @property
    def text_field(self) -> str:
        """Where the text is, for messages and for the record of a migration."""

    @property
    def outputs(self) -> Outputs:
        """The heads that a collection can hold; dense always."""

    def names(self) -> dict[str, str]:
        """Return every name by which a client knows a collection, with the one behind it: itself, but for an alias."""

    def exists(self, collection: str) -> bool: ...
    def dimension(self, collection: str) -> int | None:
        """Return how many numbers a vector has; None if the collection does not say it (it is empty)."""

    def count(self, collection: str) -> int: ...
    def check(self, like: str, outputs: Outputs) -> None:
        """Raise StoreSchemaError if there can be no collection like this one with these heads.

        So where its metric is neither cosine nor one that equals it for unit vectors, or its key, text or vector is
        not as expected.
        """

    def create(self, collection: str, *, like: str, dimension: int, outputs: Outputs) -> None:
        """Leave an empty collection with the schema and metric of `like`, for vectors of `dimension`.

        Raises StoreSchemaError as `check` does.
        """

    def drop(self, collection: str) -> None:
        """Drop a collection. Repeating is safe: a collection that is not there is dropped."""

    def ids(self, collection: str) -> Iterator[str]:
        """Yield every point's id, in any order, as of the time of the call or later."""

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        """Return those that are there, in any order, as last written by anybody. Any number of ids."""

    def put(self, collection: str, points: Sequence[Point]) -> None:
        """Insert or replace, each point as a whole. Any number; ids are distinct.

        Every vector is there, unless points may be without one (`OptionalVectors`).
        """

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Delete points. Ids that are not there are no error. Any number."""

    def search(self, collection: str, vector: Float32, k: int, selection: Selection = EVERY_ROW) -> list[BackendHit]:
        """Search by the store's own index, best first, over what was written before.

        A filter narrows what is searched, not what was found: k rows are returned where so many match. Raises
        InvalidFilter for one that this store cannot apply.
        """

    def build_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        """Leave the vector indexes that `like` has; return the names of those built. Repeating is safe."""

    def missing_indexes(self, collection: str, like: str) -> tuple[str, ...]:
        """Return what `build_indexes` would still build."""

    def another(self) -> Backend: ...
    def close(self) -> None: ...


@runtime_checkable
class Aliased(Protocol):
    """A backend with names that point to collections, and can be pointed to others at once."""

    def resolve(self, name: str) -> str:
        """Return the collection behind the alias; the name itself if it is not an alias."""

    def is_alias(self, name: str) -> bool: ...
    def point_alias(self, alias: str, collection: str) -> None:
        """Point the alias at the collection, in one step. Repeating is safe."""

    def drop_alias(self, alias: str) -> None:
        """Drop an alias, and nothing else. Repeating is safe. `drop` drops those of its collection."""


@runtime_checkable
class Noticing(Protocol):
    """A backend whose collections may have something that an operator should know before a migration."""

    def notices(self, collection: str) -> tuple[str, ...]:
        """Say what that is and what is to be done about it, such as which model embeds an application's queries."""


@runtime_checkable
class OptionalVectors(Protocol):
    """A backend in which a point may be without a vector, in collections that allow it."""

    def without_vector(self, collection: str, ids: Sequence[str]) -> set[str]:
        """Return those of these ids whose point is there and has none. Any number."""

    def count_without_vector(self, collection: str) -> int: ...


@runtime_checkable
class Grouped(Protocol):
    """A backend whose collections are each a group of collections of another one, its members. See `group.py`."""

    @property
    def has_aliases(self) -> bool:
        """Say whether a member may go by an alias."""

    def members(self, collection: str) -> dict[str, str]:
        """Return, by the names of the members that are there, in order, those of their collections on that side."""

    def backend_of(self, member: str) -> Backend | None:
        """Return the backend that has the member's collections; None where the group has no member of that name."""

    def name_of(self, collection: str, member: str) -> str:
        """Return how the member's collection on that side is called, whether it is there or not."""

    def within(self, member: str) -> Backend:
        """Return the group of this member alone, with the names and ids of the whole; not to be closed."""


@runtime_checkable
class Renamable(Protocol):
    """A backend without aliases whose collections can be renamed. Each knows the name under which it was created."""

    def rename(self, collection: str, name: str) -> None:
        """Give the collection another name, in one step. Raises StoreSchemaError if there is one of that name."""

    def created_as(self, collection: str) -> str | None:
        """Return the name that `create` gave the collection; None if it was made by somebody else."""


@runtime_checkable
class Browsable(Protocol):
    """A backend that says where vectors are, whatever names it was opened with."""

    def vector_fields(self) -> list[VectorField]: ...
