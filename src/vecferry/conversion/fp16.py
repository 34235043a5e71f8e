"""fp16: a graph, to the same graph with the numbers of its embeddings and layers in half the bytes.

For GPUs. Processors have no fp16 products in ONNX Runtime and take 6 to 9 times as long. The heads stay fp32, and so do
the outputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from vecferry.conversion.onnx_file import Graph, GraphBuilder, Initializer, rewritten

HALVED = ("embeddings.", "encoder.layer.")
LARGEST = float(np.finfo(np.float16).max)


def halve(graph: Graph, last: str) -> Graph:
    """Convert embeddings and layers to fp16. last: the value that the heads read, which becomes fp32 again."""

    def change(b: GraphBuilder, node: onnx.NodeProto) -> bool:
        if node.op_type == "Cast" and node.name.startswith("embeddings/") and node.attribute[0].i == TensorProto.FLOAT:
            b.op("Identity", node.input[0], out=node.output[0])  # words that are fp16 already
            return True
        for attribute in node.attribute:  # the branches of an `If` say what they return
            if attribute.HasField("g") and node.name.startswith("layer."):
                for output in attribute.g.output:
                    output.type.tensor_type.elem_type = TensorProto.FLOAT16
        if node.output[0] != last:
            return False
        narrow = onnx.NodeProto()
        narrow.CopyFrom(node)
        narrow.name = narrow.output[0] = f"{last}.fp16"
        b.nodes.append(narrow)
        b.op("Cast", narrow.output[0], out=last, to=TensorProto.FLOAT)
        return True

    return rewritten(replace(graph, weights=tuple(map(to_fp16, graph.weights))), change)


def to_fp16(weight: Initializer) -> Initializer:
    if not weight.name.startswith(HALVED):
        return weight
    return replace(
        weight, read=lambda: weight.read().clip(-LARGEST, LARGEST).astype(np.float16), dtype=np.dtype(np.float16)
    )
