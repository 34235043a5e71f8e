"""Before a request is read: its id, key, size and time. Afterwards: its line in the log, and in the metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from uuid import uuid4

from vecferry.encode.batching import MB
from vecferry.errors import NotAuthorized, ReceiveTimeout, RequestTooLarge, ServingError
from vecferry.server.answers import error_answer, error_of, style_of, unread
from vecferry.server.keys import ApiKeys
from vecferry.server.logs import request_id
from vecferry.server.metrics import Metrics
from vecferry.server.options import ServerLimits
from vecferry.server.requests import ARRIVED_AT

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no key."""
ID = re.compile(rb"[\x21-\x7e]{1,128}")
ABANDONED = 499
"""In log and metrics, where the client was gone before its answer."""
log = logging.getLogger("vecferry.server")
access = logging.getLogger("vecferry.server.access")


class RequestGuard:
    """Middleware around everything else."""

    def __init__(self, app: App, *, keys: ApiKeys, limits: ServerLimits, metrics: Metrics) -> None:
        self._app, self._keys, self._limits, self._metrics = app, keys, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
        try:
            if scope["path"] not in OPEN and not self._keys.accepts(headers.get(b"authorization", b"")):
                raise NotAuthorized
            body = _Body(receive, self._limits)
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


class _Body:
    """The body as it is received: no more than is allowed, and not for longer."""

    def __init__(self, receive: Receive, limits: ServerLimits) -> None:
        self._receive, self._limits = receive, limits
        self._left = limits.max_body_mb * MB
        self._until = time.monotonic() + limits.receive_s
        self._is_whole = False

    def check_announced(self, length: bytes) -> None:
        if length.isdigit() and int(length) > self._left:
            raise self._too_large(int(length))

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError as exc:
            raise ReceiveTimeout(self._limits.receive_s) from exc
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large(self._limits.max_body_mb * MB - self._left)
        self._is_whole = not message.get("more_body", False)
        return message

    def _too_large(self, size: int) -> RequestTooLarge:
        allowed = self._limits.max_body_mb * MB
        return RequestTooLarge("bytes of a request's body", size, allowed, "--max-body-mb")
