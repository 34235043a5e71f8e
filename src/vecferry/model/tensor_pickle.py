"""What a pickle of `torch.save` says about its tensors, without PyTorch and without running the pickle.

A pickle is a program. This reader follows the few instructions of a dict of tensors; whatever else stands there is
refused by name. Each instruction costs constant time and makes at most one object: keys are strings, so that nothing
nested is ever hashed, and no value is written out in an error.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vecferry.errors import UnsafePickle

STORAGE_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip

CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
FIXED: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
IGNORED = {"PROTO", "FRAME"}


@dataclass(frozen=True)
class Storage:
    """A run of numbers. key: of its bytes in the file."""

    dtype: np.dtype[Any]
    key: str


@dataclass(frozen=True)
class StridedTensor:
    """A view of a storage as the pickle has it; whether it lies inside is not known here. Counts are of numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name that a pickle may mention. call: None for one that cannot be called."""

    name: str
    call: Callable[..., Any] | None = None


class _StateDict(dict[str, Any]):
    """An OrderedDict: it alone has attributes set, the version numbers of `Module.state_dict()`, which do not count."""


def read_tensors(pickled: bytes, path: Path) -> dict[str, StridedTensor]:
    """Return the tensors of a pickled dict by name; what else it holds is left out.

    Raises UnsafePickle for what asks for more than tensors and containers, and ValueError, LookupError or TypeError for
    what is no pickle.
    """
    saved = _Reader(path, len(pickled)).read(pickled)
    if not isinstance(saved, dict):
        raise UnsafePickle(path, f"a {type(saved).__name__} at the top")
    return {name: tensor for name, tensor in saved.items() if isinstance(tensor, StridedTensor)}


class _Reader:
    """The machine of a pickle: a stack of values, marked heights of it, and a memory."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self._path = path
        self._num_bytes = num_bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}
        self._steps = {
            "MARK": lambda: self._marks.append(len(self._stack)),
            "EMPTY_DICT": lambda: self._stack.append({}),
            "EMPTY_LIST": lambda: self._stack.append([]),
            "TUPLE1": lambda: self._push(tuple(self._popped(1))),
            "TUPLE2": lambda: self._push(tuple(self._popped(2))),
            "TUPLE3": lambda: self._push(tuple(self._popped(3))),
            "TUPLE": lambda: self._push(tuple(self._marked())),
            "LIST": lambda: self._push(self._marked()),
            "DICT": lambda: self._push(self._filled({}, self._marked())),
            "APPEND": lambda: self._extend(self._popped(1)),
            "APPENDS": lambda: self._extend(self._marked()),
            "SETITEM": lambda: self._set(self._popped(2)),
            "SETITEMS": lambda: self._set(self._marked()),
            "STACK_GLOBAL": lambda: self._push(self._global(*self._popped(2))),
            "REDUCE": lambda: self._push(self._called(*self._popped(2))),
            "BUILD": lambda: self._build(*self._popped(1)),
            "BINPERSID": lambda: self._push(self._storage(*self._popped(1))),
            "MEMOIZE": lambda: self._remember(len(self._memory)),
        }

    def read(self, pickled: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickled):
            name = opcode.name
            if name == "STOP":
                break
            self._follow(name, argument)
        return self._top()

    def _follow(self, name: str, argument: Any) -> None:
        if step := self._steps.get(name):
            step()
        elif name in CONSTANTS:
            self._push(argument)
        elif name in FIXED:
            self._push(FIXED[name])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._push(self._memory[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif name == "GLOBAL":
            self._push(self._global(*argument.split(" ", 1)))
        elif name == "INST":
            raise UnsafePickle(self._path, f"{argument.replace(' ', '.'):.80}")
        elif name not in IGNORED:
            raise UnsafePickle(self._path, f"the instruction {name}")

    # --- the stack --------------------------------------------------------------------------------

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _top(self) -> Any:
        return self._popped(1, keep=True)[0]

    def _popped(self, count: int, *, keep: bool = False) -> list[Any]:
        """Take the topmost values, none of them below the last mark."""
        at = len(self._stack) - count
        if at < (self._marks[-1] if self._marks else 0):
            raise ValueError("it takes values that are not there")
        values = self._stack[at:]
        if not keep:
            del self._stack[at:]
        return values

    def _remember(self, index: int) -> None:
        if index > self._num_bytes:  # only numbers that large can be made to share a hash
            raise ValueError("it remembers a value at an index beyond its own length")
        self._memory[index] = self._top()

    def _marked(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        at = self._marks.pop()
        values = self._stack[at:]
        del self._stack[at:]
        return values

    # --- containers -------------------------------------------------------------------------------

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise TypeError(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def _set(self, pairs: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict):
            raise TypeError(f"it sets the items of a {type(target).__name__}")
        self._filled(target, pairs)

    def _filled(self, target: dict[str, Any], pairs: list[Any]) -> dict[str, Any]:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:
                raise UnsafePickle(self._path, f"a {type(key).__name__} as a key")
            target[key] = value
        return target

    # --- what a dict of tensors mentions ----------------------------------------------------------

    def _global(self, module: str, name: str) -> _Global:
        full = f"{module}.{name}"
        if full in GLOBALS:
            return GLOBALS[full]
        raise UnsafePickle(self._path, f"{full:.80}")

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or function.call is None or not isinstance(arguments, tuple):
            raise UnsafePickle(self._path, f"a call of a {type(function).__name__}")
        return function.call(*arguments)

    def _build(self, _: Any) -> None:
        if not isinstance(target := self._top(), _StateDict):
            raise TypeError(f"it sets attributes on a {type(target).__name__}")

    def _storage(self, pid: Any) -> Storage:
        match pid:
            case ("storage", _Global(name=name), str(key), _, int()) if name.removeprefix("torch.") in STORAGE_DTYPES:
                return Storage(np.dtype(STORAGE_DTYPES[name.removeprefix("torch.")]), key)
        raise UnsafePickle(self._path, "a persistent object that is not a storage")


def _state_dict() -> _StateDict:
    """Stand for collections.OrderedDict."""
    return _StateDict()


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StridedTensor:
    """Stand for torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, Storage):
        raise TypeError(f"a tensor of a {type(storage).__name__}, not of a storage")
    return StridedTensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> StridedTensor:
    """Stand for torch._utils._rebuild_parameter."""
    if not isinstance(tensor, StridedTensor):
        raise TypeError(f"a parameter of a {type(tensor).__name__}, not of a tensor")
    return tensor


GLOBALS = {
    known.name: known
    for known in (
        _Global("collections.OrderedDict", _state_dict),
        _Global("torch._utils._rebuild_tensor_v2", _rebuilt),
        _Global("torch._utils._rebuild_parameter", _parameter),
        *(_Global(f"torch.{name}") for name in STORAGE_DTYPES),
    )
}
