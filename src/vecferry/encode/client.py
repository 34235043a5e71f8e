"""An encoder that asks a server; for programs that have no room for a model.

`RemoteEncoder` has the methods of `Encoder`, and its answers hold the same bits as the server's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from typing import Any, Self

import httpx2

from vecferry.embeddings import DENSE, Embeddings, Outputs, require_heads
from vecferry.encode.encoder import Role, TextEncoder
from vecferry.encode.export import load_npz
from vecferry.errors import ModelNotServed, ServerFailed, SpaceMismatch, without_secrets
from vecferry.model.artifact import VectorSpace
from vecferry.model.tokens import check_texts

TEXTS_EACH = 256
TRIES = 5
AGAIN = (429, 503)
"""Statuses after which the same request may succeed."""
FIRST_PAUSE_S = 0.5


class RemoteEncoder(TextEncoder):
    """An encoder on a server; thread-safe. Requests raise ServerFailed, with the server's reason."""

    def __init__(
        self, url: str, *, api_key: str | None = None, model: str | None = None, timeout_s: float = 300.0
    ) -> None:
        """Prepare requests; nothing is sent yet. url: the server's, for instance http://127.0.0.1:8080.

        model: by default the first that it serves. timeout_s: for one request, of up to `TEXTS_EACH` texts.
        """
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        url = url.rstrip("/")
        self._shown_url = without_secrets(url)
        self._model = model
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @cached_property
    def space(self) -> VectorSpace:
        """The vector space of the server's model, fetched once. Raises ModelNotServed."""
        answer = self._request("GET", "/v1/models")
        try:
            served = {model["id"]: model["vecferry"] for model in answer.json()["data"]}
        except (ValueError, KeyError, TypeError) as exc:
            raise ServerFailed(self._shown_url, answer.status_code, "its models are not as vecferry's") from exc
        for name, ours in served.items():
            if self._model in (None, name, *ours["aliases"]):
                return VectorSpace.model_validate(ours["space"])
        raise ModelNotServed(str(self._model), list(served))

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode texts as `Encoder.encode` does, in requests of up to `TEXTS_EACH` texts.

        Raises EmptyInput, InvalidText, HeadUnavailable; SpaceMismatch if the server's model has become another since
        the first request.
        """
        require_heads(outputs, self.space.outputs)
        check_texts(texts)
        parts = [self._encoded(texts[at : at + TEXTS_EACH], outputs, role) for at in range(0, len(texts), TEXTS_EACH)]
        return Embeddings.concat(parts)

    def _encoded(self, texts: Sequence[str], outputs: Outputs, role: Role) -> Embeddings:
        """Encode in one request, or in halves where that is too much for one."""
        try:
            return self._encoded_at_once(texts, outputs, role)
        except ServerFailed as exc:
            if exc.status != httpx2.codes.CONTENT_TOO_LARGE or len(texts) == 1:
                raise
        middle = len(texts) // 2
        return Embeddings.concat([self._encoded(part, outputs, role) for part in (texts[:middle], texts[middle:])])

    def _encoded_at_once(self, texts: Sequence[str], outputs: Outputs, role: Role) -> Embeddings:
        body = {"inputs": list(texts), "outputs": outputs.names, "role": role, "model": self._model}
        answer = self._request("POST", "/v1/m3", json=body, headers={"accept": "application/x-npz"})
        _, embeddings = load_npz(BytesIO(answer.content))
        if embeddings.fingerprint != self.fingerprint:
            where = f"the server at {self._shown_url}"
            raise SpaceMismatch(expected=self.fingerprint, found=embeddings.fingerprint, where=where)
        return embeddings

    def _request(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """Send a request; again after a pause while the server is busy, as long as it says."""
        pause_s = FIRST_PAUSE_S
        for tried in range(1, TRIES + 1):
            try:
                answer = self._http.request(method, path, **request)
            except httpx2.HTTPError as exc:
                raise ServerFailed(self._shown_url, 0, str(exc) or type(exc).__name__) from exc
            if answer.status_code not in AGAIN or tried == TRIES:
                break
            retry_after = answer.headers.get("retry-after", "")  # of others' servers it may be a date
            time.sleep(float(retry_after) if retry_after.isdigit() else pause_s)
            pause_s *= 2
        if answer.status_code != httpx2.codes.OK:
            raise ServerFailed(self._shown_url, answer.status_code, _reason(answer))
        return answer


def _reason(answer: httpx2.Response) -> str:
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error).removesuffix(".")
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
