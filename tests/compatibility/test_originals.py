"""Our two classes beside the originals, on one small checkpoint with seeded weights, where the packages are there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecferry.integrations import flag_embedding, sentence_transformers
from vecferry.model.artifact import Artifact

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the packages themselves

TEXTS = ["the harbour at night", "a ship leaves for Lisbon", "", "مرحبا بالعالم", "向量迁移", "the harbour at night"]
ATOL = 1e-5
"""Two engines in fp32, two layers; seen are 6e-8 for dense vectors, 2e-7 for lexical weights and ColBERT vectors."""
ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
INSTRUCTIONS = {"query_instruction_for_retrieval": "Find: ", "query_instruction_format": "{}{}"}
FLAG_CALLS: dict[str, Callable[[Any], Any]] = {
    "encode": lambda model: model.encode(TEXTS, **ALL),
    "encode one": lambda model: model.encode(TEXTS[1], **ALL),
    "encode in batches": lambda model: model.encode(TEXTS, batch_size=2, max_length=64, **ALL),
    "encode, dense by default": lambda model: model.encode(TEXTS),
    "encode, sparse alone": lambda model: model.encode(TEXTS, return_dense=False, return_sparse=True),
    "encode, by position": lambda model: model.encode(TEXTS, 2, 64, False, False, True),
    "encode_queries": lambda model: model.encode_queries(TEXTS, **ALL),
    "encode_corpus": lambda model: model.encode_corpus(TEXTS, **ALL),
    "encode_single_device": lambda model: model.encode_single_device(TEXTS, device="cpu", **ALL),
    "encode with an instruction": lambda model: model.encode(TEXTS, instruction="To: ", instruction_format="{}{}"),
    "compute_score of one": lambda model: model.compute_score((TEXTS[0], TEXTS[1])),
    "compute_score": lambda model: model.compute_score(
        [(TEXTS[0], TEXTS[0]), (TEXTS[5], TEXTS[5])], weights_for_different_modes=[0.4, 0.2, 0.4]
    ),
    "compute_score of none": lambda model: model.compute_score([]),
    "convert_id_to_token": lambda model: model.convert_id_to_token(
        model.encode(TEXTS[:2], return_sparse=True)["lexical_weights"]
    ),
    "compute_lexical_matching_score": lambda model: model.compute_lexical_matching_score(
        *[model.encode(TEXTS[:3], return_sparse=True)["lexical_weights"]] * 2
    ),
    "colbert_score": lambda model: float(
        model.colbert_score(*model.encode(TEXTS[:2], return_colbert_vecs=True)["colbert_vecs"])
    ),
    "get_detailed_instruct": lambda model: model.get_detailed_instruct("{}\\n{}", "a", "b"),
}
TRANSFORMER_CALLS: dict[str, Callable[[Any], Any]] = {
    "encode": lambda model: model.encode(TEXTS),
    "encode one": lambda model: model.encode(TEXTS[0]),
    "encode none": lambda model: model.encode([]),
    "encode an array": lambda model: model.encode(np.array(TEXTS)),
    "encode by position": lambda model: model.encode(TEXTS, "ships", None, 2, False),
    "encode with a prompt": lambda model: model.encode(TEXTS, prompt="To: "),
    "encode with a prompt's name": lambda model: model.encode(TEXTS, prompt_name="ships"),
    "encode normalised": lambda model: model.encode(TEXTS, truncate_dim=16, normalize_embeddings=True),
    "encode truncated": lambda model: model.encode(TEXTS, truncate_dim=16),
    "encode to a tensor": lambda model: model.encode(TEXTS, convert_to_tensor=True),
    "encode one to a tensor": lambda model: model.encode(TEXTS[0], convert_to_tensor=True),
    "encode to tensors": lambda model: model.encode(TEXTS, convert_to_numpy=False),
    "encode_query": lambda model: model.encode_query(TEXTS),
    "encode_document": lambda model: model.encode_document(TEXTS),
    "similarity": lambda model: model.similarity(*[model.encode(TEXTS, convert_to_tensor=True)] * 2),
    "similarity_pairwise": lambda model: model.similarity_pairwise(
        model.encode(TEXTS, convert_to_tensor=True), model.encode(TEXTS[::-1], convert_to_tensor=True)
    ),
    "get_embedding_dimension": lambda model: model.get_embedding_dimension(),
    "max_seq_length": lambda model: model.max_seq_length,
    "prompts": lambda model: model.prompts,
    "is_singular_input": lambda model: [model.is_singular_input(value) for value in ("a", ["a"], np.array(["a"]))],
    "modalities": lambda model: (model.modalities, model.supports("text"), model.supports("image")),
}


def assert_alike(ours: Any, theirs: Any) -> None:
    """Compare type, keys, dtype, shape and numbers."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_alike(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_alike(our, their)
    elif hasattr(theirs, "dtype"):
        assert str(getattr(ours, "dtype", type(ours))).replace("<class 'float'>", "float32") == str(theirs.dtype)
        assert np.shape(ours) == np.shape(theirs)
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=ATOL)
    else:
        assert type(ours) is type(theirs)
        assert ours == (pytest.approx(theirs, abs=ATOL) if isinstance(theirs, float) else theirs)


@pytest.fixture(scope="module", params=[{}, {**INSTRUCTIONS, "truncate_dim": 16}], ids=["plain", "instructed"])
def flag_models(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_artifact: Artifact) -> tuple[Any, Any]:
    pytest.importorskip("FlagEmbedding", exc_type=ImportError)
    from FlagEmbedding import BGEM3FlagModel

    options = {"use_fp16": False, "devices": "cpu", **request.param}
    ours = flag_embedding.BGEM3FlagModel(str(tiny_artifact.path), **options)
    return ours, BGEM3FlagModel(str(tiny_checkpoint), **options)


@pytest.mark.parametrize("call", FLAG_CALLS)
def test_bge_m3s_answers_are_flagembeddings(call: str, flag_models: tuple[Any, Any]) -> None:
    ours, theirs = (FLAG_CALLS[call](model) for model in flag_models)
    assert_alike(ours, theirs)


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"similarity_fn_name": "dot", "truncate_dim": 32},
        {"similarity_fn_name": "euclidean"},
        {"similarity_fn_name": "manhattan"},
    ],
    ids=["cosine", "dot", "euclidean", "manhattan"],
)
def transformers(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_artifact: Artifact) -> tuple[Any, Any]:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    options = {"device": "cpu", "prompts": {"ships": "About ships: "}, **request.param}
    ours = sentence_transformers.SentenceTransformer(str(tiny_artifact.path), **options)
    return ours, SentenceTransformer(str(tiny_checkpoint), **options)


@pytest.mark.parametrize("call", TRANSFORMER_CALLS)
def test_answers_are_sentence_transformers(call: str, transformers: tuple[Any, Any]) -> None:
    ours, theirs = (TRANSFORMER_CALLS[call](model) for model in transformers)
    assert_alike(ours, theirs)
