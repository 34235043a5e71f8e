"""LoRA adapters beside the weights: merged as the papers' formula says, or refused by name; never left out.

What transformers 5.23 and sentence-transformers 6.2 compute with peft 0.21.2 on the same files was held against ours by
hand, since peft is not installed where these tests run: the largest difference was 1.3e-7, over plain, rank-stabilised
and Gaussian adapters, fan_in_fan_out, and both kinds of patterns; left out, an adapter was 0.39 off.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from vecferry.errors import AdapterNotMerged, CheckpointDamaged, UnsupportedModel
from vecferry.model.checkpoint import read_model
from vecferry.model.layout import Layout
from vecferry.model.lora import with_adapter
from vecferry.model.sources import files_to_fetch, open_source
from vecferry.model.weights import Weights, open_weights

QUERY, VALUE = ("encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value")
OUTPUT, INNER = ("encoder.layer.1.output.dense", "encoder.layer.0.intermediate.dense")
SHAPES = {QUERY: (64, 64), VALUE: (64, 64), OUTPUT: (64, 128), INNER: (128, 64)}
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value", "dense"]}


def factors(ranks: dict[str, int]) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter as peft saves them."""
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for module, rank in ranks.items():
        n_out, n_in = SHAPES[module]
        at = f"base_model.model.{module}"
        tensors[f"{at}.lora_A.weight"] = torch.randn(rank, n_in, generator=random)
        tensors[f"{at}.lora_B.weight"] = torch.randn(n_out, rank, generator=random)
    return tensors


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Return a folder with the weights of a whole checkpoint, to which an adapter can be added."""
    (tmp_path / "pytorch_model.bin").symlink_to(tiny_checkpoint / "pytorch_model.bin")
    return tmp_path


def merged(
    folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], name: str = "adapter_model.safetensors"
) -> Weights:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        safetensors.torch.save_file(tensors, folder / name)
    return with_adapter(folder, open_weights(folder))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize(
    ("declared", "ranks", "scales"),
    [
        ({}, {QUERY: 4, INNER: 4}, {QUERY: 2.0, INNER: 2.0}),
        ({"use_rslora": True}, {QUERY: 4, OUTPUT: 4}, {QUERY: 8 / math.sqrt(4), OUTPUT: 8 / math.sqrt(4)}),
        ({"fan_in_fan_out": True, "init_lora_weights": "gaussian"}, {INNER: 4}, {INNER: 2.0}),
        (
            {
                "rank_pattern": {"layer.0.attention.self.query": 2, "value": 6},
                "alpha_pattern": {"value": 3, f"^{OUTPUT}": 5, "elf.query": 100},
            },
            {QUERY: 2, VALUE: 6, OUTPUT: 4},
            {QUERY: 8 / 2, VALUE: 3 / 6, OUTPUT: 5 / 4},  # "elf.query" is no whole name
        ),
    ],
    ids=["plain", "rank-stabilised", "other starts", "patterns"],
)
def test_an_adapter_is_merged_into_the_weights_beside_it(
    folder: Path, declared: dict[str, Any], ranks: dict[str, int], scales: dict[str, float], name: str
) -> None:
    """Hu et al. 2021, section 4.1; Kalajdzievski 2023 for alpha / √r."""
    base = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors = factors(ranks)
    weights = merged(folder, tensors, PLAIN | declared, name)
    for module, scale in scales.items():
        b, a = (tensors[f"base_model.model.{module}.lora_{half}.weight"].double() for half in "BA")
        expected = base[f"{module}.weight"].double() + scale * (b @ a)
        np.testing.assert_allclose(weights[f"{module}.weight"].as_fp32(), expected.numpy(), atol=1e-5)
    for other in base.keys() - {f"{module}.weight" for module in scales}:
        np.testing.assert_array_equal(weights[other].as_fp32(), base[other].numpy())


def test_a_checkpoint_with_an_adapter_is_another_vector_space_and_its_record_has_the_adapter(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """It had been left out, and the vectors were 0.25 off those of sentence-transformers."""
    folder = tmp_path / "adapted"
    shutil.copytree(tiny_checkpoint, folder)
    merged(folder, factors({QUERY: 4}), PLAIN | {"base_model_name_or_path": "BAAI/bge-m3"})
    assert read_model(folder).space.weights != read_model(tiny_checkpoint).space.weights
    assert {"adapter_config.json", "adapter_model.safetensors"} <= open_source(str(folder)).record().files.keys()


def test_an_adapter_is_fetched_from_the_hub() -> None:
    files = ["adapter_config.json", "adapter_model.safetensors", "model.safetensors", "config.json"]
    assert set(files_to_fetch([*files, "README.md", "other/adapter_config.json"], Layout())) == set(files)


def test_what_an_adapter_has_for_a_tasks_head_is_left_out(folder: Path) -> None:
    beside = {
        "base_model.model.pooler.dense.lora_A.weight": torch.ones(4, 64),
        "base_model.model.classifier.bias": torch.ones(2),
    }
    weights = merged(folder, factors({QUERY: 4}) | beside, PLAIN | {"modules_to_save": ["classifier"], "bias": "all"})
    assert set(weights) == set(open_weights(folder))


AT = f"base_model.model.{QUERY}"


@pytest.mark.parametrize(
    "name",
    [
        f"{AT}.lora_magnitude_vector",
        f"{AT}.lora_B.bias",
        f"{AT}.base_layer.bias",
        "base_model.model.embeddings.word_embeddings.lora_embedding_A",
        "base_model.model.embeddings.word_embeddings.lora_A.weight",
        "base_model.model.embeddings.LayerNorm.weight",
        "base_model.model.embeddings.word_embeddings.token_adapter.trainable_tokens_delta",
        f"base_model.model.bert.{QUERY}.lora_A.weight",
        "ia3_l",
    ],
)
def test_a_tensor_that_the_formula_leaves_out_is_refused_by_name(folder: Path, name: str) -> None:
    with pytest.raises(AdapterNotMerged, match=r"its tensor 'base.* is not of a linear|'ia3_l'") as raised:
        merged(folder, factors({QUERY: 4}) | {name: torch.ones(64)}, PLAIN)
    assert "merge_and_unload()" in raised.value.hint


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"use_qalora": True}, "use_qalora = True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication = "),
        ({"a_later_kind": {"x": 1}}, "a_later_kind = {'x': 1}"),
        ({"rank_pattern": {"(a+)+b": 4}}, r"the regular expression '\(a\+\)\+b'"),
        ({"alpha_pattern": {".*dense": 4}}, r"the regular expression '\.\*dense'"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_name(folder: Path, declared: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterNotMerged, match=reason):
        merged(folder, factors({QUERY: 4}), PLAIN | declared)


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY}.lora_A.default.weight",
        "lora_A.weight",
        f"{QUERY}.base_layer.weight",
        f"{QUERY}.lora_magnitude_vector.default",
        "embeddings.LayerNorm.modules_to_save.default.weight",
    ],
)
@pytest.mark.parametrize("prefix", ["", "base_model.model.", "roberta."])
def test_weights_saved_with_their_adapter_in_them_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, prefix: str, name: str
) -> None:
    tensors = torch.load(tiny_checkpoint / "pytorch_model.bin", weights_only=True) | {name: torch.ones(4, 64)}
    torch.save({f"{prefix}{key}": tensor for key, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AdapterNotMerged, match="is an adapter's"):
        with_adapter(tmp_path, open_weights(tmp_path))


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_is_refused(folder: Path, missing: str) -> None:
    merged(folder, factors({QUERY: 4}), PLAIN)
    (folder / missing).unlink()
    with pytest.raises(AdapterNotMerged, match="not beside it"):
        with_adapter(folder, open_weights(folder))


def test_an_adapter_of_no_layer_is_refused(folder: Path) -> None:
    with pytest.raises(AdapterNotMerged, match="no tensor of the encoder"):
        merged(folder, {}, PLAIN)


def test_matrices_that_do_not_fit_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointDamaged, match=r"of rank 8 for a layer of \(64, 64\)"):
        merged(folder, factors({QUERY: 4}), PLAIN | {"r": 8})
    tensors = factors({QUERY: 4})
    del tensors[f"{AT}.lora_B.weight"]
    with pytest.raises(CheckpointDamaged, match=f"one of the two matrices of {QUERY} alone"):
        merged(folder, tensors, PLAIN)


def test_matrices_of_whole_numbers_are_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="int8"):
        merged(folder, {name: tensor.char() for name, tensor in factors({QUERY: 4}).items()}, PLAIN)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"r": 0}, "its r is 0"),
        ({"lora_alpha": "8"}, "its lora_alpha is '8'"),
        ({"peft_type": None}, "its peft_type is"),
        ({"rank_pattern": {"query": -1}}, "its rank_pattern.query is -1"),
    ],
)
def test_a_config_of_an_adapter_with_other_kinds_of_values_is_refused(
    folder: Path, declared: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointDamaged, match=reason):
        merged(folder, factors({QUERY: 4}), PLAIN | declared)
