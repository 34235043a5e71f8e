"""int8: a graph, and what its activations look like, to a graph whose products are of 8-bit numbers.

The recipe, as passes over a `Graph`, in their order:

    smooth_values      the channels of attention's result even out, folded into the value's weights (Xiao et al. 2023,
                       "SmoothQuant", equation 4)
    smooth_inputs      the channels of the other products' inputs even out: x / s before the product, s · W in it
    quantize_products  x by token as it comes, uint8 around 128, GELU's around 64. W by output channel, int8
    quantize_words     the word embeddings by row, int8

The AVX2 kernel adds the products of two neighbours in 16 bits, and saturates. A channel's scale is the smallest with
which no two of its weights can bring that about, so that one model is right on every processor, with the same numbers.
Biases, norms, GELU, attention, pooling and heads stay fp32. What else was tried: docs/decisions/0015.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vecferry.conversion.onnx_file import MICROSOFT, WORD_EMBEDDINGS, Graph, GraphBuilder, Initializer, rewritten
from vecferry.embeddings import Float32

Ranges = Mapping[str, Float32]
"""Name of a product's weight -> [K], the largest absolute value of each channel of its input."""

RECIPE = "int8-1"
"""Part of the fingerprint: raised with any change that changes a vector."""
SMOOTHING = 0.5
"""How much of the activations' unevenness the weights take over: α of equation 4."""
LEVELS = 127
LOWEST, HIGHEST = 1, 255
ZERO_POINT, ZERO_POINT_OF_GELU = 128, 64
"""GELU's values are above -0.17, and most of the range is for those above 0."""
PAIR_LEVELS = 127
"""255 · (127 + 1) is below 2 ** 15; the 1 is what two roundings can add."""
TINY = float(np.finfo(np.float32).tiny)
PRODUCTS = "encoder.layer."
RANGE = ".range"
OF_ATTENTION = "attention.output.dense.weight"


def quantize(graph: Graph, ranges: Ranges) -> Graph:
    """Convert an fp32 graph to int8. ranges: of every product in its layers, as `probed` reports them."""
    graph = smooth_values(graph, ranges)
    graph = smooth_inputs(graph, ranges)
    graph = quantize_products(graph)
    return quantize_words(graph)


def probed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the ranges of its products' inputs as outputs, named by their weights."""
    probing = onnx.ModelProto()
    probing.CopyFrom(model)
    for node in filter(is_product, model.graph.node):
        value, weight = node.input
        absolute = f"{node.name}/absolute"
        name = weight + RANGE
        probing.graph.node.append(helper.make_node("Abs", [value], [absolute], absolute))
        probing.graph.node.append(helper.make_node("ReduceMax", [absolute, "tokens"], [name], name, keepdims=0))
        probing.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["channels"]))
    probing.graph.initializer.append(helper.make_tensor("tokens", TensorProto.INT64, [1], [0]))
    return probing


def range_of(output: str) -> str | None:
    """Return the weight whose input's range this output of a probed model is; None for the model's own."""
    return output.removesuffix(RANGE) if output.endswith(RANGE) else None


def is_product(node: onnx.NodeProto) -> bool:
    """Return whether a node multiplies activations [T, K] by a layer's weight [K, N]."""
    return bool(node.op_type == "MatMul" and node.input[1].startswith(PRODUCTS))


# --- smoothing ------------------------------------------------------------------------------------


def smooth_values(graph: Graph, ranges: Ranges) -> Graph:
    """Smooth attention's result, by channel a mean of values: V / s makes it result / s, and its weight s · W."""
    weights = {weight.name: weight for weight in graph.weights}
    for name in [name for name in weights if name.endswith(OF_ATTENTION)]:
        at = name.removesuffix("output.dense.weight") + "self."
        factors = smoothing_factors(ranges[name], [weights[name]])
        untouched = np.ones(2 * len(factors), np.float32)  # the biases of query and key
        by: dict[str, Float32] = {
            name: factors[:, None],
            at + "value.weight": np.reciprocal(factors),
            at + "qkv.bias": np.concatenate([untouched, np.reciprocal(factors)]),
        }
        weights |= {changed: times(weights[changed], shares) for changed, shares in by.items()}
    return replace(graph, weights=tuple(weights.values()))


def smooth_inputs(graph: Graph, ranges: Ranges) -> Graph:
    """Smooth the inputs of products; those of one input share its factors."""
    weights = {weight.name: weight for weight in graph.weights}
    readers: dict[str, list[str]] = {}
    for node in filter(is_product, graph.model.graph.node):
        if not node.input[1].endswith(OF_ATTENTION):  # smoothed by its values
            readers.setdefault(node.input[0], []).append(node.input[1])
    factors = {
        value: smoothing_factors(np.max([ranges[name] for name in names], axis=0), [weights[name] for name in names])
        for value, names in readers.items()
    }
    for value, names in readers.items():
        weights |= {name: times(weights[name], factors[value][:, None]) for name in names}
    smoothed: dict[str, str] = {}

    def change(b: GraphBuilder, node: onnx.NodeProto) -> bool:
        if not is_product(node) or node.input[0] not in readers:
            return False
        value, weight = node.input
        if value not in smoothed:
            by = 1 / factors[value]
            smoothed[value] = b.op("Mul", value, b.weight(f"{weight}.smoothing", by.shape, lambda: by))
        b.op("MatMul", smoothed[value], weight, out=node.output[0])
        return True

    return rewritten(replace(graph, weights=tuple(weights.values())), change)


def smoothing_factors(value_range: Float32, weights: list[Initializer]) -> Float32:
    """Return [K]: max|x| ** α / max|W| ** (1 - α) of each channel; 1 for one that is always 0."""
    weight_range = np.max([np.abs(weight.read()).max(axis=1) for weight in weights], axis=0)
    factors = np.maximum(value_range, TINY) ** SMOOTHING / np.maximum(weight_range, TINY) ** (1 - SMOOTHING)
    nonzero = (value_range > 0) & (weight_range > 0)
    return np.where(nonzero, factors, 1).astype(np.float32)


def times(weight: Initializer, factors: Float32) -> Initializer:
    return replace(weight, read=lambda: (weight.read() * factors).astype(np.float32))


# --- quantizing -----------------------------------------------------------------------------------


def quantize_products(graph: Graph) -> Graph:
    """Quantize the products; those of one input share its quantized form."""
    weights = {weight.name: weight for weight in graph.weights}
    rows: dict[str, tuple[str, str]] = {}

    def change(b: GraphBuilder, node: onnx.NodeProto) -> bool:
        if not is_product(node):
            return False
        value, weight = node.input
        if value not in rows:
            rows[value] = quantized_rows(b, value, zero_point_of(weight))
        quantized, scale = rows[value]
        matrix, scales = quantized_columns(b, weights[weight])
        inputs = (quantized, matrix, b.scalar(1, np.float32), scales, b.scalar(zero_point_of(weight), np.uint8))
        product = b.op("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)
        b.op("Mul", product, scale, out=node.output[0])
        return True

    return rewritten(graph, change)


def zero_point_of(weight: str) -> int:
    """Return the zero point of the input of the product with that weight."""
    of_gelu = weight.endswith(".output.dense.weight") and not weight.endswith(OF_ATTENTION)
    return ZERO_POINT_OF_GELU if of_gelu else ZERO_POINT


def quantized_rows(b: GraphBuilder, value: str, zero_point: int) -> tuple[str, str]:
    """Quantize fp32 [T, K] to uint8 [T, K] around the zero point; with the scale of each row, fp32 [T, 1]."""
    last = b.constant([-1])
    highest, lowest = (b.op(op, value, last, keepdims=0) for op in ("ReduceMax", "ReduceMin"))  # [T]
    above = b.op("Mul", highest, b.scalar(1 / (HIGHEST - zero_point), np.float32))
    below = b.op("Mul", lowest, b.scalar(-1 / (zero_point - LOWEST), np.float32))
    scale = b.op("Max", above, below, b.scalar(TINY, np.float32))
    zero_points = b.op("Expand", b.scalar(zero_point, np.uint8), b.op("Shape", scale))
    quantized = b.op("QuantizeLinear", value, scale, zero_points, axis=0)
    return quantized, b.op("Unsqueeze", scale, last)


def quantized_columns(b: GraphBuilder, weight: Initializer) -> tuple[str, str]:
    """Quantize fp32 [K, N] to int8 [K, N]; with the scale of each column, fp32 [N]."""

    def scales() -> Float32:
        return column_scales(weight.read())

    def matrix() -> NDArray[np.int8]:
        array = weight.read()
        return rounded(array, column_scales(array))

    return (
        b.weight(f"{weight.name}.int8", weight.shape, matrix, np.int8),
        b.weight(f"{weight.name}.scales", weight.shape[1:], scales),
    )


def column_scales(array: Float32) -> Float32:
    """Return [N] of [K, N]: no number over `LEVELS` scales, no two neighbours of one sign over `PAIR_LEVELS`."""
    first, second = array[0:-1:2], array[1::2]
    pairs = np.where((first > 0) == (second > 0), np.abs(first + second), 0)  # of one sign; others take from each other
    of_pairs = np.asarray(pairs.max(axis=0, initial=0) / PAIR_LEVELS, np.float32)
    return np.asarray(np.maximum(scales_of(array, LEVELS, axis=0), of_pairs))


def quantize_words(graph: Graph) -> Graph:
    """Look up a row of int8 and its scale instead of a row of fp32."""
    word_embeddings = next(weight for weight in graph.weights if weight.name == WORD_EMBEDDINGS)
    count = word_embeddings.shape[0]

    def change(b: GraphBuilder, node: onnx.NodeProto) -> bool:
        if WORD_EMBEDDINGS not in node.input:
            return False

        def scales() -> Float32:
            return scales_of(word_embeddings.read().astype(np.float32), LEVELS, axis=1)[:, None]

        def rows() -> NDArray[np.int8]:
            array = word_embeddings.read().astype(np.float32)
            return rounded(array, scales_of(array, LEVELS, axis=1)[:, None])

        ids = node.input[1]
        row = b.op(
            "Gather", b.weight(f"{WORD_EMBEDDINGS}.int8", word_embeddings.shape, rows, np.int8), ids
        )  # [B, S, H]
        scale = b.op("Gather", b.weight(f"{WORD_EMBEDDINGS}.scales", (count, 1), scales), ids)  # [B, S, 1]
        b.op("Mul", b.op("Cast", row, to=TensorProto.FLOAT), scale, out=node.output[0])
        return True

    return rewritten(graph, change)


def scales_of(array: Float32, levels: int, axis: int) -> Float32:
    """Return what one step of `levels` is worth, along the axis; above 0 also where all is 0."""
    largest = np.maximum(array.max(axis=axis), -array.min(axis=axis))
    return np.asarray(np.maximum(largest / levels, TINY), np.float32)


def rounded(array: Float32, scales: Float32) -> NDArray[np.int8]:
    """Round to steps of `scales`, which broadcast."""
    return np.asarray(np.rint(array / scales), np.int8)
