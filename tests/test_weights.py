"""The tensors of a checkpoint, against PyTorch's own reading; and what a hostile or damaged file gets."""

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecferry.errors import CheckpointDamaged, CheckpointIncomplete, SourceError, UnsafePickle, UnsupportedModel
from vecferry.model.weights import Weights, open_heads, open_weights, weight_files


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def every_kind() -> dict[str, torch.Tensor]:
    base = numbers(6, 8)
    return {
        "float32": base,
        "float64": numbers(3, 2, dtype=torch.float64),
        "float16": numbers(5, 3, dtype=torch.float16),
        "bfloat16": numbers(5, 3, dtype=torch.bfloat16),
        "int64": torch.arange(-3, 9),
        "uint8": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def views() -> dict[str, torch.Tensor]:
    """Return views of one storage, as torch.save keeps them."""
    base = numbers(6, 8)
    return {
        "base": base, "transposed": base.T, "stepped": base[::2, 1::3], "from an offset": base[2:4],
        "column": base[:, 3], "parameter": torch.nn.Parameter(base[1]),
    }  # fmt: skip


def assert_equal_to_torch(weights: Weights, expected: dict[str, torch.Tensor]) -> None:
    assert set(weights) == set(expected)
    for name, tensor in expected.items():
        array = weights[name].read()
        assert array.shape == tuple(tensor.shape) == weights[name].shape, name
        assert bits(array) == bits_of_torch(tensor), name


def bits(array: np.ndarray) -> tuple[str, bytes]:
    return array.dtype.name, np.ascontiguousarray(array).tobytes()


def bits_of_torch(tensor: torch.Tensor) -> tuple[str, bytes]:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return bits(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return bits(tensor.numpy())


# --- reading --------------------------------------------------------------------------------------


def test_a_torch_file_reads_bit_for_bit_as_pytorch_reads_it(tmp_path: Path) -> None:
    torch.save(every_kind() | views(), tmp_path / "pytorch_model.bin")
    expected = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert_equal_to_torch(open_weights(tmp_path), expected)


def test_a_state_dict_with_its_metadata_and_tied_weights_reads(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.BatchNorm1d(3))
    module[1].weight = module[0].bias
    state = module.state_dict()
    assert vars(state)["_metadata"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_equal_to_torch(open_weights(tmp_path), dict(state))


def test_what_is_not_a_tensor_beside_the_tensors_is_left_out(tmp_path: Path) -> None:
    state = {"weight": numbers(2, 2), "step": 3, "name": "x", "nested": OrderedDict(a=[1, (2, None)], b=1.5)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert list(open_weights(tmp_path)) == ["weight"]


def test_a_safetensors_file_reads_bit_for_bit(tmp_path: Path) -> None:
    safetensors.torch.save_file(every_kind(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal_to_torch(open_weights(tmp_path), every_kind())


def save_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize(
    ("single", "save"), [("model.safetensors", save_safetensors), ("pytorch_model.bin", torch.save)]
)
def test_shards_read_as_one(tmp_path: Path, single: str, save: Callable[..., None]) -> None:
    stem, suffix = single.split(".")
    parts = [{"a": numbers(2, 3), "b": numbers(4)}, {"c": numbers(3, 1, dtype=torch.bfloat16)}]
    names = [f"{stem}-{n}-of-2.{suffix}" for n in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save(part, tmp_path / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (tmp_path / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_equal_to_torch(open_weights(tmp_path), parts[0] | parts[1])
    assert [path.name for path in weight_files(tmp_path)] == [f"{single}.index.json", *names]


def test_safetensors_are_preferred_to_a_pickle(tmp_path: Path) -> None:
    save_safetensors({"from": torch.tensor([1])}, tmp_path / "model.safetensors")
    torch.save({"from": torch.tensor([2])}, tmp_path / "pytorch_model.bin")
    assert open_weights(tmp_path)["from"].read().tolist() == [1]
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize("prefix", ["", "bert.", "roberta.", "module.model."])
def test_a_task_models_prefix_is_taken_off(tmp_path: Path, prefix: str) -> None:
    inside = {"embeddings.word_embeddings.weight": numbers(4, 2), "encoder.layer.0.output.dense.bias": numbers(2)}
    torch.save({f"{prefix}{name}": tensor for name, tensor in inside.items()}, tmp_path / "pytorch_model.bin")
    assert_equal_to_torch(open_weights(tmp_path), inside)


def test_half_precision_becomes_fp32_when_asked(tmp_path: Path) -> None:
    torch.save({"a": numbers(4, 4, dtype=torch.bfloat16)}, tmp_path / "pytorch_model.bin")
    array = open_weights(tmp_path)["a"].as_fp32()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, numbers(4, 4, dtype=torch.bfloat16).float().numpy())


@pytest.mark.parametrize("name", ["int64", "uint8", "bool"])
def test_numbers_that_are_no_floats_are_no_weights(tmp_path: Path, name: str) -> None:
    torch.save(every_kind(), tmp_path / "pytorch_model.bin")
    weights = open_weights(tmp_path)
    with pytest.raises(UnsupportedModel, match=f"the numbers of '{name}' '{name}' is not supported"):
        weights.floats(name)
    for kind in ("float64", "float32", "float16", "bfloat16"):
        assert weights.floats(kind).dtype.name == kind


def test_the_first_berts_names_are_read(tmp_path: Path) -> None:
    former = {"bert.embeddings.LayerNorm.gamma": numbers(3), "bert.embeddings.LayerNorm.beta": numbers(3) + 1}
    words = {"bert.embeddings.word_embeddings.weight": numbers(4, 3)}
    torch.save(former | words, tmp_path / "pytorch_model.bin")
    weights = open_weights(tmp_path)
    assert weights["embeddings.LayerNorm.weight"].read().tolist() == numbers(3).tolist()
    assert weights["embeddings.LayerNorm.bias"].read().tolist() == (numbers(3) + 1).tolist()
    torch.save(former | words | {"bert.embeddings.LayerNorm.weight": numbers(3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointDamaged, match=r"two of its tensors are 'embeddings\.LayerNorm\.weight'"):
        open_weights(tmp_path)


@pytest.mark.parametrize(("name", "save"), [("model.safetensors", save_safetensors), ("pytorch_model.bin", torch.save)])
def test_a_tensor_is_a_view_of_the_mapped_file(tmp_path: Path, name: str, save: Callable[..., None]) -> None:
    save({"a": numbers(8, 8), "b": numbers(4)}, tmp_path / name)
    weights = open_weights(tmp_path)
    assert isinstance(root_of(weights["a"].read()), np.memmap)
    assert np.shares_memory(weights["a"].read(), weights["a"].as_fp32())


def root_of(array: Any) -> object:
    """Return the object that owns the memory, or the first memmap on the way to it."""
    while not isinstance(array, np.memmap) and getattr(array, "base", None) is not None:
        array = array.base
    return array


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    before = (tmp_path / "pytorch_model.bin").read_bytes()
    open_weights(tmp_path)["a"].read()[:] = 7
    assert (tmp_path / "pytorch_model.bin").read_bytes() == before


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointDamaged, match=r"pytorch_model\.bin cannot be used: it has no tensor 'b'"):
        open_weights(tmp_path)["b"]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIncomplete, match="the folder is empty"):
        open_weights(tmp_path)
    assert weight_files(tmp_path) == []


def test_heads_come_both_or_not_at_all(tmp_path: Path) -> None:
    assert open_heads(tmp_path) is None
    torch.save({"weight": numbers(1, 4), "bias": numbers(1)}, tmp_path / "sparse_linear.pt")
    with pytest.raises(CheckpointDamaged, match="sparse_linear"):
        open_heads(tmp_path)
    torch.save({"weight": numbers(4, 4), "bias": numbers(4)}, tmp_path / "colbert_linear.pt")
    heads = open_heads(tmp_path)
    assert heads is not None
    assert heads["sparse_linear.weight"].shape == (1, 4)
    assert heads["colbert_linear.bias"].shape == (4,)


# --- pickles that ask for more than tensors -------------------------------------------------------


def write_torch_zip(folder: Path, pickled: bytes, storage: bytes = bytes(16)) -> None:
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", "3\n")


class PickledCall:
    """An object that pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


FLOAT_STORAGE = (
    b"(X\x07\x00\x00\x00storage" + global_("torch", "FloatStorage") + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
REBUILD = global_("torch._utils", "_rebuild_tensor_v2")
NO_HOOKS = b"\x89" + global_("collections", "OrderedDict") + b")R"


def tensor(offset: bytes = b"K\x00", shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85") -> bytes:
    """Return the opcodes of one float32 tensor over a storage of 4 numbers."""
    return REBUILD + b"(" + FLOAT_STORAGE + offset + shape + strides + NO_HOOKS + b"tR"


def a_dict_of(value: bytes) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + value + b"s."


def test_the_opcodes_that_these_tests_write_are_those_of_a_tensor(tmp_path: Path) -> None:
    write_torch_zip(tmp_path, a_dict_of(tensor()), np.arange(4, dtype=np.float32).tobytes())
    assert open_weights(tmp_path)["a"].read().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_of_the_system_is_refused_and_not_made(tmp_path: Path, protocol: int) -> None:
    import os

    marker = tmp_path / "marker"
    write_torch_zip(tmp_path, pickle.dumps({"a": PickledCall(os.system, f"touch {marker}")}, protocol))
    with pytest.raises(UnsafePickle, match=r"pytorch_model\.bin was not read: it asks for posix\.system"):
        open_weights(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("asks_for", "pickled"),
    [
        ("builtins.eval", a_dict_of(global_("builtins", "eval") + b"X\x03\x00\x00\x001+1\x85R")),
        ("builtins.getattr", a_dict_of(global_("builtins", "getattr"))),
        ("os.system", a_dict_of(b"((K\x01" + global_("os", "system") + b"tt")),
        ("subprocess.Popen", a_dict_of(b"\x8c\x0asubprocess\x8c\x05Popen\x93")),
        ("__builtin__.exec", a_dict_of(b"(X\x01\x00\x00\x00xi__builtin__\nexec\n")),
        ("collections.OrderedDict.update", a_dict_of(b"\x8c\x0bcollections\x8c\x12OrderedDict.update\x93")),
        ("torch.storage._load_from_bytes", a_dict_of(global_("torch.storage", "_load_from_bytes"))),
        ("torch.nn.modules.linear.Linear", a_dict_of(global_("torch.nn.modules.linear", "Linear"))),
        ("numpy.core.multiarray._reconstruct", a_dict_of(global_("numpy.core.multiarray", "_reconstruct"))),
        ("a persistent object that is not a storage", a_dict_of(b"X\x01\x00\x00\x00xQ")),
        ("a persistent object that is not", a_dict_of(b"(X\x06\x00\x00\x00moduleK\x01K\x02K\x03K\x04tQ")),
        ("a list at the top", b"\x80\x02]."),
        ("a tuple as a key", b"\x80\x02})K\x01s."),
        ("a int as a key", b"\x80\x02}K\x01K\x01s."),
        ("a call of a str", a_dict_of(b"X\x01\x00\x00\x00x)R")),
        ("a call of a _Global", a_dict_of(global_("torch", "FloatStorage") + b")R")),
        ("the instruction NEWOBJ", a_dict_of(global_("collections", "OrderedDict") + b")\x81")),
        ("the instruction FROZENSET", b"\x80\x04(K\x01\x91."),
        ("the instruction LONG4", a_dict_of(b"\x8b\x01\x00\x00\x00\x01")),
        ("a StridedTensor at the top", b"\x80\x02" + tensor() + b"."),
    ],
)
def test_anything_but_tensors_is_refused_by_name(tmp_path: Path, asks_for: str, pickled: bytes) -> None:
    write_torch_zip(tmp_path, pickled)
    with pytest.raises(UnsafePickle) as raised:
        open_weights(tmp_path)
    assert asks_for in raised.value.message


def test_a_pickled_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafePickle, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_weights(tmp_path)


def test_a_hostile_head_is_refused_as_well(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        torch.save({"weight": PickledCall(exec, f"open({str(marker)!r}, 'w')")}, tmp_path / name)
    with pytest.raises(UnsafePickle, match=r"sparse_linear\.pt.*_builtin__\.exec"):
        open_heads(tmp_path)
    assert not marker.exists()


LEVELS = 10_000
PAIRS = b")q\x00" + b"h\x00\x86q\x00" * LEVELS
"""The opcodes of a tuple inside a tuple, thousands of times; each holds the one before twice."""
FORTY = b")q\x00" + b"h\x00\x86q\x00" * 40


def test_nested_values_take_time_by_their_bytes_alone(tmp_path: Path) -> None:
    """Each level doubled the time of a hash and the length of a message, and an interrupt was not heard meanwhile."""
    hostile = {
        "key": b"\x80\x02}" + PAIRS + b"K\x01s.",
        "persistent id": a_dict_of(PAIRS + b"Q"),
        "shape": a_dict_of(tensor(shape=PAIRS)),
        "argument": a_dict_of(global_("collections", "OrderedDict") + PAIRS + b"\x85R"),
        "function": a_dict_of(PAIRS + b")R"),
        "state": a_dict_of(tensor() + PAIRS + b"b"),
        "lists": a_dict_of(b"]" * LEVELS + b"a" * (LEVELS - 1) + b"Q"),
        "text": a_dict_of(b"X" + struct.pack("<I", 3_000_000) + b"x" * 3_000_000 + b"Q"),
    }
    for name, pickled in hostile.items():
        write_torch_zip(tmp_path, pickled)
        with pytest.raises(SourceError) as raised:
            open_weights(tmp_path)
        assert len(raised.value.message) < 1000, name


@pytest.mark.parametrize("names", [FORTY + b"\x8c\x01x", b"\x8c\x01x" + FORTY])
def test_an_object_that_is_named_by_nested_values_is_refused_at_once(tmp_path: Path, names: bytes) -> None:
    """Written out they would have two to the fortieth parts; at twenty they took 0.2 s."""
    write_torch_zip(tmp_path, a_dict_of(names + b"\x93"))
    with pytest.raises(UnsafePickle, match=r"an object by a (tuple|str) and a (tuple|str)"):
        open_weights(tmp_path)


def test_nested_values_beside_the_tensors_do_no_harm(tmp_path: Path) -> None:
    write_torch_zip(tmp_path, b"\x80\x02}X\x01\x00\x00\x00a" + tensor() + b"sX\x01\x00\x00\x00b" + PAIRS + b"s.")
    assert list(open_weights(tmp_path)) == ["a"]


def test_a_description_of_many_megabytes_is_refused_unread(tmp_path: Path) -> None:
    write_torch_zip(tmp_path, b"\x80\x02}" + b"N0" * 2_000_001 + b".")
    with pytest.raises(CheckpointDamaged, match="4000000 are allowed"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    write_safetensors(tmp_path, b"{" + b" " * 4_000_000 + b"}")
    with pytest.raises(CheckpointDamaged, match="4000000 are allowed"):
        open_weights(tmp_path)


SET_ITEMS = b"}X\x05\x00\x00\x00itemsK\x01sb"
"""BUILD: set the attribute `items` of the object on the stack."""


def test_attributes_set_on_a_state_dict_are_ignored(tmp_path: Path) -> None:
    of_ordered_dict = b"\x80\x02" + global_("collections", "OrderedDict") + b")RX\x01\x00\x00\x00a" + tensor() + b"s"
    write_torch_zip(tmp_path, of_ordered_dict + SET_ITEMS + b".")
    assert list(open_weights(tmp_path)) == ["a"]


SET_DEFAULTS = b"N}X\x0c\x00\x00\x00__defaults__)s\x86b"
"""BUILD with slots: set the attribute `__defaults__`."""

HELD = {
    "tensor": tensor(),
    "function": REBUILD,
    "storage": FLOAT_STORAGE,
    "storage type": global_("torch", "FloatStorage"),
    "dict": b"}",
    "number": b"K\x01",
}


@pytest.mark.parametrize("target", HELD.values(), ids=HELD)
@pytest.mark.parametrize("build", [SET_ITEMS, SET_DEFAULTS])
def test_attributes_set_on_anything_else_are_refused(tmp_path: Path, target: bytes, build: bytes) -> None:
    write_torch_zip(tmp_path, a_dict_of(target + build))
    with pytest.raises(CheckpointDamaged, match=r"pytorch_model\.bin"):
        open_weights(tmp_path)
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    assert open_weights(tmp_path)["a"].read().tolist() == [1, 1, 1]


# --- tensors that do not fit their bytes ----------------------------------------------------------


OUTSIDE = {
    "too long": tensor(shape=b"K\x05\x85"),
    "too far": tensor(offset=b"K\x01"),
    "negative offset": tensor(offset=b"J\xff\xff\xff\xff"),
    "negative shape": tensor(shape=b"J\xfe\xff\xff\xff\x85"),
    "negative stride": tensor(strides=b"J\xff\xff\xff\xff\x85"),
    "stride past the end": tensor(strides=b"K\x02\x85"),
    "two dimensions, one stride": tensor(shape=b"K\x02K\x02\x86"),
    "expanded to billions": tensor(shape=b"J\xff\xff\xff\x7f\x85", strides=b"K\x00\x85"),
    "huge stride": tensor(shape=b"K\x01\x85", strides=b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85"),
    "a huge number": tensor(offset=b"\x8a\xff" + b"\xff" * 254 + b"\x7f"),
    "items of a list": b"](X\x01\x00\x00\x00bNu",
    "items without a mark": b"}u",
    "an item of a tensor": tensor() + b"Na",
    "a key without a value": b"}(X\x01\x00\x00\x00bu",
    "99 dimensions": tensor(shape=b"(" + b"K\x01" * 99 + b"t", strides=b"(" + b"K\x01" * 99 + b"t"),
    "a string for a shape": tensor(shape=b"X\x01\x00\x00\x004\x85"),
    "a float for a shape": tensor(shape=b"G@\x10\x00\x00\x00\x00\x00\x00\x85"),
    "a list for a shape": tensor(shape=b"]"),
    "no storage": REBUILD + b"(NK\x00K\x01\x85K\x01\x85tR",
    "a parameter of nothing": global_("torch._utils", "_rebuild_parameter") + b"(NK\x01NtR",
    "a memory index of billions": b"r\xff\xff\xff\x7fN",
    "a memory index not written": b"h\x07",
}


@pytest.mark.parametrize("pickled", OUTSIDE.values(), ids=OUTSIDE)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, pickled: bytes) -> None:
    write_torch_zip(tmp_path, a_dict_of(pickled))
    with pytest.raises(CheckpointDamaged, match=r"pytorch_model\.bin"):
        open_weights(tmp_path)


def test_a_storage_cut_short_is_refused(tmp_path: Path) -> None:
    write_torch_zip(tmp_path, a_dict_of(tensor()), storage=bytes(15))
    with pytest.raises(CheckpointDamaged, match="reaches past its storage"):
        open_weights(tmp_path)


def test_a_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", a_dict_of(tensor()))
    with pytest.raises(CheckpointDamaged, match="archive/data/0"):
        open_weights(tmp_path)


# --- damaged files --------------------------------------------------------------------------------


def test_a_truncated_torch_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": numbers(64, 64)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointDamaged, match=r"pytorch_model\.bin cannot be used: it is not whole"):
        open_weights(tmp_path)


def test_pytorchs_format_before_1_6_is_refused(tmp_path: Path) -> None:
    torch.save({"a": numbers(4)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointDamaged, match=r"older than PyTorch 1\.6"):
        open_weights(tmp_path)


def test_a_compressed_storage_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", a_dict_of(tensor()))
        archive.writestr("archive/data/0", bytes(16), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointDamaged, match="archive/data/0 is compressed"):
        open_weights(tmp_path)


def test_a_file_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", a_dict_of(tensor()))
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(CheckpointDamaged, match="big-endian"):
        open_weights(tmp_path)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointDamaged, match=r"no data\.pkl"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_empty_file_or_a_folder_in_the_files_place_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointDamaged, match=name):
        open_weights(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointDamaged, match=name):
        open_weights(tmp_path)


def write_safetensors(folder: Path, header: object, body: bytes = bytes(16)) -> None:
    described = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(described)) + described + body)


def entry(start: int, end: int, shape: object = (4,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WRONG_HEADERS = {
    "past the end": {"a": entry(0, 20, (5,))},
    "bytes left over": {"a": entry(0, 12, (3,))},
    "overlapping": {"a": entry(0, 16), "b": entry(8, 16, (2,))},
    "negative": {"a": entry(-16, 0)},
    "backwards": {"a": entry(16, 0)},
    "shape and bytes differ": {"a": entry(0, 16, (3,))},
    "negative shape": {"a": entry(0, 16, (-2, -2))},
    "empty and not": {"a": entry(0, 16, (2**32, 2**32, 0, 1)), "b": entry(16, 16, (0,))},
    "shape that overflows": {"a": entry(0, 16), "b": entry(16, 16, (2**32, 2**32))},
    "shape of text": {"a": entry(0, 16, "4")},
    "a shape of a million": {"a": entry(0, 16, (7,) * 1_000_000)},
    "a type that is a list": {"a": entry(0, 16) | {"dtype": ["F32"]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [4]}},
    "a number for a tensor": {"a": 1},
    "a list": [],
    "not text": b"\xff\xfe",
    "deeply nested": b"[" * 200_000,
    "no header": b"",
}


@pytest.mark.parametrize("header", WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_a_wrong_safetensors_header_is_refused(tmp_path: Path, header: object) -> None:
    write_safetensors(tmp_path, header)
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "C64", "U32"])
def test_numbers_of_a_type_that_is_not_read_are_refused_by_its_name(tmp_path: Path, dtype: str) -> None:
    write_safetensors(tmp_path, {"a": entry(0, 16, dtype=dtype)})
    with pytest.raises(UnsupportedModel, match=f"the type of numbers '{dtype}' is not supported"):
        open_weights(tmp_path)


def test_a_safetensors_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    for length in (9, 2**40, 2**63, 2**64 - 1):
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CheckpointDamaged, match=f"a header of {length} bytes"):
            open_weights(tmp_path)


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors({"a": numbers(8, 8)}, path)
    whole = path.read_bytes()
    for kept in (4, 20, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointDamaged, match=r"model\.safetensors cannot be used: it is not a whole"):
            open_weights(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b.bin", "", ".."])
def test_a_shard_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    for read in (open_weights, weight_files):
        with pytest.raises(CheckpointDamaged, match="outside the checkpoint"):
            read(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(CheckpointDamaged, match=r"model-1\.safetensors cannot be used: .* it is missing"):
        open_weights(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_safetensors({"a": numbers(2)}, tmp_path / name)
    named = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(
        CheckpointDamaged, match=r"model-2\.safetensors cannot be used: another shard has its tensor 'a'"
    ):
        open_weights(tmp_path)


def test_a_tensor_with_and_without_the_prefix_is_refused(tmp_path: Path) -> None:
    both = {"bert.embeddings.word_embeddings.weight": numbers(4, 2), "bert.a": numbers(2), "a": numbers(3)}
    torch.save(both, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointDamaged, match="two of its tensors are 'a'"):
        open_weights(tmp_path)


def test_weights_that_nothing_reads_are_named(tmp_path: Path) -> None:
    known = ["pooler.dense.weight", "embeddings.position_ids", "lm_head.bias", "cls.seq_relationship.weight"]
    adapter = [f"encoder.layer.{n}.adapter.weight" for n in range(4)]
    torch.save(dict.fromkeys(["a", *known, *adapter], numbers(2)), tmp_path / "pytorch_model.bin")
    weights = open_weights(tmp_path)
    weights.check_all_used(["a", *adapter])
    with pytest.raises(
        CheckpointDamaged, match=r"does not read its tensors 'encoder.*0.*', .*2.adapter.weight' and 1 more"
    ):
        weights.check_all_used(["a"])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"]
)
def test_what_is_no_regular_file_is_refused_unread(tmp_path: Path, name: str) -> None:
    """A pipe without a writer waits for one, and /dev/zero has no end."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointDamaged, match="not a regular file"):
        open_weights(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointDamaged, match="not a regular file"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map": {"a": 1}}', b'{"weight_map": 1}', b"[" * 100_000, b"\xff"]
)
def test_a_shard_index_of_another_form_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointDamaged, match="not a shard index"):
        open_weights(tmp_path)


# --- any damage at all ----------------------------------------------------------------------------

# pickletools warns of a name that damage has given a backslash.
a_damaged_name_may_warn = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")

WHOLE_TENSORS = {"a.weight": numbers(5, 3), "b": numbers(4, dtype=torch.bfloat16), "empty": torch.zeros(0)}


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    torch.save(OrderedDict(WHOLE_TENSORS, view=WHOLE_TENSORS["a.weight"].T), folder / "pytorch_model.bin")
    save_safetensors(WHOLE_TENSORS, folder / "model.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@a_damaged_name_may_warn
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_raises_anything_but_a_source_error(
    tmp_path: Path, whole_files: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    damaged = bytearray(whole_files[name])
    flips = st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=4)
    for at, byte in data.draw(flips):
        damaged[at] = byte
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    (tmp_path / name).write_bytes(damaged)
    try:
        weights = open_weights(tmp_path)
    except SourceError:
        return
    for tensor in weights.values():
        assert tensor.read().nbytes <= len(damaged)


@pytest.mark.slow
@a_damaged_name_may_warn
def test_no_flipped_byte_of_a_pickle_raises_anything_but_a_source_error(
    tmp_path: Path, whole_files: dict[str, bytes]
) -> None:
    whole = whole_files["pytorch_model.bin"]
    start = whole.index(b"\x80\x02")
    for at in range(start, whole.index(b"PK", start)):
        for byte in range(256):
            (tmp_path / "pytorch_model.bin").write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                for tensor in open_weights(tmp_path).values():
                    tensor.as_fp32()
            except SourceError:
                continue
