"""Write a checkpoint of BGE-M3's shape and file layout with seeded random weights.

    python -m bench.make_checkpoint OUT                      full size: 24 layers, 2.27 GB pytorch_model.bin
    python -m bench.make_checkpoint OUT --layers 2 --vocabulary 4000

Speed and memory on it are those of the real model; its vectors mean nothing. Needs the `torch` extra.
"""

from __future__ import annotations

import argparse
import json
import lzma
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """BGE-M3's by default. vocabulary: the first pieces of XLM-R's, `<mask>` last."""

    layers: int = 24
    hidden: int = 1024
    attention_heads: int = 16
    feed_forward: int = 4096
    vocabulary: int = 250_002
    positions: int = 8194


def make_checkpoint(folder: Path, shape: Shape | None = None, seed: int = 0) -> Path:
    """config.json, pytorch_model.bin, both heads, tokenizer and sentence-transformers files; returns `folder`."""
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    torch.save(encoder_tensors(shape, generator), folder / "pytorch_model.bin")
    for name, n_out in (("sparse_linear", 1), ("colbert_linear", shape.hidden)):
        head = {"weight": normal(generator, n_out, shape.hidden).half(), "bias": normal(generator, n_out).half()}
        torch.save(head, folder / f"{name}.pt")
    write_json_files(folder, shape)
    (folder / "tokenizer.json").write_bytes(tokenizer_json(shape.vocabulary))
    return folder


def normal(generator: torch.Generator, *shape: int, scale: float = 0.05) -> torch.Tensor:
    return torch.empty(shape).normal_(0.0, scale, generator=generator)


def encoder_tensors(shape: Shape, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Larger than at initialisation, so that attention is peaked and an error shows."""
    h, f = shape.hidden, shape.feed_forward
    tensors = {
        "embeddings.word_embeddings.weight": normal(generator, shape.vocabulary, h),
        "embeddings.position_embeddings.weight": normal(generator, shape.positions, h),
        "embeddings.token_type_embeddings.weight": normal(generator, 1, h),
        **layer_norm(generator, "embeddings.LayerNorm", h),
    }
    linear = (
        ("attention.self.query", h, h), ("attention.self.key", h, h), ("attention.self.value", h, h),
        ("attention.output.dense", h, h), ("intermediate.dense", f, h), ("output.dense", h, f),
    )  # fmt: skip
    for n in range(shape.layers):
        at = f"encoder.layer.{n}."
        for name, n_out, n_in in linear:
            tensors[f"{at}{name}.weight"] = normal(generator, n_out, n_in)
            tensors[f"{at}{name}.bias"] = normal(generator, n_out)
        tensors |= layer_norm(generator, at + "attention.output.LayerNorm", h)
        tensors |= layer_norm(generator, at + "output.LayerNorm", h)
    return tensors


def layer_norm(generator: torch.Generator, at: str, size: int) -> dict[str, torch.Tensor]:
    return {f"{at}.weight": 1 + normal(generator, size), f"{at}.bias": normal(generator, size)}


def write_json_files(folder: Path, shape: Shape) -> None:
    config: dict[str, Any] = {
        "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_act": "gelu",
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.attention_heads, "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary, "max_position_embeddings": shape.positions,
        "position_embedding_type": "absolute", "type_vocab_size": 1, "layer_norm_eps": 1e-05,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
               "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    pooling = {
        "word_embedding_dimension": shape.hidden,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    max_tokens = shape.positions - 2
    contents: dict[str, Any] = {
        "config.json": config,
        "modules.json": [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": max_tokens, **special},
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def tokenizer_json(vocabulary: int) -> bytes:
    """XLM-R's tokenizer.json as BAAI/bge-m3 has it, or its first `vocabulary` - 1 pieces and `<mask>`."""
    raw = lzma.decompress((files("vecferry.demo") / "data/tokenizer.json.xz").read_bytes())
    if vocabulary >= 250_002:
        return raw
    described = json.loads(raw)
    pieces = described["model"]["vocab"]
    described["model"]["vocab"] = [*pieces[: vocabulary - 1], pieces[-1]]
    described["added_tokens"][-1]["id"] = vocabulary - 1
    return json.dumps(described).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--vocabulary", type=int, default=Shape.vocabulary)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = make_checkpoint(args.out, Shape(layers=args.layers, vocabulary=args.vocabulary), args.seed)
    print(f"{folder}: {(folder / 'pytorch_model.bin').stat().st_size / 1e9:.2f} GB pytorch_model.bin")


if __name__ == "__main__":
    main()
