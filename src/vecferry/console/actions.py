"""What each form does. A verb that takes a while begins here and ends in the operator's thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from vecferry.console.operator import Operator, Outcome
from vecferry.errors import SettingsError, VecferryError
from vecferry.migrate import CutoverReport, Migration, RollbackReport

Form = Mapping[str, str]


@dataclass(frozen=True)
class Action:
    """What a form does. do: returns a message, empty where the page shows the outcome; raises VecferryError.

    is_guarded: needs the collection's name and the key again.
    """

    do: Callable[[Operator, Form], Awaitable[str]]
    is_guarded: bool = False


async def act(verb: str, operator: Operator, form: Form) -> Outcome | None:
    """Run the verb and return its outcome, errors included; None where the page shows it by itself."""
    try:
        message = await ACTIONS[verb].do(operator, form)
        return Outcome(verb, message) if message else None
    except VecferryError as exc:
        return Outcome.of(verb, exc)


# --- the run --------------------------------------------------------------------------------------


async def _start(operator: Operator, _: Form) -> str:
    operator.start()
    return ""


async def _plan(operator: Operator, _: Form) -> str:
    operator.plan()
    return ""


async def _stop(operator: Operator, _: Form) -> str:
    operator.stop()
    return ""


# --- what is only written down --------------------------------------------------------------------


async def _throttle(operator: Operator, form: Form) -> str:
    rows_per_s = _rows_per_s(form.get("rows_per_s", ""))
    await operator.at_once(lambda migration: migration.throttle(rows_per_s))
    return "The limit was removed." if rows_per_s is None else f"At most {rows_per_s:g} rows a second are written."


def _rows_per_s(text: str) -> float | None:
    """Parse a rate; None for an empty field. Raises SettingsError."""
    try:
        return float(text) if text.strip() else None
    except ValueError as exc:
        raise SettingsError("rows a second", text[:40], "a number above 0, or nothing for no limit") from exc


async def _pause(operator: Operator, _: Form) -> str:
    await operator.at_once(lambda migration: migration.pause("by the console"))
    return "Paused: nothing more is written to the new side."


async def _resume(operator: Operator, _: Form) -> str:
    await operator.at_once(Migration.resume)
    return "Resumed: rows are written to the new side again."


async def _postpone(operator: Operator, form: Form) -> str:
    postponed = form.get("undo") != "1"
    await operator.at_once(lambda migration: migration.postpone(postponed=postponed))
    return "The switch is postponed until you allow it again." if postponed else "The switch is allowed again."


# --- by hand --------------------------------------------------------------------------------------


async def _verify(operator: Operator, _: Form) -> str:
    task = operator.task

    def verify(migration: Migration) -> Outcome:
        report = migration.verify(task.sample, gate=task.gate())
        failed = [check.name for check in report.checks if not check.passed]
        message = report.gate.message if report.gate is not None else f"The state is {report.state}."
        return Outcome("verify", f"Failed: {', '.join(failed)}." if failed else message, failed=not report.passed)

    operator.by_hand("verify", verify)
    return ""


async def _override(operator: Operator, form: Form) -> str:
    reason = form.get("reason", "")
    await operator.at_once(lambda migration: migration.override(reason))
    return "The gate is overridden; the reason is kept with the migration."


async def _retry(operator: Operator, _: Form) -> str:
    def retry(migration: Migration) -> Outcome:
        status = migration.retry()
        return Outcome("retry", f"{status.dead_letters} rows are still without a vector.")

    operator.by_hand("retry", retry)
    return ""


async def _cutover(operator: Operator, form: Form) -> str:
    accepted = _whole(form.get("accept_dead_letters", ""))

    def cutover(migration: Migration) -> Outcome:
        report = migration.cutover(accepted)
        return _switched("cutover", "new", report)

    operator.by_hand("cutover", cutover)
    return ""


def _whole(text: str) -> int:
    """Parse a whole number; 0 for an empty field. Raises SettingsError."""
    try:
        return int(text) if text.strip() else 0
    except ValueError as exc:
        raise SettingsError("dead letters accepted", text[:40], "a whole number") from exc


async def _rollback(operator: Operator, form: Form) -> str:
    accept_outdated = form.get("accept_outdated") == "1"

    def rollback(migration: Migration) -> Outcome:
        report = migration.rollback(accept_outdated=accept_outdated)
        return _switched("rollback", "old", report)

    operator.by_hand("rollback", rollback)
    return ""


def _switched(verb: str, side: str, report: CutoverReport | RollbackReport) -> Outcome:
    milliseconds = f"{1000 * report.seconds:.0f} ms"
    return Outcome(verb, f"The {side} vectors serve, epoch {report.serving.epoch}. Writers waited {milliseconds}.")


ACTIONS: Mapping[str, Action] = {
    "start": Action(_start),
    "plan": Action(_plan),
    "stop": Action(_stop),
    "throttle": Action(_throttle),
    "pause": Action(_pause),
    "resume": Action(_resume),
    "postpone": Action(_postpone),
    "verify": Action(_verify),
    "override": Action(_override),
    "retry": Action(_retry),
    "cutover": Action(_cutover, is_guarded=True),
    "rollback": Action(_rollback, is_guarded=True),
}
