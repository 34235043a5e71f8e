"""Thousands of bad requests, and what is left of them: right answers, and a process as it was."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.server.abuse import (
    ACTS,
    ARGUMENTS,
    ENVIRONMENT,
    GROWTH_MB,
    HEALTH,
    JSON,
    PEAK_MB,
    THREADS,
    Address,
    Good,
    Tally,
    Wire,
    address_of,
    broken_kinds,
    check_shape,
    connected,
    faults_in,
    in_halves,
    kinds,
    message,
    tei,
    texts_of,
    watched,
)
from tests.server.conftest import Server, serving
from vecferry.encode.encoder import Encoder
from vecferry.model.artifact import Artifact
from vecferry.server.connection import MAX_REFUSED


@pytest.mark.parametrize("requests", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bad_requests_are_refused_in_form_and_leave_nothing_behind(
    requests: int, tiny_artifact: Artifact, library: Encoder
) -> None:
    with serving(f"tiny={tiny_artifact.path}", *ARGUMENTS, env=ENVIRONMENT) as server:
        tally, good = Tally(), Good(library)
        with watched(server) as watch:
            before, between, after = asyncio.run(in_halves(server, good, tally, requests))
        print(f"\n{tally.table()}\n{tally.total} in all, {tally.num_good} good ones\n{before}\n{between}\n{after}")
        print(watch)
        assert tally.total == requests
        assert len({name for name, _ in tally.counts}) == len(kinds()) + len(broken_kinds()) + len(ACTS)
        assert tally.num_good > 20
        assert after.files <= before.files
        assert after.threads <= before.threads + THREADS
        assert after.rss_mb <= between.rss_mb + GROWTH_MB
        assert watch.peak_mb <= before.rss_mb + PEAK_MB
        assert not faults_in(server.lines)


INFO = message("GET", "/info")


@pytest.fixture(scope="module")
def crowded(tiny_artifact: Artifact) -> Iterator[Server]:
    """Yield a server of five connections, of which a client may have four."""
    limits = ("--max-connections=5", "--receive-s=600", "--max-request-tokens=10000000", "--max-queue-tokens=10000000")
    with serving(f"tiny={tiny_artifact.path}", *limits) as server:
        yield server


def test_there_are_no_more_connections_than_the_system_has_descriptors_for() -> None:
    lines = (
        "import resource",
        "from vecferry.server.process import num_places",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))",
        "print(num_places(100), num_places(1024), resource.getrlimit(resource.RLIMIT_NOFILE))",
    )
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert ran.stdout == "100 272 (400, 400)\n"


def test_connections_that_say_nothing_keep_nobody_else_from_the_server(crowded: Server) -> None:
    async def scenario(address: Address) -> None:
        async with connected(address) as first, AsyncExitStack() as stack:
            assert await status_at(first, HEALTH) == 200
            silent = [await stack.enter_async_context(connected(address)) for _ in range(60)]
            for _ in range(3):
                async with connected(address) as another:
                    assert await status_at(another, INFO) == 200
            assert await status_at(first, HEALTH) == 200, "one that has been answered went before those that are silent"
            for wire in silent[:-4]:
                assert await wire.is_ended()

    asyncio.run(scenario(address_of(crowded.url)))


def test_bodies_that_do_not_come_on_lose_their_connections_to_others(crowded: Server) -> None:
    async def scenario(address: Address) -> None:
        async with AsyncExitStack() as stack:
            held = [await stack.enter_async_context(connected(address)) for _ in range(4)]
            for wire in held:
                await wire.send(message("POST", "/embed", [JSON, "Content-Length: 100"], b'{"inputs": '))
            status = None
            while status != 200:  # 503 at first
                async with connected(address) as another:
                    status = await status_at(another, INFO)
            assert await held[0].is_ended()

    asyncio.run(scenario(address_of(crowded.url)))


def test_where_all_connections_are_at_work_a_further_one_is_refused_and_health_is_answered(crowded: Server) -> None:
    async def scenario(address: Address) -> None:
        async with AsyncExitStack() as stack:
            for seed in range(4):
                at_work = await stack.enter_async_context(connected(address))
                await at_work.send(tei(texts_of(200, num_words=1_000, seed=seed)))
            for path in ("/info", "/v1/models"):
                async with connected(address) as another:
                    refused = await another.request(message("GET", path))
                    assert refused is not None
                    assert refused.status == 503
                    check_shape(refused, path.encode())
                    assert await another.is_ended()
            silent = [await stack.enter_async_context(connected(address)) for _ in range(MAX_REFUSED + 8)]
            async with connected(address) as another:
                assert await status_at(another, HEALTH) == 200
            for wire in silent:
                assert await wire.is_ended(), "it was refused, and stays"

    asyncio.run(scenario(address_of(crowded.url)))


async def status_at(wire: Wire, request: bytes) -> int | None:
    reply = await wire.request(request)
    return None if reply is None else reply.status
