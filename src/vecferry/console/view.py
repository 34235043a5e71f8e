"""A status in words and figures: what is drawn, what can be done, what should be done next. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vecferry.console.operator import Outcome, Reading, Snapshot
from vecferry.migrate import Plan, State, Status
from vecferry.migrate.states import CAUGHT_UP, allowed, next_verbs
from vecferry.stores.values import shown

OUTCOME_S = 120.0
"""How long the outcome of a verb by hand is shown."""
MESSAGES: Mapping[State, str] = {
    State.PLANNED: "The migration is recorded; nothing has been created yet.",
    State.PREPARED: "The place for the new vectors exists and is empty.",
    State.CAPTURING: "Writes of the application are captured from now on.",
    State.BACKFILLING: "Every row is encoded anew, beside its old vector.",
    State.INDEXING: "Every row was tried; the new indexes are being built.",
    State.CATCHING_UP: "The new vectors are complete, and follow what the application writes.",
    State.VERIFIED: "The checks passed. The switch is allowed once the gate passes or you override it.",
    State.READY: "The new vectors are ready for the switch.",
    State.CUTTING_OVER: "Writers wait while the new vectors take their place.",
    State.SERVING_NEW: "The new vectors answer. The old ones are kept current, so that you can go back.",
    State.ROLLING_BACK: "Writers wait while the old vectors take their place again.",
    State.SERVING_OLD: "The old vectors answer again. The new ones are kept current.",
    State.FINALIZED: "The old vectors are gone. Another migration may begin.",
    State.PAUSED: "Nothing is written to the new side. Writes of the application are captured.",
    State.ABORTED: "The new vectors are gone. Another migration may begin.",
}
NOT_BEGUN = "No migration of this collection has begun. The old vectors answer."
PATH = (
    State.PLANNED, State.PREPARED, State.CAPTURING, State.BACKFILLING, State.INDEXING, State.CATCHING_UP,
    State.VERIFIED, State.READY, State.SERVING_NEW, State.FINALIZED,
)  # fmt: skip
PATH_BACK = (*PATH[:-1], State.SERVING_OLD, PATH[-1])
PLACES = {
    "verify": "verify", "override": "verify", "cutover": "switch", "rollback": "switch", "postpone": "switch",
    "retry": "dead-letters", "plan": "plan",
}  # fmt: skip
"""Cards, by the verbs whose forms are in them; the others are in the one of the run."""
CHART = (600, 90)
"""Width and height of the chart's plane."""
LEFT = ("finalize", "abort")
"""Verbs without a form."""
MOVING = {State.CUTTING_OVER: State.READY, State.ROLLING_BACK: State.SERVING_NEW}


@dataclass(frozen=True)
class Step:
    """A state on the path. at: "done", "here", "ahead"."""

    name: str
    at: str


@dataclass(frozen=True)
class Chart:
    """Progress over time. rows, writes: points of lines in a plane of `CHART`. began_at, ended_at: ISO 8601, UTC."""

    rows: str
    writes: str
    most_writes: int
    began_at: str
    ended_at: str


@dataclass(frozen=True)
class Look:
    """All that the page shows.

    verbs: those that the state allows. terminal: commands, of the verbs without a form. next: the verb that goes on.
    rows_per_s: of the backfill. eta: how long that takes at the present rate; empty where it cannot be said.
    verification, with gate and override: ready for JSON. old_model, new_model: names, empty where nobody has said them.
    plan: what `start` would do, before the first one; unplanned: why that is not known, while that is so.
    """

    target: str
    status: Status | None
    problem: Outcome | None
    state: State | None
    title: str
    message: str
    path: tuple[Step, ...]
    verbs: frozenset[str]
    terminal: tuple[str, ...]
    next: str
    is_running: bool
    is_stopping: bool
    run: Outcome | None
    busy: str
    busy_s: int
    hand: Outcome | None
    rows_per_s: float | None
    eta: str
    dead_letters: tuple[tuple[str, str, str], ...]
    serving: str
    side: str
    verification: Mapping[str, Any] | None
    gate: Mapping[str, Any] | None
    override: Mapping[str, Any] | None
    failed: tuple[str, ...]
    thresholds: Mapping[str, float]
    old_model: str
    new_model: str
    plan: Plan | None
    unplanned: Outcome | None
    chart: Chart | None


def look_at(snapshot: Snapshot, config: Path, *, is_stopping: bool = False, names: tuple[str, str] = ("", "")) -> Look:
    """Return what the page shows of a snapshot. config: the file that commands name. names: of both models, by it."""
    status = snapshot.status
    state = None if status is None else status.state
    verification = None if status is None else status.verification
    serving = None if status is None else status.serving
    hand = snapshot.hand
    return Look(
        target=snapshot.target,
        status=status,
        problem=snapshot.problem,
        state=state,
        title="unreachable" if snapshot.problem else "not begun" if state is None else _title(state),
        message=snapshot.problem.message if snapshot.problem else NOT_BEGUN if state is None else MESSAGES[state],
        path=path_of(state, snapshot.before),
        verbs=_verbs(snapshot),
        terminal=_terminal(snapshot, config),
        next=_next(snapshot),
        is_running=snapshot.is_running,
        is_stopping=is_stopping and snapshot.is_running,
        run=snapshot.run.outcome if snapshot.run else None,
        busy=hand.verb if hand is not None and hand.outcome is None else "",
        busy_s=round(snapshot.now - hand.began_at) if hand is not None and hand.outcome is None else 0,
        hand=hand.outcome if hand is not None and snapshot.now - hand.ended_at < OUTCOME_S else None,
        rows_per_s=_rate(status) if status is not None else None,
        eta=_eta(status) if status is not None else "",
        dead_letters=_dead_letters(status) if status is not None else (),
        serving=_serving(status),
        side=side_of(status),
        verification=verification,
        gate=verification.get("gate") if verification else None,
        override=verification.get("override") if verification else None,
        failed=tuple(check["name"] for check in verification["checks"] if not check["passed"]) if verification else (),
        thresholds=serving.thresholds if serving else {},
        old_model=status.old_model if status is not None else names[0],
        new_model=status.new_model if status is not None else names[1],
        plan=snapshot.plan if status is None else None,
        unplanned=snapshot.planning.outcome if snapshot.planning is not None and snapshot.plan is None else None,
        chart=chart_of(snapshot.readings, status.rows - status.unembedded) if status is not None else None,
    )


def place_of(verb: str) -> str:
    """Return the card in which the verb's form is."""
    return PLACES.get(verb, "run")


def chart_of(readings: Sequence[Reading], rows: int) -> Chart | None:
    """Return the lines of rows and of writes to be followed; None before there are two readings.

    rows: that are to have a new vector, the height of the first line; that of the second is the most there was.
    """
    if len(readings) < 2:
        return None
    first, last = readings[0].at, readings[-1].at
    most_writes = max(reading.writes for reading in readings)

    def line(values: Iterable[int], most: int) -> str:
        width, height = CHART
        return " ".join(
            f"{width * (reading.at - first) / ((last - first) or 1):.1f},{height - height * value / max(most, 1):.1f}"
            for reading, value in zip(readings, values, strict=True)
        )

    began_at, ended_at = (datetime.fromtimestamp(at, UTC).isoformat() for at in (first, last))
    return Chart(
        line((min(reading.rows, rows) for reading in readings), rows),
        line((reading.writes for reading in readings), most_writes),
        most_writes, began_at, ended_at,
    )  # fmt: skip


def path_of(state: State | None, before: State | None) -> tuple[Step, ...]:
    """Return the states in their order, a rollback's among them where there was one. before: of a pause."""
    here = before if state is State.PAUSED and before is not None else state
    here = MOVING.get(here, here) if here is not None else None
    names = PATH_BACK if State.SERVING_OLD in (here, before) else PATH
    number = names.index(here) if here in names else -1
    at = ["done" if i < number else "here" if i == number else "ahead" for i in range(len(names))]
    return tuple(Step(_title(name), where) for name, where in zip(names, at, strict=True))


def side_of(status: Status | None) -> str:
    """Return which vectors answer: "old" or "new"."""
    if status is None or status.serving is None:
        return "old"
    return "new" if status.serving.fingerprint == status.new_fingerprint else "old"


def _title(state: State) -> str:
    return state.value.replace("_", " ")


def _verbs(snapshot: Snapshot) -> frozenset[str]:
    """Return the verbs that the state allows; none where the store does not answer."""
    if snapshot.problem is not None:
        return frozenset()
    verbs = {"start"} if not snapshot.is_running and not _has_ended(snapshot) else set()
    if snapshot.status is None:
        return frozenset(verbs)
    state = _state_but_for_pause(snapshot, snapshot.status)
    quick = {verb for verb in ("pause", "resume", "throttle", "postpone") if allowed(verb, snapshot.status.state)}
    slow = {verb for verb in ("verify", "override", "retry", "cutover", "rollback") if allowed(verb, state)}
    if snapshot.is_held:
        slow &= {"rollback"}  # the one that ends also an operator's pause
    if not snapshot.status.dead_letters:
        slow.discard("retry")
    return frozenset(verbs | quick | slow)


def _terminal(snapshot: Snapshot, config: Path) -> tuple[str, ...]:
    """Return the commands of the verbs that are left to a terminal, those that lead on in this state first."""
    if snapshot.problem is not None or snapshot.status is None:
        return ()
    state = _state_but_for_pause(snapshot, snapshot.status)
    verbs = sorted((verb for verb in LEFT if allowed(verb, state)), key=lambda verb: verb not in next_verbs(state))
    return tuple(shlex.join(["vecferry", "migrate", verb, "--config", str(config)]) for verb in verbs)


def _state_but_for_pause(snapshot: Snapshot, status: Status) -> State:
    return snapshot.before if status.paused is not None and snapshot.before else status.state


def _has_ended(snapshot: Snapshot) -> bool:
    return snapshot.status is not None and snapshot.status.state is State.FINALIZED


def _next(snapshot: Snapshot) -> str:
    if snapshot.problem is not None:
        return ""
    if snapshot.status is None:
        return "start"
    return next(iter(next_verbs(snapshot.status.state)), "")


def _eta(status: Status) -> str:
    if status.seconds_left is None or status.paused is not None:
        return ""
    return f"about {duration(status.seconds_left)}"


def duration(seconds: float) -> str:
    """Format a time in the unit that fits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds > 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _rate(status: Status) -> float | None:
    running = status.running
    return None if running is None or status.state in CAUGHT_UP or status.paused is not None else running.rows_per_s


def _dead_letters(status: Status) -> tuple[tuple[str, str, str], ...]:
    keys = shown([dead_letter.key for dead_letter in status.first_dead_letters])
    return tuple(
        (key, dead_letter.side, dead_letter.reason)
        for key, dead_letter in zip(keys, status.first_dead_letters, strict=True)
    )


def _serving(status: Status | None) -> str:
    serving = status.serving if status is not None else None
    return "no epoch yet" if serving is None else f"epoch {serving.epoch}, generation {serving.generation}"
