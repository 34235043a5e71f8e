"""What a server may take on, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from vecferry.errors import SettingsError
from vecferry.options import Checked, Count, Help, Seconds
from vecferry.server.keys import ApiKeys

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerLimits(Checked):
    """The limits of a request; one that is over a limit is refused by the limit's name.

    deadline_s: from the request's arrival to its answer. receive_s: for its headers, then for its body, and for a
    reader that does not read. Raises SettingsError for a limit that is not above 0.
    """

    max_body_mb: Annotated[Count, Help("millions of bytes of a request")] = 16
    max_bodies_mb: Annotated[
        Count, Help("millions of bytes of all requests that are received or answered, then 429")
    ] = 128
    max_texts: Annotated[Count, Help("texts of a request; batches are made of any number")] = 10_000
    max_text_chars: Annotated[Count, Help("characters of a text, before it is cut to the model's tokens")] = 1_000_000
    max_tokenize_chars: Annotated[
        Count, Help("characters of a request to /tokenize, of whose answer each takes hundreds of bytes")
    ] = 100_000
    max_request_tokens: Annotated[Count, Help("tokens of a request that are to be computed")] = 1_000_000
    max_answer_mb: Annotated[Count, Help("numbers of an answer, as float32, in millions of bytes")] = 256
    max_queue_tokens: Annotated[
        Count, Help("tokens that may wait in each lane, then 429; on an empty lane a request may be larger")
    ] = 131_072
    query_tokens: Annotated[Count, Help("requests of up to so many tokens go before longer ones")] = 128
    deadline_s: Annotated[Seconds, Help("seconds from a request to its answer")] = 300.0
    receive_s: Annotated[Seconds, Help("seconds for a request to arrive, and for a client to take its answer")] = 30.0
    drain_s: Annotated[Seconds, Help("seconds after SIGTERM in which accepted requests are answered")] = 120.0
    max_connections: Annotated[Count, Help("connections at a time")] = 1024


@dataclass(frozen=True)
class ServerOptions:
    """Where and how a server listens. host: not loopback only with keys or `without_key`. origins: allowed by CORS.

    host_names: under which it may be asked without a key, beside addresses and localhost. token_ids: whether clients
    may send this model's own in place of texts. serving_name: of the model that serves in the migration that is
    followed. search_fields: of its rows, that clients may search by and read.
    """

    host: str = "127.0.0.1"
    keys: ApiKeys = field(default_factory=ApiKeys)
    without_key: bool = False
    origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    limits: ServerLimits = field(default_factory=ServerLimits)
    traces: bool = False
    token_ids: bool = False
    serving_name: str = "serving"
    search_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.keys and not self.without_key:
            expected = (
                "127.0.0.1, or API keys (VECFERRY_API_KEYS, --api-keys FILE), or --without-key for a closed network"
            )
            raise SettingsError("--host", self.host, expected)
