"""Tensors of a checkpoint as a lazy mapping, from safetensors or from PyTorch's zip, without PyTorch.

A PyTorch file is a zip: a pickle that describes tensors, and one stored entry per storage. The
pickle runs in a reader that knows tensors and containers only; whatever else it asks for is refused
by name. Tensors are views of the mapped file: nothing is read before it is used, and PyTorch can wrap
them without a copy. (That is why safetensors' own library is not used here: it copies each tensor, and
its NumPy side has no bfloat16 view.)
"""

from __future__ import annotations

import io
import json
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vecferry.errors import CheckpointDamaged, UnsafePickle

Array = NDArray[Any]

UNREADABLE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, EOFError, OSError,
    struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
"""What json, zipfile, pickle and numpy raise on bytes that are not what they should be."""


class _Inert:
    """What the unpickler holds: a pickle cannot set attributes on it, since BUILD calls `__setstate__`."""

    def __setstate__(self, state: object) -> None:
        raise ValueError(f"it sets attributes on a {type(self).__name__}")


@dataclass(frozen=True)
class LazyTensor(_Inert):
    """A tensor that is read when asked. `read` returns an array of `shape` and of the stored dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]

    def as_fp32(self) -> NDArray[np.float32]:
        return np.asarray(self.read(), dtype=np.float32)


class Weights(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint by name. A missing name raises CheckpointDamaged, since the caller needs it."""

    def __init__(self, path: Path, tensors: Mapping[str, LazyTensor]) -> None:
        self.path = path
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointDamaged(self.path, f"it has no tensor {name!r}") from None

    def release(self) -> None:
        """Give the pages that were read back to the system; they are read again when they are needed."""
        mappings = {id(mapping): mapping for tensor in self.values() if (mapping := _mapping(tensor)) is not None}
        for mapping in mappings.values():
            mapping.madvise(mmap.MADV_DONTNEED)

    def damaged(self, reason: str) -> CheckpointDamaged:
        return CheckpointDamaged(self.path, reason)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_weights(folder: Path) -> Weights:
    """Open the encoder's weights: model.safetensors or pytorch_model.bin, each as one file or sharded.

    Raises CheckpointDamaged, UnsafePickle.
    """
    path = _weights_at(folder)
    if path is None:
        raise CheckpointDamaged(folder, "it has neither model.safetensors nor pytorch_model.bin")
    reader = _safetensors if path.name.startswith("model.safetensors") else _torch_zip
    return Weights(path, _without_prefix(_shards(path, reader) if _is_index(path) else reader(path)))


def open_heads(folder: Path) -> Weights | None:
    """Open BGE-M3's heads as {sparse,colbert}_linear.{weight,bias}; None where the checkpoint has neither file.

    Raises CheckpointDamaged (one file without the other included), UnsafePickle.
    """
    files = {name: folder / f"{name}.pt" for name in ("sparse_linear", "colbert_linear")}
    present = [path for path in files.values() if path.exists()]
    if not present:
        return None
    if len(present) == 1:
        raise CheckpointDamaged(folder, f"it has {present[0].name} alone, and BGE-M3 has two heads")
    heads = {f"{name}.{part}": t for name, path in files.items() for part, t in _torch_zip(path).items()}
    return Weights(folder, heads)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that `open_weights` would read, heads included, in a fixed order."""
    path = _weights_at(folder)
    files = [] if path is None else [path, *(_shard_paths(path) if _is_index(path) else [])]
    return files + [path for name in ("sparse_linear.pt", "colbert_linear.pt") if (path := folder / name).exists()]


def _weights_at(folder: Path) -> Path | None:
    """Return the file with the weights, or the index of its shards; safetensors before PyTorch's own."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return next((folder / name for name in names if (folder / name).exists()), None)


def _is_index(path: Path) -> bool:
    return path.suffix == ".json"


def _shard_paths(index: Path) -> list[Path]:
    return sorted({_inside(index, name) for name in _weight_map(index).values()})


def _without_prefix(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Remove the "bert." or "roberta." under which a model saved inside a task model has its tensors."""
    end = "embeddings.word_embeddings.weight"
    prefixes = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    prefix = prefixes[0] if len(prefixes) == 1 else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _shards(index: Path, reader: Callable[[Path], dict[str, LazyTensor]]) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for shard in _shard_paths(index):
        if not shard.exists():
            raise CheckpointDamaged(shard, f"{index.name} names it, but it is missing")
        tensors.update(reader(shard))
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        named = json.loads(index.read_bytes())["weight_map"]
        return {str(key): str(value) for key, value in named.items()}
    except UNREADABLE as exc:
        raise CheckpointDamaged(index, f"it is not a shard index ({exc!r})") from exc


def _inside(index: Path, name: str) -> Path:
    """Return a shard's path, which must stay in the checkpoint's folder."""
    if Path(name).name != name or name in ("", ".."):
        raise CheckpointDamaged(index, f"it names a file outside the checkpoint: {name!r}")
    return index.parent / name


# --- safetensors ----------------------------------------------------------------------------------

SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library


def _safetensors(path: Path) -> dict[str, LazyTensor]:
    """Map the file. The format is eight bytes of header length, a JSON header, the data without holes."""
    data = _map(path)
    try:
        (header_bytes,) = struct.unpack("<Q", data[:8].tobytes())
        if header_bytes > min(len(data) - 8, MAX_HEADER_BYTES):
            raise ValueError(f"a header of {header_bytes} bytes in a file of {len(data)}")
        header = json.loads(data[8 : 8 + header_bytes].tobytes())
        header.pop("__metadata__", None)
        body = data[8 + header_bytes :]
        _check_spans(sorted(tuple(entry["data_offsets"]) for entry in header.values()), len(body))
        return {name: _safetensors_entry(body, entry) for name, entry in header.items()}
    except UNREADABLE as exc:
        raise CheckpointDamaged(path, f"it is not a whole safetensors file ({exc})") from exc


def _check_spans(spans: list[tuple[int, int]], body_bytes: int) -> None:
    """Check that each tensor's bytes begin where those of the one before end, and the last end with the file."""
    at = 0
    for start, end in spans:
        if start != at or end < start:
            raise ValueError(f"a tensor at {start}..{end}, where {at} was expected")
        at = end
    if at != body_bytes:
        raise ValueError(f"tensors of {at} bytes in {body_bytes}")


def _safetensors_entry(body: NDArray[np.uint8], entry: dict[str, Any]) -> LazyTensor:
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise ValueError(f"numbers of type {entry['dtype']!r} are not supported")
    dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - start} bytes are not {shape} of {dtype}")
    array = body[start:end].view(dtype).reshape(shape)
    return LazyTensor(array.shape, dtype, lambda: array)


# --- PyTorch's zip --------------------------------------------------------------------------------

STORAGE_DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class _StorageType(_Inert):
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Storage(_Inert):
    dtype: np.dtype[Any]
    data: NDArray[np.uint8]


class _StateDict(OrderedDict[Any, Any]):
    """A state dict without the version numbers that `Module.state_dict()` sets as an attribute."""

    def __setstate__(self, state: object) -> None:
        pass


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that knows what `torch.save` writes for a dict of tensors, and nothing else."""

    def __init__(self, pickled: bytes, path: Path, storages: Callable[[str], NDArray[np.uint8]]) -> None:
        _check_memo(pickled)
        super().__init__(io.BytesIO(pickled))
        self._path = path
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if module == "torch" and name in STORAGE_DTYPES:
            return _StorageType(np.dtype(STORAGE_DTYPES[name]))
        raise UnsafePickle(self._path, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype=dtype), str(key), _, int()):
                data = self._storages(key)
                return _Storage(dtype, data[: len(data) // dtype.itemsize * dtype.itemsize])
        raise UnsafePickle(self._path, f"the persistent object {pid!r:.80}")


def _check_memo(pickled: bytes) -> None:
    """Refuse an index into the unpickler's memory far beyond the pickle: it would allocate gigabytes."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name.endswith("PUT") and int(argument or 0) > len(pickled):
            raise ValueError(f"it puts an object at {argument} in a pickle of {len(pickled)} bytes")


class _RebuildTensor(_Inert):
    """torch._utils._rebuild_tensor_v2: a strided view of a storage, proven to lie inside it."""

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> LazyTensor:
        if not isinstance(storage, _Storage) or not _is_layout(offset, shape, strides):
            raise ValueError("a tensor is not described as one")
        flat = storage.data.view(storage.dtype)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        # Fewer numbers than the view has: an expanded tensor, which could be of any size.
        if math.prod(shape) > len(flat) or (0 not in shape and last >= len(flat)):
            raise ValueError(f"a tensor of shape {shape} reaches past its storage of {len(storage.data)} bytes")
        if 0 in shape:
            array = np.zeros(shape, storage.dtype)
        else:
            byte_strides = [s * storage.dtype.itemsize for s in strides]
            array = np.lib.stride_tricks.as_strided(flat[offset:], shape, byte_strides)
        return LazyTensor(shape, storage.dtype, lambda: array)


def _is_layout(offset: Any, shape: Any, strides: Any) -> bool:
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        return False
    return all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))


class _RebuildParameter(_Inert):
    """torch._utils._rebuild_parameter: the tensor that it wraps."""

    def __call__(self, tensor: Any, *_: Any) -> LazyTensor:
        if not isinstance(tensor, LazyTensor):
            raise TypeError("a parameter does not wrap a tensor")
        return tensor


def _torch_zip(path: Path) -> dict[str, LazyTensor]:
    mapped = _map(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
        described = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(described) != 1:
            raise CheckpointDamaged(path, "it holds no data.pkl of one saved object")
        root = described[0].split("/")[0]

        def stored(name: str) -> NDArray[np.uint8]:
            return _stored(mapped, entries[f"{root}/{name}"])

        if f"{root}/byteorder" in entries and stored("byteorder").tobytes() != b"little":
            raise CheckpointDamaged(path, "it was written on a big-endian machine")
        pickled = stored("data.pkl").tobytes()
        saved = _TensorUnpickler(pickled, path, lambda key: stored(f"data/{key}")).load()
    except zipfile.BadZipFile as exc:
        raise CheckpointDamaged(path, f"it is not whole, or older than PyTorch 1.6 ({exc})") from exc
    except UNREADABLE as exc:
        raise CheckpointDamaged(path, f"its description of tensors cannot be read ({exc})") from exc
    if not isinstance(saved, dict):
        raise UnsafePickle(path, f"a {type(saved).__name__} at the top")
    return {str(name): tensor for name, tensor in saved.items() if isinstance(tensor, LazyTensor)}


def _stored(mapped: NDArray[np.uint8], info: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """Return the bytes of an uncompressed zip entry, in place. Its header is 30 bytes, a name, an extra field."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    name_bytes, extra_bytes = struct.unpack("<HH", mapped[info.header_offset + 26 : info.header_offset + 30].tobytes())
    start = info.header_offset + 30 + name_bytes + extra_bytes
    if info.header_offset < 0 or start + info.file_size > len(mapped):
        raise ValueError(f"{info.filename} reaches past the end of the file")
    return mapped[start : start + info.file_size]


def _mapping(tensor: LazyTensor) -> mmap.mmap | None:
    """Return the mapped file under a tensor, on a system that can be told that its pages are not needed."""
    owner: Any = tensor.read()
    while (below := getattr(owner, "base", None)) is not None:
        owner = below
    return owner if isinstance(owner, mmap.mmap) and hasattr(owner, "madvise") else None


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        # Copy-on-write, so that PyTorch may wrap the views without a copy and without touching the file.
        return np.memmap(path, np.uint8, mode="c")
    except (OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
        raise CheckpointDamaged(path, str(exc)) from exc
