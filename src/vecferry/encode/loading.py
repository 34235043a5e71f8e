"""Which runtime serves: ONNX first, PyTorch where ONNX cannot, lightweight only on request.

A fallback is a change of engine, never of vector space: where the space is known (the artifact's
manifest, or `Options.fingerprint`), a runtime of another space is refused with SpaceMismatch.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vecferry.embeddings import DENSE, Embeddings, Outputs
from vecferry.encode.batching import Limits
from vecferry.encode.device_limits import DeviceLimits, measured_limits
from vecferry.encode.encoder import Encoder, Role, SharedCopy, TextEncoder
from vecferry.encode.runtime import Device, Runtime
from vecferry.encode.runtime.host import available_cpus
from vecferry.encode.runtime.processes import Opened, ProcessesRuntime
from vecferry.errors import (
    ArtifactError,
    ArtifactNotFound,
    MissingExtra,
    ModelRuntimeError,
    RuntimeUnavailable,
    SourceError,
    SpaceMismatch,
    VecferryError,
)
from vecferry.model.artifact import Artifact, VectorSpace
from vecferry.model.checkpoint import Model, read_model
from vecferry.model.sources import BGE_M3, open_source, reopen
from vecferry.model.spec import EncoderSpec, Overrides
from vecferry.model.tokens import Tokenizer, open_tokenizer
from vecferry.options import Checked, Count, CountFrom0
from vecferry.precisions import Mark, Precision

if TYPE_CHECKING:
    from vecferry.encode.cache import Cache

Fingerprint = Annotated[
    str,
    Field(
        pattern="^[0-9a-f]{64}(:[a-z0-9-]+:(interchangeable|queries only|apart)(:[0-9a-f]+)?)?$",
        description="64 hexadecimal digits, of an index that is not fp32 with :fp16:interchangeable or the like",
    ),
]
RuntimeName = Literal["onnx", "torch", "lightweight"]
log = logging.getLogger("vecferry")


@dataclass(frozen=True)
class EncoderOptions(Checked):
    """What to load.

    use_onnx: False goes to PyTorch at once. lightweight: hashed features, another vector space.
    source: the checkpoint for PyTorch; by default the one that the artifact was made from, else BGE-M3.
    fingerprint: the mark of the index that the vectors are for, if given; only its vector space is accepted, and
    another precision of it in the roles in which it was found to agree.
    limits: by default `Limits()` on a processor, and on a GPU what is measured there as the model is loaded.
    cache: a folder that keeps what was encoded, up to `cache_mb` millions of bytes.
    low_memory: as `OnnxRuntime` takes it; the other runtimes do not regard it. device_id: which of several GPUs.
    processes: that each load the model, on GPUs each on one of its own, from number 0, and on processors each with its
    share of the threads.
    """

    artifact: Path
    use_onnx: bool = True
    lightweight: bool = False
    source: str | None = None
    offline: bool = False
    threads: Count | None = None
    device: Device = "cpu"
    limits: Limits | None = None
    fingerprint: Fingerprint | None = None
    cache: Path | None = None
    cache_mb: Count = 1024
    low_memory: bool = False
    device_id: CountFrom0 = 0
    processes: Count = 1


@dataclass(frozen=True)
class Loaded:
    """An encoder, and why it runs on what it runs on. is_fallback: another runtime than the first choice."""

    encoder: Encoder
    reason: str
    is_fallback: bool = False


def load_encoder(options: EncoderOptions) -> Loaded:
    """Load an encoder: ONNX Runtime first, PyTorch where that cannot run, lightweight only if asked for.

    Raises ArtifactError, SourceError, ModelRuntimeError, MissingExtra, SpaceMismatch: the first choice's, if
    the fallback cannot be had either.
    """
    loaded = _choose(options)
    space = loaded.encoder.fingerprint
    log.info("encoding with %s (%s) in vector space %s", loaded.encoder.runtime.name, loaded.reason, space)
    if options.fingerprint:
        where = f"the {loaded.encoder.runtime.name} runtime"
        loaded.encoder.space.mark().require(Mark.parse(options.fingerprint), "query", where)
    return loaded


def load_runtime(options: EncoderOptions, name: RuntimeName) -> Encoder:
    """Load the encoder on one named runtime, without a fallback. Raises as `load_encoder` does."""
    if name == "lightweight":
        return _lightweight(options)
    if name == "torch":
        return _torch(options, _checkpoint(options))
    return _onnx(options)


def chosen_runtime(options: EncoderOptions) -> RuntimeName:
    """Return the first choice of these options."""
    return "lightweight" if options.lightweight else "onnx" if options.use_onnx else "torch"


def _choose(options: EncoderOptions) -> Loaded:
    name = chosen_runtime(options)
    if name != "onnx":
        return Loaded(load_runtime(options, name), "asked for by the settings")
    try:
        return Loaded(_onnx(options), "first choice")
    except (ArtifactError, ModelRuntimeError) as cause:
        return _fall_back(options, cause)


def _fall_back(options: EncoderOptions, cause: VecferryError) -> Loaded:
    """Load PyTorch in the same space; nothing is downloaded for it. Raises the cause where that is impossible."""
    try:
        expected = _expected_space(options, cause)
        offline = replace(options, offline=True)
        encoder = _torch(offline, _checkpoint(offline))
    except (SourceError, MissingExtra, ModelRuntimeError):
        raise cause from None
    if expected is not None:
        try:
            encoder.space.mark(encoder.space.outputs).require(expected, "passage", "the PyTorch fallback")
        except SpaceMismatch as mismatch:
            raise mismatch from cause
    log.warning("ONNX cannot be used, so PyTorch serves, in vector space %s: %s", encoder.fingerprint, cause)
    return Loaded(encoder, f"fallback: {cause.message}", is_fallback=True)


def _expected_space(options: EncoderOptions, cause: VecferryError) -> Mark | None:
    """Return the artifact's mark. A folder that exists but does not say its space allows no fallback.

    Nor does a precision that PyTorch has not there, unless it was found to be interchangeable with fp32: it runs the
    checkpoint in fp32, on a GPU in fp16 too.
    """
    if isinstance(cause, ArtifactNotFound):
        return None
    manifest = Artifact.peek(options.artifact)
    if manifest is None:
        raise cause
    mark = manifest.space.mark(manifest.space.outputs)
    if not mark.form.is_as_fp32 and manifest.space.precision != _torch_precision(options):
        raise cause
    return mark


def _onnx(options: EncoderOptions) -> Encoder:
    artifact = Artifact.open(options.artifact)
    if artifact.manifest.space.precision == "fp16" and options.device == "cpu":
        reason = "the model is fp16, for which a processor takes 6 to 9 times as long as for fp32"
        raise RuntimeUnavailable(
            "onnx", reason, "VECFERRY_DEVICE=cuda, or vecferry convert SOURCE OUTPUT --precision int8"
        )
    try:
        from vecferry.encode.runtime.onnx import OnnxRuntime
    except ImportError as exc:  # a broken or missing build of onnxruntime
        raise RuntimeUnavailable("onnx", str(exc), "pip install --force-reinstall onnxruntime") from exc
    load = partial(
        OnnxRuntime,
        threads=options.threads,
        device=options.device,
        device_id=options.device_id,
        low_memory=options.low_memory,
    )
    several = partial(ProcessesRuntime, partial(_on_device, _from_anywhere(options), "onnx"), options.processes)
    with ThreadPoolExecutor(1, thread_name_prefix="vecferry-load") as pool:  # a session loads without the interpreter
        loading = pool.submit(load, artifact) if options.processes == 1 else pool.submit(several)
        tokenizer = open_tokenizer(artifact, mapped=options.low_memory)
        runtime = loading.result()
    spec, cache, reopen = artifact.manifest.encoder, _cache(options), partial(_onnx, _from_anywhere(options))
    return Encoder(
        tokenizer,
        runtime,
        _limits(options, runtime, spec),
        spec=spec,
        cache=cache,
        reopen=reopen,
        index=_index(options),
    )


def _torch(options: EncoderOptions, model: Model) -> Encoder:
    runtime: Runtime
    if options.processes > 1:
        runtime = ProcessesRuntime(partial(_on_device, _from_anywhere(options), "torch"), options.processes)
    elif options.device == "cpu":
        from vecferry.encode.runtime.torch import TorchRuntime

        runtime = TorchRuntime(model, threads=options.threads)
    else:
        from vecferry.encode.runtime.torch_packed import PackedTorchRuntime

        precision = _torch_precision(options)
        model = replace(model, space=_measured(model.space, precision, options))
        runtime = PackedTorchRuntime(model, device=options.device, device_id=options.device_id, precision=precision)
    tokenizer = Tokenizer(model.tokenizer, model.space.max_tokens)
    reopen = partial(load_runtime, _from_anywhere(options), "torch")
    limits = _limits(options, runtime, model.spec)
    return Encoder(
        tokenizer, runtime, limits, spec=model.spec, cache=_cache(options), reopen=reopen, index=_index(options)
    )


def _measured(space: VectorSpace, precision: Precision, options: EncoderOptions) -> VectorSpace:
    """Return the checkpoint's space with the verdicts of the artifact, if that is the same model in that precision."""
    manifest = Artifact.peek(options.artifact)
    if manifest is None or manifest.space.key != space.model_copy(update={"precision": precision}).key:
        return space
    return space.model_copy(update={"verdicts": manifest.space.verdicts})


def _on_device(options: EncoderOptions, name: RuntimeName, number: int) -> Opened:
    """Open one of several runtimes, in a process of its own."""
    threads = options.threads or max(available_cpus() // options.processes, 1)
    device_id = 0 if options.device == "cpu" else number
    encoder = load_runtime(replace(options, processes=1, threads=threads, device_id=device_id, cache=None), name)
    return Opened(encoder.runtime, encoder.device_limits)


def _limits(options: EncoderOptions, runtime: Runtime, spec: EncoderSpec) -> Limits | DeviceLimits | None:
    if isinstance(runtime, ProcessesRuntime):
        return runtime.measured or options.limits
    return measured_limits(runtime, spec) if options.limits is None and options.device != "cpu" else options.limits


def _torch_precision(options: EncoderOptions) -> Literal["fp32", "fp16"]:
    """Return what PyTorch computes in: fp32, but fp16 on a GPU for an artifact of fp16, whose vector space it keeps."""
    manifest = Artifact.peek(options.artifact)
    is_fp16 = manifest is not None and manifest.space.precision == "fp16"
    return "fp16" if is_fp16 and options.device != "cpu" else "fp32"


def _lightweight(options: EncoderOptions) -> Encoder:
    from vecferry.encode.runtime.lightweight import LightweightRuntime, LightweightTokenizer

    return Encoder(LightweightTokenizer(), LightweightRuntime(), options.limits, reopen=partial(_lightweight, options))


def _from_anywhere(options: EncoderOptions) -> EncoderOptions:
    """Return the same options with absolute folders, for a process that works in another one."""
    cache = None if options.cache is None else options.cache.absolute()
    return replace(options, artifact=options.artifact.absolute(), cache=cache)


def _index(options: EncoderOptions) -> Mark | None:
    return None if options.fingerprint is None else Mark.parse(options.fingerprint)


def _cache(options: EncoderOptions) -> Cache | None:
    if options.cache is None:
        return None
    from vecferry.encode.cache import Cache  # with the journal of stores.sqlite, a sixth of all that is imported

    return Cache(options.cache, options.cache_mb)


def _checkpoint(options: EncoderOptions) -> Model:
    """Read the checkpoint that PyTorch is to run, as the artifact's was read where there is one."""
    manifest = Artifact.peek(options.artifact)
    if options.source is None and manifest is not None:
        return read_model(reopen(manifest.source).folder, Overrides.of(manifest.encoder))
    return read_model(open_source(options.source or BGE_M3, offline=options.offline).folder)


def peek_dimension(options: EncoderOptions) -> int | None:
    """Return the dimension as far as it is known without loading a model."""
    if options.lightweight:
        return _lightweight(options).dimension
    manifest = Artifact.peek(options.artifact)
    other_checkpoint = not options.use_onnx and options.source is not None
    return None if manifest is None or other_checkpoint else manifest.space.dimension


def peek_space(options: EncoderOptions) -> VectorSpace | None:
    """Return the vector space as far as it is known without loading a model: as the manifest says it."""
    manifest = Artifact.peek(options.artifact) if chosen_runtime(options) == "onnx" else None
    return None if manifest is None else manifest.space


class LazyEncoder(SharedCopy):
    """An encoder that loads on first use, once for all threads; again in a forked child. Lasts for the process.

    A failed load is not remembered: the next call tries again. It also stands for the encoder itself. A pickle has
    `reopen`, or else `load`. space: where it is known without loading the model.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        *,
        reopen: Callable[[], TextEncoder] | None = None,
        space: VectorSpace | None = None,
    ) -> None:
        self._load = load
        self._reopen = reopen
        self._space = space
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.after_fork)

    def __reduce__(self) -> tuple[Any, ...]:
        return (LazyEncoder, (self._load,)) if self._reopen is None else (self._reopen, ())

    def get(self) -> Loaded:
        if (loaded := self._loaded) is not None:
            return loaded
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    @property
    def space(self) -> VectorSpace:
        return self.get().encoder.space if self._space is None else self._space

    @property
    def fingerprint(self) -> str:
        return self.space.fingerprint

    @property
    def dimension(self) -> int:
        return self.space.dimension

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode texts as `Encoder.encode` does; the first call loads the encoder."""
        return self.get().encoder.encode(texts, outputs=outputs, role=role)

    def after_fork(self) -> None:
        """Forget, in the child, the parent's encoder, without ever freeing it.

        Its session waits for its threads when it is freed, and they did not come along: the child
        would hang. The lock may have been held by one of them.
        """
        if self._loaded is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loaded))
        self._loaded, self._lock = None, threading.Lock()
