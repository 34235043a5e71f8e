"""The application: pages, forms that are answered by a redirect, and the stream of what has changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from starlette.exceptions import HTTPException

from vecferry.console.actions import ACTIONS, act
from vecferry.console.comparing import MAX_QUERY_CHARS, compare
from vecferry.console.guard import MAX_FORM_BYTES, ConsoleGuard, form_of
from vecferry.console.operator import Operator, Outcome
from vecferry.console.pages import STATIC, Pages, static
from vecferry.console.sessions import COOKIE, LoginSession, Sessions
from vecferry.console.view import Look, look_at, place_of
from vecferry.errors import VecferryError

LIVE_S = 1.0
HEARTBEAT_S = 15.0
EVENT_STREAM = "text/event-stream"
router = APIRouter()


def create_app(operator: Operator, sessions: Sessions, *, names: Collection[str] = (), receive_s: float) -> FastAPI:
    """Build the console. operator: closed with it. names: of hosts that lead to the console, beside addresses.

    receive_s: for a form to arrive.
    """
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        max_body_size=MAX_FORM_BYTES,
        lifespan=_lifespan(operator),
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.operator, app.state.sessions = operator, sessions
    app.state.pages, app.state.is_ending = Pages(), False
    app.include_router(router)
    app.add_exception_handler(_LoggedOut, _to_login)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(ConsoleGuard, names=names, receive_s=receive_s)
    return app


def _lifespan(operator: Operator) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(operator.close)

    return lifespan


# --- who asks -------------------------------------------------------------------------------------


class _LoggedOut(Exception):
    """A request without a session, or with one that is over."""


async def _to_login(_: Request, __: Exception) -> Response:
    return RedirectResponse("/login", HTTPStatus.SEE_OTHER)


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return _page(request, "refused", {"message": str(exc.detail)}, exc.status_code)


def _session(request: Request) -> LoginSession:
    session = _sessions(request).find(request.cookies.get(COOKIE, ""))
    if session is None:
        raise _LoggedOut
    return session


async def _form(request: Request, session: Annotated[LoginSession, Depends(_session)]) -> dict[str, str]:
    """Return the fields of a form of this session's own pages."""
    form = await form_of(request)
    if not session.owns(form.get("csrf", "")):
        raise HTTPException(HTTPStatus.FORBIDDEN, "This form belongs to another session. Load the page again.")
    return form


OfSession = Annotated[LoginSession, Depends(_session)]
OwnForm = Annotated[dict[str, str], Depends(_form)]


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _operator(request: Request) -> Operator:
    operator: Operator = request.app.state.operator
    return operator


def _sessions(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def _pages(request: Request) -> Pages:
    pages: Pages = request.app.state.pages
    return pages


def _page(request: Request, name: str, values: dict[str, Any], status: int = HTTPStatus.OK) -> Response:
    shared = {"csrf": "", "notice": None, "page": name}
    return HTMLResponse(_pages(request).render(name, shared | values), status)


def _own_page(request: Request, session: LoginSession, name: str, values: dict[str, Any]) -> Response:
    """Return a page with the outcome of the session's last form, once."""
    notice, session.notice = session.notice, None
    target = _operator(request).task.store.target
    return _page(request, name, {"csrf": session.csrf, "notice": notice, "target": target} | values)


# --- logging in -----------------------------------------------------------------------------------


@router.get("/login")
async def login_page(request: Request) -> Response:
    return _page(request, "login", {"message": ""})


@router.post("/login")
async def log_in(request: Request) -> Response:
    key = (await form_of(request)).get("key", "")
    if message := _problem_with(request, key):
        return _page(request, "login", {"message": message})
    session = _sessions(request).begin()
    response = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    is_https = request.headers.get("origin", "").startswith("https:")
    response.set_cookie(COOKIE, session.token, path="/", httponly=True, samesite="strict", secure=is_https)
    return response


def _problem_with(request: Request, key: str) -> str:
    """Return why the key is refused; empty if it is one of the keys."""
    sessions, client = _sessions(request), _client(request)
    if (wait_s := sessions.wait_s(client)) > 0:
        return f"Too many wrong keys. Wait {wait_s:.0f} s, then try again."
    return "" if sessions.accepts(key, client) else "That is not a key of this console."


@router.post("/logout")
async def log_out(request: Request, session: OfSession, _: OwnForm) -> Response:
    _sessions(request).end(session)
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


# --- the pages ------------------------------------------------------------------------------------


@router.get("/")
async def migration_page(request: Request, session: OfSession) -> Response:
    look = await _look(request)
    parts = _pages(request).parts(look, session.csrf)
    return _own_page(request, session, "migration", {"look": look, "parts": parts})


@router.get("/search")
async def search_page(request: Request, session: OfSession, q: str = "") -> Response:
    operator = _operator(request)
    query, comparison, problem = q.strip()[:MAX_QUERY_CHARS], None, None
    if query:
        try:
            comparison = await operator.read(lambda store: compare(store, operator.task, query))
        except VecferryError as exc:
            problem = Outcome.of("search", exc)
    look = await _look(request)
    values = {"look": look, "query": query, "comparison": comparison, "problem": problem, "max_chars": MAX_QUERY_CHARS}
    return _own_page(request, session, "search", values)


@router.post("/do/{verb}")
async def do(request: Request, session: OfSession, verb: str, form: OwnForm) -> Response:
    """Run the verb, and leave its outcome for the page to which it leads."""
    if verb not in ACTIONS:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such verb.")
    operator = _operator(request)
    message = _unconfirmed(request, form) if ACTIONS[verb].is_guarded else ""
    notice = Outcome(verb, message, failed=True) if message else await act(verb, operator, form)
    await operator.look(anew=True)
    session.notice = notice
    at = f"#{place_of(verb)}" if notice is not None and notice.failed else ""
    return RedirectResponse(f"/{at}", HTTPStatus.SEE_OTHER)


def _unconfirmed(request: Request, form: dict[str, str]) -> str:
    """Return what is missing from the confirmation of a switch."""
    target = _operator(request).task.store.target
    if form.get("name", "").strip() != target:
        return f"Nothing was switched: the name that you typed is not {target}."
    problem = _problem_with(request, form.get("key", ""))
    return f"Nothing was switched. {problem}" if problem else ""


async def _look(request: Request) -> Look:
    operator = _operator(request)
    snapshot = await operator.look()
    if snapshot.is_unplanned:
        operator.plan()
        snapshot = await operator.look()
    names = operator.task.options.old_name, operator.task.options.new_name
    return look_at(snapshot, operator.task.config, is_stopping=operator.is_stopping, names=names)


@router.get("/static/{name}")
async def static_file(name: str) -> Response:
    if name not in STATIC:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no file {quote(name)}.")
    return Response(static(name), media_type=STATIC[name])


# --- what has changed -----------------------------------------------------------------------------


@router.get("/events")
async def events(request: Request) -> Response:
    """Stream server-sent events. `parts`: those that have changed, HTML by name. `over`: the session is over."""
    token = request.cookies.get(COOKIE, "")
    return StreamingResponse(_events(request, token), media_type=EVENT_STREAM)


async def _events(request: Request, token: str) -> AsyncIterator[str]:
    before: dict[str, str] = {}
    silent_s = 0.0
    yield "retry: 2000\n\n"
    while not request.app.state.is_ending and not await request.is_disconnected():
        session = _sessions(request).find(token, active=False)
        if session is None:
            yield "event: over\ndata: {}\n\n"
            return
        parts = _pages(request).parts(await _look(request), session.csrf)
        changed = {name: html for name, html in parts.items() if before.get(name) != html}
        before, silent_s = parts, 0.0 if changed else silent_s + LIVE_S
        if changed:
            yield f"event: parts\ndata: {json.dumps(changed)}\n\n"
        elif silent_s >= HEARTBEAT_S:
            silent_s = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(LIVE_S)
