from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import connection, database_url, postgres_url
from tests.stores.collections import LAYOUTS, NAMES, Collection, PgCollection, mirror_collection

__all__ = ["collection", "connection", "database_url", "postgres_url"]


SLOW = {"chroma"}
"""The same code as its server's."""


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NAMES])
def collection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Collection]:
    """Yield an empty collection in each store in turn."""
    if (layout := LAYOUTS.get(request.param)) is not None:
        made = PgCollection(request.getfixturevalue("connection"), request.getfixturevalue("database_url"), layout)
        yield made
        made.store.close()
        return
    with mirror_collection(request.param, tmp_path) as mirrored:
        yield mirrored
