"""Progress over time: what is kept of it, and the lines that are drawn."""

from vecferry.console.operator import MAX_READINGS, READING_S, Reading, with_reading
from vecferry.console.view import CHART, chart_of, duration


def test_only_changes_are_kept_and_a_quiet_before_them() -> None:
    first = Reading(100.0, 0, 0)
    assert with_reading((), first) == (first,)
    assert with_reading((first,), Reading(101.0, 0, 0)) == (first,)
    soon = Reading(102.0, 5, 0)
    assert with_reading((first,), soon) == (first, soon)
    late = Reading(100.0 + READING_S + 10, 5, 0)
    assert with_reading((first,), late) == (first, Reading(late.at - 1, 0, 0), late)


def test_a_long_migration_keeps_a_bounded_number_with_the_first_and_the_last() -> None:
    readings: tuple[Reading, ...] = ()
    for second in range(10 * MAX_READINGS):
        readings = with_reading(readings, Reading(float(second), second, 0))
        assert len(readings) <= MAX_READINGS
    assert (readings[0].at, readings[-1].rows) == (0.0, 10 * MAX_READINGS - 1)
    assert list(readings) == sorted(readings, key=lambda reading: reading.at)


def test_the_lines_rise_from_the_lower_left_corner_to_the_upper_right_one() -> None:
    width, height = CHART
    assert chart_of([Reading(0.0, 0, 0)], 10) is None
    chart = chart_of([Reading(0.0, 0, 4), Reading(5.0, 5, 2), Reading(10.0, 10, 0)], 10)
    assert chart is not None
    assert chart.rows == f"0.0,{height:.1f} {width / 2:.1f},{height / 2:.1f} {width:.1f},0.0"
    assert chart.writes == f"0.0,0.0 {width / 2:.1f},{height / 2:.1f} {width:.1f},{height:.1f}"
    assert (chart.most_writes, chart.ended_at) == (4, "1970-01-01T00:00:10+00:00")


def test_without_rows_or_writes_the_lines_lie_on_the_ground() -> None:
    chart = chart_of([Reading(1.0, 0, 0), Reading(1.0, 1, 0)], 0)
    assert chart is not None
    assert all(0 <= float(point.split(",")[1]) <= CHART[1] for point in chart.rows.split())


def test_a_time_is_said_in_the_unit_that_fits() -> None:
    assert [duration(seconds) for seconds in (0.2, 89, 600, 7200, 400_000)] == [
        "0 s",
        "89 s",
        "10 min",
        "2 h",
        "5 days",
    ]
