"""Requests that offer another protocol, as every one of Java's own client does: answered as if they did not."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from http.client import parse_headers
from io import BufferedReader
from pathlib import Path

import pytest

from tests.server.conftest import Server

JAVA = shutil.which("java")
BODY = json.dumps({"inputs": "a"}).encode()
HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
WHOLE, CHUNKED = LENGTH + BODY, b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0, something/2\r\n",
    b"Connection: Upgrade\r\nConnection: keep-alive\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: \r\nExpect: 100-continue\r\n",
]


def answers(server: Server, *pieces: bytes, num: int = 1) -> list[tuple[int, bytes]]:
    """Send the pieces over one connection, and return status and body of so many answers, without interim ones."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        with connection.makefile("rb") as reader:
            return [_next_answer(reader) for _ in range(num)]


def _next_answer(reader: BufferedReader) -> tuple[int, bytes]:
    status = 100
    while status == 100:
        status = int(reader.readline().split()[1])
        headers = parse_headers(reader)
    return status, reader.read(int(headers["content-length"]))


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("rest", [WHOLE, CHUNKED], ids=["length", "chunked"])
def test_an_offered_upgrade_is_left_alone_and_the_body_is_read(server: Server, offer: bytes, rest: bytes) -> None:
    (expected,) = answers(server, HEAD + rest)
    assert expected[0] == 200
    request = HEAD + offer + rest
    assert answers(server, request) == [expected]
    assert answers(server, *(request[at : at + 1] for at in range(len(request)))) == [expected], "byte by byte"
    assert answers(server, request * 3 + HEAD + rest, num=4) == [expected] * 4, "one behind the other"


def test_an_upgrade_without_a_body_or_of_a_long_crowd_of_requests_is_left_alone(server: Server) -> None:
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + OFFERS[0] + b"\r\n"
    assert [status for status, _ in answers(server, get * 1500, num=1500)] == [200] * 1500


def test_an_offer_does_not_get_a_body_past_its_limit(server: Server) -> None:
    long = HEAD + OFFERS[0] + b"Content-Length: 50000000\r\n\r\n"
    ((status, body),) = answers(server, long)
    assert (status, b"--max-body-mb" in body) == (413, True)


@pytest.mark.slow
@pytest.mark.skipif(JAVA is None, reason="no java here: apt install default-jdk-headless")
def test_javas_own_client_is_answered(server: Server, tmp_path: Path) -> None:
    assert JAVA is not None
    body = tmp_path / "body.json"
    body.write_bytes(BODY)
    source = Path(__file__).with_name("JavaClient.java")
    done = subprocess.run([JAVA, source, f"{server.url}/embed", body], capture_output=True, text=True, timeout=120)
    ((_, expected),) = answers(server, HEAD + WHOLE)
    assert done.stdout.encode().splitlines() == [expected, expected], done.stderr
