"""Lines of the log: JSON, or plain text. Set up by the command line, never by the library."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

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
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s [%(request_id)s]")
    )
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
