"""What an application of the tests is: a framework's own client with one model, and its row in the documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tests.migrate.doubles import TruthEncoder

Encode = Callable[[str], list[float]]


@dataclass(frozen=True)
class Listing:
    """A row of the table in docs/applications.md.

    package: the distribution that the client comes from; None where only a schema is tried, by SQL of its own.
    collection, text, vector, key: as in migration.toml. follows_switch: whether the collection's name finds the new
    vectors from the switch on, as a table's and an alias's do; else that of the serving epoch does until `finalize`.
    layout: whose collection `vecferry init` takes it for; found_text: what it writes for `text`, where that is said in
    other words.
    prepares_all_columns: whether it asks for `*` by statements that stay prepared, which are refused once columns
    have come or gone.
    """

    application: str
    package: str | None
    collection: str
    text: str
    vector: str = "embedding"
    key: str | None = None
    follows_switch: bool = True
    prepares_all_columns: bool = False
    layout: str = ""
    found_text: str = ""

    @property
    def collection_after_switch(self) -> str:
        """The name under which a client finds the new vectors between the switch and `finalize`."""
        return self.collection if self.follows_switch else f"{self.collection}_vecferry_2"

    @property
    def opened_anew_after(self) -> str:
        """Where the application is opened anew, in the order of a migration."""
        if self.prepares_all_columns:
            return "`start`, the switch, `finalize`"
        return "the switch" if self.follows_switch else f"the switch, as `{self.collection_after_switch}`; `finalize`"


class Application(Protocol):
    """A framework's store with one model, made as `kind(site, encoder, collection)`.

    site: the fixture with its store, of `sites.py`. A constructor skips the test where the package is missing.
    """

    listing: ClassVar[Listing]
    site: ClassVar[str]

    def add(self, key: str, text: str) -> None:
        """Write a document, new or replaced."""

    def remove(self, key: str) -> None: ...

    def read(self, key: str) -> str | None:
        """Return the text of the document with that key; None where there is none."""

    def first(self, text: str) -> str | None:
        """Return the text of the document nearest to this one."""

    def close(self) -> None: ...


def encode_with(encoder: TruthEncoder) -> Encode:
    return lambda text: [float(number) for number in encoder.encode([text]).dense[0]]
