"""Which parameters of a test that takes long are tried by `make test`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest
from _pytest.mark import ParameterSet


def params(names: Iterable[str], quick: Collection[str]) -> list[ParameterSet]:
    """Return a parameter for each name; those that are not quick are for `make test-slow`."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]
