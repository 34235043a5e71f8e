"""Lines of the log: JSON, or plain text. Set up by the command line, never by the library."""

from __future__ import annotations

import logging
import textwrap
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from vecferry.errors import printable

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered here."""


def set_up(*, as_json: bool) -> None:
    """Write the log to standard error; a line a request comes from `vecferry.server.access`."""
    handler = logging.StreamHandler()
    handler.addFilter(_with_request_id)
    fields = {"levelname": "level", "asctime": "time", "name": "logger"}
    formatter = (
        JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s %(request_id)s", rename_fields=fields)
        if as_json
        else PlainFormatter("%(asctime)s %(levelname)s %(name)s %(message)s [%(request_id)s]")
    )
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class PlainFormatter(logging.Formatter):
    """One line for each record, whatever a client put into it; a traceback follows it, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's
        return printable(super().formatMessage(record)).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's
        return textwrap.indent(printable(super().formatException(ei)), "    ", lambda _: True)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
