from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.inside import Console, console, task
from tests.stores.collections import MirrorCollection, mirror_collection, old_vector


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[MirrorCollection]:
    with mirror_collection("memory", tmp_path) as made:
        for key in range(1, 31):
            made.put(key, f"text number {key}", old_vector(f"text number {key}"))
        yield made


@pytest.fixture
def opened(collection: MirrorCollection, tmp_path: Path) -> Iterator[Console]:
    with console(task(collection.store, tmp_path, gates=(False, True))) as started:
        yield started


def test_the_whole_way_by_forms(opened: Console) -> None:
    assert opened.log_in().status_code == 303
    assert "not begun" in opened.page()
    opened.do("start")
    opened.wait_for("catching up</h1>")
    opened.do("verify")
    opened.wait_for("Too few queries to tell.")
    print(opened.page())
