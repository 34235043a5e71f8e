"""The PyTorch runtime on processors: transformers' encoder and BGE-M3's three heads, on the checkpoint itself.

The fallback where ONNX Runtime cannot run, and the reference that conversions are checked against; needs the
extra `torch`. A GPU has `torch_packed.py`. Why not FlagEmbedding: docs/decisions/0003-pytorch-runtime.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.runtime import RawOutputs, finish
from vecferry.encode.runtime.host import available_cpus
from vecferry.errors import MissingExtra, OutOfMemory, RuntimeFailed
from vecferry.model.artifact import VectorSpace
from vecferry.model.checkpoint import Model
from vecferry.model.spec import Family
from vecferry.model.weights import Weights

try:
    import torch
    import transformers
except ModuleNotFoundError as exc:
    raise MissingExtra("torch", exc.name or "torch") from exc


CLASSES: dict[Family, Any] = {"bert": transformers.BertModel, "xlm-roberta": transformers.XLMRobertaModel}


class TorchRuntime:
    """A checkpoint in PyTorch. Weights are views of the checkpoint's files, not copies."""

    name = "torch"

    def __init__(
        self,
        model: Model,
        *,
        threads: int | None = None,
        encoder: Any = None,
        heads: dict[str, torch.Tensor] | None = None,
        files_read_by: str = "vecferry",
    ) -> None:
        """Load a checkpoint; `threads` holds for the process. Raises CheckpointDamaged.

        encoder, heads: those that others have loaded of the same checkpoint. files_read_by: who these are, or why none.
        """
        torch.set_num_threads(threads or available_cpus())
        self._model = model
        self._files_read_by = files_read_by
        self._encoder = _encoder(model) if encoder is None else encoder
        self._heads = {name: _tensor(model.heads, name) for name in model.heads or ()} if heads is None else heads

    @property
    def space(self) -> VectorSpace:
        return self._model.space

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        ids, mask = batch.padded(self._model.spec.pad_id)  # [B, S] each
        try:
            with torch.inference_mode():
                raw = self._forward(torch.from_numpy(ids), torch.from_numpy(mask), outputs)
        except (torch.OutOfMemoryError, MemoryError) as exc:
            raise OutOfMemory(self.name, len(ids), ids.shape[1]) from exc
        except (RuntimeError, IndexError) as exc:
            if "can't allocate memory" in str(exc):  # PyTorch's CPU allocator has no error of its own
                raise OutOfMemory(self.name, len(ids), ids.shape[1]) from exc
            raise RuntimeFailed(self.name, len(ids), ids.shape[1], str(exc).splitlines()[0]) from exc
        return finish(raw, batch, outputs, self.space)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, outputs: Outputs) -> RawOutputs:
        hidden = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, S, H]
        return RawOutputs(
            self._dense(hidden, mask).numpy(),
            self._token_weights(hidden).numpy() if Outputs.SPARSE in outputs else None,
            self._colbert(hidden).numpy() if Outputs.COLBERT in outputs else None,
        )

    def _dense(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.space.pooling == "cls":
            pooled = hidden[:, 0]  # [B, H]
        else:
            kept = mask[..., None].to(hidden.dtype)
            pooled = (hidden * kept).sum(1) / kept.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.space.normalize else pooled

    def _token_weights(self, hidden: torch.Tensor) -> torch.Tensor:
        weights = torch.nn.functional.linear(
            hidden, self._heads["sparse_linear.weight"], self._heads["sparse_linear.bias"]
        )
        return torch.relu(weights)[..., 0]  # [B, S]

    def _colbert(self, hidden: torch.Tensor) -> torch.Tensor:
        heads = self._heads
        vectors = torch.nn.functional.linear(
            hidden[:, 1:], heads["colbert_linear.weight"], heads["colbert_linear.bias"]
        )
        return torch.nn.functional.normalize(vectors, dim=-1)  # [B, S - 1, H]

    def describe(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": "cpu",
            "threads": str(torch.get_num_threads()),
            "files read by": self._files_read_by,
        }


def _encoder(model: Model) -> Any:
    """Return transformers' model over the checkpoint's tensors, in fp32."""
    spec = model.spec
    kind = CLASSES[spec.family]
    config = kind.config_class(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.attention_heads,
        intermediate_size=spec.feed_forward,
        max_position_embeddings=spec.positions,
        type_vocab_size=spec.token_types,
        layer_norm_eps=spec.layer_norm_eps,
        pad_token_id=spec.pad_id,
    )
    with torch.device("meta"):
        encoder = kind(config, add_pooling_layer=False)
    wanted = set(encoder.state_dict())
    model.weights.check_all_used(wanted)
    encoder.load_state_dict({name: _tensor(model.weights, name) for name in wanted}, assign=True)
    for name, buffer in encoder.embeddings.named_buffers():  # not saved in checkpoints, so made here
        value = (
            torch.arange(spec.positions)[None]
            if name == "position_ids"
            else torch.zeros(buffer.shape, dtype=torch.long)
        )
        encoder.embeddings.register_buffer(name, value, persistent=False)
    return encoder.eval()


def _tensor(weights: Weights | None, name: str) -> torch.Tensor:
    assert weights is not None
    return torch.from_numpy(np.ascontiguousarray(weights[name].as_fp32()))
