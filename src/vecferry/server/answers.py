"""Embeddings and errors to bytes.

Numbers in JSON are the shortest that read back as the same float32, so every form of an answer holds the same bits.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import orjson
from fastapi import Request, Response

from vecferry import errors as e
from vecferry.embeddings import Embeddings, Float32
from vecferry.encode.export import as_arrow, as_npz

JSON, NPZ, ARROW = "application/json", "application/x-npz", "application/vnd.apache.arrow.stream"

STATUS: Mapping[type[Exception], int] = {
    e.InvalidInput: 400,
    e.BadRequest: 400,
    e.TextTooLong: 413,
    e.RequestTooLarge: 413,
    e.OverMemoryBudget: 413,
    e.ReceiveTimeout: 408,
    e.NotAuthorized: 401,
    e.UnknownHost: 421,
    e.RouteNotFound: 404,
    e.ModelNotServed: 404,
    e.TokenIdsRefused: 400,
    e.Overloaded: 429,
    e.DeadlineExceeded: 504,
    e.NotReady: 503,
    e.StoreError: 503,
    e.PrecisionMismatch: 409,
    e.VecferryError: 500,
    Exception: 500,
}
"""HTTP's status of an error: that of the nearest class above it."""

OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error",
                413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip
TEI_TYPES = {400: "Validation", 401: "Unauthorized", 404: "Validation", 405: "Validation", 408: "Validation",
             413: "Validation", 421: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}  # fmt: skip
BODY = "the request's body"
"""Where an error is that has no field."""
INT64 = range(-(2**63), 2**63)
FAULT = "the server failed; its log has the reason under this request's id."


class Style(StrEnum):
    """The form of an error: OpenAI's or TEI's."""

    OPENAI = "openai"
    TEI = "tei"


def style_of(path: str) -> Style:
    """Return the form of the interface that has the path, or that its client means, Azure's too."""
    return Style.OPENAI if f"{path}/".startswith(("/v1/", "/openai/", "/embeddings/")) else Style.TEI


def status_of(exc: Exception) -> int:
    return next(STATUS[kind] for kind in type(exc).__mro__ if kind in STATUS)


def error_answer(exc: Exception, style: Style) -> Response:
    """Answer with the error's message and hint; after a fault of ours, without the reason."""
    status = status_of(exc)
    message = str(exc) if isinstance(exc, e.VecferryError) else FAULT
    headers = {"retry-after": str(exc.retry_after_s)} if isinstance(exc, e.Overloaded) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return error_of(status, message, style, headers=headers, code=_code(exc), param=_param(exc))


def unread(exc: e.ServingError, style: Style) -> Response:
    """Answer a request whose body is not read to its end, after which nothing can follow it."""
    response = error_answer(exc, style)
    response.headers["connection"] = "close"
    return response


def error_of(
    status: int,
    message: str,
    style: Style,
    *,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    param: str | None = None,
) -> Response:
    if style is Style.OPENAI:
        kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    else:
        body = {"error": message, "error_type": TEI_TYPES.get(status, "Backend")}
    return Response(orjson.dumps(body), status, dict(headers or {}), JSON)


def _code(exc: Exception) -> str | None:
    codes: Mapping[type[Exception], str] = {
        e.TextTooLong: "context_length_exceeded",
        e.ModelNotServed: "model_not_found",
        e.NotAuthorized: "invalid_api_key",
        e.Overloaded: "rate_limit_exceeded",
    }
    return codes.get(type(exc))


def _param(exc: Exception) -> str | None:
    if isinstance(exc, e.BadRequest):
        return exc.where if exc.where != BODY else None
    if isinstance(exc, e.ModelNotServed):
        return "model"
    return "input" if isinstance(exc, e.InvalidInput | e.TextTooLong | e.TokenIdsRefused) else None


# --- embeddings -----------------------------------------------------------------------------------


def wanted_form(request: Request) -> str:
    """Return the media type of the answer: JSON, or what the Accept header names of the others."""
    accepted = request.headers.get("accept", "")
    return next((form for form in (NPZ, ARROW) if form in accepted), JSON)


def binary(embeddings: Embeddings, form: str, headers: Mapping[str, str]) -> Response:
    """Answer with the embeddings as `vecferry encode` writes them, ids from 0. Raises MissingExtra for Arrow."""
    ids = [str(row) for row in range(len(embeddings))]
    return Response((as_npz if form == NPZ else as_arrow)(ids, embeddings), headers=dict(headers), media_type=form)


def json(value: object, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a value; float32 arrays inside are written as lists."""
    return Response(
        orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), headers=dict(headers or {}), media_type=JSON
    )


async def in_pieces(rows: Iterable[object]) -> list[orjson.Fragment]:
    """Serialise rows for `json` one by one, so that other requests have their turn while a large answer is made."""
    pieces = []
    for row in rows:
        pieces.append(orjson.Fragment(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)))
        await asyncio.sleep(0)
    return pieces


def readable(value: object) -> Any:
    """Return a stored value in a form that every reader of JSON knows: bytes in base64, others as they are written."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {str(readable(str(name))): readable(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [readable(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    is_plain = value is None or isinstance(value, bool | float) or (isinstance(value, int) and value in INT64)
    return value if is_plain else str(value)


def as_base64(vector: Float32) -> str:
    """Return the bytes of float32, little-endian, in base64."""
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()


def sparse_rows(embeddings: Embeddings) -> list[list[dict[str, float]]]:
    """Return the rows as TEI writes them: `{"index": token id, "value": weight}`."""
    return [
        [{"index": index, "value": weight} for index, weight in embeddings.sparse.row(row).items()]
        for row in range(len(embeddings))
    ]
