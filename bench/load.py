"""Clients of an embeddings server that do little themselves: kept connections, bodies made before the clock runs."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from urllib.parse import urlsplit

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What a run of clients saw. latencies_s: of each request."""

    seconds: float
    texts: int
    latencies_s: Sequence[float]

    @property
    def texts_per_s(self) -> float:
        return self.texts / self.seconds

    def percentile_ms(self, percent: int) -> float:
        return round(1e3 * quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1], 1)


class Target:
    """An embeddings server with OpenAI's interface."""

    def __init__(self, name: str, url: str, path: str, model: str) -> None:
        self.name, self._url, self._path, self._model = name, urlsplit(url), path, model

    def body(self, texts: Sequence[str], extra: str = "") -> bytes:
        """A whole request, as the official client sends it: base64 answers."""
        payload = json.dumps({"input": list(texts), "model": self._model, "encoding_format": "base64"}).encode()
        head = f"POST {self._path} HTTP/1.1\r\nhost: {self._url.netloc}\r\ncontent-type: application/json\r\n{extra}"
        return f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload

    def run(self, texts: Sequence[str], clients: int, texts_each: int = 1) -> Load:
        """Each client sends its next request as soon as it has the answer to the one before."""
        bodies = [self.body(texts[at : at + texts_each]) for at in range(0, len(texts), texts_each)]
        return asyncio.run(self._run(bodies, clients, len(texts)))

    async def _run(self, bodies: Sequence[bytes], clients: int, texts: int) -> Load:
        waiting, latencies = iter(bodies), list[float]()
        began = time.perf_counter()
        await asyncio.gather(*(self.client(waiting, latencies) for _ in range(min(clients, len(bodies)))))
        return Load(time.perf_counter() - began, texts, latencies)

    async def client(self, waiting: Iterable[bytes], latencies: list[float]) -> None:
        assert self._url.hostname is not None
        reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            for body in waiting:
                began = time.perf_counter()
                writer.write(body)
                head = await reader.readuntil(b"\r\n\r\n")
                match = LENGTH.search(head)
                assert match is not None, head
                assert head.startswith(b"HTTP/1.1 200"), head
                await reader.readexactly(int(match[1]))
                latencies.append(time.perf_counter() - began)
        finally:
            writer.close()
            await writer.wait_closed()


def queries_beside_bulk(target: Target, queries: Sequence[str], passages: Sequence[str], bulk_clients: int) -> Load:
    """Queries of one client, one by one, while others keep sending requests of 32 passages."""
    return asyncio.run(_queries_beside_bulk(target, queries, passages, bulk_clients))


async def _queries_beside_bulk(
    target: Target, queries: Sequence[str], passages: Sequence[str], bulk_clients: int
) -> Load:
    ended = False

    def endless() -> Iterable[bytes]:
        parts = [target.body(passages[at : at + 32]) for at in range(0, len(passages), 32)]
        while not ended:
            yield from (part for part in parts if not ended)

    latencies = list[float]()
    bulk = [asyncio.ensure_future(target.client(endless(), [])) for _ in range(bulk_clients)]
    await asyncio.sleep(1)
    began = time.perf_counter()
    await target.client([target.body([query]) for query in queries], latencies)
    seconds = time.perf_counter() - began
    ended = True
    for task in bulk:
        task.cancel()
    await asyncio.gather(*bulk, return_exceptions=True)
    return Load(seconds, len(queries), latencies)
