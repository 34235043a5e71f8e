"""Commands about a model: convert, verify, encode, doctor."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from vecferry.cli.options import option
from vecferry.cli.output import Json, counting, errors, plain, short, show, show_table, stages
from vecferry.conversion.verify import ConversionCheck, Report
from vecferry.embeddings import Embeddings, Outputs
from vecferry.encode.encoder import Encoder, Role
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.encode.runtime.host import machine
from vecferry.errors import ArtifactWriteFailed, SettingsError, VecferryError, VerificationFailed
from vecferry.evaluate import LabelledSet, read_beir
from vecferry.migrate.config import EngineConfig
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.engines.model_distribution import ShippedArtifact
from vecferry.model.artifact import Override
from vecferry.model.sources import open_source
from vecferry.model.spec import Overrides
from vecferry.precisions import VERDICTS
from vecferry.settings import Settings, read_settings

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder that `vecferry convert` wrote.")]
Offline = Annotated[bool, typer.Option("--offline", help="Only what is on this machine; no download.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (convert, verify, encode, doctor):
        app.command()(command)


# --- commands -------------------------------------------------------------------------------------


def convert(
    source: Annotated[str, typer.Argument(help="A folder in Hugging Face layout, package:NAME, or a hub id.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder to write; what is there is replaced as a whole.")
    ],
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")] = None,
    offline: Offline = False,
    pooling: Annotated[str | None, typer.Option(help="cls or mean, where the checkpoint does not say.")] = None,
    normalize: Annotated[bool | None, typer.Option("--normalize/--no-normalize", help="Likewise.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    query_prefix: Annotated[str | None, typer.Option(help='Put before each query, e.g. "query: " for E5.')] = None,
    passage_prefix: Annotated[str | None, typer.Option(help="Put before each passage.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, int8 (processors), fp16 (GPUs), or auto: int8 if it is good and fast here.")
    ] = "fp32",
    labelled: Annotated[
        Path | None, typer.Option(help="A folder in BEIR layout, whose nDCG@10 int8 or fp16 must keep.")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option(help="interchangeable, 'queries only' or apart, in the place of what is measured.")
    ] = None,
    because: Annotated[str | None, typer.Option(help="Why that verdict holds; it is kept in the manifest.")] = None,
    skip_verification: Annotated[bool, typer.Option("--skip-verification", help="Not advised.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint to ONNX and verify the result. No PyTorch is needed.

    Verification compares with PyTorch too if it is installed (pip install 'vecferry[torch]').
    int8 and fp16 are held against the fp32 form, and refused with the figures if they lose too much (exit code 4). What
    is measured also says whether they may meet fp32 in one index: for queries, for passages too, or not at all.

    Example: vecferry convert BAAI/bge-m3 models/bge-m3-onnx --precision auto
    """
    from vecferry.conversion.convert import convert_checkpoint as run
    from vecferry.conversion.precision import Wanted

    if pooling not in (None, "cls", "mean"):
        raise SettingsError("--pooling", pooling, "cls or mean")
    if precision not in get_args(Wanted):
        raise SettingsError("--precision", precision, ", ".join(get_args(Wanted)))
    judged = None if labelled is None else _labelled(labelled, precision, skipped=skip_verification)
    override = _override(verdict, because, precision)
    overrides = Overrides(pooling, normalize, max_tokens, query_prefix, passage_prefix)  # type: ignore[arg-type]
    with stages() as stage:
        stage(f"opening {source}")
        checkpoint = open_source(source, revision=revision, offline=offline)
        done = run(
            checkpoint,
            out,
            overrides=overrides,
            precision=precision,  # type: ignore[arg-type]
            labelled=judged,
            override=override,
            verified=not skip_verification,
            progress=stage,
        )
    summary = {"output": str(out), **_facts(done.artifact.manifest.model_dump(mode="json"))}
    summary["verification"] = None if done.report is None else done.report.to_dict()
    show(summary, as_json=as_json, rows=[(k, plain(v)) for k, v in summary.items() if k != "verification"])
    if done.report is not None and not as_json:
        _show_report(done.report)


def verify(model: ModelFolder, as_json: Json = False) -> None:
    """Check a converted model: digests, numbers, batches, lengths, and PyTorch where it is at hand.

    The report is written to verification.json in the folder, if that can be written to. Fails with exit code 4.
    """
    from vecferry.conversion.convert import verify_artifact
    from vecferry.model.artifact import Artifact

    artifact = Artifact.open(model)
    with stages() as stage:
        report = verify_artifact(artifact, progress=stage)
    try:
        artifact.write_verification(report.to_dict())
    except ArtifactWriteFailed as exc:
        note = f"note: {exc.message} Mount {model} writable for that, or keep what --json prints."
        errors.print(note, markup=False, highlight=False, soft_wrap=True)
    if not as_json:
        _show_report(report)
        report.gate(model)
        return
    show(report.to_dict(), as_json=True)
    if report.failed:
        raise typer.Exit(VerificationFailed.exit_code)


def encode(
    model: ModelFolder,
    file: Annotated[
        str, typer.Argument(help='Lines {"id": ..., "text": ...} or plain texts; - for standard input.')
    ] = "-",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A file: .npz, .jsonl or .parquet; else JSONL to standard output."),
    ] = None,
    outputs: Annotated[str, typer.Option(help="Some of dense,sparse,colbert.")] = "dense",
    role: Annotated[str, typer.Option(help="passage or query: which of the model's prefixes to use.")] = "passage",
    cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps what was encoded, for the next time. [VECFERRY_CACHE]")
    ] = None,
    engine: Annotated[str, option(EngineConfig, "kind", "--engine", note=" ")] = EngineConfig.kind,
    workers: Annotated[int, option(EngineConfig, "workers", note=" ")] = EngineConfig.workers,
    ray_address: Annotated[str | None, option(EngineConfig, "address", "--ray-address")] = None,
    as_json: Json = False,
) -> None:
    """Encode a file of texts.

    Example: vecferry encode models/bge-m3-onnx texts.jsonl --outputs dense,sparse,colbert -o vectors.npz
    """
    from vecferry.encode import export

    if role not in ("passage", "query"):
        raise SettingsError("--role", role, "passage or query")
    settings = EngineConfig(kind=engine, address=ray_address, workers=workers)  # type: ignore[arg-type]
    export.check_target(out)
    chosen_role: Role = "query" if role == "query" else "passage"
    wanted, started = Outputs.parse(outputs), time.perf_counter()
    options = replace(read_settings().options(), artifact=model, use_onnx=True, lightweight=False)  # this and no other
    loaded = load_encoder(replace(options, cache=cache or options.cache))
    records, ids = export.Records(file), deque[str]()
    texts = _noting_ids(records, ids)
    if settings.kind == "ray":
        parts = _on_workers(settings, options, loaded.encoder, texts, wanted, chosen_role)
    else:
        parts = loaded.encoder.encode_iter(texts, outputs=wanted, role=chosen_role)
    with closing(parts), counting("encoding") as progress:
        written = export.write(out, _with_ids(ids, parts, len(records), progress))
    if out is not None:
        summary = {
            "output": str(out),
            "texts": written.texts,
            "tokens": written.tokens,
            "truncated": written.truncated,
            "fingerprint": loaded.encoder.fingerprint,
            "runtime": loaded.encoder.runtime.name,
            "seconds": round(time.perf_counter() - started, 3),
        }
        show(summary, as_json=as_json)


def doctor(as_json: Json = False) -> None:
    """Say what would run here and why: settings, runtime, vector space, versions, extras.

    Loads the model and encodes one text. Fails if none can be loaded.
    """
    settings = read_settings()
    by_alias = {str(field.alias): plain(getattr(settings, name)) for name, field in Settings.model_fields.items()}
    report: dict[str, Any] = {"machine": machine(), "settings": by_alias, "packages": _packages()}
    failure: VecferryError | None = None
    try:
        loaded = load_encoder(settings.options())
        encoder = loaded.encoder
        norm = float(np.linalg.norm(encoder.encode(["probe"]).dense[0]))
        report["active"] = {
            "runtime": encoder.runtime.name,
            "reason": loaded.reason,
            "fingerprint": encoder.fingerprint,
            "precision": encoder.space.precision,
            "dimension": encoder.dimension,
            "outputs": list(encoder.space.heads),
            "max_tokens": encoder.space.max_tokens,
            "probe_norm": norm,
            "max_batch_tokens": encoder.limits.max_batch_tokens,
            **({} if encoder.device_limits is None else encoder.device_limits.describe()),
            **encoder.runtime.describe(),
        }
    except VecferryError as exc:
        failure = exc
        report["active"] = {"runtime": None, "reason": exc.message, "hint": exc.hint}
    if as_json:
        show(report, as_json=True)
    else:
        for title, part in report.items():
            show(part, as_json=False, title=title)
    if failure is not None:
        raise typer.Exit(failure.exit_code)


# --- details --------------------------------------------------------------------------------------


def _labelled(folder: Path, precision: str, *, skipped: bool) -> LabelledSet:
    """Read the labelled set. Raises SettingsError."""
    if precision == "fp32" or skipped:
        raise SettingsError("--labelled", folder, "a narrower --precision that is verified")
    return read_beir(folder)


def _override(verdict: str | None, reason: str | None, precision: str) -> Override | None:
    """Return the verdict of the options with its reason. Raises SettingsError where one is without the other."""
    if verdict is None and reason is None:
        return None
    if verdict not in VERDICTS:
        raise SettingsError("--verdict", verdict or "", ", ".join(VERDICTS))
    if not (reason or "").strip():
        raise SettingsError("--because", reason or "", "the reason for the verdict, which is kept")
    if precision not in ("fp16", "int8"):
        raise SettingsError("--verdict", verdict, "one of --precision fp16 or int8; fp32 needs none")
    return Override(verdict=verdict, reason=str(reason))


def _on_workers(
    settings: RaySettings, options: EncoderOptions, encoder: Encoder, texts: Iterable[str], outputs: Outputs, role: Role
) -> Generator[Embeddings, None, None]:
    """Yield the embeddings of texts, encoded on Ray."""
    from vecferry.migrate.engines.distributed import encode_on_workers

    return encode_on_workers(settings, ShippedArtifact.of(options), encoder, texts, outputs=outputs, role=role)


def _noting_ids(records: Iterable[tuple[str, str]], ids: deque[str]) -> Iterator[str]:
    """Yield the texts; the ids of those that were taken are left in the queue."""
    for record_id, text in records:
        ids.append(record_id)
        yield text


def _with_ids(
    ids: deque[str], parts: Iterable[Embeddings], number_in_all: int, progress: Any
) -> Iterator[tuple[list[str], Embeddings]]:
    """Yield the parts, each with the ids of its texts; call `progress` after each."""
    done = 0
    for part in parts:
        yield [ids.popleft() for _ in range(len(part))], part
        done += len(part)
        progress(done, number_in_all)


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest says to people."""
    space, source = manifest["space"], manifest["source"]
    return {
        "source": f"{source['kind']} {source['id']}" + (f" @ {source['revision']}" if source["revision"] else ""),
        "family": manifest["encoder"]["family"],
        "dimension": space["dimension"],
        "outputs": space["heads"],
        "max_tokens": space["max_tokens"],
        "pooling": space["pooling"],
        "precision": space["precision"],
        "verdicts": space["verdicts"],
        "override": manifest["override"],
        "query_prefix": space["query_prefix"],
        "passage_prefix": space["passage_prefix"],
        "speed_over_fp32": (manifest["evidence"] or {}).get("speed_over_fp32"),
        "fingerprint": manifest["fingerprint"],
    }


def _show_report(report: Report) -> None:
    """Print a row for each question, with the worst answer of several batches; failures each on their own."""
    signs = {"passed": "✓", "failed": "✗", "skipped": "–"}
    by_question: dict[str, list[ConversionCheck]] = defaultdict(list)
    for check in report.checks:
        by_question[check.name if check.status == "failed" else check.question].append(check)
    rows = []
    for name, checks in by_question.items():
        worst = max(checks, key=lambda check: check.value or 0)
        note = worst.note or ", ".join(check.batch for check in checks if len(checks) > 1)
        rows.append((signs[worst.status], name, short(worst.value), short(worst.limit), note.replace(" tokens,", ",")))
    show_table("verification", ("", "check", "seen", "at most", ""), rows)


def _packages() -> dict[str, str]:
    """Return the versions of the packages that matter here."""
    names = (
        "vecferry",
        "onnxruntime",
        "onnx",
        "tokenizers",
        "numpy",
        "torch",
        "transformers",
        "psycopg",
        "pgvector",
        "pyarrow",
        "fastapi",
        "uvicorn",
    )
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    """Return the version of a package, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
