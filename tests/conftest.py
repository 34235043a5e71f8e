"""What the tests share, made once a session: checkpoints in BGE-M3's layout with seeded random weights."""

from pathlib import Path

import pytest
from hypothesis import settings

from bench.make_checkpoint import Shape, make_checkpoint
from vecferry.conversion.convert import convert_checkpoint
from vecferry.encode.runtime.host import available_cpus
from vecferry.model.artifact import Artifact
from vecferry.model.sources import open_source

TINY = Shape(layers=2, hidden=64, attention_heads=4, feed_forward=128, vocabulary=4000)
WIDE = Shape(layers=1, hidden=1024, attention_heads=16, feed_forward=1024, vocabulary=4000, positions=514)

settings.register_profile("vecferry", deadline=None)  # a slow machine is no fault
settings.load_profile("vecferry")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores: many tests wait for processes and servers of their own."""
    return available_cpus() + 1


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint of BGE-M3's shape: 2 layers, 64 numbers, 4,000 pieces, 8,192 tokens. Not to be written to."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-bge-m3", TINY)


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint with BGE-M3's 1,024 numbers in one small layer, 512 tokens. Not to be written to."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "wide-bge-m3", WIDE)


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Convert `tiny_checkpoint` without verification. Not to be written to."""
    return convert_checkpoint(
        open_source(str(tiny_checkpoint)), tmp_path_factory.mktemp("artifact") / "tiny", verified=False
    ).artifact


@pytest.fixture(scope="session")
def wide_artifact(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Convert `wide_checkpoint` without verification. Not to be written to."""
    return convert_checkpoint(
        open_source(str(wide_checkpoint)), tmp_path_factory.mktemp("artifact") / "wide", verified=False
    ).artifact
