"""What comes one after the other, in portions that are not too large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def portions(sizes: Iterable[int], largest: int, most: int | None = None) -> Iterator[slice]:
    """Yield slices of what has these sizes, in its order: of up to `most` each, and `largest` together.

    What is larger by itself is alone.
    """
    start = end = total = 0
    for size in sizes:
        if end > start and (end - start == most or total + size > largest):
            yield slice(start, end)
            start, total = end, 0
        end, total = end + 1, total + size
    if end > start:
        yield slice(start, end)
