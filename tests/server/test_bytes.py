"""Every form of an answer holds the library's numbers to the last bit, for the same texts in one request."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO

import httpx2
import numpy as np
import openai
import pyarrow as pa
import pytest

from tests.server.conftest import Server
from tests.server.inside import float32
from vecferry.embeddings import DENSE, Embeddings, Float32, Outputs
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder
from vecferry.encode.export import load_npz

MIXED = [
    "one", "", "Where does oxygen come from?", "a NUL \0 inside", "tab\tand\nline", " ", "one", "word " * 600,
    "🌱🚢 👩‍👩‍👧‍👦 👋🏽", "مَرْكَبٌ", "שָׁלוֹם", "\u202eright to left\u202c", "é e\u0301 ﷽", "one", "日本語",
]  # fmt: skip
MANY = [f"text {number % 250} " + "and more " * (number * 7 % 40) for number in range(300)]
LISTS = {"one": ["a single text"], "mixed": MIXED, "many": MANY}
NPZ, ARROW = "application/x-npz", "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module", params=list(LISTS))
def texts(request: pytest.FixtureRequest) -> list[str]:
    return LISTS[request.param]


@pytest.fixture(scope="module")
def encoded(library: Encoder, texts: list[str]) -> Callable[[Outputs], Embeddings]:
    """Return the library's embeddings by outputs, each computed once."""
    return cache(lambda outputs: library.encode(texts, outputs=outputs))


def assert_same(embeddings: Embeddings, expected: Embeddings) -> None:
    """Assert that all outputs are the same to the last bit."""
    assert embeddings.fingerprint == expected.fingerprint
    pairs: list[tuple[np.ndarray, np.ndarray]] = [
        (embeddings.num_tokens, expected.num_tokens),
        (embeddings.truncated, expected.truncated),
    ]
    assert (
        embeddings.dense_or_none is None,
        embeddings.sparse_or_none is None,
        embeddings.colbert_or_none is None,
    ) == (
        expected.dense_or_none is None,
        expected.sparse_or_none is None,
        expected.colbert_or_none is None,
    )
    if expected.dense_or_none is not None:
        pairs.append((embeddings.dense, expected.dense))
    if expected.sparse_or_none is not None:
        ours, theirs = embeddings.sparse, expected.sparse
        pairs += [(ours.indptr, theirs.indptr), (ours.indices, theirs.indices), (ours.weights, theirs.weights)]
    if expected.colbert_or_none is not None:
        pairs += [
            (embeddings.colbert.indptr, expected.colbert.indptr),
            (embeddings.colbert.vectors, expected.colbert.vectors),
        ]
    for ours_array, other in pairs:
        assert ours_array.dtype == other.dtype
        np.testing.assert_array_equal(ours_array, other)


# --- dense ----------------------------------------------------------------------------------------


def numbers(http: httpx2.Client, texts: Sequence[str]) -> Float32:
    body = {"input": texts, "model": "tiny", "encoding_format": "float", "truncate": True}
    return float32([row["embedding"] for row in http.post("/v1/embeddings", json=body).json()["data"]])


def base64_of_openai(http: httpx2.Client, texts: Sequence[str]) -> Float32:
    body = {"input": texts, "model": "tiny", "encoding_format": "base64", "truncate": True}
    return decoded([row["embedding"] for row in http.post("/v1/embeddings", json=body).json()["data"]])


def openai_client(http: httpx2.Client, texts: Sequence[str]) -> Float32:
    with openai.OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="tiny", input=list(texts), extra_body={"truncate": True})
    return float32([row.embedding for row in answer.data])


def embed(http: httpx2.Client, texts: Sequence[str]) -> Float32:
    return float32(http.post("/embed", json={"inputs": texts}).json())


def m3_numbers(http: httpx2.Client, texts: Sequence[str]) -> Float32:
    return float32([row["dense"] for row in http.post("/v1/m3", json={"inputs": texts}).json()["embeddings"]])


def m3_base64(http: httpx2.Client, texts: Sequence[str]) -> Float32:
    embeddings = http.post("/v1/m3", json={"inputs": texts, "encoding_format": "base64"}).json()["embeddings"]
    return decoded([row["dense"] for row in embeddings])


def decoded(vectors: Sequence[str]) -> Float32:
    return np.stack([np.frombuffer(base64.b64decode(vector, validate=True), "<f4") for vector in vectors])


@pytest.mark.parametrize("request_vectors", [numbers, base64_of_openai, openai_client, embed, m3_numbers, m3_base64])
def test_dense_vectors_are_the_librarys(
    http: httpx2.Client,
    texts: list[str],
    encoded: Callable[[Outputs], Embeddings],
    request_vectors: Callable[[httpx2.Client, Sequence[str]], Float32],
) -> None:
    np.testing.assert_array_equal(request_vectors(http, texts), encoded(DENSE).dense)


# --- the others -----------------------------------------------------------------------------------


def test_sparse_weights_are_the_librarys(
    http: httpx2.Client, texts: list[str], encoded: Callable[[Outputs], Embeddings]
) -> None:
    expected = encoded(Outputs.SPARSE).sparse
    theirs = http.post("/embed_sparse", json={"inputs": texts}).json()
    ours = http.post("/v1/m3", json={"inputs": texts, "outputs": ["sparse"]}).json()["embeddings"]
    assert len(theirs) == len(ours) == len(texts)
    for row in range(len(texts)):
        part = slice(expected.indptr[row], expected.indptr[row + 1])
        for embeddings in (
            [(value["index"], value["value"]) for value in theirs[row]],
            [(int(token), weight) for token, weight in ours[row]["sparse"].items()],
        ):
            np.testing.assert_array_equal([index for index, _ in embeddings], expected.indices[part])
            np.testing.assert_array_equal(float32([weight for _, weight in embeddings]), expected.weights[part])


def test_colbert_vectors_are_the_librarys(
    http: httpx2.Client, texts: list[str], encoded: Callable[[Outputs], Embeddings]
) -> None:
    expected = encoded(Outputs.COLBERT).colbert
    body = {"inputs": texts, "outputs": ["colbert"], "encoding_format": "base64"}
    theirs = http.post("/embed_all", json={"inputs": texts}).json()
    ours = http.post("/v1/m3", json=body).json()["embeddings"]
    assert len(theirs) == len(ours) == len(texts)
    for row in range(len(texts)):
        np.testing.assert_array_equal(float32(theirs[row]).reshape(-1, 64), expected[row])
        np.testing.assert_array_equal(decoded(ours[row]["colbert"]), expected[row])


@pytest.mark.parametrize("outputs", [DENSE, Outputs.DENSE | Outputs.SPARSE, Outputs.ALL])
def test_numpys_and_arrows_forms_are_the_librarys(
    http: httpx2.Client, texts: list[str], encoded: Callable[[Outputs], Embeddings], outputs: Outputs
) -> None:
    expected = encoded(outputs)
    body = {"inputs": texts, "outputs": outputs.names}
    ids, embeddings = load_npz(BytesIO(http.post("/v1/m3", json=body, headers={"accept": NPZ}).content))
    assert ids == [str(row) for row in range(len(texts))]
    assert_same(embeddings, expected)
    table = pa.ipc.open_stream(http.post("/v1/m3", json=body, headers={"accept": ARROW}).content).read_all()
    assert table.schema.metadata == {b"fingerprint": expected.fingerprint.encode(), b"form": b"fp32"}
    assert table["id"].to_pylist() == ids
    np.testing.assert_array_equal(flat(table, "dense").reshape(-1, 64), expected.dense)
    np.testing.assert_array_equal(table["num_tokens"].to_numpy(), expected.num_tokens)
    np.testing.assert_array_equal(table["truncated"].to_numpy(), expected.truncated)
    if Outputs.SPARSE in outputs:
        np.testing.assert_array_equal(flat(table, "sparse_indices"), expected.sparse.indices)
        np.testing.assert_array_equal(flat(table, "sparse_weights"), expected.sparse.weights)
    if Outputs.COLBERT in outputs:
        np.testing.assert_array_equal(flat(table, "colbert").reshape(-1, 64), expected.colbert.vectors)
        assert [len(vectors) for vectors in table["colbert"]] == (expected.num_tokens - 1).tolist()


def flat(table: pa.Table, name: str) -> np.ndarray:
    """Return all numbers of a column of lists, in their order."""
    values = table[name].combine_chunks()
    while pa.types.is_list(values.type):
        values = values.flatten()
    return np.asarray(values.to_numpy())


def test_a_text_over_the_maximum_is_cut_as_the_library_cuts_it(http: httpx2.Client, library: Encoder) -> None:
    texts = ["one", "word " * 9000]
    for request in (openai_client, embed):
        np.testing.assert_array_equal(request(http, texts), library.encode(texts).dense)
    body = {"inputs": texts, "outputs": Outputs.ALL.names}
    _, embeddings = load_npz(BytesIO(http.post("/v1/m3", json=body, headers={"accept": NPZ}).content))
    expected = library.encode(texts, outputs=Outputs.ALL)
    assert (expected.num_tokens[1], expected.num_truncated) == (8192, 1)
    assert_same(embeddings, expected)


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_binary_forms_of_the_other_interfaces_are_the_same(http: httpx2.Client, library: Encoder, path: str) -> None:
    body = {"inputs": MIXED} if path == "/embed" else {"input": MIXED, "model": "tiny", "truncate": True}
    expected = library.encode(MIXED)
    answer = http.post(path, json=body, headers={"accept": NPZ})
    assert answer.headers["content-type"] == NPZ
    assert_same(load_npz(BytesIO(answer.content))[1], expected)
    table = pa.ipc.open_stream(http.post(path, json=body, headers={"accept": ARROW}).content).read_all()
    np.testing.assert_array_equal(flat(table, "dense").reshape(-1, 64), expected.dense)


@pytest.mark.parametrize("texts", [LISTS["one"], MIXED])
def test_the_remote_encoder_has_the_librarys_numbers(server: Server, library: Encoder, texts: list[str]) -> None:
    with RemoteEncoder(server.url) as encoder:
        embeddings = encoder.encode(texts, outputs=Outputs.ALL)
    assert_same(embeddings, library.encode(texts, outputs=Outputs.ALL))
