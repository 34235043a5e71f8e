"""The ONNX Runtime.

Since 1.29 it reports usage to its maker from a thread that starts with the import, which also hangs a
forked child as it ends. It is switched off here, unless the application has chosen otherwise or has
imported `onnxruntime` before us (docs/decisions/0004-onnxruntime-telemetry.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.runtime import Device, RawOutputs, finish
from vecferry.encode.runtime.host import available_cpus
from vecferry.errors import ArtifactDamaged, OutOfMemory, RuntimeFailed, RuntimeUnavailable
from vecferry.model.artifact import MODEL, Artifact, VectorSpace

ORT_ERRORS = (
    state.Fail, state.RuntimeException, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
    state.NoSuchFile, state.NoModel, state.NotImplemented, state.EPFail,
)  # fmt: skip
OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "cannot allocate")
ERRORS_ONLY = 3
CUDA_OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
"""fp32 stays fp32; memory grows by what is asked for; no search for convolutions, of which there are none."""
PROVIDERS: dict[Device, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", CUDA_OPTIONS),
}
ARENA_BYTES = 1 << 29
"""Memory of the runs of all sessions begins as one piece of this size, whose pages count once they are touched, and
1/32 of it at once. Pieces that grow as they are asked for leave gaps: BGE-M3 took 0.6 GB for 8,192 tokens, not 0.45.
"""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
SWITCHES = {"want_sparse", "want_colbert"}
HEAVY = ("MatMul", "Gemm", "Attention", "LayerNorm", "Gelu")
"""Parts of the names of operators that do the work; what is left may stay on the CPU."""

Feed = dict[str, np.ndarray]


class OnnxRuntime:
    """An artifact's graph in one session, shared by all threads."""

    name = "onnx"

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        device: Device = "cpu",
        device_id: int = 0,
        low_memory: bool = False,
        packed: bool = False,
    ) -> None:
        """Load the graph. threads: of one operator; by default the processors that this process may use.

        device_id: which of several GPUs. low_memory: weights stay pages of their file, which processes share, and a
        run's memory is given back after it; short texts take longer. packed: the graph of `onnx_packed.py`; CUDA alone.
        Raises RuntimeUnavailable (device), ArtifactDamaged (the model does not load), OutOfMemory.
        """
        self._artifact = artifact
        self._threads = threads or available_cpus()
        self._device, self._device_id, self._low_memory = device, device_id, low_memory
        options = _options(self._threads, device, low_memory=low_memory)
        if packed and device == "cpu":
            raise RuntimeUnavailable(self.name, "no processor has kernels for packed rows", "VECFERRY_DEVICE=cuda")
        graph = None
        if packed:
            from vecferry.encode.runtime.onnx_packed import packed_graph  # it imports onnx, which is seldom needed here

            graph = packed_graph(artifact.path)
        self._session = _session(artifact.path / MODEL, device, options, device_id, graph)
        self._run_options = _run_options(low_memory=low_memory)
        self._switches = SWITCHES & {i.name for i in self._session.get_overridable_initializers()}
        self._pad_id = artifact.manifest.encoder.pad_id
        if device != "cpu":
            self._prove()

    @property
    def space(self) -> VectorSpace:
        return self._artifact.manifest.space

    @property
    def artifact(self) -> Artifact:
        return self._artifact

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        ids, mask = batch.padded(self._pad_id)  # [B, S] each
        feed = {"input_ids": ids, "attention_mask": mask}
        wanted = {"want_sparse": Outputs.SPARSE in outputs, "want_colbert": Outputs.COLBERT in outputs}
        feed |= {switch: np.asarray(wanted[switch]) for switch in self._switches}
        try:
            results = self._results(feed)
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

    def describe(self) -> dict[str, str]:
        return {
            "onnxruntime": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": str(self._threads),
            "spinning": "off",
            "low_memory": "on" if self._low_memory else "off",
            "artifact": str(self._artifact.path),
        }

    def _results(self, feed: Feed) -> Feed:
        if self._device != "cpu":
            return run_bound(self._session, feed, self._device, self._run_options, self._device_id)
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, feed, self._run_options), strict=True))

    def _prove(self) -> None:
        """Raise RuntimeUnavailable unless the device does the work, and a run on it succeeds."""
        if names := misplaced(self._session, PROVIDERS[self._device][0]):
            reason = f"{', '.join(names)} would run on the CPU, not on {self._device}"
            raise RuntimeUnavailable(self.name, reason, "pip install -U onnxruntime-gpu, or VECFERRY_DEVICE=cpu")
        try:
            self.run(TokenBatch.from_lists([[self._pad_id + 1] * 2]), Outputs.DENSE)
        except RuntimeFailed as exc:
            remedy = "repair CUDA and cuDNN (nvidia-smi says which there are), or VECFERRY_DEVICE=cpu"
            raise RuntimeUnavailable(self.name, f"a first run on {self._device} failed: {exc.reason}", remedy) from exc


def run_bound(
    session: onnxruntime.InferenceSession,
    feed: Feed,
    device: Device,
    run_options: onnxruntime.RunOptions | None = None,
    device_id: int = 0,
) -> Feed:
    """Return outputs by name, as `session.run` does: inputs are put on the device once, outputs fetched once."""
    binding = session.io_binding()
    for name, value in feed.items():
        place = "cpu" if name in SWITCHES else device  # which way to go is decided on the CPU
        binding.bind_ortvalue_input(
            name, onnxruntime.OrtValue.ortvalue_from_numpy(value, place, device_id if place == device else 0)
        )
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device, device_id)
    session.run_with_iobinding(binding, run_options)
    return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))


def run_each(model: Path, batches: Iterable[TokenBatch], pad_id: int) -> Iterator[Feed]:
    """Yield all outputs of a model file for each batch, on the CPU."""
    session = _session(model, "cpu", _options(available_cpus(), "cpu", low_memory=False))
    run_options, names = _run_options(low_memory=False), [output.name for output in session.get_outputs()]
    for batch in batches:
        ids, mask = batch.padded(pad_id)
        results = session.run(None, {"input_ids": ids, "attention_mask": mask}, run_options)
        yield dict(zip(names, results, strict=True))


def misplaced(session: onnxruntime.InferenceSession, provider: str) -> list[str]:
    """Return kinds of heavy operators that another provider would run. The session has recorded its assignment."""
    parts = (part for part in session.get_provider_graph_assignment_info() if part.ep_name != provider)
    kinds = {node.op_type for part in parts for node in part.get_nodes()}
    return sorted(kind for kind in kinds if any(sign in kind for sign in HEAVY))


def _options(threads: int, device: Device, *, low_memory: bool) -> onnxruntime.SessionOptions:
    """Return session options with threads of its own: a pool that sessions share always spins (decision 0013)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.enable_mem_reuse = False  # a value is freed after its last use, not kept for the next of its shape
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle server should idle
    if low_memory:
        options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights would be a copy
    elif device == "cpu":
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    if device == "cpu":  # it would fuse operators into ones that are slower there (docs/decisions/0014)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def graph_in_memory(model: bytes, folder: Path, output: str) -> Callable[[Feed], np.ndarray]:
    """Return a function that runs a graph on the CPU, and returns that output. folder: where its weights lie."""
    options = _options(available_cpus(), "cpu", low_memory=False)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
    session = onnxruntime.InferenceSession(model, options, providers=[PROVIDERS["cpu"][0]])
    return lambda feed: np.asarray(session.run([output], feed, _run_options(low_memory=False))[0])


def _run_options(*, low_memory: bool) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.log_severity_level = ERRORS_ONLY
    if low_memory:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@cache
def _share_arena() -> None:
    """Register one arena for the sessions of this process, or use one that another part of it registered."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with suppress(*ORT_ERRORS):  # there is one
        config = onnxruntime.OrtArenaCfg({"initial_chunk_size_bytes": ARENA_BYTES})
        onnxruntime.create_and_register_allocator(place, config)


def _session(
    model: Path,
    device: Device,
    options: onnxruntime.SessionOptions,
    device_id: int = 0,
    graph: bytes | None = None,
) -> onnxruntime.InferenceSession:
    """Return a session of a model file, or of another graph over its weights."""
    provider, provider_options = PROVIDERS[device]
    if device != "cpu":
        provider_options = provider_options | {"device_id": str(device_id)}
    offered = onnxruntime.get_available_providers()
    if provider not in offered:
        raise RuntimeUnavailable(
            "onnx",
            f"CUDA was asked for, but this onnxruntime offers {', '.join(offered)}",
            "pip uninstall -y onnxruntime && pip install --force-reinstall onnxruntime-gpu, or VECFERRY_DEVICE=cpu",
        )
    try:
        if graph is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(model.parent))
        session = onnxruntime.InferenceSession(graph or str(model), options, providers=[(provider, provider_options)])
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
