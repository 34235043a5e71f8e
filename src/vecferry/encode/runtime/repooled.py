"""An artifact's model with another pooling of its last hidden states, to see with which one vectors were made."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np
import onnx

from vecferry.embeddings import Embeddings, Float32, Outputs, TokenBatch
from vecferry.encode.runtime import RawOutputs, finish
from vecferry.encode.runtime.onnx import Feed, graph_in_memory
from vecferry.model.artifact import HIDDEN, MODEL, Artifact, VectorSpace

OtherPooling = Literal["cls", "max"]


class RepooledRuntime:
    """A graph that pools by the mean, and so computes every token; one that takes the first computes no other.

    On the CPU, and for a sample: the hidden states of a batch [B, S, H] are all copied out.
    """

    name = "onnx"

    def __init__(self, artifact: Artifact, pooling: OtherPooling) -> None:
        assert artifact.manifest.space.pooling == "mean", "no other graph computes every token"
        self._artifact, self._pooling = artifact, pooling

    @cached_property
    def space(self) -> VectorSpace:
        return self._artifact.manifest.space.model_copy(update={"adapted": f"pooling {self._pooling}"})

    @cached_property
    def _hidden(self) -> Callable[[Feed], np.ndarray]:
        model = onnx.load(self._artifact.path / MODEL, load_external_data=False)
        model.graph.output.append(onnx.ValueInfoProto(name=HIDDEN))
        return graph_in_memory(model.SerializeToString(), self._artifact.path, HIDDEN)

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        ids, mask = batch.padded(self._artifact.manifest.encoder.pad_id)  # [B, S] each
        hidden = self._hidden({"input_ids": ids, "attention_mask": mask})
        return finish(RawOutputs(self._pooled(hidden.astype(np.float32), mask)), batch, outputs, self.space)

    def _pooled(self, hidden: Float32, mask: np.ndarray) -> Float32:
        """Pool [B, S, H] -> [B, H]: the first token, or of each number the largest over the tokens that are there."""
        there = mask[..., None].astype(bool)  # [B, S, 1]
        pooled = hidden[:, 0] if self._pooling == "cls" else np.where(there, hidden, -np.inf).max(axis=1)
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True) if self.space.normalize else 1
        return np.asarray(pooled / lengths, np.float32)

    def describe(self) -> dict[str, str]:
        return {"pooling": self._pooling}
