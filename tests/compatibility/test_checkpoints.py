"""Checkpoints in the layouts that people bring: each is converted to what others make of it, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.compatibility.checkpoints import ROWS, TOLERANCE, Row, outcome
from tests.compatibility.page import section


def test_the_page_has_a_row_for_each_layout() -> None:
    """`python -m tests.compatibility.checkpoints` writes it."""
    names_and_outcomes = re.findall(r"^\| (.+?) \| (\w+) \|", section("checkpoints"), re.MULTILINE)[1:]
    expected = [(row.name, "converted" if row.refusal is None else row.refusal.__name__) for row in ROWS]
    assert names_and_outcomes == expected


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the whole checkpoints that layouts are made of."""
    return tmp_path_factory.mktemp("bases")


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_layout_is_converted_as_others_read_it_or_refused_by_name(row: Row, bases: Path, tmp_path: Path) -> None:
    """fp32 on both sides, two layers: only the order of summation differs."""
    came = outcome(row, bases, tmp_path)
    assert type(came.error) is (type(None) if row.refusal is None else row.refusal), came.error
    if came.difference is not None:
        assert came.difference <= TOLERANCE
