"""Ours: all three vectors from one pass, and search that follows a migration's switch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from vecferry.embeddings import Embeddings, Outputs
from vecferry.encode.encoder import Role
from vecferry.errors import BadRequest
from vecferry.server.answers import JSON, as_base64, binary, in_pieces, json, wanted_form
from vecferry.server.openapi_schema import OPENAI_ERRORS, TEI_ERRORS, binary_forms
from vecferry.server.requests import (
    Input,
    NullsAreDefaults,
    ServiceHere,
    embed,
    model_named,
    router_of,
    service_of,
    while_connected,
)

router = APIRouter(tags=["vecferry"])
Head = Literal["dense", "sparse", "colbert"]


class _Strict(NullsAreDefaults):
    model_config = ConfigDict(extra="forbid")


class M3Request(_Strict):
    inputs: Input = Field(description="Texts; with --token-ids also ids of POST /tokenize.")
    outputs: list[Head] = Field(["dense"], min_length=1, max_length=len(Outputs.ALL.names))
    role: Role = "passage"
    truncate: StrictBool = Field(True, description="false: refuse texts that are too long.")
    encoding_format: Literal["float", "base64"] = Field("float", description="The form of dense and ColBERT vectors.")
    model: StrictStr | None = Field(None, description="A served model; the first one by default.")


class M3Embedding(BaseModel):
    """The requested vectors of a text. sparse: token id to weight. colbert: of each token but the first."""

    dense: list[float] | str | None = None
    sparse: dict[str, float] | None = None
    colbert: list[list[float]] | list[str] | None = None


class ServingEpoch(BaseModel):
    """The side that answers /search; the epoch counts the switches of the migration."""

    epoch: int
    generation: int
    fingerprint: str | None
    model: str | None


class M3Answer(BaseModel):
    model: str
    fingerprint: str
    runtime: str
    num_tokens: list[int]
    truncated: list[bool]
    num_truncated: int
    serving: ServingEpoch | None = Field(description="null where the server follows no migration.")
    embeddings: list[M3Embedding]


class SearchRequest(_Strict):
    query: StrictStr
    k: Annotated[StrictInt, Field(ge=1, le=1000)] = 10


class SearchHit(BaseModel):
    """A row that was found; score is the cosine."""

    key: list[str]
    score: float


class SearchAnswer(BaseModel):
    """The rows nearest to a query. thresholds: the application's cut-offs for these scores, by its names."""

    epoch: int
    generation: int
    fingerprint: str
    model: str | None
    thresholds: dict[str, float]
    hits: list[SearchHit]


@router.post("/v1/m3", response_class=Response, responses=OPENAI_ERRORS | binary_forms(M3Answer))
async def m3(request: Request, body: M3Request) -> Response:
    """Return any of the three vectors, from one pass."""
    named, form = await model_named(request, body.model), wanted_form(request)
    model = named.served
    outputs = Outputs.of(body.outputs)
    answer = await embed(request, model, body.inputs, outputs=outputs, role=body.role, truncate=body.truncate)
    embeddings, headers = answer.embeddings, named.headers(answer)
    if form != JSON:
        return binary(embeddings, form, headers)
    value = {
        "model": model.name,
        "fingerprint": embeddings.fingerprint,
        "runtime": model.encoder.runtime.name,
        "num_tokens": embeddings.num_tokens,
        "truncated": embeddings.truncated,
        "num_truncated": embeddings.num_truncated,
        "serving": await _serving(request),
        "embeddings": await in_pieces(
            _embedding(embeddings, row, body.encoding_format) for row in range(len(embeddings))
        ),
    }
    return json(value, headers)


@router.post("/search", response_model=SearchAnswer, responses=TEI_ERRORS)
async def search(request: Request, body: SearchRequest, service: ServiceHere) -> Response:
    """Return the rows nearest to a query, from the index that serves, by the model that made it."""
    follower = router_of(request)
    if follower is None:
        raise BadRequest("/search", "this server follows no migration: vecferry serve --config migration.toml")
    service.check_texts([body.query])
    answer = await while_connected(request, anyio.to_thread.run_sync(follower.search, body.query, body.k))
    model = service.models.of_space(answer.fingerprint)
    return json({
        "epoch": answer.epoch,
        "generation": answer.generation,
        "fingerprint": answer.fingerprint,
        "model": model.name if model else None,
        "thresholds": dict(answer.thresholds),
        "hits": [{"key": hit.key, "score": hit.score} for hit in answer.hits],
    })  # fmt: skip


async def _serving(request: Request) -> dict[str, Any] | None:
    follower = router_of(request)
    if follower is None:
        return None
    serving = await anyio.to_thread.run_sync(follower.serving)
    served = service_of(request).models.of_space(serving.fingerprint) if serving.fingerprint else None
    return {
        "epoch": serving.epoch,
        "generation": serving.generation,
        "fingerprint": serving.fingerprint,
        "model": served.name if served else None,
    }


def _embedding(embeddings: Embeddings, row: int, encoding_format: str) -> dict[str, Any]:
    encoded = as_base64 if encoding_format == "base64" else lambda vector: vector
    value: dict[str, Any] = {}
    if embeddings.dense_or_none is not None:
        value["dense"] = encoded(embeddings.dense[row])
    if embeddings.sparse_or_none is not None:
        value["sparse"] = {str(token): weight for token, weight in embeddings.sparse.row(row).items()}
    if embeddings.colbert_or_none is not None:
        value["colbert"] = [encoded(vector) for vector in embeddings.colbert[row]]
    return value
