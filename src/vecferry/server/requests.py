"""What the handlers have in common: the service, the model, the texts, the time there is, the headers of an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from vecferry.embeddings import DENSE, Outputs
from vecferry.encode.encoder import Role
from vecferry.errors import BadRequest
from vecferry.server.lanes import LaneName
from vecferry.server.models import Served
from vecferry.server.service import EncodeRequest, EncodeResult, Service, Texts

T = TypeVar("T")

ONE_ERROR = Field(fail_fast=True)
"""Of a list: an error for each of its millions of items would be a thousand times as large as they are."""
Strings = Annotated[list[StrictStr], ONE_ERROR]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], ONE_ERROR]
SeveralTokenIds = Annotated[list[TokenIds], ONE_ERROR]


def _known_form(given: Any, checked: ValidatorFunctionWrapHandler) -> Any:
    """One error, of the field, instead of one for each form that it could have had."""
    try:
        return checked(given)
    except ValidationError as exc:
        expected = "a text, several texts, or the token ids of one or several (whole numbers from 0) were expected"
        raise PydanticCustomError("input", expected) from exc


Input = Annotated[StrictStr | Strings | TokenIds | SeveralTokenIds, WrapValidator(_known_form)]
"""One text or several; a text may be the ids of this model's tokenizer."""

ARRIVED_AT = "vecferry.arrived_at"
"""In a request's scope, where the guard says so: on `time.monotonic`."""
TIMEOUT_HEADER, LANE_HEADER = "x-request-timeout", "x-vecferry-lane"
ROLES: dict[str | None, Role] = {None: "passage", "passage": "passage", "document": "passage", "query": "query"}


class ClientGone(Exception):
    """The client went away."""


class Body(BaseModel):
    """Of requests in others' forms: fields that mean nothing here are left out of account."""

    model_config = ConfigDict(extra="ignore")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceHere = Annotated[Service, Depends(service_of)]


def texts_of(given: Input) -> Texts:
    """A list of texts, each a string or its token ids."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]  # type: ignore[return-value]
    return given  # type: ignore[return-value]


def require_dimension(model: Served, asked: int | None) -> None:
    """Raises BadRequest for another number of dimensions than the model's."""
    if asked not in (None, model.encoder.dimension):
        raise BadRequest("dimensions", f"{model.name} gives {model.encoder.dimension} numbers, and no other count")


def role_of(prompt_name: str | None) -> Role:
    """Raises BadRequest."""
    if prompt_name not in ROLES:
        names = ", ".join(name for name in ROLES if name)
        raise BadRequest("prompt_name", f"this model has no prompt of that name; there are {names}")
    return ROLES[prompt_name]


async def embed(
    request: Request,
    model: Served,
    given: Input,
    *,
    outputs: Outputs = DENSE,
    role: Role = "passage",
    truncate: bool = True,
) -> EncodeResult:
    """`Service.embed`, for as long as the client waits. Raises what that raises, and Abandoned."""
    service = service_of(request)
    texts = texts_of(given)
    asked = EncodeRequest(
        model,
        texts,
        outputs,
        role,
        truncate,
        lane=_lane_of(request),
        seconds=_seconds_of(request, service.limits.deadline_s),
        since=request.scope.get(ARRIVED_AT, time.monotonic()),
    )
    answer = await while_connected(request, service.embed(asked))
    request.state.lane = answer.lane
    return answer


def headers_of(model: Served, answer: EncodeResult) -> dict[str, str]:
    """What runs, in which vector space, and whether it read everything."""
    return {
        "x-vecferry-fingerprint": model.fingerprint,
        "x-vecferry-runtime": model.encoder.runtime.name,
        "x-vecferry-num-truncated": str(answer.embeddings.num_truncated),
    }


def _seconds_of(request: Request, allowed: float) -> float:
    """For how long the request may take. Raises BadRequest."""
    given = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = allowed if given is None else float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:  # NaN too
        raise BadRequest(TIMEOUT_HEADER, "a number of seconds above 0 was expected")
    return min(seconds, allowed)


def _lane_of(request: Request) -> LaneName | None:
    """A client may say that nobody waits for its request. Raises BadRequest."""
    given = request.headers.get(LANE_HEADER)
    if given not in (None, "bulk"):
        raise BadRequest(LANE_HEADER, 'only "bulk" can be asked for; short requests have the other lane by themselves')
    return LaneName.BULK if given else None


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled if the client goes away before. Raises Abandoned."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
