"""`RemoteEncoder` before a server that is not ours: what it may send, and how long it may take."""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from vecferry.embeddings import Embeddings, MultiVector, Outputs, Sparse
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.export import as_npz, load_npz
from vecferry.encode.runtime.lightweight import LightweightRuntime
from vecferry.errors import ServerFailed, SettingsError, SpaceMismatch, VectorUnusable
from vecferry.model.artifact import VectorSpace

SPACE = VectorSpace(
    weights="w", tokenizer="t", special_ids=(0, 1, 2, 3), dimension=4, pooling="cls", normalize=True, max_tokens=16,
    query_prefix="", passage_prefix="", precision="fp32", heads=("dense", "sparse", "colbert"),
)  # fmt: skip
Send = Callable[[socket.socket], object]
SOON_S = 0.4


def answer(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + content


def models(space: Any = None, **others: Any) -> bytes:
    described = SPACE.model_dump(mode="json") if space is None else space
    listed = {"id": "m", "vecferry": {"aliases": [], "space": described}} | others
    return answer(json.dumps({"data": [listed]}).encode())


@contextmanager
def serving(*answers: bytes | Send) -> Iterator[str]:
    """Yield the URL of a server that gives one answer to each request, and the last one to all others."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        left = list(answers)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    speak(connection)

        def speak(connection: socket.socket) -> None:
            try:
                while connection.recv(1 << 20):
                    each = left.pop(0) if len(left) > 1 else left[0]
                    if isinstance(each, bytes):
                        connection.sendall(each)
                    else:
                        each(connection)
                        return
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def embeddings(num_texts: int = 1, **changes: Any) -> Embeddings:
    """Return what a right server says of texts of three tokens, with changes."""
    offsets = np.arange(num_texts + 1)
    fields: dict[str, Any] = {
        "fingerprint": SPACE.fingerprint,
        "num_tokens": np.full(num_texts, 3),
        "truncated": np.zeros(num_texts, bool),
        "dense_or_none": np.full((num_texts, 4), 0.5, np.float32),
        "sparse_or_none": Sparse(offsets, np.full(num_texts, 7, np.int32), np.ones(num_texts, np.float32)),
        "colbert_or_none": MultiVector(2 * offsets, np.full((2 * num_texts, 4), 0.5, np.float32)),
    }
    return Embeddings(**(fields | changes))


def npz(**changes: Any) -> bytes:
    whole = embeddings(**changes)
    return answer(as_npz([""] * len(whole), whole))


def failure(*answers: bytes | Send, timeout_s: float = 20.0) -> ServerFailed:
    with serving(*answers) as url, RemoteEncoder(url, timeout_s=timeout_s) as encoder:
        with pytest.raises(ServerFailed) as caught:
            encoder.encode(["a"], outputs=Outputs.ALL)
        assert len(str(caught.value)) < 1000
        return caught.value


def test_what_a_right_server_says_is_taken() -> None:
    with serving(models(), npz(num_texts=2)) as url, RemoteEncoder(url) as encoder:
        assert encoder.encode(["a", "b"], outputs=Outputs.ALL).dense.shape == (2, 4)


# --- the form of an answer ------------------------------------------------------------------------

DENSE = np.full((1, 4), 0.5, np.float32)
ONE = np.ones(1, np.float32)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two vectors for a text": ({"num_texts": 2}, "num_tokens is int64 (2,), not int64 (1,)"),
    "another dimension": ({"dense_or_none": DENSE[:, :3]}, "dense is float32 (1, 3), not float32 (1, 4)"),
    "one vector for two": ({"dense_or_none": DENSE[0]}, "dense is float32 (4,)"),
    "another type": ({"dense_or_none": DENSE.astype(np.float64)}, "dense is float64"),
    "texts": ({"dense_or_none": np.full((1, 4), "0")}, "dense is <U1"),
    "another order of bytes": ({"dense_or_none": DENSE.astype(">f4")}, "dense is >f4"),
    "no output": ({"sparse_or_none": None}, "no sparse vectors"),
    "weights not above 0": (
        {"sparse_or_none": Sparse(np.array([0, 1]), np.array([7], np.int32), ONE * 0)}, "sparse has negative"),
    "a negative id": ({"sparse_or_none": Sparse(np.array([0, 1]), np.array([-7], np.int32), ONE)}, "sparse has "),
    "weights without ids": ({"sparse_or_none": Sparse(np.array([0, 1]), np.array([], np.int32), ONE)}, "sparse_w"),
    "a number for weights": (
        {"sparse_or_none": Sparse(np.array([0, 1]), np.array(7, np.int32), ONE)}, "sparse_indices is int32 ()"),
    "offsets beyond the end": ({"colbert_or_none": MultiVector(np.array([0, 9]), DENSE)}, "colbert_indptr does not"),
    "offsets backwards": ({"colbert_or_none": MultiVector(np.array([1, 1]), DENSE)}, "colbert_indptr does not divide"),
    "no tokens": ({"num_tokens": np.zeros(1, np.int64)}, "num_tokens are not 1 to 16"),
    "more tokens than the model reads": ({"num_tokens": np.full(1, 17)}, "num_tokens are not 1 to 16"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), WRONG.values(), ids=WRONG)
def test_an_answer_of_another_form_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert f"what came is not what was asked for: {reason}" in failure(models(), npz(**changes)).reason


@pytest.mark.parametrize(
    "changes",
    [
        {"dense_or_none": np.array([[0.5] * 4, [np.nan] * 4], np.float32)},
        {"dense_or_none": np.array([[0.5] * 4, [0] * 4], np.float32)},
        {"colbert_or_none": MultiVector(np.array([0, 1, 2]), np.array([[0.5] * 4, [np.inf] * 4], np.float32))},
    ],
    ids=["no number", "zero", "infinity"],
)
def test_a_vector_that_is_none_is_refused_with_its_text(changes: dict[str, Any]) -> None:
    with (
        serving(models(), npz(num_texts=2, **changes)) as url,
        RemoteEncoder(url) as encoder,
        pytest.raises(VectorUnusable) as caught,
    ):
        encoder.encode(["a", "b"], outputs=Outputs.ALL)
    assert caught.value.row == 1


def test_vectors_that_were_not_asked_for_are_refused() -> None:
    with (
        serving(models(), npz()) as url,
        RemoteEncoder(url) as encoder,
        pytest.raises(ServerFailed, match="unasked sparse vectors"),
    ):
        encoder.encode(["a"])


def test_vectors_of_another_space_are_refused() -> None:
    with (
        serving(models(), npz(fingerprint="0" * 64)) as url,
        RemoteEncoder(url) as encoder,
        pytest.raises(SpaceMismatch, match="the server at"),
    ):
        encoder.encode(["a"], outputs=Outputs.ALL)


def saved(**arrays: Any) -> bytes:
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def packed(**arrays: Any) -> bytes:
    file = BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


HUGE = saved(ids=np.zeros(10)).replace(b"(10,), }" + b" " * 11, b"(1099511627776,), }", 1)
NO_NPZ = {
    "nothing": b"",
    "a page": b"<html></html>",
    "a pickle": saved(ids=np.array([{}])),
    "a bomb": packed(ids=np.zeros(1_000_000)),
    "an array of terabytes": HUGE,
    "no fingerprint": saved(ids=np.array([""]), num_tokens=np.ones(1, int), truncated=np.zeros(1, bool)),
    "half of one": as_npz([""], embeddings())[:500],
}


@pytest.mark.parametrize("content", NO_NPZ.values(), ids=NO_NPZ)
def test_what_is_no_file_of_embeddings_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it is not a file of embeddings"):
        load_npz(BytesIO(content))
    refused = failure(models(), answer(content))
    assert "it is not a file of embeddings" in refused.reason or len(content) > 10_500


@pytest.mark.parametrize(
    "listed",
    [
        models(space={}),
        models(space=SPACE.model_dump(mode="json") | {"dimension": "many"}),
        models(space=SPACE.model_dump(mode="json") | {"dimension": 10**12}),
        models(space=SPACE.model_dump(mode="json") | {"special_ids": [10**30]}),
        models(id=5),
        models(vecferry={"aliases": 5, "space": SPACE.model_dump(mode="json")}),
        answer(b"[" * 100_000),
        answer(b"\xff"),
    ],
)
def test_models_of_another_form_are_refused(listed: bytes) -> None:
    assert failure(listed).reason == "its models are not as vecferry's"


# --- size -----------------------------------------------------------------------------------------


def test_an_answer_that_grows_for_ever_is_left_at_its_bound() -> None:
    sent = 0

    def grow(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(200):  # 200 MB
            connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            sent += 1 << 20

    assert "more than the" in failure(models(), grow).reason
    assert "more than the 1000000 bytes" in failure(grow).reason
    assert sent < 100 << 20  # of which most stands in the buffers of the system


def test_what_is_compressed_is_not_unpacked() -> None:
    bomb = answer(gzip.compress(bytes(10_000_000)), "content-encoding: gzip")
    assert "its answer is compressed, which was not asked for" in failure(models(), bomb).reason


def test_a_long_error_is_cut() -> None:
    for content in (b"x" * 200_000, json.dumps({"error": "x" * 60_000}).encode(), b'{"error":' + b"[" * 50_000):
        refused = failure(answer(content, status="500 Oh"))
        assert (refused.status, len(refused.reason)) == (500, 300)


# --- time -----------------------------------------------------------------------------------------


def busy(retry_after: str) -> bytes:
    return answer(b'{"error": "busy"}', f"retry-after: {retry_after}", status="503 Busy")


@pytest.mark.parametrize("retry_after", ["3600", "9" * 400, "0" * 400 + "99"])
def test_a_pause_beyond_the_deadline_is_not_waited_for(retry_after: str) -> None:
    refused = failure(busy(retry_after), timeout_s=3.0)
    assert refused.status == 503
    assert "busy; it may answer in" in refused.reason
    assert "after the 3 s of timeout_s" in refused.reason


@pytest.mark.parametrize("retry_after", ["-5", "0", "\xb2", "soon", "1e9", "Fri, 01 Jan 2100 00:00:00 GMT", "0, 3600"])
def test_a_pause_that_is_no_number_is_not_taken(monkeypatch: pytest.MonkeyPatch, retry_after: str) -> None:
    monkeypatch.setattr("vecferry.encode.client.FIRST_PAUSE_S", 0.01)
    with serving(busy(retry_after), busy(retry_after), models()) as url, RemoteEncoder(url) as encoder:
        assert encoder.dimension == 4


def dripping(content: bytes, *, at: int) -> Send:
    """Send an answer's first bytes at once, and the others one at a time, for some seconds."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(content[:at])
        for number in range(at, at + 40):
            threading.Event().wait(SOON_S / 4)
            connection.sendall(content[number : number + 1])
        connection.sendall(content[at + 40 :])

    return drip


@pytest.mark.parametrize("at", [0, 60], ids=["the head", "the body"])
def test_an_answer_a_byte_at_a_time_ends_with_the_deadline(at: int) -> None:
    """The pauses are far shorter than the deadline; without it, the whole answer came after ten of them."""
    refused = failure(dripping(models(), at=at), timeout_s=SOON_S)
    assert (refused.status, "time" in refused.reason) == (0, True)


def test_a_server_that_says_nothing_ends_with_the_deadline() -> None:
    def hang(connection: socket.socket) -> None:
        connection.settimeout(30)
        connection.recv(1)  # until the client has gone

    assert failure(hang, timeout_s=SOON_S).status == 0


def test_the_lookup_of_a_name_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver is a double: a name server that does not answer holds up the system's own for half a minute."""
    asked, hung, resolve = threading.Event(), threading.Event(), socket.getaddrinfo

    def hang(*arguments: Any, **options: Any) -> Any:
        asked.set()
        hung.wait(30)
        return resolve(*arguments, **options)

    with serving(models()) as url, RemoteEncoder(url, timeout_s=SOON_S) as encoder:
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: encoder.space)
            try:
                assert asked.wait(30)
                refused = waiting.exception(15)
            finally:
                hung.set()
    assert isinstance(refused, ServerFailed)
    assert (refused.status, "0.4 s of timeout_s" in refused.reason) == (0, True)


def test_one_slow_server_holds_up_no_encoder_of_another() -> None:
    """`cached_property` of Python 3.11 has one lock for all instances of a class."""
    asked, hung = threading.Event(), threading.Event()

    def hang(_: socket.socket) -> None:
        asked.set()
        hung.wait(30)

    with (
        serving(hang) as slow,
        serving(models()) as quick,
        RemoteEncoder(slow) as first,
        RemoteEncoder(quick) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = pool.submit(lambda: first.space)
        asked.wait(30)
        answered = pool.submit(lambda: second.dimension)
        try:
            assert answered.result(10) == 4
        finally:
            hung.set()
        assert isinstance(waiting.exception(), ServerFailed)


# --- the protocol ---------------------------------------------------------------------------------

ODD = {
    "a body shorter than said": answer(b"{}").replace(b"content-length: 2", b"content-length: 2000"),
    "a length that is none": answer(b"{}").replace(b"content-length: 2", b"content-length: -2"),
    "a length of thousands of digits": answer(b"{}").replace(b"length: 2", b"length: " + b"9" * 5000),
    "two lengths": answer(b"{}", "content-length: 1"),
    "no HTTP": b"220 mail.example ESMTP\r\n" * 10,
    "a head without an end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    "chunks of no size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: odd\r\n\r\n",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_what_is_no_answer_of_http_is_an_error_of_ours(content: bytes) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(content)

    assert failure(send).status in (0, 200)


def test_a_redirect_is_not_followed() -> None:
    """It would take the key to another server."""
    refused = failure(answer(b"", "location: http://127.0.0.1:9/", status="307 Temporary Redirect"))
    assert refused.status == 307


@pytest.mark.parametrize(
    "settings", [{"url": "http://host:port"}, {"timeout_s": 0}, {"timeout_s": np.nan}, {"timeout_s": np.inf},
                 {"api_key": "a\nb"}, {"api_key": "é"}],
)  # fmt: skip
def test_settings_that_are_none_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))) as caught:
        RemoteEncoder(**({"url": "http://127.0.0.1:1"} | settings))
    assert "é" not in str(caught.value)


def test_the_bound_of_an_answer_leaves_room_for_every_runtime() -> None:
    """The lightweight runtime has most ids for a text: n-grams of its characters."""
    from vecferry.encode.client import _most_bytes
    from vecferry.encode.encoder import Encoder
    from vecferry.encode.runtime.lightweight import LightweightTokenizer

    encoder = Encoder(LightweightTokenizer(), LightweightRuntime())
    for text in ("", "a", "\ufdfa" * 50, "a word and another " * 50):
        for outputs in (Outputs.DENSE, encoder.space.outputs):
            made = encoder.encode([text], outputs=outputs)
            assert len(as_npz([""], made)) <= _most_bytes(encoder.space, [text], outputs, "passage")
