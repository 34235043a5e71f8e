"""An artifact's graph for a GPU: between embeddings and heads without padding, by ONNX Runtime's operators for that.

Kernels of its com.microsoft `RemovePadding`, `PackedMultiHeadAttention` and `RestorePadding` are for CUDA alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from vecferry.model.artifact import HIDDEN, MODEL

MICROSOFT = "com.microsoft"
OFFSETS, STARTS = "packed.token_offset", "packed.cumulative_sequence_length"


class PackRows:
    """Rewrite a graph as `conversion.graph` writes it, in fp32 or fp16.

    1. The `Reshape` after the embeddings, [B, S, H] -> [B·S, H], becomes `RemovePadding` -> [T, H], T: tokens that
       are no padding.
    2. In the layers every `Reshape` and `Slice` goes: rows stay packed, and the last layer computes all tokens,
       since packed attention has as many queries as keys.
    3. Each `If` between attention with a mask and without becomes one `PackedMultiHeadAttention`, [T, H] -> [T, H].
    4. The `Reshape` before the heads becomes `RestorePadding` -> [B, S, H]; padding is zero there, and masked.
    """

    def __init__(self) -> None:
        self._packed = dict[str, str]()
        """What is read instead of a value that has gone."""

    def rewritten(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return another model; its weights stay where they are."""
        nodes = [new for node in model.graph.node for new in self._changed(node)]
        kinds = {node.op_type for node in nodes}
        assert {"RemovePadding", "PackedMultiHeadAttention", "RestorePadding"} <= kinds, "the graph is none of ours"
        rewritten = onnx.ModelProto()
        rewritten.CopyFrom(model)
        del rewritten.graph.node[:]
        rewritten.graph.node.extend(_needed(nodes, {output.name for output in model.graph.output}))
        return rewritten

    def _changed(self, node: NodeProto) -> Iterator[NodeProto]:
        in_layer = node.name.startswith("layer.")
        if node.op_type == "Reshape" and node.name.startswith("embeddings/"):
            yield from _padding_removed(node.input[0], node.output[0])
        elif in_layer and node.op_type in ("Reshape", "Slice"):
            self._packed[node.output[0]] = self._read(node.input[0])
        elif in_layer and node.op_type == "If":
            yield self._attention(node)
        elif node.op_type == "Reshape" and node.output[0].startswith(HIDDEN):
            inputs = [self._read(node.input[0]), OFFSETS]
            yield helper.make_node("RestorePadding", inputs, list(node.output), node.name, domain=MICROSOFT)
        else:
            for at, name in enumerate(node.input):
                node.input[at] = self._read(name)
            yield node

    def _attention(self, choice: NodeProto) -> NodeProto:
        inner = (node for attribute in choice.attribute for node in attribute.g.node)
        attention = next(node for node in inner if node.op_type == "MultiHeadAttention")
        query, key, value, bias = (self._read(name) for name in attention.input[:4])
        return helper.make_node(
            "PackedMultiHeadAttention",
            [query, key, value, bias, OFFSETS, STARTS],
            list(choice.output),
            choice.name,
            domain=MICROSOFT,
            num_heads=next(attribute.i for attribute in attention.attribute if attribute.name == "num_heads"),
        )

    def _read(self, name: str) -> str:
        return self._packed.get(name, name)


def _padding_removed(embedded: str, packed: str) -> Iterator[NodeProto]:
    yield helper.make_node("Constant", [], ["packed.axis"], value_ints=[1])
    yield helper.make_node("ReduceSum", ["attention_mask", "packed.axis"], ["packed.sum"], keepdims=0)
    yield helper.make_node("Cast", ["packed.sum"], ["packed.counts"], to=TensorProto.INT32)
    outputs = [packed, OFFSETS, STARTS, "packed.max_seq_len"]
    yield helper.make_node("RemovePadding", [embedded, "packed.counts"], outputs, domain=MICROSOFT)


def packed_graph(folder: Path) -> bytes:
    """Return the packed form of an artifact's graph; its weights lie in the folder."""
    model = onnx.load(folder / MODEL, load_external_data=False)
    return bytes(PackRows().rewritten(model).SerializeToString())


def _needed(nodes: list[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """Return those of which something is read."""
    kept = list[NodeProto]()
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted = wanted | _read_by(node)
            kept.append(node)
    return kept[::-1]


def _read_by(node: NodeProto) -> set[str]:
    """Return what a node reads, its branches included."""
    inner = (each for attribute in node.attribute if attribute.HasField("g") for each in attribute.g.node)
    return set(node.input).union(*(_read_by(each) for each in inner))
