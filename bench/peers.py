"""What users would take instead of vecferry on a processor, on the same weights: files of each, and how each is run.

OpenVINO (fp32, and int8 as NNCF makes it of calibration texts), llama.cpp (GGUF in F16 and Q8_0, which Ollama runs),
bge-m3-lite's backbone (fp32 and int8). Each is run as its own documentation says, with all threads that it is given and
in fp32 where it may choose; each gives the dense vectors of token ids, so that tokenising counts for nobody.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

from vecferry.embeddings import Float32, TokenBatch
from vecferry.model.checkpoint import Model, read_model


def prepare_peers(folder: Path, calibration: TokenBatch) -> None:
    """Write what is missing of all peers' files beside a checkpoint. calibration: texts that int8 forms are made with.

    bge-m3-lite's int8 form takes 12 GB of memory.
    """
    model = read_model(folder / "checkpoint")
    openvino, lite = folder / "openvino", folder / "lite"
    written: dict[Path, Callable[[Path], None]] = {
        openvino / "fp32.xml": lambda target: write_openvino(model, target),
        openvino / "int8.xml": lambda target: quantize_openvino(openvino / "fp32.xml", target, calibration),
        folder / "gguf" / "f16.gguf": lambda target: write_gguf(model, target, "F16"),
        folder / "gguf" / "q8_0.gguf": lambda target: write_gguf(model, target, "Q8_0"),
        lite / "model.onnx": lambda target: export_backbone(model, target),
        lite / "fp32.onnx": lambda target: fuse_lite(lite / "model.onnx", target),
        lite / "int8.onnx": lambda target: quantize_lite(lite / "fp32.onnx", target, calibration),
    }
    for target, write in written.items():
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=target.parent) as partial:
            write(Path(partial) / target.name)
            files = Path(partial).glob(f"{target.stem}.*")  # weights have the name of the file that refers to them
            for file in sorted(files, key=lambda file: file.name == target.name):
                file.rename(target.with_name(file.name))


# --- OpenVINO -------------------------------------------------------------------------------------


class OpenVino:
    """An IR file, one stream, as its guide says for latency; batches of any shape."""

    def __init__(self, file: Path, threads: int) -> None:
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self.model = openvino.Core().compile_model(file, "CPU", settings)

    def batch(self, tokens: TokenBatch) -> Float32:
        ids, mask = tokens.padded(1)
        vectors: Float32 = self.model({"input_ids": ids, "attention_mask": mask})[0].copy()
        return vectors


def write_openvino(model: Model, target: Path) -> None:
    """Convert the model as transformers has it."""
    import openvino
    import torch

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch_encoder(model)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return torch.nn.functional.normalize(hidden[:, 0], dim=-1)

    with torch.inference_mode():
        converted = openvino.convert_model(Dense().eval(), example_input=example())
    openvino.save_model(converted, target, compress_to_fp16=False)


def quantize_openvino(fp32: Path, target: Path, calibration: TokenBatch) -> None:
    """Write NNCF's static form for transformers, with what it has for defaults."""
    import nncf
    import openvino

    rows = [calibration.take(np.array([row])).padded(1) for row in range(len(calibration))]
    texts = nncf.Dataset([{"input_ids": ids, "attention_mask": mask} for ids, mask in rows])
    model = openvino.Core().read_model(fp32)
    quantized = nncf.quantize(model, texts, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(quantized, target)


def example() -> dict[str, Any]:
    """Return two short texts, one of them padded, for those that trace."""
    import torch

    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 9, 2, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def torch_encoder(model: Model, attention: str = "sdpa") -> Any:
    """Return transformers' encoder with the checkpoint's weights."""
    from transformers import XLMRobertaModel

    return XLMRobertaModel.from_pretrained(model.folder, add_pooling_layer=False, attn_implementation=attention).eval()


# --- llama.cpp ------------------------------------------------------------------------------------


class LlamaCpp:
    """A GGUF file; all texts of a batch in one call, as `Llama.embed` does it."""

    def __init__(self, file: Path, threads: int) -> None:
        import llama_cpp

        room = {"n_ctx": 8192, "n_batch": 8192, "n_ubatch": 8192}
        self.library = llama_cpp
        self.llama = llama_cpp.Llama(
            str(file), embedding=True, n_threads=threads, n_threads_batch=threads, verbose=False, **room
        )

    def batch(self, tokens: TokenBatch) -> Float32:
        batch, context = self.llama._batch, self.llama._ctx  # noqa: SLF001  # it takes ids nowhere else
        batch.reset()
        for row in range(len(tokens)):
            batch.add_sequence(tokens.ids[tokens.indptr[row] : tokens.indptr[row + 1]].tolist(), row, logits_all=True)
        context.decode(batch)
        size = self.llama.n_embd()
        rows = [self.library.llama_get_embeddings_seq(context.ctx, row)[:size] for row in range(len(tokens))]
        vectors = np.array(rows, np.float32)
        unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def write_gguf(model: Model, target: Path, kind: str) -> None:
    """Write the model as llama.cpp's own converter does. kind: of matrices, F16 or Q8_0."""
    import gguf

    spec, matrices = model.spec, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_context_length(spec.positions - spec.first_position)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.feed_forward)
    writer.add_head_count(spec.attention_heads)
    writer.add_layer_norm_eps(spec.layer_norm_eps)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    _add_tokenizer(writer, json.loads(model.tokenizer))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, spec.layers)
    for name in sorted(model.weights):
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None or name.startswith("pooler."):
            continue
        values = np.ascontiguousarray(model.weights[name].as_fp32())
        if "position_embeddings" in name:
            values = values[spec.first_position :]
        is_matrix = values.ndim == 2 and "position" not in name and "token_type" not in name
        stored = matrices if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(called, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, described: Mapping[str, Any]) -> None:
    """Add XLM-RoBERTa's pieces, which llama.cpp calls a tokenizer of T5."""
    import gguf

    pieces = described["model"]["vocab"]
    special = {token["id"] for token in described["added_tokens"]}
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    writer.add_token_types([kinds[row not in special] for row in range(len(pieces))])
    writer.add_token_type_count(1)
    writer.add_add_space_prefix(value=True)
    writer.add_remove_extra_whitespaces(value=True)
    charsmap = next((b64decode(part) for part in _values(described["normalizer"], "precompiled_charsmap")), b"")
    writer.add_precompiled_charsmap(charsmap)
    for name, token in (("bos", 0), ("pad", 1), ("eos", 2), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(value=True)
    writer.add_add_eos_token(value=True)


def _values(described: Any, key: str) -> list[str]:
    """Return what stands under a key, at any depth."""
    if isinstance(described, list):
        return [value for each in described for value in _values(each, key)]
    if not isinstance(described, dict):
        return []
    own = [described[key]] if key in described else []
    return own + [value for each in described.values() for value in _values(each, key)]


# --- bge-m3-lite ----------------------------------------------------------------------------------


class Lite:
    """bge-m3-lite's session over its fused graph, with what its `BGEM3Embedder` makes of the hidden states."""

    def __init__(self, file: Path, threads: int) -> None:
        from bge_m3_lite.model import OnnxBackbone

        self.backbone = OnnxBackbone(file, num_threads=threads)

    def batch(self, tokens: TokenBatch) -> Float32:
        first = self.backbone(*tokens.padded(1))[:, 0]
        unit: Float32 = first / np.linalg.norm(first, axis=1, keepdims=True)
        return unit


def fuse_lite(exported: Path, target: Path) -> None:
    """Fuse an export by the package's own tool, which counts on 24 layers: here the layers are counted for it."""
    from bge_m3_lite.fuse import fuse

    with counting_24_layers():
        fuse(exported, target.parent, basename=target.stem)


def quantize_lite(fp32: Path, target: Path, calibration: TokenBatch) -> None:
    """Quantize by the package's own tool, which reads texts by the published SentencePiece file: here they are ids."""
    from bge_m3_lite.quantize import quantize
    from bge_m3_lite.tokenizer import XLMRobertaTokenizer

    ids = {str(row): calibration.take(np.array([row])).ids.tolist() for row in range(len(calibration))}
    with counting_24_layers(), patch.object(XLMRobertaTokenizer, "from_file", lambda _: KnownTexts(ids)):
        quantize(fp32, target, calibration_texts=list(ids))


def counting_24_layers() -> AbstractContextManager[object]:
    from onnxruntime.transformers.optimizer import BertOnnxModel

    return patch.object(BertOnnxModel, "get_fused_operator_statistics", lambda _: {"Attention": 24})


class KnownTexts:
    """A tokenizer that knows the ids of its texts."""

    PAD_ID = 1

    def __init__(self, ids: Mapping[str, list[int]]) -> None:
        self._ids = ids

    def encode(self, text: str, max_length: int) -> list[int]:
        return self._ids[text][:max_length]


def export_backbone(model: Model, target: Path) -> None:
    """Export the encoder as the hub has it: plain operators, weights in model.onnx_data beside it."""
    import onnx
    import torch

    class Backbone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch_encoder(model, "eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return hidden

    axes = {0: "batch", 1: "tokens"}
    with torch.inference_mode():
        torch.onnx.export(
            Backbone().eval(), tuple(example().values()), str(target), dynamo=False, opset_version=14,
            input_names=["input_ids", "attention_mask"], output_names=["token_embeddings"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "token_embeddings": axes},
        )  # fmt: skip
    onnx.save_model(onnx.load(str(target)), str(target), save_as_external_data=True, location=f"{target.name}_data")
