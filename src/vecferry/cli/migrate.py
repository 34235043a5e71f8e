"""vecferry migrate: the verbs of a migration, on a table of PostgreSQL with pgvector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vecferry.cli.migrate_view import cutover_rows, plan_rows, rollback_rows, status_rows
from vecferry.cli.output import Json, counting, output, show, show_table
from vecferry.encoder import Encoder
from vecferry.errors import FinalizeNotConfirmed, SettingsError
from vecferry.loading import load_encoder
from vecferry.migrate import Migration, MigrationOptions
from vecferry.settings import read_settings

app = typer.Typer(
    no_args_is_help=True,
    help="""Move the vectors of a table to another model: plan, start, verify, cutover; rollback until finalize.

    Each verb can be repeated; `start` is also how a stopped run is resumed.""",
)

Database = Annotated[
    str | None,
    typer.Option(help="postgresql://...; or VECFERRY_DATABASE_URL, which keeps the password out of the process list."),
]
Table = Annotated[str, typer.Option(help="The table, schema.table if need be.")]
Text = Annotated[str, typer.Option("--text-column", help="The column with the texts.")]
Vector = Annotated[str, typer.Option("--vector-column", help="The column with the old vectors.")]
ArtifactPath = Annotated[Path | None, typer.Option("--artifact", help="The new model. Default: ONNX_MODEL_PATH.")]
Sample = Annotated[int, typer.Option(help="Rows to encode for the check or the estimate.", min=1)]
RowsEach = Annotated[int, typer.Option("--rows-per-range", help="Rows encoded and committed at a time.", min=1)]
Accepted = Annotated[int, typer.Option(help="Switch though exactly this many rows have no new vector.", min=0)]


@app.command()
def plan(
    table: Table, database: Database = None, text: Text = "text", vector: Vector = "embedding",
    artifact: ArtifactPath = None, sample: Sample = 100, as_json: Json = False,
) -> None:  # fmt: skip
    """Say what a migration would do, take and need. Writes nothing."""
    encoder = _encoder(artifact)
    with _migration(database, table, text, vector) as migration:
        found = migration.plan(encoder, sample=sample)
    show(found.to_dict(), as_json=as_json, title="plan; nothing was written", rows=plan_rows(found))


@app.command()
def start(
    table: Table, database: Database = None, text: Text = "text", vector: Vector = "embedding",
    artifact: ArtifactPath = None,
    rows_each: RowsEach = MigrationOptions.rows_per_range,
    old_fingerprint: Annotated[str | None, typer.Option(help="The old vectors' space, if known.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Encode every row into a new column. Resumes where a stopped run ended; again later, it catches up."""
    encoder = _encoder(artifact)
    options = MigrationOptions(rows_per_range=rows_each, old_fingerprint=old_fingerprint)
    with _migration(database, table, text, vector, options) as migration, counting("rows", "rows") as progress:
        found = migration.start(encoder, progress=progress)
    show(found.to_dict(), as_json=as_json, title="the new vectors are there", rows=status_rows(found))


@app.command()
def status(
    table: Table, database: Database = None, text: Text = "text", vector: Vector = "embedding", as_json: Json = False
) -> None:
    """Say how far it is; also while it runs, from another terminal."""
    with _migration(database, table, text, vector) as migration:
        found = migration.status()
    show(found.to_dict(), as_json=as_json, title="status", rows=status_rows(found))


@app.command()
def verify(
    table: Table, database: Database = None, text: Text = "text", vector: Vector = "embedding",
    artifact: ArtifactPath = None, sample: Sample = 100, as_json: Json = False,
) -> None:  # fmt: skip
    """Check the new vectors: all there, finite, unit length, of today's texts; a sample is encoded anew."""
    encoder = _encoder(artifact)
    with _migration(database, table, text, vector) as migration:
        report = migration.verify(encoder, sample=sample)
    value = report.to_dict()
    if as_json:
        show(value, as_json=True)
    else:
        show_table(
            "verification",
            ("", "check", "seen"),
            [("✓" if c["passed"] else "✗", c["name"], c["seen"]) for c in value["checks"]],
        )
    if not report.passed:
        raise typer.Exit(4)


@app.command()
def cutover(
    table: Table, database: Database = None, text: Text = "text", vector: Vector = "embedding",
    accept_dead_letters: Accepted = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Switch to the new vectors, in one transaction. The old ones stay until finalize."""
    with _migration(database, table, text, vector) as migration:
        report = migration.cutover(accept_dead_letters=accept_dead_letters)
    show(report.to_dict(), as_json=as_json, title="the new vectors serve", rows=cutover_rows(report))


@app.command()
def rollback(
    table: Table, database: Database = None, text: Text = "text", vector: Vector = "embedding", as_json: Json = False
) -> None:
    """Switch back to the old vectors, in one transaction. Says which rows were written since the switch."""
    with _migration(database, table, text, vector) as migration:
        report = migration.rollback()
    show(report.to_dict(), as_json=as_json, title="the old vectors serve", rows=rollback_rows(report))


@app.command()
def finalize(
    table: Table, database: Database = None, text: Text = "text", vector: Vector = "embedding",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Drop the old vectors. This cannot be undone."""
    if not yes and not (
        output.is_terminal and typer.confirm(f"Drop the old vectors of {table}? This cannot be undone.")
    ):
        raise FinalizeNotConfirmed
    with _migration(database, table, text, vector) as migration:
        found = migration.finalize(confirmed=True)
    show(found.to_dict(), as_json=as_json, title="the old vectors are gone", rows=status_rows(found))


@contextmanager
def _migration(
    database: str | None, table: str, text: str, vector: str, options: MigrationOptions | None = None
) -> Iterator[Migration]:
    from vecferry.stores.pgvector import PgVectorStore

    set_here = read_settings().database_url
    url = database or (set_here.get_secret_value() if set_here else None)
    if url is None:
        raise SettingsError("VECFERRY_DATABASE_URL", "", "postgresql://user:password@host/database, or --database")
    with PgVectorStore.connect(url, table, text, vector) as store:
        yield Migration(store, options or MigrationOptions())


def _encoder(artifact: Path | None) -> Encoder:
    """The new model; a fallback keeps its vector space or is refused, and lightweight is as the settings say."""
    options = read_settings().options()
    return load_encoder(options if artifact is None else replace(options, artifact=artifact)).encoder
