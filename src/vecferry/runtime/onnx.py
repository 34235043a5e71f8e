"""The ONNX Runtime. The only file that imports `onnxruntime`.

Since 1.29 it reports usage to its maker from a thread that starts with the import, which also hangs a
forked child as it ends. It is switched off here, unless the application has chosen otherwise or has
imported `onnxruntime` before us (docs/decisions/0004-onnxruntime-telemetry.md).
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from vecferry.artifact import MODEL, Artifact, VectorSpace
from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.errors import ArtifactDamaged, OutOfMemory, RuntimeFailed, RuntimeUnavailable
from vecferry.runtime import Device, RawOutputs, available_cpus, finish

ORT_ERRORS = (
    state.Fail, state.RuntimeException, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
    state.NoSuchFile, state.NoModel, state.NotImplemented, state.EPFail,
)  # fmt: skip
OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "cannot allocate")
ERRORS_ONLY = 3


class OnnxRuntime:
    """Runs an artifact's graph. One session, shared by all threads."""

    name = "onnx"

    def __init__(self, artifact: Artifact, *, threads: int | None = None, device: Device = "cpu") -> None:
        """threads: of one operator; by default the processors that this process may use.

        Raises RuntimeUnavailable (device), ArtifactDamaged (the model does not load), OutOfMemory.
        """
        self._artifact = artifact
        self._threads = threads or available_cpus()
        self._session = _session(artifact.path / MODEL, self._threads, _provider(device))
        self._switches = {i.name for i in self._session.get_inputs()} & {"want_sparse", "want_colbert"}
        self._pad_id = artifact.manifest.encoder.pad_id

    @property
    def space(self) -> VectorSpace:
        return self._artifact.manifest.space

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        ids, mask = batch.padded(self._pad_id)  # [B, S] each
        feed = {"input_ids": ids, "attention_mask": mask}
        wanted = {"want_sparse": Outputs.SPARSE in outputs, "want_colbert": Outputs.COLBERT in outputs}
        feed |= {switch: np.asarray(wanted[switch]) for switch in self._switches}
        try:
            results = dict(zip(self._output_names, self._session.run(None, feed), strict=True))
        except (*ORT_ERRORS, MemoryError) as exc:
            if _is_out_of_memory(exc):
                raise OutOfMemory(self.name, len(ids), ids.shape[1]) from exc
            raise RuntimeFailed(self.name, len(ids), ids.shape[1], _first_line(exc)) from exc
        raw = RawOutputs(
            results["dense"],
            results["sparse"] if wanted["want_sparse"] else None,
            results["colbert"] if wanted["want_colbert"] else None,
        )
        return finish(raw, batch, outputs, self.space)

    @property
    def _output_names(self) -> list[str]:
        return [output.name for output in self._session.get_outputs()]

    def describe(self) -> dict[str, str]:
        return {
            "onnxruntime": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": str(self._threads),
            "artifact": str(self._artifact.path),
        }


def _provider(device: Device) -> str:
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    offered = onnxruntime.get_available_providers()
    if provider not in offered:
        raise RuntimeUnavailable(
            "onnx",
            f"CUDA was asked for, but this onnxruntime offers {', '.join(offered)}",
            "pip install onnxruntime-gpu (in place of onnxruntime), or VECFERRY_DEVICE=cpu",
        )
    return provider


def _session(model: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle server should idle
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=[provider])
    except (*ORT_ERRORS, MemoryError) as exc:
        if _is_out_of_memory(exc):
            raise OutOfMemory("onnx", 0, 0) from exc
        raise ArtifactDamaged(model.parent, f"ONNX Runtime does not load it ({_first_line(exc)})") from exc
    if session.get_providers()[0] != provider:  # ONNX Runtime falls back to the CPU with no more than a log line
        raise RuntimeUnavailable("onnx", f"{provider} does not start here", "VECFERRY_DEVICE=cpu, or repair CUDA")
    return session


def _is_out_of_memory(exc: BaseException) -> bool:
    return isinstance(exc, MemoryError) or any(sign in str(exc).lower() for sign in OUT_OF_MEMORY)


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [repr(exc)])[0]
