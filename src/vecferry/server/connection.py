"""One connection: closed where its headers do not come on, or its answers are not taken. With process.py on uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vecferry.server.answers import error_of, style_of
from vecferry.server.options import ServerLimits

MAX_HEADER_BYTES = 65_536
"""Of a request line with its headers, of the trailers, or of what is between two chunks; the parser has no limit."""
log = logging.getLogger("vecferry.server")


class TimeoutHttpProtocol(HttpToolsProtocol):
    """A connection that is closed when its headers, or the reader of its answers, do not come on, or never end.

    uvicorn has a time for idle connections only, which ends with the first byte. Over its own limit of connections it
    refuses those that were there before, too.
    """

    limits: ServerLimits
    _waiting: asyncio.TimerHandle | None = None
    _num_bytes = 0
    """Since the last that were the end of headers, or of a body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self.app = _no_room
        connection = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and connection is not None:
            milliseconds = round(1e3 * self.limits.receive_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._num_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._num_bytes > MAX_HEADER_BYTES:
            self.send_400_response("Headers are too long.")
        elif self._is_idle():  # line ends before a request begin none
            self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waiting is None:
            self._wait()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._num_bytes = 0
        self._stop_waiting()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._num_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # which would hold the answer that was not read for as long
        self._stop_waiting()

    def _is_idle(self) -> bool:
        """Nothing is answered, and nothing ends that."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and self._waiting is None and self.timeout_keep_alive_task is None

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.limits.receive_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


async def _no_room(scope: Any, receive: Any, send: Any) -> None:
    """Answer a connection too many."""
    log.warning("a connection over --max-connections was refused")
    response = error_of(503, "the server has as many connections as it may have.", style_of(scope["path"]))
    response.headers["connection"] = "close"
    await response(scope, receive, send)
