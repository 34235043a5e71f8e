"""What a checkpoint's JSON files say about the model; what they do not say is asked for, never guessed.

Each file has a schema of what is read of it: types and bounds. Whatever else it holds gives a SourceError.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from vecferry.errors import CheckpointDamaged, ConfigMissing, UnsupportedModel, cut_repr
from vecferry.model.files import read_whole

Family = Literal["bert", "xlm-roberta"]
Pooling = Literal["cls", "mean"]
Size = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]
Layers = Annotated[int, Field(strict=True, ge=1, le=1 << 10)]
PadId = Annotated[int, Field(strict=True, ge=0, le=1 << 24)]
Epsilon = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True, max_length=10_000)]
"""With a bound, since what is then read is refused where it has no UTF-8 form."""

MAX_JSON_BYTES = 4_000_000
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


FAMILIES: dict[str, Family] = {"bert": "bert", "xlm-roberta": "xlm-roberta"}
PAD_IDS: dict[Family, int] = {"bert": 0, "xlm-roberta": 1}
"""Where config.json is silent, transformers' defaults; they decide the positions of XLM-RoBERTa."""
TOKENIZER_CLASSES: dict[Family, str] = {"bert": "BertTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean"}
MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": None}
"""In their order, with the folder from which each is read; None: from none."""


class _File(BaseModel):
    """A JSON file: the fields that are read, of exactly these types. Others are left alone."""

    model_config = ConfigDict(frozen=True, strict=True)


class _Architecture(_File):
    model_type: Text | None = None
    architectures: Annotated[list[Text], Field(max_length=100)] | None = None
    hidden_act: Text = "gelu"
    position_embedding_type: Text = "absolute"
    is_decoder: bool = False


class _Config(_File):
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


class _TokenizerConfig(_File):
    tokenizer_class: Text | None = None
    do_lower_case: bool | None = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = True
    model_max_length: int | float | None = None


class _BertNormalizer(_File):
    lowercase: bool | None = None
    strip_accents: bool | None = None
    handle_chinese_chars: bool | None = None


Modes = Annotated[
    list[Text], Field(max_length=100), BeforeValidator(lambda mode: [mode] if isinstance(mode, str) else mode)
]


class _PoolingFile(_File):
    """pooling_mode: of sentence-transformers 6; before, there was a flag for each mode."""

    model_config = ConfigDict(extra="allow")

    include_prompt: bool = True
    pooling_mode: Modes | None = None


class _Module(_File):
    type: Text
    path: Text | None = None


class _Transformer(_File):
    max_seq_length: int | None = None
    do_lower_case: bool | None = None


class _SentenceTransformers(_File):
    prompts: Annotated[dict[str, Text | None], Field(max_length=1000)] | None = None


MODULE_LIST = TypeAdapter(Annotated[list[_Module], Field(max_length=100)])
FileT = TypeVar("FileT", bound=_File)


def read_spec(folder: Path, overrides: Overrides | None = None) -> EncoderSpec:
    """Read config.json and the sentence-transformers files beside it.

    Raises UnsupportedModel (family, activation, position type, pooling mode, module, prompt or case
    handling, two files that contradict), ConfigMissing (pooling, normalisation, maximum length) and
    CheckpointDamaged (a file that is not one or too large, unreadable JSON, impossible values).
    """
    overrides = overrides or Overrides()
    path = folder / "config.json"
    parsed = _parsed(path)
    if parsed is None:
        raise CheckpointDamaged(path, "it is missing")
    family = _family(_checked(path, _Architecture, parsed))
    config = _checked(path, _Config, parsed)
    pad_id = PAD_IDS[family] if config.pad_token_id is None else config.pad_token_id
    room = config.max_position_embeddings - (pad_id + 1 if family == "xlm-roberta" else 0)
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointDamaged(path, "its hidden_size is not a multiple of num_attention_heads")
    if pad_id >= config.vocab_size:
        raise CheckpointDamaged(path, f"its pad_token_id is {pad_id}, and vocab_size {config.vocab_size}")
    tokenizer = _read(folder / "tokenizer_config.json", _TokenizerConfig)
    prompts = _prompts(folder, overrides)
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
        tokenizer_class=_tokenizer_class(folder, tokenizer, config.tokenizer_class or TOKENIZER_CLASSES[family]),
        pooling=_pooling(folder, overrides, prompts),
        normalize=_normalize(folder, overrides),
        max_tokens=_max_tokens(folder, tokenizer, room, overrides),
        query_prefix=prompts["query"],
        passage_prefix=prompts["passage"],
    )


def _family(config: _Architecture) -> Family:
    if config.model_type not in FAMILIES:
        named = config.model_type or (config.architectures or ["unknown"])[0]
        raise UnsupportedModel("the architecture", named, "encoders of the families " + ", ".join(FAMILIES))
    for what, value, supported in (
        ("the activation", config.hidden_act, "gelu"),
        ("the position embedding", config.position_embedding_type, "absolute"),
        ("the option is_decoder =", config.is_decoder, False),
    ):
        if value != supported:
            raise UnsupportedModel(what, value, str(supported))
    return FAMILIES[config.model_type]


def _tokenizer_class(folder: Path, declared: _TokenizerConfig, otherwise: str) -> str:
    tokenizer_class = declared.tokenizer_class or otherwise
    if tokenizer_class.startswith("BertTokenizer"):
        _check_normalizer(folder / "tokenizer.json", declared)
    return tokenizer_class


def _check_normalizer(path: Path, declared: _TokenizerConfig) -> None:
    """Refuse a tokenizer.json that normalises otherwise than tokenizer_config.json, which transformers obeys."""
    parsed = _parsed(path, MAX_TOKENIZER_BYTES)
    normalizer = parsed.get("normalizer") if isinstance(parsed, dict) else None
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return
    held = _checked(path, _BertNormalizer, normalizer)
    for name, value, expected in (
        ("lowercase", held.lowercase, declared.do_lower_case),
        ("strip_accents", held.strip_accents, declared.strip_accents),
        ("handle_chinese_chars", held.handle_chinese_chars, declared.tokenize_chinese_chars),
    ):
        if value != expected:
            raise UnsupportedModel(f"{name} in tokenizer.json =", value, f"{expected}, as in tokenizer_config.json")


def _pooling(folder: Path, overrides: Overrides, prompts: dict[str, str]) -> Pooling:
    file = "1_Pooling/config.json"
    declared = _read(folder / file, _PoolingFile)
    if not declared.include_prompt and any(prompts.values()):
        raise UnsupportedModel("the pooling option include_prompt =", declared.include_prompt, "true")
    if overrides.pooling:
        return overrides.pooling
    modes = _flagged(folder / file, declared) if declared.pooling_mode is None else declared.pooling_mode
    if not modes:
        raise ConfigMissing("pooling", file, "--pooling cls|mean")
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UnsupportedModel("the pooling", " and ".join(modes), " or ".join(POOLINGS))
    return POOLINGS[modes[0]]


def _flagged(path: Path, declared: _PoolingFile) -> list[str]:
    """Return the modes whose flags are set, such as pooling_mode_cls_token."""
    flags = {name: on for name, on in (declared.model_extra or {}).items() if name.startswith("pooling_mode_")}
    for name, on in flags.items():
        if not isinstance(on, bool):
            raise CheckpointDamaged(path, f"its {name} is {cut_repr(on)}, neither true nor false")
    modes = [name.removeprefix("pooling_mode_") for name, on in flags.items() if on]
    return [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]


def _normalize(folder: Path, overrides: Overrides) -> bool:
    path = folder / "modules.json"
    parsed = _parsed(path)
    if parsed is None:
        if overrides.normalize is None:
            raise ConfigMissing("normalisation", "modules.json", "--normalize or --no-normalize")
        return overrides.normalize
    try:
        modules = MODULE_LIST.validate_python(parsed)
    except ValidationError as exc:
        _refuse(path, exc)
    kinds, known = [module.type.rsplit(".", 1)[-1] for module in modules], list(MODULES)
    for kind, module in zip(kinds, modules, strict=True):
        if kind not in MODULES:
            raise UnsupportedModel("the module", kind, ", ".join(MODULES))
        if module.path is not None and MODULES[kind] not in (None, module.path):
            raise UnsupportedModel(f"the module {kind} in the folder", module.path, repr(MODULES[kind]))
    if kinds != known[: len(kinds)] or len(kinds) < 2:
        raise UnsupportedModel("the order of modules", ", ".join(kinds), ", ".join(MODULES))
    return "Normalize" in kinds if overrides.normalize is None else overrides.normalize


def _max_tokens(folder: Path, tokenizer: _TokenizerConfig, room: int, overrides: Overrides) -> int:
    """Return the model's limit; where sentence-transformers 6 leaves it out, the tokenizer's model_max_length."""
    transformer = _read(folder / "sentence_bert_config.json", _Transformer)
    lowers = tokenizer.do_lower_case and "do_lower_case" in tokenizer.model_fields_set
    if transformer.do_lower_case and not lowers:
        raise UnsupportedModel("the option do_lower_case =", transformer.do_lower_case, "what the tokenizer does")
    declared = (overrides.max_tokens, transformer.max_seq_length, tokenizer.model_max_length)
    for tokens in declared:
        if isinstance(tokens, int) and tokens <= 10**9:  # transformers writes 1e30 for "not said"
            if not 2 <= tokens <= room:
                raise UnsupportedModel("the maximum number of tokens", tokens, f"2 to {room}, the model's positions")
            return tokens
    raise ConfigMissing("maximum number of tokens", "sentence_bert_config.json", f"--max-tokens N (at most {room})")


def _prompts(folder: Path, overrides: Overrides) -> dict[str, str]:
    """Return the prefixes "query" and "passage", which sentence-transformers also calls document or corpus."""
    declared = _read(folder / "config_sentence_transformers.json", _SentenceTransformers).prompts or {}
    passage = declared.get("document") or declared.get("passage") or declared.get("corpus") or ""
    return {
        "query": declared.get("query") or "" if overrides.query_prefix is None else overrides.query_prefix,
        "passage": passage if overrides.passage_prefix is None else overrides.passage_prefix,
    }


# --- files ----------------------------------------------------------------------------------------


def _read(path: Path, schema: type[FileT]) -> FileT:
    """Return the file's fields, or their defaults where there is no file."""
    parsed = _parsed(path)
    return _checked(path, schema, {} if parsed is None else parsed)


def _parsed(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return what the JSON file holds, or None where there is none."""
    try:
        parsed = json.loads(read_whole(path, max_bytes), parse_constant=_not_a_number)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as exc:
        raise CheckpointDamaged(path, f"it is not JSON ({exc})") from exc
    if parsed is None:
        raise CheckpointDamaged(path, "it holds nothing but null")
    return parsed


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _checked(path: Path, schema: type[FileT], parsed: Any) -> FileT:
    try:
        return schema.model_validate(parsed)
    except ValidationError as exc:
        _refuse(path, exc)


def _refuse(path: Path, exc: ValidationError) -> NoReturn:
    first = exc.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])).encode(errors="backslashreplace").decode() or "content"
    is_missing = first["type"] == "missing"
    reason = f"it has no {where}" if is_missing else f"its {where} is {cut_repr(first['input'])} ({first['msg']})"
    raise CheckpointDamaged(path, reason) from exc
