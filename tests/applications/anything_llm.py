"""The table of an AnythingLLM workspace in LanceDB, by LanceDB's Python client: AnythingLLM itself is JavaScript."""

from __future__ import annotations

from typing import Any

import lancedb

from tests.applications.application import Listing, encode_with
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder


class AnythingLLMApplication:
    """A table for each workspace, which the first document makes: id, vector, text, and a column for each metadatum."""

    listing = Listing(
        "The table of AnythingLLM in LanceDB",
        None,
        "docs",
        "text",
        vector="vector",
        follows_switch=False,
        layout="AnythingLLM",
    )
    site = "lancedb"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        self._encode = encode_with(encoder)
        self._connection = lancedb.connect(site.url.removeprefix("lancedb://"))
        self._collection = collection

    def add(self, key: str, text: str) -> None:
        row = {"id": key, "vector": self._encode(text), "title": "a.txt", "text": text}
        if self._collection not in self._connection.list_tables().tables:
            self._connection.create_table(self._collection, [row])
        else:
            self.remove(key)
            self._connection.open_table(self._collection).add([row])

    def remove(self, key: str) -> None:
        self._connection.open_table(self._collection).delete(f"id IN ('{key}')")

    def read(self, key: str) -> str | None:
        rows = self._connection.open_table(self._collection).search().where(f"id = '{key}'").to_list()
        return rows[0]["text"] if rows else None

    def first(self, text: str) -> str | None:
        table = self._connection.open_table(self._collection)
        query: Any = table.search(self._encode(text))
        rows = query.distance_type("cosine").limit(1).to_list()
        return rows[0]["text"] if rows else None

    def close(self) -> None:
        """Leave nothing open: LanceDB has no connection."""
