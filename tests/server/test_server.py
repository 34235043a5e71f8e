"""What a server does whatever its interface: keys, health, limits, logs, metrics, spans, and who goes away."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import damaged_at
from tests.server.conftest import KEY, STARTED, Server, serving
from tests.server.inside import UnrulyRuntime, float32, inside, unruly
from tests.waiting import wait_until
from vecferry.cli import main
from vecferry.embeddings import TokenBatch
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, Loaded, load_runtime
from vecferry.encode.runtime.lightweight import LightweightRuntime, LightweightTokenizer
from vecferry.errors import SettingsError
from vecferry.model.artifact import Artifact
from vecferry.server.keys import ApiKeys
from vecferry.server.logs import PlainFormatter
from vecferry.server.models import Served, ServedModels
from vecferry.server.options import ServerLimits, ServerOptions

OTHER_KEY = "another-key-of-the-tests"
BULK = {"x-vecferry-lane": "bulk"}
SECRET = "a text that nobody else should read"
SERIES = {
    "requests", "request_seconds", "run_seconds", "run_tokens", "run_texts", "tokens", "padding_tokens",
    "truncated_texts", "abandoned_requests", "accepted_requests", "queue_tokens", "queue_parts", "model_works",
    "model_fallback", "model_info", "body_bytes",
}  # fmt: skip


@pytest.fixture
def encoder(library: Encoder) -> Encoder:
    return unruly(library)


@pytest.fixture
def runtime(encoder: Encoder) -> UnrulyRuntime:
    assert isinstance(encoder.runtime, UnrulyRuntime)
    return encoder.runtime


@pytest.fixture(scope="module")
def guarded(tiny_artifact: Artifact, wide_artifact: Artifact) -> Iterator[Server]:
    """Yield a server with two models, two keys and one origin."""
    models = [f"tiny={tiny_artifact.path}", f"wide={wide_artifact.path}"]
    keys = {"VECFERRY_API_KEYS": f"{OTHER_KEY}, {KEY}"}
    with serving(*models, "--cors-origin", "https://a.org", env=keys) as started:
        yield started


def authorized(key: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- health ---------------------------------------------------------------------------------------


def test_health_is_503_until_a_probe_has_passed(encoder: Encoder, runtime: UnrulyRuntime) -> None:
    runtime.close()
    with inside(encoder, is_ready=lambda _: True) as server, server.client() as http:
        unhealthy = http.get("/health")
        assert unhealthy.status_code == 503
        assert unhealthy.json() == {"error": "tiny: no run has succeeded yet", "error_type": "Unhealthy"}
        refused = http.post("/v1/embeddings", json={"input": "a", "model": "tiny"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        runtime.open()
        wait_until(lambda: http.get("/health").status_code == 200)


def test_a_runtime_that_breaks_makes_health_503_and_200_again_once_it_works(
    encoder: Encoder, runtime: UnrulyRuntime
) -> None:
    with inside(encoder) as server, server.client() as http:
        assert http.get("/health").status_code == 200
        assert server.value("model_works", model="tiny") == 1
        runtime.break_down()
        failed = http.post("/embed", json={"inputs": "a"})
        assert (failed.status_code, failed.json()["error_type"]) == (500, "Backend")
        wait_until(lambda: http.get("/health").status_code == 503)
        assert "a failure of the test" in http.get("/health").json()["error"]
        assert server.value("model_works", model="tiny") == 0
        assert http.post("/embed", json={"inputs": "a"}).status_code == 503
        runtime.recover()
        wait_until(lambda: http.get("/health").status_code == 200)
        assert http.post("/embed", json={"inputs": "a"}).status_code == 200


def test_of_several_models_the_one_that_does_not_work_is_named(
    encoder: Encoder, runtime: UnrulyRuntime, library: Encoder
) -> None:
    with inside(unruly(library), encoder) as server, server.client() as http:
        runtime.break_down()
        assert http.post("/embed", json={"inputs": "a", "model": "tiny-2"}).status_code == 500
        wait_until(lambda: http.get("/health").status_code == 503)
        assert http.get("/health").json()["error"].startswith("tiny-2: ")
        assert http.post("/embed", json={"inputs": "a", "model": "tiny"}).status_code == 200


def test_one_request_that_cannot_be_run_fails_alone(encoder: Encoder, runtime: UnrulyRuntime, library: Encoder) -> None:
    """Four wait while a fifth runs, so that they are computed together."""
    texts = ["one", "two of them", "poison that breaks a run", "three, at last"]
    poison = library.encode([texts[2]]).num_tokens[0]

    def fails(batch: TokenBatch) -> Exception | None:
        return runtime.failure(batch) if poison in batch.lengths else None

    with inside(encoder) as server, server.client() as http, ThreadPoolExecutor(5) as threads:

        def request(text: str) -> httpx2.Response:
            return http.post("/embed", json={"inputs": text}, headers=BULK)

        with runtime.closed():
            first = threads.submit(request, "the first")
            wait_until(lambda: len(runtime.ran) > 1)  # after the probe's
            runtime.fails = fails
            waiting = [threads.submit(request, text) for text in texts]
            wait_until(lambda: server.value("queue_parts", lane="bulk") == len(texts))
        assert first.result().status_code == 200
        answers = [future.result() for future in waiting]
        assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
        for text, answer in zip(texts, answers, strict=True):
            if answer.status_code == 200:
                np.testing.assert_array_equal(float32(answer.json()), library.encode([text]).dense)
        assert http.get("/health").status_code == 200


def test_a_text_without_a_vector_is_an_error_with_its_number_and_no_null(damaged_artifact: Artifact) -> None:
    damaged = load_runtime(EncoderOptions(artifact=damaged_artifact.path), "onnx")
    texts = ["peace", *(f"peace {n}" for n in range(1100)), "a war"]
    with inside(damaged) as server, server.client() as http:
        for path, body in [("/embed", {"inputs": texts}), ("/v1/embeddings", {"input": texts, "model": "tiny"})]:
            failed = http.post(path, json=body)
            assert failed.status_code == 500
            assert "text 1101 was not encoded: its vector has numbers that are not finite" in failed.text
        assert http.post("/embed_sparse", json={"inputs": "a war"}).status_code == 500
        assert http.post("/embed", json={"inputs": texts[:-1]}).status_code == 200
        assert http.get("/health").status_code == 200


def test_a_probe_that_has_no_vector_makes_health_503(tiny_artifact: Artifact, tmp_path: Path) -> None:
    damaged = load_runtime(EncoderOptions(artifact=damaged_at("a", tiny_artifact, tmp_path / "tiny").path), "onnx")
    with inside(damaged, is_ready=lambda all_: "not finite" in str(all_[0].problem)) as server, server.client() as http:
        unhealthy = http.get("/health")
        assert (unhealthy.status_code, "not finite" in unhealthy.json()["error"]) == (503, True)
        assert http.post("/embed", json={"inputs": "a"}).status_code == 503


def test_a_fault_of_ours_is_500_without_its_reason_under_an_id_that_the_log_has(
    encoder: Encoder, runtime: UnrulyRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    with inside(encoder) as server, server.client() as http:
        runtime.fails = lambda _: ZeroDivisionError("in the depths")
        failed = http.post("/embed", json={"inputs": "a"}, headers={"x-request-id": "my-own"})
        assert (failed.status_code, failed.json()["error_type"]) == (500, "Backend")
        assert "depths" not in failed.text
        assert failed.headers["x-request-id"] == "my-own"
        wait_until(lambda: server.value("requests_total", endpoint="/embed", status=500) == 1)
        assert server.value("abandoned_requests_total", endpoint="/embed") == 0
        runtime.recover()
        assert http.post("/embed", json={"inputs": "a"}).status_code == 200
    assert "in the depths" in caplog.text


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, authorized("a-wrong-key-of-the-tests"), {"authorization": f"Basic {KEY}"}])
def test_a_wrong_key_is_401_in_the_form_of_the_interface(guarded: Server, headers: dict[str, str]) -> None:
    with httpx2.Client(base_url=guarded.url, headers=headers) as http:
        ours, theirs = http.post("/v1/embeddings", json={"input": "a"}), http.post("/embed", json={"inputs": "a"})
        assert http.get("/metrics").status_code == http.get("/nothing").status_code == 401
        assert http.get("/health").status_code == 200
    assert (ours.status_code, theirs.status_code) == (401, 401)
    assert ours.headers["www-authenticate"] == "Bearer"
    assert {name: ours.json()["error"][name] for name in ("type", "param", "code")} == {
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert theirs.json()["error_type"] == "Unauthorized"


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_each_key_of_the_environment_is_let_in(guarded: Server, key: str) -> None:
    assert httpx2.get(f"{guarded.url}/v1/models", headers=authorized(key)).status_code == 200


def test_a_server_beyond_loopback_takes_its_keys_from_a_file(tiny_artifact: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the shop\n\n{KEY}\n  {OTHER_KEY}  \n")
    with serving(str(tiny_artifact.path), "--host", "0.0.0.0", "--api-keys", str(file)) as started:
        assert httpx2.get(f"{started.url}/info").status_code == 401
        assert httpx2.get(f"{started.url}/info", headers=authorized(OTHER_KEY)).json()["model_id"] == "tiny"


def test_a_server_beyond_loopback_needs_no_key_where_that_is_said(tiny_artifact: Artifact) -> None:
    with serving(str(tiny_artifact.path), "--host", "0.0.0.0", "--without-key") as started:
        assert any("at http://0.0.0.0:" in line for line in started.lines)
        assert httpx2.get(f"{started.url}/info").status_code == 200


def test_a_server_beyond_loopback_without_a_key_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", str(tmp_path / "no-model-here"), "--host", "0.0.0.0", "--port", "0"])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "--host=0.0.0.0 is not valid" in message
    assert "--without-key" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("# nothing\n", "it has none"),
        ("short\n", "at least 16 characters"),
    ],
)
def test_a_file_of_keys_that_is_no_use_is_refused_without_showing_a_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as exit_:
        main(["serve", str(tmp_path), "--api-keys", str(file)])
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "short\n" not in shown


def test_a_file_of_keys_may_begin_with_the_mark_of_its_encoding(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"\ufeff{KEY}\n{OTHER_KEY}\n".encode())
    assert all(ApiKeys.read(file).accepts(f"Bearer {key}".encode()) for key in (KEY, OTHER_KEY))


def test_a_file_of_keys_that_everybody_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    for mode, num_warnings in ((0o600, 0), (0o640, 0), (0o644, 1)):
        file.chmod(mode)
        caplog.clear()
        ApiKeys.read(file)
        assert len([record for record in caplog.records if f"chmod 600 {file}" in record.getMessage()]) == num_warnings


def test_keys_are_not_shown() -> None:
    assert repr(ApiKeys([KEY, OTHER_KEY])) == "<2 API keys>"


# --- limits ---------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_413_whether_announced_or_not(encoder: Encoder) -> None:
    body = b'{"inputs": "' + b"a" * 1_100_000 + b'"}'
    headers = {"content-type": "application/json"}
    options = ServerOptions(limits=ServerLimits(max_body_mb=1))
    with inside(encoder, options=options) as server, server.client() as http:
        for content in (body, (body[at : at + 65536] for at in range(0, len(body), 65536))):
            refused = http.post("/embed", content=content, headers=headers)
            assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")
            assert "--max-body-mb" in refused.json()["error"]
        assert http.post("/embed", json={"inputs": "a"}).status_code == 200


def test_a_body_that_does_not_come_is_408(encoder: Encoder) -> None:
    head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    with inside(encoder, options=ServerOptions(limits=ServerLimits(receive_s=0.1))) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(head)
            answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"error_type":"Validation"' in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    ("limits", "inputs", "option"),
    [
        (ServerLimits(max_texts=2), ["a", "b", "c"], "--max-texts"),
        (ServerLimits(max_text_chars=5), ["a", "abcdef"], "--max-text-chars"),
        (ServerLimits(max_request_tokens=5), ["a b c d e f g"], "--max-request-tokens"),
        (ServerLimits(max_answer_mb=1), ["a"] * 9000, "--max-answer-mb"),
    ],
)
def test_a_request_over_a_limit_is_413_and_says_how_to_raise_it(
    encoder: Encoder, limits: ServerLimits, inputs: list[str], option: str
) -> None:
    with inside(encoder, options=ServerOptions(limits=limits)) as server, server.client() as http:
        refused = http.post("/embed", json={"inputs": inputs})
        assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")
        assert option in refused.json()["error"]


def test_a_full_queue_is_429_and_says_when_to_come_again(encoder: Encoder, runtime: UnrulyRuntime) -> None:
    options = ServerOptions(limits=ServerLimits(max_queue_tokens=10))
    with (
        inside(encoder, options=options) as server,
        server.client() as http,
        ThreadPoolExecutor(3) as threads,
        runtime.closed(),
    ):

        def request(headers: dict[str, str]) -> httpx2.Response:
            return http.post("/embed", json={"inputs": "a text of some tokens"}, headers=headers)

        threads.submit(request, {})
        wait_until(lambda: len(runtime.ran) > 1)
        threads.submit(request, {})
        wait_until(lambda: server.value("queue_tokens", lane="query") > 0)
        refused = request({})
        assert (refused.status_code, refused.json()["error_type"]) == (429, "Overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert request(BULK | {"x-request-timeout": "0.1"}).status_code == 504, "let into the other lane"


def test_a_time_shorter_than_the_work_is_504(encoder: Encoder, runtime: UnrulyRuntime) -> None:
    with inside(encoder) as server, server.client() as http:
        with runtime.closed():
            late = http.post("/embed", json={"inputs": "a"}, headers={"x-request-timeout": "0.1"})
        assert (late.status_code, late.json()["error_type"]) == (504, "Backend")
        assert "X-Request-Timeout" in late.json()["error"]
        assert http.post("/embed", json={"inputs": "a"}).status_code == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon", ""])
def test_a_time_that_is_no_time_is_400(http: httpx2.Client, seconds: str) -> None:
    refused = http.post("/v1/m3", json={"inputs": "a"}, headers={"x-request-timeout": seconds})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-timeout")


def test_a_request_may_ask_for_the_bulk_lane_and_for_no_other(http: httpx2.Client, server: Server) -> None:
    assert http.post("/embed", json={"inputs": "a"}, headers=BULK | {"x-request-id": "in-bulk"}).status_code == 200
    assert http.post("/embed", json={"inputs": "a"}, headers={"x-request-id": "as-usual"}).status_code == 200
    assert line_of(server, "in-bulk")["lane"] == "bulk"
    assert line_of(server, "as-usual")["lane"] == "query"
    assert http.post("/embed", json={"inputs": "a"}, headers={"x-vecferry-lane": "query"}).status_code == 400


def test_a_client_that_goes_away_is_counted_and_its_texts_are_not_run(encoder: Encoder, runtime: UnrulyRuntime) -> None:
    body = json.dumps({"inputs": ["gone"] * 3}).encode()
    lines = [
        "POST /embed HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    head = "\r\n".join([*lines, "", ""])
    with inside(encoder) as server, server.client() as http, ThreadPoolExecutor(1) as threads:
        with runtime.closed():
            first = threads.submit(http.post, "/embed", json={"inputs": "first"})
            wait_until(lambda: len(runtime.ran) > 1)
            host, port = server.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as leaving:
                leaving.sendall(head.encode() + body)
                wait_until(lambda: server.value("queue_parts", lane="query") == 1)
            wait_until(lambda: server.value("abandoned_requests_total", endpoint="/embed") == 1)
            begun = list(runtime.ran)
        assert first.result().status_code == 200
        assert http.post("/embed", json={"inputs": "a later one"}).status_code == 200
        assert server.value("requests_total", endpoint="/embed", status=499) == 1
    assert len(runtime.ran) == len(begun) + 1, "only the later one"


# --- bodies ---------------------------------------------------------------------------------------


def test_a_body_without_the_type_of_json_is_told_so(http: httpx2.Client) -> None:
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        refused = http.post("/embed", content=b'{"inputs": "a"}', headers=headers)
        assert refused.status_code == 400
        assert "content-type: application/json" in refused.json()["error"]


def test_a_body_that_is_not_json_is_told_so(http: httpx2.Client) -> None:
    refused = http.post("/v1/embeddings", content=b'{"input": "a"', headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, None)
    assert "the request's body: it is not JSON (at 13)" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"inputs": "é"}'.encode("latin-1"), "it is not UTF-8, in which JSON is written (byte 12)"),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deep"),
        (b'{"inputs": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"inputs": ["a", null]}', "item 1 is null, not str"),
        (b'{"inputs": [null]}', "item 0 is null, not str"),
        (b'{"inputs": [[5], "a"]}', "item 1 is str, not list"),
        (b'{"inputs": ["a", {"text": "b"}]}', "item 1 is dict, not str"),
        (b'{"inputs": ["a", "\\ud800"]}', "lone surrogate U+D800 at character 0"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_why(http: httpx2.Client, content: bytes, reason: str) -> None:
    for path in ("/embed", "/"):
        refused = http.post(path, content=content, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        assert reason in refused.json()["error"]
        assert "not affected" not in refused.json()["error"]


@pytest.mark.parametrize(
    "value", [["a", [5]], ["a", 5], [1.5], [-1], [2**31], [2**80], [[1], "a"], [None], {}, True, None, 5]
)
def test_what_is_neither_texts_nor_token_ids_is_refused_by_the_field(http: httpx2.Client, value: object) -> None:
    refused = http.post("/v1/embeddings", json={"input": value, "model": "tiny"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    assert "token ids" in refused.json()["error"]["message"]


def test_paths_and_methods_that_are_not_there_have_the_form_of_the_interface(http: httpx2.Client) -> None:
    for request, status in ((("GET", "/v1/nothing"), 404), (("PUT", "/v1/models"), 405)):
        assert http.request(*request).status_code == status
        assert set(http.request(*request).json()["error"]) == {"message", "type", "param", "code"}
    for request, status in ((("GET", "/nothing"), 404), (("GET", "/embed"), 405)):
        assert http.request(*request).status_code == status
        assert set(http.request(*request).json()) == {"error", "error_type"}


@pytest.mark.parametrize(
    "path", ["/v1/embeddings/", "//v1/embeddings", "/v1//embeddings//", "/embeddings", "/embeddings/", "//embeddings"]
)
def test_slashes_too_many_and_teis_short_path_lead_to_the_same_vectors(http: httpx2.Client, path: str) -> None:
    body = {"input": "a", "model": "tiny"}
    expected = http.post("/v1/embeddings", json=body)
    answer = http.post(f"{http.base_url.scheme}://{http.base_url.netloc.decode()}{path}", json=body)
    assert (answer.status_code, answer.content) == (200, expected.content)
    refused = http.post(path.rstrip("/") or path, json={"model": "tiny"}) if not path.startswith("//") else None
    assert refused is None or set(refused.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/", "/ping", "/health", "/health/"])
def test_health_is_answered_where_other_platforms_ask_for_it(http: httpx2.Client, path: str) -> None:
    assert (http.get(path).status_code, http.get(path).json()["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("path", "likely"),
    [
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/openai/deployments/tiny/embeddings?api-version=2024-10-21", "/v1/embeddings"),
        ("/api/embed", "/embed"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/tokenise", "/tokenize"),
        ("/rerank", "/v1/embeddings or /embed"),
        ("/\u00e9%0a" + "a" * 5000, "/v1/embeddings or /embed"),
    ],
)
def test_a_path_that_is_not_there_is_told_the_likely_one_and_all(http: httpx2.Client, path: str, likely: str) -> None:
    refused = http.post(path, json={})
    assert refused.status_code == 404
    error = refused.json()["error"]
    message = error["message"] if path.startswith(("/v1/", "/openai/")) else error
    assert f"Perhaps {likely} was meant" in message
    assert "/embed_sparse" in message
    assert "/v1/m3" in message
    assert len(message) < 1000
    assert message.isascii()


def test_another_method_is_told_which_there_is(http: httpx2.Client) -> None:
    assert http.get("/embed").json()["error"] == "GET is not answered here; POST is."


def test_the_only_model_may_have_every_name_and_a_wrong_one_is_told_of_it(library: Encoder) -> None:
    with inside(unruly(library)) as server, server.client() as http:
        for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs")):
            body = {field: "a", "model": "text-embedding-3-small"}
            server.service.models._any_name = False
            refused = http.post(path, json=body)
            assert refused.status_code == 404
            assert "--any-model-name" in refused.text
            server.service.models._any_name = True
            assert http.post(path, json=body).status_code == 200
    several = [Served(name, Loaded(library, "first choice")) for name in ("a", "b")]
    with pytest.raises(SettingsError, match="--any-model-name"):
        ServedModels(several, any_name=True)


def test_vertex_has_a_prediction_for_each_instance(http: httpx2.Client) -> None:
    instances = [{"inputs": "one"}, {"inputs": ["two", "three"]}]
    expected = http.post("/embed", json={"inputs": ["one", "two", "three"]}).json()
    answer = http.post("/vertex", json={"instances": instances}).json()
    assert answer == {"predictions": [expected[:1], expected[1:]]}
    for wrong in ([], [{"inputs": "a"}, {"inputs": "b", "truncate": False}], [{"input": "a"}], None):
        assert http.post("/vertex", json={"instances": wrong}).status_code == 400


# --- several models -------------------------------------------------------------------------------


def test_two_models_are_served_by_their_names(guarded: Server, library: Encoder) -> None:
    with httpx2.Client(base_url=guarded.url, headers=authorized(), timeout=60) as http:
        assert [answer["id"] for answer in http.get("/v1/models").json()["data"]] == ["tiny", "wide"]
        assert http.get("/info").json()["models"] == ["tiny", "wide"]
        answers = {
            name: http.post("/v1/m3", json={"inputs": "a", "model": name}).json() for name in ("tiny", "wide", None)
        }
        unknown = http.post("/embed", json={"inputs": "a", "model": "huge"})
    assert [len(answers[name]["embeddings"][0]["dense"]) for name in ("tiny", "wide", None)] == [64, 1024, 64]
    assert answers["tiny"]["fingerprint"] == library.fingerprint != answers["wide"]["fingerprint"]
    assert (unknown.status_code, unknown.json()["error"]) == (
        404,
        "the model 'huge' is not served here. Served: tiny, wide. Whoever runs the server can give a model that name"
        " (NAME=MODEL), or allow any name to one: --any-model-name",
    )


def test_a_model_without_token_ids_and_a_third_head_says_so() -> None:
    lightweight = Encoder(LightweightTokenizer(), LightweightRuntime())
    with inside(lightweight, options=ServerOptions(token_ids=True)) as server, server.client() as http:
        assert len(http.post("/embed", json={"inputs": "a"}).json()[0]) == 1024
        assert http.post("/embed_sparse", json={"inputs": "a"}).status_code == 200
        for path, body, message in (
            ("/embed_all", {"inputs": "a"}, "'colbert' is not among this model's: dense, sparse"),
            ("/embed", {"inputs": [5]}, "no token ids"),
            ("/tokenize", {"inputs": "a"}, "no token ids"),
            ("/decode", {"ids": [5]}, "no token ids"),
        ):
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.json()["error_type"]) == (400, "Validation")
            assert message in refused.json()["error"]
        assert http.get("/info").json()["outputs"] == ["dense", "sparse"]


def test_a_name_that_is_given_twice_is_refused(library: Encoder) -> None:
    twice = [Served("tiny", Loaded(library, "first choice")) for _ in range(2)]
    with pytest.raises(SettingsError, match="NAME=MODEL"):
        ServedModels(twice)


# --- log ------------------------------------------------------------------------------------------


def line_of(server: Server, request_id: str) -> dict[str, object]:
    """Return the line of the log about a request."""
    answers: list[dict[str, object]] = []

    def is_there() -> bool:
        lines = [json.loads(line) for line in server.lines if line.startswith("{")]
        answers[:] = [line for line in lines if line["request_id"] == request_id and "status" in line]
        return bool(answers)

    wait_until(is_there)
    (line,) = answers
    return line


def test_lines_for_people_are_not_json_and_have_the_id_too(tiny_artifact: Artifact) -> None:
    with serving(str(tiny_artifact.path), "--plain-logs") as started:
        httpx2.get(f"{started.url}/info", headers={"x-request-id": "of-the-client"})
        wait_until(lambda: any("GET /info 200 [of-the-client]" in line for line in started.lines))
        path = "/a%0a2026-01-01%20ERROR%20forged%1b[31m%c2%9b%e2%80%ae%d8"
        httpx2.get(f"{started.url}{path}", headers={"x-request-id": "of-another"})
        wait_until(lambda: any("[of-another]" in line for line in started.lines))
    (line,) = (line for line in started.lines if "forged" in line)
    assert "GET /a\\n2026-01-01 ERROR forged\\x1b[31m\\x9b\\u202e" in line
    assert all(line.isprintable() for line in started.lines)


def test_a_log_that_nobody_reads_holds_up_no_request(tiny_artifact: Artifact) -> None:
    """A pipe takes 64 kB; these lines are 400."""
    command = [sys.executable, "-m", "vecferry.cli", "serve", str(tiny_artifact.path), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = next(match[1] for line in process.stderr if (match := STARTED.search(line)))
            with httpx2.Client(base_url=address, timeout=60) as http:
                assert [http.get(f"/{'a' * 10_000}").status_code for _ in range(40)] == [404] * 40
        finally:
            process.kill()


def test_a_traceback_among_lines_for_people_begins_none_of_them() -> None:
    try:
        raise ValueError("a\n2026-01-01 00:00:00 ERROR forged \x1b[31m")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "it failed: %s", ("\n",), sys.exc_info())
    first, *others = PlainFormatter("%(message)s").format(record).split("\n")
    assert first == "it failed: \\n"
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_a_request_has_one_line_of_json_with_the_id_that_its_answer_has(guarded: Server) -> None:
    with httpx2.Client(base_url=guarded.url, headers=authorized(), timeout=60) as http:
        answered = http.post("/embed", json={"inputs": [SECRET]})
        refused = http.post("/v1/embeddings", json={"input": {"text": SECRET}, "model": "tiny"})
        long = http.post("/v1/embeddings", json={"input": f"{SECRET} " * 2000, "model": "tiny"})
        unauthorized = http.get("/v1/models", headers={"authorization": f"Bearer {SECRET}"})
        own = http.get("/health", headers={"x-request-id": "of-the-client"})
    for answer, path, lane in (
        (answered, "/embed", "query"),
        (refused, "/v1/embeddings", "none"),
        (long, "/v1/embeddings", "none"),
        (unauthorized, "/v1/models", "none"),
        (own, "/health", "none"),
    ):
        line = line_of(guarded, answer.headers["x-request-id"])
        assert line["status"] == answer.status_code
        assert (line["path"], line["lane"], line["level"], line["client"]) == (path, lane, "INFO", "127.0.0.1")
        assert line["ms"] >= 0  # type: ignore[operator]
        assert str(line["time"]).startswith("20")
    assert [answer.status_code for answer in (answered, refused, long, unauthorized, own)] == [200, 400, 413, 401, 200]
    assert own.headers["x-request-id"] == "of-the-client"
    for private in (SECRET, KEY, OTHER_KEY):
        assert private not in "\n".join(guarded.lines)


@pytest.mark.parametrize("value", ["a b", "", "ü", "a" * 129, "a\tb"])
def test_an_id_that_would_not_do_in_a_log_is_replaced(http: httpx2.Client, value: str) -> None:
    answer = http.get("/health", headers=[(b"x-request-id", value.encode())])
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_are_prometheus_text_with_every_series(http: httpx2.Client) -> None:
    http.post("/embed", json={"inputs": ["a", "b " * 9000]})
    http.get("/nothing")
    before = http.get("/metrics")
    assert before.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(before.text)}
    assert {name for name in families if not name.endswith("_created")} == {f"vecferry_{name}" for name in SERIES}
    assert all(family.documentation for family in families.values())
    endpoints = {sample.labels["endpoint"] for sample in families["vecferry_requests"].samples}
    assert "/nothing" not in endpoints
    assert {"unknown", "/embed", "/health"} <= endpoints
    (info,) = (sample.labels for sample in families["vecferry_model_info"].samples)
    assert (info["model"], info["runtime"], info["precision"]) == ("tiny", "onnx", "fp32")


def test_metrics_count_what_was_computed_and_what_was_cut(encoder: Encoder, library: Encoder) -> None:
    texts = ["a", "a b c", "a b c d e f", "b " * 9000]
    tokens = int(library.encode(texts).num_tokens.sum())
    with inside(encoder) as server, server.client() as http:
        before = {name: server.value(name, model="tiny") for name in ("tokens_total", "run_texts_total")}
        assert http.post("/embed", json={"inputs": texts}).headers["x-vecferry-num-truncated"] == "1"
        assert http.post("/embed", json={"inputs": texts, "truncate": False}).status_code == 413
        assert server.value("tokens_total", model="tiny") - before["tokens_total"] == tokens
        assert server.value("run_texts_total", model="tiny") - before["run_texts_total"] == len(texts)
        assert server.value("truncated_texts_total", model="tiny") == 1
        assert server.value("accepted_requests_total", lane="bulk") == 1
        assert server.value("requests_total", endpoint="/embed", status=200) == 1
        assert server.value("requests_total", endpoint="/embed", status=413) == 1
        assert server.value("request_seconds_count", endpoint="/embed", lane="bulk") == 1


# --- browsers -------------------------------------------------------------------------------------

PREFLIGHT = {
    "origin": "https://a.org",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def test_web_pages_may_not_ask_by_default(http: httpx2.Client) -> None:
    assert http.options("/embed", headers=PREFLIGHT).status_code == 405
    answer = http.post("/embed", json={"inputs": "a"}, headers={"origin": "https://a.org"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_web_pages_of_an_origin_may_ask_where_that_is_said(guarded: Server) -> None:
    """Browsers send no key with the question whether they may ask; and they read an error only if it allows it."""
    with httpx2.Client(base_url=guarded.url, timeout=60) as http:
        allowed = http.options("/embed", headers=PREFLIGHT)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.org"
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        for headers, status in ((authorized(), 200), ({}, 401)):
            answer = http.post("/embed", json={"inputs": "a"}, headers=headers | {"origin": "https://a.org"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "https://a.org")
        other = http.post("/embed", json={"inputs": "a"}, headers=authorized() | {"origin": "https://b.org"})
        assert "access-control-allow-origin" not in other.headers
        assert http.options("/embed", headers=PREFLIGHT | {"origin": "https://b.org"}).status_code == 400


# --- spans ----------------------------------------------------------------------------------------


def test_a_request_has_a_span_with_tokenise_and_compute_in_it(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with inside(encoder, options=ServerOptions(traces=True)) as server, server.client() as http:
        kept.clear()
        assert http.post("/embed", json={"inputs": [SECRET, "b"]}, headers={"traceparent": caller}).status_code == 200
        wait_until(lambda: any(is_of_a_request(span) for span in kept.get_finished_spans()))
        spans = kept.get_finished_spans()
    (request,) = (span for span in spans if is_of_a_request(span))
    inner = {span.name: span for span in spans if span.name in ("tokenise", "compute")}
    assert set(inner) == {"tokenise", "compute"}
    for span in inner.values():
        assert request in ancestors(span, spans)
        assert format(span.context.trace_id, "032x") == caller.split("-")[1]
    assert request.attributes is not None
    assert (request.attributes["http.route"], request.attributes["http.response.status_code"]) == ("/embed", 200)
    assert dict(inner["tokenise"].attributes or {}) == {"vecferry.texts": "2"}
    assert set(inner["compute"].attributes or {}) == {"vecferry.lane", "vecferry.tokens"}
    assert SECRET not in "".join(span.to_json() for span in spans)


def is_of_a_request(span: ReadableSpan) -> bool:
    return span.kind is trace.SpanKind.SERVER


def ancestors(span: ReadableSpan, spans: tuple[ReadableSpan, ...]) -> list[ReadableSpan]:
    parent = next((answer for answer in spans if span.parent and answer.context.span_id == span.parent.span_id), None)
    return [] if parent is None else [parent, *ancestors(parent, spans)]


# --- what is not installed ------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "orjson"])
def test_without_the_extra_the_command_says_how_to_install_it(package: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from vecferry.cli import main; main(['serve', sys.argv[1]])"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 3
    assert package in ended.stderr
    assert "pip install 'vecferry[server]'" in ended.stderr


def test_repeats_count_in_the_answer_though_they_are_computed_once(http: httpx2.Client) -> None:
    """Otherwise a small request would ask for more than any memory holds."""
    long = "word " * 3000
    answer = http.post("/embed_all", json={"inputs": [long]}, headers={"accept": "application/x-npz"})
    assert answer.status_code == 200
    many = http.post("/embed_all", json={"inputs": [long] * 900})
    assert many.status_code == 413
    assert "--max-answer-mb" in many.json()["error"]


def test_a_wrong_token_id_far_behind_is_named_by_its_place(http: httpx2.Client) -> None:
    rows = [[5]] * 1500 + [[2**30]]
    refused = http.post("/embed", json={"inputs": rows})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("text 1500 ")


def test_tokenizing_has_the_limit_of_tokens_too(library: Encoder) -> None:
    """Each token is some hundred bytes of the answer."""
    options = ServerOptions(limits=ServerLimits(max_request_tokens=30))
    with inside(unruly(library), options=options) as server:
        few, many = (httpx2.post(f"{server.url}/tokenize", json={"inputs": ["one word"] * n}) for n in (2, 30))
    assert few.status_code == 200
    assert many.status_code == 413
    assert "--max-request-tokens" in many.json()["error"]


# --- names ----------------------------------------------------------------------------------------


REBOUND = ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil", "", "[", "a" * 9_000]


@pytest.mark.parametrize("host", REBOUND)
def test_without_keys_a_name_that_others_may_make_lead_here_is_refused(http: httpx2.Client, host: str) -> None:
    for method, path in (("POST", "/embed"), ("POST", "/v1/embeddings"), ("POST", "/search"), ("GET", "/info")):
        refused = http.request(method, path, json={"inputs": "a"}, headers={"host": host})
        assert refused.status_code == 421
        assert "--host-name NAME" in refused.text
        assert len(refused.content) < 600
    assert http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "10.0.0.7", "embed.example"]
)
def test_addresses_localhost_and_names_that_were_allowed_are_answered(library: Encoder, host: str) -> None:
    with (
        inside(unruly(library), options=ServerOptions(host_names=("embed.example",))) as server,
        server.client() as http,
    ):
        assert http.post("/embed", json={"inputs": "a"}, headers={"host": host}).status_code == 200


def test_with_a_key_any_name_will_do_since_pages_of_others_do_not_have_it(guarded: Server) -> None:
    with httpx2.Client(base_url=guarded.url) as http:
        headers = {"host": "embeddings.example", "authorization": f"Bearer {KEY}"}
        assert http.post("/embed", json={"inputs": "a"}, headers=headers).status_code == 200
        assert http.post("/embed", json={"inputs": "a"}, headers={"host": "embeddings.example"}).status_code == 401
