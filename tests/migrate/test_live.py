"""A small migration under load, on every store; `live.py` does the same with as many rows as one likes."""

from pathlib import Path

from tests.migrate.live import STABLE, Application, fill, following_in_a_thread, go
from tests.stores.collections import Collection

ROWS = STABLE + 20


def test_under_load_nothing_fails_and_every_row_is_there_once_and_true(collection: Collection, tmp_path: Path) -> None:
    fill(collection.store, ROWS)
    application = Application(collection.store, ROWS, writes_per_s=3)
    with following_in_a_thread(collection, tmp_path) as follow:
        found = go(collection, application, tmp_path, follow, query_threads=1)
    assert found.faults == 0, found
    assert found.epochs == [2, 3, 4]
    assert found.writes > 10
    assert found.queries > 50
