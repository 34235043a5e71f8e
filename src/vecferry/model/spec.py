"""What a checkpoint's JSON files say about the model; what they do not say is asked for, never guessed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vecferry.errors import CheckpointDamaged, ConfigMissing, UnsupportedModel

Family = Literal["bert", "xlm-roberta"]
Pooling = Literal["cls", "mean"]


class EncoderSpec(BaseModel):
    """The encoder's architecture and how its hidden states become a vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family
    hidden: int
    layers: int
    attention_heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    layer_norm_eps: float
    pad_id: int
    tokenizer_class: str
    pooling: Pooling
    normalize: bool
    max_tokens: int
    query_prefix: str
    passage_prefix: str

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
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean"}
MODULES = ["Transformer", "Pooling", "Normalize"]


def read_spec(folder: Path, overrides: Overrides | None = None) -> EncoderSpec:
    """Read config.json and the sentence-transformers files beside it.

    Raises UnsupportedModel (family, activation, position type, pooling mode, module, prompt or case
    handling, two files that contradict), ConfigMissing (pooling, normalisation, maximum length) and
    CheckpointDamaged (unreadable JSON, impossible values).
    """
    overrides = overrides or Overrides()
    config = _read_json(folder / "config.json", dict)
    if config is None:
        raise CheckpointDamaged(folder / "config.json", "it is missing")
    family = _family(config)
    _check_sizes(folder, config)
    pad_id = PAD_IDS[family] if config.get("pad_token_id") is None else config["pad_token_id"]
    room = config["max_position_embeddings"] - (pad_id + 1 if family == "xlm-roberta" else 0)
    prompts = _prompts(folder, overrides)
    return EncoderSpec(
        family=family,
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        attention_heads=config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        token_types=config.get("type_vocab_size", 2),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        pad_id=pad_id,
        tokenizer_class=_tokenizer_class(folder, config),
        pooling=_pooling(folder, overrides, prompts),
        normalize=_normalize(folder, overrides),
        max_tokens=_max_tokens(folder, room, overrides),
        query_prefix=prompts["query"],
        passage_prefix=prompts["passage"],
    )


def _family(config: dict[str, Any]) -> Family:
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        named = model_type or (config.get("architectures") or ["unknown"])[0]
        raise UnsupportedModel("the architecture", named, "encoders of the families " + ", ".join(FAMILIES))
    for what, name, supported in (
        ("the activation", "hidden_act", "gelu"),
        ("the position embedding", "position_embedding_type", "absolute"),
        ("the option is_decoder =", "is_decoder", False),
    ):
        if config.get(name, supported) != supported:
            raise UnsupportedModel(what, config[name], str(supported))
    return FAMILIES[model_type]


def _check_sizes(folder: Path, config: dict[str, Any]) -> None:
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
             "max_position_embeddings")  # fmt: skip
    lowest = dict.fromkeys(sizes, 1) | {"type_vocab_size": 1, "pad_token_id": 0}
    declared = {"type_vocab_size": 2, **{name: value for name, value in config.items() if value is not None}}
    for name, least in lowest.items():
        value = declared.get(name, None if name in sizes else least)
        if type(value) is not int or value < least:
            raise CheckpointDamaged(folder / "config.json", f"its {name} is {value!r}")
    if not isinstance(config.get("layer_norm_eps", 0.0), int | float):
        raise CheckpointDamaged(folder / "config.json", f"its layer_norm_eps is {config['layer_norm_eps']!r}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise CheckpointDamaged(folder / "config.json", "its hidden_size is not a multiple of num_attention_heads")


def _tokenizer_class(folder: Path, config: dict[str, Any]) -> str:
    declared = _tokenizer_config(folder).get("tokenizer_class") or config.get("tokenizer_class")
    of_family = {"bert": "BertTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}[FAMILIES[config["model_type"]]]
    tokenizer_class = str(declared or of_family)
    if tokenizer_class.startswith("BertTokenizer"):
        _check_normalizer(folder)
    return tokenizer_class


def _check_normalizer(folder: Path) -> None:
    """Refuse a tokenizer.json that normalises otherwise than tokenizer_config.json, which transformers obeys."""
    declared = _tokenizer_config(folder)
    by_config = {
        "lowercase": declared.get("do_lower_case", True),
        "strip_accents": declared.get("strip_accents"),
        "handle_chinese_chars": declared.get("tokenize_chinese_chars", True),
    }
    held = (_read_json(folder / "tokenizer.json", dict) or {}).get("normalizer")
    for name, value in by_config.items():
        if isinstance(held, dict) and held.get("type") == "BertNormalizer" and held.get(name) != value:
            raise UnsupportedModel(
                f"{name} in tokenizer.json =", held.get(name), f"{value}, as in tokenizer_config.json"
            )


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "tokenizer_config.json", dict) or {}


def _pooling(folder: Path, overrides: Overrides, prompts: dict[str, str]) -> Pooling:
    file = "1_Pooling/config.json"
    declared = _read_json(folder / file, dict) or {}
    if declared.get("include_prompt") is False and any(prompts.values()):
        raise UnsupportedModel("the pooling option include_prompt =", declared["include_prompt"], "true")
    if overrides.pooling:
        return overrides.pooling
    modes = declared.get("pooling_mode")  # sentence-transformers 6; before, a flag for each mode
    if modes is None:
        flags = [name for name, on in declared.items() if name.startswith("pooling_mode_") and on is True]
        modes = [name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for name in flags]
    modes = [modes] if isinstance(modes, str) else modes
    if not modes:
        raise ConfigMissing("pooling", file, "--pooling cls|mean")
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UnsupportedModel("the pooling", " and ".join(map(str, modes)), " or ".join(POOLINGS))
    return POOLINGS[modes[0]]


def _normalize(folder: Path, overrides: Overrides) -> bool:
    modules = _read_json(folder / "modules.json", list)
    if modules is None:
        if overrides.normalize is None:
            raise ConfigMissing("normalisation", "modules.json", "--normalize or --no-normalize")
        return overrides.normalize
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules if isinstance(module, dict)]
    for kind in kinds:
        if kind not in MODULES:
            raise UnsupportedModel("the module", kind, ", ".join(MODULES))
    if kinds != MODULES[: len(kinds)] or len(kinds) < 2:
        raise UnsupportedModel("the order of modules", ", ".join(kinds), ", ".join(MODULES))
    return "Normalize" in kinds if overrides.normalize is None else overrides.normalize


def _max_tokens(folder: Path, room: int, overrides: Overrides) -> int:
    """Return the model's limit; where sentence-transformers 6 leaves it out, the tokenizer's model_max_length."""
    transformer = _read_json(folder / "sentence_bert_config.json", dict) or {}
    tokenizer = _tokenizer_config(folder)
    if transformer.get("do_lower_case") and not tokenizer.get("do_lower_case"):
        raise UnsupportedModel("the option do_lower_case =", transformer["do_lower_case"], "what the tokenizer does")
    declared = (overrides.max_tokens, transformer.get("max_seq_length"), tokenizer.get("model_max_length"))
    for tokens in declared:
        if isinstance(tokens, int) and tokens <= 10**9:  # transformers writes 1e30 for "not said"
            if not 2 <= tokens <= room:
                raise UnsupportedModel("the maximum number of tokens", tokens, f"2 to {room}, the model's positions")
            return int(tokens)
    raise ConfigMissing("maximum number of tokens", "sentence_bert_config.json", f"--max-tokens N (at most {room})")


def _prompts(folder: Path, overrides: Overrides) -> dict[str, str]:
    """Return the prefixes "query" and "passage", which sentence-transformers also calls document or corpus."""
    file = folder / "config_sentence_transformers.json"
    declared = (_read_json(file, dict) or {}).get("prompts") or {}
    if not isinstance(declared, dict) or not all(isinstance(prompt, str | None) for prompt in declared.values()):
        raise CheckpointDamaged(file, f"its prompts are {declared!r:.80}")
    passage = declared.get("document") or declared.get("passage") or declared.get("corpus") or ""
    return {
        "query": declared.get("query") or "" if overrides.query_prefix is None else overrides.query_prefix,
        "passage": passage if overrides.passage_prefix is None else overrides.passage_prefix,
    }


def _read_json(path: Path, kind: type) -> Any:
    """Return the parsed file, or None where there is none."""
    try:
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as exc:
        raise CheckpointDamaged(path, f"it is not JSON ({exc})") from exc
    if not isinstance(parsed, kind):
        raise CheckpointDamaged(path, f"it holds a {type(parsed).__name__}, not a {kind.__name__}")
    return parsed
