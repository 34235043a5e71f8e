"""int8 and fp16: the passes by themselves, what they keep, and what happens where they keep too little."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.avx2 import environment
from vecferry.conversion import int8 as quantize
from vecferry.conversion import precision
from vecferry.conversion.calibration import calibration_texts, comparison_texts
from vecferry.conversion.convert import convert_checkpoint, verify_artifact
from vecferry.conversion.fp16 import halve
from vecferry.conversion.graph import build_graph
from vecferry.conversion.onnx_file import Graph, Initializer, write_graph
from vecferry.conversion.precision import calibrated
from vecferry.conversion.verify import differences
from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.encode.runtime.torch import TorchRuntime
from vecferry.errors import ArtifactDamaged, PrecisionRefused, RuntimeUnavailable
from vecferry.evaluate.values import Interval
from vecferry.model.artifact import DATA, HIDDEN, MANIFEST, MODEL, Artifact, Override
from vecferry.model.checkpoint import read_model
from vecferry.model.sources import open_source
from vecferry.precisions import Form, Pairing

BATCH = TokenBatch.from_lists([[0, *range(10, 60), 2], [0, 40, 2], [0, *range(900, 1030), 2], [0, 2]])


@pytest.fixture(scope="module")
def graph(tiny_checkpoint: Path) -> Graph:
    return build_graph(read_model(tiny_checkpoint))


@pytest.fixture(scope="module")
def baseline(tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return a copy of `tiny_artifact` that may be written to."""
    folder = tmp_path_factory.mktemp("twin")
    for file in tiny_artifact.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return Artifact(folder, tiny_artifact.manifest)


@pytest.fixture(scope="module")
def ranges(baseline: Artifact) -> quantize.Ranges:
    return calibrated(baseline)


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("int8") / "tiny"
    return convert_checkpoint(open_source(str(tiny_checkpoint)), folder, precision="int8").artifact


class Judged:
    """One question on two passages, whose nDCG@10 is 0.6 for the scores that came first, those of fp32."""

    passage_texts = ("a ferry to the islands", "a bridge over the river")
    question_texts = ("how do I reach the islands?",)

    def __init__(self, loss: float) -> None:
        self._loss, self._first = loss, np.empty(0)

    def ndcg_at_10(self, scores: np.ndarray) -> np.ndarray:
        self._first = self._first if self._first.size else scores
        return np.array([0.6 if np.array_equal(scores, self._first) else 0.6 - self._loss])

    def interval(self, values: np.ndarray) -> Interval:
        return Interval(float(values.mean()), float(values.min()), float(values.max()))


def run(graph: Graph, of: Artifact, folder: Path) -> Embeddings:
    write_graph(graph, folder)
    return OnnxRuntime(Artifact(folder, of.manifest)).run(BATCH, Outputs.ALL)


def of_zeros(weight: Initializer) -> Initializer:
    return replace(weight, read=lambda: np.zeros(weight.shape, np.float32))


def cosines(a: Embeddings, b: Embeddings) -> np.ndarray:
    return np.asarray(np.einsum("nd,nd->n", a.dense, b.dense))


# --- the passes -----------------------------------------------------------------------------------


def test_ranges_are_the_largest_values_of_each_products_input(baseline: Artifact, ranges: quantize.Ranges) -> None:
    products = [node.input[1] for node in onnx.load(baseline.path / MODEL, load_external_data=False).graph.node
                if quantize.is_product(node)]  # fmt: skip
    assert sorted(ranges) == sorted(products)
    assert len(products) == 6 * 2
    assert ranges["encoder.layer.0.output.dense.weight"].shape == (128,)
    assert all((value > 0).all() for value in ranges.values())
    assert not list(baseline.path.glob("probe*"))


def test_smoothing_alone_changes_nothing(
    graph: Graph, baseline: Artifact, ranges: quantize.Ranges, tmp_path: Path
) -> None:
    smooth = quantize.smooth_inputs(quantize.smooth_values(graph, ranges), ranges)
    assert len(smooth.model.graph.node) > len(graph.model.graph.node)
    results = run(smooth, baseline, tmp_path)
    for output, worst in differences(results, OnnxRuntime(baseline).run(BATCH, Outputs.ALL)).items():
        assert worst < 1e-5, output


def test_smoothing_makes_channels_even(graph: Graph, ranges: quantize.Ranges) -> None:
    name = "encoder.layer.1.output.dense.weight"
    uneven = ranges[name] * np.where(np.arange(128) == 7, 1000, 1).astype(np.float32)
    weight = next(weight for weight in graph.weights if weight.name == name)
    factors = quantize.smoothing_factors(uneven, [weight])
    assert uneven.max() / np.median(uneven) > 500
    assert (uneven / factors).max() / np.median(uneven / factors) < 50


@given(
    array=arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(-8, 8, width=32)),
    of_one_sign=st.sampled_from([np.abs, np.negative, np.positive]),
)
def test_no_two_neighbours_can_saturate_sixteen_bits(array: np.ndarray, of_one_sign: np.ufunc) -> None:
    array = of_one_sign(array)
    matrix = quantize.rounded(array, quantize.column_scales(array)).astype(np.int64)
    assert np.abs(matrix).max() <= 127
    if len(array) % 2:
        matrix = np.vstack([matrix, np.zeros_like(matrix[:1])])
    first, second = matrix[0::2], matrix[1::2]
    highest, lowest = (np.where((first > 0) == up, first, 0) + np.where((second > 0) == up, second, 0) for up in (1, 0))
    assert (255 * highest).max(initial=0) < 2**15
    assert (255 * lowest).min(initial=0) >= -(2**15)


def test_a_column_of_few_large_numbers_keeps_all_eight_bits() -> None:
    array = np.array([[1.0], [0.0], [0.2], [0.1]], np.float32)
    assert quantize.rounded(array, quantize.column_scales(array))[0, 0] == 127


def test_a_token_of_zeros_is_a_row_of_zero_points_and_no_number_is_lost(
    graph: Graph, baseline: Artifact, ranges: quantize.Ranges, tmp_path: Path
) -> None:
    zeros = replace(
        graph,
        weights=tuple(of_zeros(w) if w.name.startswith("embeddings.") else w for w in graph.weights),
    )
    assert np.isfinite(run(quantize.quantize(zeros, ranges), baseline, tmp_path).dense).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_words_keep_seven_bits_of_their_rows(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((7, 33)).astype(np.float32)
    scales = quantize.scales_of(rows, quantize.LEVELS, axis=1)[:, None]
    assert np.abs(quantize.rounded(rows, scales) * scales - rows).max() <= 0.5001 * scales.max()


def test_words_that_are_fp16_stay_so_and_every_form_reads_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "halved")
    tensors = torch.load(tmp_path / "halved" / "pytorch_model.bin")
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "halved" / "pytorch_model.bin")
    model, results = read_model(tmp_path / "halved"), {}
    for name in ("fp32", "int8", "fp16"):
        source = open_source(str(tmp_path / "halved"))
        done = convert_checkpoint(source, tmp_path / name, precision=name, verified=False)
        results[name] = OnnxRuntime(done.artifact).run(BATCH, Outputs.ALL)
        tables = [w for w in onnx.load(tmp_path / name / MODEL, load_external_data=False).graph.initializer
                 if w.name.startswith("embeddings.words")]  # fmt: skip
        assert tables[0].data_type == (onnx.TensorProto.INT8 if name == "int8" else onnx.TensorProto.FLOAT16)
    assert max(differences(results["fp32"], TorchRuntime(model).run(BATCH, Outputs.ALL)).values()) < 1e-4
    assert min(cosines(results["fp32"], results[name]).min() for name in ("int8", "fp16")) > 0.995


PRODUCT = """
import sys
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper

weights = np.load(sys.argv[1])
given = {"w": weights, "one": np.float32(1), "scales": np.ones(weights.shape[1], np.float32), "zero": np.uint8(128)}
node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "scales", "zero"], ["y"], domain="com.microsoft")
graph = helper.make_graph(
    [node], "g",
    [helper.make_tensor_value_info("x", TensorProto.UINT8, ["m", len(weights)])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
)
domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=domains, ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = np.array([[255], [1], [129]], np.uint8).repeat(len(weights), 1)
expected = (x.astype(np.int64) - 128) @ weights.astype(np.int64)
print(int(np.abs(session.run(None, {"x": x})[0] - expected).max()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("objdump")), reason="needs gcc and objdump")
def test_on_avx2_the_scales_of_columns_leave_nothing_to_saturate(tmp_path: Path) -> None:
    """Without them it does: this processor runs as if it had nothing newer."""
    variables = environment(tmp_path / "avx2")

    def error(weights: np.ndarray) -> int:
        np.save(tmp_path / "weights.npy", weights)
        command = [sys.executable, "-c", PRODUCT, str(tmp_path / "weights.npy")]
        return int(subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout)

    worst = np.ones((1024, 32), np.float32)  # every pair is of one sign and as large as can be
    random = np.random.default_rng(0).standard_normal((1024, 32)).astype(np.float32)
    for weights in (worst, random):
        assert error(quantize.rounded(weights, quantize.column_scales(weights))) == 0
    assert error(np.full((1024, 32), 127, np.int8)) > 0


# --- what they keep -------------------------------------------------------------------------------


def test_int8_is_near_fp32_and_a_quarter_of_it(int8: Artifact, baseline: Artifact) -> None:
    ours, theirs = (OnnxRuntime(form).run(BATCH, Outputs.ALL) for form in (int8, baseline))
    assert 0.995 < cosines(ours, theirs).min() < 1 - 1e-7  # and it is not fp32
    sizes = [(form.path / DATA).stat().st_size - 8194 * 64 * 4 for form in (int8, baseline)]  # positions stay fp32
    assert sizes[0] < 0.4 * sizes[1]
    assert int8.manifest.space.precision == "int8"
    assert int8.manifest.space.recipe == quantize.RECIPE
    assert int8.fingerprint == baseline.fingerprint
    assert int8.manifest.space.key != baseline.manifest.space.key


def test_an_int8_text_is_the_same_alone_and_in_a_batch(int8: Artifact) -> None:
    runtime = OnnxRuntime(int8)
    together = runtime.run(BATCH, Outputs.ALL)
    alone = Embeddings.concat([runtime.run(BATCH.take(np.array([row])), Outputs.ALL) for row in range(len(BATCH))])
    assert max(differences(together, alone).values()) < 1e-3


def test_its_report_holds_both_forms_and_its_manifest_the_losses(int8: Artifact) -> None:
    losses = int8.manifest.evidence["losses"]  # type: ignore[index]
    assert {"dense: 1 - cosine with fp32 at worst", "colbert: 1 - cosine with fp32 by token on average"} <= set(losses)
    assert Artifact.open(int8.path).manifest == int8.manifest
    report = verify_artifact(int8)
    assert report.failed == []
    assert any(check.name.startswith("sparse: 1 - cosine") and check.value for check in report.checks)


def test_the_manifest_has_the_pairings_of_each_head_and_the_verdict_that_follows(int8: Artifact) -> None:
    manifest = int8.manifest
    assert manifest.evidence is not None
    measured = [Pairing(**each) for each in manifest.evidence["pairings"]]
    names = ("fp32", quantize.RECIPE)
    assert [(each.head, each.queries, each.passages) for each in measured] == [
        (head, *pair) for head in ("dense", "sparse", "colbert") for pair in product(names, names)
    ]
    assert {each.smallest_cosine == 1 for each in measured if each.queries == each.passages == "fp32"} == {True}
    assert all(0.5 < each.smallest_cosine < each.mean_cosine < 1 for each in measured if each.queries != each.passages)
    assert {each.ndcg for each in measured} == {None}
    assert manifest.space.verdicts == dict.fromkeys(manifest.space.heads, "apart")
    assert str(manifest.space.mark()) == f"{int8.fingerprint}:int8-1:apart"


def test_a_labelled_set_that_loses_nothing_allows_queries_and_an_override_is_kept(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = open_source(str(tiny_checkpoint))
    done = convert_checkpoint(source, tmp_path / "int8", precision="int8", labelled=Judged(loss=0))
    assert done.artifact.manifest.space.form() == Form("int8-1", "queries only")
    assert done.artifact.manifest.space.form().verdict == "queries only"
    override = Override(verdict="interchangeable", reason="measured on our own logs")
    whole = convert_checkpoint(source, tmp_path / "own", precision="fp16", override=override, verified=False).artifact
    assert Artifact.open(whole.path).manifest.override == override
    assert whole.manifest.space.form().verdict == "interchangeable"


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "the space's verdict": ({"space": {"verdicts": {"dense": "interchangeable"}}}, "neither measured nor overridden"),
    "the evidence's verdict too": (
        {"space": {"verdicts": {"dense": "queries only"}}, "evidence": {"verdicts": {"dense": "queries only"}}},
        "neither measured nor overridden",
    ),
    "pairings of another recipe": ({"evidence": {"measured_key": f"{'f' * 64}-int8-0"}}, "another model, recipe or"),
    "pairings of other heads": ({"space": {"head_weights": "e" * 64}}, "another model, recipe or heads"),
    "a recipe that reads as a verdict": ({"space": {"recipe": "int8-1:interchangeable"}}, "recipe"),
    "a recipe of another precision": ({"space": {"precision": "fp16"}}, "recipe"),
    "pairings that are none": ({"evidence": {"pairings": [{"head": "dense"}]}}, "validation error"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_verdict_that_nothing_stands_for_is_damage(int8: Artifact, tmp_path: Path, case: str) -> None:
    changes, message = FORGED[case]
    shutil.copytree(int8.path, tmp_path / "forged")
    forged = json.loads((tmp_path / "forged" / MANIFEST).read_text())
    for part, fields in changes.items():
        for name, value in fields.items():
            forged[part][name] = {**forged[part][name], **value} if isinstance(value, dict) else value
    (tmp_path / "forged" / MANIFEST).write_text(json.dumps(forged))
    with pytest.raises(ArtifactDamaged, match=message):
        Artifact.open(tmp_path / "forged")


def test_converting_again_gives_the_same_model(int8: Artifact, tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = convert_checkpoint(
        open_source(str(tiny_checkpoint)), tmp_path / "again", precision="int8", verified=False
    ).artifact
    assert again.manifest.files == int8.manifest.files
    assert again.fingerprint == int8.fingerprint


def test_fp16_is_nearer_and_its_outputs_are_fp32(graph: Graph, baseline: Artifact, tmp_path: Path) -> None:
    results, expected = run(halve(graph, HIDDEN), baseline, tmp_path), OnnxRuntime(baseline).run(BATCH, Outputs.ALL)
    assert results.dense.dtype == results.colbert.vectors.dtype == np.float32
    assert cosines(results, expected).min() > 0.9999
    assert (tmp_path / DATA).stat().st_size < 0.6 * (baseline.path / DATA).stat().st_size


def test_the_two_sets_of_texts_have_none_in_common() -> None:
    calibrating, comparing = set(calibration_texts()), set(comparison_texts())
    assert (len(calibrating), len(comparing)) == (167, 206)
    assert not calibrating & comparing


# --- refusals -------------------------------------------------------------------------------------


def test_int8_that_loses_too_much_is_refused_with_the_figures(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "rounded", lambda array, scales: np.sign(array).astype(np.int8))
    with pytest.raises(PrecisionRefused, match=r"dense: 1 - cosine .*\(at most 0.005\)") as caught:
        convert_checkpoint(open_source(str(tiny_checkpoint)), tmp_path / "out", precision="int8")
    assert "--precision fp32" in caught.value.hint
    assert {path.name for path in tmp_path.iterdir()} <= {".out.lock"}


def test_int8_that_finds_less_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    labelled = Judged(loss=0.006)
    with pytest.raises(PrecisionRefused, match=r"nDCG@10 lost to fp32 0.006 \(at most 0.005\): 0.6000 → 0.5940"):
        convert_checkpoint(open_source(str(tiny_checkpoint)), tmp_path / "out", precision="int8", labelled=labelled)


@pytest.mark.parametrize(("ratio", "expected"), [pytest.param(2.0, "int8", marks=pytest.mark.slow), (1.05, "fp32")])
def test_auto_takes_what_this_processor_is_faster_at(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, expected: str
) -> None:
    speed = {"1 × 16": ratio, "4 × 128": 3.0}
    monkeypatch.setattr("vecferry.conversion.convert.speed_over", lambda baseline, artifact: speed)
    done = convert_checkpoint(open_source(str(tiny_checkpoint)), tmp_path / "out", precision="auto")
    manifest = Artifact.open(done.artifact.path).manifest
    assert manifest.space.precision == expected
    assert manifest.evidence is not None
    assert manifest.evidence["chosen"] == expected
    assert manifest.evidence["speed_over_fp32"] == speed
    assert manifest.evidence["losses"]["dense: 1 - cosine with fp32 at worst"] < 0.005
    assert {path.name for path in tmp_path.iterdir()} <= {"out", ".out.lock"}


def test_speed_is_measured_at_both_shapes(int8: Artifact, baseline: Artifact) -> None:
    speed = precision.speed_over(baseline, int8)
    assert list(speed) == ["1 × 16", "4 × 128"]
    assert all(ratio > 0 for ratio in speed.values())


def test_pytorch_is_no_fallback_for_int8(int8: Artifact, tmp_path: Path) -> None:
    for file in int8.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / MODEL).write_bytes(b"x" * (int8.path / MODEL).stat().st_size)
    with pytest.raises(Exception, match=r"model\.onnx has SHA-256"):
        load_encoder(EncoderOptions(artifact=tmp_path))


def test_fp16_on_a_processor_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = convert_checkpoint(open_source(str(tiny_checkpoint)), tmp_path / "out", precision="fp16", verified=False)
    with pytest.raises(RuntimeUnavailable, match="6 to 9 times") as caught:
        load_encoder(EncoderOptions(artifact=done.artifact.path))
    assert "--precision int8" in caught.value.hint
