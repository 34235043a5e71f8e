"""The application: routes, errors in the form of their interface, and the guard around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vecferry import __version__
from vecferry.errors import BadRequest, RouteNotFound, ServingError, SettingsError, VecferryError
from vecferry.migrate.router import Router
from vecferry.server import m3, openai, tei
from vecferry.server.answers import BODY, JSON, error_answer, error_of, style_of, unread
from vecferry.server.guard import ABANDONED, RequestGuard
from vecferry.server.options import ServerOptions
from vecferry.server.requests import ClientGone
from vecferry.server.service import Service

MAX_SHOWN = 200
"""Characters of a place or a reason, which may hold what the client sent."""


def create_app(service: Service, options: ServerOptions, router: Router | None = None) -> FastAPI:
    """Build the application. router: of a migration that is followed; closed with the application.

    Raises SettingsError if a model has the name of what serves in the migration.
    """
    if router is not None and service.models.has(options.serving_name):
        raise SettingsError("--serving-name", options.serving_name, "a name that none of the models has")
    app = FastAPI(
        title="vecferry",
        version=__version__,
        summary="BGE-M3's dense, sparse and ColBERT vectors, for clients of OpenAI and text-embeddings-inference.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service, router),
        telemetry={"tracing": options.traces, "metrics": False, "logs": False, "auto_configure": options.traces},
    )
    app.state.service, app.state.router = service, router
    app.state.takes_token_ids, app.state.serving_name = options.token_ids, options.serving_name
    app.state.search_fields = frozenset(options.search_fields)
    for part in (openai.router, tei.router, m3.router):
        app.include_router(part)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(RequestGuard, options=options, metrics=service.metrics)
    if options.origins:  # around the guard: browsers ask without a key, and read no error that does not allow it
        app.add_middleware(
            CORSMiddleware, allow_origins=options.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _lifespan(service: Service, router: Router | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)  # while requests that are cancelled take back what waits
            if router is not None:
                router.close()

    return lifespan


# --- errors ---------------------------------------------------------------------------------------


async def _known(request: Request, exc: Exception) -> Response:
    return error_answer(exc, style_of(request.url.path))


async def _invalid(request: Request, exc: Exception) -> Response:
    """Answer with the first thing that is wrong, by its place; never the value, which may be anything."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")[:MAX_SHOWN]
    where, reason = place.encode("ascii", "backslashreplace").decode() or BODY, str(first["msg"])[:MAX_SHOWN]
    if first["type"] == "json_invalid":
        where, reason = BODY, f"it is not JSON (at {place})"
    elif isinstance(exc.body, bytes):  # which the framework has left alone
        where, reason = BODY, f"send it with the header content-type: {JSON}"
    return error_answer(BadRequest(where, reason), style_of(request.url.path))


async def _http(request: Request, exc: Exception) -> Response:
    """Answer an error of the framework: no such path, not that method, a body that cannot be read."""
    assert isinstance(exc, HTTPException)
    if isinstance(exc.__cause__, ServingError):
        return unread(exc.__cause__, style_of(request.url.path))
    if isinstance(exc.__cause__, ClientDisconnect):
        return await _client_gone(request, exc)
    if exc.status_code == 400 and exc.__cause__ is not None:
        return error_answer(BadRequest(BODY, _unparsed(exc.__cause__)), style_of(request.url.path))
    path, style = request.scope["path"], style_of(request.scope["path"])
    if exc.status_code == 404:
        return error_answer(_no_route(path, request.app), style)
    message = str(exc.detail)
    if exc.status_code == 405:
        message = f"{request.method} is not answered here; {(exc.headers or {}).get('Allow', 'another')} is."
    return error_of(exc.status_code, message, style, headers=exc.headers)


def _unparsed(cause: BaseException) -> str:
    """Say why the framework could not parse a body, of which it says nothing itself."""
    if isinstance(cause, UnicodeDecodeError):
        return f"it is not UTF-8, in which JSON is written (byte {cause.start}); Latin-1 and others are not read"
    if isinstance(cause, RecursionError):
        return "its lists are nested too deep"
    return "it has a number of too many digits" if isinstance(cause, ValueError) else "it cannot be parsed"


def _no_route(path: str, app: FastAPI) -> RouteNotFound:
    """Return an error that names all routes, and that whose end is most like the path's."""
    routes = list(_described(app)["paths"])
    end = path.rsplit("/", 1)[-1]
    alike = get_close_matches(end, [route.rsplit("/", 1)[-1] for route in routes], 1) if len(end) < MAX_SHOWN else []
    likely = next((route for route in routes if alike and route.endswith("/" + alike[0])), "/v1/embeddings or /embed")
    return RouteNotFound(ascii(path)[:MAX_SHOWN], likely, routes)


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=ABANDONED)


HANDLERS: dict[type[Exception], Any] = {
    VecferryError: _known,
    RequestValidationError: _invalid,
    HTTPException: _http,
    ClientGone: _client_gone,
}


# --- the document ---------------------------------------------------------------------------------


def _described(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document, without the status 422, which is 400 here; with the scheme of the keys."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
    return app.openapi_schema or {}
