"""PyTorch over packed rows: the texts of a batch lie end to end, and no padding is computed.

The runtime of PyTorch on a GPU. Between embeddings and heads only attention knows where a text begins: on CUDA in fp16
it is PyTorch's variable-length flash attention, elsewhere scaled-dot-product attention text by text, or of all at once
where they are equally long. All else is the same on both (docs/decisions/0043-packed-rows.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vecferry.embeddings import Embeddings, Float32, MultiVector, Outputs, TokenBatch, indptr_of
from vecferry.encode.runtime import Device, max_per_id
from vecferry.encode.runtime.host import available_cpus
from vecferry.errors import MissingExtra, OutOfMemory, RuntimeFailed, RuntimeUnavailable
from vecferry.model.artifact import VectorSpace
from vecferry.model.checkpoint import Model
from vecferry.model.weights import Weights

try:
    import torch
    from torch.nn import functional
    from torch.nn.attention.varlen import varlen_attn
except ModuleNotFoundError as exc:
    raise MissingExtra("torch", exc.name or "torch") from exc

PackedPrecision = Literal["fp32", "fp16"]
DTYPES: dict[PackedPrecision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
FAILURES = (torch.OutOfMemoryError, MemoryError, RuntimeError, IndexError)
LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class Segments:
    """Where texts lie in packed rows. lengths: tokens of each. offsets: int32 [N + 1], on the device."""

    lengths: tuple[int, ...]
    offsets: torch.Tensor

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device) -> Segments:
        offsets = torch.from_numpy(indptr_of(lengths).astype(np.int32))
        return cls(tuple(lengths.tolist()), to_device(offsets, device))

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def equal(self) -> int | None:
        """The length of all of them; None where they differ."""
        return self.longest if len(set(self.lengths)) == 1 else None


class PackedTorchRuntime:
    """A checkpoint in PyTorch, of whose batches no token is padding. Thread-safe."""

    name = "torch"
    is_packed = True
    depth = 2

    def __init__(
        self,
        model: Model,
        *,
        device: Device = "cpu",
        device_id: int = 0,
        precision: PackedPrecision = "fp32",
        threads: int | None = None,
    ) -> None:
        """Load a checkpoint. precision: of embeddings and layers; heads and outputs are fp32.

        threads: of the processor, for this process. Raises RuntimeUnavailable (device), CheckpointDamaged, OutOfMemory.
        """
        self._device = usable_device(device, device_id)
        if device == "cpu":
            torch.set_num_threads(threads or available_cpus())
        self._model, self._precision = model, precision
        self._space = model.space.model_copy(update={"precision": precision})
        try:
            self._weights = _Weights(model, self._device, DTYPES[precision])
        except torch.OutOfMemoryError as exc:
            raise OutOfMemory(self.name, 0, 0) from exc

    @property
    def space(self) -> VectorSpace:
        return self._space

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        return self.begin(batch, outputs)()

    def begin(self, batch: TokenBatch, outputs: Outputs) -> Callable[[], Embeddings]:
        """Queue the kernels of a run and the copies of its results; what is returned waits for the last of them."""
        try:
            with torch.inference_mode():
                packed = self._forward(batch, outputs).to_host()
        except FAILURES as exc:
            failure = self._translated(exc, batch)
            failure.__cause__ = exc

            def fail() -> Embeddings:
                raise failure

            return fail
        is_cuda = self._device.type == "cuda"
        is_copied = torch.cuda.current_stream(self._device).record_event() if is_cuda else None
        return lambda: self._awaited(packed, is_copied, batch)

    def _awaited(self, packed: _Packed, is_copied: torch.Event | None, batch: TokenBatch) -> Embeddings:
        try:
            if is_copied is not None:
                is_copied.synchronize()
        except FAILURES as exc:
            raise self._translated(exc, batch) from exc
        return self._finished(packed, batch)

    def _translated(self, exc: Exception, batch: TokenBatch) -> OutOfMemory | RuntimeFailed:
        rows, tokens = len(batch), int(batch.lengths.max())
        is_memory = isinstance(exc, torch.OutOfMemoryError | MemoryError)
        if is_memory or "can't allocate memory" in str(exc):  # PyTorch's CPU allocator has no error of its own
            return OutOfMemory(self.name, rows, tokens)
        return RuntimeFailed(self.name, rows, tokens, str(exc).splitlines()[0])

    def describe(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "device": str(self._device),
            "precision": self._precision,
            "rows": "packed",
            "attention": "flash, variable length" if self._is_flash else "by text",
        }

    @property
    def _is_flash(self) -> bool:
        return self._device.type == "cuda" and self._precision == "fp16"

    # --- memory of the device -------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        if self._device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(free + unused)

    def peak_bytes(self) -> int | None:
        if self._device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return int(peak)

    # --- the model ------------------------------------------------------------------------------------

    def _forward(self, batch: TokenBatch, outputs: Outputs) -> _Packed:
        """Compute a batch of T tokens in N texts."""
        segments = Segments.of(batch.lengths, self._device)
        first_only = self.space.pooling == "cls" and not outputs & (Outputs.SPARSE | Outputs.COLBERT)
        hidden = self._embedded(batch)  # [T, H]
        for number, layer in enumerate(self._weights.layers):
            is_cut = first_only and number == len(self._weights.layers) - 1
            hidden = self._layer(layer, hidden, segments, only_first=is_cut)  # [T, H]; [N, H] where it is cut
        hidden = hidden.float()
        return _Packed(
            self._dense(hidden, segments, are_first=first_only),
            self._token_weights(hidden) if Outputs.SPARSE in outputs else None,
            self._colbert(hidden, segments) if Outputs.COLBERT in outputs else None,
        )

    def _embedded(self, batch: TokenBatch) -> torch.Tensor:
        starts = np.repeat(batch.indptr[:-1], batch.lengths)  # [T]
        positions = np.arange(len(batch.ids)) - starts + self._model.spec.first_position
        ids, places = (
            to_device(torch.from_numpy(array.astype(np.int32)), self._device) for array in (batch.ids, positions)
        )
        weights = self._weights
        summed = functional.embedding(ids, weights.words) + functional.embedding(places, weights.positions)
        return self._norm(summed, weights.norm)  # [T, H]

    def _layer(self, layer: _Layer, hidden: torch.Tensor, segments: Segments, *, only_first: bool) -> torch.Tensor:
        """Return [T, H], or of only_first the first token of each text, [N, H]."""
        heads = self._model.spec.attention_heads
        query, key, value = functional.linear(hidden, *layer.qkv).view(len(hidden), 3, heads, -1).unbind(1)
        queries = segments
        if only_first:
            first = segments.offsets[:-1]
            query, hidden = query[first], hidden[first]
            queries = Segments.of(np.ones(len(segments.lengths), np.int64), self._device)
        attend = attend_flash if self._is_flash else attend_by_text
        attended = attend(query, key, value, queries, segments).flatten(1)
        hidden = self._norm(functional.linear(attended, *layer.projection) + hidden, layer.attention_norm)
        inner = functional.gelu(functional.linear(hidden, *layer.inner))
        return self._norm(functional.linear(inner, *layer.outer) + hidden, layer.norm)

    def _norm(self, x: torch.Tensor, norm: Pair) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], *norm, eps=self._model.spec.layer_norm_eps)

    # --- the three heads --------------------------------------------------------------------------

    def _dense(self, hidden: torch.Tensor, segments: Segments, *, are_first: bool) -> torch.Tensor:
        if self.space.pooling == "cls":
            pooled = hidden if are_first else hidden[segments.offsets[:-1]]  # [N, H]
        else:
            pooled = torch.segment_reduce(hidden, "mean", lengths=segments.offsets.diff(), unsafe=True)
        return functional.normalize(pooled, dim=-1) if self.space.normalize else pooled

    def _token_weights(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.relu(functional.linear(hidden, *self._weights.heads["sparse_linear"]))[:, 0]  # [T]

    def _colbert(self, hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Return [T - N, H]: all tokens but the first of each text, in the model's precision."""
        kept = np.delete(np.arange(len(hidden)), indptr_of(segments.lengths)[:-1])  # a mask would have to be waited for
        rows = hidden[to_device(torch.from_numpy(kept), self._device)]
        vectors = functional.linear(rows, *self._weights.heads["colbert_linear"])
        return functional.normalize(vectors, dim=-1).to(DTYPES[self._precision])

    def _finished(self, packed: _Packed, batch: TokenBatch) -> Embeddings:
        """Make embeddings of results that are on the host, and widen them: they came in the model's precision."""
        sparse = colbert = None
        if packed.token_weights is not None:
            rows = np.repeat(np.arange(len(batch)), batch.lengths)
            weights = widened(packed.token_weights)
            sparse = max_per_id(rows, batch.ids, weights, len(batch), self.space.special_ids)
        if packed.colbert is not None:
            colbert = MultiVector(indptr_of(np.maximum(batch.lengths - 1, 0)), widened(packed.colbert))
        dense = widened(packed.dense)
        outputs = Outputs.DENSE
        outputs |= Outputs(0) if sparse is None else Outputs.SPARSE
        outputs |= Outputs(0) if colbert is None else Outputs.COLBERT
        form = self.space.form(outputs)
        return Embeddings(self.space.fingerprint, batch.lengths, batch.truncated, dense, sparse, colbert, form)


# --- attention ------------------------------------------------------------------------------------


def attend_flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments
) -> torch.Tensor:
    """Attend within each text, [Q, A, D] over [T, A, D] -> [Q, A, D], in one kernel. On CUDA, fp16."""
    attended = varlen_attn(query, key, value, queries.offsets, keys.offsets, queries.longest, keys.longest)
    assert isinstance(attended, torch.Tensor), "nothing else was asked for"
    return attended


def attend_by_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Segments, keys: Segments
) -> torch.Tensor:
    """Attend as `attend_flash`, on any device and in any precision: text by text, or all at once if of one length."""
    if (q_len := queries.equal) and (k_len := keys.equal):
        parts = ((query, q_len), (key, k_len), (value, k_len))
        q, k, v = (x.reshape(-1, length, *x.shape[1:]).transpose(1, 2) for x, length in parts)  # [N, A, L, D]
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    lengths = (list(queries.lengths), list(keys.lengths), list(keys.lengths))
    split = zip(*map(torch.split, (query, key, value), lengths), strict=True)
    return torch.cat([
        functional.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part))[0].transpose(0, 1)
        for part in split
    ])  # fmt: skip


# --- devices --------------------------------------------------------------------------------------


def usable_device(device: Device, device_id: int) -> torch.device:
    """Return the device; what stands on the CPU is of use in tests. Raises RuntimeUnavailable."""
    if device == "cpu":
        return torch.device("cpu")
    remedy = "install a CUDA build of PyTorch and its driver, or VECFERRY_DEVICE=cpu"
    if not torch.cuda.is_available():
        raise RuntimeUnavailable("torch", "CUDA was asked for, but torch.cuda.is_available() is False", remedy)
    if device_id >= (count := torch.cuda.device_count()):
        raise RuntimeUnavailable("torch", f"there is no GPU {device_id}, only {count}", f"VECFERRY_PROCESSES={count}")
    return torch.device("cuda", device_id)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy to the host without waiting for it; nothing is copied on the CPU."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def widened(tensor: torch.Tensor) -> Float32:
    """Return float32 in memory of its own: pinned pages are few."""
    return tensor.numpy().astype(np.float32)


# --- values ---------------------------------------------------------------------------------------

Pair = tuple[torch.Tensor, torch.Tensor]
"""Weight and bias."""


@dataclass(frozen=True, eq=False)
class _Packed:
    """Results of N texts with T tokens. dense [N, H]; token_weights [T]; colbert [T - N, H]."""

    dense: torch.Tensor
    token_weights: torch.Tensor | None
    colbert: torch.Tensor | None

    def to_host(self) -> _Packed:
        """Begin to copy them to the host."""
        optional = (self.token_weights, self.colbert)
        return _Packed(to_host(self.dense), *(None if each is None else to_host(each) for each in optional))


@dataclass(frozen=True, eq=False)
class _Layer:
    qkv: Pair
    projection: Pair
    attention_norm: Pair
    inner: Pair
    outer: Pair
    norm: Pair


class _Weights:
    """A model's tensors on the device: those of the layers in its precision, of the heads in fp32."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype, self._used = device, dtype, set[str]()
        weights, at = model.weights, "embeddings."
        self.words = self._one(weights, at + "word_embeddings.weight")
        types = self._read(weights, at + "token_type_embeddings.weight")
        self.positions = self._placed(self._read(weights, at + "position_embeddings.weight") + types[0])
        self.norm = self._pair(weights, at + "LayerNorm")
        self.layers = [self._layer(weights, f"encoder.layer.{n}.") for n in range(model.spec.layers)]
        weights.check_all_used(self._used)
        self._dtype = torch.float32
        names = {name.rpartition(".")[0] for name in model.heads or ()}
        self.heads = {name: self._pair(model.heads, name) for name in names}

    def _layer(self, weights: Weights, at: str) -> _Layer:
        parts = [f"{at}attention.self.{part}" for part in ("query", "key", "value")]
        weight, bias = (
            self._placed(torch.cat([self._read(weights, f"{part}.{kind}") for part in parts]))
            for kind in ("weight", "bias")
        )
        names = ("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense")
        return _Layer((weight, bias), *(self._pair(weights, at + name) for name in (*names, "output.LayerNorm")))

    def _pair(self, weights: Weights | None, at: str) -> Pair:
        return self._one(weights, at + ".weight"), self._one(weights, at + ".bias")

    def _one(self, weights: Weights | None, name: str) -> torch.Tensor:
        return self._placed(self._read(weights, name))

    def _read(self, weights: Weights | None, name: str) -> torch.Tensor:
        assert weights is not None
        self._used.add(name)
        return torch.from_numpy(np.ascontiguousarray(weights[name].as_fp32()))

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._dtype == torch.float16:
            tensor = tensor.clamp(-LARGEST, LARGEST)
        return tensor.to(self._device, self._dtype)
