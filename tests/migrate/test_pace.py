"""The rate that a run tells."""

import pytest

from tests.migrate.doubles import Clock
from vecferry.migrate import pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def test_a_rate_is_told_every_two_seconds_at_most(clock: Clock) -> None:
    told = list[float]()
    meter = pace.Pace(told.append)
    meter.begin()
    for _ in range(50):
        clock.now += 0.1
        meter.add(10)
    assert told == [pytest.approx(100.0)] * 2


def test_ranges_that_take_longer_than_the_window_are_counted_with_all_of_their_time(clock: Clock) -> None:
    told = list[float]()
    meter = pace.Pace(told.append)
    meter.begin()
    for seconds in (50.0, 50.0, 100.0):
        clock.now += seconds
        meter.add(200)
    assert told == [pytest.approx(4.0), pytest.approx(4.0), pytest.approx(2.0)]


def test_what_is_long_ago_does_not_count(clock: Clock) -> None:
    told = list[float]()
    meter = pace.Pace(told.append)
    meter.begin()
    for rows in (10,) * 40 + (1000,) * 40:
        clock.now += 1.0
        meter.add(rows)
    assert told[-1] == pytest.approx(1000.0)
