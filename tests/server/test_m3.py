"""/v1/m3, and the encoder that asks it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain, combinations
from typing import Any, ClassVar

import httpx2
import numpy as np
import pytest

from tests.server.conftest import KEY, Server
from tests.server.inside import float32, inside, unruly
from tests.server.test_bytes import assert_same
from tests.waiting import wait_until
from vecferry.embeddings import Embeddings, Outputs
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder
from vecferry.errors import (
    EmptyInput,
    InvalidText,
    ModelNotServed,
    ServerFailed,
    SpaceMismatch,
    WrongInputType,
)
from vecferry.server.keys import ApiKeys
from vecferry.server.options import ServerLimits, ServerOptions

HEADS = ("dense", "sparse", "colbert")
SUBSETS = list(chain.from_iterable(combinations(HEADS, size) for size in (1, 2, 3)))
TEXTS = ["one", "", "Where does oxygen come from? 🌱"]
TOO_LONG = "word " * 9000
FIELDS = {"model", "fingerprint", "runtime", "num_tokens", "truncated", "num_truncated", "serving", "embeddings"}


# --- the endpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", SUBSETS)
def test_any_of_the_three_vectors_come_from_one_pass(
    http: httpx2.Client, library: Encoder, outputs: tuple[str, ...]
) -> None:
    answer = http.post("/v1/m3", json={"inputs": TEXTS, "outputs": outputs})
    body, expected = answer.json(), library.encode(TEXTS, outputs=Outputs.of(outputs))
    assert set(body) == FIELDS
    assert (body["model"], body["runtime"], body["serving"]) == ("tiny", "onnx", None)
    assert body["fingerprint"] == answer.headers["x-vecferry-fingerprint"] == library.fingerprint
    assert answer.headers["x-vecferry-runtime"] == "onnx"
    assert body["num_tokens"] == expected.num_tokens.tolist()
    assert (body["truncated"], body["num_truncated"]) == ([False] * len(TEXTS), 0)
    assert all(set(vectors) == set(outputs) for vectors in body["embeddings"])
    for row, vectors in enumerate(body["embeddings"]):
        if "dense" in outputs:
            np.testing.assert_array_equal(float32(vectors["dense"]), expected.dense[row])
        if "sparse" in outputs:
            weights = {int(token): np.float32(weight) for token, weight in vectors["sparse"].items()}
            assert weights == expected.sparse.row(row)
        if "colbert" in outputs:
            np.testing.assert_array_equal(float32(vectors["colbert"]), expected.colbert[row])


def test_texts_that_were_cut_are_counted_and_marked(http: httpx2.Client) -> None:
    answer = http.post("/v1/m3", json={"inputs": ["one", TOO_LONG]})
    assert answer.json()["num_tokens"] == [3, 8192]
    assert answer.json()["truncated"] == [False, True]
    assert (answer.json()["num_truncated"], answer.headers["x-vecferry-num-truncated"]) == (1, "1")


def test_by_default_there_are_dense_numbers_of_passages(http: httpx2.Client, library: Encoder) -> None:
    (body,) = http.post("/v1/m3", json={"inputs": "one"}).json()["embeddings"]
    np.testing.assert_array_equal(float32(body["dense"]), library.encode(["one"]).dense[0])


def test_token_ids_are_inputs_too(http: httpx2.Client, library: Encoder) -> None:
    ids = library.tokenizer(["one"]).ids[1:-1].tolist()
    for inputs, count in ((ids, 1), ([ids, ids], 2)):
        body = http.post("/v1/m3", json={"inputs": inputs, "outputs": HEADS}).json()
        assert len(body["embeddings"]) == count
        np.testing.assert_allclose(  # two rows at once have their float32 sums in another order
            float32(body["embeddings"][-1]["dense"]), library.encode(["one"]).dense[0], atol=1e-6
        )


def test_both_roles_and_the_models_other_name_are_understood(http: httpx2.Client) -> None:
    for role in ("query", "passage"):
        assert http.post("/v1/m3", json={"inputs": "a", "role": role, "model": "tiny"}).status_code == 200


def test_null_is_the_default_of_every_field(http: httpx2.Client) -> None:
    expected = http.post("/v1/m3", json={"inputs": "a"}).content
    nulls = dict.fromkeys(("outputs", "role", "truncate", "encoding_format", "model"))
    assert http.post("/v1/m3", json={"inputs": "a"} | nulls).content == expected


def test_fields_that_are_not_known_are_refused(http: httpx2.Client) -> None:
    refused = http.post("/v1/m3", json={"inputs": "a", "output": ["sparse"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output")
    refused = http.post("/search", json={"query": "a", "top_k": 5})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "Validation")
    assert "top_k" in refused.json()["error"]


@pytest.mark.parametrize(
    ("wrong", "status", "param"),
    [
        ({"outputs": []}, 400, "outputs"),
        ({"outputs": ["dense", "colour"]}, 400, "outputs.1"),
        ({"outputs": "dense"}, 400, "outputs"),
        ({"role": "author"}, 400, "role"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
        ({"inputs": []}, 400, "input"),
        ({"model": "huge"}, 404, "model"),
        ({"inputs": TOO_LONG, "truncate": False}, 413, "input"),
    ],
)
def test_what_is_wrong_is_said_by_its_field(
    http: httpx2.Client, wrong: dict[str, Any], status: int, param: str
) -> None:
    refused = http.post("/v1/m3", json={"inputs": "a"} | wrong)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


def test_search_without_a_migration_says_how_to_have_one(http: httpx2.Client) -> None:
    refused = http.post("/search", json={"query": "a"})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "Validation")
    assert "--config migration.toml" in refused.json()["error"]


# --- the encoder that asks it ---------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [Outputs.of(subset) for subset in SUBSETS])
def test_the_remote_encoder_is_the_library_for_six_hundred_texts(
    server: Server, library: Encoder, outputs: Outputs
) -> None:
    """Bit for bit with the same 256 at a time; within the last places of float32 with all at once."""
    texts = [f"text {number % 400} " + "and more " * (number % 7) for number in range(600)]
    with RemoteEncoder(server.url) as encoder:
        body = encoder.encode(texts, outputs=outputs)
    parts = [library.encode(texts[at : at + 256], outputs=outputs) for at in (0, 256, 512)]
    assert_same(body, Embeddings.concat(parts))
    whole = library.encode(texts, outputs=outputs)
    np.testing.assert_array_equal(body.num_tokens, whole.num_tokens)
    if Outputs.DENSE in outputs:
        np.testing.assert_allclose(body.dense, whole.dense, atol=1e-6)


def test_the_remote_encoder_knows_the_space_of_its_model(server: Server, library: Encoder) -> None:
    with RemoteEncoder(f"{server.url}/") as encoder:
        assert (encoder.space, encoder.fingerprint, encoder.dimension) == (library.space, library.fingerprint, 64)


def test_the_remote_encoder_encodes_queries(server: Server, library: Encoder) -> None:
    with RemoteEncoder(server.url) as encoder:
        body = encoder.encode(["one"], role="query", outputs=Outputs.ALL)
    assert_same(body, library.encode(["one"], role="query", outputs=Outputs.ALL))


def test_the_remote_encoder_finds_its_model_by_name_and_by_alias(server: Server, http: httpx2.Client) -> None:
    (listed,) = http.get("/v1/models").json()["data"]
    names = ["tiny", *listed["vecferry"]["aliases"]]
    for name in names:
        with RemoteEncoder(server.url, model=name) as encoder:
            assert encoder.encode(["a"]).fingerprint == listed["vecferry"]["fingerprint"]
    with RemoteEncoder(server.url, model="huge") as encoder, pytest.raises(ModelNotServed, match="tiny"):
        encoder.encode(["a"])


def test_the_remote_encoder_chooses_among_models(library: Encoder) -> None:
    with inside(unruly(library), unruly(library)) as server:
        for name in ("tiny", "tiny-2"):
            with RemoteEncoder(server.url, model=name) as encoder:
                encoder.encode(["a"])
            assert server.value("truncated_texts_total", model=name) == 0
            assert server.value("run_texts_total", model=name) > 1, "the probe's and this one"


@pytest.mark.parametrize(
    ("texts", "error"),
    [([], EmptyInput), (["a", "\ud800"], InvalidText), (["a", None], InvalidText), ("a", WrongInputType)],
)
def test_the_remote_encoder_refuses_what_the_library_refuses(
    server: Server, texts: Any, error: type[Exception]
) -> None:
    with RemoteEncoder(server.url) as encoder, pytest.raises(error):
        encoder.encode(texts)


def test_the_remote_encoder_sends_its_key(library: Encoder) -> None:
    with inside(unruly(library), options=ServerOptions(keys=ApiKeys([KEY]))) as server:
        with RemoteEncoder(server.url, api_key=KEY) as encoder:
            assert len(encoder.encode(["a", "b"])) == 2
        for key in (None, "a-wrong-key-of-the-tests"):
            with RemoteEncoder(server.url, api_key=key) as encoder, pytest.raises(ServerFailed) as caught:
                encoder.encode(["a"])
            assert caught.value.status == 401
            assert "no API key that this server knows" in str(caught.value)


def test_a_server_that_is_not_there_is_said_with_its_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with RemoteEncoder(url) as encoder, pytest.raises(ServerFailed) as caught:
        encoder.encode(["a"])
    assert (caught.value.status, caught.value.url) == (0, url)
    assert f"curl {url}/health" in str(caught.value)


def test_what_is_no_server_of_ours_is_said_too(library: Encoder) -> None:
    with (
        inside(unruly(library)) as server,
        RemoteEncoder(f"{server.url}/elsewhere") as encoder,
        pytest.raises(ServerFailed) as caught,
    ):
        encoder.encode(["a"])
    assert caught.value.status == 404


class Elsewhere(BaseHTTPRequestHandler):
    """A double of other people's servers: one that is busy until a date, and one that is another's."""

    answers: ClassVar[list[tuple[int, str]]] = []

    def do_GET(self) -> None:
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.send_header("retry-after", "Fri, 01 Jan 2100 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": [{"id": "gpt"}]}', '{"data": 5}'])
def test_a_server_of_others_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Its date of coming back is not waited for."""
    monkeypatch.setattr("vecferry.encode.client.FIRST_PAUSE_S", 0.01)
    Elsewhere.answers = [(503, "busy"), (200, body)]
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        with RemoteEncoder(f"http://127.0.0.1:{other.server_port}") as encoder, pytest.raises(ServerFailed) as caught:
            encoder.encode(["a"])
        other.shutdown()
        thread.join()
    assert (caught.value.status, Elsewhere.answers) == (200, [])
    assert "not as vecferry's" in str(caught.value)


@pytest.mark.parametrize(
    "limits", [ServerLimits(max_texts=100), ServerLimits(max_answer_mb=1), ServerLimits(max_body_mb=1)]
)
def test_what_is_too_much_for_one_request_is_sent_in_parts(library: Encoder, limits: ServerLimits) -> None:
    texts = [f"text {number} " + "and more " * 40 + " " * 8000 for number in range(150)]
    with inside(unruly(library), options=ServerOptions(limits=limits)) as server, RemoteEncoder(server.url) as encoder:
        body = encoder.encode(texts, outputs=Outputs.ALL)
        refused = [server.value("requests_total", endpoint=row, status=413) for row in ("/v1/m3", "unknown")]
    assert sum(refused) > 0
    np.testing.assert_allclose(body.dense, library.encode(texts).dense, atol=1e-6)  # batches have other shapes


def test_a_text_that_is_too_much_by_itself_is_an_error(library: Encoder) -> None:
    options = ServerOptions(limits=ServerLimits(max_text_chars=10))
    with (
        inside(unruly(library), options=options) as server,
        RemoteEncoder(server.url) as encoder,
        pytest.raises(ServerFailed, match=r"raise --max-text-chars\. Whether") as caught,
    ):
        encoder.encode(["a", "a text of more than ten"])
    assert caught.value.status == 413


def test_the_remote_encoder_waits_where_the_server_is_busy(library: Encoder) -> None:
    server_encoder = unruly(library)
    runtime: Any = server_encoder.runtime
    options = ServerOptions(limits=ServerLimits(max_queue_tokens=1))
    with (
        inside(server_encoder, options=options) as server,
        RemoteEncoder(server.url) as encoder,
    ):
        assert encoder.dimension == 64
        runtime.break_down()
        with server.client() as http:
            http.post("/embed", json={"inputs": "a"})
        wait_until(lambda: server.value("model_works", model="tiny") == 0)
        before = server.value("requests_total", endpoint="/v1/m3", status=503)
        runtime.recover_after(lambda: server.value("requests_total", endpoint="/v1/m3", status=503) > before)
        assert len(encoder.encode(["a"])) == 1
        assert server.value("requests_total", endpoint="/v1/m3", status=503) > before


def test_a_model_that_has_become_another_is_not_mixed_with_the_first(server: Server, library: Encoder) -> None:
    with RemoteEncoder(server.url) as encoder:
        encoder._space = library.space.model_copy(update={"weights": "others"})
        with pytest.raises(SpaceMismatch, match="the server at"):
            encoder.encode(["a"])
