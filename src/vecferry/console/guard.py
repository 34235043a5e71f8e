"""Before a request is read: whether it is for this console, and from its own pages. The headers of every answer."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from vecferry.console.operator import FAULT
from vecferry.server.guard import App, Message, Receive, Scope, Send

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
    """Middleware around everything else. names: of hosts that lead here, beside addresses and localhost."""

    def __init__(self, app: App, *, names: Collection[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names} | {"localhost"}

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

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if (refusal := self._refusal(scope["method"], headers)) is not None:
            await refusal(scope, receive, with_headers)
            return
        try:
            await self._app(scope, receive, with_headers)
        except ClientDisconnect:
            return
        except Exception:
            log.exception("the console failed in a request")
            if began:
                raise
            await Response(FAULT, 500, media_type="text/plain")(scope, receive, with_headers)

    def _refusal(self, method: str, headers: dict[bytes, str]) -> Response | None:
        host = headers.get(b"host", "")
        if not self._is_ours(host):
            return Response(f"There is no console under the name {_ascii(host)!r} here.", 421, media_type="text/plain")
        if method not in ("GET", "HEAD") and not _is_same_origin(headers, host):
            return Response("This form is not one of the console's own pages.", 403, media_type="text/plain")
        if int(headers.get(b"content-length", 0)) > MAX_FORM_BYTES:  # where it is not said, the body is counted
            return Response(f"A form has {MAX_FORM_BYTES} bytes at most.", 413, media_type="text/plain")
        return None

    def _is_ours(self, host: str) -> bool:
        """Return whether the host is an address or a known name; any name may lead here (DNS rebinding)."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _is_same_origin(headers: dict[bytes, str], host: str) -> bool:
    """Return whether the browser says so, which no page can forge; without either header it is not."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is None and origin is None:
        return False
    return site in (None, "same-origin") and (origin is None or urlsplit(origin).netloc == host)


def _ascii(text: str) -> str:
    return text[:200].encode("ascii", "replace").decode()


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of an ordinary form."""
    body = await request.body()
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
