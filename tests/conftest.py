"""Checkpoints that the tests share, made once a session: BGE-M3's layout, seeded random weights."""

from pathlib import Path

import pytest

from bench.make_checkpoint import Shape, make_checkpoint

TINY = Shape(layers=2, hidden=64, attention_heads=4, feed_forward=128, vocabulary=4000)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BGE-M3's shape in small: 2 layers, 64 numbers, 4,000 pieces, 8,192 tokens. Not to be written to."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-bge-m3", TINY)
