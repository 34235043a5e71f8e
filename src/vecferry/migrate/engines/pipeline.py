"""Threads of an engine, and the queues between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """Nobody takes from the queue any more."""


def tell_nobody(number: int) -> None:
    """Do nothing; for a `Queue` without `tell`."""


class Queue(Generic[T]):
    """A bounded queue between two threads that either of them can end. Iterating takes what is in it, to its end.

    tell: called by the thread that iterates, while it waits, with the number that was noted last.
    """

    def __init__(self, size: int, tell: Callable[[int], None] = tell_nobody) -> None:
        self._size, self._tell = size, tell
        self._noted: int | None = None
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._abandoned = False

    def put(self, item: T) -> None:
        """Wait for room. Raises Cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or len(self._items) < self._size)
            if self._abandoned:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def note(self, number: int) -> None:
        """Let `tell` be called with it, if the reader waits for the next item."""
        with self._changed:
            self._noted = number
            self._changed.notify_all()

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled once the reader is done."""
        if self._abandoned:
            raise Cancelled

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news)
                noted, self._noted = self._noted, None
                if self._abandoned or not (self._items or noted is not None):
                    return
                items = [self._items.popleft()] if self._items else []
                self._changed.notify_all()
            if not items and noted is not None:
                self._tell(noted)
            yield from items

    def _has_news(self) -> bool:
        return bool(self._abandoned or self._ended or self._items or self._noted is not None)

    def end(self) -> None:
        """Say that the writer is done."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Say that the reader is done; what is in the queue is lost."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Stage(Generic[T]):
    """Of an engine: work that a thread of its own does, and the queue that this fills."""

    name: str
    work: Callable[[], None]
    out: Queue[T]


def run_pipeline(last: Stage[T], *before: Stage[Any]) -> Generator[T, None, None]:
    """Yield what the last part puts out, to its end; then raise the first failure of all parts, if there was one.

    Closing it waits for what the parts have in hand; no thread is left then.
    """
    parts: tuple[Stage[Any], ...] = (*before, last)
    failures: list[BaseException] = []
    threads = [_thread(part, failures) for part in parts]
    try:
        for thread in threads:
            thread.start()
        yield from last.out
    finally:
        for part in parts:
            part.out.abandon()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _thread(part: Stage[Any], failures: list[BaseException]) -> threading.Thread:
    """Return a daemon, so that a process whose main thread died does not wait for one who takes no more."""

    def run() -> None:
        try:
            part.work()
        except Cancelled:
            pass
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread that takes
            failures.append(exc)
        finally:
            part.out.end()

    return threading.Thread(target=run, name=f"vecferry-{part.name}", daemon=True)
