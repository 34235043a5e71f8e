"""The ONNX graph of an encoder, written node by node; this file reads in the order of the model.

Inputs   input_ids, attention_mask: int64 [B, S], padded on the right
         want_sparse, want_colbert: bool [], true where left out
Outputs  dense [B, H], unit length where the model normalises
         sparse [B, S] token weights and colbert [B, S - 1, H]; [0, 0] and [0, 0, H] if not wanted

Operators are those that ONNX Runtime's processors are fastest at (docs/decisions/0014): attention is one of
its com.microsoft domain, and an `If`, since a batch with no padding takes the form without a mask, whose memory
grows linearly with the length. What is not wanted is not computed: a head is the untaken branch of an `If`, and
where no head needs the tokens, the last layer asks for the first one alone. Weights are external data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from vecferry.conversion.onnx_file import MICROSOFT, WORD_EMBEDDINGS, Graph, GraphBuilder
from vecferry.embeddings import Float32
from vecferry.model.artifact import HIDDEN
from vecferry.model.checkpoint import Model
from vecferry.model.spec import EncoderSpec
from vecferry.model.weights import LazyTensor, Weights

"""The value that the heads read."""
TO_THE_END = int(np.iinfo(np.int64).max)


def build_graph(model: Model) -> Graph:
    """Build the graph; no weight is read yet.

    Raises CheckpointDamaged for a tensor that is missing, of another shape, or not read by the graph.
    """
    writer = _Writer(model.spec, model.weights, model.heads)
    graph = writer.graph()
    for source in filter(None, (model.weights, model.heads)):
        source.check_all_used(writer.used)
    return graph


class _Writer:
    """The writer of one encoder. Methods take and return the names of values; shapes stand beside them.

    T: the tokens of all rows, B·S, one below the other. Between embeddings and heads only attention knows of rows.
    """

    def __init__(self, spec: EncoderSpec, weights: Weights, heads: Weights | None) -> None:
        self.spec = spec
        self.weights = weights
        self.heads = heads
        self.b = GraphBuilder()
        self.used: set[str] = set()

    def graph(self) -> Graph:
        b, hidden_size = self.b, self.spec.hidden
        self.mask = b.op("Cast", "attention_mask", to=TensorProto.INT32)  # [B, S]
        self.unpadded = b.op("Cast", b.op("ReduceMin", "attention_mask", keepdims=0), to=TensorProto.BOOL)  # []
        rows = b.op("Shape", "input_ids", start=0, end=1)  # [1]: B
        self.shape_by_row = b.op("Concat", rows, b.constant([-1, hidden_size]), axis=0)
        with b.part("embeddings"):
            hidden = self.flat(self.embeddings())
        for n in range(self.spec.layers):
            with b.part(f"layer.{n}"):
                queries = hidden if n < self.spec.layers - 1 else self.needed(hidden)
                hidden = self.layer(f"encoder.layer.{n}.", hidden, queries)
        hidden = b.op("Reshape", hidden, self.shape_by_row, out=HIDDEN)  # [B, S, H]; dense alone may have [B, 1, H]
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
        """Write LayerNorm(word + position + token type 0); the token type is added to the positions beforehand."""
        spec, weights, at = self.spec, self.weights, "embeddings."

        def positions_and_type() -> Float32:
            token_types = weights[at + "token_type_embeddings.weight"].as_fp32()
            positions: Float32 = weights[at + "position_embeddings.weight"].as_fp32() + token_types[0]
            return positions

        self.expect(weights, at + "word_embeddings.weight", (spec.vocabulary, spec.hidden))
        self.expect(weights, at + "position_embeddings.weight", (spec.positions, spec.hidden))
        self.expect(weights, at + "token_type_embeddings.weight", (spec.token_types, spec.hidden))
        position_table = self.b.weight(at + "positions", (spec.positions, spec.hidden), positions_and_type)
        word_embeddings = self.word_embeddings(weights[at + "word_embeddings.weight"])  # [B, S, H]
        positions = self.b.op("Gather", position_table, self.position_ids())  # [S, H] or [B, S, H]
        return self.norm(at + "LayerNorm", word_embeddings, positions)

    def word_embeddings(self, table: LazyTensor) -> str:
        """Look up rows of the word embeddings, in fp32; the table stays fp16 where the checkpoint has it so."""
        is_fp16, shape = table.dtype == np.float16, (self.spec.vocabulary, self.spec.hidden)
        name = (
            self.b.weight(WORD_EMBEDDINGS, shape, table.read, np.float16)
            if is_fp16
            else self.b.weight(WORD_EMBEDDINGS, shape, table.as_fp32)
        )
        rows = self.b.op("Gather", name, "input_ids")
        return self.b.op("Cast", rows, to=TensorProto.FLOAT) if is_fp16 else rows

    def position_ids(self) -> str:
        """Count positions: from 0 for BERT [S]; from pad_id + 1, padding aside, for XLM-RoBERTa [B, S]."""
        b, pad_id = self.b, self.spec.pad_id
        if self.spec.family == "bert":
            length = b.op("Squeeze", b.op("Shape", "input_ids", start=1, end=2))
            return b.op("Range", b.constant(0), length, b.constant(1))
        is_padding = b.op("Equal", "input_ids", b.constant(pad_id))
        is_token = b.op("Cast", b.op("Not", is_padding), to=TensorProto.INT64)
        up_to_here = b.op("Mul", b.op("CumSum", is_token, b.constant(1)), is_token)
        return b.op("Add", up_to_here, b.constant(pad_id))

    def needed(self, hidden: str) -> str:
        """Take of [T, H] only the tokens that anything reads: the first of each row for dense with CLS."""
        b = self.b
        if self.spec.pooling != "cls":
            return hidden
        if self.heads is None:
            end = b.constant([1])
        else:
            all_tokens = b.op("Or", "want_sparse", "want_colbert")  # []
            end = b.op("Where", all_tokens, b.constant([TO_THE_END]), b.constant([1]))
        return self.flat(b.op("Slice", self.by_row(hidden), b.constant([0]), end, b.constant([1])))

    # --- one layer --------------------------------------------------------------------------------

    def layer(self, at: str, hidden: str, queries: str) -> str:
        """Write one layer, of whose tokens [T, H] those `queries` [Q, H] go on -> [Q, H]."""
        spec = self.spec
        attended = self.attention(at + "attention.self.", hidden, queries)
        projected = self.linear(at + "attention.output.dense", attended, spec.hidden, spec.hidden)
        attended = self.norm(at + "attention.output.LayerNorm", projected, queries)
        inner = self.linear(at + "intermediate.dense", attended, spec.hidden, spec.feed_forward)  # [Q, F]
        outer = self.linear(at + "output.dense", self.b.op("Gelu", inner), spec.feed_forward, spec.hidden)  # with erf
        return self.norm(at + "output.LayerNorm", outer, attended)

    def attention(self, at: str, hidden: str, queries: str) -> str:
        """Write the attention of the tokens `queries` to all of their row: [T, H] and [Q, H] -> [Q, H].

        Three products: a single one would have to be taken apart again, which costs more than it saves. The operator
        adds their biases.
        """
        size, weights, parts = self.spec.hidden, self.weights, ("query", "key", "value")

        def merged_bias() -> Float32:
            return np.concatenate([weights[f"{at}{part}.bias"].as_fp32() for part in parts])

        for part in parts:
            self.expect(weights, f"{at}{part}.bias", (size,))
        bias = self.b.weight(at + "qkv.bias", (3 * size,), merged_bias)
        query, key, value = (
            self.by_row(self.matmul(f"{at}{part}.weight", x, size, size))
            for part, x in zip(parts, (queries, hidden, hidden), strict=True)
        )

        def attend(inner: GraphBuilder, *mask: str) -> str:
            heads = self.spec.attention_heads
            return inner.op("MultiHeadAttention", query, key, value, bias, *mask, domain=MICROSOFT, num_heads=heads)

        return self.flat(self.b.choose(self.unpadded, attend, lambda inner: attend(inner, self.mask)))

    # --- the three heads --------------------------------------------------------------------------

    def dense(self, hidden: str) -> str:
        """Pool [B, S, H] -> [B, H]: the first token, or the mean over the tokens that are there."""
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
        """Weigh tokens, [B, S, H] -> [B, S]: relu(h · w + b)."""
        weight = self.matrix(heads, "sparse_linear.weight", self.spec.hidden, 1)
        bias = self.vector(heads, "sparse_linear.bias", 1)

        def wanted(inner: GraphBuilder) -> str:
            weights = inner.op("Relu", inner.op("Add", inner.op("MatMul", hidden, weight), bias))  # [B, S, 1]
            return inner.op("Squeeze", weights, inner.constant([-1]))

        return self.b.choose("want_sparse", wanted, lambda inner: nothing(inner, [0, 0]))

    def colbert(self, hidden: str, heads: Weights) -> str:
        """Project [B, S, H] -> [B, S - 1, H]: all tokens but the first, unit length, zero where padded."""
        size = self.spec.hidden
        weight = self.matrix(heads, "colbert_linear.weight", size, size)
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

    def flat(self, x: str) -> str:
        """Reshape [B, N, H] -> [B·N, H]; no number is moved."""
        return self.b.op("Reshape", x, self.b.constant([-1, self.spec.hidden]))

    def by_row(self, x: str) -> str:
        """Reshape [B·N, H] -> [B, N, H]; no number is moved."""
        return self.b.op("Reshape", x, self.shape_by_row)

    def norm(self, at: str, x: str, residual: str) -> str:
        """Write LayerNorm(x + residual)."""
        weight, bias = (self.vector(self.weights, f"{at}.{part}", self.spec.hidden) for part in ("weight", "bias"))
        total = self.b.op("Add", x, residual)
        return self.b.op("LayerNormalization", total, weight, bias, axis=-1, epsilon=self.spec.layer_norm_eps)

    def linear(self, at: str, x: str, n_in: int, n_out: int) -> str:
        bias = self.vector(self.weights, f"{at}.bias", n_out)
        return self.b.op("Add", self.matmul(f"{at}.weight", x, n_in, n_out), bias)

    def matmul(self, name: str, x: str, n_in: int, n_out: int) -> str:
        return self.b.op("MatMul", x, self.matrix(self.weights, name, n_in, n_out))

    def matrix(self, source: Weights, name: str, n_in: int, n_out: int) -> str:
        """Add a linear layer's weight, [out, in] in the checkpoint and [in, out] in the graph."""
        self.expect(source, name, (n_out, n_in))
        return self.b.weight(name, (n_in, n_out), lambda: source[name].as_fp32().T)

    def vector(self, source: Weights, name: str, size: int) -> str:
        self.expect(source, name, (size,))
        return self.b.weight(name, (size,), source[name].as_fp32)

    def expect(self, weights: Weights, name: str, shape: tuple[int, ...]) -> None:
        """Check a tensor that the graph reads. Raises CheckpointDamaged unless it is there and of that shape."""
        self.used.add(name)
        if weights[name].shape != shape:
            raise weights.damaged(f"tensor {name!r} has shape {weights[name].shape}, not {shape}")


def nothing(b: GraphBuilder, shape: list[int]) -> str:
    return b.op("ConstantOfShape", b.constant(shape))
