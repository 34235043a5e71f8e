"""Pickles of plain values and LangChain's documents, read without being run.

A pickle is a program. This reader follows the few instructions of dicts, lists, sets, tuples and constants; an object
is a `StandIn` with the state that was set on it, and only LangChain's two classes may be asked for. Whatever else
stands there is refused by name. Each instruction costs constant time: nothing nested is ever hashed, nor a number made
to share a hash.
"""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

from vecferry.errors import StoreFailed, StoreSchemaError

PROTOCOL = 3  # has a form for bytes, and memory by number
LANGCHAIN = {"langchain", "langchain_classic", "langchain_community", "langchain_core"}
CLASSES = {"Document", "InMemoryDocstore"}
SETS = {"builtins.set", "__builtin__.set"}
CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
FIXED: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
IGNORED = {"PROTO", "FRAME", "STOP"}
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


class _Reader:
    """The machine of a pickle: a stack of values, marked heights of it, and a memory."""

    def __init__(self, file: Path, num_bytes: int) -> None:
        self._file = file
        self._num_bytes = num_bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}
        push = self._stack.append
        self._steps = {
            "MARK": lambda: self._marks.append(len(self._stack)),
            "EMPTY_DICT": lambda: push({}),
            "EMPTY_LIST": lambda: push([]),
            "EMPTY_SET": lambda: push(set()),
            "TUPLE1": lambda: push(tuple(self._popped(1))),
            "TUPLE2": lambda: push(tuple(self._popped(2))),
            "TUPLE3": lambda: push(tuple(self._popped(3))),
            "TUPLE": lambda: push(tuple(self._marked())),
            "LIST": lambda: push(self._marked()),
            "DICT": lambda: push(self._filled({}, self._marked())),
            "APPEND": lambda: self._extend(self._popped(1)),
            "APPENDS": lambda: self._extend(self._marked()),
            "SETITEM": lambda: self._set(self._popped(2)),
            "SETITEMS": lambda: self._set(self._marked()),
            "ADDITEMS": lambda: self._add(self._marked()),
            "STACK_GLOBAL": lambda: push(self._known(".".join(self._popped(2)))),
            "NEWOBJ": lambda: push(self._made(*self._popped(2))),
            "REDUCE": lambda: push(self._called(*self._popped(2))),
            "BUILD": lambda: self._build(*self._popped(1)),
            "MEMOIZE": lambda: self._remember(len(self._memory)),
        }

    def read(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            self._follow(opcode.name, argument)
        (value,) = self._stack
        return value

    def _follow(self, name: str, argument: Any) -> None:
        if step := self._steps.get(name):
            step()
        elif name in CONSTANTS:
            self._stack.append(argument)
        elif name in FIXED:
            self._stack.append(FIXED[name])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memory[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif name == "GLOBAL":
            self._stack.append(self._known(argument.replace(" ", ".", 1)))
        elif name not in IGNORED:
            raise self._refused(f"the instruction {name}")

    # --- the stack --------------------------------------------------------------------------------

    def _popped(self, count: int) -> list[Any]:
        """Take the topmost values, none of them below the last mark."""
        at = len(self._stack) - count
        if at < (self._marks[-1] if self._marks else 0):
            raise ValueError("it takes values that are not there")
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def _marked(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        at = self._marks.pop()
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def _remember(self, index: int) -> None:
        if index > self._num_bytes:
            raise ValueError("it remembers a value at an index beyond its own length")
        self._memory[index] = self._stack[-1]

    # --- containers -------------------------------------------------------------------------------

    def _extend(self, values: list[Any]) -> None:
        if type(target := self._stack[-1]) is not list:
            raise TypeError(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def _set(self, pairs: list[Any]) -> None:
        if type(target := self._stack[-1]) is not dict:
            raise TypeError(f"it sets the items of a {type(target).__name__}")
        self._filled(target, pairs)

    def _filled(self, target: dict[Any, Any], pairs: list[Any]) -> dict[Any, Any]:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[self._hashable(key)] = value
        return target

    def _add(self, values: list[Any]) -> None:
        if type(target := self._stack[-1]) is not set:
            raise TypeError(f"it adds to a {type(target).__name__}")
        target.update(map(self._hashable, values))

    def _hashable(self, value: Any) -> Any:
        is_small = type(value) is int and abs(value) < LARGEST_KEY
        if is_small or value is None or type(value) in (str, bytes, bool, float):
            return value
        raise self._refused(f"a {type(value).__name__} as a key")

    # --- objects ----------------------------------------------------------------------------------

    def _known(self, name: str) -> type:
        if name in SETS:
            return set
        if name.split(".")[0] in LANGCHAIN and name.rpartition(".")[2] in CLASSES:
            return StandIn
        raise self._refused(f"{name:.200}")

    def _made(self, kind: Any, arguments: Any) -> StandIn:
        if kind is not StandIn or arguments != ():
            raise self._refused("an object that is no document")
        return StandIn()

    def _called(self, kind: Any, arguments: Any) -> set[Any]:
        """Return a set of a list, which is how a protocol before 4 has one."""
        if kind is not set or type(arguments) is not tuple or [type(a) for a in arguments] != [list]:
            raise self._refused("a call")
        return set(map(self._hashable, arguments[0]))

    def _build(self, state: Any) -> None:
        if not isinstance(target := self._stack[-1], StandIn):
            raise TypeError(f"it sets attributes on a {type(target).__name__}")
        target.state = state

    def _refused(self, asks_for: str) -> StoreSchemaError:
        what = f"{self._file} was not read: it asks for {asks_for}"
        return StoreSchemaError(what, "Only LangChain's documents with plain metadata are read.")
