"""What /openapi.json says of answers that handlers write themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from vecferry.server.answers import ARROW, NPZ

Responses = dict[int | str, dict[str, Any]]


class OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIErrorDetail


class TeiError(BaseModel):
    """An error in text-embeddings-inference's form."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Unauthorized"]


STATUSES = {
    400: "The request is not as described.",
    401: "The API key is missing or unknown.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The request is over one of the limits.",
    421: "There is no server under this name.",
    429: "As much waits, or is held, as may; Retry-After says when to come again.",
    500: "The server failed.",
    503: "The model does not work.",
    504: "The request's time is over.",
}


def errors(model: type[BaseModel]) -> Responses:
    return {status: {"model": model, "description": text} for status, text in STATUSES.items()}


OPENAI_ERRORS = errors(OpenAIError)
TEI_ERRORS = errors(TeiError)


def binary_forms(model: Any) -> Responses:
    """Describe an answer in JSON, and in the forms for many vectors, by the request's Accept header."""
    stream = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"model": model, "description": "The vectors.", "content": {NPZ: stream, ARROW: stream}}}
