"""An embeddings server that answers at once, and the encoder with which vecferry asks it as VecShift does."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from socket import create_server
from typing import Any

import httpx2
import numpy as np
import orjson
import uvicorn

from tests.migrate.doubles import TruthEncoder, truth
from vecferry.embeddings import Float32

TEXTS_PER_REQUEST, REQUESTS_AT_ONCE = 64, 4
"""VecShift's defaults."""


@contextmanager
def embeddings_server() -> Iterator[str]:
    """Yields the base URL of `POST /embeddings` as OpenAI has it, on a free port of this machine."""
    listening = create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(_answer, lifespan="off", log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="embeddings server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    assert scope["path"] == "/v1/embeddings", scope["path"]
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    request = orjson.loads(body)
    vectors = [truth(request["model"], text, request["dimensions"]) for text in request["input"]]
    tokens = sum(len(text) // 4 for text in request["input"])
    answer = {
        "object": "list",
        "model": request["model"],
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)})


class ServedEncoder(TruthEncoder):
    """The truth embedder of `model`, whose vectors come from the server at `url`: the same requests as VecShift's."""

    def __init__(self, url: str, model: str, dimension: int) -> None:
        super().__init__(model, dimension)
        self._http = httpx2.Client(base_url=url, trust_env=False)
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE)

    def _dense(self, texts: Sequence[str]) -> Float32:
        batches = [texts[at : at + TEXTS_PER_REQUEST] for at in range(0, len(texts), TEXTS_PER_REQUEST)]
        return np.array(list(chain.from_iterable(self._threads.map(self._embed, batches))), np.float32)

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        request = {"model": self.model, "input": list(texts), "dimensions": self.dimension}
        answer = self._http.post("/embeddings", json=request).raise_for_status()
        return [item["embedding"] for item in answer.json()["data"]]
