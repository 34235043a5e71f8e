"""The engine in this process.

    store ── reader ──► rows ── encoder ──► staging
                              └──────────► numbers ──► whoever applies them

Both queues are short, so that memory is bounded, and one who stops taking numbers stops the whole.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vecferry.embeddings import DENSE, Outputs
from vecferry.encoder import TextEncoder
from vecferry.migrate.embed import Embedded
from vecferry.migrate.engines import range_name
from vecferry.migrate.engines.task import embed_unknown
from vecferry.migrate.staging import Staging
from vecferry.stores import Row, Store
from vecferry.stores.ledger import RangeRecord

T = TypeVar("T")


@dataclass(frozen=True)
class LocalEngine:
    """In this process: one thread reads ahead, one encodes and stages.

    rows_per_range: rows read of a range; what was inserted into it since is the caller's to find.
    ahead: ranges that wait between two threads at most.
    """

    store: Store
    encoder: TextEncoder
    staging: Staging
    uid: str
    rows_per_range: int
    outputs: Outputs = DENSE
    ahead: int = 2

    def __post_init__(self) -> None:
        assert self.staging.outputs == self.outputs, "the staging is for other heads"

    def run(self, ranges: Sequence[RangeRecord]) -> Generator[int, None, None]:
        """In the order given. What a thread raises is raised here, the first of it, after the numbers before it.

        Closing it waits for the range that is being encoded; no thread is left then.
        """
        rows: _Queue[tuple[int, list[Row] | None]] = _Queue(self.ahead)
        numbers: _Queue[int] = _Queue(self.ahead)
        failures: list[BaseException] = []
        threads = (
            _thread("reader", lambda: self._read(ranges, rows), rows, failures),
            _thread("encoder", lambda: self._encode(rows, numbers), numbers, failures),
        )
        try:
            for thread in threads:
                thread.start()
            yield from numbers
        finally:
            rows.abandon()
            numbers.abandon()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]

    def _read(self, ranges: Sequence[RangeRecord], rows: _Queue[tuple[int, list[Row] | None]]) -> None:
        """Each range's rows; None where all of them are staged with the text that they have now."""
        store = self.store.another()
        try:
            for each in ranges:
                found = store.pending(each.keys, self.rows_per_range)
                rows.put((each.number, None if self.staging.holds(range_name(self.uid, each.number), found) else found))
        finally:
            store.close()

    def _encode(self, rows: _Queue[tuple[int, list[Row] | None]], numbers: _Queue[int]) -> None:
        for number, found in rows:
            if found is not None:
                self.staging.keep(range_name(self.uid, number), self._embed(found))
            numbers.put(number)

    def _embed(self, rows: Sequence[Row]) -> Embedded:
        """As `embed`, but a text that is staged is not encoded again."""
        staged = self.staging.vectors([row.digest for row in rows])
        return embed_unknown(self.encoder, rows, self.outputs, staged)


class _Abandoned(Exception):
    """Nobody takes from the queue any more."""


class _Queue(Generic[T]):
    """A bounded queue between two threads that either of them can end. Iterating takes what is in it, to its end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._abandoned = False

    def put(self, item: T) -> None:
        """Waits for room. Raises _Abandoned."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or len(self._items) < self._size)
            if self._abandoned:
                raise _Abandoned
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._abandoned or self._ended or self._items)
                if self._abandoned or not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def end(self) -> None:
        """The writer is done."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """The reader is done; what is in the queue is lost."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()


def _thread(name: str, work: Callable[[], None], out: _Queue[T], failures: list[BaseException]) -> threading.Thread:
    """Does the work and then ends its queue; an error goes to `failures`.

    A daemon, so that a process whose main thread died does not wait for one who takes no more.
    """

    def run() -> None:
        try:
            work()
        except _Abandoned:
            pass
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread that takes the numbers
            failures.append(exc)
        finally:
            out.end()

    return threading.Thread(target=run, name=f"vecferry-{name}", daemon=True)
