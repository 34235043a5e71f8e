"""The session: its threads, its memory, and what a GPU needs, as far as a CPU can show it."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from vecferry.embeddings import Outputs, TokenBatch
from vecferry.encode.runtime.onnx import OnnxRuntime, misplaced, run_bound
from vecferry.errors import RuntimeUnavailable
from vecferry.model.artifact import DATA, MODEL, Artifact

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
BATCH = TokenBatch.from_lists([[0, 10, 20, 30, 2], [0, 40, 2]])

TWO_SESSIONS = """
import json, os, sys, time
from pathlib import Path
from vecferry.model.artifact import Artifact
from vecferry.embeddings import Outputs, TokenBatch
from vecferry.encode.runtime.onnx import OnnxRuntime

artifact, batch = Artifact.open(Path(sys.argv[1])), TokenBatch.from_lists([[0, 10, 20, 2]] * 8)
counts, runtimes = [len(os.listdir("/proc/self/task"))], []
for _ in range(2):
    runtimes.append(OnnxRuntime(artifact, threads=3))
    runtimes[-1].run(batch, Outputs.ALL)
    counts.append(len(os.listdir("/proc/self/task")))
before = time.process_time()
time.sleep(0.5)
print(json.dumps({"threads": counts, "idle": time.process_time() - before}))
"""

MAPPED = """
import json, sys
from pathlib import Path
from vecferry.model.artifact import DATA, Artifact
from vecferry.embeddings import Outputs, TokenBatch
from vecferry.encode.runtime.onnx import OnnxRuntime

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Anonymous:")).split()[1]) * 1024

artifact, low_memory = Artifact.open(Path(sys.argv[1])), sys.argv[2] == "low"
before = anonymous()
runtime = OnnxRuntime(artifact, threads=1, low_memory=low_memory)
runtime.run(TokenBatch.from_lists([[0, 10, 20, 2]]), Outputs.ALL)
loaded = anonymous()
runtime.run(TokenBatch.from_lists([[0, *range(10, 510), 2]] * 16), Outputs.DENSE)
mapped = DATA in Path("/proc/self/maps").read_text()
print(json.dumps({"loaded": loaded - before, "after": anonymous() - loaded, "mapped": mapped}))
"""


def figures(script: str, *arguments: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@linux
def test_a_session_has_its_threads_but_the_callers_and_none_of_them_works_when_idle(tiny_artifact: Artifact) -> None:
    values = figures(TWO_SESSIONS, str(tiny_artifact.path))
    before, with_one, with_two = values["threads"]  # type: ignore[misc]
    assert (with_one - before, with_two - with_one) == (2, 2)  # type: ignore[has-type]
    assert values["idle"] < 0.01  # type: ignore[operator]  # seconds of processor time; threads that spin take 0.04


def test_low_memory_changes_no_number_beyond_rounding(tiny_artifact: Artifact) -> None:
    normal, low = (OnnxRuntime(tiny_artifact, low_memory=low).run(BATCH, Outputs.ALL) for low in (False, True))
    np.testing.assert_allclose(low.dense, normal.dense, atol=1e-6)  # another kernel, another order of sums
    np.testing.assert_array_equal(low.sparse.indices, normal.sparse.indices)
    np.testing.assert_allclose(low.colbert.vectors, normal.colbert.vectors, atol=1e-6)


@linux
def test_low_memory_keeps_weights_in_their_file_and_gives_a_runs_memory_back(wide_artifact: Artifact) -> None:
    normal, low = (figures(MAPPED, str(wide_artifact.path), mode) for mode in ("normal", "low"))
    weights = (wide_artifact.path / DATA).stat().st_size
    assert low["mapped"]
    assert low["loaded"] < normal["loaded"] / 2 < weights / 2  # type: ignore[operator]
    assert low["after"] < normal["after"] / 4  # type: ignore[operator]


def test_heads_that_are_not_asked_for_are_not_computed(tiny_artifact: Artifact) -> None:
    runtime = OnnxRuntime(tiny_artifact)
    results_of_runs: list[dict[str, np.ndarray]] = []
    results = runtime._results
    runtime._results = lambda feed: results_of_runs.append(results(feed)) or results_of_runs[-1]  # type: ignore[func-returns-value,method-assign]
    for outputs in (Outputs.DENSE, Outputs.SPARSE | Outputs.DENSE, Outputs.ALL):
        runtime.run(BATCH, outputs)
    assert [(values["sparse"].size > 0, values["colbert"].size > 0) for values in results_of_runs] == [
        (False, False),
        (True, False),
        (True, True),
    ]


# --- GPU ------------------------------------------------------------------------------------------


def test_bound_inputs_and_outputs_give_the_same(tiny_artifact: Artifact) -> None:
    session = onnxruntime.InferenceSession(str(tiny_artifact.path / MODEL), providers=["CPUExecutionProvider"])
    ids, mask = BATCH.padded(1)
    feed = {
        "input_ids": ids,
        "attention_mask": mask,
        "want_sparse": np.ones((), bool),
        "want_colbert": np.ones((), bool),
    }
    expected = session.run(None, feed)
    for values, value in zip(run_bound(session, feed, "cpu").values(), expected, strict=True):
        np.testing.assert_array_equal(values, value)


def test_heavy_operators_on_another_provider_are_named(tiny_artifact: Artifact) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(tiny_artifact.path / MODEL), options, providers=["CPUExecutionProvider"])
    assert misplaced(session, "CPUExecutionProvider") == []
    names = misplaced(session, "CUDAExecutionProvider")
    assert {"MatMul", "MultiHeadAttention", "LayerNormalization", "Gelu"} <= set(names)
    assert "Cast" not in names


def test_a_provider_that_is_not_there_says_what_to_type(tiny_artifact: Artifact) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime offers CUDA")
    with pytest.raises(RuntimeUnavailable, match=r"offers .*CPUExecutionProvider") as caught:
        OnnxRuntime(tiny_artifact, device="cuda")
    assert "pip install --force-reinstall onnxruntime-gpu" in caught.value.hint


def test_no_fallback_to_the_cpu_goes_unnoticed(tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers CUDA on a machine without: ONNX Runtime logs a line and takes the CPU."""
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(RuntimeUnavailable) as values,
    ):
        OnnxRuntime(tiny_artifact, device="cuda")
    assert values.value.reason == "CUDAExecutionProvider does not start here"


def test_packed_rows_are_refused_on_a_processor(tiny_artifact: Artifact) -> None:
    with pytest.raises(RuntimeUnavailable, match="no processor has kernels for packed rows"):
        OnnxRuntime(tiny_artifact, packed=True)
