"""An ONNX model in the making, and its files: nodes, small constants, weights as external data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vecferry.model.artifact import DATA, MODEL, FileRecord, file_record
from vecferry.model.checkpoint import in_pieces
from vecferry.model.weights import Array

OPSET, IR_VERSION, MICROSOFT = 21, 10, "com.microsoft"
WORD_EMBEDDINGS = "embeddings.words"
"""The name of the word embeddings, [vocabulary, H]."""
MAPPED_FROM_BYTES, PAGE, CACHE_LINE = 1 << 20, 65536, 64


@dataclass(frozen=True)
class Initializer:
    """A weight that is read when it is written. shape, dtype: of the array that `read` returns."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Array]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def alignment(self) -> int:
        """The alignment in bytes: 64 KiB for large tensors, as Windows maps them; a cache line for small ones."""
        return PAGE if self.bytes >= MAPPED_FROM_BYTES else CACHE_LINE


@dataclass(frozen=True)
class Graph:
    """A model without its weights, and the weights in the order in which the model uses them."""

    model: onnx.ModelProto
    weights: tuple[Initializer, ...]


@dataclass
class GraphBuilder:
    """A graph under construction; weights and constants belong to the outermost graph."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    weights: list[Initializer] = field(default_factory=list)
    scope: str = ""

    def op(self, op_type: str, *inputs: str, domain: str = "", out: str = "", **attributes: Any) -> str:
        """Add a node and return its output's name. out: that name, where it must be a certain one."""
        name = out or f"{self.scope}{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, domain=domain, **attributes))
        return name

    def choose(
        self, condition: str, then: Callable[[GraphBuilder], str], otherwise: Callable[[GraphBuilder], str]
    ) -> str:
        """Add an `If` of one float32 output; the branches see the outer graph's values and weights."""
        name = f"{self.scope}If_{len(self.nodes)}"
        branches = {
            "then_branch": self._branch(f"{name}/then", then),
            "else_branch": self._branch(f"{name}/else", otherwise),
        }
        self.nodes.append(helper.make_node("If", [condition], [name], name, **branches))
        return name

    def _branch(self, name: str, write: Callable[[GraphBuilder], str]) -> onnx.GraphProto:
        inner = GraphBuilder(constants=self.constants, weights=self.weights, scope=f"{name}/")
        result = write(inner)
        return helper.make_graph(
            inner.nodes, name, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
        )

    def constant(self, value: int | Sequence[int]) -> str:
        """Add an int64 scalar or vector."""
        array = np.asarray(value, np.int64)
        name = f"const_{'_'.join(map(str, array.ravel().tolist()))}_{array.ndim}d"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def scalar(self, value: float, dtype: type[np.generic]) -> str:
        name = f"const_{np.dtype(dtype).name}_{value:.9g}"
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(
        self, name: str, shape: Sequence[int], read: Callable[[], Array], dtype: type[np.generic] = np.float32
    ) -> str:
        self.weights.append(Initializer(name, tuple(shape), read, np.dtype(dtype)))
        return name

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Begin the names of the nodes within with `name/`."""
        outer, self.scope = self.scope, f"{self.scope}{name}/"
        yield
        self.scope = outer

    def finish(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: dict[str, tuple[str, list[Any]]], switches: Sequence[str]
    ) -> Graph:
        """Return the graph. outputs: name -> (value, shape). switches: boolean inputs that are true where left out."""
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], name))
        for switch in switches:
            self.constants[switch] = numpy_helper.from_array(np.ones((), bool), switch)
        graph = helper.make_graph(
            self.nodes,
            "vecferry",
            [*inputs, *(helper.make_tensor_value_info(switch, TensorProto.BOOL, []) for switch in switches)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vecferry")
        return Graph(model, tuple(self.weights))


def rewritten(graph: Graph, change: Callable[[GraphBuilder, onnx.NodeProto], bool]) -> Graph:
    """Replace nodes. change: writes what stands for a node and returns True, or False to keep it."""
    inner = graph.model.graph
    b = GraphBuilder(constants={tensor.name: tensor for tensor in inner.initializer}, weights=list(graph.weights))
    for node in inner.node:
        with b.part(node.name):
            if not change(b, node):
                b.nodes.append(node)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(b.nodes)
    model.graph.initializer.extend(b.constants.values())
    read = {name for node in b.nodes for name in node.input} | _read_in_branches(b.nodes)
    return Graph(model, tuple(weight for weight in b.weights if weight.name in read))


def _read_in_branches(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    branches = [attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    return {name for branch in branches for node in branch.node for name in node.input}


def write_graph(graph: Graph, folder: Path) -> dict[str, FileRecord]:
    """Write model.onnx and its data file, one tensor in memory at a time. Repeating it gives the same bytes."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    with (folder / DATA).open("wb") as file:
        data = _HashedFile(file)
        for weight in graph.weights:
            model.graph.initializer.append(_write_weight(weight, data))
    onnx.save(model, folder / MODEL)
    return {MODEL: file_record(folder / MODEL), DATA: data.record()}


def external_weights(folder: Path) -> Iterator[tuple[str, Array]]:
    """Yield (name, array) of what `write_graph` wrote, but whole numbers; pages of the file, shaped as in the graph."""
    data = np.memmap(folder / DATA, np.uint8, "r")
    for tensor in onnx.load(folder / MODEL, load_external_data=False).graph.initializer:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_location == TensorProto.EXTERNAL and np.issubdtype(dtype, np.floating):
            place = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(place["offset"]), int(place["length"])
            yield tensor.name, data[start : start + length].view(dtype).reshape(tensor.dims)


class _HashedFile:
    """A file that is hashed as it is written, so that a later reading can tell whether it holds what was meant."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, piece: bytes | memoryview) -> None:
        self._file.write(piece)
        self._digest.update(piece)
        self.num_bytes += len(piece)

    def record(self) -> FileRecord:
        return FileRecord(sha256=self._digest.hexdigest(), bytes=self.num_bytes)


def _write_weight(weight: Initializer, data: _HashedFile) -> onnx.TensorProto:
    """Write a weight and return its entry in the model, which tells where its bytes are."""
    data.write(b"\0" * (-data.num_bytes % weight.alignment))
    data_type = helper.np_dtype_to_tensor_dtype(weight.dtype)
    tensor = onnx.TensorProto(name=weight.name, dims=weight.shape, data_type=data_type)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", data.num_bytes), ("length", weight.bytes)):
        tensor.external_data.add(key=key, value=str(value))
    array = weight.read()
    assert (array.shape, array.dtype) == (weight.shape, weight.dtype), f"{weight.name} is {array.dtype}{array.shape}"
    for piece in in_pieces(array):
        data.write(piece)
    return tensor
