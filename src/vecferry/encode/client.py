"""An encoder that asks a server; for programs that have no room for a model.

`RemoteEncoder` has the methods of `Encoder`, and its answers hold the same bits as the server's. A server is not
trusted to be ours: a request ends in time whatever comes, and an answer is of bounded size, of its form, and finite.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Annotated, Any, Self

import httpx2
import numpy as np
from pydantic import BaseModel, Field, ValidationError

from vecferry.embeddings import DENSE, Embeddings, Outputs, require_heads
from vecferry.encode.encoder import Role, TextEncoder
from vecferry.encode.export import load_npz
from vecferry.errors import (
    ModelNotServed,
    SecretNotPickled,
    ServerFailed,
    SettingsError,
    VectorUnusable,
    without_secrets,
)
from vecferry.model.artifact import VectorSpace
from vecferry.model.texts import require_texts

TEXTS_EACH = 256
TRIES = 5
AGAIN = (429, 503)
"""Statuses after which the same request may succeed."""
FIRST_PAUSE_S = 0.5
MAX_LIST_BYTES = 1_000_000
"""Of /v1/models."""
MAX_REASON_BYTES, MAX_REASON = 64_000, 300
"""Of an answer that is an error, and characters of it that are shown."""
WRITE_BYTES = 16_384
TOKENS_PER_BYTE = 16
"""At most; some characters stand for a phrase."""


class _Served(BaseModel):
    aliases: Annotated[list[str], Field(max_length=1000)]
    space: VectorSpace


class _Listed(BaseModel):
    id: str
    vecferry: _Served


class _Models(BaseModel):
    """What /v1/models answers, as far as it is read."""

    data: Annotated[list[_Listed], Field(max_length=1000)]


@dataclass(frozen=True)
class _Answer:
    status: int
    retry_after: str
    content: bytes


class RemoteEncoder(TextEncoder):
    """An encoder on a server; thread-safe. Requests raise ServerFailed, with the server's reason.

    A pickle has its URL and model; with a key, or a URL that has a secret in it, there is none. A copy has all of it.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 300.0,
        reopen: Callable[[], TextEncoder] | None = None,
    ) -> None:
        """Prepare requests; nothing is sent yet. url: the server's, for instance http://127.0.0.1:8080.

        model: by default the first that it serves. timeout_s: for one request, of up to `TEXTS_EACH` texts, with all
        repeats while the server is busy. reopen: gives one for the same server in another process, for pickles, in
        which it is; it knows where the key is. Raises SettingsError for a URL, a key or a time that is none.
        """
        if not 0 < timeout_s < math.inf:
            raise SettingsError("timeout_s", timeout_s, "a number of seconds above 0")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise SettingsError("api_key", "(not shown)", "characters of ASCII, as a header can have them")
        self._reopen = reopen
        self._copied = partial(RemoteEncoder, url, api_key=api_key, model=model, timeout_s=timeout_s)
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
        self._shown_url = without_secrets(url.rstrip("/"))
        self._model = model
        self._deadline = _Deadline()
        self._timeout_s = timeout_s
        self._space: VectorSpace | None = None
        try:
            self._http = httpx2.Client(base_url=url.rstrip("/"), headers=headers)
        except httpx2.InvalidURL as exc:
            raise SettingsError("url", self._shown_url, f"the server's, as http://127.0.0.1:8080 ({exc})") from exc

    def __copy__(self) -> RemoteEncoder:
        return self._copied()

    def __deepcopy__(self, _: dict[int, Any]) -> RemoteEncoder:
        return self._copied()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is not None:
            return self._reopen, ()
        if self._copied.keywords["api_key"]:
            raise SecretNotPickled("a RemoteEncoder with an api_key")
        (url,) = self._copied.args
        if without_secrets(url) != url:
            raise SecretNotPickled(f"the URL {without_secrets(url)}")
        return self._copied, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def space(self) -> VectorSpace:
        """The vector space of the server's model, fetched at the first use. Raises ModelNotServed."""
        if self._space is None:
            self._space = self._fetched_space()
        return self._space

    def _fetched_space(self) -> VectorSpace:
        content = self._request("GET", "/v1/models", MAX_LIST_BYTES)
        try:
            models = _Models.model_validate_json(content).data
        except ValidationError as exc:
            raise ServerFailed(self._shown_url, httpx2.codes.OK, "its models are not as vecferry's") from exc
        for model in models:
            if self._model in (None, model.id, *model.vecferry.aliases):
                return model.vecferry.space
        raise ModelNotServed(str(self._model), [model.id for model in models])

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode texts as `Encoder.encode` does, in requests of up to `TEXTS_EACH` texts.

        Raises EmptyInput, WrongInputType, InvalidText, HeadUnavailable; VectorUnusable where a vector is not finite, or
        zero; SpaceMismatch if the server's model has become another since the first request.
        """
        texts = require_texts(texts)
        require_heads(outputs, self.space.outputs)
        parts = [self._encoded(texts[at : at + TEXTS_EACH], outputs, role) for at in range(0, len(texts), TEXTS_EACH)]
        embeddings = Embeddings.concat(parts)
        for row, defect in embeddings.defects().items():
            raise VectorUnusable(row, defect)
        return embeddings

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
        space = self.space
        body = {"inputs": list(texts), "outputs": outputs.names, "role": role, "model": self._model}
        most = _most_bytes(space, texts, outputs, role)
        content = self._request("POST", "/v1/m3", most, json=body, headers={"accept": "application/x-npz"})
        try:
            _, embeddings = load_npz(BytesIO(content))
            embeddings.require_key(space.key, f"the server at {self._shown_url}")
            _check(embeddings, space, len(texts), outputs)
        except ValueError as exc:
            raise ServerFailed(self._shown_url, httpx2.codes.OK, f"what came is not what was asked for: {exc}") from exc
        return embeddings

    # --- requests ---------------------------------------------------------------------------------

    def _request(self, method: str, path: str, most: int, **request: Any) -> bytes:
        """Return the content of an answer of up to `most` bytes; ask again, after a pause, while the server is busy."""
        deadline = time.monotonic() + self._timeout_s
        pause_s, reason = FIRST_PAUSE_S, ""
        for tried in range(1, TRIES + 1):
            answer = self._answer_by(deadline, partial(self._answer, method, path, most, request))
            if answer.status == httpx2.codes.OK:
                return answer.content
            reason = _reason(answer.content)
            if answer.status not in AGAIN or tried == TRIES:
                break
            wait_s = float(answer.retry_after) if re.fullmatch("[0-9]+", answer.retry_after) else pause_s
            if time.monotonic() + wait_s >= deadline:
                reason += f"; it may answer in {wait_s:.3g} s, after the {self._timeout_s:.3g} s of timeout_s"
                break
            time.sleep(wait_s)
            pause_s *= 2
        raise ServerFailed(self._shown_url, answer.status, reason)

    def _answer_by(self, deadline: float, answer: Callable[[], _Answer]) -> _Answer:
        """Return what `answer` does in a thread of its own, which is left behind where it does not end in time.

        The lookup of a name cannot be interrupted. A daemon, so that a process that ends does not wait for it.
        """
        outcome = Future[_Answer]()

        def run() -> None:
            self._deadline.at = deadline
            try:
                outcome.set_result(answer())
            except BaseException as exc:  # noqa: BLE001  # whatever it is, the caller raises it
                outcome.set_exception(exc)

        threading.Thread(target=run, name="vecferry-request", daemon=True).start()
        try:
            return outcome.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout as exc:
            reason = f"there is no answer after the {self._timeout_s:.3g} s of timeout_s"
            raise ServerFailed(self._shown_url, 0, reason) from exc

    def _answer(self, method: str, path: str, most: int, request: dict[str, Any]) -> _Answer:
        try:
            limits: dict[str, Any] = {"timeout": self._deadline.left_s(), "extensions": {"trace": self._deadline.hold}}
            with self._http.stream(method, path, **limits, **request) as response:
                is_error = response.status_code != httpx2.codes.OK
                content = _received(response, MAX_REASON_BYTES if is_error else most)
        except (httpx2.HTTPError, UnicodeError) as exc:  # UnicodeError: a host that no name can be made of
            raise ServerFailed(self._shown_url, 0, (str(exc) or type(exc).__name__)[:MAX_REASON]) from exc
        if not is_error and len(content) > most:
            raise ServerFailed(
                self._shown_url, response.status_code, f"its answer has more than the {most} bytes it may have"
            )
        return _Answer(response.status_code, response.headers.get("retry-after", ""), content)


class _Deadline(threading.local):
    """When the request that this thread makes must be over; `at` is of time.monotonic.

    httpx2's own limit is for one read, and a server may send a byte at a time for days.
    """

    at = 0.0

    def left_s(self) -> float:
        """Return the seconds that are left. Raises ReadTimeout where there are none."""
        left_s = self.at - time.monotonic()
        if left_s <= 0:
            raise httpx2.ReadTimeout("the time is over")
        return left_s

    def hold(self, _: str, info: dict[str, Any]) -> None:
        """Hold each new connection to it: httpx2's trace tells of them, as streams that are read and written."""
        stream = info.get("return_value")
        if stream is None or not hasattr(stream, "start_tls"):
            return
        read, write = stream.read, stream.write

        def read_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
            del timeout
            received: bytes = read(max_bytes, timeout=self.left_s())
            return received

        def write_in_time(buffer: bytes, timeout: float | None = None) -> None:
            del timeout
            for at in range(0, len(buffer), WRITE_BYTES):
                write(buffer[at : at + WRITE_BYTES], timeout=self.left_s())

        stream.read, stream.write = read_in_time, write_in_time


def _received(response: httpx2.Response, most: int) -> bytes:
    """Return an answer's bytes, or the first that are more than `most`; what is compressed is not unpacked."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise httpx2.DecodingError("its answer is compressed, which was not asked for", request=response.request)
    parts, num_bytes = [], 0
    for part in response.iter_raw():
        parts.append(part)
        num_bytes += len(part)
        if num_bytes > most:
            break
    return b"".join(parts)


def _reason(content: bytes) -> str:
    """Return what an error of ours says, or how another's begins."""
    try:
        error = json.loads(content)["error"]
        reason = str(error["message"] if isinstance(error, dict) else error).removesuffix(".")
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = content.decode(errors="replace")
    return reason[:MAX_REASON]


# --- what an answer may be ------------------------------------------------------------------------


def _most_bytes(space: VectorSpace, texts: Sequence[str], outputs: Outputs, role: Role) -> int:
    """Return how many bytes the embeddings of these texts have at most."""
    prefix = space.prefix(role)
    num_tokens = sum(min(space.max_tokens, TOKENS_PER_BYTE * len((prefix + text).encode()) + 2) for text in texts)
    vectors = len(texts) * (Outputs.DENSE in outputs) + num_tokens * (Outputs.COLBERT in outputs)
    each_text = 100  # id, counts, offsets
    return (
        4 * space.dimension * vectors + 8 * num_tokens * (Outputs.SPARSE in outputs) + each_text * len(texts) + 10_000
    )


def _check(embeddings: Embeddings, space: VectorSpace, num_texts: int, outputs: Outputs) -> None:
    """Check that an answer is what was asked for. Raises ValueError."""
    _check_array("num_tokens", embeddings.num_tokens, np.int64, (num_texts,))
    _check_array("truncated", embeddings.truncated, np.bool_, (num_texts,))
    if num_texts and not 1 <= embeddings.num_tokens.min() <= embeddings.num_tokens.max() <= space.max_tokens:
        raise ValueError(f"num_tokens are not 1 to {space.max_tokens}")
    columns = {
        Outputs.DENSE: embeddings.dense_or_none,
        Outputs.SPARSE: embeddings.sparse_or_none,
        Outputs.COLBERT: embeddings.colbert_or_none,
    }
    for output, column in columns.items():
        if (output in outputs) != (column is not None):
            raise ValueError(f"{'no' if column is None else 'unasked'} {output.names[0]} vectors")
    if (dense := embeddings.dense_or_none) is not None:
        _check_array("dense", dense, np.float32, (num_texts, space.dimension))
    if (sparse := embeddings.sparse_or_none) is not None:
        num_weights = sparse.indices.size
        _check_array("sparse_indices", sparse.indices, np.int32, (num_weights,))
        _check_array("sparse_weights", sparse.weights, np.float32, (num_weights,))
        _check_offsets("sparse_indptr", sparse.indptr, num_texts, num_weights)
        if num_weights and (sparse.indices.min() < 0 or sparse.weights.min() <= 0):
            raise ValueError("sparse has negative ids, or weights that are not above 0")
    if (colbert := embeddings.colbert_or_none) is not None:
        num_vectors = colbert.vectors.size // space.dimension
        _check_array("colbert", colbert.vectors, np.float32, (num_vectors, space.dimension))
        _check_offsets("colbert_indptr", colbert.indptr, num_texts, num_vectors)


def _check_array(name: str, array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")


def _check_offsets(name: str, offsets: np.ndarray, num_texts: int, num_values: int) -> None:
    _check_array(name, offsets, np.int64, (num_texts + 1,))
    if offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} does not divide {num_values} values among {num_texts} texts")
