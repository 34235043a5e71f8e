"""Where applications keep their vectors: a store, and how vecferry opens it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg
from qdrant_client import QdrantClient

from tests.applications.application import Listing
from vecferry.stores.backend import Fields
from vecferry.stores.browsing import BackendBrowser, Browser, open_browser
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.opening import open_store
from vecferry.stores.protocol import Store
from vecferry.stores.qdrant import QdrantBackend
from vecferry.stores.qdrant.connection import QdrantConnection
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.text_source import text_source


class Site(Protocol):
    def store(self, listing: Listing) -> Store:
        """Open the application's collection as a migration does; to be closed."""

    def browser(self) -> AbstractContextManager[Browser]:
        """Yield what `vecferry init` looks at the store by."""


@dataclass(frozen=True)
class UrlSite:
    """A store that several clients can have open. url: as in migration.toml. control: the ledger's file."""

    url: str
    control: Path

    def store(self, listing: Listing) -> Store:
        return open_store(
            self.url,
            listing.collection,
            text=listing.text,
            vector=listing.vector,
            key=listing.key,
            control=self.control,
        )

    def browser(self) -> AbstractContextManager[Browser]:
        return open_browser(self.url)

    def sqlalchemy_url(self, driver: str) -> str:
        """Return the URL of a PostgreSQL as SQLAlchemy takes it."""
        address = psycopg.conninfo.conninfo_to_dict(self.url)
        return f"postgresql+{driver}://{address['user']}@/{address['dbname']}?host={address['host']}"


@dataclass(frozen=True)
class QdrantSite:
    """Qdrant's local mode, which has one client: the application's, by which the migration goes too."""

    client: QdrantClient

    def store(self, listing: Listing) -> Store:
        source = text_source(listing.text)
        backend = self._backend(Fields(text=source.field, vector=listing.vector))
        return MirrorStore(backend, listing.collection, SqliteLedger.in_memory(), source.at(backend.text_field))

    def browser(self) -> AbstractContextManager[Browser]:
        return nullcontext(BackendBrowser("qdrant", self._backend))

    def _backend(self, fields: Fields) -> QdrantBackend:
        connection = QdrantConnection(self.client, is_local=True)
        connection.share()  # so that closing the backend leaves the application its client
        return QdrantBackend(connection, fields)
