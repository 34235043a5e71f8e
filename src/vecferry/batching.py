"""Lengths to batches: pure functions on integers, one plan for the library and the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Limits:
    """What one run of the model may hold.

    max_batch_tokens: padded tokens (rows x longest row); a single longer text still runs, alone.
    max_batch_rows: texts.
    """

    max_batch_tokens: int = 4096
    max_batch_rows: int = 64

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def plan(lengths: NDArray[np.integer], limits: Limits) -> Iterator[NDArray[np.intp]]:
    """Batches of row numbers, longest texts first, so that the largest batch is met at once.

    lengths: [N] tokens of each text. Every row is in exactly one batch; rows of a batch differ as
    little in length as sorting allows, and rows x longest stays within the limits.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        rows = min(max(limits.max_batch_tokens // longest, 1), limits.max_batch_rows)
        yield order[start : start + rows]
        start += rows
