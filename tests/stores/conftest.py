from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import connection, database_url, postgres_url
from tests.quick import params
from tests.stores.backends import RUN_APART
from tests.stores.collections import (
    CONDITIONS,
    LAYOUTS,
    NAMES,
    PARTITIONED,
    Collection,
    PgCollection,
    group_collection,
    mirror_collection,
)
from tests.stores.groups import GROUPS

__all__ = ["collection", "connection", "database_url", "postgres_url"]


SLOW = {"chroma", "group", *RUN_APART, *PARTITIONED}
"""The first is the same code as its server's, and the second, but for its end, that of the group of files."""


@pytest.fixture
def embed_missing() -> bool:
    """Say whether rows of a table that have no vector are given one."""
    return False


@pytest.fixture(params=params(NAMES, slow=SLOW))
def collection(request: pytest.FixtureRequest, tmp_path: Path, *, embed_missing: bool) -> Iterator[Collection]:
    """Yield an empty collection in each store in turn."""
    if (layout := LAYOUTS.get(request.param)) is not None:
        connection, database_url = request.getfixturevalue("connection"), request.getfixturevalue("database_url")
        where, is_partitioned = CONDITIONS.get(request.param), request.param in PARTITIONED
        made = PgCollection(
            connection,
            database_url,
            layout,
            embed_missing=embed_missing,
            where=where,
            is_partitioned=is_partitioned,
        )
        yield made
        made.store.close()
        assert where is None or made.other_rows() == made.others
        return
    made_by = group_collection if request.param in GROUPS else mirror_collection
    with made_by(request.param, tmp_path) as mirrored:
        yield mirrored
