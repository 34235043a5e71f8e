"""What becomes of accepted requests: when too many come, when their clients go, and when the server ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.server.abuse import (
    JSON,
    PATIENCE_S,
    TOLERANCE,
    Address,
    Reply,
    Wire,
    address_of,
    check_shape,
    connected,
    faults_in,
    message,
    post,
    texts_of,
)
from tests.server.conftest import Server, serving
from vecferry.encode.encoder import Encoder
from vecferry.model.artifact import Artifact

ENDED = 0
"""A supervisor's success."""
ENDLESS_QUEUE = "--max-queue-tokens=100000000"
SLACK_S = 15.0
"""For a process to end, beside the time that is stated: the run that has begun is finished, in a thread of the lowest
priority, to which two cores that are busy with other tests leave a few hundredths of each second."""
LONG_S = 240.0
"""For a bulk request there."""


# --- too many -------------------------------------------------------------------------------------


def test_what_does_not_fit_in_the_queue_is_told_when_to_come_again_and_the_rest_is_answered(
    tiny_artifact: Artifact, library: Encoder
) -> None:
    texts = texts_of(30, num_words=100)
    expected = library.encode(texts).dense

    async def status_of(address: Address, number: int) -> int:
        request = bulk(texts) if number % 2 else post("/embed", {"inputs": texts}, given_headers=(JSON,))
        async with connected(address) as wire:
            reply = await wire.request(request, patience_s=LONG_S)
        assert reply is not None
        if reply.status == 429:
            check_shape(reply, b"/v1/" if number % 2 else b"/embed")
            assert int(reply.headers[b"retry-after"]) >= 1
            kind = reply.json()["error"]["type"] if number % 2 else reply.json()["error_type"]
            assert kind == ("rate_limit_error" if number % 2 else "Overloaded")
        else:
            np.testing.assert_allclose(vectors_of(reply), expected, rtol=0, atol=TOLERANCE)
        return reply.status

    async def scenario(address: Address) -> list[int]:
        first = await status_of(address, 0)
        assert first == 200, "a request larger than the queue, which is empty"
        statuses = await asyncio.gather(*(status_of(address, number) for number in range(40)))
        assert await gauge(address, 'vecferry_queue_tokens{lane="bulk"}') == 0
        assert await status_of(address, 1) == 200
        return statuses

    with serving(f"tiny={tiny_artifact.path}", "--max-queue-tokens=2000") as server:
        statuses = asyncio.run(scenario(address_of(server.url)))
        assert set(statuses) == {200, 429}
        assert not faults_in(server.lines)


# --- clients that go, and lanes -------------------------------------------------------------------


def test_a_client_that_left_costs_no_more_work(tiny_artifact: Artifact) -> None:
    long = bulk(texts_of(4_000, num_words=60))

    async def scenario(address: Address) -> float:
        async with connected(address) as leaving:
            await leaving.send(long)
            await until_computing(address)
        async with connected(address) as next_one:
            reply = await next_one.request(bulk(texts_of(10, num_words=100, seed=1)), patience_s=LONG_S)
            assert reply is not None
            assert reply.status == 200
        assert await gauge(address, 'vecferry_abandoned_requests_total{endpoint="/v1/embeddings"}') == 1
        return await gauge(address, 'vecferry_tokens_total{model="tiny"}')

    with serving(f"tiny={tiny_artifact.path}", ENDLESS_QUEUE) as server:
        address = address_of(server.url)
        computed = asyncio.run(scenario(address))
        whole = 4_000 * 60  # at least a token a word
        assert computed < whole / 2
        assert not faults_in(server.lines)


def test_short_requests_are_answered_while_a_long_one_is_computed(tiny_artifact: Artifact) -> None:
    async def scenario(address: Address) -> None:
        async with connected(address) as far, connected(address) as near:
            await far.send(bulk(texts_of(1_200, num_words=60)))
            long = asyncio.ensure_future(far.reply(patience_s=LONG_S))
            await until_computing(address)
            for text in texts_of(3, num_words=4):
                reply = await near.request(bulk([text]))
                assert reply is not None
                assert reply.status == 200
            assert not long.done(), "the long request went first"
            whole = await long
            assert whole is not None
            assert whole.status == 200

    with serving(f"tiny={tiny_artifact.path}") as server:
        asyncio.run(scenario(address_of(server.url)))


# --- the end --------------------------------------------------------------------------------------


def test_sigterm_under_load_leaves_no_accepted_request_without_its_answer(
    tiny_artifact: Artifact, library: Encoder
) -> None:
    receive_s, drain_s = 3.0, LONG_S
    arguments = (f"tiny={tiny_artifact.path}", f"--receive-s={receive_s:g}", f"--drain-s={drain_s:g}", ENDLESS_QUEUE)
    with serving(*arguments) as server:
        clients = [Client(library, number) for number in range(8)]
        long = Client(library, 8, texts=500)
        told_s, answered_s, ended_s, half = asyncio.run(_stopped_under_load(server, clients, long))
        assert server.process.wait() == ENDED
        assert told_s < receive_s + PATIENCE_S / 4
        assert ended_s < max(told_s, answered_s) + PATIENCE_S / 4
        assert half is not None
        assert half.status == 408
        replies = {key: answer for client in (*clients, long) for key, answer in client.replies.items()}
        accepted = {key: status for key, status in statuses_in(server.lines).items() if key in replies}
        unanswered = [key for key, reply in replies.items() if reply is None]
        assert set(accepted.values()) == {200}
        assert not set(unanswered) & set(accepted)
        assert len(accepted) > 50
        assert len(unanswered) <= len(clients)
        assert "client8-0" in accepted
        for client in (*clients, long):
            client.check()
        assert not faults_in(server.lines)


async def _stopped_under_load(
    server: Server, clients: list[Client], long: Client
) -> tuple[float, float, float, Reply | None]:
    """Seconds from the signal until the half request is told, all others have ended, the process has; what was told."""
    address = address_of(server.url)
    async with connected(address) as half, asyncio.TaskGroup() as group:
        going_on = [group.create_task(client.go_on(address)) for client in clients]
        await asyncio.sleep(1)
        going_on.append(group.create_task(long.go_on(address)))
        await asyncio.sleep(0.5)
        await half.send(message("POST", "/embed", [JSON, "Content-Length: 100"], b'{"inputs": '))
        await asyncio.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        replies = await half.reply()
        told_s = time.monotonic() - began
        await asyncio.wait(going_on)
        return told_s, time.monotonic() - began, await _ended_s(server, began), replies


def test_a_terminal_that_is_closed_leaves_no_accepted_request_without_its_answer(tiny_artifact: Artifact) -> None:
    async def scenario(server: Server) -> Reply | None:
        address = address_of(server.url)
        async with connected(address) as wire:
            await wire.send(bulk(texts_of(300, num_words=60)))
            await until_computing(address)
            server.process.send_signal(signal.SIGHUP)
            return await wire.reply(patience_s=LONG_S)

    with serving(f"tiny={tiny_artifact.path}") as server:
        reply = asyncio.run(scenario(server))
        assert reply is not None
        assert len(vectors_of(reply)) == 300
        assert server.process.wait() == ENDED


@pytest.mark.slow
def test_sigterm_ends_the_server_once_the_time_to_drain_is_over(tiny_artifact: Artifact) -> None:
    drain_s = 1.0
    texts = texts_of(1_000, num_words=1_000)  # each a run of its own, some 15 s together

    async def scenario(server: Server) -> tuple[float, list[Reply | None]]:
        address = address_of(server.url)
        async with connected(address) as half, AsyncExitStack() as stack:
            await half.send(message("POST", "/embed", [JSON, "Content-Length: 100"], b'{"inputs": '))
            waiting = [await stack.enter_async_context(connected(address)) for _ in range(3)]
            for wire in waiting:
                await wire.send(bulk(texts))
            await until_computing(address)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            replies = [await wire.reply(patience_s=LONG_S) for wire in (half, *waiting)]
            return await _ended_s(server, began), replies

    arguments = (f"--drain-s={drain_s:g}", "--receive-s=60", "--max-request-tokens=100000000", ENDLESS_QUEUE)
    with serving(f"tiny={tiny_artifact.path}", *arguments) as server:
        ended_s, replies = asyncio.run(scenario(server))
        assert server.process.wait() == ENDED
        assert ended_s < drain_s + SLACK_S
        for reply, target in zip(replies, [b"/embed", *[b"/v1/embeddings"] * 3], strict=True):
            assert reply is not None
            assert reply.status == 503
            check_shape(reply, target)
        assert not any("Traceback" in line for line in server.lines)


async def _ended_s(server: Server, began: float) -> float:
    """Seconds from then to the end of the process. Raises TimeoutError."""
    async with asyncio.timeout(LONG_S):
        while server.process.poll() is None:
            await asyncio.sleep(0.02)
    return time.monotonic() - began


def test_a_server_that_was_killed_starts_again_on_its_port_with_the_same_answers(tiny_artifact: Artifact) -> None:
    texts = texts_of(5, num_words=20)

    async def status_of(address: Address, *, then_kill: Server | None = None) -> np.ndarray:
        async with connected(address) as wire, connected(address) as waiting:
            reply = await wire.request(bulk(texts))
            assert reply is not None
            if then_kill is not None:
                await waiting.send(bulk(texts_of(1_000, num_words=60)))
                await asyncio.sleep(0.05)
                then_kill.process.kill()
                assert await waiting.reply() is None
            return vectors_of(reply)

    with serving(f"tiny={tiny_artifact.path}") as server:
        address = address_of(server.url)
        before = asyncio.run(status_of(address, then_kill=server))
        assert server.process.wait() == -signal.SIGKILL
    with _serving_at(address, tiny_artifact.path) as again:
        again.wait_until_ready()
        np.testing.assert_array_equal(asyncio.run(status_of(address)), before)
        assert again.stop() == ENDED


@contextmanager
def _serving_at(address: Address, model: Path) -> Iterator[Server]:
    """Serve on that port, unlike `serving`; the server is ready only some time later."""
    command = [sys.executable, "-m", "vecferry.cli", "serve", f"tiny={model}", "--port", str(address[1])]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, env=os.environ) as process:
        try:
            _wait_for_port(address, process)
            yield Server(process, f"http://{address[0]}:{address[1]}")
        finally:
            process.kill()


def _wait_for_port(address: Address, process: subprocess.Popen[str]) -> None:
    async def is_open() -> bool:
        try:
            async with connected(address):
                return True
        except ConnectionError:
            return False

    until = time.monotonic() + 3 * PATIENCE_S
    while not asyncio.run(is_open()):
        assert process.poll() is None, "it did not start"
        assert time.monotonic() < until, "it does not listen"
        time.sleep(0.05)


# --- what they have in common ---------------------------------------------------------------------


@dataclass
class Client:
    """Send one request after the other on one connection, until that is closed. replies: by the request's id."""

    library: Encoder
    number: int
    texts: int = 0
    replies: dict[str, Reply | None] = field(default_factory=dict)

    async def go_on(self, address: Address) -> None:
        async with connected(address) as wire:
            reply = await self._next(wire)
            while reply is not None and reply.headers.get(b"connection") != b"close":
                reply = await self._next(wire)

    async def _next(self, wire: Wire) -> Reply | None:
        key = f"client{self.number}-{len(self.replies)}"
        self.replies[key] = None
        self.replies[key] = reply = await wire.request(
            bulk(self._texts(key), f"X-Request-Id: {key}"), patience_s=LONG_S
        )
        return reply

    def _texts(self, key: str) -> list[str]:
        """Return one short text, or what goes into the other lane every now and then."""
        number = int(key.rpartition("-")[2])
        count = self.texts or (20 if number % 10 == 9 else 1)
        return texts_of(count, num_words=50 if count > 1 else 5, seed=self.number)

    def check(self) -> None:
        """Raise AssertionError unless all answers are the library's."""
        expected: dict[int, np.ndarray] = {}
        for key, reply in self.replies.items():
            if reply is not None:
                texts = self._texts(key)
                if len(texts) not in expected:
                    expected[len(texts)] = self.library.encode(texts).dense
                np.testing.assert_allclose(vectors_of(reply), expected[len(texts)], rtol=0, atol=TOLERANCE)


def bulk(texts: list[str], *headers: str) -> bytes:
    return post("/v1/embeddings", {"model": "tiny", "input": texts}, *headers, given_headers=(JSON,))


def vectors_of(reply: Reply) -> np.ndarray:
    assert reply.status == 200, reply
    body = reply.json()
    return np.array([row["embedding"] for row in body["data"]] if isinstance(body, dict) else body)


async def gauge(address: Address, name: str) -> float:
    """0 where /metrics does not have it yet."""
    async with connected(address) as wire:
        reply = await wire.request(message("GET", "/metrics"))
    assert reply is not None
    match = re.search(rf"^{re.escape(name)} (\S+)$", reply.body.decode(), re.MULTILINE)
    return float(match[1]) if match else 0.0


async def until_computing(
    address: Address, name: str = 'vecferry_tokens_total{model="tiny"}', above: float = 100
) -> None:
    """Until a counter shows that a request is at work. 100 tokens are more than the probe's."""
    async with asyncio.timeout(LONG_S):
        while await gauge(address, name) <= above:
            await asyncio.sleep(0.01)


def statuses_in(lines: list[str]) -> dict[str, int]:
    """Return the status of each accepted request by its id: each has a line in the log."""
    records = (json.loads(line) for line in lines if '"vecferry.server.access"' in line)
    return {record["request_id"]: record["status"] for record in records}
