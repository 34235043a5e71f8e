"""Spans of OpenTelemetry, where its API is installed and a provider is set; else nothing. Needs the `otel` extra."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vecferry.errors import MissingExtra

trace: Any
try:
    from opentelemetry import trace
except ImportError:
    trace = None


def span(name: str, **attributes: object) -> AbstractContextManager[Any]:
    """Open a span within that of the request. attributes: without texts, which may be private."""
    if trace is None or not trace.get_current_span().is_recording():
        return nullcontext()
    named = {f"vecferry.{key}": str(value) for key, value in attributes.items()}
    opened: AbstractContextManager[Any] = trace.get_tracer("vecferry").start_as_current_span(name, attributes=named)
    return opened


def require() -> None:
    """Raise MissingExtra unless spans can be sent."""
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: F401
    except ImportError as exc:
        raise MissingExtra("otel", "opentelemetry-exporter-otlp-proto-http") from exc
