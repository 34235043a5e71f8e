"""Shapes, dtypes and numbers are those of sentence-transformers 6.2 for the same calls."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.integrations.conftest import TEXTS
from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.encoder import Encoder
from vecferry.errors import ArgumentRefused, InvalidText, MissingExtra, SettingsError
from vecferry.integrations.sentence_transformers import SentenceTransformer
from vecferry.model.artifact import Artifact


@pytest.fixture
def model(tiny_artifact: Artifact) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_artifact.path), device="cpu", trust_remote_code=True)


def test_a_list_gives_a_matrix_a_string_a_vector_and_nothing_nothing(
    model: SentenceTransformer, plain_encoder: Encoder
) -> None:
    expected = plain_encoder.encode(TEXTS).dense
    vectors = model.encode(TEXTS, batch_size=2, show_progress_bar=False, device="cpu")
    assert np.array_equal(vectors, expected)
    assert vectors.dtype == np.float32
    assert np.array_equal(model.encode(TEXTS[0]), plain_encoder.encode(TEXTS[:1]).dense[0])
    assert np.array_equal(model.encode(inputs=TEXTS), expected)
    assert (model.encode([]).shape, model.encode([]).dtype) == ((0,), np.float64)
    with pytest.raises(InvalidText):
        model.encode([{"image": "a"}])  # type: ignore[list-item]


def test_a_path_and_an_encoder_are_the_same_model(tiny_artifact: Artifact, plain_encoder: Encoder) -> None:
    for address in (tiny_artifact.path, plain_encoder):
        assert np.array_equal(SentenceTransformer(address).encode(TEXTS), plain_encoder.encode(TEXTS).dense)


def test_tensors_are_given_where_they_are_asked_for(model: SentenceTransformer) -> None:
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), model.encode(TEXTS))
    several = model.encode(TEXTS, convert_to_numpy=False)
    assert all(torch.equal(vector, row) for vector, row in zip(several, tensor, strict=True))
    assert model.encode("one", convert_to_tensor=True).shape == (64,)
    assert model.encode([], convert_to_tensor=True).shape == (0,)


def test_a_tensor_without_pytorch_names_the_extra(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"vecferry\[torch\]"):
        model.encode(TEXTS, convert_to_tensor=True)


def test_vectors_are_truncated_and_then_normalised(tiny_artifact: Artifact, model: SentenceTransformer) -> None:
    whole = model.encode(TEXTS)
    assert np.array_equal(model.encode(TEXTS, truncate_dim=16), whole[:, :16])
    short = SentenceTransformer(tiny_artifact.path, truncate_dim=16)
    assert np.array_equal(short.encode(TEXTS[0]), model.encode(TEXTS[0])[:16])
    unit = short.encode(TEXTS, normalize_embeddings=True)
    expected = torch.nn.functional.normalize(torch.from_numpy(whole[:, :16].copy()), dim=1)
    np.testing.assert_allclose(unit, expected.numpy(), rtol=1e-6)  # the norm's last bit
    assert (model.get_sentence_embedding_dimension(), short.get_embedding_dimension()) == (64, 16)


def test_the_models_prompts_are_its_roles(encoder: Encoder) -> None:
    model = SentenceTransformer(encoder)
    assert model.prompts == {"query": "query: ", "document": "passage: "}
    query, passage = encoder.encode(TEXTS, role="query").dense, encoder.encode(TEXTS).dense
    for vectors in (
        model.encode_query(TEXTS),
        model.encode(TEXTS, "query"),
        model.encode(TEXTS, prompt_name="query"),
        model.encode(TEXTS, prompt="query: "),
        model.encode(TEXTS, prompt_name="search_query"),
    ):
        assert np.array_equal(vectors, query)
    for vectors in (
        model.encode(TEXTS),
        model.encode_document(TEXTS),
        model.encode_query(TEXTS, prompt="passage: "),
        *(model.encode(TEXTS, prompt_name=name) for name in ("passage", "corpus", "search_document")),
    ):
        assert np.array_equal(vectors, passage)
    longer = model.encode(TEXTS, prompt="query: about ships: ")
    assert np.array_equal(longer, encoder.encode([f"about ships: {text}" for text in TEXTS], role="query").dense)


def test_a_prompt_goes_before_the_text_where_the_model_has_no_prefix(
    tiny_artifact: Artifact, plain_encoder: Encoder
) -> None:
    model = SentenceTransformer(tiny_artifact.path, prompts={"ships": "About ships: "}, default_prompt_name="ships")
    with_prompt = plain_encoder.encode([f"About ships: {text}" for text in TEXTS]).dense
    assert np.array_equal(model.encode(TEXTS), with_prompt)
    assert np.array_equal(model.encode(TEXTS, prompt="About ships: "), with_prompt)
    assert np.array_equal(model.encode_query(TEXTS), plain_encoder.encode(TEXTS).dense)
    assert np.array_equal(model.encode(TEXTS, prompt=""), plain_encoder.encode(TEXTS).dense)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_name": "classify"}, "prompt_name=classify is not valid: expected passage or document or query"),
        ({"prompt": "classify: "}, "prompt='classify: ' is not valid: expected it to begin with a prefix"),
        ({"prompt": ""}, "prompt='' is not valid"),
    ],
)
def test_what_would_silently_be_something_else_is_refused(
    arguments: dict[str, Any], message: str, encoder: Encoder
) -> None:
    with pytest.raises(SettingsError, match=message):
        SentenceTransformer(encoder).encode(TEXTS, **arguments)


def test_a_smaller_length_refuses_longer_texts_before_anything_is_computed(
    model: SentenceTransformer, plain_encoder: Encoder
) -> None:
    texts = ["short", "word " * 600]
    assert model.max_seq_length == model.get_max_seq_length() == 8192
    model.max_seq_length = 512
    assert model.max_seq_length == 512
    assert np.array_equal(model.encode(TEXTS), plain_encoder.encode(TEXTS).dense)
    runs = Runs(plain_encoder)
    watched = SentenceTransformer(runs.encoder)
    watched.max_seq_length = 512
    with pytest.raises(ArgumentRefused, match=r"max_seq_length=512 is not supported. Text 1 has 602 tokens or more"):
        watched.encode(texts)
    assert runs.number == 0
    watched.max_seq_length = 8192
    assert len(watched.encode(texts)) == 2
    for value in (0, 8193):
        with pytest.raises(ArgumentRefused, match=f"max_seq_length={value} is not supported"):
            model.max_seq_length = value


class Runs:
    """An encoder whose runs are counted; the real runtime answers."""

    def __init__(self, encoder: Encoder) -> None:
        self.real, self.number, self.name, self.space = encoder.runtime, 0, "onnx", encoder.space
        self.describe = self.real.describe
        self.encoder = Encoder(encoder.tokenizer, self)

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        self.number += 1
        return self.real.run(batch, outputs)


def test_a_block_truncates_and_the_next_does_not(model: SentenceTransformer) -> None:
    with model.truncate_embeddings(16):
        assert model.encode(TEXTS).shape == (5, 16)
        assert model.get_embedding_dimension() == 16
    assert model.encode(TEXTS).shape == (5, 64)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_are_of_vectors_at_the_same_place(name: str, model: SentenceTransformer) -> None:
    model.similarity_fn_name = name
    a, b = model.encode(TEXTS), model.encode(TEXTS) * 2
    np.testing.assert_allclose(np.diag(model.similarity(a, b)), model.similarity_pairwise(a, b), atol=1e-6)
    assert model.similarity(a, b[0]).shape == (5, 1)


def test_similarity_is_the_cosine_of_what_it_is_given(model: SentenceTransformer) -> None:
    vectors, doubled = model.encode(TEXTS), model.encode(TEXTS) * 2
    expected = vectors @ vectors.T
    np.testing.assert_allclose(model.similarity(vectors, doubled), expected, atol=1e-6)
    np.testing.assert_allclose(model.similarity(list(vectors), doubled[0]), expected[:, :1], atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(vectors, doubled), np.ones(5), atol=1e-6)
    tensors = model.encode(TEXTS, convert_to_tensor=True)
    for scores in (model.similarity(tensors, vectors), model.similarity(list(tensors), tensors)):
        assert isinstance(scores, torch.Tensor)
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)
