"""What a body may be before it is parsed, how many bytes all of them may hold, and who tokenises in whose turn."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from threading import Event

import httpx2
import pytest

from tests.server.inside import Inside, inside, unruly
from tests.waiting import wait_until
from vecferry.encode.encoder import TEXTS_EACH, Encoder
from vecferry.errors import BadRequest, Overloaded, RequestTooLarge
from vecferry.server.bodies import SMALL_BYTES, Bodies, Message, Receive, ValueCount
from vecferry.server.options import ServerLimits, ServerOptions
from vecferry.server.service import parts_of

JSON = {"content-type": "application/json"}
LIMITS = ServerLimits(max_texts=1_000, max_request_tokens=5_000)
MB = 1_000_000
Encode = Callable[[bytes], bytes]


# --- values -----------------------------------------------------------------------------------------


def counted(body: bytes, piece: int = SMALL_BYTES, limits: ServerLimits = LIMITS) -> ValueCount:
    count = ValueCount(limits)
    for at in range(0, len(body), piece):
        count.add(body[at : at + piece])
    return count


def raw(data: bytes) -> bytes:
    deflating = zlib.compressobj(wbits=-15)
    return deflating.compress(data) + deflating.flush()


CODINGS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "Deflate": raw}


@pytest.mark.parametrize(("coding", "encode"), CODINGS.items())
def test_gzip_and_deflate_are_read_in_whatever_pieces(library: Encoder, coding: str, encode: Encode) -> None:
    content = json.dumps({"inputs": ["é " * 5_000, "b"]}).encode()
    body, headers = encode(content), JSON | {"content-encoding": coding}
    with inside(unruly(library)) as server, server.client() as http:
        expected = http.post("/embed", content=content, headers=JSON).content
        for step in (1, 7, len(body)):
            pieces = (body[at : at + step] for at in range(0, len(body), step))
            assert http.post("/embed", content=pieces, headers=headers).content == expected
        for wrong, reason in (
            (body[:-1], "ends too early"), (body + b"a", "bytes behind its end"), (b"\x08\xff" * 9, "it is not "),
        ):  # fmt: skip
            refused = http.post("/embed", content=wrong, headers=headers)
            assert (refused.status_code, reason in refused.text) == (400, True), refused.text


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "\u00e9" * 500])
def test_other_codings_are_refused_by_name(library: Encoder, coding: str) -> None:
    with inside(unruly(library)) as server, server.client() as http:
        headers = httpx2.Headers([*JSON.items(), ("content-encoding", coding)], encoding="latin-1")
        refused = http.post("/embed", content=b"{}", headers=headers)
        assert (refused.status_code, "gzip and deflate are" in refused.text) == (400, True)
        assert len(refused.text) < 300
        assert http.post("/embed", json={"inputs": "a"}, headers={"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "option"),
    [
        (b" " * 100 * MB, "--max-body-mb"),
        (b'{"inputs": [' + b"[]," * 2_000 + b"[]]}", "--max-texts"),
        (b'{"inputs": [' + b"1," * 7_000 + b"1]}", "--max-request-tokens"),
    ],
)
def test_what_is_inflated_is_counted_and_no_more_of_it_than_may_be(content: bytes, option: str) -> None:
    packed = gzip.compress(content, 1)
    limits = replace(LIMITS, max_body_mb=4)
    bodies = Bodies(limits)

    async def receive() -> Message:
        return {"body": packed, "more_body": False}

    body = bodies.new(receive)
    body.decode_from(b"gzip")
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge) as caught:
            asyncio.run(body.receive())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.option == option
    assert peak < 16 * MB, "of 100"
    body.release()
    assert bodies.num_bytes == 0


@pytest.mark.parametrize("piece", [1, 2, 3, 7, SMALL_BYTES])
def test_quotes_lists_and_commas_are_counted_where_they_are_no_part_of_a_text(piece: int) -> None:
    texts = ['a "quoted" one', "[1, 2, {3}]", "back\\", '\\"', "\\\\", '\\\\"[,', "", "é, 氧\n", '"', "\\u0022,["]
    for ensure_ascii in (True, False):
        body = json.dumps({"inputs": [*texts, [1, 2], []], "truncate": True}, ensure_ascii=ensure_ascii).encode()
        count = counted(body, piece)
        assert (count._num_quotes, count._num_lists, count._num_commas) == (2 * (len(texts) + 2), 4, len(texts) + 1 + 2)


def test_a_parser_finds_no_more_values_than_were_counted() -> None:
    made = random.Random(0)
    for _ in range(300):
        body = "".join(made.choices('[]{}",:\\ 1a', k=60)).encode()
        body = b"[" * made.randint(0, 3) + body + b'"' * made.randint(0, 1) + b"]" * made.randint(0, 3)
        try:
            value = json.loads(body)
        except ValueError:
            continue
        count = counted(body, made.randint(1, 9))
        assert _num_lists(value) <= count._num_lists
        assert _num_leaves(value) <= count._num_commas + count._num_lists + 1


def _num_lists(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + sum(map(_num_lists, children))


def _num_leaves(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if children is None else sum(map(_num_leaves, children))


@pytest.mark.parametrize(
    ("body", "option"),
    [
        (b'{"inputs": [' + b"[]," * 2_000 + b"[]]}", "--max-texts"),
        (b'{"inputs": ' + b"[" * 2_000, "--max-texts"),
        (b'{"inputs": [' + b'"",' * 2_000 + b'""]}', "--max-texts"),
        (b"{" + b'"a":1,' * 2_000 + b'"a":1}', "--max-texts"),
        (b'{"a":' * 2_000, "--max-texts"),
        (b'{"inputs": [' + b"1," * 7_000 + b"1]}", "--max-request-tokens"),
    ],
)
def test_values_over_the_limits_are_refused_before_they_are_all_there(body: bytes, option: str) -> None:
    with pytest.raises(RequestTooLarge) as caught:
        counted(body, piece=4_096)
    assert caught.value.option == option
    assert counted(b'{"inputs": "' + body.replace(b'"', b"'") + b'"}')  # within a text they are none


def test_as_many_values_as_the_limits_allow_are_no_refusal() -> None:
    counted(json.dumps({"inputs": ["a,b"] * 1_000, "truncate": True, "prompt_name": "query"}).encode())
    counted(json.dumps({"inputs": [[1] * 5] * 1_000, "model": "tiny"}).encode())


def test_another_encoding_which_the_parser_would_read_is_refused() -> None:
    for encoding in ("utf-16", "utf-16-be", "utf-32-le"):
        with pytest.raises(BadRequest, match="UTF-8"):
            counted(json.dumps({"inputs": "a"}).encode(encoding))


@pytest.fixture(scope="module")
def served(library: Encoder) -> Iterator[Inside]:
    limits = ServerLimits(max_tokenize_chars=5_000, max_bodies_mb=2, max_request_tokens=10_000)
    with inside(unruly(library), options=ServerOptions(limits=limits)) as server:
        yield server


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/v1/m3", "/tokenize", "/decode", "/similarity", "/"])
def test_a_body_of_empty_lists_is_413_before_it_is_parsed(served: Inside, path: str) -> None:
    """Once parsed each of these lists takes 56 bytes, and its place in the list around it 8."""
    body = b'{"inputs": [' + b"[]," * 15_000 + b"[]]}"
    with served.client() as http:
        refused = http.post(path, content=body, headers=JSON)
    assert refused.status_code == 413
    assert "lists of a request" in refused.text
    assert "--max-texts" in refused.text


# --- bytes ------------------------------------------------------------------------------------------


def test_bodies_together_hold_as_many_bytes_as_they_may_and_small_ones_always_find_room() -> None:
    async def scenario() -> None:
        bodies = Bodies(ServerLimits(max_bodies_mb=2))
        large = [bodies.new(pieces_of(b" " * MB, more=True)) for _ in range(2)]
        for body in large:
            await body.receive()
        third, small = bodies.new(pieces_of(b" " * MB)), bodies.new(pieces_of(b" " * SMALL_BYTES))
        with pytest.raises(Overloaded) as caught:
            await third.receive()
        assert (caught.value.allowed, caught.value.retry_after_s) == (2 * MB, 1)
        await small.receive()
        large[0].release()
        large[0].release()  # it has nothing any more
        await bodies.new(pieces_of(b" " * MB)).receive()
        with pytest.raises(Overloaded):
            await bodies.new(pieces_of(b" " * MB)).receive()

    asyncio.run(scenario())


def pieces_of(data: bytes, *, more: bool = False) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": data, "more_body": more}

    return receive


def test_bodies_that_are_held_at_their_last_byte_leave_no_room_for_others_until_they_go(served: Inside) -> None:
    head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000001\r\n\r\n"
    host, port = served.url.removeprefix("http://").split(":")
    large = {"inputs": ["a" * 1_000] * 900}
    with served.client() as http:
        with ExitStack() as held:
            for _ in range(2):
                connection = held.enter_context(socket.create_connection((host, int(port))))
                connection.sendall(head + b'{"inputs": "' + b" " * (MB - 12))
            wait_until(lambda: served.value("body_bytes") == 2 * (MB - SMALL_BYTES))
            refused = http.post("/embed", json=large)
            assert (refused.status_code, refused.json()["error_type"]) == (429, "Overloaded")
            assert refused.headers["retry-after"] == "1"
            assert http.post("/embed", json={"inputs": "a query"}).status_code == 200
        wait_until(lambda: served.value("body_bytes") == 0)
        assert http.post("/embed", json=large).status_code == 200


# --- tokens -----------------------------------------------------------------------------------------


def test_a_part_that_is_tokenised_at_a_time_has_a_number_of_texts_and_of_characters() -> None:
    texts = ["a" * 40, "b" * 40, "c" * 40, "d" * 200, "e", "f"]
    assert list(parts_of(texts, 100)) == [texts[:2], texts[2:3], texts[3:4], texts[4:]]
    assert [len(part) for part in parts_of(["a"] * (TEXTS_EACH + 1))] == [TEXTS_EACH, 1]
    assert list(parts_of([[1, 2], [3]])) == [[[1, 2], [3]]]


def test_long_texts_are_embedded_in_their_order_whatever_the_parts(
    library: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} " + "word " * (50 * number) for number in range(12)]
    expected = library.encode(texts).dense
    monkeypatch.setattr(parts_of, "__defaults__", (1_000,))
    with inside(unruly(library)) as server, server.client() as http:
        answer = http.post("/embed", json={"inputs": texts}).json()
    assert abs(expected - answer).max() < 5e-6


def test_tokenizing_and_decoding_have_limits_of_their_own(served: Inside) -> None:
    with served.client() as http:
        refused = http.post("/tokenize", json={"inputs": ["a " * 2_000, "a " * 600]})
        assert (refused.status_code, "--max-tokenize-chars" in refused.text) == (413, True)
        refused = http.post("/decode", json={"ids": [[5] * 6_000, [5] * 6_000]})
        assert (refused.status_code, "--max-request-tokens" in refused.text) == (413, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/tokenize", {"inputs": "a " * 2_400}), ("/decode", {"ids": [5] * 3_000}), ("/embed", {"inputs": "a " * 2_400})],
)
def test_what_takes_time_waits_for_its_turn_among_the_threads_that_tokenise(
    served: Inside, path: str, body: dict[str, object]
) -> None:
    opened = Event()
    waiting = [served.service._tokenisers.submit(opened.wait, 60) for _ in range(2)]
    try:
        with served.client() as http:
            late = http.post(path, json=body, headers={"x-request-timeout": "0.1"})
            assert late.status_code == 504
            assert http.get("/health").status_code == 200
    finally:
        opened.set()
    assert all(one.result() for one in waiting)
