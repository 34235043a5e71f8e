"""The process: listens, answers, and on SIGTERM ends once what was accepted is answered. Only this imports uvicorn."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vecferry.errors import SettingsError, reason_of
from vecferry.server.options import ServerLimits, ServerOptions

KEEP_ALIVE_S = 30


def serve(app: FastAPI, options: ServerOptions, listening: socket.socket) -> None:
    """Until SIGTERM or SIGINT; what was accepted by then is answered, for up to `drain_s`."""
    limits = options.limits
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        log_config=None,
        proxy_headers=False,  # whoever connects is the client
        access_log=False,  # the guard writes one line a request
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(limits.drain_s),
        limit_concurrency=limits.max_connections,
        lifespan="on",
    )
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Raises SettingsError where that address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as exc:
        raise SettingsError("--host, --port", f"{host}:{port}", f"a free address ({reason_of(exc)})") from exc


def _protocol(limits: ServerLimits) -> type[asyncio.Protocol]:
    """A connection that is closed when its headers, or the reader of its answers, do not come on.

    uvicorn has a time for idle connections only, which ends with the first byte.
    """

    class Impatient(HttpToolsProtocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connection = transport.get_extra_info("socket")
            if hasattr(socket, "TCP_USER_TIMEOUT") and connection is not None:
                milliseconds = round(1e3 * limits.receive_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            self._wait()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._waiting is None:
                self._wait()

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_waiting()

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(limits.receive_s, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Impatient
