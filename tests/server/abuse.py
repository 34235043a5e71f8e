"""What no client should send, what must come of it, and a client that sends it; for test_abuse.py and test_stopping.py.

As a program: good requests and abuse together, the server's memory over time, and a verdict in the end.

    python -m tests.server.abuse --minutes 30 [--json FILE]

Or so many bad requests, and what they cost: the most memory, and how long /health takes meanwhile, asked from a process
of its own.

    python -m tests.server.abuse --requests 10000
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import random
import re
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np

from bench.make_checkpoint import make_checkpoint
from tests.conftest import TINY
from tests.server.conftest import KEY, Server, rss_bytes_of, serving
from vecferry.conversion.convert import convert_checkpoint
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.model.sources import open_source

MB = 1_000_000
RECEIVE_S = 2.0
"""Of the server under abuse; a slow sender is refused after that."""
PATIENCE_S = 60.0
"""For what should come after `RECEIVE_S` or at once; two busy cores are slow, and what hangs hangs for longer."""
MAX_TEXTS, MAX_TEXT_CHARS, MAX_BODY_MB, MAX_BODIES_MB, MAX_CONNECTIONS = 200, 20_000, 4, 16, 256
MAX_TOKENIZE_CHARS = 50_000
ARGUMENTS = (
    "--token-ids",
    f"--receive-s={RECEIVE_S:g}",
    f"--max-texts={MAX_TEXTS}",
    f"--max-text-chars={MAX_TEXT_CHARS}",
    f"--max-body-mb={MAX_BODY_MB}",
    f"--max-bodies-mb={MAX_BODIES_MB}",
    f"--max-connections={MAX_CONNECTIONS}",
    f"--max-tokenize-chars={MAX_TOKENIZE_CHARS}",
)
"""Of `vecferry serve`, with the model's name `tiny` and the key."""
NO_FILTERS: tuple[object, ...] = (
    *([], "1=1", 7, {}, {"a": None}, {"$where": "1"}, {"a": {"$regex": "."}}, {"a": [[[]]]}),
    *({"$or": [{"a": 1}] * 9_999}, {"a": {"$in": list(range(9_999))}}, {"a" * 9_999: 1}, {"a": "x" * 19_999}),
    *({str(n): n for n in range(9_999)}, {"a": 10**99}),
)
ENVIRONMENT = {
    "VECFERRY_API_KEYS": KEY,
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_TRIM_THRESHOLD_": "32768",
}
"""glibc gives back what is freed, so that resident memory is what is held: by itself it keeps up to 300 MB of gaps
after answers of 10 MB, which come and go by 100 MB."""
GROWTH_MB = 15
"""From one half of the abuse to the next: an answer of 10 MB that Python's collector has not come to yet, and more than
the 2 MB that were seen. A leak of 3 KB a request would be as much."""
PEAK_MB = 6 * MAX_BODIES_MB + 64
"""Over the rest before it, at any time: a byte of a body may become five once it is parsed, beside the body; and 64 for
answers, and what two threads tokenise."""
TOLERANCE = 5e-6
"""Of numbers below 1: a run of other texts beside it, padded to another length, adds in another order (float32)."""

THREADS = 40
"""Of anyio's pool, which runs handlers that are not coroutines; its threads come with the load and stay a while."""
CLOSED = 0
"""Instead of a status: the connection was closed without an answer."""
OPENAI_FIELDS = {"message", "type", "param", "code"}
TEI_TYPES = {"Unhealthy", "Backend", "Overloaded", "Validation", "Unauthorized"}


# --- a connection ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection that sends any bytes, and reads answers as far as they come."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    async def send(self, data: bytes) -> bool:
        """False if the server has closed; an answer may be there all the same."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except ConnectionError:
            return False
        return True

    async def reply(self, method: str = "POST", *, patience_s: float = PATIENCE_S) -> Reply | None:
        """The next answer; None if the connection ended before it was whole. Raises TimeoutError."""
        async with asyncio.timeout(patience_s):
            status, headers = await self.head()
            size = 0 if method == "HEAD" else int(headers.get(b"content-length", b"0"))
            body = await self._take(size)
        return None if body is None or status == CLOSED else Reply(status, headers, body)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Status, or CLOSED, and headers of the next answer."""
        status, lines = 100, list[bytes]()
        while 100 <= status < 200:
            head = await self._until(b"\r\n\r\n")
            if head is None:
                return CLOSED, {}
            first, *lines = head.split(b"\r\n")
            status = int(first.split(b" ", 2)[1])
        pairs = (line.partition(b":") for line in lines)
        return status, {name.lower(): value.strip() for name, _, value in pairs}

    async def rest(self) -> bytes:
        """What is there, or comes; nothing at the end of the connection."""
        if not self._buffer:
            await self._more()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def request(self, request: bytes, *, patience_s: float = PATIENCE_S) -> Reply | None:
        await self.send(request)
        return await self.reply(request[: request.find(b" ")].decode(), patience_s=patience_s)

    async def is_ended(self, patience_s: float = PATIENCE_S) -> bool:
        """Whether the server closes within that time, after no matter what."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while await self._more():
                    self._buffer.clear()
                return True
        return False

    def close(self, *, reset: bool = False) -> None:
        """Close the connection. reset: without the handshake at the end."""
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    async def _until(self, end: bytes) -> bytes | None:
        while (at := self._buffer.find(end)) < 0:
            if not await self._more():
                return None
        data = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        return data

    async def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not await self._more():
                return None
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _more(self) -> bool:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 18)
        except ConnectionError:
            return False
        self._buffer += data
        return bool(data)


Address = tuple[str, int]


def address_of(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@asynccontextmanager
async def connected(address: Address, *, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
    """Raises ConnectionError."""
    with socket.socket() as sock:
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, address)
        yield Wire(sock)


# --- requests -------------------------------------------------------------------------------------

BEARER = f"Authorization: Bearer {KEY}"
JSON = "Content-Type: application/json"


def message(method: str, target: str | bytes, headers: Iterable[str | bytes] = (), body: bytes = b"") -> bytes:
    target = target.encode() if isinstance(target, str) else target
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target), b"Host: localhost"]
    lines += [line.encode() if isinstance(line, str) else line for line in headers]
    return b"\r\n".join([*lines, b"", body])


def post(
    target: str, value: object, *headers: str | bytes, given_headers: Sequence[str | bytes] = (BEARER, JSON)
) -> bytes:
    """Return a request. value: bytes as they are, anything else as JSON. given_headers: those of a good request."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return message("POST", target, [*given_headers, *headers, f"Content-Length: {len(body)}"], body)


HEALTH = message("GET", "/health")


def v1(value: object = "a", **fields: object) -> bytes:
    return post("/v1/embeddings", {"model": "tiny", "input": value} | fields)


def tei(value: object = "a", target: str = "/embed", **fields: object) -> bytes:
    return post(target, {"inputs": value} | fields)


def m3(value: object = "a", **fields: object) -> bytes:
    return post("/v1/m3", {"inputs": value} | fields)


# --- kinds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Requests, sent in turn. statuses: one of them is the answer. is_broken: HTTP itself, which has no interface."""

    name: str
    statuses: tuple[int, ...]
    requests: tuple[bytes, ...]
    is_broken: bool = False


def kinds() -> list[Kind]:
    """Return bad requests, each answered at once, on a connection that others use too if it stays open."""
    deep = b"[" * 100_000
    digits = b"9" * 5_000
    open_brace = b'{"model": "tiny", "input": '
    other_things: list[Any] = [5, None, True, {"a": 1}, ["a", 1], [["a"]], [None], [[1], "a"], [{}], 1.5]
    return [
        Kind("wrong types", (400,), (*map(v1, other_things), *map(tei, other_things), *map(m3, other_things),
             post("/v1/embeddings", [1]), post("/embed", "a"), post("/embed", 1), v1(model=5), tei(truncate="perhaps"),
             tei({"source_sentence": 1, "sentences": []}, "/similarity"), post("/search", {"query": 5}),
             tei([1], "/tokenize"), post("/decode", {"ids": "a"}))),
        Kind("missing fields", (400,), (post("/v1/embeddings", {"model": "tiny"}),
             post("/v1/embeddings", {"input": "a"}), post("/embed", {}),
             post("/embed_sparse", {}), post("/embed_all", {"text": "a"}), post("/v1/m3", {}),
             post("/similarity", {"inputs": {"sentences": ["a"]}}), post("/search", {"k": 1}), post("/decode", {}),
             post("/tokenize", {}))),
        Kind("no body", (400,), tuple(post(path, b"") for path in ("/v1/embeddings", "/embed", "/v1/m3", "/search"))),
        Kind("unknown model", (404,), (v1(model="gpt-5"), v1(model=""), v1(model="../tiny"), v1(model="a" * 10_000),
             v1(model="\0"), tei(model="gpt-5"), m3(model="é\n\r\n"), tei("a", "/tokenize", model="no"))),
        Kind("empty list", (400,), (v1([]), tei([]), m3([]), v1([[]][:0]), tei([], "/embed_sparse"),
             tei([], "/embed_all"), tei([], "/tokenize"), post("/decode", {"ids": []}),
             tei({"source_sentence": "a", "sentences": []}, "/similarity"))),
        Kind("too many texts", (413,), (v1(["a"] * (MAX_TEXTS + 1)), tei(["a"] * (MAX_TEXTS + 1)),
             m3(["a"] * 5 * MAX_TEXTS), tei(["a"] * (MAX_TEXTS + 1), "/tokenize"), v1([[5]] * (MAX_TEXTS + 1)))),
        Kind("too long texts", (413,), (v1("a" * (MAX_TEXT_CHARS + 1)), tei(["a", "ab " * MAX_TEXT_CHARS]),
             v1("a " * 9_000), tei("a " * 9_000, truncate=False), v1([5] * 9_000), m3("a " * 9_000, truncate=False))),
        Kind("huge lists of wrong numbers", (400, 413, 429), (
             post("/embed", b'{"inputs": [' + b"1.5," * 50_000 + b"1]}"),
             post("/v1/embeddings", open_brace + b"[" + b"[-1]," * 50_000 + b"[1]]}"))),
        Kind("deep JSON", (400, 413), (post("/embed", deep), post("/v1/embeddings", open_brace + deep),
             post("/v1/m3", b'{"inputs": ' + deep + b"]" * len(deep) + b"}"), post("/embed", b'{"a":' * 20_000))),
        Kind("lists of nothing", (413,), (*(post(path, b'{"inputs": [' + b"[]," * 20_000 + b"[]]}") for path in (
             "/embed", "/v1/embeddings", "/v1/m3", "/tokenize", "/decode", "/similarity", "/search", "/")),
             post("/embed", b"{" + b'"":0,' * 12_000 + b'"":0}'), post("/embed", b"[" + b'"",' * 20_000 + b'""]'))),
        Kind("other encodings", (400,), tuple(post(path, json.dumps({"inputs": "a"}).encode(encoding))
             for path in ("/embed", "/v1/m3") for encoding in ("utf-16", "utf-16-le", "utf-32"))),
        Kind("too much to tokenise", (413,), (tei(["a " * 9_000] * 3, "/tokenize"),
             tei(["ab" * 250] * 110, "/tokenize"))),
        Kind("broken JSON", (400,), (*(post("/embed", body) for body in (b"{", b'{"inputs": "a"', b"}", b"a", b"'a'",
             b'{"inputs": "a",}', b'{"inputs": "a"}{}', b'{"inputs": "\n"}', b"\0" * 100, b"\xff\xfe", b" ")),
             post("/v1/embeddings", open_brace))),
        Kind("not UTF-8", (400,), (post("/embed", b'{"inputs": "\xff"}'),
             post("/v1/embeddings", open_brace + b'"\xc3"}'),
             post("/embed", b'{"inputs": "\xed\xa0\x80"}'), post("/v1/m3", b'{"\xf8\x88\x80\x80\x80": 1}'))),
        Kind("lone surrogates", (400, 404), (tei("\ud800"), v1("a\udfff"), m3(["a", "\ud83d"]), v1(model="\ud800"),
             tei("\ud800", "/tokenize"), tei("\ud800", "/embed_all"), tei(prompt_name="\ud800"),
             tei({"source_sentence": "\ud800", "sentences": ["a"]}, "/similarity"), post("/v1/m3", {"\ud800": 1}))),
        Kind("numbers that are none", (400,), tuple(post(path, start + number + b"}")
             for path, start in (("/v1/embeddings", open_brace), ("/embed", b'{"inputs": "a", "dimensions": '),
                                 ("/search", b'{"query": "a", "k": '), ("/decode", b'{"ids": ['))
             for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", digits, b"-" + digits, b"1e-999"))),
        Kind("wrong content type", (400,), tuple(post("/embed", {"inputs": "a"}, given_headers=(BEARER, *header))
             for header in ((), ("Content-Type: text/plain",), ("Content-Type: application/x-www-form-urlencoded",),
                            ("Content-Type: multipart/form-data; boundary=a",), ("Content-Type: \xff",),
                            ("Content-Type: application/json5",), ("Content-Type: application/xml",)))),
        Kind("compressed body", (400,), (post("/embed", gzip.compress(b'{"inputs": 1}')[:-9], "Content-Encoding: gzip"),
             post("/embed", b'{"inputs": "a"}', "Content-Encoding: gzip"),
             post("/embed", gzip.compress(b'{"inputs": "a"}'), "Content-Encoding: br"),
             post("/v1/embeddings", gzip.compress(b"a" * 10**6), "Content-Encoding: gzip, gzip"))),
        Kind("body that grows", (413,), (post("/embed", gzip.compress(b"[" * 10**8), "Content-Encoding: gzip"),)),
        Kind("wrong method", (405,), (message("GET", "/embed", [BEARER]), message("DELETE", "/v1/embeddings", [BEARER]),
             message("PUT", "/v1/m3", [BEARER]), message("PATCH", "/search", [BEARER]), message("POST", "/health"),
             message("HEAD", "/embed", [BEARER]), message("OPTIONS", "/embed", [BEARER]),
             message("TRACE", "/v1/models", [BEARER]), message("PROPFIND", "/info", [BEARER]))),
        Kind("unknown path", (404,), (message("GET", "/docs", [BEARER]), message("GET", "/v1/", [BEARER]),
             message("GET", "/v1/nothing", [BEARER]), post("/v2/embeddings", {}),
             message("GET", "/favicon.ico", [BEARER]), post("/embeds/", {"inputs": "a"}),
             message("GET", "/METRICS", [BEARER]))),
        Kind("path tricks", (404, 405), tuple(message("GET", path, [BEARER]) for path in (
             "/../../etc/passwd", "/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%00", "/v1/models%00", "//x",
             "//v1//model", "/v1/models/..", "/%ff%fe", "/%", "/%zz", "/;/", "/\\..\\", "/v1/models%0d%0aSet-Cookie:a",
             "/" + "a" * 50_000, "/" + "../" * 5_000, "/x?" + "a=b&" * 5_000, "/%25%30%30", "*",
             "http://other/v1/model"))),
        Kind("wrong key", (401,), (*(post(path, {"inputs": "a"}, *header, given_headers=(JSON,))
             for path in ("/embed", "/v1/embeddings", "/nowhere")
             for header in ((), ("Authorization: Bearer",), ("Authorization: Bearer " + KEY[:-1],),
                            (b"Authorization: Bearer \xff\xfe\x80",), (f"Authorization: Basic {KEY}",),
                            ("Authorization: " + KEY,), ("Authorization: Bearer " + "a" * 10_000,),
                            ("Authorization: Bearer " + KEY + "\tX",))),
             message("GET", "/metrics"), message("GET", "/openapi.json"), message("GET", "/v1/models"))),
        Kind("token ids that are none", (400,), (v1([-1]), v1([4_000_000]), v1([[5, 2**31]]), v1([1.0]), v1([[5, 1.5]]),
             tei([2**63]), tei([[5], [-5]]), m3([10**30]), v1([True]), tei([999_999]), post("/decode", {"ids": [-1]}),
             post("/decode", {"ids": [999_999]}), post("/decode", {"ids": [[5, 10**20]]}))),
        Kind("wrong dimensions", (400,), (v1(dimensions=7), v1(dimensions=0), v1(dimensions=-64), tei(dimensions=65),
             v1(dimensions="a"), tei(dimensions=2**70), v1(dimensions=[64]))),
        Kind("k out of range", (400,), tuple(post("/search", {"query": "a", "k": k})
             for k in (0, -1, 1001, 2**64, 1.5, "many"))),
        Kind("filters that are none", (400, 413), tuple(post("/search", {"query": "a", "where": each})
             for each in NO_FILTERS)),
        Kind("unknown choices", (400,), (v1(encoding_format="hex"), v1(prompt_name="title"),
             tei(prompt_name="x" * 9_999), tei(truncation_direction="left"),
             tei(truncation_direction="up"), m3(outputs=["dense", "colour"]),
             m3(outputs=[]), m3(extra=1), m3(role="author"))),
        Kind("nonsense in our headers", (400,), (*(post("/v1/embeddings", {"model": "tiny", "input": "a"}, header)
             for header in ("X-Request-Timeout: soon", "X-Request-Timeout: -1", "X-Request-Timeout: nan",
                            "X-Request-Timeout: 0", "X-Request-Timeout:", "X-Request-Timeout: 1e-400",
                            "X-Request-Timeout: " + "9" * 5_000 + "x", b"X-Request-Timeout: \xff",
                            "X-Vecferry-Lane: query", "X-Vecferry-Lane:")),)),
        Kind("no time", (504,), (post("/embed", {"inputs": "a"}, "X-Request-Timeout: 1e-9"),
             post("/v1/embeddings", {"model": "tiny", "input": "a"}, "X-Request-Timeout: 1e-300"))),
        Kind("long headers", (404,), (message("GET", "/nowhere", [BEARER, "X-Long: " + "a" * 30_000]),
             message("GET", "/v1/nowhere", [BEARER, *(f"X-{i}: {i}" for i in range(500))]),
             message("GET", "/nowhere", [BEARER, "X-Request-Id: " + "a" * 10_000]),
             message("GET", "/nowhere", [BEARER, b"X-Request-Id: \xff\xfe", b"Cookie: \x80\x81", b"Accept: \xff"]))),
        Kind("body announced too large", (413,), tuple(
             message("POST", path, [BEARER, JSON, f"Content-Length: {size}"])
             for path in ("/embed", "/v1/embeddings", "/health") for size in (MAX_BODY_MB * MB + 1, 50 * MB, 10**18))),
        Kind("websocket", (404, 405), tuple(message("GET", path, [BEARER, "Connection: Upgrade", "Upgrade: websocket",
             "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="])
             for path in ("/embed", "/v1/nothing"))),
    ]  # fmt: skip


def names_of_others() -> Kind:
    """Return requests as a web page sends them that has made its own name lead to a server without keys."""
    requests = (message("GET", "/info"), *(post(path, {"inputs": "a", "query": "a"}, given_headers=(JSON,))
                for path in ("/embed", "/v1/embeddings", "/v1/m3", "/search", "/tokenize")))  # fmt: skip
    names = (b"evil.example", b"evil.example:8080", b"localhost.evil.example", b"127.0.0.1.evil.example", b"")
    rebound = tuple(request.replace(b"Host: localhost", b"Host: " + name) for name in names for request in requests)
    return Kind("names of others", (421,), rebound)


def broken_kinds() -> list[Kind]:
    """Return requests of broken HTTP: 400 or closed, and no second answer to what was hidden behind it."""
    hidden = message("GET", "/health")
    head = [BEARER, JSON]

    def odd(*headers: str | bytes, body: bytes = b'{"inputs": "a"}') -> bytes:
        return message("POST", "/embed", [*head, *headers], body)

    lengths = ("a", "-1", "+5", "1e3", "0x10", "9" * 30, "9" * 5_000, "5, 5", "", "5 5", "\xb2")
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(range(180))
    kinds = [
        Kind("bad content-length", (400, CLOSED), tuple(odd(f"Content-Length: {value}") for value in lengths)),
        Kind("two content-lengths", (400, CLOSED), (odd("Content-Length: 15", "Content-Length: 0"),
             odd("Content-Length: 0", "Content-Length: 15", body=hidden),
             odd("Content-Length: 15", "content-length: 15"))),
        Kind("smuggling", (400, CLOSED), (
             odd("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + hidden),
             odd("Transfer-Encoding: chunked", "Content-Length: 500", body=b"0\r\n\r\n" + hidden),
             odd("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + hidden),
             odd("Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + hidden),
             odd("Transfer-Encoding : chunked", body=b"0\r\n\r\n" + hidden),
             odd("Transfer-Encoding: identity", "Transfer-Encoding: chunked", "Content-Length: 3",
                 body=b"0\r\n\r\n" + hidden),
             odd(" Transfer-Encoding: chunked", body=b"0\r\n\r\n" + hidden),
             odd("X: a\r\n Transfer-Encoding: chunked", "Content-Length: 15"),
             odd("Transfer-Encoding: chunked", body=b"0;\n\r\n\r\n" + hidden),
             odd(b"Transfer-Encoding: chunked", body=b"-1\r\n\r\n0\r\n\r\n" + hidden))),
        Kind("bad chunks", (400, CLOSED), tuple(odd("Transfer-Encoding: chunked", body=body) for body in (
             b"zz\r\n", b"FFFFFFFFFFFFFFFFFF\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n", b"\r\n\r\n", b"5" * 100))),
        Kind("not HTTP", (400, 401, CLOSED), (b"GET /\r\n\r\n", b"\0" * 500, b"hello\r\n\r\n",
             bytes(range(128, 256)) * 4,
             b"SSH-2.0-OpenSSH_9.9\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", b"get / http/1.1\r\n\r\n",
             b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO a\r\n", b"*3\r\n$3\r\nSET\r\n",
             b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        Kind("TLS hello", (400, CLOSED), (hello, hello[:11] + bytes(2_000))),
        Kind("bad headers", (400, CLOSED), (odd(b"X\0: a"), odd(b"X: a\0b"), odd(b": a"), odd(b"X y: a"),
             odd(b"X: a\rb"), odd(b"\xff: a"), odd("no colon"))),
        Kind("header flood", (400, 431, CLOSED), (odd(*(f"X-{i}: {'a' * 50}" for i in range(40_000))),
             odd("X: " + "a" * 2 * MB), message("GET", "/" + "a" * 2 * MB), b"GET / HTTP/1.1\r\n" + b"a" * 2 * MB,
             odd("Transfer-Encoding: chunked", body=b"0\r\n" + b"X: aaaaaaaaaaaaaaaaaaaaa\r\n" * 80_000),
             odd("Transfer-Encoding: chunked", body=b"1;" + b"a" * 2 * MB), b"\r\n" * MB)),
        Kind("targets that are no paths", (400, CLOSED), (message("CONNECT", "a:443"),
             message("GET", "a"), message("GET", "http://"), message("GET", "?a"))),
    ]  # fmt: skip
    return [replace(kind, is_broken=True) for kind in kinds]


# --- behaviour ------------------------------------------------------------------------------------

LEFT = "left-in-the-body"
Act = Callable[[Address], Awaitable[int]]
"""Misbehaves once; the status that came, or CLOSED."""


async def dripping_headers(address: Address) -> int:
    async with connected(address) as wire:
        began = time.monotonic()
        alive = await wire.send(b"POST /embed HTTP/1.1\r\nX: ")
        while alive and time.monotonic() - began < PATIENCE_S:
            await asyncio.sleep(RECEIVE_S / 20)
            alive = await wire.send(b"a")
        assert not alive, "headers may drip"
        return await status_of(wire)


async def dripping_body(address: Address) -> int:
    async with connected(address) as wire:
        replying = asyncio.ensure_future(wire.reply())
        await wire.send(message("POST", "/embed", [BEARER, JSON, "Content-Length: 1000"]))
        while not replying.done():
            await asyncio.sleep(RECEIVE_S / 20)
            await wire.send(b"a")
        reply = await replying
        assert reply is not None
        check_shape(reply, b"/embed")
        assert await wire.is_ended(), "the rest of a body is waited for"
        return reply.status


async def stuck_body(address: Address) -> int:
    async with connected(address) as wire:
        reply = await wire.request(
            message("POST", "/v1/embeddings", [BEARER, JSON, "Transfer-Encoding: chunked"], b"5\r\nab")
        )
        assert reply is not None
        check_shape(reply, b"/v1/embeddings")
        assert await wire.is_ended(), "the rest of a body is waited for"
        return reply.status


async def silence(address: Address) -> int:
    """Not one byte."""
    async with connected(address) as wire:
        assert await wire.is_ended(), "a connection without a request stays"
        return CLOSED


async def empty_lines(address: Address) -> int:
    """After a good request only line ends, which no parser counts as the beginning of the next."""
    async with connected(address) as wire:
        reply = await wire.request(message("GET", "/health"))
        assert reply is not None
        assert reply.status == 200
        await wire.send(b"\r\n")
        assert await wire.is_ended(), "a connection with an empty line stays"
        return CLOSED


async def leaving_in_the_body(address: Address) -> int:
    async with connected(address) as wire:
        head = [BEARER, JSON, f"X-Request-Id: {LEFT}", "Content-Length: 100000"]
        await wire.send(message("POST", "/embed", head, b'{"inputs": "' + b"a" * 9_000))
        wire.close(reset=random.random() < 0.5)
        return CLOSED


async def leaving_before_the_answer(address: Address) -> int:
    async with connected(address) as wire:
        await wire.send(tei(["some words of a text that takes its time " * 9] * 50, "/embed_all"))
        await asyncio.sleep(random.random() * 0.02)
        wire.close(reset=random.random() < 0.5)
        return CLOSED


async def never_reading(address: Address) -> int:
    """An answer of 10 MB, of which the buffers of two sockets hold some 4."""
    async with connected(address, receive_buffer=4096) as wire:
        await wire.send(tei(["some words of a long text " * 20] * 70, "/embed_all"))
        status, headers = await wire.head()
        assert status == 200
        await asyncio.sleep(2.5 * RECEIVE_S)
        size = 0
        while data := await wire.rest():
            size += len(data)
        assert size < int(headers[b"content-length"]), "the server waited for a reader that does not read"
        return CLOSED


async def endless_body(address: Address) -> int:
    """50 MB without a length; read is as much as is allowed."""
    async with connected(address) as wire:
        replying = asyncio.ensure_future(wire.reply())
        await wire.send(message("POST", "/v1/embeddings", [BEARER, JSON, "Transfer-Encoding: chunked"]))
        block = b"%x\r\n%s\r\n" % (MB, b" " * MB)
        for _ in range(50):
            if replying.done() or not await wire.send(block):
                break
        reply = await replying
        assert reply is not None
        check_shape(reply, b"/v1/embeddings")
        assert await wire.is_ended(), "the rest of a body is waited for"
        return reply.status


async def list_bomb(address: Address) -> int:
    """4 MB of empty lists, which would be 86 MB once they are parsed."""
    return await _status_while_sending(address, b'{"inputs": [' + b"[]," * 1_300_000 + b"[]]}")


async def held_body(address: Address) -> int:
    """4 MB but the last byte; six at a time are more than all bodies may be."""
    body = b'{"inputs": "' + b" " * (4 * MB - 20)
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(_status_while_sending(address, body, missing=1)) for _ in range(6)]
    statuses = {task.result() for task in held}
    assert statuses <= {408, 429, CLOSED}, statuses
    return 429 if 429 in statuses else 408


async def _status_while_sending(address: Address, body: bytes, *, missing: int = 0) -> int:
    """Return the status that comes before the body is whole, or CLOSED where the connection ends before that."""
    async with connected(address) as wire:
        replying = asyncio.ensure_future(wire.reply())
        await wire.send(message("POST", "/embed", [BEARER, JSON, f"Content-Length: {len(body) + missing}"], body))
        reply = await replying
        assert await wire.is_ended(), "the rest of a body is waited for"
        return CLOSED if reply is None else reply.status


async def long_tokenising(address: Address) -> int:
    """As much as may be tokenised in one request."""
    async with connected(address) as wire:
        reply = await wire.request(tei(["some words of a text " * 900] * 2, "/tokenize"), patience_s=3 * PATIENCE_S)
        assert reply is not None
        return reply.status


async def silent_crowd(address: Address) -> int:
    """More connections than there may be, one after the other, and not one byte."""
    async with AsyncExitStack() as stack:
        crowd = []
        for _ in range(MAX_CONNECTIONS):
            crowd.append(await stack.enter_async_context(connected(address)))
            await asyncio.sleep(0.002)
        for wire in crowd:
            assert await wire.is_ended(), "a connection without a request stays"
        return CLOSED


async def pipelining(address: Address) -> int:
    """100 bad requests at once; answers come in their order."""
    async with connected(address) as wire:
        both = (tei([]), v1(model="no"))
        sent = asyncio.ensure_future(wire.send(b"".join(both * 50)))
        for status in (400, 404) * 50:
            reply = await wire.reply()
            assert reply is not None
            assert reply.status == status
        await sent
        return 404


ACTS: dict[str, tuple[Act, tuple[int, ...]]] = {
    "headers that drip": (dripping_headers, (CLOSED,)),
    "body that drips": (dripping_body, (408,)),
    "body that stops": (stuck_body, (408,)),
    "no byte at all": (silence, (CLOSED,)),
    "empty lines": (empty_lines, (CLOSED,)),
    "leaving in the body": (leaving_in_the_body, (CLOSED,)),
    "leaving before the answer": (leaving_before_the_answer, (CLOSED,)),
    "never reading the answer": (never_reading, (CLOSED,)),
    "50 MB in chunks": (endless_body, (413, 408, 429)),  # too long, too slow, or beside too many others
    "4 MB of empty lists": (list_bomb, (413, CLOSED)),
    "bodies but their last byte": (held_body, (408, 429)),
    "tokenising long texts": (long_tokenising, (200,)),
    "a silent crowd": (silent_crowd, (CLOSED,)),
    "pipelining": (pipelining, (404,)),
}


async def status_of(wire: Wire) -> int:
    reply = await wire.reply()
    return CLOSED if reply is None else reply.status


# --- verdicts on one answer -----------------------------------------------------------------------


def check_shape(reply: Reply, target: bytes) -> None:
    """Check that an error has the form of the interface that the path belongs to, and the request's id."""
    assert b"x-request-id" in reply.headers or reply.status == 503, reply  # of a connection too many nothing was read
    if not reply.body:  # of HEAD
        return
    body = reply.json()
    path = re.sub(rb"/{2,}", b"/", unquote_to_bytes(target.removeprefix(b"http://other")).partition(b"?")[0] + b"/")
    if path.startswith((b"/v1/", b"/openai/", b"/embeddings/")):
        assert set(body) == {"error"}, body
        assert set(body["error"]) == OPENAI_FIELDS, body
        assert body["error"]["message"], body
    else:
        assert set(body) == {"error", "error_type"}, body
        assert body["error"], body
        assert body["error_type"] in TEI_TYPES, body


def check(kind: Kind, request: bytes, reply: Reply | None) -> int:
    status = CLOSED if reply is None else reply.status
    assert status in kind.statuses, (kind.name, request[:300], reply)
    if reply is not None and not (kind.is_broken and reply.headers[b"content-type"].startswith(b"text/plain")):
        check_shape(reply, request.split(b" ", 2)[1])
    return status


# --- many of them ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was sent, by kind and status."""

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    num_good: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def table(self) -> str:
        by_kind: dict[str, Counter[int]] = {}
        for (name, status), count in self.counts.items():
            by_kind.setdefault(name, Counter())[status] += count
        rows = [(name, ", ".join(f"{status or 'closed'}: {count}" for status, count in sorted(counts.items())))
                for name, counts in sorted(by_kind.items())]  # fmt: skip
        return "\n".join(f"{name:<32}{counts}" for name, counts in rows)


async def abuse(address: Address, tally: Tally, *, cheap: int, broken: int, acts: int, connections: int = 32) -> None:
    """So many requests of the cheap kinds in all, of the broken ones in all, and of each act. Raises AssertionError."""
    waiting, broken_waiting = _in_turn(kinds(), cheap), _in_turn(broken_kinds(), broken)
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(_cheap(address, waiting, tally))
        for _ in range(4):
            group.create_task(_broken(address, broken_waiting, tally))
        for name, (act, statuses) in ACTS.items():
            for _ in range(acts):
                group.create_task(_act(address, name, act, statuses, tally))


def _in_turn(among: Sequence[Kind], count: int) -> Iterator[tuple[Kind, bytes]]:
    for number in range(count):
        kind = among[number % len(among)]
        yield kind, kind.requests[number // len(among) % len(kind.requests)]


async def _cheap(address: Address, waiting: Iterator[tuple[Kind, bytes]], tally: Tally) -> None:
    """On one connection after another, each for as long as the server leaves it open."""
    ahead: tuple[Kind, bytes] | None = next(waiting, None)
    while ahead is not None:
        async with connected(address) as wire:
            while ahead is not None:
                kind, request = ahead
                reply = await wire.request(request)
                tally.counts[kind.name, check(kind, request, reply)] += 1
                ahead = next(waiting, None)
                if reply is None or reply.headers.get(b"connection") == b"close":
                    break


async def _broken(address: Address, waiting: Iterator[tuple[Kind, bytes]], tally: Tally) -> None:
    for kind, request in waiting:
        async with connected(address) as wire:
            sent = asyncio.ensure_future(wire.send(request))
            try:
                reply = await wire.reply()
            except TimeoutError:
                raise AssertionError(("neither an answer nor an end", kind.name, request[:300])) from None
            await sent
            tally.counts[kind.name, check(kind, request, reply)] += 1
            assert await wire.reply() is None, ("a second answer", kind.name, request[:300])


async def _act(address: Address, name: str, act: Act, statuses: tuple[int, ...], tally: Tally) -> None:
    status = await act(address)
    assert status in statuses, (name, status)
    tally.counts[name, status] += 1


# --- the server meanwhile -------------------------------------------------------------------------


class Good:
    """Send requests as they should be, whose answers are the library's vectors."""

    def __init__(self, library: Encoder, seed: int = 0) -> None:
        self._short = texts_of(40, num_words=6, seed=seed)
        self._long = texts_of(30, num_words=60, seed=seed + 1)
        self._expected = {text: library.encode([text]).dense[0] for text in (*self._short, *self._long)}

    async def check(self, wire: Wire, *, bulk: bool = False) -> None:
        """One request, of one text or of `MAX_TEXTS / 10` in the other lane. Raises AssertionError."""
        texts = random.sample(self._long, MAX_TEXTS // 10) if bulk else [random.choice(self._short)]
        reply = await wire.request(v1(texts), patience_s=3 * PATIENCE_S)
        assert reply is not None, "a good request has no answer"
        assert reply.status == 200, reply
        vectors = [row["embedding"] for row in reply.json()["data"]]
        np.testing.assert_allclose(vectors, [self._expected[text] for text in texts], rtol=0, atol=TOLERANCE)

    async def go_on(self, address: Address, until: asyncio.Event, tally: Tally, *, bulk: bool = False) -> None:
        """One after the other on one connection, with a pause for the others."""
        async with connected(address) as wire:
            while not until.is_set():
                await self.check(wire, bulk=bulk)
                tally.num_good += 1
                await asyncio.sleep(0.02)


def texts_of(count: int, *, num_words: int, seed: int = 0) -> list[str]:
    """Return texts that differ, of so many words each."""
    made = random.Random(seed)
    stock = [made.choice("bdfgklmnprst") + made.choice("aeiou") + made.choice("lmnrst") for _ in range(300)]
    return [f"{number} " + " ".join(made.choices(stock, k=num_words)) for number in range(count)]


@dataclass(frozen=True)
class Figures:
    """What the server's process uses."""

    rss_mb: float
    files: int
    threads: int

    @classmethod
    def of(cls, server: Server) -> Figures:
        process = Path(f"/proc/{server.process.pid}")
        files, threads = (len(list((process / part).iterdir())) for part in ("fd", "task"))
        return cls(round(server.rss_bytes() / MB, 1), files, threads)


async def rested(server: Server, good: Good, before: Figures | None = None) -> Figures:
    """Figures after a last good request in each lane, once the files are as few as before or after `PATIENCE_S`."""
    async with connected(address_of(server.url)) as wire:
        for bulk in (True, False):
            await good.check(wire, bulk=bulk)
    until = time.monotonic() + PATIENCE_S
    await asyncio.sleep(0.2)
    while before is not None and Figures.of(server).files > before.files and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return Figures.of(server)


async def in_halves(server: Server, good: Good, tally: Tally, requests: int) -> list[Figures]:
    """Send so many bad requests beside good ones; return the figures before, between two halves, and after."""
    address = address_of(server.url)
    figures, broken = [await rested(server, good)], 3 * requests // 100
    for _ in range(2):
        over = asyncio.Event()
        going_on = asyncio.ensure_future(good.go_on(address, over, tally))
        await abuse(address, tally, cheap=requests // 2 - broken - 3 * len(ACTS), broken=broken, acts=3)
        over.set()
        await going_on
        figures.append(await rested(server, good, figures[0]))
    return figures


@dataclass
class Watch:
    """What /health took, each time on a connection of its own, and the most memory that was resident."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def __str__(self) -> str:
        p50, p99, worst = (1e3 * float(np.quantile(self.seconds, part)) for part in (0.5, 0.99, 1.0))
        health = f"/health {len(self.seconds)} times: p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {worst:.0f} ms"
        return f"{health}; at most {self.peak_mb:.0f} MB resident"


@contextmanager
def watched(server: Server) -> Iterator[Watch]:
    """Watch a server from another process, which is not held up by those that abuse it. The figures come at the end."""
    watch, context = Watch(), multiprocessing.get_context("spawn")
    over, (receiver, sender) = context.Event(), context.Pipe(duplex=False)
    process = context.Process(target=_watch, args=(address_of(server.url), server.process.pid, over, sender))
    process.start()
    receiver.recv()  # it has begun
    try:
        yield watch
    finally:
        over.set()
        watch.seconds, watch.peak_mb = receiver.recv()
        process.join()


def _watch(address: Address, pid: int, over: Event, sender: Connection) -> None:
    sender.send(None)
    seconds: list[float] = []
    peak_mb = 0.0
    while not seconds or not over.wait(0.02):
        began = time.monotonic()
        with socket.create_connection(address, PATIENCE_S) as connection:
            connection.sendall(HEALTH)
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
        seconds.append(time.monotonic() - began)
        peak_mb = max(peak_mb, rss_bytes_of(pid) / MB)
    sender.send((seconds, peak_mb))


def faults_in(lines: Sequence[str]) -> list[str]:
    """Return the wrong lines of the log: a fault of ours, or a client that left and counts as answered."""
    faults = ("Traceback", '"level": "ERROR"', '"status": 500')
    return [
        line
        for line in lines
        if any(fault in line for fault in faults) or (LEFT in line and '"status": 499' not in line)
    ]


# --- the program ----------------------------------------------------------------------------------

EACH = {"cheap": 2_000, "broken": 100, "acts": 2}
"""Of a round, some seconds long."""


@dataclass(frozen=True)
class Row:
    """The figures after a round. bad, good: requests so far."""

    minutes: float
    bad: int
    good: int
    figures: Figures

    def __str__(self) -> str:
        figures = self.figures
        return (
            f"{self.minutes:8.2f}{self.bad:10}{self.good:9}{figures.rss_mb:10.1f}{figures.files:7}{figures.threads:9}"
        )


async def mixed(server: Server, good: Good, minutes: float, tally: Tally) -> AsyncIterator[Row]:
    """Rounds of abuse beside good load in both lanes, with a rest after each; a row of each rest."""
    address, began = address_of(server.url), time.monotonic()
    before = await rested(server, good)
    yield Row(0.0, 0, 0, before)
    while (time.monotonic() - began) / 60 < minutes:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for bulk in (False, False, True):
                group.create_task(good.go_on(address, over, tally, bulk=bulk))
            await abuse(address, tally, **EACH)
            over.set()
        figures = await rested(server, good, before)
        yield Row(round((time.monotonic() - began) / 60, 2), tally.total, tally.num_good, figures)
        if faults := faults_in(server.lines):
            raise AssertionError(faults)
        server.lines.clear()


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return what is wrong; the first third of the rows is for getting warm."""
    third = max(1, len(rows) // 3)
    middle, last = (
        sorted(row.figures.rss_mb for row in part)[third // 2] for part in (rows[third:][:third], rows[-third:])
    )
    first, end = rows[0].figures, rows[-1].figures
    problems = []
    if last > middle + GROWTH_MB:
        problems.append(f"memory grows: {middle} MB in the middle third, {last} MB in the last")
    if end.files > first.files:
        problems.append(f"files stay open: {first.files} before, {end.files} after")
    if end.threads > first.threads + THREADS:
        problems.append(f"threads stay: {first.threads} before, {end.threads} after")
    return problems


async def _watched(server: Server, good: Good, minutes: float, tally: Tally) -> list[Row]:
    rows: list[Row] = []
    print(" minutes       bad     good    RSS MB  files  threads")
    async for row in mixed(server, good, minutes, tally):
        if len(rows) < 2 or row.minutes - rows[-1].minutes >= minutes / 40:
            rows.append(row)
            print(row, flush=True)
    return rows


def _counted(model: str, good: Good, tally: Tally, requests: int) -> int:
    """Abuse a server with keys, and then one without any by names of others; print what came of it."""
    with serving(f"tiny={model}", *ARGUMENTS, env=ENVIRONMENT) as server, watched(server) as watch:
        before, *_, after = asyncio.run(in_halves(server, good, tally, requests))
        faults = faults_in(server.lines)
    with serving(f"tiny={model}") as server:
        rebound = _in_turn([names_of_others()], requests // 20)
        asyncio.run(_cheap(address_of(server.url), rebound, tally))
        faults += faults_in(server.lines)
    print(f"{tally.table()}\n\n{tally.total} bad requests, {tally.num_good} good ones\n{before}\n{after}\n{watch}")
    is_bounded = watch.peak_mb <= before.rss_mb + PEAK_MB
    print(f"allowed: {before.rss_mb + PEAK_MB:.0f} MB", *faults, sep="\n")
    return 0 if is_bounded and not faults else 1


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--requests", type=int, help="so many bad requests, instead of a time")
    arguments.add_argument("--json", type=Path, help="where to write the rows, the counts and the verdict")
    parsed = arguments.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder, "checkpoint"), TINY)
        model = convert_checkpoint(open_source(str(checkpoint)), Path(folder, "tiny"), verified=False).artifact.path
        good = Good(load_encoder(EncoderOptions(artifact=model)).encoder)
        if parsed.requests is not None:
            return _counted(str(model), good, tally, parsed.requests)
        with serving(f"tiny={model}", *ARGUMENTS, env=ENVIRONMENT) as server:
            rows = asyncio.run(_watched(server, good, parsed.minutes, tally))
            code = server.stop()
    wrong = verdict(rows) + ([] if code == 0 else [f"the server ended with {code}"])
    print(f"\n{tally.table()}\n\n{tally.total} bad requests, {tally.num_good} good ones")
    print("; ".join(wrong) or "as it should be")
    if parsed.json is not None:
        counts = [
            {"kind": name, "status": status, "count": count} for (name, status), count in sorted(tally.counts.items())
        ]
        written = {"rows": [asdict(row) for row in rows], "counts": counts, "good": tally.num_good, "wrong": wrong}
        parsed.json.write_text(json.dumps(written, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
