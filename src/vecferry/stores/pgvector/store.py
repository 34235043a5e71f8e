"""The store itself, put together from its parts; each is one chapter of `stores.Store`."""

from __future__ import annotations

from vecferry.stores.pgvector.application import PgApplication
from vecferry.stores.pgvector.capture import PgCapture
from vecferry.stores.pgvector.new_side import PgNewSide
from vecferry.stores.pgvector.reading import PgReading
from vecferry.stores.pgvector.switching import PgSwitching
from vecferry.stores.pgvector.writing import PgWriting


class PgVectorStore(PgReading, PgApplication, PgCapture, PgNewSide, PgWriting, PgSwitching):
    """`stores.Store` over one table, one text column and one vector column."""
