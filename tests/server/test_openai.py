"""OpenAI's own client against a server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.server.conftest import KEY, Server
from tests.server.inside import float32, inside, unruly
from tests.waiting import wait_until
from vecferry.encode.encoder import Encoder
from vecferry.server.keys import ApiKeys
from vecferry.server.options import ServerLimits, ServerOptions

TEXTS = ["Where does oxygen come from?", "", "氧气从哪里来? 🌱", "مَرْكَب", "one"]
TOO_LONG = "word " * 9000


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def refused(client: OpenAI, kind: type[openai.APIStatusError], **request: Any) -> openai.APIStatusError:
    with pytest.raises(kind) as caught:
        client.embeddings.create(**({"model": "tiny", "input": "a"} | request))
    return caught.value


def ids_of(library: Encoder, text: str) -> list[int]:
    """Return the token ids of a text, without those at the ends."""
    ids: list[int] = library.tokenizer([text]).ids.tolist()
    return ids[1:-1]


# --- answers --------------------------------------------------------------------------------------


def test_a_text_and_a_list_of_texts_come_back_as_the_library_encodes_them(client: OpenAI, library: Encoder) -> None:
    for inputs in ("one text", TEXTS):
        texts = [inputs] if isinstance(inputs, str) else inputs
        answer = client.embeddings.create(model="tiny", input=inputs)
        expected = library.encode(texts)
        assert [row.index for row in answer.data] == list(range(len(texts)))
        assert {row.object for row in answer.data} == {"embedding"}
        assert (answer.object, answer.model) == ("list", "tiny")
        np.testing.assert_array_equal(float32([row.embedding for row in answer.data]), expected.dense)
        tokens = int(expected.num_tokens.sum())
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_token_ids_stand_for_the_text_that_has_them(client: OpenAI, library: Encoder) -> None:
    ids = [ids_of(library, text) for text in TEXTS]
    for inputs, texts in ((ids[0], TEXTS[:1]), (ids, TEXTS)):
        answer = client.embeddings.create(model="tiny", input=inputs)
        expected = library.encode(texts)
        np.testing.assert_array_equal(float32([row.embedding for row in answer.data]), expected.dense)
        assert answer.usage.prompt_tokens == expected.num_tokens.sum()


@pytest.mark.parametrize("inputs", [[5, 6], [[5], [6, 7]], [[]]])
def test_token_ids_are_refused_unless_the_server_takes_them(library: Encoder, inputs: list[Any]) -> None:
    with inside(unruly(library)) as server, server.client() as http:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            error = refused(client, openai.BadRequestError, input=inputs)
            assert error.param == "input"
        others = [
            http.post(path, json={"inputs": inputs}) for path in ("/embed", "/embed_sparse", "/embed_all", "/v1/m3")
        ]
        assert [answer.status_code for answer in others] == [400] * 4
        for message in (error.message, *(answer.text for answer in others)):
            assert "OpenAIEmbeddings(check_embedding_ctx_length=False)" in message
            assert "--token-ids" in message
        assert http.post("/decode", json={"ids": inputs}).status_code == 200, "ids for their text"


def test_null_is_the_default_of_every_field(client: OpenAI, library: Encoder) -> None:
    fields = ("truncate", "prompt_name", "dimensions", "encoding_format", "user")
    answer = client.embeddings.create(model="tiny", input="a", extra_body=dict.fromkeys(fields))
    np.testing.assert_array_equal(float32(answer.data[0].embedding), library.encode(["a"]).dense[0])


def test_token_ids_with_the_special_ones_at_their_ends_mean_the_same(client: OpenAI, library: Encoder) -> None:
    whole = library.tokenizer(["one text"]).ids.tolist()
    answer = client.embeddings.create(model="tiny", input=whole)
    np.testing.assert_array_equal(float32(answer.data[0].embedding), library.encode(["one text"]).dense[0])


def test_the_client_asks_for_base64_by_itself_and_may_ask_for_either(client: OpenAI, library: Encoder) -> None:
    expected = library.encode(["one text"]).dense[0]
    sent = client.embeddings.with_raw_response.create(model="tiny", input="one text")
    assert isinstance(sent.http_response.json()["data"][0]["embedding"], str)
    np.testing.assert_array_equal(float32(sent.parse().data[0].embedding), expected)
    encoded: Any = client.embeddings.create(model="tiny", input="one text", encoding_format="base64")
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded.data[0].embedding), "<f4"), expected)
    plain = client.embeddings.create(model="tiny", input="one text", encoding_format="float")
    np.testing.assert_array_equal(float32(plain.data[0].embedding), expected)


def test_fields_that_mean_nothing_here_are_left_out_of_account(client: OpenAI) -> None:
    answer = client.embeddings.create(model="tiny", input="a", user="somebody", dimensions=64)
    assert len(answer.data[0].embedding) == 64


def test_a_model_has_other_names_too(client: OpenAI, library: Encoder) -> None:
    (listed,) = client.models.list().data
    ours: Any = listed.model_extra
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "vecferry")
    assert ours["vecferry"]["fingerprint"] == library.fingerprint
    assert ours["vecferry"]["space"]["dimension"] == 64
    assert ours["vecferry"]["runtime"] == "onnx"
    for name in ours["vecferry"]["aliases"]:
        assert client.embeddings.create(model=name, input="a").model == "tiny"
        assert client.models.retrieve(name) == listed
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("BAAI/another")


def test_a_role_may_be_named(client: OpenAI) -> None:
    for role in ("query", "passage", "document"):
        client.embeddings.create(model="tiny", input="a", extra_body={"prompt_name": role})
    error = refused(client, openai.BadRequestError, extra_body={"prompt_name": "title"})
    assert error.param == "prompt_name"


def test_the_asynchronous_client_has_the_same_answers(server: Server, library: Encoder) -> None:
    async def request_both() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            answers = [client.embeddings.create(model="tiny", input=[text, text]) for text in TEXTS]
            return await asyncio.gather(*answers)

    for text, answer in zip(TEXTS, asyncio.run(request_both()), strict=True):
        first, second = float32([row.embedding for row in answer.data])
        np.testing.assert_array_equal(first, second)
        # a cohort has another shape than a request alone, and float32 sums depend on it in their last places
        np.testing.assert_allclose(first, library.encode([text]).dense[0], atol=1e-6)


# --- errors ---------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    error = refused(client, openai.NotFoundError, model="text-embedding-3-small")
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert "'text-embedding-3-small' is not served here. Served: tiny" in error.message


@pytest.mark.parametrize(
    ("request_", "param", "message"),
    [
        ({"dimensions": 32}, "dimensions", "64 dimensions"),
        ({"input": []}, "input", "no texts were given"),
        ({"input": [4000]}, "input", "from 0 to 3999"),
        ({"input": [[1], [-1]]}, "input", "whole numbers from 0"),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_by_its_field(
    client: OpenAI, request_: dict[str, Any], param: str, message: str
) -> None:
    error = refused(client, openai.BadRequestError, **request_)
    assert (error.status_code, error.param, error.type) == (400, param, "invalid_request_error")
    assert message in error.message


def test_a_text_over_the_maximum_is_refused_unless_it_may_be_cut(client: OpenAI, library: Encoder) -> None:
    error = refused(client, openai.APIStatusError, input=["short", TOO_LONG])
    assert (error.status_code, error.code, error.param) == (413, "context_length_exceeded", "input")
    assert "text 1 is longer than the 8192 tokens" in error.message
    sent = client.embeddings.with_raw_response.create(
        model="tiny", input=["short", TOO_LONG], extra_body={"truncate": True}
    )
    assert sent.headers["x-vecferry-num-truncated"] == "1"
    expected = library.encode(["short", TOO_LONG])
    np.testing.assert_array_equal(float32([row.embedding for row in sent.parse().data]), expected.dense)
    assert sent.parse().usage.prompt_tokens == expected.num_tokens.sum()


def test_token_ids_over_the_maximum_are_refused_unless_they_may_be_cut(client: OpenAI, library: Encoder) -> None:
    ids = ids_of(library, "word") * 9000
    error = refused(client, openai.APIStatusError, input=ids)
    assert (error.status_code, error.code) == (413, "context_length_exceeded")
    answer = client.embeddings.create(model="tiny", input=ids, extra_body={"truncate": True})
    assert answer.usage.prompt_tokens == 8192


def test_a_wrong_key_is_an_error_of_authentication(library: Encoder) -> None:
    with inside(unruly(library), options=ServerOptions(keys=ApiKeys([KEY]))) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="a-wrong-key-of-the-tests", max_retries=0) as client:
            error = refused(client, openai.AuthenticationError)
            assert (error.code, error.type) == ("invalid_api_key", "authentication_error")
            assert "a-wrong-key" not in error.message
        with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            assert [row.id for row in client.models.list()] == ["tiny"]


def test_a_full_queue_is_an_error_of_rate_which_the_client_tries_again(library: Encoder) -> None:
    encoder = unruly(library)
    runtime: Any = encoder.runtime
    options = ServerOptions(limits=ServerLimits(max_queue_tokens=1))
    with (
        inside(encoder, options=options) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(3) as threads,
    ):

        def request_both(max_retries: int = 0) -> object:
            return client.with_options(max_retries=max_retries).embeddings.create(model="tiny", input="a")

        with runtime.closed():
            threads.submit(request_both)
            wait_until(lambda: len(runtime.ran) > 1)
            threads.submit(request_both)
            wait_until(lambda: server.value("queue_parts", lane="query") == 1)
            error = refused(client, openai.RateLimitError)
            assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
            assert error.response.headers["retry-after"] == "1"
            again = threads.submit(request_both, max_retries=2)
            wait_until(lambda: server.value("requests_total", endpoint="/v1/embeddings", status=429) == 2)
        assert again.result() is not None


def test_a_model_that_does_not_work_is_an_error_of_the_server(library: Encoder) -> None:
    encoder = unruly(library)
    runtime: Any = encoder.runtime
    with (
        inside(encoder) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        runtime.break_down()
        assert refused(client, openai.InternalServerError).status_code == 500
        wait_until(lambda: refused(client, openai.InternalServerError).status_code == 503)
        assert refused(client, openai.InternalServerError).type == "server_error"
