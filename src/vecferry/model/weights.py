"""Tensors of a checkpoint as a lazy mapping, from safetensors or from PyTorch's zip, without PyTorch.

A PyTorch file is a zip: a pickle that describes tensors (tensor_pickle.py), and one stored entry per storage. Tensors
are views of the mapped file: nothing is read before it is used, and PyTorch can wrap them without a copy. (That is why
safetensors' own library is not used here: it copies each tensor, and its NumPy side has no bfloat16 view.)
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vecferry.errors import CheckpointDamaged, UnsupportedModel, cut_repr
from vecferry.model.completeness import files_in, without_weights
from vecferry.model.files import check_not_pointer, read_whole
from vecferry.model.tensor_pickle import StridedTensor, read_tensors

Array = NDArray[Any]

UNREADABLE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, EOFError, OSError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What json, zipfile, pickletools and numpy raise on bytes that are not what they should be."""
MAX_DESCRIPTION_BYTES = 4_000_000
"""Of a file's tensors: their names, types and shapes. BGE-M3's take 60 kB."""
MAX_DIMENSIONS, MAX_LENGTH = 8, 1 << 48


FLOATS = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
FLOATS_ALONE = f"{', '.join(dtype.name for dtype in FLOATS)}; take the checkpoint from before it was quantized"


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when asked. `read` returns an array of `shape` and of the stored dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]

    def as_fp32(self) -> NDArray[np.float32]:
        return np.asarray(self.read(), dtype=np.float32)


BESIDE_THE_ENCODER = (
    "pooler.", "embeddings.position_ids", "embeddings.token_type_ids", "lm_head.", "cls.", "classifier.", "qa_outputs.",
)  # fmt: skip
"""Beginnings of the names of tensors that an embedding does not depend on: heads of tasks, constants."""
FORMER_NAMES = {"gamma": "weight", "beta": "bias"}
"""Of the tensors of a LayerNorm."""
NAMED = 3
HEADS = ("sparse_linear", "colbert_linear")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


class Weights(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint by name. A missing name raises CheckpointDamaged, since the caller needs it.

    prefix: what was removed from the beginnings of the names.
    """

    def __init__(self, path: Path, tensors: Mapping[str, LazyTensor], prefix: str = "") -> None:
        self.path = path
        self.prefix = prefix
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointDamaged(self.path, f"it has no tensor {name!r}") from None

    def replaced(self, tensors: Mapping[str, LazyTensor]) -> Weights:
        """Return the same weights with others in the place of some."""
        return Weights(self.path, {**self._tensors, **tensors}, self.prefix)

    def release(self) -> None:
        """Give the pages that were read back to the system; they are read again when they are needed."""
        mappings = {id(mapping): mapping for tensor in self.values() if (mapping := _mapping(tensor)) is not None}
        for mapping in mappings.values():
            mapping.madvise(mmap.MADV_DONTNEED)

    def check_all_used(self, used: Iterable[str]) -> None:
        """Refuse weights that a model does not read, but for what is known to lie beside an encoder.

        Raises CheckpointDamaged, with their names.
        """
        unused = [name for name in self if not name.startswith(BESIDE_THE_ENCODER)]
        if unused := sorted(set(unused) - set(used)):
            more = f" and {len(unused) - NAMED} more" if len(unused) > NAMED else ""
            names = ", ".join(map(cut_repr, unused[:NAMED]))
            raise self.damaged(f"config.json describes a model that does not read its tensors {names}{more}")

    def floats(self, name: str) -> LazyTensor:
        """Return a tensor whose numbers are floats. Raises CheckpointDamaged; UnsupportedModel for other numbers."""
        tensor = self[name]
        if tensor.dtype not in FLOATS:
            what = f"the type of the numbers of {cut_repr(name)}"
            raise UnsupportedModel(what, tensor.dtype.name, FLOATS_ALONE)
        return tensor

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

    Raises CheckpointIncomplete, CheckpointDamaged, UnsafePickle, UnsupportedModel (a type of numbers).
    """
    path = _weights_at(folder)
    if path is None:
        raise without_weights(folder, files_in(folder))
    reader = _safetensors if path.name.startswith("model.safetensors") else _torch_zip
    tensors = _shards(path, reader) if _is_index(path) else reader(path)
    prefix = _prefix(tensors)
    return Weights(path, _under_todays_names(path, tensors, prefix), prefix)


def open_heads(folder: Path) -> Weights | None:
    """Open BGE-M3's heads as {sparse,colbert}_linear.{weight,bias}; None where the checkpoint has neither file.

    Raises CheckpointDamaged (one file without the other included), UnsafePickle.
    """
    files = head_files(folder)
    if not files:
        return None
    if len(files) == 1:
        raise CheckpointDamaged(folder, f"it has {files[0].name} alone, and BGE-M3 has two heads")
    heads = {f"{path.stem}.{part}": tensor for path in files for part, tensor in _torch_zip(path).items()}
    return Weights(folder, heads)


def open_adapter(path: Path) -> Weights:
    """Open the tensors of an adapter, under the names that they have. Raises what `open_weights` raises."""
    return Weights(path, (_safetensors if path.suffix == ".safetensors" else _torch_zip)(path))


def adapter_file(folder: Path) -> Path | None:
    """Return the file with an adapter's tensors, if there is one."""
    return next((folder / name for name in ADAPTER_FILES if (folder / name).exists()), None)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that `open_weights` would read, in a fixed order."""
    path = _weights_at(folder)
    return [] if path is None else [path, *(_shard_paths(path) if _is_index(path) else [])]


def head_files(folder: Path) -> list[Path]:
    """Return the files that `open_heads` would read, in a fixed order."""
    return [path for name in HEADS if (path := folder / f"{name}.pt").exists()]


def _weights_at(folder: Path) -> Path | None:
    """Return the file with the weights, or the index of its shards; safetensors before PyTorch's own."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return next((folder / name for name in names if (folder / name).exists()), None)


def _is_index(path: Path) -> bool:
    return path.suffix == ".json"


def _shard_paths(index: Path) -> list[Path]:
    return sorted({_inside(index, name) for name in _weight_map(index).values()})


def _prefix(names: Iterable[str]) -> str:
    """Return what stands before the names of a model that was saved inside another one: "bert.", "roberta.", ..."""
    end = "embeddings.word_embeddings.weight"
    prefixes = [name.removesuffix(end) for name in names if name.endswith(end)]
    return prefixes[0] if len(prefixes) == 1 else ""


def _under_todays_names(path: Path, tensors: dict[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """Return the tensors without their prefix; LayerNorm had gamma and beta in the first releases of BERT."""
    today: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        called = name.removeprefix(prefix)
        module, norm, last = called.rpartition("LayerNorm.")
        if norm and last in FORMER_NAMES:
            called = f"{module}{norm}{FORMER_NAMES[last]}"
        if called in today:
            raise CheckpointDamaged(path, f"two of its tensors are {cut_repr(called)}, under different names")
        today[called] = tensor
    return today


def _shards(index: Path, reader: Callable[[Path], dict[str, LazyTensor]]) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for shard in _shard_paths(index):
        if not shard.exists():
            raise CheckpointDamaged(shard, f"{index.name} names it, but it is missing")
        more = reader(shard)
        if twice := tensors.keys() & more.keys():
            raise CheckpointDamaged(shard, f"another shard has its tensor {cut_repr(min(twice))} too")
        tensors.update(more)
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = read_whole(index, MAX_DESCRIPTION_BYTES)
        check_not_pointer(index, content)
        named = json.loads(content)["weight_map"]
        if not all(isinstance(name, str) for name in named.values()):
            raise TypeError("a shard's name is not a text")
        return dict(named)
    except UNREADABLE as exc:
        raise CheckpointDamaged(index, f"it is not a shard index ({exc!r})") from exc


def _inside(index: Path, name: str) -> Path:
    """Return a shard's path, which must stay in the checkpoint's folder."""
    if Path(name).name != name or name in ("", ".."):
        raise CheckpointDamaged(index, f"it names a file outside the checkpoint: {name!r}")
    return index.parent / name


def _is_layout(numbers: Any) -> bool:
    """Return whether this can be a shape or strides: a tuple of few whole numbers, none of them negative or huge."""
    if not isinstance(numbers, tuple) or len(numbers) > MAX_DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n < MAX_LENGTH for n in numbers)


# --- safetensors ----------------------------------------------------------------------------------

SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def _safetensors(path: Path) -> dict[str, LazyTensor]:
    """Map the file. The format is eight bytes of header length, a JSON header, the data without holes."""
    data = _map(path)
    try:
        (header_bytes,) = struct.unpack("<Q", data[:8].tobytes())
        if header_bytes > min(len(data) - 8, MAX_DESCRIPTION_BYTES):
            allowed = f"{MAX_DESCRIPTION_BYTES} are allowed"
            raise ValueError(f"a header of {header_bytes} bytes in a file of {len(data)}, and {allowed}")
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
        raise UnsupportedModel("the type of numbers", entry["dtype"], FLOATS_ALONE)
    dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not _is_layout(shape):
        raise ValueError("a tensor's shape is not one")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - start} bytes are not {shape} of {dtype}")
    array = body[start:end].view(dtype).reshape(shape)
    return LazyTensor(array.shape, dtype, lambda: array)


# --- PyTorch's zip --------------------------------------------------------------------------------


def _view(stored: NDArray[np.uint8], tensor: StridedTensor) -> LazyTensor:
    """Return a strided view of a storage, proven to lie inside it."""
    shape, strides, dtype = tensor.shape, tensor.strides, tensor.storage.dtype
    if not (_is_layout(shape) and _is_layout(strides) and _is_layout((tensor.offset,)) and len(shape) == len(strides)):
        raise ValueError("a tensor is not described as one")
    flat = stored[: len(stored) // dtype.itemsize * dtype.itemsize].view(dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    # Fewer numbers than the view has: an expanded tensor, which could be of any size.
    if math.prod(shape) > len(flat) or (0 not in shape and last >= len(flat)):
        raise ValueError(f"a tensor of shape {shape} reaches past its storage of {len(stored)} bytes")
    if 0 in shape:
        array = np.zeros(shape, dtype)
    else:
        array = np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, [s * dtype.itemsize for s in strides])
    return LazyTensor(shape, dtype, lambda: array)


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
        pickled = stored("data.pkl")
        if len(pickled) > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"it has {len(pickled)} bytes, and {MAX_DESCRIPTION_BYTES} are allowed")
        tensors = read_tensors(pickled.tobytes(), path)
        return {name: _view(stored(f"data/{tensor.storage.key}"), tensor) for name, tensor in tensors.items()}
    except zipfile.BadZipFile as exc:
        raise CheckpointDamaged(path, f"it is not whole, or older than PyTorch 1.6 ({exc})") from exc
    except UNREADABLE as exc:
        raise CheckpointDamaged(path, f"its description of tensors cannot be read ({exc})") from exc


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
    if not path.is_file():  # a pipe would wait, a device has no end
        raise CheckpointDamaged(path, "it is not a regular file")
    try:
        # Copy-on-write, so that PyTorch may wrap the views without a copy and without touching the file.
        mapped = np.memmap(path, np.uint8, mode="c")
    except (OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
        raise CheckpointDamaged(path, str(exc)) from exc
    check_not_pointer(path, mapped[:100].tobytes())
    return mapped
