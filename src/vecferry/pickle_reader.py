"""The machine of a pickle, which follows its instructions instead of running them.

A pickle is a program. What is followed here are the few instructions of containers and constants; whatever else stands
there is refused by name. Each instruction costs constant time and makes at most one object: nothing nested is ever
hashed, and no value is written out.
"""

from __future__ import annotations

import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

CONSTANTS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
})  # fmt: skip
FIXED: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
IGNORED = {"PROTO", "FRAME", "STOP"}


class PickleReader(ABC):
    """A stack of values, marked heights of it, and a memory. A subclass says which objects may be asked for.

    num_bytes: of the pickle. Reading raises what `refused` returns, and ValueError, LookupError or TypeError for what
    is no pickle.
    """

    constants: ClassVar[frozenset[str]] = CONSTANTS
    """Instructions that push their argument."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}
        self._steps: dict[str, Callable[[], None]] = {
            "MARK": lambda: self._marks.append(len(self._stack)),
            "EMPTY_DICT": lambda: self.push({}),
            "EMPTY_LIST": lambda: self.push([]),
            "TUPLE1": lambda: self.push(tuple(self.popped(1))),
            "TUPLE2": lambda: self.push(tuple(self.popped(2))),
            "TUPLE3": lambda: self.push(tuple(self.popped(3))),
            "TUPLE": lambda: self.push(tuple(self.marked())),
            "LIST": lambda: self.push(self.marked()),
            "DICT": lambda: self.push(self._filled({}, self.marked())),
            "APPEND": lambda: self._extend(self.popped(1)),
            "APPENDS": lambda: self._extend(self.marked()),
            "SETITEM": lambda: self._set(self.popped(2)),
            "SETITEMS": lambda: self._set(self.marked()),
            "STACK_GLOBAL": lambda: self.push(self._known(*self.popped(2))),
            "REDUCE": lambda: self.push(self.called(*self.popped(2))),
            "BUILD": lambda: self.build(*self.popped(1)),
            "MEMOIZE": lambda: self._remember(len(self._memory)),
        } | self.further_steps()

    def read(self, pickled: bytes) -> Any:
        """Return the value at the top when the pickle ends."""
        for opcode, argument, _ in pickletools.genops(pickled):
            self._follow(opcode.name, argument)
        return self.top()

    # --- what a subclass says ---------------------------------------------------------------------

    def further_steps(self) -> dict[str, Callable[[], None]]:
        """Return what is done at instructions that are followed beside the common ones."""
        return {}

    @abstractmethod
    def known(self, name: str) -> Any:
        """Return what stands for a name, module.name. Raises what `refused` returns."""

    @abstractmethod
    def called(self, function: Any, arguments: Any) -> Any:
        """Return what a call of something known makes. Raises what `refused` returns."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Set the state of the object at the top. Raises TypeError for one that has none."""

    @abstractmethod
    def key(self, value: Any) -> Any:
        """Return a value that may be a key of a dict: one whose hash costs nothing. Raises what `refused` returns."""

    @abstractmethod
    def refused(self, asks_for: str) -> Exception:
        """Return the error of a pickle that asks for something else."""

    # --- the stack --------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def top(self) -> Any:
        """Return the topmost value, which stays there."""
        (value,) = self._stack[self._reaching(1) :]
        return value

    def popped(self, count: int) -> list[Any]:
        """Take the topmost values, none of them below the last mark."""
        return self._taken(self._reaching(count))

    def marked(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        return self._taken(self._marks.pop())

    def _reaching(self, count: int) -> int:
        """Return where so many values begin. Raises ValueError if they are not all above the last mark."""
        at = len(self._stack) - count
        if at < (self._marks[-1] if self._marks else 0):
            raise ValueError("it takes values that are not there")
        return at

    def _taken(self, at: int) -> list[Any]:
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def _remember(self, index: int) -> None:
        if index > self._num_bytes:  # only numbers that large can be made to share a hash
            raise ValueError("it remembers a value at an index beyond its own length")
        self._memory[index] = self.top()

    # --- the instructions -------------------------------------------------------------------------

    def _follow(self, name: str, argument: Any) -> None:
        if step := self._steps.get(name):
            step()
        elif name in self.constants:
            self.push(argument)
        elif name in FIXED:
            self.push(FIXED[name])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.push(self._memory[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif name == "GLOBAL":
            self.push(self._known(*argument.split(" ", 1)))
        elif name == "INST":
            raise self.refused(f"{argument.replace(' ', '.'):.80}")
        elif name not in IGNORED:
            raise self.refused(f"the instruction {name}")

    def _known(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str:  # a nested list could be as long as two to its depth
            raise self.refused(f"an object by a {type(module).__name__} and a {type(name).__name__}")
        return self.known(f"{module}.{name}")

    def _extend(self, values: list[Any]) -> None:
        if type(target := self.top()) is not list:
            raise TypeError(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def _set(self, pairs: list[Any]) -> None:
        if not isinstance(target := self.top(), dict):
            raise TypeError(f"it sets the items of a {type(target).__name__}")
        self._filled(target, pairs)

    def _filled(self, target: dict[Any, Any], pairs: list[Any]) -> dict[Any, Any]:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[self.key(key)] = value
        return target
