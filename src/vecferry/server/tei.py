"""The interface of text-embeddings-inference's clients (version 1.9): /embed and what is beside it."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, ValidationError

from vecferry import __version__
from vecferry.embeddings import DENSE, Embeddings, Float32, Outputs
from vecferry.errors import BadRequest, RequestTooLarge
from vecferry.server.answers import JSON, Style, binary, error_of, in_pieces, json, sparse_rows, wanted_form
from vecferry.server.metrics import CONTENT_TYPE
from vecferry.server.openapi_schema import TEI_ERRORS, binary_forms
from vecferry.server.requests import (
    ONE_ERROR,
    Body,
    Input,
    NamedModel,
    ServiceHere,
    SeveralTokenIds,
    Strings,
    TokenIds,
    embed,
    in_tokeniser,
    model_named,
    require_dimension,
    role_of,
    texts_of,
)
from vecferry.server.service import TOKENISERS

router = APIRouter(tags=["text-embeddings-inference"], responses=TEI_ERRORS)


class TeiParameters(Body):
    """TEI's parameters of a request. truncate: by default texts are cut, as with TEI's `--auto-truncate`."""

    truncate: StrictBool | None = Field(None, description="false: refuse texts that are too long.")
    truncation_direction: Literal["left", "right", "Left", "Right"] = Field("right", description="left is refused.")
    prompt_name: str | None = Field(None, description="query or passage.")


class TeiRequest(TeiParameters):
    inputs: Input
    model: str | None = Field(None, description="Ours, where several models are served; by default the first.")


class EmbedRequest(TeiRequest):
    normalize: StrictBool = Field(True, description="false: as the model gives them, which may be unit length too.")
    dimensions: StrictInt | None = Field(None, description="Refused unless it is the model's.")


class SimilarityInputs(Body):
    source_sentence: StrictStr
    sentences: Strings


class SimilarityRequest(Body):
    inputs: SimilarityInputs
    parameters: TeiParameters | None = None
    model: str | None = None


class TokenizeRequest(Body):
    inputs: StrictStr | Strings
    add_special_tokens: StrictBool = True
    prompt_name: str | None = None
    model: str | None = None


class DecodeRequest(Body):
    ids: TokenIds | SeveralTokenIds
    skip_special_tokens: StrictBool = True
    model: str | None = None


class VertexRequest(Body):
    instances: Annotated[list[EmbedRequest], Field(min_length=1), ONE_ERROR]


class SparseValue(BaseModel):
    index: int
    value: float


class SimpleToken(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@router.post("/embed", response_class=Response, responses=binary_forms(list[list[float]]))
async def embed_dense(request: Request, body: EmbedRequest) -> Response:
    """Return dense vectors."""
    form = wanted_form(request)
    embeddings, headers = await _dense(request, body)
    return json(await in_pieces(embeddings.dense), headers) if form == JSON else binary(embeddings, form, headers)


async def _dense(request: Request, body: EmbedRequest) -> tuple[Embeddings, dict[str, str]]:
    named = await model_named(request, body.model, role_of(body.prompt_name))
    require_dimension(named.served, body.dimensions)
    embeddings, headers = await _embedded(request, named, body.inputs, body)
    if body.normalize and not named.served.encoder.space.normalize:
        embeddings = replace(embeddings, dense_or_none=_unit(embeddings.dense))
    return embeddings, headers


def _unit(vectors: Float32) -> Float32:
    """Return the vectors at unit length; none is zero."""
    unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@router.post("/embed_sparse", response_model=list[list[SparseValue]])
async def embed_sparse(request: Request, body: TeiRequest) -> Response:
    """Return lexical weights: per text the largest weight of each token id."""
    named = await model_named(request, body.model, role_of(body.prompt_name))
    embeddings, headers = await _embedded(request, named, body.inputs, body, Outputs.SPARSE)
    return json(sparse_rows(embeddings), headers)


@router.post("/embed_all", response_model=list[list[list[float]]])
async def embed_all(request: Request, body: TeiRequest) -> Response:
    """Return ColBERT vectors: one for each token but the first."""
    named = await model_named(request, body.model, role_of(body.prompt_name))
    embeddings, headers = await _embedded(request, named, body.inputs, body, Outputs.COLBERT)
    return json(await in_pieces(embeddings.colbert[row] for row in range(len(embeddings))), headers)


@router.post("/vertex", response_model=dict[Literal["predictions"], list[list[list[float]]]])
async def embed_for_vertex(request: Request, body: VertexRequest) -> Response:
    """Return dense vectors in the form of Google's Vertex AI, of requests to /embed with the same parameters."""
    first, *others = (instance.model_copy(update={"inputs": []}) for instance in body.instances)
    if any(other != first for other in others):
        raise BadRequest("instances", "the same parameters were expected for all of them")
    rows = [texts_of(instance.inputs) for instance in body.instances]
    whole = first.model_copy(update={"inputs": [text for texts in rows for text in texts]})
    embeddings, headers = await _dense(request, whole)
    ends = list(accumulate(map(len, rows), initial=0))
    predictions = [embeddings.dense[start:stop] for start, stop in pairwise(ends)]
    return json({"predictions": await in_pieces(predictions)}, headers)


@router.post("/similarity", response_model=list[float])
async def similarity(request: Request, body: SimilarityRequest) -> Response:
    """Return cosines of the first sentence with the others."""
    named = await model_named(request, body.model)
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    if not body.inputs.sentences:
        raise BadRequest("inputs.sentences", "at least one sentence was expected")
    embeddings, headers = await _embedded(request, named, texts, body.parameters or TeiParameters())
    vectors = _unit(embeddings.dense) if not named.served.encoder.space.normalize else embeddings.dense
    return json(vectors[1:] @ vectors[0], headers)


@router.post("/", response_class=Response, include_in_schema=False)
async def by_body(request: Request, body: dict[str, Any]) -> Response:
    """Answer clients that know only the server's address, as Hugging Face's with either task."""
    try:
        if isinstance(body.get("inputs"), dict):
            return await similarity(request, SimilarityRequest.model_validate(body))
        return await embed_dense(request, EmbedRequest.model_validate(body))
    except ValidationError as exc:
        raise RequestValidationError(exc.errors()) from exc


async def _embedded(
    request: Request, named: NamedModel, inputs: Input, parameters: TeiParameters, outputs: Outputs = DENSE
) -> tuple[Embeddings, dict[str, str]]:
    if parameters.truncation_direction.lower() == "left":
        raise BadRequest("truncation_direction", "texts are cut at their end only")
    role, truncate = role_of(parameters.prompt_name), parameters.truncate is not False
    answer = await embed(request, named.served, inputs, outputs=outputs, role=role, truncate=truncate)
    return answer.embeddings, named.headers(answer)


# --- tokens ---------------------------------------------------------------------------------------


@router.post("/tokenize", response_model=list[list[SimpleToken]])
async def tokenize(request: Request, service: ServiceHere, body: TokenizeRequest) -> Response:
    """Return ids and places of a text's tokens."""
    model = (await model_named(request, body.model)).served
    tokenizer, role = model.tokenizer, role_of(body.prompt_name)
    prefix = model.encoder.space.prefix(role) if body.prompt_name else ""
    texts: Any = texts_of(body.inputs)
    service.check_texts(texts)
    if (chars := sum(map(len, texts))) > (allowed := service.limits.max_tokenize_chars):
        raise RequestTooLarge("characters of a request to /tokenize", chars, allowed, "--max-tokenize-chars")

    def answer() -> Response:
        rows: list[list[dict[str, Any]]] = []
        num_tokens = 0
        for text in texts:
            row: list[dict[str, Any]] = []
            for piece in tokenizer.pieces(prefix + text, with_ends=body.add_special_tokens):
                service.check_num_tokens(num_tokens := num_tokens + 1)
                row.append(_simple_token(piece))
            rows.append(row)
        return json(rows)

    return await in_tokeniser(request, answer, chars)


def _simple_token(piece: Any) -> dict[str, Any]:
    start, stop = piece.place or (None, None)
    return {"id": piece.id, "text": piece.text, "special": piece.place is None, "start": start, "stop": stop}


@router.post("/decode", response_model=list[str])
async def decode(request: Request, service: ServiceHere, body: DecodeRequest) -> Response:
    """Return texts of token ids."""
    tokenizer = (await model_named(request, body.model)).served.tokenizer
    rows: Any = texts_of(body.ids)
    service.check_texts(rows)
    service.check_num_tokens(num_ids := sum(map(len, rows)))

    def answer() -> Response:
        vocabulary = tokenizer.vocabulary
        for row, ids in enumerate(rows):
            if any(i >= vocabulary for i in ids):
                raise BadRequest(f"ids[{row}]", f"token ids of this model are from 0 to {vocabulary - 1}")
        return json([tokenizer.decode(ids, without_special=body.skip_special_tokens) for ids in rows])

    return await in_tokeniser(request, answer, num_ids)


# --- about the server -----------------------------------------------------------------------------


@router.get("/info")
async def info(service: ServiceHere) -> Response:
    """Return the first model, in TEI's fields; ours beside them."""
    model, limits = service.models.default, service.limits
    space = model.encoder.space
    return json(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_dtype": {"fp32": "float32", "fp16": "float16", "int8": "int8"}[space.precision],
            "model_type": {"embedding": {"pooling": space.pooling}},
            "served_model_name": model.name,
            "max_concurrent_requests": limits.max_connections,
            "max_input_length": space.max_tokens,
            "max_batch_tokens": model.encoder.limits.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": True,
            "tokenization_workers": TOKENISERS,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "fingerprint": space.fingerprint,
            "runtime": model.encoder.runtime.name,
            "reason": model.reason,
            "outputs": space.heads,
            "models": [model.name for model in service.models.all],
        }
    )


@router.get("/", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
@router.get("/health")
async def health(service: ServiceHere) -> Response:
    """Answer 200 if every model's last run succeeded. Needs no key."""
    problems = {model.name: model.problem for model in service.models.all if model.problem is not None}
    if problems:
        return error_of(503, "; ".join(f"{name}: {problem}" for name, problem in problems.items()), Style.TEI)
    return json({"status": "ok", "models": [model.name for model in service.models.all]})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: ServiceHere) -> Response:
    """Return the metrics for Prometheus."""
    return Response(service.metrics.exposed(), media_type=CONTENT_TYPE)
