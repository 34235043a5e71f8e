"""A small migration under load, on every store; `live.py` does the same with as many rows as one likes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.migrate.live import (
    NEW,
    OLD,
    STABLE,
    Application,
    LoadReport,
    fill,
    following_in_a_thread,
    go,
    on_mirror,
    on_postgres,
)
from tests.stores.collections import PART, PARTITIONED, SIDE_TABLE, Collection, mirror_collection, old_vector, quick_on

ROWS = STABLE + 20


def assert_faultless(load_report: LoadReport, *, writes: int, queries: int) -> None:
    assert load_report.faults == 0, load_report
    assert load_report.epochs == [2, 3, 4]
    assert load_report.writes >= writes
    assert load_report.queries >= queries


@quick_on("memory", "pgvector")
def test_under_load_nothing_fails_and_every_row_is_there_once_and_true(collection: Collection, tmp_path: Path) -> None:
    fill(collection.store, ROWS)
    application = Application(collection.store, ROWS, writes_per_s=3, queries_per_s=20)  # in LanceDB, each is a commit
    with following_in_a_thread(collection, tmp_path) as follow:
        load_report = go(collection, application, tmp_path, follow, query_threads=1)
    assert_faultless(load_report, writes=10, queries=50)


@pytest.mark.slow
def test_nothing_fails_under_many_writes_a_second_in_memory(tmp_path: Path) -> None:
    load_report = on_mirror("memory", 2 * STABLE, 40, tmp_path, query_threads=2)
    assert_faultless(load_report, writes=100, queries=200)


@pytest.mark.slow
def test_nothing_fails_under_many_writes_a_second_in_postgres_followed_by_another_process(
    database_url: str, tmp_path: Path
) -> None:
    load_report = on_postgres(database_url, 3 * STABLE, 50, tmp_path, query_threads=2)
    assert_faultless(load_report, writes=100, queries=200)


@pytest.mark.slow
def test_nothing_fails_under_many_writes_a_second_beside_a_side_table(database_url: str, tmp_path: Path) -> None:
    load_report = on_postgres(database_url, 3 * STABLE, 50, tmp_path, query_threads=2, name=SIDE_TABLE)
    assert_faultless(load_report, writes=100, queries=200)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTITIONED)
def test_nothing_fails_under_many_writes_a_second_to_eight_partitions(
    database_url: str, tmp_path: Path, name: str
) -> None:
    load_report = on_postgres(database_url, 3 * STABLE, 50, tmp_path, query_threads=2, name=name)
    assert_faultless(load_report, writes=100, queries=200)


@pytest.mark.slow
def test_one_tenant_of_twenty_is_migrated_while_the_others_read_and_write(database_url: str, tmp_path: Path) -> None:
    """Their rows are the bytes that they wrote, and their searches find them."""
    load_report = on_postgres(database_url, STABLE + 20, 4, tmp_path, query_threads=1, name=PART)
    assert_faultless(load_report, writes=10, queries=50)
    assert load_report.neighbour_writes >= 50


@pytest.mark.slow
def test_nothing_fails_with_20_000_rows_and_50_writes_a_second_in_postgres(database_url: str, tmp_path: Path) -> None:
    load_report = on_postgres(database_url, 20_000, 50, tmp_path)
    assert_faultless(load_report, writes=500, queries=2000)


# --- that it would see what it looks for ----------------------------------------------------------


@contextmanager
def compared(folder: Path) -> Iterator[tuple[Collection, Application]]:
    """Yield a collection without a migration, and an application that knows it."""
    with mirror_collection("memory", folder) as collection:
        fill(collection.store, 5)
        application = Application(collection.store, 5, writes_per_s=1)
        yield collection, application
        application.router.close()
        application._store.close()


def test_a_lost_row_and_a_stale_one_and_one_that_came_back_are_seen(tmp_path: Path) -> None:
    with compared(tmp_path) as (collection, application):
        application.compare(collection, OLD)
        assert application.load_report.faults == 0
        application.router.remove([("5",)])
        del application.reference["5"]
        application.deleted.add("5")
        collection.remove_unseen(1)
        collection.put_unseen(2, "text 2", old_vector("text 3"))
        collection.put_unseen(3, "an older text", old_vector("an older text"))
        collection.put_unseen(5, "text 5", old_vector("text 5"))
        application.compare(collection, OLD)
        load_report = application.load_report
        assert (load_report.lost, load_report.outdated, load_report.resurrected, load_report.doubled) == (1, 3, 1, 0)
        assert load_report.faults == 5


def test_an_answer_from_another_space_is_seen(tmp_path: Path) -> None:
    with compared(tmp_path) as (collection, application):
        application._ask(collection.store, "text 4", "4")
        assert application.load_report.faults == 0
        collection.put_unseen(4, "text 4", -OLD.truth("text 4"))
        application._ask(collection.store, "text 4", "4")
        assert application.load_report.not_found_at_once == 1
        for key in range(1, 6):
            collection.put_unseen(key, f"text {key}", NEW.truth(f"text {key}")[:8])
        application._ask(collection.store, "text 2", application.router.search("text 2", 1).hits[0].key[0])
        assert application.load_report.mixed_spaces == 1


def test_a_thread_that_dies_is_seen(tmp_path: Path) -> None:
    with compared(tmp_path) as (_, application):

        def fail() -> None:
            raise RuntimeError("gone")

        application._write_once = fail  # type: ignore[method-assign]
        with application.running(query_threads=0):
            pass
        assert application.load_report.dead_threads == ["writer: RuntimeError('gone')"]
        assert application.load_report.faults == 1
