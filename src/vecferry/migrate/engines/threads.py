"""Threads of an engine, and the queues between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody takes from the queue any more."""


class Queue(Generic[T]):
    """A bounded queue between two threads that either of them can end. Iterating takes what is in it, to its end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._abandoned = False

    def put(self, item: T) -> None:
        """Waits for room. Raises Abandoned."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or len(self._items) < self._size)
            if self._abandoned:
                raise Abandoned
            self._items.append(item)
            self._changed.notify_all()

    def heed(self) -> None:
        """Raises Abandoned."""
        if self._abandoned:
            raise Abandoned

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


def thread_for(name: str, work: Callable[[], None], out: Queue[T], failures: list[BaseException]) -> threading.Thread:
    """Does the work and then ends its queue; an error goes to `failures`.

    A daemon, so that a process whose main thread died does not wait for one who takes no more.
    """

    def run() -> None:
        try:
            work()
        except Abandoned:
            pass
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread that takes the numbers
            failures.append(exc)
        finally:
            out.end()

    return threading.Thread(target=run, name=f"vecferry-{name}", daemon=True)
