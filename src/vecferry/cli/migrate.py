"""vecferry migrate: the verbs of a migration, on a table of PostgreSQL or a collection of another store."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from vecferry.cli.migrate_target import Target, on_target
from vecferry.cli.migrate_view import check_rows, cutover_rows, plan_rows, rollback_rows, status_rows, verdict_rows
from vecferry.cli.options import option
from vecferry.cli.output import (
    Json,
    answered_interrupt,
    counting,
    errors,
    output,
    show,
    show_table,
    stages,
    table_of,
)
from vecferry.errors import CutoverRefused, VerificationFailed
from vecferry.migrate import Migration, MigrationOptions, Plan, Resources, State, Status, VerifyReport
from vecferry.migrate.config import EngineConfig, LimitsConfig, ModelsConfig, VerifyConfig
from vecferry.migrate.planning import SAMPLE_S
from vecferry.stores.values import Patience

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Move the vectors of a table or collection to another model: plan, start, verify, cutover; rollback until
    finalize.

    Each verb can be repeated; `start` is also how a stopped run is resumed. What is the same for all of them is
    said in a file: migration.toml in this folder, which `vecferry init` writes, or the one that --config names.""",
)

NewModel = Annotated[Path | None, option(ModelsConfig, "new", "--new-model", note="Default: ONNX_MODEL_PATH.")]
OldModel = Annotated[Path | None, option(ModelsConfig, "old", "--old-model")]
Sample = Annotated[int | None, option(VerifyConfig, "sample")]
Outputs = Annotated[str | None, option(ModelsConfig, "outputs")]
Accepted = Annotated[int, typer.Option(help="Go on though exactly this many rows have no new vector.", min=0)]
Workers = Annotated[int | None, option(EngineConfig, "workers")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Go on trying, instead of giving up after a time, until it is done or Ctrl-C.")
]
MaxPause = Annotated[float | None, option(LimitsConfig, "max_pause_s")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
OverrideGate = Annotated[
    str | None, typer.Option("--override", help="Go on though the gate does not pass; the reason is recorded.")
]
AcceptDependents = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="What stands on the vectors and may be left on the old ones; repeat it."),
]
AcceptUnconfirmed = Annotated[str | None, option(MigrationOptions, "accept_unconfirmed")]
WAIT_POLL_S = 0.5


@app.command()
@on_target
def plan(
    target: Target,
    new_model: NewModel = None,
    old_model: OldModel = None,
    outputs: Outputs = None,
    sample: Sample = None,
    workers: Workers = None,
    write_rows_per_s: Annotated[float, option(Resources, "write_rows_per_s", note=" ")] = Resources.write_rows_per_s,
    price_per_hour: Annotated[float | None, option(Resources, "price_per_hour")] = None,
    as_json: Json = False,
) -> None:
    """Say what a migration would do, take and need, and how it is undone. Writes nothing."""
    target = target.with_models(new_model, old_model, outputs)
    resources = Resources(workers or target.config.engine.workers, write_rows_per_s, price_per_hour)
    with target.migration() as migration, stages() as stage:
        result = planned(target, migration, sample, resources, stage)
    target.show(result.to_dict(), plan_rows(result), title="plan; nothing was written", as_json=as_json)


def planned(
    target: Target, migration: Migration, sample: int | None, resources: Resources, stage: Callable[[str], None]
) -> Plan:
    """Plan a migration. A sample that was asked for is encoded however long it takes, else as much as time allows."""
    rows, sample_s = (target.config.verify.sample, SAMPLE_S) if sample is None else (sample, math.inf)
    return migration.plan(rows, resources, gate_check=target.gate_check, sample_s=sample_s, stage=stage)


@app.command()
@on_target
def start(
    target: Target,
    new_model: NewModel = None,
    old_model: OldModel = None,
    outputs: Outputs = None,
    rows_per_range: Annotated[int | None, option(LimitsConfig, "rows_per_range")] = None,
    rows_per_s: Annotated[float | None, option(LimitsConfig, "rows_per_s")] = None,
    old_fingerprint: Annotated[str | None, typer.Option(help="The old vectors' space, if known.")] = None,
    accept_unconfirmed: AcceptUnconfirmed = None,
    accept_dependent: AcceptDependents = None,
    engine: Annotated[str | None, option(EngineConfig, "kind", "--engine")] = None,
    workers: Workers = None,
    ray_address: Annotated[str | None, option(EngineConfig, "address", "--ray-address")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay, and keep both sides current until finalize or Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Encode every row into a new side, and capture writes. Resumes where a stopped run ended; later, it catches up."""
    target = target.with_models(new_model, old_model, outputs)
    values: dict[str, object] = {"limits.rows_per_range": rows_per_range, "limits.rows_per_s": rows_per_s}
    values |= {"engine.kind": engine, "engine.workers": workers, "engine.address": ray_address}
    target = target.merged(values)
    until = (lambda: False) if follow else None
    said = {
        "old_fingerprint": old_fingerprint,
        "accept_unconfirmed": accept_unconfirmed,
        "accept_dependents": tuple(accept_dependent or ()),
    }
    with (
        answered_interrupt("stopping after this range; the same command goes on"),
        target.migration(**said) as migration,
        stages() as stage,
        counting("rows", "rows") as progress,
    ):
        engine_for, gate_check = target.engine(), target.gate_check
        status = migration.start(progress, follow=until, engine=engine_for, gate_check=gate_check, stage=stage)
    target.show(status.to_dict(), status_rows(status), title="the new vectors are there", as_json=as_json)


@app.command()
@on_target
def status(
    target: Target,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Say how far it is; also while it runs, from another terminal."""
    with target.migration() as migration:
        if watch and output.is_terminal:
            _watch(target, migration)
        _show_status(target, migration.status(), as_json=as_json)


def _watch(target: Target, migration: Migration) -> None:
    """Show the status anew every second, until the migration is finalized."""
    with Live(console=output, auto_refresh=False, transient=True) as live:
        while (status := migration.status()).state != State.FINALIZED:
            rows = target.command_line.completed_rows(status_rows(status))
            live.update(table_of("status", ("", ""), rows), refresh=True)
            time.sleep(1)


def _show_status(target: Target, status: Status, *, as_json: bool) -> None:
    """Print a status as rows or as JSON."""
    target.show(status.to_dict(), status_rows(status), title="status", as_json=as_json)


@app.command()
@on_target
def pause(
    target: Target,
    reason: Annotated[str, typer.Option(help="Shown by status.")] = "by the operator",
    as_json: Json = False,
) -> None:
    """Let whoever runs the migration write nothing until resume. Writes of the application go on being captured."""
    with target.migration() as migration:
        _show_status(target, migration.pause(reason), as_json=as_json)


@app.command()
@on_target
def resume(target: Target, as_json: Json = False) -> None:
    """End a pause."""
    with target.migration() as migration:
        _show_status(target, migration.resume(), as_json=as_json)


@app.command()
@on_target
def throttle(
    target: Target,
    rows_per_s: Annotated[float | None, typer.Argument(help="Above 0. Leave it out for no limit.")] = None,
    as_json: Json = False,
) -> None:
    """Limit the rows written per second, from now on, also of a run that is under way."""
    with target.migration() as migration:
        _show_status(target, migration.throttle(rows_per_s), as_json=as_json)


@app.command()
@on_target
def postpone(
    target: Target,
    undo: Annotated[bool, typer.Option("--undo", help="Allow the switch again.")] = False,
    as_json: Json = False,
) -> None:
    """Refuse every cutover until this is taken back with --undo; both sides go on being followed."""
    with target.migration() as migration:
        _show_status(target, migration.postpone(postponed=not undo), as_json=as_json)


@app.command()
@on_target
def verify(
    target: Target,
    new_model: NewModel = None,
    old_model: OldModel = None,
    sample: Sample = None,
    override_gate: OverrideGate = None,
    as_json: Json = False,
) -> None:
    """Check the new vectors: all there, finite, of today's texts; a sample anew; the index; and the quality gate.

    Also after the switch, before `finalize`: then it leaves a report alone.
    """
    target = target.with_models(new_model, old_model)
    with target.migration() as migration:
        report = verified(target, migration, sample, override_gate)
    if not as_json:
        show_table("verification", ("", "check", "seen"), check_rows(report))
    target.show(report.to_dict(), verdict_rows(report), title="verdict", as_json=as_json)
    if not report.passed:
        raise typer.Exit(VerificationFailed.exit_code)


def verified(target: Target, migration: Migration, sample: int | None, override: str | None) -> VerifyReport:
    """Verify a migration, with the gate of the file, and show meanwhile what is being done."""
    from vecferry.migrate.gate import make_gate

    with stages() as stage:
        gate = make_gate(target.config, old=target.old, new=target.new, stage=stage)
        stage("comparing every row")
        return migration.verify(sample or target.config.verify.sample, gate=gate, override=override)


@app.command()
@on_target
def override(
    target: Target,
    reason: Annotated[str, typer.Option(help="Why it is to be switched all the same; recorded with your name.")],
    as_json: Json = False,
) -> None:
    """Let a cutover be possible though the gate did not pass; until the next verify."""
    with target.migration() as migration:
        _show_status(target, migration.override(reason), as_json=as_json)


@app.command()
@on_target
def retry(target: Target, new_model: NewModel = None, old_model: OldModel = None, as_json: Json = False) -> None:
    """Encode the dead letters again."""
    target = target.with_models(new_model, old_model)
    with target.migration() as migration:
        _show_status(target, migration.retry(), as_json=as_json)


@app.command()
@on_target
def cutover(
    target: Target,
    accept_dead_letters: Accepted = 0,
    wait: Wait = False,
    max_pause_s: MaxPause = None,
    new_model: NewModel = None,
    as_json: Json = False,
) -> None:
    """Switch to the new vectors, in one step. The old ones stay, and stay current, until finalize.

    With --wait also until it is ready, and not postponed.
    """
    target = target.with_models(new_model)
    with target.migration() as migration:
        if wait:
            _await_ready(migration)
        with _patience(migration.options.patience, wait=wait, max_pause_s=max_pause_s) as patience:
            report = migration.cutover(accept_dead_letters, patience=patience)
    target.show(report.to_dict(), cutover_rows(report), title="the new vectors serve", as_json=as_json)


def _await_ready(migration: Migration) -> None:
    """Wait until a cutover is possible. Raises CutoverRefused where there is nothing to wait for."""
    with errors.status("waiting until it is ready"):
        while (status := migration.status()).state != State.READY or status.control.postponed:
            if status.state in (State.SERVING_NEW, State.FINALIZED):
                raise CutoverRefused(f"the state is {status.state}", "Nothing to do: the new vectors serve.")
            time.sleep(WAIT_POLL_S)


@contextmanager
def _patience(configured: Patience, *, wait: bool, max_pause_s: float | None) -> Iterator[Patience]:
    """Yield the patience of the options, with what is in the way shown meanwhile."""
    with stages() as stage:
        yield replace(
            configured,
            max_pause_s=max_pause_s or configured.max_pause_s,
            wait_s=None if wait else configured.wait_s,
            notify=stage,
        )


@app.command()
@on_target
def rollback(
    target: Target,
    accept_outdated: Annotated[
        bool, typer.Option("--accept-outdated", help="Even if rows written since the switch have no old vector yet.")
    ] = False,
    wait: Wait = False,
    max_pause_s: MaxPause = None,
    old_model: OldModel = None,
    as_json: Json = False,
) -> None:
    """Switch back to the old vectors, in one step, those of rows written since the switch included."""
    target = target.with_models(None, old_model)
    with target.migration() as migration:
        surer = migration.options.patience.surer()
        with _patience(surer, wait=wait, max_pause_s=max_pause_s) as patience:
            report = migration.rollback(accept_outdated=accept_outdated, patience=patience)
    target.show(report.to_dict(), rollback_rows(report), title="the old vectors serve", as_json=as_json)


@app.command()
@on_target
def finalize(
    target: Target,
    yes: Yes = False,
    accept_dead_letters: Accepted = 0,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="PostgreSQL: put the new vectors where the old ones stood among the columns. Writes the table anew"
            " while nobody else uses it; give --max-pause-s as long as that may take.",
        ),
    ] = False,
    wait: Wait = False,
    max_pause_s: MaxPause = None,
    new_model: NewModel = None,
    as_json: Json = False,
) -> None:
    """Drop the old vectors. This cannot be undone."""
    target = target.with_models(new_model)
    with target.migration() as migration:
        was_finalized = migration.ended() is State.FINALIZED
        if not was_finalized:
            migration.require("finalize")
            target.confirm("finalize", migration.effect_of_finalize(in_place=in_place), yes=yes)
        with _patience(migration.options.patience, wait=wait, max_pause_s=max_pause_s) as patience:
            status = migration.finalize(
                confirmed=True, accept_dead_letters=accept_dead_letters, in_place=in_place, patience=patience
            )
    title = "the old vectors were dropped before" if was_finalized else "the old vectors are gone"
    target.show(status.to_dict(), status_rows(status), title=title, as_json=as_json)


@app.command()
@on_target
def abort(
    target: Target,
    yes: Yes = False,
    accept_dead_letters: Accepted = 0,
    accept_outdated: Annotated[
        bool, typer.Option("--accept-outdated", help="Even if rows have no old vector of their text.")
    ] = False,
    wait: Wait = False,
    max_pause_s: MaxPause = None,
    old_model: OldModel = None,
    as_json: Json = False,
) -> None:
    """Give the migration up, before the switch or after a rollback. The vectors that serve are not touched."""
    target = target.with_models(None, old_model)
    with target.migration() as migration:
        was_aborted = migration.ended() is State.ABORTED
        if not was_aborted:
            migration.require("abort")
            target.confirm("abort", f"drops the new vectors of {target.config.target_name}", yes=yes)
        with _patience(migration.options.patience, wait=wait, max_pause_s=max_pause_s) as patience:
            record = migration.abort(accept_dead_letters, accept_outdated=accept_outdated, patience=patience)
    value = {"target": record.spec.target, "state": record.state}
    title = "the migration was given up before" if was_aborted else "the migration is given up"
    show(value, as_json=as_json, title=title)


@app.command()
@on_target
def forget(target: Target, yes: Yes = False, as_json: Json = False) -> None:
    """Remove what migrations keep for all tables of the database, once every one has ended. Vectors are not touched.

    That is the schema named vecferry, with the history of its migrations; in other stores the control database.
    """
    with target.migration() as migration:
        target.confirm("forget", "removes the history of all migrations of this database", yes=yes)
        number = migration.forget()
    show({"migrations": number}, as_json=as_json, title=f"{number} migrations were forgotten")
