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
        """XLM-RoBERTa counts positions from pad_id + 1, BERT from 0."""
        return self.pad_id + 1 if self.family == "xlm-roberta" else 0


@dataclass(frozen=True)
class Overrides:
    """What the user says where the checkpoint is silent (or wrong)."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None


FAMILIES: dict[str, Family] = {"bert": "bert", "xlm-roberta": "xlm-roberta"}
POOLING_MODES: dict[str, Pooling] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def read_spec(folder: Path, overrides: Overrides | None = None) -> EncoderSpec:
    """Read config.json and the sentence-transformers files beside it.

    Raises UnsupportedModel (family, activation, position type, pooling mode, module), ConfigMissing
    (pooling, normalisation, maximum length) and CheckpointDamaged (unreadable JSON).
    """
    overrides = overrides or Overrides()
    config = _read_json(folder / "config.json")
    if config is None:
        raise CheckpointDamaged(folder / "config.json", "it is missing")
    family = _family(config)
    try:
        positions = int(config["max_position_embeddings"])
        first = int(config.get("pad_token_id") or 0) + 1 if family == "xlm-roberta" else 0
        modules = _read_json(folder / "modules.json")
        prompts = _prompts(folder)
        return EncoderSpec(
            family=family,
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            attention_heads=config["num_attention_heads"],
            feed_forward=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            positions=positions,
            token_types=config.get("type_vocab_size", 1),
            layer_norm_eps=config.get("layer_norm_eps", 1e-12),
            pad_id=config.get("pad_token_id") or 0,
            tokenizer_class=_tokenizer_class(folder, config),
            pooling=overrides.pooling or _pooling(folder),
            normalize=_normalize(modules) if overrides.normalize is None else overrides.normalize,
            max_tokens=_max_tokens(folder, positions - first, overrides),
            query_prefix=prompts["query"] if overrides.query_prefix is None else overrides.query_prefix,
            passage_prefix=prompts["passage"] if overrides.passage_prefix is None else overrides.passage_prefix,
        )
    except KeyError as exc:
        raise CheckpointDamaged(folder / "config.json", f"it has no {exc.args[0]!r}") from exc


def _family(config: dict[str, Any]) -> Family:
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        named = model_type or (config.get("architectures") or ["unknown"])[0]
        raise UnsupportedModel("the architecture", named, "encoders of the families " + ", ".join(FAMILIES))
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise UnsupportedModel("the activation", activation, "gelu (with erf)")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UnsupportedModel("the position embedding", positions, "absolute")
    return FAMILIES[model_type]


def _tokenizer_class(folder: Path, config: dict[str, Any]) -> str:
    said = (_read_json(folder / "tokenizer_config.json") or {}).get("tokenizer_class") or config.get("tokenizer_class")
    return str(said or {"bert": "BertTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}[FAMILIES[config["model_type"]]])


def _pooling(folder: Path) -> Pooling:
    file = "1_Pooling/config.json"
    said = _read_json(folder / file)
    if said is None:
        raise ConfigMissing("pooling", file, "--pooling cls|mean")
    modes = [name for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    if isinstance(said.get("pooling_mode"), str):  # sentence-transformers 5.2 and later
        modes = [f"pooling_mode_{said['pooling_mode']}_token" + ("s" if said["pooling_mode"] != "cls" else "")]
    if len(modes) == 1 and modes[0] in POOLING_MODES:
        return POOLING_MODES[modes[0]]
    raise UnsupportedModel("the pooling", modes or said, "one of " + ", ".join(POOLING_MODES))


def _normalize(modules: list[dict[str, Any]] | None) -> bool:
    if modules is None:
        raise ConfigMissing("normalisation", "modules.json", "--normalize or --no-normalize")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedModel("the module", kind, "Transformer, Pooling, Normalize")
    return "Normalize" in kinds


def _max_tokens(folder: Path, room: int, overrides: Overrides) -> int:
    said = overrides.max_tokens
    if said is None:
        said = (_read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if said is None:
        said = (_read_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    if said is None or said > 10**9:  # transformers writes 1e30 for "not said"
        raise ConfigMissing("maximum number of tokens", "sentence_bert_config.json", f"--max-tokens N (at most {room})")
    if not 2 <= said <= room:
        raise UnsupportedModel("the maximum number of tokens", said, f"2 to {room}, the model's positions")
    return int(said)


def _prompts(folder: Path) -> dict[str, str]:
    said = (_read_json(folder / "config_sentence_transformers.json") or {}).get("prompts") or {}
    return {
        "query": said.get("query") or "",
        "passage": said.get("passage") or said.get("document") or "",
    }


def _read_json(path: Path) -> Any:
    """The parsed file, or None where there is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise CheckpointDamaged(path, f"it is not JSON ({exc})") from exc
