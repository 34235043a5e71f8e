"""vecferry eval: the old and the new model side by side, on judged queries, a query log, or the passages alone."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.migrate_target import Target, file_here
from vecferry.cli.options import option
from vecferry.cli.output import Json, counting, output, show, show_table, stages
from vecferry.embeddings import Outputs
from vecferry.encode.adapted import adapted
from vecferry.encode.loading import load_encoder
from vecferry.errors import MigrationError, MissingOption, SettingsError
from vecferry.evaluate import (
    Corpus,
    EvaluatedModel,
    Evaluation,
    EvaluationOptions,
    FolderCorpus,
    QuerySet,
    run_evaluation,
)
from vecferry.evaluate.corpora import Stage
from vecferry.evaluate.evaluation import GateOptions
from vecferry.evaluate.gate import slice_mark, slice_message
from vecferry.evaluate.pairs import MIN_CHARS, sentence_pairs, title_pairs
from vecferry.evaluate.qrels import read_passages
from vecferry.evaluate.questions import read_log, read_query_set
from vecferry.evaluate.values import GateResult, Interval, Passage, SliceScore, Threshold
from vecferry.migrate.beir_export import Exported, export_collection
from vecferry.migrate.config import DEFAULT_FILE, GateConfig, MigrationConfig, ModelsConfig, read_config
from vecferry.migrate.gate import options_of
from vecferry.migrate.live_evaluation import evaluation_of_store
from vecferry.settings import read_settings

PAIRS = 1000
READ = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")


@dataclass(frozen=True)
class Inputs:
    """What the options name."""

    folder: Path | None
    config: MigrationConfig | None
    new_model: Path | None
    old_model: Path | None
    queries: Path | None
    options: EvaluationOptions


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="eval")(evaluation)


def evaluation(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder in BEIR layout; queries.jsonl and qrels/test.tsv may be missing."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help=f"{DEFAULT_FILE}: asks both sides of its live collection, with its models. Default: that of this"
            " folder, if no FOLDER is given."
        ),
    ] = None,
    new_model: Annotated[
        Path | None, option(ModelsConfig, "new", "--new-model", note="Default: ONNX_MODEL_PATH.")
    ] = None,
    old_model: Annotated[Path | None, option(ModelsConfig, "old", "--old-model")] = None,
    queries: Annotated[Path | None, option(GateConfig, "queries")] = None,
    report: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="HTML file to write the report to; its figures go as JSON beside it."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the collection of --config and its queries there, in BEIR layout."),
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(help="Heads of the new model to look at. Default: all in a folder, dense in a store.")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COSINE", help="A cut-off in the old space; repeat it."),
    ] = None,
    margin: Annotated[float | None, option(GateOptions, "margin")] = None,
    confidence: Annotated[float | None, option(GateOptions, "confidence")] = None,
    max_queries: Annotated[int | None, option(EvaluationOptions, "max_queries")] = None,
    sample: Annotated[int, option(EvaluationOptions, "sample", note=" ")] = EvaluationOptions.sample,
    seed: Annotated[int, option(EvaluationOptions, "seed", note=" ")] = EvaluationOptions.seed,
    as_json: Json = False,
) -> None:
    """Compare the old and the new model: nDCG@10, recall, MRR by slice with intervals, thresholds, what changes.

    Without judged queries, a sentence is to find the passage that it stands in, or a title its text: weaker evidence,
    and named so. Exit code 4 if the new model is worse by more than the margin, or there are too few queries to tell.

    Example: vecferry eval beir/nfcorpus --old-model models/minilm --new-model models/bge-m3-onnx -o report.html
    """
    if folder is None:
        config = config or file_here()
    file = None if config is None else read_config(config)
    options = _options(
        file, outputs=outputs, thresholds=threshold, sample=sample, seed=seed,
        values={"margin": margin, "confidence": confidence, "max_queries": max_queries},
    )  # fmt: skip
    inputs = Inputs(folder, file, new_model, old_model, queries, options)
    if export is not None:
        _show_exported(_exported(inputs, export), inputs, as_json=as_json)
        return
    draw = _drawer(report)
    with stages() as stage:
        result = _evaluated(inputs, stage)
        draw(result)
    if as_json:
        show(result.to_dict(), as_json=True)
    else:
        _show(result, report)
    if result.gate.verdict != "passed":
        raise typer.Exit(MigrationError.exit_code)


# --- inputs ---------------------------------------------------------------------------------------


def _options(
    config: MigrationConfig | None, *, outputs: str | None, thresholds: Iterable[str] | None, sample: int, seed: int,
    values: dict[str, Any],
) -> EvaluationOptions:  # fmt: skip
    """Return the options' values over those of the file."""
    base = EvaluationOptions(outputs=Outputs.ALL) if config is None else options_of(config)
    changes = {name: value for name, value in values.items() if value is not None}
    if outputs is not None:
        changes["outputs"] = Outputs.parse(outputs)
    if thresholds:
        changes["thresholds"] = dict(map(_threshold, thresholds))
    return replace(base, sample=sample, seed=seed, **changes)


def _threshold(text: str) -> tuple[str, float]:
    """Return the name and the cosine of NAME=COSINE. Raises SettingsError."""
    name, _, value = text.partition("=")
    try:
        threshold = float(value)
    except ValueError:
        threshold = float("nan")
    if not name or not -1 <= threshold <= 1:
        raise SettingsError("--threshold", text, "NAME=COSINE, for instance similar=0.7")
    return name, threshold


def _drawer(report: Path | None) -> Callable[[Evaluation], None]:
    """Return what writes the report, if one is wanted. Raises MissingExtra, OutputWriteFailed before all computing."""
    if report is None:
        return lambda _: None
    from vecferry.report import check_report_path, write_report

    check_report_path(report)
    return partial(write_report, path=report)


def _evaluated(inputs: Inputs, stage: Stage) -> Evaluation:
    """Evaluate a folder, or the store that a file names. Raises MissingOption."""
    provenance = {"command": shlex.join(["vecferry", *sys.argv[1:]]), **_digests(inputs)}
    if inputs.config is not None:
        return _of_store(inputs, inputs.config, stage, provenance)
    if inputs.folder is None:
        raise MissingOption("FOLDER", "what to ask", "a folder in BEIR layout, or --config migration.toml")
    if inputs.old_model is None:
        raise MissingOption("--old-model", "the folder of the old model", "--old-model MODEL")
    new = inputs.new_model or read_settings().options().artifact
    stage("loading the models")
    queries, passages = _query_set(inputs, inputs.folder)
    corpus: Corpus = FolderCorpus(
        str(inputs.folder), passages, _model(inputs.old_model), _model(new), inputs.options.outputs, stage
    )
    return run_evaluation(corpus, queries, inputs.options, stage, provenance)


def _digests(inputs: Inputs) -> dict[str, str]:
    """Return the SHA-256 of the files that are read, by their names."""
    folders = [folder for folder in (inputs.folder, inputs.queries) if folder is not None]
    paths = [folder / name for folder in folders for name in READ] + [path for path in folders if path.is_file()]
    digests = {}
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                digests[f"sha256 of {path}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _of_store(inputs: Inputs, config: MigrationConfig, stage: Stage, provenance: dict[str, Any]) -> Evaluation:
    """Evaluate the two models on a live collection. Raises MissingOption."""
    target = Target(config)
    old = inputs.old_model or target.config.models.old
    if old is None:
        raise MissingOption("the old model", "both sides are asked", "--old-model MODEL, or [models] old to the file")
    stage("loading the models")
    as_used = _model(old)
    as_used = replace(as_used, encoder=adapted(as_used.encoder, config.old))
    models = as_used, _model(inputs.new_model or target.config.models.new)
    store = target.open_store()
    try:
        queries = inputs.queries or target.config.gate.queries
        return evaluation_of_store(store, models, queries, inputs.options, stage, provenance)
    finally:
        store.close()


def _exported(inputs: Inputs, folder: Path) -> Exported:
    """Write the live collection to a folder; no model is called. Raises MissingOption."""
    if inputs.config is None:
        raise MissingOption("--config", "the collection to be written", "--config migration.toml")
    with closing(Target(inputs.config).open_store()) as store, counting("rows", "rows") as progress:
        queries = inputs.queries or inputs.config.gate.queries
        return export_collection(store, folder, queries, inputs.options, progress)


def _query_set(inputs: Inputs, folder: Path) -> tuple[QuerySet, tuple[Passage, ...]]:
    """Return questions, and the passages to be searched for them; titles that are asked are not among these."""
    passages = read_passages(folder)
    judged = inputs.queries if inputs.queries is not None and inputs.queries.is_dir() else folder
    if (judged / "qrels").is_dir():
        return read_query_set(judged), passages
    log = read_log(inputs.queries) if inputs.queries is not None else ()
    number = inputs.options.max_queries or PAIRS
    if sum(len(passage.title) >= MIN_CHARS for passage in passages) > len(passages) / 2:
        pairs = title_pairs(passages, number, inputs.options.seed)
        return QuerySet(pairs=pairs, log=log), tuple(replace(passage, title="") for passage in passages)
    return QuerySet(pairs=sentence_pairs(passages, number, inputs.options.seed), log=log), passages


def _model(folder: Path) -> EvaluatedModel:
    """Load the model of a folder."""
    encoder = load_encoder(replace(read_settings().options(), artifact=folder)).encoder
    return EvaluatedModel.of_folder(folder, encoder, encoder.runtime.name)


# --- what is shown --------------------------------------------------------------------------------


def _show_exported(exported: Exported, inputs: Inputs, *, as_json: bool) -> None:
    """Print what was written, and the command that evaluates it."""
    assert inputs.config is not None
    old, new = inputs.old_model or inputs.config.models.old or "MODEL", inputs.new_model or inputs.config.models.new
    command = ["vecferry", "eval", exported.folder, "--old-model", str(old), "--new-model", str(new)]
    rows = [
        ("folder", exported.folder),
        ("passages", f"{exported.passages:,}"),
        *([("rows without a text", f"{exported.without_text:,}, left out")] if exported.without_text else []),
        ("queries", f"{exported.queries:,} {exported.evidence}"),
        ("judgements", f"{exported.judgements:,}"),
        ("next", shlex.join(command)),
    ]
    show(exported.to_dict(), as_json=as_json, title="the collection was written", rows=rows)


def _show(evaluation: Evaluation, report: Path | None) -> None:
    """Print slices, methods, thresholds, findings and the verdict as tables."""
    show_table(
        f"{evaluation.gate.metric} by slice, of {evaluation.queries_asked:,} {evaluation.evidence}",
        ("", "queries", evaluation.old.name, evaluation.new.name, "difference", "better", "worse", ""),
        [
            (
                score.value if score.by == score.value else f"{score.by}: {score.value}",
                f"{score.queries:,}", f"{score.old.mean:.3f}", f"{score.new.mean:.3f}", _interval(score.difference),
                f"{score.wins:,}", f"{score.losses:,}", _mark(score, evaluation.gate),
            )
            for score in evaluation.slices
        ],
    )  # fmt: skip
    metrics = list(evaluation.systems[0].metrics)
    names = {"old": evaluation.old.name, "new": evaluation.new.name}
    rows = [
        (f"{names[system.side]} {system.method}", *(f"{system.metrics[m].mean:.3f}" for m in metrics))
        for system in evaluation.systems
    ]
    show_table("by method", ("", *metrics), rows)
    if evaluation.thresholds:
        rows = [_threshold_row(threshold) for threshold in evaluation.thresholds]
        show_table("thresholds", ("", "old", "new", "interval", "by"), rows)
    show_table("", ("", ""), [(finding.name, finding.message) for finding in evaluation.findings])
    output.print(evaluation.gate.message, markup=False, highlight=False)
    if report is not None:
        output.print(f"The report is in {report}.", markup=False, highlight=False, soft_wrap=True)


def _threshold_row(threshold: Threshold) -> tuple[str, ...]:
    """Return the name, the old and the new value, the interval and the method."""
    interval = f"{threshold.low:.3f} to {threshold.high:.3f}"
    return threshold.name, f"{threshold.old:.3f}", f"{threshold.new:.3f}", interval, threshold.basis


def _mark(score: SliceScore, gate: GateResult) -> str:
    """Return a sign and the reason for a slice that fell by more than the margin; nothing for any other."""
    return f"{slice_mark(score, gate)} {slice_message(score, gate)}".strip()


def _interval(interval: Interval) -> str:
    """Write a mean with its interval, both signed."""
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
