"""Thousands of bad requests, and what is left of them: right answers, and a process as it was."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.abuse import (
    ACTS,
    ARGUMENTS,
    BEARER,
    ENVIRONMENT,
    GROWTH_MB,
    THREADS,
    Figures,
    Good,
    Tally,
    abuse,
    address_of,
    broken_kinds,
    check_shape,
    connected,
    faults_in,
    kinds,
    message,
    rested,
)
from tests.server.conftest import Server, serving
from vecferry.encode.encoder import Encoder
from vecferry.model.artifact import Artifact


@pytest.mark.parametrize("requests", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bad_requests_are_refused_in_form_and_leave_nothing_behind(
    requests: int, tiny_artifact: Artifact, library: Encoder
) -> None:
    with serving(f"tiny={tiny_artifact.path}", *ARGUMENTS, env=ENVIRONMENT) as server:
        tally = Tally()
        before, between, after = asyncio.run(_in_halves(server, Good(library), tally, requests))
        print(f"\n{tally.table()}\n{tally.total} in all, {tally.num_good} good ones\n{before}\n{between}\n{after}")
        assert tally.total == requests
        assert len({name for name, _ in tally.counts}) == len(kinds()) + len(broken_kinds()) + len(ACTS)
        assert tally.num_good > 20
        assert after.files <= before.files
        assert after.threads <= before.threads + THREADS
        assert after.rss_mb <= between.rss_mb + GROWTH_MB
        assert not faults_in(server.lines)


async def _in_halves(server: Server, good: Good, tally: Tally, requests: int) -> list[Figures]:
    address = address_of(server.url)
    figures, broken = [await rested(server, good)], 3 * requests // 100
    for _ in range(2):
        over = asyncio.Event()
        going_on = asyncio.ensure_future(good.go_on(address, over, tally))
        await abuse(address, tally, cheap=requests // 2 - broken - 3 * len(ACTS), broken=broken, acts=3)
        over.set()
        await going_on
        figures.append(await rested(server, good, figures[0]))
    return figures


def test_connections_that_say_nothing_keep_nobody_else_from_the_server(tiny_artifact: Artifact) -> None:
    async def scenario(server: Server) -> None:
        address = address_of(server.url)
        health = message("GET", "/health")
        async with connected(address) as first:
            assert (await first.request(health)).status == 200  # type: ignore[union-attr]
            async with connected(address), connected(address), connected(address), connected(address) as fifth:
                for path in ("/info", "/v1/models"):
                    async with connected(address) as one_more:
                        refused = await one_more.request(message("GET", path, [BEARER]))
                        assert refused is not None
                        assert refused.status == 503
                        check_shape(refused, path.encode())
                        assert await one_more.is_ended()
                assert (await first.request(health)).status == 200  # type: ignore[union-attr]
                assert await fifth.is_ended()
            async with connected(address) as later:
                assert (await later.request(health)).status == 200  # type: ignore[union-attr]

    with serving(f"tiny={tiny_artifact.path}", "--max-connections=5", "--receive-s=2") as server:
        asyncio.run(scenario(server))
