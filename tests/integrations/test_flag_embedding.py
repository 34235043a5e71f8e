"""Keys, types and formulas are those of FlagEmbedding 1.4.2."""

from typing import Any

import numpy as np
import pytest

from tests.integrations.conftest import TEXTS
from tests.server.inside import inside, unruly
from vecferry.embeddings import Outputs, colbert_scores, dense_scores, lexical_scores
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder
from vecferry.errors import ArgumentRefused, MemberRefused, SettingsError
from vecferry.integrations.flag_embedding import BGEM3FlagModel
from vecferry.model.artifact import Artifact

ALL: dict[str, Any] = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


@pytest.fixture
def model(tiny_artifact: Artifact) -> BGEM3FlagModel:
    return BGEM3FlagModel(str(tiny_artifact.path), use_fp16=False, devices="cpu")


def test_the_three_vectors_are_the_librarys(model: BGEM3FlagModel, plain_encoder: Encoder) -> None:
    outputs = model.encode(TEXTS, batch_size=2, max_length=8192, **ALL)
    expected = plain_encoder.encode(TEXTS, outputs=Outputs.ALL)
    assert list(outputs) == ["dense_vecs", "lexical_weights", "colbert_vecs"]
    assert np.array_equal(outputs["dense_vecs"], expected.dense)
    for row in range(len(TEXTS)):
        weights = {int(token_id): weight for token_id, weight in outputs["lexical_weights"][row].items()}
        assert weights == expected.sparse.row(row)
        assert np.array_equal(outputs["colbert_vecs"][row], expected.colbert[row])
    assert outputs["lexical_weights"][0]["no such token"] == 0


def test_a_single_text_gives_single_values_and_what_was_not_asked_for_is_none(model: BGEM3FlagModel) -> None:
    single, many = model.encode(TEXTS[0], **ALL), model.encode(TEXTS[:1], **ALL)
    assert np.array_equal(single["dense_vecs"], many["dense_vecs"][0])
    assert single["lexical_weights"] == many["lexical_weights"][0]
    assert np.array_equal(single["colbert_vecs"], many["colbert_vecs"][0])
    dense_only = model.encode_corpus(TEXTS)
    assert dense_only["lexical_weights"] is None
    assert dense_only["colbert_vecs"] is None
    assert model.encode(TEXTS, return_dense=False, return_sparse=True)["dense_vecs"] is None
    with pytest.raises(SettingsError, match="return_dense"):
        model.encode(TEXTS, return_dense=False)


def test_queries_are_encoded_as_queries(encoder: Encoder) -> None:
    model = BGEM3FlagModel(encoder)
    assert np.array_equal(model.encode_queries(TEXTS)["dense_vecs"], encoder.encode(TEXTS, role="query").dense)
    assert np.array_equal(model.encode_corpus(TEXTS)["dense_vecs"], encoder.encode(TEXTS).dense)


def test_a_text_over_max_length_is_refused_and_one_within_is_not(model: BGEM3FlagModel) -> None:
    texts = ["short", "word " * 600]
    whole = model.encode(texts)["dense_vecs"]
    assert np.array_equal(model.encode(texts, max_length=4096)["dense_vecs"], whole)
    with pytest.raises(SettingsError, match=r"max_length=512 is not supported. Text 1 has 602 tokens or more"):
        model.encode(texts, max_length=512)
    with pytest.raises(SettingsError, match="max_length=512"):
        model.compute_score([("short", texts[1])], max_passage_length=512)


def test_normalisation_is_the_models(plain_encoder: Encoder) -> None:
    with pytest.raises(SettingsError, match="normalize_embeddings=False is not supported"):
        BGEM3FlagModel(plain_encoder, normalize_embeddings=False)


def test_scores_of_pairs_are_the_librarys(model: BGEM3FlagModel, plain_encoder: Encoder) -> None:
    queries, passages = ["a ship", "the harbour"], [TEXTS[1], TEXTS[0]]
    pairs = list(zip(queries, passages, strict=True))
    outputs = model.compute_score(pairs, weights_for_different_modes=[0.4, 0.2, 0.4])
    assert isinstance(outputs, dict)
    assert list(outputs) == ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
    q = plain_encoder.encode(queries, outputs=Outputs.ALL, role="query")
    p = plain_encoder.encode(passages, outputs=Outputs.ALL)
    dense, sparse, colbert = (np.diag(score(q, p)) for score in (dense_scores, lexical_scores, colbert_scores))
    expected = [
        colbert,
        sparse,
        dense,
        (0.4 * dense + 0.2 * sparse) / 0.6,
        0.4 * dense + 0.2 * sparse + 0.4 * colbert,
    ]
    np.testing.assert_allclose(list(outputs.values()), expected, atol=1e-6)  # one row at a time, or all at once
    equal = model.compute_score(pairs[0])
    assert isinstance(equal, dict)
    assert equal["colbert+sparse+dense"] == pytest.approx((dense[0] + sparse[0] + colbert[0]) / 3, abs=1e-6)
    assert isinstance(equal["dense"], float)
    assert model.compute_score([]) == []


def test_scores_of_vectors_are_the_librarys(model: BGEM3FlagModel, plain_encoder: Encoder) -> None:
    outputs = model.encode(TEXTS, **ALL)
    expected = plain_encoder.encode(TEXTS, outputs=Outputs.ALL)
    weights = outputs["lexical_weights"]
    np.testing.assert_allclose(
        model.compute_lexical_matching_score(weights, weights), lexical_scores(expected, expected), rtol=1e-5
    )
    single = model.compute_lexical_matching_score(weights[0], weights[1])
    assert single == pytest.approx(lexical_scores(expected, expected)[0, 1], rel=1e-5)
    with pytest.raises(ValueError, match="two dicts, or two lists"):
        model.compute_lexical_matching_score(weights[0], weights)
    score = model.colbert_score(outputs["colbert_vecs"][0], outputs["colbert_vecs"][1])
    assert score == pytest.approx(colbert_scores(expected, expected)[0, 1], abs=1e-6)


def test_ids_become_pieces_of_text(model: BGEM3FlagModel, encoder: Encoder) -> None:
    weights = model.encode(["the harbour", "a ship"], return_sparse=True)["lexical_weights"]
    named = model.convert_id_to_token(weights)
    assert [list(row.values()) for row in named] == [list(row.values()) for row in weights]
    assert all(piece in " the harbour a ship" and "▁" not in piece for row in named for piece in row)
    assert model.convert_id_to_token(weights[0]) == named[0]
    assert BGEM3FlagModel(encoder).convert_id_to_token(weights) == named
    with RemoteEncoder("http://127.0.0.1:9") as remote:
        remote._space = encoder.space
        with pytest.raises(MemberRefused, match="Open the folder of the converted model"):
            BGEM3FlagModel(remote).convert_id_to_token(weights)


def test_instructions_stand_before_texts_in_their_format(plain_encoder: Encoder) -> None:
    model = BGEM3FlagModel(
        plain_encoder,
        query_instruction_for_retrieval="Find: ",
        query_instruction_format="{}\\n{}",
        passage_instruction_for_retrieval="Text: ",
    )
    asked, stored = model.encode_queries(TEXTS)["dense_vecs"], model.encode_corpus(TEXTS)["dense_vecs"]
    assert np.array_equal(asked, plain_encoder.encode([f"Find: \n{text}" for text in TEXTS]).dense)
    assert np.array_equal(stored, plain_encoder.encode([f"Text: {text}" for text in TEXTS]).dense)
    assert np.array_equal(model.encode(TEXTS)["dense_vecs"], plain_encoder.encode(TEXTS).dense)


def test_dense_and_colbert_vectors_are_truncated_and_have_unit_length_again(
    tiny_artifact: Artifact, model: BGEM3FlagModel
) -> None:
    short, whole = BGEM3FlagModel(tiny_artifact.path, truncate_dim=16).encode(TEXTS, **ALL), model.encode(TEXTS, **ALL)
    for kind in ("dense_vecs", "colbert_vecs"):
        cut = whole[kind][1][..., :16]
        expected = cut / np.linalg.norm(cut, axis=-1, keepdims=True)
        np.testing.assert_allclose(short[kind][1], expected, atol=1e-6)
    assert short["lexical_weights"] == whole["lexical_weights"]


def test_a_long_text_of_a_server_is_refused_after_it_was_encoded(plain_encoder: Encoder) -> None:
    texts = ["short", "word " * 600]
    with (
        inside(unruly(plain_encoder)) as server,
        RemoteEncoder(server.url) as remote,
        pytest.raises(ArgumentRefused, match=r"max_length=512 is not supported\. Text 1 has 602 tokens"),
    ):
        BGEM3FlagModel(remote).encode(texts, max_length=512)
