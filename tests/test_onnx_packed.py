"""The packed graph: no CPU has kernels for it, so it is held by ONNX Runtime's schemas and by a reference in NumPy."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnxruntime.capi import onnxruntime_pybind11_state as state

from vecferry.conversion.convert import convert_checkpoint
from vecferry.encode.runtime.onnx_packed import MICROSOFT, PackRows, packed_graph
from vecferry.model.artifact import MODEL, Artifact
from vecferry.model.sources import open_source


class RemovePadding(OpRun):
    """As ONNX Runtime documents it: tokens that are there first, then those that are padding, by their places."""

    op_domain = MICROSOFT

    def _run(self, x: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        kept = np.arange(x.shape[1]) < counts[:, None]
        places = np.arange(kept.size).reshape(kept.shape)
        offsets = np.concatenate([places[kept], places[~kept]]).reshape(kept.shape).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return x[kept], offsets, starts, counts.max(keepdims=True).astype(np.int32)


class RestorePadding(OpRun):
    op_domain = MICROSOFT

    def _run(self, x: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray]:
        padded = np.zeros((offsets.size, x.shape[1]), x.dtype)
        padded[offsets.reshape(-1)[: len(x)]] = x
        return (padded.reshape(*offsets.shape, -1),)


class PackedMultiHeadAttention(OpRun):
    op_domain = MICROSOFT

    def _run(self, *inputs: np.ndarray, num_heads: int, **_: Any) -> tuple[np.ndarray]:
        query, key, value, bias, _places, starts = inputs[:6]
        parts = zip((query, key, value), np.split(bias, 3), strict=True)
        q, k, v = ((x + b).reshape(len(x), num_heads, -1).astype(np.float32) for x, b in parts)  # [T, A, D]
        rows = [attended(*(x[first:end] for x in (q, k, v))) for first, end in pairwise(starts)]
        return (np.concatenate(rows).astype(query.dtype),)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = np.einsum("qad,kad->aqk", q, k) / float(np.sqrt(q.shape[2]))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.asarray(np.einsum("aqk,kad->qad", weights, v).reshape(len(q), -1))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def artifact(
    request: pytest.FixtureRequest, short_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder = tmp_path_factory.mktemp("packed") / request.param
    source = open_source(str(short_checkpoint))
    return convert_checkpoint(source, folder, precision=request.param, verified=False).artifact


def feeds(*, heads: bool) -> dict[str, np.ndarray]:
    ids = np.full((3, 9), 1, np.int64)
    for row, length in enumerate((9, 1, 4)):
        ids[row, :length] = np.random.default_rng(row).integers(5, 900, length)
    wanted = {name: np.asarray(heads) for name in ("want_sparse", "want_colbert")}
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64), **wanted}


@pytest.mark.parametrize("heads", [False, True])
def test_the_packed_graph_computes_the_same(artifact: Artifact, *, heads: bool) -> None:
    feed = feeds(heads=heads)
    session = onnxruntime.InferenceSession(str(artifact.path / MODEL), providers=["CPUExecutionProvider"])
    model = PackRows().rewritten(onnx.load(artifact.path / MODEL))
    operators: list[Any] = [RemovePadding, RestorePadding, PackedMultiHeadAttention]
    with np.errstate(invalid="ignore"):  # of padding's zeros, which it divides by their length
        results: Any = ReferenceEvaluator(model, new_ops=operators).run(None, feed)
    dense, sparse, colbert = results
    expected = session.run(None, feed)
    limit = 1e-5 if artifact.manifest.space.precision == "fp32" else 5e-3
    np.testing.assert_allclose(dense, expected[0], atol=limit)
    if heads:
        there = feed["attention_mask"].astype(bool)
        np.testing.assert_allclose(sparse[there], expected[1][there], atol=10 * limit)
        np.testing.assert_allclose(colbert[there[:, 1:]], expected[2][there[:, 1:]], atol=limit)


def test_onnx_runtime_knows_all_of_it_and_lacks_a_kernel_alone(artifact: Artifact) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(artifact.path))
    graph = packed_graph(artifact.path)
    onnx.checker.check_model(PackRows().rewritten(onnx.load(artifact.path / MODEL)))
    with pytest.raises(state.NotImplemented, match=r"(kernel|implementation) for (com\.microsoft\.)?RemovePadding"):
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def test_no_layer_keeps_rows_apart(artifact: Artifact) -> None:
    nodes = onnx.load_from_string(packed_graph(artifact.path)).graph.node
    in_layers = {node.op_type for node in nodes if node.name.startswith("layer.")}
    assert not in_layers & {"Reshape", "Slice", "If"}
    assert [node.op_type for node in nodes].count("PackedMultiHeadAttention") == 2
