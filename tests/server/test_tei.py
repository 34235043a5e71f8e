"""text-embeddings-inference's interface: by Hugging Face's own client, and by plain HTTP with TEI's fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from tests.server.conftest import KEY, Server
from tests.server.inside import UnrulyRuntime, float32, inside, unruly
from vecferry.embeddings import Embeddings, Float32, Outputs, TokenBatch, dense_scores
from vecferry.encode.encoder import Encoder
from vecferry.model.artifact import VectorSpace
from vecferry.server.keys import ApiKeys
from vecferry.server.options import ServerOptions

TEXTS = ["What is Deep Learning?", "", "Что такое 🌱?", "مَرْكَب", "one"]
TOO_LONG = "word " * 9000
UNKNOWN = 3
"""The id of <unk>."""
ERROR_TYPES = {"Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Unauthorized"}


def assert_error(answer: httpx2.Response, status: int, message: str = "", kind: str = "Validation") -> None:
    """Assert that an error has TEI's form."""
    assert (answer.status_code, set(answer.json())) == (status, {"error", "error_type"}), answer.text
    assert answer.json()["error_type"] == kind
    assert kind in ERROR_TYPES
    assert message in answer.json()["error"]


# --- Hugging Face's client ------------------------------------------------------------------------


def test_the_client_gets_the_librarys_vectors(server: Server, library: Encoder) -> None:
    for client in (InferenceClient(model=server.url), InferenceClient(base_url=f"{server.url}/embed")):
        for inputs in (TEXTS, "one text"):
            values = client.feature_extraction(inputs)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, library.encode([inputs] if isinstance(inputs, str) else inputs).dense)


def test_the_clients_parameters_are_understood(server: Server, library: Encoder) -> None:
    client = InferenceClient(model=server.url)
    values = client.feature_extraction(
        [TOO_LONG, "a"],
        normalize=True,
        prompt_name="query",
        truncate=True,
        truncation_direction="right",
        dimensions=64,
    )
    np.testing.assert_array_equal(values, library.encode([TOO_LONG, "a"], role="query").dense)


@pytest.mark.parametrize("parameters", [{"truncation_direction": "left"}, {"prompt_name": "s2p"}, {"dimensions": 7}])
def test_what_cannot_be_done_is_an_error_of_the_client_by_its_parameter(
    server: Server, parameters: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError, match=next(iter(parameters))):
        InferenceClient(model=server.url).feature_extraction("a", **parameters)


def test_a_text_over_the_maximum_is_an_error_of_the_client_where_it_may_not_be_cut(server: Server) -> None:
    client = InferenceClient(model=server.url)
    assert client.feature_extraction(TOO_LONG).shape == (1, 64)
    with pytest.raises(HfHubHTTPError, match="8192 tokens") as caught:
        client.feature_extraction(TOO_LONG, truncate=False)
    assert caught.value.response.status_code == 413


def test_the_client_compares_sentences(server: Server, library: Encoder) -> None:
    expected = cosines(library, TEXTS)
    for url in (server.url, f"{server.url}/similarity"):
        values = InferenceClient(model=url).sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
        np.testing.assert_array_equal(float32(values), expected)


def cosines(library: Encoder, texts: list[str]) -> Float32:
    """Return the cosines of the first text with the others."""
    dense = library.encode(texts).dense
    return float32(dense[1:] @ dense[0])


def test_the_client_sends_its_key(library: Encoder) -> None:
    with inside(unruly(library), options=ServerOptions(keys=ApiKeys([KEY]))) as server:
        assert InferenceClient(model=server.url, token=KEY).feature_extraction("a").shape == (1, 64)
        with pytest.raises(HfHubHTTPError) as caught:
            InferenceClient(model=server.url, token="a-wrong-key-of-the-tests").feature_extraction("a")
    assert caught.value.response.status_code == 401


@pytest.mark.parametrize("inputs", [{}, {"source_sentence": "a"}, {"source_sentence": 1, "sentences": ["a"]}, 5, None])
def test_what_is_neither_texts_nor_sentences_is_refused_at_the_root_too(http: httpx2.Client, inputs: object) -> None:
    assert_error(http.post("/", json={"inputs": inputs}), 400, "inputs")
    assert_error(http.post("/", json={}), 400, "inputs: Field required")
    assert_error(http.post("/", json=[]), 400, "the request's body")


# --- vectors --------------------------------------------------------------------------------------


def test_embed_answers_a_text_or_a_list_with_lists_of_numbers(http: httpx2.Client, library: Encoder) -> None:
    for inputs in (TEXTS, "one text"):
        answer = http.post("/embed", json={"inputs": inputs})
        expected = library.encode([inputs] if isinstance(inputs, str) else inputs)
        np.testing.assert_array_equal(float32(answer.json()), expected.dense)
        assert answer.headers["x-vecferry-fingerprint"] == library.fingerprint
        assert answer.headers["x-vecferry-num-truncated"] == "0"


def test_embed_sparse_answers_with_indices_and_values(http: httpx2.Client, library: Encoder) -> None:
    rows = http.post("/embed_sparse", json={"inputs": TEXTS}).json()
    expected = library.encode(TEXTS, outputs=Outputs.SPARSE).sparse
    assert len(rows) == len(TEXTS)
    for row, values in enumerate(rows):
        assert all(set(value) == {"index", "value"} for value in values)
        assert {value["index"]: value["value"] for value in values} == pytest.approx(expected.row(row), abs=0)


def test_embed_all_answers_with_a_vector_for_each_token(http: httpx2.Client, library: Encoder) -> None:
    values = http.post("/embed_all", json={"inputs": TEXTS}).json()
    expected = library.encode(TEXTS, outputs=Outputs.COLBERT)
    assert [len(vectors) + 1 for vectors in values] == expected.num_tokens.tolist()
    for row, vectors in enumerate(values):
        np.testing.assert_array_equal(float32(vectors), expected.colbert[row])


def test_similarity_answers_with_the_cosines(http: httpx2.Client, library: Encoder) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    expected = cosines(library, TEXTS)
    np.testing.assert_array_equal(float32(http.post("/similarity", json=body).json()), expected)
    sentences = library.encode(TEXTS)
    np.testing.assert_allclose(expected, dense_scores(sentences, sentences)[0, 1:], atol=1e-6)  # another order of sums
    parameters = {"truncate": False, "truncation_direction": "Right", "prompt_name": "query"}
    assert http.post("/similarity", json=body | {"parameters": parameters}).json() == pytest.approx(expected, abs=1e-6)
    assert http.post("/similarity", json=body | {"parameters": None}).status_code == 200


@pytest.mark.parametrize("path", ["/embed", "/embed_sparse", "/embed_all"])
def test_fields_of_tei_are_understood_everywhere(http: httpx2.Client, path: str) -> None:
    whole = {"inputs": ["a"], "truncate": None, "truncation_direction": "Right", "prompt_name": None}
    assert http.post(path, json=whole).content == http.post(path, json={"inputs": ["a"]}).content
    assert_error(http.post(path, json=whole | {"truncation_direction": "Left"}), 400, "truncation_direction")
    assert_error(http.post(path, json=whole | {"truncation_direction": "up"}), 400, "truncation_direction")
    assert_error(http.post(path, json=whole | {"prompt_name": "s2p"}), 400, "there are passage, document, query")
    assert_error(http.post(path, json=whole | {"inputs": []}), 400, "no texts")
    assert_error(http.post(path, json={"input": "a"}), 400, "inputs: Field required")
    assert_error(http.post(path, json=whole | {"model": "huge"}), 404, "'huge' is not served")
    assert_error(http.post(path, json=whole | {"inputs": ["a", TOO_LONG], "truncate": False}), 413, "text 1 is longer")
    assert http.post(path, json=whole | {"inputs": "a", "ours": "is left out of account"}).status_code == 200


@pytest.mark.parametrize("path", ["/embed", "/embed_all"])
def test_without_normalisation_the_vectors_are_those_that_the_model_gives(http: httpx2.Client, path: str) -> None:
    expected = http.post(path, json={"inputs": TEXTS}).content
    for normalize in (False, True, None):
        assert http.post(path, json={"inputs": TEXTS, "normalize": normalize}).content == expected


class LongRuntime(UnrulyRuntime):
    """A double of a model whose graph does not normalise: vectors three times as long."""

    @property
    def space(self) -> VectorSpace:
        return super().space.model_copy(update={"normalize": False})

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        embeddings = super().run(batch, outputs)
        return replace(embeddings, fingerprint=self.space.fingerprint, dense_or_none=3 * embeddings.dense)


def test_vectors_of_a_graph_that_does_not_normalise_are_normalised_as_by_tei(library: Encoder) -> None:
    encoder = Encoder(library.tokenizer, LongRuntime(library.runtime), library.limits, spec=library._spec)
    expected = library.encode(TEXTS).dense
    with inside(encoder) as server, server.client() as http:
        for normalize, length in ((None, 1), (True, 1), (False, 3)):
            vectors = float32(http.post("/embed", json={"inputs": TEXTS, "normalize": normalize}).json())
            np.testing.assert_allclose(vectors, length * expected, atol=1e-6)
        body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
        np.testing.assert_allclose(http.post("/similarity", json=body).json(), cosines(library, TEXTS), atol=1e-6)


def test_embed_refuses_another_dimension(http: httpx2.Client) -> None:
    assert_error(http.post("/embed", json={"inputs": "a", "dimensions": 32}), 400, "dimensions")
    assert http.post("/embed", json={"inputs": "a", "normalize": True, "dimensions": 64}).status_code == 200


def test_similarity_refuses_what_it_cannot_compare(http: httpx2.Client) -> None:
    def request(**inputs: object) -> httpx2.Response:
        return http.post("/similarity", json={"inputs": inputs})

    assert_error(request(source_sentence="a", sentences=[]), 400, "inputs.sentences")
    assert_error(request(sentences=["a"]), 400, "inputs.source_sentence: Field required")
    assert_error(request(source_sentence="a", sentences=["b", 5]), 400, "inputs.sentences.1")
    long = {"inputs": {"source_sentence": "a", "sentences": [TOO_LONG]}, "parameters": {"truncate": False}}
    assert_error(http.post("/similarity", json=long), 413)


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Hello 👋🏽 world", "שלום עולם", "مرحبا", "", "日本語 テキスト", "a\u200db", " two  spaces "]
)
def test_tokens_are_the_librarys_and_their_places_are_in_the_text(
    http: httpx2.Client, library: Encoder, text: str
) -> None:
    ((first, *inner, last),) = http.post("/tokenize", json={"inputs": text}).json()
    ids = [token["id"] for token in (first, *inner, last)]
    assert ids == library.tokenizer([text]).ids.tolist()
    for token in (first, last):
        assert (token["special"], token["start"], token["stop"]) == (True, None, None)
    assert [first["text"], last["text"]] == ["<s>", "</s>"]
    for token in inner:
        assert set(token) == {"id", "text", "special", "start", "stop"}
        assert token["text"] == text[token["start"] : token["stop"]]
    without = http.post("/tokenize", json={"inputs": [text], "add_special_tokens": False}).json()
    assert without == [inner]


def test_decoding_tokens_gives_the_text_again_as_far_as_the_model_knows_it(http: httpx2.Client) -> None:
    texts = ["and the", "of 1 and 2", "", "שלום", "مرحبا", "👋🏽 of"]
    rows = http.post("/tokenize", json={"inputs": texts}).json()
    ids = [[token["id"] for token in row] for row in rows]
    decoded = http.post("/decode", json={"ids": ids}).json()
    assert decoded[:3] == texts[:3]
    for inputs, row, text in zip(texts, ids, decoded, strict=True):
        if UNKNOWN not in row:
            assert text == inputs
    assert http.post("/decode", json={"ids": ids[0]}).json() == texts[:1]
    assert http.post("/decode", json={"ids": ids[0], "skip_special_tokens": False}).json() == ["<s> and the</s>"]
    assert http.post("/decode", json={"ids": [[], ids[0]]}).json() == ["", texts[0]]


def test_token_ids_are_encoded_as_the_text_that_has_them(http: httpx2.Client, library: Encoder) -> None:
    rows = http.post("/tokenize", json={"inputs": TEXTS, "add_special_tokens": False}).json()
    ids = [[token["id"] for token in row] for row in rows]
    np.testing.assert_array_equal(
        float32(http.post("/embed", json={"inputs": ids}).json()), library.encode(TEXTS).dense
    )


@pytest.mark.parametrize("ids", [[4000], [[5], [5, 4000]], [2**31 - 1]])
def test_token_ids_that_the_model_does_not_have_are_refused(http: httpx2.Client, ids: object) -> None:
    for path, name in (("/embed", "inputs"), ("/embed_all", "inputs"), ("/decode", "ids")):
        assert_error(http.post(path, json={name: ids}), 400, "from 0 to 3999")


@pytest.mark.parametrize("ids", [[-1], [2**31], [1.5], ["a"], "a", None, [[1], 2]])
def test_what_are_no_token_ids_are_refused(http: httpx2.Client, ids: object) -> None:
    assert_error(http.post("/decode", json={"ids": ids}), 400, "ids")


def test_tokens_of_a_query_have_its_prefix(http: httpx2.Client) -> None:
    plain, query = (
        http.post("/tokenize", json={"inputs": "a", "prompt_name": name}).json() for name in (None, "query")
    )
    assert plain == query, "BGE-M3 has none"
    assert_error(http.post("/tokenize", json={"inputs": "a", "prompt_name": "s2p"}), 400, "prompt_name")
    assert_error(http.post("/tokenize", json={"inputs": []}), 400, "no texts")
    assert_error(http.post("/tokenize", json={"inputs": 5}), 400, "inputs")


# --- about the server -----------------------------------------------------------------------------


def test_info_has_teis_fields_and_ours(http: httpx2.Client, library: Encoder) -> None:
    values = http.get("/info").json()
    required = {
        "model_id": str, "model_dtype": str, "model_type": dict, "max_concurrent_requests": int,
        "max_input_length": int, "max_batch_tokens": int, "max_client_batch_size": int, "auto_truncate": bool,
        "tokenization_workers": int, "version": str,
    }  # fmt: skip
    assert {name: type(values[name]) for name in required} == required
    assert {"model_sha", "max_batch_requests", "sha", "docker_label"} <= set(values)
    assert (values["model_id"], values["model_dtype"], values["max_input_length"]) == ("tiny", "float32", 8192)
    assert values["model_type"] == {"embedding": {"pooling": "cls"}}
    assert (values["fingerprint"], values["outputs"]) == (library.fingerprint, ["dense", "sparse", "colbert"])


def test_health_and_metrics_are_where_tei_has_them(http: httpx2.Client) -> None:
    assert http.get("/health").status_code == 200
    assert http.get("/metrics").headers["content-type"].startswith("text/plain")
