"""Before a request is read: its id, key or host, size. Afterwards: its line in the log, and in the metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from uuid import uuid4

from vecferry.errors import NotAuthorized, ServingError
from vecferry.server.answers import error_answer, error_of, style_of, unread
from vecferry.server.bodies import Bodies, Message, Receive
from vecferry.server.hosts import HostNames
from vecferry.server.logs import request_id
from vecferry.server.metrics import Metrics
from vecferry.server.options import ServerOptions
from vecferry.server.requests import ARRIVED_AT

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no key, and no name of ours."""
ID = re.compile(rb"[\x21-\x7e]{1,128}")
SLASHES = re.compile("/{2,}")
ABANDONED = 499
"""In log and metrics, where the client was gone before its answer."""
log = logging.getLogger("vecferry.server")
access = logging.getLogger("vecferry.server.access")


class RequestGuard:
    """Middleware around everything else."""

    def __init__(self, app: App, *, options: ServerOptions, metrics: Metrics) -> None:
        self._app, self._keys, self._metrics = app, options.keys, metrics
        self._names = HostNames(options.host_names)
        self._bodies = Bodies(options.limits)
        metrics.watch_bodies(lambda: self._bodies.num_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = SLASHES.sub("/", scope["path"]).rstrip("/") or "/"  # of base URLs that end in one
        headers = dict(scope["headers"])
        client_id = headers.get(b"x-request-id", b"")
        own_id = client_id.decode() if ID.fullmatch(client_id) else uuid4().hex
        request_id.set(own_id)
        scope[ARRIVED_AT] = arrived_at = time.monotonic()
        scope.setdefault("state", {})
        answer = _Response(send, own_id)
        try:
            await self._admitted(scope, headers, receive, answer)
        finally:
            self._record(scope, answer, time.monotonic() - arrived_at)

    async def _admitted(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, answer: _Response) -> None:
        body = self._bodies.new(receive)
        try:
            if scope["path"] not in OPEN:
                self._require_access(headers)
            body.decode_from(headers.get(b"content-encoding", b""))
            body.check_announced(headers.get(b"content-length", b""))
            await self._app(scope, body.receive, answer.send)
        except ServingError as exc:
            await unread(exc, style_of(scope["path"]))(scope, receive, answer.send)
        except asyncio.CancelledError:  # the server stops, and --drain-s is over
            if answer.status:
                raise
            await error_of(503, "the server has stopped.", style_of(scope["path"]))(scope, receive, answer.send)
        except Exception as exc:  # a fault of ours: the answer has the id under which the log has the reason
            log.exception("a request failed by a fault of the server")
            if answer.status:
                raise
            await error_answer(exc, style_of(scope["path"]))(scope, receive, answer.send)
        finally:
            body.release()

    def _require_access(self, headers: dict[bytes, bytes]) -> None:
        """Raise NotAuthorized without a key; where there are none, UnknownHost, since pages of others have no key."""
        if not self._keys.accepts(headers.get(b"authorization", b"")):
            raise NotAuthorized
        if not self._keys:
            self._names.require(headers.get(b"host", b""))

    def _record(self, scope: Scope, answer: _Response, seconds: float) -> None:
        """Count the answer. Paths are the routes', so that an unknown one makes no series of its own."""
        route = scope.get("route")
        endpoint = getattr(route, "path", "unknown")
        status, lane = answer.status or ABANDONED, scope["state"].get("lane", "none")
        self._metrics.requests.labels(endpoint, status).inc()
        self._metrics.seconds.labels(endpoint, lane).observe(seconds)
        if status == ABANDONED:
            self._metrics.abandoned.labels(endpoint).inc()
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(1e3 * seconds, 1),
            "lane": lane,
            "client": (scope.get("client") or ("",))[0],
        }
        access.info("%(method)s %(path)s %(status)s", fields, extra=fields)


class _Response:
    """The answer as it is sent; the status is 0 until there is one."""

    def __init__(self, send: Send, own_id: str) -> None:
        self._send, self._id = send, own_id.encode()
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id)]
        await self._send(message)
