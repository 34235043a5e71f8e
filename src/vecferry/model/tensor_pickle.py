"""What a pickle of `torch.save` says about its tensors, without PyTorch and without running the pickle.

`pickle_reader.py` follows its instructions; what may be asked for stands here. Keys are strings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vecferry.errors import UnsafePickle
from vecferry.pickle_reader import PickleReader

STORAGE_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


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


class _Reader(PickleReader):
    """Reads a dict of tensors."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._path = path

    def further_steps(self) -> dict[str, Callable[[], None]]:
        return {"BINPERSID": lambda: self.push(self._storage(*self.popped(1)))}

    def known(self, name: str) -> _Global:
        if name in GLOBALS:
            return GLOBALS[name]
        raise self.refused(f"{name:.80}")

    def called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or function.call is None or not isinstance(arguments, tuple):
            raise self.refused(f"a call of a {type(function).__name__}")
        return function.call(*arguments)

    def build(self, state: Any) -> None:  # noqa: ARG002  # it does not count
        if not isinstance(target := self.top(), _StateDict):
            raise TypeError(f"it sets attributes on a {type(target).__name__}")

    def key(self, value: Any) -> str:
        if type(value) is not str:
            raise self.refused(f"a {type(value).__name__} as a key")
        return value

    def refused(self, asks_for: str) -> UnsafePickle:
        return UnsafePickle(self._path, asks_for)

    def _storage(self, pid: Any) -> Storage:
        match pid:
            case ("storage", _Global(name=name), str(key), _, int()) if name.removeprefix("torch.") in STORAGE_DTYPES:
                return Storage(np.dtype(STORAGE_DTYPES[name.removeprefix("torch.")]), key)
        raise self.refused("a persistent object that is not a storage")


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
