"""The client, and what becomes of its errors."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
from qdrant_client.local.qdrant_local import QdrantLocal

from vecferry.errors import InvalidStoreUrl, StoreFailed, StoreSchemaError, StoreUnreachable

KIND = "qdrant"
TIMEOUT_S = 60
URL_FORM = "qdrant:///FOLDER, qdrant:FOLDER or qdrant+http://HOST:PORT"

_LOCAL_ERRORS = (ValueError, TypeError, KeyError, RuntimeError, OSError, sqlite3.Error)
"""What local mode raises, and the client for what cannot be sent."""


class QdrantConnection:
    """A client, shared by the backends that came from one `open`. Local mode takes one call at a time."""

    def __init__(self, client: QdrantClient, secret: str | None = None, *, is_local: bool = False) -> None:
        self._client = client
        self._secret = secret
        self._users = 1
        self._lock = threading.RLock()
        self._turn: AbstractContextManager[object] = self._lock if is_local else nullcontext()

    @classmethod
    def open(cls, url: str, api_key: str | None) -> Self:
        """Open a server or a folder by its URL. Raises InvalidStoreUrl, StoreUnreachable."""
        try:
            parts = urlsplit(url)
            secret = api_key or unquote(parts.password or parts.username or "") or None
            address, host = parts.netloc.rpartition("@")[2], parts.hostname
            _ = parts.port  # raises if it is none
        except ValueError:
            raise InvalidStoreUrl(f"{KIND}:…", URL_FORM) from None  # its message repeats parts of the URL
        if parts.scheme == KIND and parts.path and not parts.netloc:
            return cls(_local_client(Path(unquote(parts.path))), is_local=True)
        if parts.scheme not in ("qdrant+http", "qdrant+https") or not host:
            raise InvalidStoreUrl(f"{KIND}:…", URL_FORM)
        server = f"{parts.scheme.removeprefix('qdrant+')}://{address}{parts.path}"
        return cls(_remote_client(server, secret), secret)

    @classmethod
    def over(cls, client: QdrantClient) -> Self:
        """Use a client: the application's own, which stays open."""
        connection = cls(client, is_local=isinstance(getattr(client, "_client", None), QdrantLocal))
        connection.share()
        return connection

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        with self._turn, translated(self._secret):
            yield self._client

    def share(self) -> None:
        with self._lock:
            self._users += 1

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._client.close()


def _remote_client(server: str, secret: str | None) -> QdrantClient:
    with translated(secret):
        client = QdrantClient(server, api_key=secret, timeout=TIMEOUT_S, check_compatibility=False)
        client.info()
        return client


def _local_client(folder: Path) -> QdrantClient:
    if not (folder / "meta.json").is_file():
        raise StoreUnreachable(KIND, f"{folder} holds no collections of Qdrant's local mode")
    with translated(None):
        return QdrantClient(path=str(folder), force_disable_check_same_thread=True)


@contextmanager
def translated(secret: str | None) -> Iterator[None]:
    """Raise what the client raises as an error of ours, without the key."""

    def message(exc: object) -> str:
        reason = " ".join(str(exc).split()) or type(exc).__name__
        return reason.replace(secret, "***") if secret else reason

    try:
        yield
    except UnexpectedResponse as exc:
        raise _refusal(exc.status_code or 0, message(_server_message(exc))) from exc
    except ResourceExhaustedResponse as exc:
        raise StoreUnreachable(KIND, message(exc)) from exc
    except ResponseHandlingException as exc:
        if isinstance(exc.source, ValidationError):
            raise StoreFailed(KIND, f"an answer that this client does not know: {message(exc.source)}") from exc
        raise StoreUnreachable(KIND, message(exc.source)) from exc
    except (ApiException, QdrantException) as exc:
        raise StoreFailed(KIND, message(exc)) from exc
    except _LOCAL_ERRORS as exc:
        reason = message(exc)
        if isinstance(exc, RuntimeError) and "already accessed" in reason:
            raise StoreUnreachable(KIND, reason) from exc
        if isinstance(exc, ValueError) and reason.startswith("Collection ") and reason.endswith(" not found"):
            raise StoreSchemaError(reason, "Names are spelled as in the store.") from exc
        raise StoreFailed(KIND, reason) from exc


def _refusal(status: int, reason: str) -> StoreUnreachable | StoreSchemaError | StoreFailed:
    if status == 404:
        return StoreSchemaError(reason, "Names are spelled as in the store.")
    if status in (401, 403, 408, 429, 502, 503, 504):
        return StoreUnreachable(KIND, f"HTTP {status}: {reason}")
    return StoreFailed(KIND, f"HTTP {status}: {reason}")


def _server_message(exc: UnexpectedResponse) -> str:
    try:
        return str(exc.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):  # not Qdrant's, but of something before it
        return exc.content.decode("utf-8", "replace")[:200] or exc.reason_phrase
