"""vecferry migrate run --offline: the verbs of a migration one after the other, for an application that is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from vecferry.cli.migrate import (
    AcceptDependents,
    Accepted,
    AcceptUnconfirmed,
    NewModel,
    OldModel,
    Outputs,
    OverrideGate,
    Sample,
    Yes,
    planned,
    verified,
)
from vecferry.cli.migrate_target import Target, on_target
from vecferry.cli.migrate_view import check_rows, cutover_facts, duration, plan_facts, status_rows, verdict_facts
from vecferry.cli.output import Json, Rows, answered_interrupt, counting, show, show_table, stages
from vecferry.errors import IllegalTransition, MissingOption, VerificationFailed
from vecferry.migrate import CutoverReport, Migration, Override, Plan, Resources, State, VerifyReport
from vecferry.migrate.operator_lock import state_but_for_pause
from vecferry.migrate.record import dependents_in_the_way
from vecferry.migrate.states import ENDED, possible_verbs
from vecferry.precisions import Mark

AFTER_RUN = (
    ("to go back", "vecferry migrate rollback"),
    ("to drop the old vectors", "vecferry migrate finalize"),
)
CHECKED = frozenset({State.VERIFIED, State.READY})
"""States in which all rows have their new vector; from the others `start` makes or repairs some."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(on_target(run))


def run(
    target: Target,
    offline: Annotated[
        bool, typer.Option("--offline", help="Nobody else writes to the collection meanwhile. Required.")
    ] = False,
    yes: Yes = False,
    new_model: NewModel = None,
    old_model: OldModel = None,
    outputs: Outputs = None,
    sample: Sample = None,
    accept_unconfirmed: AcceptUnconfirmed = None,
    accept_dependent: AcceptDependents = None,
    accept_dead_letters: Accepted = 0,
    override_gate: OverrideGate = None,
    as_json: Json = False,
) -> None:
    """Do all of a migration while the application is stopped: plan, start, verify, cutover. Asks once.

    The old vectors are kept until `finalize`. Run again, it goes on from where it was stopped or refused.
    """
    if not offline:
        expected = "beside a live application the verbs are run one by one (plan, start --follow, verify, cutover)"
        raise MissingOption("--offline", expected, "--offline, if nobody writes to the collection meanwhile")
    if override_gate is not None:
        Override.for_reason(override_gate)  # a blank one is refused before anything is done
    target = target.with_models(new_model, old_model, outputs)
    accepted = {"accept_unconfirmed": accept_unconfirmed, "accept_dependents": tuple(accept_dependent or ())}
    with target.migration(**accepted) as migration:
        steps = OfflineRun(target, migration, sample, override_gate, accept_dead_letters, yes=yes, as_json=as_json)
        with steps.shown():
            steps.run()


@dataclass
class OfflineRun:
    """The steps of a migration, each shown when it is done. parts: what they returned, ready for JSON."""

    target: Target
    migration: Migration
    sample: int | None
    override: str | None
    accept_dead_letters: int
    yes: bool
    as_json: bool
    parts: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(("plan", "start", "verification", "cutover")))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Print the parts as one JSON object at the end, where that is wanted; not beside an error."""
        try:
            yield
        except typer.Exit:
            self._print()
            raise
        self._print()

    def _print(self) -> None:
        if self.as_json:
            show({**self.parts, "state": self.migration.status().state}, as_json=True)

    def run(self) -> None:
        """Go on from the present state to the switch. Raises as the verbs do; Exit if a check or the gate fails."""
        state = self._state()
        if state is State.SERVING_NEW or self._is_over():
            self._show("the new vectors serve already", status_rows(self.migration.status()))
            return
        if state is None:
            self._plan()
        else:
            work = f"goes on with the migration of {self.migration.store.target}, which is {state},"
            self.target.confirm("run", f"{work} and switches to the new vectors", yes=self.yes)
        if state not in CHECKED:
            self._start()
        if state is not State.READY:
            self._verify()
        self._cutover()

    def _state(self) -> State | None:
        """Return the state to go on from; None where no migration is open. An operator's pause is not ended here."""
        record = self.migration.store.ledger.find(self.migration.store.target)
        if record is None or State(record.state) in ENDED:
            return None
        state = state_but_for_pause("run", record)
        if state is State.PAUSED:
            raise IllegalTransition("run", state, possible_verbs(state))
        return state

    def _is_over(self) -> bool:
        """Say whether a migration to this model was finalized, and nothing is left to be done."""
        if self.migration.ended() is not State.FINALIZED:
            return False
        serving, new = self.migration.serving().fingerprint, self.target.new.space.mark()
        return serving is not None and not new.refusal(Mark.parse(serving), "passage")

    def _plan(self) -> None:
        """Show the plan and ask. What `start` refuses is left to it, without a question."""
        if self.target.config.models.old is None and self.override is None:
            example = "--old-model MODEL, [models] old to the file, or --override REASON to switch without the gate"
            raise MissingOption("--old-model", "the gate compares with the old model", example)
        resources = Resources(self.target.config.engine.workers)
        with stages() as stage:
            plan = planned(self.target, self.migration, self.sample, resources, stage)
        self.parts["plan"] = plan.to_dict()
        self._show("plan", plan_facts(plan))
        if not self._is_refused(plan):
            work = f"embeds {plan.table.rows:,} rows of {plan.target} in about {duration(plan.cost.seconds)}"
            self.target.confirm("run", f"{work} and switches to the new vectors", yes=self.yes)

    def _is_refused(self, plan: Plan) -> bool:
        is_confirmed = plan.provenance.is_confirmed or self.migration.options.accept_unconfirmed is not None
        in_the_way = dependents_in_the_way(plan.table, self.migration.options.accept_dependents)
        return bool(plan.problems or in_the_way) or not is_confirmed

    def _start(self) -> None:
        with (
            answered_interrupt("stopping after this range; the same command goes on"),
            stages() as stage,
            counting("rows", "rows") as progress,
        ):
            engine, gate_check = self.target.engine(), self.target.gate_check
            status = self.migration.start(progress, engine=engine, gate_check=gate_check, stage=stage)
        self.parts["start"] = status.to_dict()

    def _verify(self) -> None:
        report = verified(self.target, self.migration, self.sample, self.override)
        self.parts["verification"] = report.to_dict()
        if not self.as_json:
            show_table("verification", ("", "check", "seen"), check_rows(report))
        self._show("verdict", [*verdict_facts(report), *self._after(report)])
        if not report.passed:
            raise typer.Exit(VerificationFailed.exit_code)

    def _after(self, report: VerifyReport) -> Rows:
        """Return what to type where the run ends with the verification."""
        if report.passed:
            return ()
        override = ("--override", "REASON") if report.state is State.VERIFIED else ()
        return [("next", self.target.command_line.again(*override)), ("or", "vecferry migrate abort")]

    def _cutover(self) -> None:
        report: CutoverReport = self.migration.cutover(self.accept_dead_letters)
        self.parts["cutover"] = report.to_dict()
        self._show("the new vectors serve; the old ones are kept", [*cutover_facts(report), *AFTER_RUN])

    def _show(self, title: str, rows: Rows) -> None:
        if not self.as_json:
            self.target.show({}, rows, title=title, as_json=False)
