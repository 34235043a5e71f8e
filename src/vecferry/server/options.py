"""What a server may take on, as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from vecferry.errors import SettingsError
from vecferry.server.keys import ApiKeys

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerLimits:
    """The limits of a request; one that is over a limit is refused by the limit's name.

    max_body_mb: millions of bytes. max_texts: of one request; it is split into batches whatever their number.
    max_text_chars: of one text, before it is cut to the model's tokens. max_request_tokens: tokens to compute.
    max_answer_mb: numbers of an answer, as float32, in millions of bytes.
    max_queue_tokens: what may wait in a lane; a request on an empty lane may be larger.
    query_tokens: a request of up to so many tokens goes into the lane of queries.
    deadline_s: from the request's arrival to its answer. receive_s: for its headers, then for its body, and for a
    reader that does not read. drain_s: how long a server that was told to stop goes on answering.
    """

    max_body_mb: int = 16
    max_texts: int = 10_000
    max_text_chars: int = 1_000_000
    max_request_tokens: int = 1_000_000
    max_answer_mb: int = 256
    max_queue_tokens: int = 131_072
    query_tokens: int = 128
    deadline_s: float = 300.0
    receive_s: float = 30.0
    drain_s: float = 120.0
    max_connections: int = 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise SettingsError(f"--{name.replace('_', '-')}", value, "a number above 0")


@dataclass(frozen=True)
class ServerOptions:
    """Where and how a server listens. host: not loopback only with keys or `without_key`. origins: allowed by CORS."""

    host: str = "127.0.0.1"
    keys: ApiKeys = field(default_factory=ApiKeys)
    without_key: bool = False
    origins: tuple[str, ...] = ()
    limits: ServerLimits = field(default_factory=ServerLimits)
    traces: bool = False

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.keys and not self.without_key:
            expected = (
                "127.0.0.1, or API keys (VECFERRY_API_KEYS, --api-keys FILE), or --without-key for a closed network"
            )
            raise SettingsError("--host", self.host, expected)
