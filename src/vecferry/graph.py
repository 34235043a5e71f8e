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

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from vecferry.embeddings import Float32
from vecferry.model import Model
from vecferry.onnx_file import MICROSOFT, Graph, GraphBuilder
from vecferry.spec import EncoderSpec
from vecferry.weights import Weights

TO_THE_END = int(np.iinfo(np.int64).max)


def build_graph(model: Model) -> Graph:
    """No weight is read yet. Raises CheckpointDamaged where a tensor is missing or of another shape."""
    return _Writer(model.spec, model.weights, model.heads).graph()


class _Writer:
    """Writes one encoder. Methods take and return the names of values; shapes stand beside them."""

    def __init__(self, spec: EncoderSpec, weights: Weights, heads: Weights | None) -> None:
        self.spec = spec
        self.weights = weights
        self.heads = heads
        self.b = GraphBuilder()

    def graph(self) -> Graph:
        b, hidden_size = self.b, self.spec.hidden
        self.mask = b.op("Cast", "attention_mask", to=TensorProto.INT32)  # [B, S]
        self.unpadded = b.op("Cast", b.op("ReduceMin", "attention_mask", keepdims=0), to=TensorProto.BOOL)  # []
        with b.part("embeddings"):
            hidden = self.embeddings()  # [B, S, H]
        for n in range(self.spec.layers):
            with b.part(f"layer.{n}"):
                hidden = self.layer(f"encoder.layer.{n}.", hidden)
        outputs: dict[str, tuple[str, list[Any]]] = {"dense": (self.dense(hidden), ["batch", hidden_size])}
        if self.heads is not None:
            outputs["sparse"] = self.sparse(hidden, self.heads), ["sparse_batch", "sparse_tokens"]
            outputs["colbert"] = self.colbert(hidden, self.heads), ["colbert_batch", "colbert_tokens", hidden_size]
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        return b.finish(inputs, outputs, ["want_sparse", "want_colbert"] if self.heads is not None else [])

    # --- embeddings -------------------------------------------------------------------------------

    def embeddings(self) -> str:
        """LayerNorm(word + position + token type 0); the token type is added to the positions beforehand."""
        spec, weights, at = self.spec, self.weights, "embeddings."

        def positions_and_type() -> Float32:
            token_types = weights[at + "token_type_embeddings.weight"].as_fp32()
            positions: Float32 = weights[at + "position_embeddings.weight"].as_fp32() + token_types[0]
            return positions

        expect(weights, at + "word_embeddings.weight", (spec.vocabulary, spec.hidden))
        expect(weights, at + "position_embeddings.weight", (spec.positions, spec.hidden))
        expect(weights, at + "token_type_embeddings.weight", (spec.token_types, spec.hidden))
        read_words = weights[at + "word_embeddings.weight"].as_fp32
        word_table = self.b.weight(at + "words", (spec.vocabulary, spec.hidden), read_words)
        position_table = self.b.weight(at + "positions", (spec.positions, spec.hidden), positions_and_type)
        words = self.b.op("Gather", word_table, "input_ids")  # [B, S, H]
        positions = self.b.op("Gather", position_table, self.position_ids())  # [S, H] or [B, S, H]
        return self.norm(at + "LayerNorm", words, positions)

    def position_ids(self) -> str:
        """BERT counts from 0: [S]. XLM-RoBERTa counts the tokens that are not padding, from pad_id + 1: [B, S]."""
        b, pad_id = self.b, self.spec.pad_id
        if self.spec.family == "bert":
            length = b.op("Squeeze", b.op("Shape", "input_ids", start=1, end=2))
            return b.op("Range", b.constant(0), length, b.constant(1))
        is_padding = b.op("Equal", "input_ids", b.constant(pad_id))
        counted = b.op("Cast", b.op("Not", is_padding), to=TensorProto.INT64)
        up_to_here = b.op("Mul", b.op("CumSum", counted, b.constant(1)), counted)
        return b.op("Add", up_to_here, b.constant(pad_id))

    # --- one layer --------------------------------------------------------------------------------

    def layer(self, at: str, hidden: str) -> str:
        """[B, S, H] -> [B, S, H]."""
        spec = self.spec
        attended = self.attention(at + "attention.self.", hidden)
        projected = self.matmul(at + "attention.output.dense.weight", attended, spec.hidden, spec.hidden)
        hidden = self.norm(at + "attention.output.LayerNorm", projected, hidden, at + "attention.output.dense.bias")
        inner = self.matmul(at + "intermediate.dense.weight", hidden, spec.hidden, spec.feed_forward)  # [B, S, F]
        bias = self.vector(self.weights, at + "intermediate.dense.bias", spec.feed_forward)
        inner = self.b.op("BiasGelu", inner, bias, domain=MICROSOFT)  # with erf
        outer = self.matmul(at + "output.dense.weight", inner, spec.feed_forward, spec.hidden)
        return self.norm(at + "output.LayerNorm", outer, hidden, at + "output.dense.bias")

    def attention(self, at: str, hidden: str) -> str:
        """Self-attention, [B, S, H] -> [B, S, H]; query, key and value come from one product."""
        size, weights, parts = self.spec.hidden, self.weights, ("query", "key", "value")

        def merged_weight() -> Float32:
            return np.concatenate([weights[f"{at}{part}.weight"].as_fp32().T for part in parts], axis=1)

        def merged_bias() -> Float32:
            return np.concatenate([weights[f"{at}{part}.bias"].as_fp32() for part in parts])

        for part in parts:
            expect(weights, f"{at}{part}.weight", (size, size))
            expect(weights, f"{at}{part}.bias", (size,))
        weight = self.b.weight(at + "qkv.weight", (size, 3 * size), merged_weight)
        bias = self.b.weight(at + "qkv.bias", (3 * size,), merged_bias)
        query_key_value = self.b.split(self.b.op("MatMul", hidden, weight), 3)  # 3 of [B, S, H]

        def attend(inner: GraphBuilder, *mask: str) -> str:
            heads = self.spec.attention_heads
            return inner.op("MultiHeadAttention", *query_key_value, bias, *mask, domain=MICROSOFT, num_heads=heads)

        return self.b.choose(self.unpadded, attend, lambda inner: attend(inner, self.mask))

    # --- the three heads --------------------------------------------------------------------------

    def dense(self, hidden: str) -> str:
        """[B, S, H] -> [B, H]: the first token, or the mean over the tokens that are there."""
        b = self.b
        if self.spec.pooling == "cls":
            pooled = b.op("Gather", hidden, b.constant(0), axis=1)
        else:
            mask = b.op("Cast", "attention_mask", to=TensorProto.FLOAT)
            kept = b.op("Mul", hidden, b.op("Unsqueeze", mask, b.constant([-1])))
            total = b.op("ReduceSum", kept, b.constant([1]), keepdims=0)
            pooled = b.op("Div", total, b.op("ReduceSum", mask, b.constant([1]), keepdims=1))
        return b.op("LpNormalization", pooled, axis=-1, p=2) if self.spec.normalize else pooled

    def sparse(self, hidden: str, heads: Weights) -> str:
        """[B, S, H] -> [B, S]: relu(h · w + b)."""
        weight = self.linear(heads, "sparse_linear.weight", self.spec.hidden, 1)
        bias = self.vector(heads, "sparse_linear.bias", 1)

        def wanted(inner: GraphBuilder) -> str:
            weights = inner.op("Relu", inner.op("Add", inner.op("MatMul", hidden, weight), bias))  # [B, S, 1]
            return inner.op("Squeeze", weights, inner.constant([-1]))

        return self.b.choose("want_sparse", wanted, lambda inner: nothing(inner, [0, 0]))

    def colbert(self, hidden: str, heads: Weights) -> str:
        """[B, S, H] -> [B, S - 1, H]: all tokens but the first, projected, unit length, zero where padded."""
        size = self.spec.hidden
        weight = self.linear(heads, "colbert_linear.weight", size, size)
        bias = self.vector(heads, "colbert_linear.bias", size)

        def without_first(inner: GraphBuilder, x: str) -> str:
            return inner.op("Slice", x, inner.constant([1]), inner.constant([TO_THE_END]), inner.constant([1]))

        def wanted(inner: GraphBuilder) -> str:
            projected = inner.op("Add", inner.op("MatMul", without_first(inner, hidden), weight), bias)
            mask = inner.op("Cast", without_first(inner, "attention_mask"), to=TensorProto.FLOAT)
            kept = inner.op("Mul", projected, inner.op("Unsqueeze", mask, inner.constant([-1])))
            return inner.op("LpNormalization", kept, axis=-1, p=2)

        return self.b.choose("want_colbert", wanted, lambda inner: nothing(inner, [0, 0, size]))

    # --- building blocks --------------------------------------------------------------------------

    def norm(self, at: str, x: str, residual: str, bias: str | None = None) -> str:
        """LayerNorm(x + residual + bias)."""
        inputs = [x, residual]
        inputs += [self.vector(self.weights, f"{at}.{part}", self.spec.hidden) for part in ("weight", "bias")]
        if bias is not None:
            inputs.append(self.vector(self.weights, bias, self.spec.hidden))
        return self.b.op("SkipLayerNormalization", *inputs, domain=MICROSOFT, epsilon=self.spec.layer_norm_eps)

    def matmul(self, name: str, x: str, n_in: int, n_out: int) -> str:
        return self.b.op("MatMul", x, self.linear(self.weights, name, n_in, n_out))

    def linear(self, source: Weights, name: str, n_in: int, n_out: int) -> str:
        """A linear layer's weight, [out, in] in the checkpoint and [in, out] in the graph."""
        expect(source, name, (n_out, n_in))
        return self.b.weight(name, (n_in, n_out), lambda: source[name].as_fp32().T)

    def vector(self, source: Weights, name: str, size: int) -> str:
        expect(source, name, (size,))
        return self.b.weight(name, (size,), source[name].as_fp32)


def nothing(b: GraphBuilder, shape: list[int]) -> str:
    return b.op("ConstantOfShape", b.constant(shape))


def expect(weights: Weights, name: str, shape: tuple[int, ...]) -> None:
    """Raises CheckpointDamaged unless the tensor is there and of that shape."""
    if weights[name].shape != shape:
        raise weights.damaged(f"tensor {name!r} has shape {weights[name].shape}, not {shape}")
