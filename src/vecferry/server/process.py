"""The process: listens, answers, and on SIGTERM, SIGINT or SIGHUP ends once what was accepted is answered."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from vecferry.errors import AddressUnavailable, reason_of
from vecferry.server.connection import Places, TimeoutHttpProtocol
from vecferry.server.options import ServerOptions

KEEP_ALIVE_S = 30
OWN_FILES = 128
"""Descriptors for all else: models, libraries, and connections that are refused."""
SWITCH_S = 0.0005
"""For which a thread keeps the interpreter while another waits for it: the loop waits each time that it looks around.
With Python's own 5 ms, /health took 135 ms where two threads made answers of /tokenize, and so 24."""


def serve(app: FastAPI, options: ServerOptions, listening: socket.socket) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; what was accepted by then is answered, for up to `drain_s`.

    Where SIGHUP is ignored, as under nohup, it stays so.
    """
    limits = options.limits
    config = uvicorn.Config(
        app,
        http=type(
            "Served", (TimeoutHttpProtocol,), {"limits": limits, "places": Places(num_places(limits.max_connections))}
        ),
        ws="none",
        log_config=None,
        proxy_headers=False,  # whoever connects is the client
        access_log=False,  # the guard writes one line a request
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(limits.drain_s),
        lifespan="on",
    )
    server = _Server(config)
    sys.setswitchinterval(SWITCH_S)
    signal.signal(signal.SIGTERM, _end)  # to which uvicorn gives it back, when it has done
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, server.handle_exit)  # of which uvicorn knows nothing
    server.run(sockets=[listening])


def num_places(wanted: int) -> int:
    """Return how many connections there may be: those that are wanted, or that the system has descriptors for.

    The process's own limit is raised for them as far as the system lets it.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    needed = wanted + OWN_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < needed:
        limit = needed if most == resource.RLIM_INFINITY else min(needed, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    return max(1, min(wanted, limit - OWN_FILES))


class _Server(uvicorn.Server):
    """A server that tells the application at once to end, so that answers without an end get one."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.is_ending = True  # type: ignore[union-attr]  # FastAPI's
        super().handle_exit(sig, frame)


def _end(*_: object) -> NoReturn:
    """Exit as other programs do, so that what is left to do is done: the last spans are sent."""
    raise SystemExit(0)


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. Raises AddressUnavailable."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as exc:
        raise AddressUnavailable("--host, --port", f"{host}:{port}", reason_of(exc)) from exc
