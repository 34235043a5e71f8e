"""Lengths to batches: pure functions on integers, one plan for the library and the server.

The plan is the cheapest one under a small model of cost, in tokens: a run costs `RUN_TOKENS` whatever it
holds, and rows x longest for what it does, a little more if there is padding in it. So texts of equal length share a
batch, and a few tokens of padding are taken where a batch would be too small to be worth a run of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vecferry.options import Checked, Count

MB = 1_000_000
RUN_TOKENS = 8
"""What a run costs by itself, as a number of tokens. Measured on BGE-M3's shape, 2 cores with AVX-512: 9."""
PADDED_COST = 1.02
"""What a token costs in a batch with padding, against one without: attention has a mask. Measured: 0.93 to 1.08."""


class BytesOf(Protocol):
    """A function that predicts how much memory a run takes."""

    def __call__(self, rows: int, tokens: int, *, padded: bool) -> int:
        """Return bytes. tokens: of the longest row. padded: whether shorter ones are among them."""


@dataclass(frozen=True)
class Limits(Checked):
    """What one run of the model may hold.

    max_batch_tokens: padded tokens (rows x longest row); a single longer text still runs, alone.
    max_batch_rows: texts.
    memory_budget_mb: millions of bytes for what a run computes, as predicted by `memory.predicted_bytes`; the
    weights are not among them. A single text over it is refused.
    """

    max_batch_tokens: Count = 1024
    max_batch_rows: Count = 64
    memory_budget_mb: Count = 2048


def plan(lengths: NDArray[np.integer], limits: Limits, bytes_of: BytesOf | None = None) -> list[NDArray[np.intp]]:
    """Split rows into batches, longest texts first, so that the largest batch is met at once.

    lengths: [N] tokens of each text. bytes_of: must not fall as rows are added; None where memory is no matter.
    Every row is in exactly one batch, those of equal length in their order. Batches of several rows stay within the
    limits; a row that is over them is alone. Of all such cuts of the sorted rows the cheapest is taken.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes = _cheapest_sizes(np.maximum(lengths[order], 1), limits, bytes_of)
    return np.split(order, np.cumsum(sizes)[:-1]) if sizes else []


def plan_packed(lengths: NDArray[np.integer], limits: Limits) -> list[NDArray[np.intp]]:
    """Split rows into batches that are not padded: as few as the limits allow, longest texts first.

    `max_batch_tokens` holds for the sum of the tokens; a row over it is alone. Every row is in exactly one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(np.maximum(lengths[order], 1))
    cuts = list[int]()
    start, done = 0, 0
    while start < len(order):
        fitting = int(np.searchsorted(ends, done + limits.max_batch_tokens, side="right"))
        start = min(max(fitting, start + 1), start + limits.max_batch_rows)
        done = int(ends[start - 1])
        cuts.append(start)
    return np.split(order, cuts[:-1]) if cuts else []


def _cheapest_sizes(lengths: NDArray[np.integer], limits: Limits, bytes_of: BytesOf | None) -> list[int]:
    """Return the sizes of the cheapest batches. lengths: [N], descending; decided from the end, row by row."""
    count = len(lengths)
    if count == 1:  # a query, for which a plan would take longer than anything else but the run
        return [1]
    equal_until = np.searchsorted(-lengths, -lengths, side="right")  # [N]
    cost, size_at = np.zeros(count + 1), np.ones(count, np.int64)

    @cache
    def largest(tokens: int, *, padded: bool) -> int:
        rows = min(max(limits.max_batch_tokens // tokens, 1), limits.max_batch_rows, count)
        if bytes_of is None:
            return rows
        fitting = bisect_right(
            range(1, rows + 1), limits.memory_budget_mb * MB, key=lambda n: bytes_of(n, tokens, padded=padded)
        )
        return max(fitting, 1)

    for row in range(count - 1, -1, -1):
        tokens, equal = int(lengths[row]), int(equal_until[row]) - row
        unpadded = min(equal, largest(tokens, padded=False))
        last = min(count - row, largest(tokens, padded=True))
        sizes = np.arange(max(unpadded, last), 0, -1)  # larger first: of equal costs the first is taken
        sizes = sizes[(sizes <= unpadded) | (sizes > equal)]
        ways = RUN_TOKENS + sizes * tokens * np.where(sizes > equal, PADDED_COST, 1.0) + cost[row + sizes]
        best = int(ways.argmin())
        cost[row], size_at[row] = ways[best], sizes[best]
    return _followed(size_at)


def _followed(size_at: NDArray[np.int64]) -> list[int]:
    sizes: list[int] = []
    row = 0
    while row < len(size_at):
        sizes.append(int(size_at[row]))
        row += sizes[-1]
    return sizes
