"""Before a request is read: whether it is for this console, and from its own pages. The headers of every answer."""

from __future__ import annotations

import logging
from collections.abc import Collection
from urllib.parse import parse_qsl

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from vecferry.console.operator import FAULT
from vecferry.errors import ReceiveTimeout, UnknownHost
from vecferry.server.answers import status_of
from vecferry.server.bodies import InTime, Message, Receive
from vecferry.server.guard import App, Scope, Send
from vecferry.server.hosts import HostNames

MAX_FORM_BYTES = 65_536
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers say of our own forms that they come from nowhere
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
log = logging.getLogger("vecferry.console")


class ConsoleGuard:
    """Middleware around everything else. names: of hosts that lead here, beside addresses and localhost.

    receive_s: for a form to arrive.
    """

    def __init__(self, app: App, *, names: Collection[str], receive_s: float) -> None:
        self._app, self._names, self._receive_s = app, HostNames(names), receive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        began = False

        async def with_headers(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        headers = dict(scope["headers"])
        if (refusal := self._refusal(scope["method"], headers)) is not None:
            await refusal(scope, receive, with_headers)
            return
        try:
            await self._app(scope, InTime(receive, self._receive_s).receive, with_headers)
        except ClientDisconnect:
            return
        except ReceiveTimeout as exc:
            closing = {"connection": "close"}
            await Response(str(exc), status_of(exc), closing, "text/plain")(scope, receive, with_headers)
        except Exception:
            log.exception("the console failed in a request")
            if began:
                raise
            await Response(FAULT, 500, media_type="text/plain")(scope, receive, with_headers)

    def _refusal(self, method: str, headers: dict[bytes, bytes]) -> Response | None:
        try:
            self._names.require(headers.get(b"host", b""))
        except UnknownHost as exc:
            return Response(str(exc), status_of(exc), media_type="text/plain")
        if method not in ("GET", "HEAD") and not _is_same_origin(headers):
            return Response("This form is not one of the console's own pages.", 403, media_type="text/plain")
        if int(headers.get(b"content-length", 0)) > MAX_FORM_BYTES:  # where it is not said, the body is counted
            return Response(f"A form has {MAX_FORM_BYTES} bytes at most.", 413, media_type="text/plain")
        return None


def _is_same_origin(headers: dict[bytes, bytes]) -> bool:
    """Return whether the browser says so, which no page can forge; without either header it is not."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is None and origin is None:
        return False
    own = [scheme + headers[b"host"] for scheme in (b"http://", b"https://")]
    return site in (None, b"same-origin") and (origin is None or origin in own)


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of an ordinary form."""
    body = await request.body()
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
