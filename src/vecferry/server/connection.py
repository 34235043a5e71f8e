"""Connections: who gets one, and when it ends without a request or its reader. With process.py on uvicorn."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vecferry.server.answers import error_of, style_of
from vecferry.server.guard import OPEN
from vecferry.server.options import ServerLimits

MAX_HEADER_BYTES = 65_536
"""Of a request line with its headers, of the trailers, or of what is between two chunks; the parser has no limit."""
SHARE = 0.75
"""Of all connections, for one client."""
STALLED_S = 1.0
"""After which a body that still arrives may lose its connection to others."""
MAX_REFUSED, REFUSED_S = 32, 1.0
"""Connections too many that may send a request at a time, and for how long; /health is answered there too."""
log = logging.getLogger("vecferry.server")


class TimeoutHttpProtocol(HttpToolsProtocol):
    """A connection that is closed when its headers, or the reader of its answers, do not come on, or never end.

    uvicorn has a time for idle connections only, which ends with the first byte. Over its own limit of connections it
    refuses those that were there before, too.
    """

    limits: ServerLimits
    places: Places
    host = ""
    _since = 0.0
    """Of the connection, its last request or the last answer, on the loop's clock."""
    _waiting: asyncio.TimerHandle | None = None
    _num_bytes = 0
    """Since the last that were the end of headers, or of a body."""
    _fed: bytes | memoryview = b""
    """What the parser was given last."""
    _unfed: tuple[bytes, memoryview] | None = None
    """The head of a request without its upgrade, and what came behind that head."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self.host = self.client[0] if self.client else ""
        is_admitted = self.places.admit(self)
        if not is_admitted:
            self.app = partial(_no_room, self.app)
        connection = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and connection is not None:
            milliseconds = round(1e3 * self.limits.receive_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._wait(self.limits.receive_s if is_admitted else REFUSED_S)

    def data_received(self, data: bytes) -> None:
        self._num_bytes += len(data)
        self._feed(data)
        while self._unfed is not None:
            parts, self._unfed = self._unfed, None
            for part in parts:
                self._feed(part)
        if self.transport.is_closing():
            return
        if self._num_bytes > MAX_HEADER_BYTES:
            self.send_400_response("Headers are too long.")
        elif self._is_idle():  # line ends before a request begin none
            self._wait(self.limits.receive_s)

    def _feed(self, data: bytes | memoryview) -> None:
        if not self.transport.is_closing():
            self._fed = data
            super().data_received(data)  # type: ignore[arg-type]  # the parser takes any buffer

    def _should_upgrade(self) -> bool:
        """Any upgrade ends the parser's work: it leaves out the body, though nothing obliges a server to upgrade."""
        return any(name == b"upgrade" for name, _ in self.headers)

    def handle_websocket_upgrade(self) -> None:
        """Begin the request again without the header Upgrade, whatever it names: Java's client asks for h2c."""
        offer = sys.exception()
        assert isinstance(offer, httptools.HttpParserUpgrade)
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self._unfed = b"\r\n".join([*head, b"", b""]), memoryview(self._fed)[offer.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waiting is None:
            self._wait(self.limits.receive_s)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._num_bytes = 0
        self._since = self.loop.time()
        self._stop_waiting()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._num_bytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.places.leave(self)
        self._unset_keepalive_if_required()  # which would hold the answer that was not read for as long
        self._stop_waiting()

    def claim(self) -> tuple[int, float] | None:
        """Return how readily this connection may be closed for another, the least first; None while it is answered.

        First those without a request yet, then those between two, then those whose bodies do not come on; of each the
        one that was longest so.
        """
        cycle: Any = self.cycle  # None before the first request
        if cycle is None:
            return 0, self._since
        if cycle.response_complete:
            return None if self.transport.get_write_buffer_size() else (1, self._since)
        is_stalled = cycle.more_body and self.loop.time() - self._since > STALLED_S
        return (2, self._since) if is_stalled else None

    def give_up(self) -> None:
        """Close the connection for another."""
        self.places.leave(self)
        self.transport.abort()

    def _is_idle(self) -> bool:
        """Nothing is answered, and nothing ends that."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and self._waiting is None and self.timeout_keep_alive_task is None

    def _wait(self, seconds: float) -> None:
        self._waiting = self.loop.call_later(seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Places:
    """Who has the connections that there may be. A client is an address: one has `SHARE` of them at most."""

    def __init__(self, num: int) -> None:
        self._num, self._share = num, math.ceil(SHARE * num)
        self._taken: dict[str, dict[TimeoutHttpProtocol, None]] = {}  # the oldest first, as in the next
        self._refused: dict[TimeoutHttpProtocol, None] = {}

    def admit(self, connection: TimeoutHttpProtocol) -> bool:
        """Give the connection a place, where there is none that of another without an answer to come.

        Return False if there is none. Such connections may send a request all the same, the last `MAX_REFUSED` of them.
        """
        own = self._taken.get(connection.host, {})
        if len(own) >= self._share:
            is_free = _free_one(own)
        elif sum(map(len, self._taken.values())) >= self._num:
            crowds = sorted(self._taken.values(), key=len, reverse=True)
            is_free = any(_free_one(crowd) for crowd in crowds)
        else:
            is_free = True
        if is_free:
            self._taken.setdefault(connection.host, {})[connection] = None
        else:
            self._refused[connection] = None
            if len(self._refused) > MAX_REFUSED:
                next(iter(self._refused)).give_up()
        return is_free

    def leave(self, connection: TimeoutHttpProtocol) -> None:
        """Take the connection's place back. Repeating is safe."""
        self._refused.pop(connection, None)
        own = self._taken.get(connection.host, {})
        own.pop(connection, None)
        if not own:
            self._taken.pop(connection.host, None)


def _free_one(crowd: Iterable[TimeoutHttpProtocol]) -> bool:
    """Close the connection with the least claim, of equal ones the first; return False if all are being answered."""
    claims = [(claim, connection) for connection in crowd if (claim := connection.claim()) is not None]
    if claims:
        min(claims, key=lambda pair: pair[0])[1].give_up()
    return bool(claims)


async def _no_room(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Answer a connection too many."""
    if scope["path"] in OPEN:
        await app(scope, receive, send)
        return
    log.warning("a connection over --max-connections was refused")
    response = error_of(503, "the server has as many connections as it may have.", style_of(scope["path"]))
    response.headers["connection"] = "close"
    await response(scope, receive, send)
