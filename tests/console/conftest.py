from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.inside import Console, console, task
from tests.stores.collections import MirrorCollection, mirror_collection, old_vector

ROWS = 30


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[MirrorCollection]:
    """Yield a collection of `text number 1` to 30, with their old vectors."""
    with mirror_collection("memory", tmp_path) as made:
        for key in range(1, ROWS + 1):
            made.put(key, f"text number {key}", old_vector(f"text number {key}"))
        yield made


@pytest.fixture
def opened(collection: MirrorCollection, tmp_path: Path) -> Iterator[Console]:
    """Open a console whose gate does not pass at first, and passes then. Nobody is logged in."""
    with console(task(collection.store, tmp_path, gates=(False, True))) as started:
        yield started


@pytest.fixture
def inside(opened: Console) -> Console:
    """Return the console with somebody logged in."""
    opened.log_in()
    return opened
