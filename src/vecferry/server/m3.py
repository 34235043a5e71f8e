"""Ours: all three vectors from one pass, and search that follows a migration's switch."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from vecferry.embeddings import Embeddings, Outputs
from vecferry.encode.batching import MB
from vecferry.encode.encoder import Role
from vecferry.errors import MAX_PLACE, BadRequest, RequestTooLarge
from vecferry.precisions import Mark
from vecferry.server.answers import JSON, as_base64, binary, in_pieces, json, readable, wanted_form
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
from vecferry.stores.filters import comparisons_of, parse_filter
from vecferry.stores.text_source import TextSource, value_at
from vecferry.stores.values import Hit

router = APIRouter(tags=["vecferry"])
OPERATOR = "the server's operator names those: vecferry serve --search-field NAME"
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
    where: dict[str, Any] | None = Field(
        None, description='Rows to search among: {"lang": "en", "year": {"$gte": 2020}}; by fields of --search-field.'
    )
    with_text: StrictBool = Field(False, description="Whether hits carry their text, of fields of --search-field.")
    with_payload: StrictBool = Field(False, description="Whether hits carry the fields of --search-field.")


class SearchHit(BaseModel):
    """A row that was found; score is the cosine. text, payload: only where they were asked for."""

    key: list[str]
    score: float
    text: str | None = None
    payload: dict[str, Any] | None = None


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
    named, form = await model_named(request, body.model, body.role), wanted_form(request)
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
    """Return the rows nearest to a query, of all or some, from the index that serves, by the model that made it."""
    follower = router_of(request)
    if follower is None:
        raise BadRequest("/search", "this server follows no migration: vecferry serve --config migration.toml")
    service.check_texts([body.query])
    fields: frozenset[str] = request.app.state.search_fields
    check_fields(body, follower.text_source, fields)
    find = partial(
        follower.search,
        body.query,
        body.k,
        where=body.where,
        with_text=body.with_text,
        with_payload=body.with_payload,
    )
    answer = await while_connected(request, anyio.to_thread.run_sync(find))
    model = service.models.of_space(Mark.parse(answer.fingerprint))
    response = json({
        "epoch": answer.epoch,
        "generation": answer.generation,
        "fingerprint": answer.fingerprint,
        "model": model.name if model else None,
        "thresholds": dict(answer.thresholds),
        "hits": await in_pieces(_hit(hit, body, fields) for hit in answer.hits),
    })  # fmt: skip
    if (size := len(response.body)) > (allowed := service.limits.max_answer_mb * MB):
        raise RequestTooLarge("bytes of the answer", size, allowed, "--max-answer-mb")
    return response


def check_fields(body: SearchRequest, source: TextSource, fields: frozenset[str]) -> None:
    """Raise BadRequest for a field that the operator has not named, InvalidFilter for what is no filter."""
    for comparison in comparisons_of(parse_filter(body.where)) if body.where is not None else ():
        parts = comparison.field.split(".")
        if fields.isdisjoint(".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            raise BadRequest("where", f"{comparison.field[:MAX_PLACE]!a} is no field to search by here; {OPERATOR}")
    if body.with_text and source.name not in fields and not fields.issuperset(source.fields):
        raise BadRequest("with_text", f"the text is no field to be read here; {OPERATOR}")
    if body.with_payload and not fields:
        raise BadRequest("with_payload", f"there is no field to be read here; {OPERATOR}")


def _hit(hit: Hit, body: SearchRequest, fields: frozenset[str]) -> dict[str, Any]:
    value: dict[str, Any] = {"key": hit.key, "score": hit.score}
    if body.with_text:
        value["text"] = readable(hit.text)
    if hit.payload is not None:
        found = {name: value_at(hit.payload, name) for name in sorted(fields)}
        value["payload"] = {name: readable(item) for name, item in found.items() if item is not None}
    return value


async def _serving(request: Request) -> dict[str, Any] | None:
    follower = router_of(request)
    if follower is None:
        return None
    serving = await anyio.to_thread.run_sync(follower.serving)
    models = service_of(request).models
    served = models.of_space(Mark.parse(serving.fingerprint)) if serving.fingerprint else None
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
