"""A LoRA adapter beside the weights, merged into them: W + scale · B·A, with scale = alpha / r.

Hu et al. 2021, LoRA, section 4.1; a rank-stabilised adapter has alpha / √r (Kalajdzievski 2023, rsLoRA). As in
transformers, the weights in the adapter's own folder are its base. What changes a model otherwise is refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from vecferry.errors import AdapterNotMerged, cut_repr
from vecferry.model.json_files import JsonFile, Text, read_fields
from vecferry.model.layout import ADAPTER_CONFIG
from vecferry.model.weights import BESIDE_THE_ENCODER, LazyTensor, Weights, adapter_file, open_adapter

LINEAR = re.compile(
    r"encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)"
)
"""The layers that an adapter is merged into."""
FACTOR = re.compile(r"(.+)\.lora_([AB])(\.\w+)?\.weight")
"""The name of one of the two matrices; peft leaves its adapter's name, such as default, in some."""
LEFT_OVER = re.compile(r"(^|\.)(lora_|base_layer\.|modules_to_save\.|original_module\.)")
"""In the names of a model that was saved with its adapter still in it."""
PATTERN = re.compile(r"\^?[\w.]+")
"""Keys of rank_pattern and alpha_pattern are regular expressions; others than names could take time without end."""
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_bias", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type", "trainable_token_indices", "use_dora",
}  # fmt: skip
"""Fields of training, and those whose effect is in the adapter's tensors. fan_in_fan_out: peft leaves it out of account
for linear layers."""
PLAIN_STARTS = (None, True, False, "gaussian")
"""Of init_lora_weights; others change the base weights as well."""

Factor = Annotated[float, Field(strict=True, gt=0, le=1 << 24, allow_inf_nan=False)]
Rank = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]

NumberT = TypeVar("NumberT", int, float)


class _AdapterConfig(JsonFile):
    model_config = ConfigDict(extra="allow")

    peft_type: Text
    base_model_name_or_path: Text | None = None
    r: Rank = 8
    lora_alpha: Factor = 8
    use_rslora: bool = False
    rank_pattern: Annotated[dict[Text, Rank], Field(max_length=10_000)] | None = None
    alpha_pattern: Annotated[dict[Text, Factor], Field(max_length=10_000)] | None = None
    init_lora_weights: bool | Text | None = True

    @property
    def patterns(self) -> list[str]:
        return [*(self.rank_pattern or {}), *(self.alpha_pattern or {})]

    def rank(self, module: str) -> int:
        return _by_pattern(self.rank_pattern or {}, module, self.r)

    def scale(self, module: str) -> float:
        alpha, rank = _by_pattern(self.alpha_pattern or {}, module, self.lora_alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _by_pattern(patterns: dict[str, NumberT], module: str, otherwise: NumberT) -> NumberT:
    """Return the value of the first pattern that is the end of a module's name, from a dot on."""
    return next((patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def with_adapter(folder: Path, weights: Weights) -> Weights:
    """Return the weights with the folder's LoRA adapter merged into them, or as they are where there is none.

    Raises AdapterNotMerged for what is no plain LoRA of the encoder's linear layers, and for a model that was saved
    with its adapter in it; CheckpointDamaged for matrices that do not fit.
    """
    left_over = next((name for name in weights if LEFT_OVER.search(name)), None)
    if left_over is not None:
        raise AdapterNotMerged(weights.path, f"its tensor {cut_repr(left_over)} is an adapter's")
    path, config_path = adapter_file(folder), folder / ADAPTER_CONFIG
    if path is None and not config_path.exists():
        return weights
    if path is None:
        raise AdapterNotMerged(config_path, "the adapter's weights are not beside it")
    if not config_path.exists():
        raise AdapterNotMerged(path, f"{ADAPTER_CONFIG} is not beside it, which says how much it counts")
    config = read_fields(config_path, _AdapterConfig)
    if another := _not_plain(config):
        raise AdapterNotMerged(config_path, f"it says {another}")
    adapter = open_adapter(path)
    factors = _factors(adapter)
    return weights.replaced(
        {f"{module}.weight": _merged(config, weights, module, adapter, *names) for module, names in factors.items()}
    )


def base_of(folder: Path) -> str:
    """Return the name of the base model that adapter_config.json names."""
    name = read_fields(folder / ADAPTER_CONFIG, _AdapterConfig).base_model_name_or_path
    return "of no name" if name is None else cut_repr(name)


def _not_plain(config: _AdapterConfig) -> str | None:
    """Return what the adapter says that the formula leaves out, or None."""
    if config.peft_type != "LORA":
        return f"peft_type = {cut_repr(config.peft_type)}"
    if config.init_lora_weights not in PLAIN_STARTS:
        return f"init_lora_weights = {cut_repr(config.init_lora_weights)}"
    expression = next((key for key in config.patterns if not PATTERN.fullmatch(key)), None)
    if expression is not None:
        return f"that of its patterns one is the regular expression {cut_repr(expression)}"
    others = {name: value for name, value in (config.model_extra or {}).items() if name not in WITHOUT_EFFECT}
    return next((f"{name} = {cut_repr(value)}" for name, value in others.items() if value), None)


def _factors(adapter: Weights) -> dict[str, list[str]]:
    """Return the names of the tensors A and B of each linear layer. Raises AdapterNotMerged."""
    named: dict[str, dict[str, str]] = {}
    for name in adapter:
        called = name.removeprefix("base_model.model.")
        if called.startswith(BESIDE_THE_ENCODER):
            continue
        factor = FACTOR.fullmatch(called)
        if factor is None or not LINEAR.fullmatch(factor[1]):
            raise AdapterNotMerged(adapter.path, f"its tensor {cut_repr(name)} is not of a linear layer's LoRA")
        named.setdefault(factor[1], {})[factor[2]] = name
    if not named:
        raise AdapterNotMerged(adapter.path, "it has no tensor of the encoder")
    halves = next((module for module, names in named.items() if len(names) < 2), None)
    if halves is not None:
        raise adapter.damaged(f"it has one of the two matrices of {halves} alone")
    return {module: [names["A"], names["B"]] for module, names in named.items()}


def _merged(config: _AdapterConfig, base: Weights, module: str, adapter: Weights, *names: str) -> LazyTensor:
    """Return W + scale · B·A in fp32: W [out, in], A [rank, in], B [out, rank]."""
    weight, (a, b), rank = base.floats(f"{module}.weight"), map(adapter.floats, names), config.rank(module)
    scale = np.float32(config.scale(module))
    if len(weight.shape) != 2 or (a.shape, b.shape) != ((rank, weight.shape[1]), (weight.shape[0], rank)):
        reason = f"{names[0]!r} and {names[1]!r} have the shapes {a.shape} and {b.shape}"
        raise adapter.damaged(f"{reason}, of rank {rank} for a layer of {weight.shape}")

    def merged() -> NDArray[np.float32]:
        return weight.as_fp32() + scale * (b.as_fp32() @ a.as_fp32())

    return LazyTensor(weight.shape, np.dtype(np.float32), merged)
