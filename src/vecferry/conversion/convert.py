"""Checkpoint to graph to artifact to verification."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx

from vecferry.conversion.calibration import calibration_texts, comparison_texts
from vecferry.conversion.graph import build_graph
from vecferry.conversion.onnx_file import OPSET, Graph, write_graph
from vecferry.conversion.pairings import Labelled
from vecferry.conversion.precision import (
    WORTH,
    Narrowed,
    Wanted,
    evidence,
    quantized,
    save_manifest,
    speed_over,
)
from vecferry.conversion.verify import TEXTS, Progress, Reference, Report, verify
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.errors import MissingExtra, PrecisionRefused, RuntimeUnavailable, SourceError, SourceNotFound, reason_of
from vecferry.model.artifact import (
    FORMAT,
    MODEL,
    PIECES,
    TOKENIZER,
    Artifact,
    Manifest,
    Override,
    SourceRecord,
    file_record,
    sha256_of,
    writing,
)
from vecferry.model.checkpoint import Model, read_model
from vecferry.model.pieces import MappedPieces, write_pieces
from vecferry.model.sources import Checkpoint, reopen
from vecferry.model.spec import Overrides
from vecferry.model.tokens import MappedTokenizer, Tokenizer


@dataclass(frozen=True)
class Conversion:
    """A finished conversion; report is None if verification was declined."""

    artifact: Artifact
    report: Report | None


def convert_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    *,
    overrides: Overrides | None = None,
    precision: Wanted = "fp32",
    labelled: Labelled | None = None,
    override: Override | None = None,
    verified: bool = True,
    progress: Progress = lambda _: None,
) -> Conversion:
    """Write the artifact of a checkpoint to `output`, verified before it takes that place.

    precision: fp16 and int8 are made of the fp32 form, which is verified first, and held against it. auto: int8 if it
    keeps what it must and is `precision.WORTH` times as fast as fp32 on this processor, else fp32.
    labelled: judged questions, of whose nDCG@10 the narrower form must lose little; it needs `verified`, and decides
    with the shipped texts with what the form may meet (docs/decisions/0042). override: another verdict, and
    why.
    Leaves `output` whole and new, or as it was. Repeating it is safe and gives the same model. Raises SourceError
    (what is wrong with the checkpoint), ArtifactWriteFailed, Locked, VerificationFailed, PrecisionRefused.
    """
    progress("reading the checkpoint")
    model = read_model(checkpoint.folder, overrides)
    with writing(output) as folder:
        graph = build_graph(model)
        progress("writing the graph and its weights")
        artifact = _write(folder, model, graph, checkpoint.record())
        model.weights.release()  # the converted model is loaded next; both at once would be twice the memory
        report = None
        if verified:
            report = verify(artifact, lambda: OnnxRuntime(artifact), torch_reference(lambda: model), progress)
            report.gate(output)
        if precision != "fp32":
            with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as beside:
                steps = _Narrowing(artifact, graph, Path(beside), labelled, override, verified, progress)
                artifact, report = steps.chosen(report) if precision == "auto" else steps.only(precision, report)
        if report is not None:
            artifact.write_verification(report.to_dict())
    return Conversion(Artifact(output, artifact.manifest), report)


@dataclass(frozen=True)
class _Narrowing:
    """An fp32 artifact in its place, and a folder beside for its narrower form."""

    baseline: Artifact
    graph: Graph
    beside: Path
    labelled: Labelled | None
    override: Override | None
    verified: bool
    progress: Progress

    def only(self, precision: Literal["fp16", "int8"], report: Report | None) -> tuple[Artifact, Report | None]:
        """Put the narrower form in the fp32 baseline's place. Raises PrecisionRefused, with what it would lose."""
        narrowed = self._narrowed(precision)
        if narrowed.report is not None and narrowed.report.failed:
            raise PrecisionRefused(precision, narrowed.report.failed)
        return self._taken(narrowed, report, None)

    def chosen(self, report: Report | None) -> tuple[Artifact, Report | None]:
        narrowed = self._narrowed("int8")
        self.progress("measuring int8 against fp32 on this processor")
        speed = speed_over(self.baseline, narrowed.artifact)
        refused = narrowed.report is not None and narrowed.report.failed
        if not refused and min(speed.values()) >= WORTH:
            return self._taken(narrowed, report, speed)
        measured = evidence("fp32", narrowed, speed)
        artifact = replace(self.baseline, manifest=self.baseline.manifest.model_copy(update={"evidence": measured}))
        save_manifest(artifact)
        return artifact, report

    def _narrowed(self, precision: Literal["fp16", "int8"]) -> Narrowed:
        return quantized(
            self.baseline,
            self.graph,
            precision,
            self.beside,
            labelled=self.labelled,
            verified=self.verified,
            progress=self.progress,
        )

    def _taken(
        self, narrowed: Narrowed, report: Report | None, speed: dict[str, float] | None
    ) -> tuple[Artifact, Report | None]:
        """Move the narrower form to where its baseline was; the baseline's checks stay in the report."""
        space = narrowed.artifact.manifest.space
        measured = evidence(space.precision, narrowed, speed)
        overridden = None if self.override is None else dict.fromkeys(space.heads, self.override.verdict)
        space = space.model_copy(update={"verdicts": overridden or measured["verdicts"]})
        changes = {"space": space, "evidence": measured, "override": self.override}
        manifest = narrowed.artifact.manifest.model_copy(update=changes)
        for file in self.baseline.path.iterdir():
            file.unlink()
        for file in self.beside.iterdir():
            file.rename(self.baseline.path / file.name)
        artifact = Artifact(self.baseline.path, manifest)
        save_manifest(artifact)
        if narrowed.report is None or report is None:
            return artifact, narrowed.report
        before = [replace(check, question=f"fp32 form: {check.question}") for check in report.checks]
        return artifact, narrowed.report.with_checks(*before)


def verify_artifact(artifact: Artifact, *, progress: Progress = lambda _: None) -> Report:
    """Verify an artifact where it lies; its verification.json is the caller's to renew, whatever the outcome.

    One of a narrower precision is held against an fp32 form that is made of its checkpoint for this, in a
    temporary folder; where there is none, that check is skipped.
    """

    def converted_from() -> Model:
        try:
            folder = reopen(artifact.manifest.source).folder
            return read_model(folder, Overrides.of(artifact.manifest.encoder))
        except OSError as exc:  # a folder that this user may not look into
            raise SourceNotFound(artifact.manifest.source.id, reason_of(exc)) from exc

    with ExitStack() as stack:
        if artifact.manifest.space.precision == "fp32":
            reference = torch_reference(converted_from)
        else:
            try:
                beside = stack.enter_context(TemporaryDirectory(prefix="vecferry-fp32-"))
                reference = _fp32_reference(converted_from, Path(beside))
            except OSError as exc:
                reason = f"there is no temporary folder ({reason_of(exc)}): mount one, and name it in TMPDIR"
                reference = Reference(None, reason)
        return verify(artifact, lambda: OnnxRuntime(artifact), reference, progress)


def _write(folder: Path, model: Model, graph: Graph, source: SourceRecord) -> Artifact:
    """Write the fp32 artifact."""
    files = write_graph(graph, folder)
    onnx.checker.check_model(str(folder / MODEL))
    (folder / TOKENIZER).write_bytes(model.tokenizer)
    files[TOKENIZER] = file_record(folder / TOKENIZER)
    if _write_pieces(folder / PIECES, model):
        files[PIECES] = file_record(folder / PIECES)
    manifest = Manifest(
        format=FORMAT,
        source=source,
        encoder=model.spec,
        space=model.space,
        fingerprint=model.space.fingerprint,
        opset=OPSET,
        tools={package: version(package) for package in ("vecferry", "onnx", "numpy")},
        files=files,
    )
    artifact = Artifact(folder, manifest)
    save_manifest(artifact)
    return artifact


def _write_pieces(path: Path, model: Model) -> bool:
    """Write the mapped form of the tokenizer's vocabulary if there is one, and it has the same ids for every text."""
    tokenizer = Tokenizer(model.tokenizer, model.space.max_tokens)
    if not write_pieces(path, model.tokenizer, tokenizer.around):
        return False
    mapped = MappedTokenizer(MappedPieces(path, sha256_of(path)), lambda: model.tokenizer, model.space.max_tokens)
    texts = [*TEXTS, *comparison_texts(), *calibration_texts()]
    is_same = np.array_equal(mapped(texts).ids, tokenizer(texts).ids) and mapped.special_ids == tokenizer.special_ids
    if not is_same:
        path.unlink()
    return is_same


def _fp32_reference(checkpoint: Callable[[], Model], folder: Path) -> Reference:
    """Return the fp32 form of the checkpoint, if that is at hand; written to `folder` when it is opened."""
    try:
        model = checkpoint()
    except (SourceError, RuntimeUnavailable) as exc:
        return Reference(None, f"the checkpoint is not at hand ({exc.message})")

    def written() -> OnnxRuntime:
        source = SourceRecord(kind="folder", id=str(folder), revision=None, files={})
        return OnnxRuntime(_write(folder, model, build_graph(model), source))

    return Reference(written)


def torch_reference(checkpoint: Callable[[], Model]) -> Reference:
    """Return the checkpoint in PyTorch, read by others, if the extra is installed and the checkpoint is at hand."""
    try:
        from vecferry.encode.runtime.torch_reference import open_reference, reference_ids

        model = checkpoint()
    except MissingExtra as exc:
        return Reference(None, f"PyTorch is not installed ({exc.hint})")
    except (SourceError, RuntimeUnavailable) as exc:
        return Reference(None, f"the checkpoint is not at hand ({exc.message})")
    return Reference(partial(open_reference, model), token_ids=partial(reference_ids, model))
