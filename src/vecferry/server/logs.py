"""Lines of the log: JSON, or plain text. Set up by the command line, never by the library."""

from __future__ import annotations

import atexit
import logging
import textwrap
from contextlib import suppress
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from vecferry.errors import printable

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered here."""
MAX_WAITING = 10_000
"""Lines."""


def set_up(*, as_json: bool) -> None:
    """Write the log to standard error, from a thread; a line a request comes from `vecferry.server.access`.

    Whoever reads standard error slowly holds up no request: over `MAX_WAITING` lines that wait, further ones are lost.
    """
    handler = logging.StreamHandler()
    fields = {"levelname": "level", "asctime": "time", "name": "logger"}
    formatter = (
        JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s %(request_id)s", rename_fields=fields)
        if as_json
        else PlainFormatter("%(asctime)s %(levelname)s %(name)s %(message)s [%(request_id)s]")
    )
    handler.setFormatter(formatter)
    waiting = WaitingLines()
    waiting.addFilter(_with_request_id)
    writer = QueueListener(waiting.queue, handler)
    writer.start()
    atexit.register(writer.stop)
    logging.basicConfig(level=logging.INFO, handlers=[waiting], force=True)


class WaitingLines(QueueHandler):
    """Keep records, as they are, for the thread that writes them."""

    def __init__(self) -> None:
        super().__init__(Queue(MAX_WAITING))

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(Full):
            self.queue.put_nowait(record)


class PlainFormatter(logging.Formatter):
    """One line for each record, whatever a client put into it; a traceback follows it, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's
        return printable(super().formatMessage(record)).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's
        return textwrap.indent(printable(super().formatException(ei)), "    ", lambda _: True)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
