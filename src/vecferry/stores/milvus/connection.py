"""The client, and what becomes of its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import grpc
from filelock import FileLock
from pymilvus import MilvusClient, MilvusException
from pymilvus.exceptions import ConnectionConfigException, ErrorCode

from vecferry.errors import InvalidStoreUrl, MissingExtra, StoreFailed, StoreSchemaError, StoreUnreachable

KIND = "milvus"
TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
NOT_CONNECTED = 2
LOCK_FILE = "vecferry.lock"
URL_FORM = "milvus:///PATH.db, milvus:PATH.db or milvus+http://HOST:PORT"

_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.CANCELLED,
)


@dataclass(frozen=True)
class Address:
    """Where a store is. uri: as the client wants it; token: from the URL, never shown."""

    uri: str
    token: str = ""
    is_lite: bool = False

    @classmethod
    def parse(cls, url: str, token: str | None) -> Address:
        """Read a URL. Raises InvalidStoreUrl if it is none of Milvus, StoreUnreachable if there is no such folder."""
        try:
            parts = urlsplit(url)
            user = unquote(parts.username or "")
            credentials = f"{user}:{unquote(parts.password)}" if parts.password else user
            address, host = parts.netloc.rpartition("@")[2], parts.hostname
            _ = parts.port  # raises if it is none
        except ValueError:
            raise InvalidStoreUrl(f"{KIND}:…", URL_FORM) from None  # its message repeats parts of the URL
        if parts.scheme == KIND and not parts.netloc and parts.path.endswith(".db"):
            folder = Path(unquote(parts.path))
            if not folder.exists():
                raise StoreUnreachable(KIND, f"there is no {folder}")
            return cls(str(folder.absolute()), is_lite=True)
        if parts.scheme not in ("milvus+http", "milvus+https") or not host:
            raise InvalidStoreUrl(f"{KIND}:…", URL_FORM)
        return cls(f"{parts.scheme.removeprefix('milvus+')}://{address}{parts.path}", token or credentials)

    def turn(self) -> AbstractContextManager[object]:
        """Return a lock to be held during a call: Milvus Lite loses writes at a crash if they came at the same time."""
        return FileLock(Path(self.uri) / LOCK_FILE, timeout=TIMEOUT_S) if self.is_lite else nullcontext()

    def connect(self) -> MilvusClient:
        """Connect; clients of one address in one process share a channel."""
        with translated(self), self.turn():
            try:
                return MilvusClient(self.uri, token=self.token, timeout=CONNECT_TIMEOUT_S)
            except ConnectionConfigException as exc:
                if "milvus-lite is required" in exc.message:
                    raise MissingExtra("milvus", "milvus-lite") from exc
                reason = f"{self.uri} cannot be opened; another process may have it" if self.is_lite else exc.message
                raise StoreUnreachable(KIND, reason) from exc


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """Raise what the client raises as an error of ours, without the token."""
    secret = address.token.rpartition(":")[2]

    def message(reason: object) -> str:
        text = " ".join(str(reason).split())
        return text.replace(secret, "***") if secret else text

    try:
        yield
    except MilvusException as exc:
        reason = message(exc.message) or type(exc).__name__
        if exc.code in (NOT_CONNECTED, ErrorCode.RATE_LIMIT, *_AWAY):
            raise StoreUnreachable(KIND, reason) from exc
        if exc.code == ErrorCode.COLLECTION_NOT_FOUND:
            raise StoreSchemaError(reason, "Names are spelled as in the store.") from exc
        raise StoreFailed(KIND, reason) from exc
    except grpc.RpcError as exc:
        code = exc.code() if isinstance(exc, grpc.Call) else None
        reason = message(exc.details() if isinstance(exc, grpc.Call) else exc)
        raise (StoreUnreachable if code in _AWAY else StoreFailed)(KIND, reason) from exc
    except (grpc.FutureTimeoutError, OSError) as exc:
        raise StoreUnreachable(KIND, message(exc) or "no answer in time") from exc
    except (ValueError, TypeError) as exc:  # what cannot be put into a request
        raise StoreFailed(KIND, message(exc)) from exc
