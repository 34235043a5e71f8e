"""What the handlers have in common: the service, the model, the texts, the time there is, the headers of an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import anyio.to_thread
from fastapi import Depends, Request
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from vecferry.embeddings import DENSE, Outputs
from vecferry.errors import BadRequest, DeadlineExceeded, TokenIdsRefused
from vecferry.migrate.router import Router
from vecferry.model.prompts import PROMPT_ROLES, Role
from vecferry.server.lanes import LaneName
from vecferry.server.models import Served, ServedModels
from vecferry.server.service import EncodeRequest, EncodeResult, Service, Texts

T = TypeVar("T")

ONE_ERROR = Field(fail_fast=True)
"""Of a list: an error for each of its millions of items would be a thousand times as large as they are."""
Strings = Annotated[list[StrictStr], ONE_ERROR]
TokenIds = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], ONE_ERROR]
SeveralTokenIds = Annotated[list[TokenIds], ONE_ERROR]


def _known_form(value: Any, checked: ValidatorFunctionWrapHandler) -> Any:
    """Report one error, of the field, instead of one for each form that it could have had."""
    try:
        return checked(value)
    except ValidationError as exc:
        expected = "a text, several texts, or the token ids of one or several (whole numbers from 0) were expected"
        raise PydanticCustomError("input", "{message}", {"message": expected + _odd_item(value)}) from exc


def _odd_item(value: Any) -> str:
    """Name the first item of a list that is none of texts, or not like the first one."""
    if not isinstance(value, list) or not value:
        return ""
    kind = type(value[0]) if isinstance(value[0], str | int | list) else str
    for at, item in enumerate(value):
        if type(item) is not kind:
            return f"; item {at} is {'null' if item is None else type(item).__name__}, not {kind.__name__}"
    return ""


Input = Annotated[StrictStr | Strings | TokenIds | SeveralTokenIds, WrapValidator(_known_form)]
"""One text or several; with `ServerOptions.token_ids` a text may be the ids of this model's tokenizer."""

ARRIVED_AT = "vecferry.arrived_at"
"""In a request's scope, where the guard says so: on `time.monotonic`."""
TIMEOUT_HEADER, LANE_HEADER, EPOCH_HEADER = "x-request-timeout", "x-vecferry-lane", "x-vecferry-epoch"


class ClientGone(Exception):
    """The client of a request that went away."""


class NullsAreDefaults(BaseModel):
    """A request in which null is a field's default, as clients mean it that send every field that they have."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: item for name, item in value.items() if item is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        whole, null = handler.resolve_ref_schema(described), {"type": "null"}
        for name, field in whole["properties"].items():
            if name not in whole.get("required", ()) and null not in field.get("anyOf", ()):
                whole["properties"][name] = {"anyOf": [field, null]}
        return described


class Body(NullsAreDefaults):
    """A request in another server's form: fields that mean nothing here are ignored."""

    model_config = ConfigDict(extra="ignore")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def router_of(request: Request) -> Router | None:
    """Return the router of the migration that the server follows, if it follows one."""
    router: Router | None = request.app.state.router
    return router


ServiceHere = Annotated[Service, Depends(service_of)]


def texts_of(value: Input) -> Texts:
    """Return a list of texts, each a string or its token ids."""
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        return [value]  # type: ignore[return-value]
    return value  # type: ignore[return-value]


def require_dimension(model: Served, dimensions: int | None) -> None:
    """Raise BadRequest for another number of dimensions than the model's."""
    if dimensions not in (None, model.encoder.dimension):
        raise BadRequest("dimensions", f"{model.name} has {model.encoder.dimension} dimensions, and no other number")


def role_of(prompt_name: str | None) -> Role:
    """Return the role that a prompt's name stands for. Raises BadRequest."""
    if prompt_name is None:
        return "passage"
    if prompt_name not in PROMPT_ROLES:
        names = ", ".join(PROMPT_ROLES)
        raise BadRequest("prompt_name", f"this model has no prompt of that name; there are {names}")
    return PROMPT_ROLES[prompt_name]


async def embed(
    request: Request,
    model: Served,
    inputs: Input,
    *,
    outputs: Outputs = DENSE,
    role: Role = "passage",
    truncate: bool = True,
) -> EncodeResult:
    """Call `Service.embed`, for as long as the client waits. Raises what that raises, TokenIdsRefused, ClientGone."""
    service = service_of(request)
    texts = texts_of(inputs)
    if texts and not isinstance(texts[0], str) and not request.app.state.takes_token_ids:
        raise TokenIdsRefused
    encode_request = EncodeRequest(
        model,
        texts,
        outputs,
        role,
        truncate,
        lane=_lane_of(request),
        seconds=_seconds_of(request, service.limits.deadline_s),
        since=request.scope.get(ARRIVED_AT, time.monotonic()),
    )
    answer = await while_connected(request, service.embed(encode_request))
    request.state.lane = answer.lane
    return answer


async def in_tokeniser(request: Request, make: Callable[[], T], chars: int) -> T:
    """Call `Service.in_tokeniser`, for as long as the client waits.

    Raises what `make` raises, DeadlineExceeded and ClientGone.
    """
    service = service_of(request)
    seconds = _seconds_of(request, service.limits.deadline_s)
    try:
        async with asyncio.timeout(seconds):
            return await while_connected(request, service.in_tokeniser(make, chars))
    except TimeoutError as exc:
        raise DeadlineExceeded(seconds) from exc


@dataclass(frozen=True)
class NamedModel:
    """The model that a request names. epoch: of the migration, if it was named by what serves there."""

    served: Served
    epoch: int | None = None

    def headers(self, answer: EncodeResult) -> dict[str, str]:
        """Return headers that say what runs, in which vector space and epoch, and whether it read everything."""
        epoch = {} if self.epoch is None else {EPOCH_HEADER: str(self.epoch)}
        return epoch | {
            "x-vecferry-fingerprint": self.served.mark.fingerprint,
            "x-vecferry-precision": self.served.encoder.space.precision,
            "x-vecferry-runtime": self.served.encoder.runtime.name,
            "x-vecferry-num-truncated": str(answer.embeddings.num_truncated),
        }


async def model_named(request: Request, name: str | None, role: Role = "query") -> NamedModel:
    """Return the model of that name or alias; of `ServerOptions.serving_name`, the one that serves in the migration.

    role: of the texts. Raises ModelNotServed, PrecisionMismatch, and what the migration's store raises.
    """
    models, router = service_of(request).models, router_of(request)
    if router is None or name != request.app.state.serving_name:
        return NamedModel(models.get(name))
    return await serving_model(models, router, role)


async def serving_model(models: ServedModels, router: Router, role: Role = "query") -> NamedModel:
    """Return the model of the epoch that serves, for texts in that role.

    Raises SpaceMismatch if that is neither, PrecisionMismatch if it may not be used for them, and as the store does.
    """
    serving, encoder = await anyio.to_thread.run_sync(router.serving_encoder, role)
    served = models.of_space(encoder.space.mark())
    assert served is not None, "the router's models are served"
    return NamedModel(served, serving.epoch)


def _seconds_of(request: Request, allowed: float) -> float:
    """Return for how long the request may take. Raises BadRequest."""
    value = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = allowed if value is None else float(value)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:  # NaN too
        raise BadRequest(TIMEOUT_HEADER, "a number of seconds above 0 was expected")
    return min(seconds, allowed)


def _lane_of(request: Request) -> LaneName | None:
    """Return the lane that a client chose by saying that nobody waits. Raises BadRequest."""
    value = request.headers.get(LANE_HEADER)
    if value not in (None, "bulk"):
        raise BadRequest(LANE_HEADER, 'the only value is "bulk"; short requests take the other lane by themselves')
    return LaneName.BULK if value else None


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it if the client goes away before. Raises ClientGone."""
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
