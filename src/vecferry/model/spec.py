"""What a checkpoint's JSON files say about the model; what they do not say is asked for, never guessed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vecferry.errors import CheckpointDamaged, CheckpointIncomplete, ConfigMissing, UnsupportedModel, cut_repr
from vecferry.model.json_files import JsonFile, Text, checked, read_fields, read_json
from vecferry.model.layout import MODULES_FILE, Layout, read_layout
from vecferry.model.prompts import Prompts, Role
from vecferry.model.tokenizer_files import BERT, XLM_R, TokenizerConfig, class_of, read_tokenizer_config
from vecferry.model.weights import FLOATS_ALONE, HEADS, head_files

Family = Literal["bert", "xlm-roberta"]
Pooling = Literal["cls", "mean"]
Size = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]
Layers = Annotated[int, Field(strict=True, ge=1, le=1 << 10)]
PadId = Annotated[int, Field(strict=True, ge=0, le=1 << 24)]
Epsilon = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]

MAX_TOKENIZER_BYTES = 32_000_000
"""XLM-RoBERTa's has 17 million, with 250,002 pieces."""


class EncoderSpec(BaseModel):
    """The encoder's architecture and how its hidden states become a vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family
    hidden: Size
    layers: Layers
    attention_heads: Size
    feed_forward: Size
    vocabulary: Size
    positions: Size
    token_types: Size
    layer_norm_eps: Epsilon
    pad_id: PadId
    tokenizer_class: Text
    pooling: Pooling
    normalize: bool
    max_tokens: Size
    query_prefix: Text
    passage_prefix: Text

    @property
    def first_position(self) -> int:
        """The first position: XLM-RoBERTa counts from pad_id + 1, BERT from 0."""
        return self.pad_id + 1 if self.family == "xlm-roberta" else 0


@dataclass(frozen=True)
class Overrides:
    """What the user says where the checkpoint is silent (or wrong)."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None

    @classmethod
    def of(cls, spec: EncoderSpec) -> Overrides:
        """Return all that was set or read for `spec`, so that its checkpoint is read again as it was then."""
        return cls(spec.pooling, spec.normalize, spec.max_tokens, spec.query_prefix, spec.passage_prefix)


TASK_CLASS = re.compile(r"(Bert|XLMRoberta)(Model|For\w+)")
FAMILIES: dict[str, Family] = {"bert": "bert", "xlm-roberta": "xlm-roberta"}
PAD_IDS: dict[Family, int] = {"bert": 0, "xlm-roberta": 1}
"""Where config.json is silent, transformers' defaults; they decide the positions of XLM-RoBERTa."""
TOKENIZER_CLASSES: dict[Family, str] = {"bert": BERT, "xlm-roberta": XLM_R}
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean"}


class _Architecture(JsonFile):
    model_type: Text | None = None
    architectures: Annotated[list[Text], Field(max_length=100)] | None = None
    hidden_act: Text = "gelu"
    position_embedding_type: Text = "absolute"
    is_decoder: bool = False
    quantization_config: dict[str, Any] | None = None
    compression_config: dict[str, Any] | None = None


class _Config(JsonFile):
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    type_vocab_size: Size | None = None
    layer_norm_eps: Epsilon = 1e-12
    pad_token_id: PadId | None = None
    tokenizer_class: Text | None = None


Modes = Annotated[
    list[Text], Field(max_length=100), BeforeValidator(lambda mode: [mode] if isinstance(mode, str) else mode)
]


class _PoolingFile(JsonFile):
    """pooling_mode: of sentence-transformers 6; before, there was a flag for each mode."""

    model_config = ConfigDict(extra="allow")

    include_prompt: bool = True
    pooling_mode: Modes | None = None


class _Transformer(JsonFile):
    max_seq_length: int | None = None
    do_lower_case: bool | None = None


def read_spec(folder: Path, overrides: Overrides | None = None) -> EncoderSpec:
    """Read config.json and sentence-transformers' files, each in the folder that modules.json names.

    Raises UnsupportedModel (family, activation, position type, quantization, pooling mode, module, prompt or case
    handling, tokenizer class), ConfigMissing (pooling, normalisation, maximum length, prefixes; all that are missing),
    CheckpointIncomplete (no config.json) and CheckpointDamaged (a file that is not one or too large, unreadable JSON,
    impossible values).
    """
    overrides, layout = overrides or Overrides(), read_layout(folder)
    inside = folder / layout.transformer
    path = inside / "config.json"
    parsed = read_json(path)
    if parsed is None:
        remedy = "Fetch the checkpoint whole, or give the folder that has config.json beside its weights"
        raise CheckpointIncomplete(inside, "it has no config.json", remedy)
    family = _family(checked(path, _Architecture, parsed))
    config = checked(path, _Config, parsed)
    pad_id = PAD_IDS[family] if config.pad_token_id is None else config.pad_token_id
    room = config.max_position_embeddings - (pad_id + 1 if family == "xlm-roberta" else 0)
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointDamaged(path, "its hidden_size is not a multiple of num_attention_heads")
    if pad_id >= config.vocab_size:
        raise CheckpointDamaged(path, f"its pad_token_id is {pad_id}, and vocab_size {config.vocab_size}")
    tokenizer = read_tokenizer_config(inside)
    tokenizer_class = tokenizer.tokenizer_class or config.tokenizer_class or TOKENIZER_CLASSES[family]
    class_of(tokenizer_class)
    prompts = Prompts(folder)
    said = _answers(
        pooling=partial(_pooling, folder, layout, overrides),
        normalize=partial(_normalize, folder, layout, overrides),
        max_tokens=partial(_max_tokens, layout.transformer_file(folder), tokenizer, room, overrides),
        query_prefix=partial(_prefix, prompts, "query", overrides.query_prefix),
        passage_prefix=partial(_prefix, prompts, "passage", overrides.passage_prefix),
    )
    if said["query_prefix"] or said["passage_prefix"]:
        _check_prompt_is_pooled(folder / layout.pooling_file)
    return EncoderSpec(
        family=family,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        attention_heads=config.num_attention_heads,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        token_types=config.type_vocab_size or 2,
        layer_norm_eps=config.layer_norm_eps,
        pad_id=pad_id,
        tokenizer_class=tokenizer_class,
        **said,
    )


def _answers(**questions: Callable[[], Any]) -> dict[str, Any]:
    """Answer each question by name. Raises one ConfigMissing for all that the checkpoint is silent on."""
    answers: dict[str, Any] = {}
    unanswered: list[ConfigMissing] = []
    for name, answer in questions.items():
        try:
            answers[name] = answer()
        except ConfigMissing as exc:
            unanswered.append(exc)
    if unanswered:
        what = [fact for exc in unanswered for fact in exc.what]
        raise ConfigMissing(what, [option for exc in unanswered for option in exc.options])
    return answers


def _family(config: _Architecture) -> Family:
    named = (config.architectures or ["unknown"])[0]
    model_type = config.model_type
    if model_type is None and (found := TASK_CLASS.fullmatch(named)):  # as written before there was model_type
        model_type = {"Bert": "bert", "XLMRoberta": "xlm-roberta"}[found[1]]
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            "the architecture", model_type or named, "encoders of the families " + ", ".join(FAMILIES)
        )
    for what, value, supported in (
        ("the activation", config.hidden_act, "gelu"),
        ("the position embedding", config.position_embedding_type, "absolute"),
        ("the option is_decoder =", config.is_decoder, False),
    ):
        if value != supported:
            raise UnsupportedModel(what, value, str(supported))
    for quantized in (config.quantization_config, config.compression_config):
        if quantized is not None:
            raise UnsupportedModel("the quantization", _quantization(quantized), FLOATS_ALONE)
    return FAMILIES[model_type]


def _quantization(declared: dict[str, Any]) -> str:
    """Return a quantization's method; bitsandbytes did not name itself at first."""
    flags = [name for name in ("load_in_8bit", "load_in_4bit") if declared.get(name)]
    method = declared.get("quant_method") or ("bitsandbytes" if flags else "of an unnamed method")
    return " ".join([str(method), *flags])


def _pooling(folder: Path, layout: Layout, overrides: Overrides) -> Pooling:
    file = layout.pooling_file
    declared = read_fields(folder / file, _PoolingFile)
    if overrides.pooling:
        return overrides.pooling
    modes = _flagged(folder / file, declared) if declared.pooling_mode is None else declared.pooling_mode
    if not modes and _is_bge_m3(folder, layout):
        return "cls"
    if not modes:
        raise ConfigMissing([f"pooling ({file} is missing or silent)"], ["--pooling cls|mean"])
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UnsupportedModel("the pooling", " and ".join(modes), " or ".join(POOLINGS))
    return POOLINGS[modes[0]]


def _check_prompt_is_pooled(path: Path) -> None:
    declared = read_fields(path, _PoolingFile)
    if not declared.include_prompt:
        raise UnsupportedModel("the pooling option include_prompt =", declared.include_prompt, "true")


def _flagged(path: Path, declared: _PoolingFile) -> list[str]:
    """Return the modes whose flags are set, such as pooling_mode_cls_token."""
    flags = {name: on for name, on in (declared.model_extra or {}).items() if name.startswith("pooling_mode_")}
    for name, on in flags.items():
        if not isinstance(on, bool):
            raise CheckpointDamaged(path, f"its {name} is {cut_repr(on)}, neither true nor false")
    modes = [name.removeprefix("pooling_mode_") for name, on in flags.items() if on]
    return [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]


def _normalize(folder: Path, layout: Layout, overrides: Overrides) -> bool:
    declared = layout.normalize if overrides.normalize is None else overrides.normalize
    if declared is None and not _is_bge_m3(folder, layout):
        raise ConfigMissing([f"normalisation ({MODULES_FILE} is missing)"], ["--normalize or --no-normalize"])
    return True if declared is None else declared


def _is_bge_m3(folder: Path, layout: Layout) -> bool:
    """Return whether FlagEmbedding wrote the checkpoint: both heads, no modules.json. It takes CLS, of unit length."""
    return layout.normalize is None and len(head_files(folder)) == len(HEADS)


def _max_tokens(path: Path, tokenizer: TokenizerConfig, room: int, overrides: Overrides) -> int:
    """Return the model's limit; where sentence-transformers 6 leaves it out, the tokenizer's model_max_length."""
    transformer = read_fields(path, _Transformer)
    lowers = tokenizer.do_lower_case and "do_lower_case" in tokenizer.model_fields_set
    if transformer.do_lower_case and not lowers:
        raise UnsupportedModel("the option do_lower_case =", transformer.do_lower_case, "what the tokenizer does")
    declared = (overrides.max_tokens, transformer.max_seq_length, tokenizer.model_max_length)
    for tokens in declared:
        if isinstance(tokens, int) and tokens <= 10**9:  # transformers writes 1e30 for "not said"
            if not 2 <= tokens <= room:
                supported = f"2 to {room}, the model's positions: --max-tokens {room}"
                raise UnsupportedModel("the maximum number of tokens", tokens, supported)
            return tokens
    what = f"maximum number of tokens ({path.name} is missing or silent)"
    raise ConfigMissing([what], [f"--max-tokens N (at most {room})"])


def _prefix(prompts: Prompts, role: Role, override: str | None) -> str:
    return prompts.prefix(role) if override is None else override
