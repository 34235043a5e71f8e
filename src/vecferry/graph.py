"""The ONNX graph of an encoder, written node by node; this file reads in the order of the model.

Inputs   input_ids, attention_mask: int64 [B, S], padded on the right
         want_sparse, want_colbert: bool [], true where left out
Outputs  dense [B, H], unit length where the model normalises
         sparse [B, S] token weights and colbert [B, S - 1, H]; [0, 0] and [0, 0, H] if not wanted

Fused operators of ONNX Runtime's com.microsoft domain stand where they exist. A head that is not
wanted is the untaken branch of an `If` and costs nothing. Attention is an `If` as well: a batch with
no padding takes the form without a mask, whose memory grows linearly with the length. The branches
share the weights, which live in the outer graph, as external data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vecferry.artifact import DATA, MODEL, FileRecord, file_record
from vecferry.embeddings import Float32
from vecferry.spec import EncoderSpec
from vecferry.model import Model, in_pieces
from vecferry.weights import Weights

OPSET, IR_VERSION, MICROSOFT = 21, 10, "com.microsoft"


@dataclass(frozen=True)
class Initializer:
    """A weight that is read when it is written. shape: of the array that `read` returns."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Float32]


@dataclass
class _Builder:
    """Nodes and weights of a graph in the making; `op` adds a node and returns its output's name."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    weights: list[Initializer] = field(default_factory=list)
    scope: str = ""

    def op(self, op_type: str, *inputs: str, n_outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        name = f"{self.scope}{op_type}_{len(self.nodes)}"
        outputs = [name] if n_outputs == 1 else [f"{name}.{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name, domain=domain, **attributes))
        return name if n_outputs == 1 else outputs

    def constant(self, value: int | Sequence[int] | bool, dtype: Any = np.int64) -> str:
        array = np.asarray(value, dtype)
        name = f"const_{array.dtype}_{'_'.join(map(str, array.ravel().tolist()))}_{array.ndim}d"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, shape: Sequence[int], read: Callable[[], Float32]) -> str:
        self.weights.append(Initializer(name, tuple(shape), read))
        return name

    @contextmanager
    def layer(self, name: str) -> Iterator[None]:
        outer, self.scope = self.scope, f"{self.scope}{name}/"
        yield
        self.scope = outer

    def choose(self, condition: str, then: Callable[[_Builder], str], otherwise: Callable[[_Builder], str]) -> str:
        """An `If` of one output; the branches see the outer graph's values and weights."""
        name = f"{self.scope}If_{len(self.nodes)}"
        attributes = {"then_branch": self._branch(f"{name}/then", then), "else_branch": self._branch(f"{name}/else", otherwise)}
        self.nodes.append(helper.make_node("If", [condition], [name], name, **attributes))
        return name

    def _branch(self, name: str, write: Callable[[_Builder], str]) -> onnx.GraphProto:
        inner = _Builder(constants=self.constants, weights=self.weights, scope=f"{name}/")
        result = write(inner)
        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        return helper.make_graph(inner.nodes, name, [], [output])


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """A model without its weights, and the weights in the order in which the model uses them."""

    model: onnx.ModelProto
    weights: tuple[Initializer, ...]


def build_graph(model: Model) -> Graph:
    """No weight is read yet. Raises CheckpointDamaged where a tensor is missing or of another shape."""
    spec, weights, heads = model.spec, model.weights, model.heads
    b = _Builder()
    mask32 = b.op("Cast", "attention_mask", to=TensorProto.INT32)
    unpadded = b.op("Cast", b.op("ReduceMin", "attention_mask", keepdims=0), to=TensorProto.BOOL)
    with b.layer("embeddings"):
        hidden = _embeddings(b, spec, weights)
    for n in range(spec.layers):
        with b.layer(f"layer.{n}"):
            hidden = _encoder_layer(b, spec, weights, n, hidden, mask32, unpadded)
    outputs = [("dense", _dense(b, spec, hidden), ["batch", spec.hidden])]
    if heads is not None:
        outputs.append(("sparse", _sparse(b, spec, heads, hidden), ["sparse_batch", "sparse_tokens"]))
        outputs.append(("colbert", _colbert(b, spec, heads, hidden), ["colbert_batch", "colbert_tokens", spec.hidden]))
    return Graph(_model_proto(b, outputs, has_heads=heads is not None), tuple(b.weights))


def _embeddings(b: _Builder, spec: EncoderSpec, weights: Weights) -> str:
    """LayerNorm(word + position + token type 0); the token type is added to the positions beforehand."""
    at = "embeddings."

    def positions() -> Float32:
        return weights[at + "position_embeddings.weight"].as_fp32() + weights[at + "token_type_embeddings.weight"].as_fp32()[0]

    word_table = weights[at + "word_embeddings.weight"]
    words = b.op("Gather", b.weight(at + "words", word_table.shape, word_table.as_fp32), "input_ids")  # [B, S, H]
    places = b.op("Gather", b.weight(at + "positions", (spec.positions, spec.hidden), positions), _position_ids(b, spec))
    norm = [_vector(b, weights, at + f"LayerNorm.{part}", spec.hidden) for part in ("weight", "bias")]
    return str(b.op("SkipLayerNormalization", words, places, *norm, domain=MICROSOFT, epsilon=spec.layer_norm_eps))


def _position_ids(b: _Builder, spec: EncoderSpec) -> str:
    """BERT counts from 0: [S]. XLM-RoBERTa counts the tokens that are not padding, from pad_id + 1: [B, S]."""
    if spec.family == "bert":
        length = b.op("Squeeze", b.op("Shape", "input_ids", start=1, end=2))
        return str(b.op("Range", b.constant(0), length, b.constant(1)))
    same = b.op("Equal", "input_ids", b.constant(spec.pad_id))
    counted = b.op("Cast", b.op("Not", same), to=TensorProto.INT64)
    up_to_here = b.op("Mul", b.op("CumSum", counted, b.constant(1)), counted)
    return str(b.op("Add", up_to_here, b.constant(spec.pad_id)))


def _encoder_layer(
    b: _Builder, spec: EncoderSpec, weights: Weights, n: int, hidden: str, mask32: str, unpadded: str
) -> str:
    at = f"encoder.layer.{n}."
    attended = _attention(b, spec, weights, at + "attention.self.", hidden, mask32, unpadded)
    projected = _matmul(b, weights, at + "attention.output.dense", attended, spec.hidden, spec.hidden)
    hidden = _add_and_norm(b, spec, weights, at + "attention.output", projected, hidden)
    inner = _matmul(b, weights, at + "intermediate.dense", hidden, spec.hidden, spec.feed_forward)  # [B, S, F]
    bias = _vector(b, weights, at + "intermediate.dense.bias", spec.feed_forward)
    inner = b.op("BiasGelu", inner, bias, domain=MICROSOFT)
    outer = _matmul(b, weights, at + "output.dense", inner, spec.feed_forward, spec.hidden)
    return _add_and_norm(b, spec, weights, at + "output", outer, hidden)


def _attention(
    b: _Builder, spec: EncoderSpec, weights: Weights, at: str, hidden: str, mask32: str, unpadded: str
) -> str:
    """Self-attention [B, S, H] -> [B, S, H]; query, key and value in one product."""
    parts = ("query", "key", "value")

    def merged_weight() -> Float32:
        return np.concatenate([weights[f"{at}{part}.weight"].as_fp32().T for part in parts], axis=1)

    def merged_bias() -> Float32:
        return np.concatenate([weights[f"{at}{part}.bias"].as_fp32() for part in parts])

    for part in parts:
        _expect(weights, f"{at}{part}.weight", (spec.hidden, spec.hidden))
    qkv = b.op("MatMul", hidden, b.weight(at + "qkv.weight", (spec.hidden, 3 * spec.hidden), merged_weight))
    query, key, value = b.op("Split", qkv, n_outputs=3, axis=-1, num_outputs=3)  # each [B, S, H]
    bias = b.weight(at + "qkv.bias", (3 * spec.hidden,), merged_bias)

    def attend(inner: _Builder, *mask: str) -> str:
        heads = spec.attention_heads
        return str(inner.op("MultiHeadAttention", query, key, value, bias, *mask, domain=MICROSOFT, num_heads=heads))

    return b.choose(unpadded, attend, lambda inner: attend(inner, mask32))


def _add_and_norm(b: _Builder, spec: EncoderSpec, weights: Weights, at: str, x: str, residual: str) -> str:
    """LayerNorm(x + bias + residual)."""
    norm = [_vector(b, weights, f"{at}.LayerNorm.{part}", spec.hidden) for part in ("weight", "bias")]
    bias = _vector(b, weights, f"{at}.dense.bias", spec.hidden)
    return str(b.op("SkipLayerNormalization", x, residual, *norm, bias, domain=MICROSOFT, epsilon=spec.layer_norm_eps))


# --- the three heads ------------------------------------------------------------------------------


def _dense(b: _Builder, spec: EncoderSpec, hidden: str) -> str:
    """[B, S, H] -> [B, H]: the first token, or the mean over the tokens that are there."""
    if spec.pooling == "cls":
        pooled = b.op("Gather", hidden, b.constant(0), axis=1)
    else:
        mask = b.op("Cast", "attention_mask", to=TensorProto.FLOAT)
        kept = b.op("Mul", hidden, b.op("Unsqueeze", mask, b.constant([-1])))
        total = b.op("ReduceSum", kept, b.constant([1]), keepdims=0)
        pooled = b.op("Div", total, b.op("ReduceSum", mask, b.constant([1]), keepdims=1))
    return str(b.op("LpNormalization", pooled, axis=-1, p=2)) if spec.normalize else str(pooled)


def _sparse(b: _Builder, spec: EncoderSpec, heads: Weights, hidden: str) -> str:
    """[B, S, H] -> [B, S]: relu(h · w + b)."""
    weight = _linear(b, heads, "sparse_linear.weight", spec.hidden, 1)
    bias = _vector(b, heads, "sparse_linear.bias", 1)

    def wanted(inner: _Builder) -> str:
        weights = inner.op("Relu", inner.op("Add", inner.op("MatMul", hidden, weight), bias))  # [B, S, 1]
        return str(inner.op("Squeeze", weights, inner.constant([-1])))

    return b.choose("want_sparse", wanted, lambda inner: _nothing(inner, [0, 0]))


def _colbert(b: _Builder, spec: EncoderSpec, heads: Weights, hidden: str) -> str:
    """[B, S, H] -> [B, S - 1, H]: all tokens but the first, projected, unit length, zero where padded."""
    weight = _linear(b, heads, "colbert_linear.weight", spec.hidden, spec.hidden)
    bias = _vector(b, heads, "colbert_linear.bias", spec.hidden)

    def without_first(inner: _Builder, x: str) -> Any:
        return inner.op("Slice", x, inner.constant([1]), inner.constant([np.iinfo(np.int64).max]), inner.constant([1]))

    def wanted(inner: _Builder) -> str:
        projected = inner.op("Add", inner.op("MatMul", without_first(inner, hidden), weight), bias)
        mask = inner.op("Cast", without_first(inner, "attention_mask"), to=TensorProto.FLOAT)
        kept = inner.op("Mul", projected, inner.op("Unsqueeze", mask, inner.constant([-1])))
        return str(inner.op("LpNormalization", kept, axis=-1, p=2))

    return b.choose("want_colbert", wanted, lambda inner: _nothing(inner, [0, 0, spec.hidden]))


def _nothing(b: _Builder, shape: list[int]) -> str:
    return str(b.op("ConstantOfShape", b.constant(shape)))


# --- weights --------------------------------------------------------------------------------------


def _matmul(b: _Builder, weights: Weights, name: str, x: str, n_in: int, n_out: int) -> str:
    return str(b.op("MatMul", x, _linear(b, weights, f"{name}.weight", n_in, n_out)))


def _linear(b: _Builder, weights: Weights, name: str, n_in: int, n_out: int) -> str:
    """A linear layer's weight, [out, in] in the checkpoint and [in, out] in the graph."""
    _expect(weights, name, (n_out, n_in))
    return b.weight(name, (n_in, n_out), lambda: np.ascontiguousarray(weights[name].as_fp32().T))


def _vector(b: _Builder, weights: Weights, name: str, size: int) -> str:
    _expect(weights, name, (size,))
    return b.weight(name, (size,), weights[name].as_fp32)


def _expect(weights: Weights, name: str, shape: tuple[int, ...]) -> None:
    if weights[name].shape != shape:
        raise weights.damaged(f"tensor {name!r} has shape {weights[name].shape}, not {shape}")


# --- the model and its file -----------------------------------------------------------------------


def _model_proto(b: _Builder, outputs: list[tuple[str, str, list[Any]]], *, has_heads: bool) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    constants = list(b.constants.values())
    for switch in ("want_sparse", "want_colbert") if has_heads else ():
        inputs.append(helper.make_tensor_value_info(switch, TensorProto.BOOL, []))
        constants.append(numpy_helper.from_array(np.asarray(True), switch))  # the value where it is left out
    for name, value, _ in outputs:
        b.nodes.append(helper.make_node("Identity", [value], [name], name))
    graph = helper.make_graph(
        b.nodes,
        "vecferry",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, _, shape in outputs],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vecferry")


def write_graph(graph: Graph, folder: Path) -> dict[str, FileRecord]:
    """Write model.onnx and its data file, one tensor in memory at a time. Repeating it gives the same bytes."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    with (folder / DATA).open("wb") as data:
        for weight in graph.weights:
            _align(data, weight)
            model.graph.initializer.append(_external(weight, data.tell()))
            for part in in_pieces(weight.read()):
                data.write(part)
    onnx.save(model, folder / MODEL)
    return {name: file_record(folder / name) for name in (MODEL, DATA)}


def _align(data: Any, weight: Initializer) -> None:
    """Large tensors start where any system can map them (64 KiB, Windows), small ones at a cache line."""
    boundary = 65536 if _bytes(weight) >= 1 << 20 else 64
    data.write(b"\0" * (-data.tell() % boundary))


def _external(weight: Initializer, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=weight.name, dims=weight.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", offset), ("length", _bytes(weight))):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _bytes(weight: Initializer) -> int:
    return int(np.prod(weight.shape)) * 4
