from collections.abc import Iterator

import pytest

from tests.postgres import connection, database_url, postgres_url
from tests.stores.collections import Collection, MemoryCollection, PgCollection

__all__ = ["collection", "connection", "database_url", "postgres_url"]


@pytest.fixture(params=["memory", "pgvector"])
def collection(request: pytest.FixtureRequest) -> Iterator[Collection]:
    """An empty collection in each store in turn."""
    if request.param == "memory":
        yield MemoryCollection()
        return
    made = PgCollection(request.getfixturevalue("connection"), request.getfixturevalue("database_url"))
    yield made
    made.store.close()
