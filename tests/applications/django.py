"""A Django application with pgvector's field."""

from __future__ import annotations

from functools import cache
from typing import Any

import psycopg
import pytest

from tests.applications.application import Listing, encode_with
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder


class DjangoApplication:
    """A model whose VectorField has the dimensions of the embedding model; a search orders by CosineDistance."""

    listing = Listing(
        "Django, pgvector's `VectorField` and `CosineDistance`", "django", "shop_document", "body", layout="Django"
    )
    site = "postgres"

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        db = pytest.importorskip("django.db")
        self._distance = pytest.importorskip("pgvector.django").CosineDistance
        self._encode = encode_with(encoder)
        database = known_to_django(site.url)
        model = document_model(encoder.dimension)
        self._documents = model.objects.using(database)
        self._connection = db.connections[database]
        if model._meta.db_table not in self._connection.introspection.table_names():
            with self._connection.schema_editor() as editor:
                editor.create_model(model)
            recorder = pytest.importorskip("django.db.migrations.recorder").MigrationRecorder
            recorder(self._connection).ensure_schema()

    def add(self, key: str, text: str) -> None:
        self._documents.update_or_create(id=key, defaults={"body": text, "embedding": self._encode(text)})

    def remove(self, key: str) -> None:
        self._documents.filter(id=key).delete()

    def read(self, key: str) -> str | None:
        document = self._documents.filter(id=key).first()
        return document.body if document else None

    def first(self, text: str) -> str | None:
        document = self._documents.order_by(self._distance("embedding", self._encode(text))).first()
        return document.body if document else None

    def close(self) -> None:
        self._connection.close()


def known_to_django(url: str) -> str:
    """Return the alias under which Django's settings, made here once a process, have that database."""
    conf, db = pytest.importorskip("django.conf"), pytest.importorskip("django.db")
    if not conf.settings.configured:
        conf.settings.configure(USE_TZ=True)
        pytest.importorskip("django").setup()
    address = psycopg.conninfo.conninfo_to_dict(url)
    alias = str(address["dbname"])
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": alias,
        "USER": address["user"],
        "HOST": address["host"],
    }
    db.connections.settings[alias] = db.connections.configure_settings({"default": {}, alias: database})[alias]
    return alias


@cache
def document_model(dimension: int) -> Any:
    """Return the application's model as it stands in models.py with an embedding model of that dimension."""
    fields = pytest.importorskip("django.db.models")
    pgvector = pytest.importorskip("pgvector.django")

    class Meta:
        app_label = f"shop_{dimension}"
        db_table = "shop_document"
        indexes = (
            pgvector.HnswIndex(name="shop_document_hnsw", fields=["embedding"], opclasses=["vector_cosine_ops"]),
        )

    content = {
        "id": fields.UUIDField(primary_key=True),
        "body": fields.TextField(),
        "embedding": pgvector.VectorField(dimensions=dimension),
        "Meta": Meta,
        "__module__": __name__,
    }
    return type("Document", (fields.Model,), content)
