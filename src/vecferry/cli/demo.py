"""vecferry demo: the whole journey on this machine, with real texts and real models."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.output import Json, Rows, counting, show, show_table, stages

WITH_BGE_M3 = (
    "The real model makes vectors of 1,024 numbers from up to 8,192 tokens, with sparse and ColBERT vectors beside them"
    " if wanted, and computes 14 times as much for a token as the stand-in: vecferry demo --source BAAI/bge-m3"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    source: Annotated[
        str | None,
        typer.Option(help="Checkpoint of the new model: a folder or hub id, e.g. BAAI/bge-m3. Default: a stand-in."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--output", help="Where models, database and report go.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Move 1,200 real passages from all-MiniLM-L6-v2 to a multilingual model in a real PostgreSQL.

    Converts both models, loads the passages with their old vectors, migrates, switches, rolls back and
    switches again, while an application writes and asks; compares both sides question by question; writes
    report.html and report.json. The new model is by default multilingual-e5-small, a stand-in for BGE-M3 that a package
    index can deliver.
    """
    from vecferry.demo.journey import Journey

    with stages() as stage, counting("encoding", "passages") as progress:
        report = Journey(out, source, stage, progress).run()
    if as_json:
        show(report, as_json=True)
        return
    _show(report)
    show_table("", ("", ""), _leads_on(out))


def _leads_on(folder: Path) -> Rows:
    """Return what to look at, what to do with one's own data, and what the real model would do."""
    program = "vecferry" if shutil.which("vecferry") else sys.argv[0]
    return [
        ("look at", f"{folder / 'report.html'}, in a browser: what gets better and worse, question by question"),
        ("next", f"{program} init postgresql://USER@HOST/DATABASE"),
        ("", "It looks at your own vectors, writes migration.toml, and names the commands that follow."),
        ("BGE-M3", WITH_BGE_M3),
    ]


def _show(report: dict[str, Any]) -> None:
    """Print what the report says, as tables."""
    old, new = report["old"], report["new"]
    rows = [
        (language, f"{old['ndcg_at_10'][language]:.3f}", f"{value:.3f}", f"{value - old['ndcg_at_10'][language]:+.3f}")
        for language, value in new["ndcg_at_10"].items()
    ]
    show_table("nDCG@10 by language of the question", ("", old["model"], new["model"], "difference"), rows)
    show_table(
        "",
        ("", ""),
        [
            ("gate", report["gate"]),
            ("rows", report["rows"]),
            ("seconds", report["seconds"]),
            ("states", " → ".join(report["states"])),
            ("meanwhile", "{writes} writes and {searches} searches, {failed} failed".format(**report["application"])),
        ],
    )
