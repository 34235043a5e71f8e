"""Which parameters of a test that takes long are tried by `make test`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest
from _pytest.mark import ParameterSet


def params(names: Iterable[object], *, slow: Collection[object]) -> list[ParameterSet]:
    """Return a parameter for each name; the slow ones are for `make test-slow`."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]
