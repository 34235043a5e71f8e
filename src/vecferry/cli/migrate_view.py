"""What the verbs of a migration return, in rows for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.filesize import decimal

from vecferry.cli.output import Rows, plain, short
from vecferry.migrate import Check, Cost, CutoverReport, Plan, RollbackReport, State, Status, VerifyReport
from vecferry.migrate.states import next_verbs
from vecferry.stores.group import named
from vecferry.stores.ledger import LEFT_THE_PART, Event, RunningProcess, Serving
from vecferry.stores.values import LayoutCost

WITHOUT_GATE = (
    ("next", "vecferry migrate verify"),
    ("or", "vecferry migrate override --reason REASON"),
)
AFTER_CUTOVER = (
    ("next", "vecferry migrate verify"),
    ("then", "vecferry migrate finalize"),
    ("until then", "vecferry migrate rollback"),
)


def plan_rows(plan: Plan) -> Rows:
    """Return what a migration would do and take, and what to type next."""
    is_clear = plan.provenance.is_confirmed and not plan.problems
    step = ("next", "vecferry migrate start") if is_clear else ("once that is clear", "vecferry migrate plan")
    return [*plan_facts(plan), step]


def plan_facts(plan: Plan) -> Rows:
    """Return what a migration would do and take, a row for each fact."""
    table = plan.table
    return [
        ("column", plan.target),
        *_collections(plan.collections),
        ("rows", f"{table.rows:,} ({table.null_texts:,} without a text, {table.empty_texts:,} with an empty one)"),
        ("vectors", f"{plan.old_dimension} numbers → {plan.new_dimension}"),
        ("vector space", f"{short(plan.old_fingerprint) or 'not known'} → {short(plan.new_fingerprint)}"),
        ("made from", f"{'✓' if plan.provenance.is_confirmed else '✗'} {plan.provenance.message}"),
        *([] if plan.provenance.is_confirmed else [("", plan.provenance.remedy)]),
        ("heads", ", ".join(plan.outputs)),
        ("size of the vectors", f"{decimal(table.vector_bytes)} → {decimal(plan.vector_bytes_after)}"),
        *([("size of sparse and ColBERT", decimal(plan.head_bytes_after))] if plan.head_bytes_after else []),
        (
            "disk that must be free",
            f"{decimal(plan.disk_bytes)} in the store, {decimal(plan.staging_bytes)} for staging",
        ),
        ("time to encode", f"{duration(plan.seconds)}, from {plan.sample_rows} rows in {plan.sample_seconds:.1f} s"),
        *_cost_rows(plan.cost),
        *(("index to make anew", f"{i.name}, {decimal(i.bytes)} now") for i in table.vector_indexes),
        *(("layout" if each.is_chosen else "other layout", _layout(each)) for each in plan.layouts),
        *(("will be created", name) for name in plan.creates),
        ("undone by", plan.undo),
        *(("mind", warning) for warning in plan.warnings),
        *(row for problem in plan.problems for row in (("start refuses", problem.message), ("", problem.hint))),
    ]


def _collections(names: Sequence[str]) -> Rows:
    """Return how many are switched together, and the first of them."""
    return [("collections", f"{len(names):,}: {named(names)}")] if names else []


def _layout(cost: LayoutCost) -> str:
    how_long = f"about {duration(cost.switch_s)} for this table" if cost.switch_s else "a moment, whatever its size"
    possible = f"; not possible here: {cost.obstacle}" if cost.obstacle else ""
    return f"{cost.layout}: {cost.shape}; {cost.lock}, {how_long}{possible}"


def _cost_rows(cost: Cost) -> Rows:
    """Return the estimate, with what it rests on."""
    workers = "1 worker" if cost.workers == 1 else f"{cost.workers:,} workers, each as fast as this process"
    bound = ", which is what the store needs to write them" if cost.write_seconds > cost.encode_seconds else ""
    return [
        ("tokens", f"{cost.tokens:,} if all rows are as the sample; {cost.tokens_per_s:,.0f} a second were seen here"),
        (
            "time to write",
            f"{duration(cost.write_seconds)}, at {cost.write_rows_per_s:,.0f} rows a second, not measured",
        ),
        ("backfill", f"{duration(cost.seconds)} with {workers}{bound}"),
        *([] if cost.price is None else [("price of the workers", f"{cost.price:,.2f}")]),
    ]


def status_rows(status: Status) -> Rows:
    """Return how far a migration is, and what to type next."""
    return [
        ("column", status.target),
        *_collections(status.collections),
        *_models(status),
        ("state", status.state if status.paused is None else f"{status.state}: {status.paused}"),
        ("rows with a new vector", f"{status.rows_done:,} of {status.rows:,}{_encoded(status.running)}"),
        *([("rows left without one", f"{status.unembedded:,}")] if status.unembedded else []),
        ("key ranges done", f"{status.ranges_done:,} of {status.ranges:,}"),
        *_run(status),
        ("writes to be followed", f"{status.backlog:,}"),
        *([("on the old side", f"{status.old_backlog:,}")] if status.old_backlog != status.backlog else []),
        *([("limit", f"{status.control.rows_per_s:g} rows a second")] if status.control.rows_per_s else []),
        *([("switch", "postponed")] if status.control.postponed else []),
        ("dead letters", f"{status.dead_letters:,}"),
        *(
            ("", f"{', '.join(dead_letter.key)} ({dead_letter.side}): {dead_letter.reason}")
            for dead_letter in status.first_dead_letters
        ),
        *_verification(status.verification),
        *_serving(status.serving),
        *(("event", f"{event.at[:19]} {event.what}{_detail(event)}") for event in status.events),
        *_next(status.state),
    ]


def _encoded(running: RunningProcess | None) -> str:
    return f", and {running.rows_encoded:,} encoded" if running is not None and running.rows_encoded else ""


def _models(status: Status) -> Rows:
    """Return both models by name, where their names are known, with the beginnings of their fingerprints."""
    old = f"{status.old_model or 'not named'} ({short(status.old_fingerprint) or 'not known'})"
    new = f"{status.new_model or 'not named'} ({short(status.new_fingerprint)})"
    return [("models", f"{old} → {new}"), *precision_rows(status.precisions)]


def precision_rows(precisions: Mapping[str, int]) -> Rows:
    """Return how many rows are in each precision, where there is more than one."""
    counted = {name: rows for name, rows in precisions.items() if rows}
    return [("precisions", ", ".join(f"{rows:,} rows in {name}" for name, rows in counted.items()))][: len(counted) > 1]


def _run(status: Status) -> Rows:
    """Return who runs it, since when, at what rate, and how long that takes."""
    running = status.running
    if running is None:
        return [("run by", "nobody")]
    rows = [("run by", f"process {running.pid} on {running.host}, since {running.since[:19]}")]
    if status.seconds_left is not None and status.paused is None:
        rows.append(("rate", f"{plain(running.rows_per_s)} rows a second; {duration(status.seconds_left)} left"))
    return rows


def _next(state: State) -> Rows:
    """Return the commands that lead on, a row for each."""
    if state is State.VERIFIED:
        return WITHOUT_GATE
    first, *others = next_verbs(state) or ("",)
    if not first:
        return [("next", "nothing; a new migration may begin")]
    return [("next", f"vecferry migrate {first}"), *(("or", f"vecferry migrate {verb}") for verb in others)]


def _detail(event: Event) -> str:
    """Say of rows that were left for later how many writes, and who was writing them; of rows that left, which."""
    if event.what == LEFT_THE_PART:
        return f": {', '.join(event.detail['keys'])}"
    if event.what != "left for later":
        return ""
    return f": {event.detail['writes']} writes; in the way: {event.detail['in the way'] or 'not known'}"


def check_rows(report: VerifyReport) -> Rows:
    """Return a row for each check; those of the gate come last."""
    checks = (*report.checks, *(report.gate.checks if report.gate else ()))
    return [(_mark(check), check.name, "; ".join(filter(None, (check.seen, check.warning)))) for check in checks]


def _mark(check: Check) -> str:
    """Return the sign of a check; one that passed with a warning has no tick."""
    return "✗" if not check.passed else "!" if check.warning else "✓"


def verdict_rows(report: VerifyReport) -> Rows:
    """Return what the gate said, and what to type next."""
    return [*verdict_facts(report), *_after_verify(report)]


def verdict_facts(report: VerifyReport) -> Rows:
    """Return what the gate said, and the state that it leaves."""
    return [*precision_rows(report.precisions), *_gate(report.to_dict()), ("state", report.state)]


def _after_verify(report: VerifyReport) -> Rows:
    """Return the commands that lead on; a check that failed is repaired by a `start`."""
    if report.state is State.CATCHING_UP:
        return [("next", "vecferry migrate start"), ("then", "vecferry migrate verify")]
    if report.state is State.SERVING_NEW and not report.passed:
        repair = [("or", "vecferry migrate start"), ("then", "vecferry migrate verify")]
        return [("next", "vecferry migrate rollback"), *repair]
    return _next(report.state)


def cutover_rows(report: CutoverReport) -> Rows:
    """Return what serves now, what the switch cost, and what to type next."""
    return [*cutover_facts(report), *AFTER_CUTOVER]


def cutover_facts(report: CutoverReport) -> Rows:
    """Return what serves now, and what the switch cost."""
    return [
        ("column", report.target),
        *_serving(report.serving),
        ("rows without a vector", f"{report.dead_letters:,}, as accepted"),
        ("writers waited", f"{1000 * report.seconds:.0f} ms"),
    ]


def rollback_rows(report: RollbackReport) -> Rows:
    """Return what serves again, and what the way back cost."""
    return [
        ("column", report.target),
        *_serving(report.serving),
        ("rows with an old vector of a former text", f"{report.outdated_rows:,}"),
        ("rows that the old model cannot embed", f"{report.dead_letters:,}"),
        ("writers waited", f"{1000 * report.seconds:.0f} ms"),
        *_next(report.state),
    ]


def _serving(serving: Serving | None) -> list[tuple[str, str]]:
    """Return the serving epoch, with its thresholds where it has any."""
    if serving is None:
        return [("serving", "not recorded")]
    space = short(serving.fingerprint) or "not known"
    rows = [("serving", f"epoch {serving.epoch}, generation {serving.generation}, vector space {space}")]
    return [*rows, ("its thresholds", plain(serving.thresholds))] if serving.thresholds else rows


def _verification(stored: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the last verification as it is stored, and the gate's verdict."""
    if stored is None:
        return [("last verification", "none")]
    checks_passed = all(check["passed"] for check in stored["checks"])
    return [("last verification", "passed" if checks_passed else "failed"), *_gate(stored)]


def _gate(verification: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the gate, of a verification as it is stored."""
    gate, override = verification.get("gate"), verification.get("override")
    rows = [("gate", "not asked")]
    if gate is not None:
        rows = [
            ("gate", f"{'passed' if gate['passed'] else 'not passed'}: {gate['message']}"),
            ("judged by", gate["evidence"]),
            *((f"threshold {name}", _mapped(each)) for name, each in gate["thresholds"].items()),
        ]
    if override is not None:
        rows.append(("gate overridden", f"{override['reason']} ({override['by']}, {override['at'][:19]})"))
    return rows


def _mapped(threshold: Mapping[str, Any]) -> str:
    """Write a threshold in both spaces, with its interval."""
    old, new, low, high = (f"{threshold[name]:.3f}" for name in ("old", "new", "low", "high"))
    return f"{old} → {new} ({low}–{high}), by {threshold['method']}"


def duration(seconds: float) -> str:
    """Write seconds as H:MM:SS."""
    return "under a second" if seconds < 1 else str(timedelta(seconds=round(seconds)))
