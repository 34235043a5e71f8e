"""The two classes that stand for others', held against every argument and member that those have."""

import inspect
import json
import logging
from typing import Any

import pytest

from tests.compatibility.drop_in import (
    CALLED,
    DROP_INS,
    PAGE,
    DropIn,
    arguments_of,
    inspected,
    is_refused,
    tables,
)
from tests.compatibility.page import section
from vecferry.encode.encoder import Encoder
from vecferry.errors import ArgumentRefused, MemberRefused, SettingsError, VecferryError
from vecferry.integrations.flag_embedding import BGEM3FlagModel
from vecferry.integrations.sentence_transformers import SentenceTransformer
from vecferry.model.artifact import Artifact

FORMER = {"tokenizer_kwargs", "processing_kwargs", "device", "convert_to_numpy"}
"""Arguments of other versions, and those that the originals take among `kwargs`."""
ENCODE, COUNTS = ("encode", "encode_query", "encode_document"), ("batch_size", "chunk_size", "truncate_dim")
REFUSED: dict[type, list[tuple[str, dict[str, Any]]]] = {
    SentenceTransformer: [
        ("__init__", {"modules": "cuda"}),
        ("__init__", {"revision": "main"}),
        ("__init__", {"processor_kwargs": {"padding_side": "left"}}),
        ("__init__", {"tokenizer_kwargs": {"padding_side": "left"}}),
        ("__init__", {"config_kwargs": {"hidden_size": 1}}),
        ("__init__", {"similarity_fn_name": "maxsim"}),
        ("__init__", {"default_prompt_name": "classify"}),
        ("__init__", {"truncate_dim": 0}),
        *((method, {"precision": name}) for method in ENCODE for name in ("int8", "uint8", "binary", "ubinary")),
        *((method, {"output_value": value}) for method in ENCODE for value in ("token_embeddings", None)),
        *((method, {name: value}) for method in ENCODE for name in COUNTS for value in (0, -1, 1.5)),
        *((method, {"processing_kwargs": {"text": {}}}) for method in ENCODE),
    ],
    BGEM3FlagModel: [
        ("__init__", {"normalize_embeddings": False}),
        ("__init__", {"pooling_method": "mean"}),
        ("__init__", {"colbert_dim": 128}),
        ("__init__", {"batch_size": 0}),
        ("__init__", {"truncate_dim": 0}),
        ("__init__", {"query_max_length": 8193}),
        ("__init__", {"passage_max_length": 0}),
        ("encode", {"batch_size": 0}),
        ("encode", {"max_length": 0}),
        ("encode", {"max_length": 8193}),
        ("encode_queries", {"max_length": 10**6}),
        ("encode_corpus", {"return_dense": False}),
    ],
}  # fmt: skip
NO_EFFECT: dict[type, list[tuple[str, dict[str, Any]]]] = {
    SentenceTransformer: [
        (
            "__init__",
            {
                "device": "cuda:0", "cache_folder": "/cache", "trust_remote_code": True, "local_files_only": True,
                "token": "hf_secret", "use_auth_token": "hf_secret", "model_kwargs": {"torch_dtype": "float16"},
                "model_card_data": object(), "backend": "openvino",
            },
        ),
        (
            "encode",
            {"batch_size": 1, "show_progress_bar": True, "device": ["cpu"], "pool": {"input": None}, "chunk_size": 7},
        ),
        ("start_multi_process_pool", {"target_devices": ["cpu"]}),
    ],
    BGEM3FlagModel: [
        (
            "__init__",
            {
                "use_fp16": True, "use_bf16": True, "devices": ["cuda:0"], "device": "cpu", "trust_remote_code": True,
                "cache_dir": "/cache", "batch_size": 7, "convert_to_numpy": True,
            },
        ),
        ("encode", {"batch_size": 7, "convert_to_numpy": True}),
        ("encode_single_device", {"device": "cuda:0"}),
        ("encode_multi_process", {"pool": {"input": None}}),
        ("start_multi_process_pool", {"process_target_func": print}),
    ],
}  # fmt: skip
each_class = pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda drop_in: drop_in.name)


@pytest.fixture(scope="module")
def encoder(tiny_artifact: Artifact) -> Encoder:
    return Encoder.open(tiny_artifact.path)


def called(kind: type, method: str, encoder: Encoder, arguments: dict[str, Any]) -> Any:
    if method == CALLED:
        return kind(encoder, **arguments)
    texts = [] if method.startswith("start") else [["a"]]
    return getattr(kind(encoder), method)(*texts, **arguments)


@each_class
def test_every_member_is_there_or_refused_by_its_name(drop_in: DropIn, encoder: Encoder) -> None:
    model = drop_in.ours(encoder)
    for name in drop_in.recorded()["members"]:
        if is_refused(drop_in, name):
            for owner in (model, drop_in.ours):
                with pytest.raises(MemberRefused, match=f"^{drop_in.name}.{name} is not supported. .+[.]$"):
                    getattr(owner, name)
            assert not hasattr(model, name)
        else:
            assert hasattr(model, name), name


@each_class
def test_every_argument_is_taken(drop_in: DropIn) -> None:
    for name, arguments in drop_in.recorded()["members"].items():
        if arguments is not None and not is_refused(drop_in, name):
            member = inspect.getattr_static(drop_in.ours, name)
            signature = inspect.signature(getattr(member, "__func__", member))
            takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
            assert takes_any or set(arguments) <= set(signature.parameters), name


@each_class
def test_arguments_by_position_are_the_same(drop_in: DropIn) -> None:
    """But for the constructor of SentenceTransformer, which is version 5's."""
    for name, arguments in drop_in.recorded()["members"].items():
        ours = arguments_of(inspect.getattr_static(drop_in.ours, name, None))
        if arguments and ours and (name, drop_in.name) != (CALLED, "SentenceTransformer"):
            renamed = [
                "sentences" if argument == "inputs" and "inputs" in ours[1:] else argument for argument in arguments
            ]
            assert ours[: len(arguments)] == renamed, name


def test_the_constructor_takes_version_5s_positions(encoder: Encoder) -> None:
    model = SentenceTransformer(encoder, None, "cpu", {"ships": "About ships: "}, "ships", "dot")
    assert (model.prompts["ships"], model.default_prompt_name) == ("About ships: ", "ships")
    assert model.similarity_fn_name == "dot"


@pytest.mark.parametrize(
    ("kind", "method", "arguments"),
    [(kind, *case) for kind, cases in REFUSED.items() for case in cases],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_what_is_refused_is_refused_by_its_name(
    kind: type, method: str, arguments: dict[str, Any], encoder: Encoder
) -> None:
    (name,) = arguments
    with pytest.raises(SettingsError, match=rf"^{name}=.+ is not \w+[.:] .+[.]$") as refused:
        called(kind, method, encoder, arguments)
    assert isinstance(refused.value, VecferryError)


@pytest.mark.parametrize(
    ("kind", "method", "arguments"),
    [(kind, *case) for kind, cases in NO_EFFECT.items() for case in cases],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:30],
)
def test_what_has_no_effect_is_accepted_and_logged(
    kind: type, method: str, arguments: dict[str, Any], encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "vecferry"):
        called(kind, method, encoder, arguments)
    messages = [record.getMessage() for record in caplog.records]
    for name in arguments:
        assert any(message.startswith(f"{name}=") and "has no effect: " in message for message in messages), name
    assert "hf_secret" not in "".join(messages)


@each_class
def test_the_reasons_are_of_arguments_and_members_that_there_are(drop_in: DropIn) -> None:
    members = drop_in.recorded()["members"]
    known = {*members, *FORMER, *(name for arguments in members.values() for name in arguments or ())}
    assert {*drop_in.deviations.no_effect, *drop_in.deviations.refused} <= known


def test_the_table_of_the_page_is_the_present_one() -> None:
    assert section("drop-in", PAGE) == tables(), "python -m tests.compatibility.drop_in"


def test_a_refused_argument_is_a_type_error_too(encoder: Encoder) -> None:
    with pytest.raises(TypeError) as refused:
        SentenceTransformer(encoder, "cuda")
    assert isinstance(refused.value, ArgumentRefused)
    assert "a device goes by its name" in str(refused.value)
    with pytest.raises(
        ArgumentRefused, match=r"model_name_or_path=None is not supported\. Give a converted model's folder"
    ):
        SentenceTransformer()
    with pytest.raises(ArgumentRefused, match="modules="):
        SentenceTransformer(modules=[object()])


def test_methods_for_a_place_or_a_precision_return_the_model(encoder: Encoder) -> None:
    model = SentenceTransformer(encoder)
    for name in ("to", "cpu", "cuda", "half", "float", "bfloat16", "eval", "requires_grad_", "share_memory"):
        assert getattr(model, name)() is model
    assert model.to("cuda", non_blocking=True) is model
    assert model.device == "cpu"


def test_pools_are_for_forms_sake(encoder: Encoder) -> None:
    model, flag = SentenceTransformer(encoder), BGEM3FlagModel(encoder)
    pool = model.start_multi_process_pool(["cpu"] * 2)
    assert (model.encode_multi_process(["a"], pool) == model.encode(["a"], pool=pool)).all()
    model.stop_multi_process_pool(pool)
    assert (flag.encode_multi_process(["a"], pool)["dense_vecs"] == flag.encode(["a"])["dense_vecs"]).all()
    assert flag.compute_score_multi_process([("a", "b")], pool) == flag.compute_score([("a", "b")])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages themselves
@each_class
def test_the_recorded_signatures_are_the_packages(drop_in: DropIn) -> None:
    pytest.importorskip(drop_in.module)
    found = inspected(drop_in)
    assert json.loads(json.dumps(found)) == drop_in.recorded()
