"""The interface of OpenAI's clients: /v1/embeddings, /v1/models, /v1/models/NAME."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, StrictBool, StrictInt

from vecferry.errors import StoreError
from vecferry.server.answers import JSON, as_base64, binary, in_pieces, json, wanted_form
from vecferry.server.models import Served
from vecferry.server.openapi_schema import OPENAI_ERRORS, binary_forms
from vecferry.server.requests import (
    Body,
    Input,
    ServiceHere,
    embed,
    model_named,
    require_dimension,
    role_of,
    router_of,
    serving_model,
)

router = APIRouter(tags=["OpenAI"], responses=OPENAI_ERRORS)


class EmbeddingsRequest(Body):
    """OpenAI's request; `truncate` and `prompt_name` are ours."""

    input: Input = Field(description="Texts; with --token-ids also ids of POST /tokenize.")
    model: str = Field(description="A name from GET /v1/models.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: StrictInt | None = Field(None, description="The model's own number; any other is refused.")
    truncate: StrictBool = Field(False, description="Cut texts that are too long, instead of refusing them.")
    prompt_name: str | None = Field(None, description="query or passage.")


class EmbeddingObject(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: Usage


class ModelObject(BaseModel):
    """OpenAI's model. `vecferry`: the vector space and its fingerprint, what runs it, other names."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    vecferry: dict[str, Any]


class ModelsAnswer(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


@router.post("/embeddings", response_class=Response, include_in_schema=False)  # as TEI has it, without /v1
@router.post("/v1/embeddings", response_class=Response, responses=binary_forms(EmbeddingsAnswer))
async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    """Return dense vectors of texts."""
    role = role_of(body.prompt_name)
    named = await model_named(request, body.model, role)
    model = named.served
    require_dimension(model, body.dimensions)
    form = wanted_form(request)
    answer = await embed(request, model, body.input, role=role, truncate=body.truncate)
    result, headers = answer.embeddings, named.headers(answer)
    if form != JSON:
        return binary(result, form, headers)
    vectors = map(as_base64, result.dense) if body.encoding_format == "base64" else result.dense
    tokens = int(result.num_tokens.sum())
    value = {
        "object": "list",
        "data": await in_pieces(
            {"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)
        ),
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json(value, headers)


@router.get("/v1/models", response_model=ModelsAnswer)
async def models(request: Request, service: ServiceHere) -> Response:
    """Return the served models and their vector spaces; of a migration that is followed, also the one that serves.

    While its store is away, what serves is not known; the models are there all the same.
    """
    objects = [_model_object(model) for model in service.models.all]
    if (router := router_of(request)) is not None:
        with suppress(StoreError):
            serving = await serving_model(service.models, router)
            objects.append(_model_object(serving.served) | {"id": request.app.state.serving_name})
    return json({"object": "list", "data": objects})


@router.get("/v1/models/{name:path}", response_model=ModelObject)
async def model(request: Request, name: str) -> Response:
    """Return one served model."""
    return json(_model_object((await model_named(request, name)).served) | {"id": name})


def _model_object(model: Served) -> dict[str, Any]:
    space = model.encoder.space
    ours = {
        "fingerprint": space.fingerprint,
        "space": space.model_dump(mode="json"),
        "runtime": model.encoder.runtime.name,
        "reason": model.reason,
        "aliases": model.aliases,
    }
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "vecferry", "vecferry": ours}
