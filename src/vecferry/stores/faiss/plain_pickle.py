"""Pickles of plain values and LangChain's documents, read without being run.

`pickle_reader.py` follows its instructions; what may be asked for stands here: sets, and LangChain's two classes, whose
objects are a `StandIn` with the state that was set on it. No number is a key that was made to share a hash.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.pickle_reader import CONSTANTS, PickleReader

PROTOCOL = 3  # has a form for bytes, and memory by number
LANGCHAIN = {"langchain", "langchain_classic", "langchain_community", "langchain_core"}
CLASSES = {"Document", "InMemoryDocstore"}
SETS = {"builtins.set", "__builtin__.set"}
LARGEST_KEY = 2**60
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError)


class StandIn:
    """An object that a pickle makes, as its state."""

    state: Any = None


def unpickled(data: bytes, file: Path) -> Any:
    """Return what a pickle holds. Raises StoreSchemaError for what is not plain, StoreFailed for what is no pickle."""
    try:
        return _Reader(file, len(data)).read(data)
    except DAMAGED as exc:
        raise StoreFailed("faiss", f"{file} is no pickle that can be read: {exc!s:.200}") from exc


def pickled(value: Any) -> bytes:
    """Return a pickle of plain values, which `unpickled` reads."""
    return pickle.dumps(value, PROTOCOL)


class _Reader(PickleReader):
    """Reads plain values, sets and documents."""

    constants = CONSTANTS | {"LONG4", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}

    def __init__(self, file: Path, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._file = file

    def read(self, pickled: bytes) -> Any:
        """Return the only value that is there when the pickle ends."""
        super().read(pickled)
        (value,) = self._stack
        return value

    def further_steps(self) -> dict[str, Callable[[], None]]:
        return {
            "EMPTY_SET": lambda: self.push(set()),
            "ADDITEMS": lambda: self._add(self.marked()),
            "NEWOBJ": lambda: self.push(self._made(*self.popped(2))),
        }

    def known(self, name: str) -> type:
        if name in SETS:
            return set
        if name.split(".")[0] in LANGCHAIN and name.rpartition(".")[2] in CLASSES:
            return StandIn
        raise self.refused(f"{name:.200}")

    def called(self, function: Any, arguments: Any) -> set[Any]:
        """Return a set of a list, which is how a protocol before 4 has one."""
        if function is not set or type(arguments) is not tuple or [type(a) for a in arguments] != [list]:
            raise self.refused("a call")
        return set(map(self.key, arguments[0]))

    def build(self, state: Any) -> None:
        if not isinstance(target := self.top(), StandIn):
            raise TypeError(f"it sets attributes on a {type(target).__name__}")
        target.state = state

    def key(self, value: Any) -> Any:
        is_small = type(value) is int and abs(value) < LARGEST_KEY
        if is_small or value is None or type(value) in (str, bytes, bool, float):
            return value
        raise self.refused(f"a {type(value).__name__} as a key")

    def refused(self, asks_for: str) -> StoreSchemaError:
        what = f"{self._file} was not read: it asks for {asks_for}"
        return StoreSchemaError(what, "Only LangChain's documents with plain metadata are read.")

    def _add(self, values: list[Any]) -> None:
        if type(target := self.top()) is not set:
            raise TypeError(f"it adds to a {type(target).__name__}")
        target.update(map(self.key, values))

    def _made(self, kind: Any, arguments: Any) -> StandIn:
        if kind is not StandIn or arguments != ():
            raise self.refused("an object that is no document")
        return StandIn()
