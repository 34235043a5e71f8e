"""Checkpoint to graph to artifact to verification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

from vecferry.artifact import FORMAT, MANIFEST, MODEL, TOKENIZER, Artifact, Manifest, file_record, write_json, writing
from vecferry.errors import MissingExtra, SourceError
from vecferry.graph import build_graph
from vecferry.model import Model, read_model
from vecferry.onnx_file import OPSET, write_graph
from vecferry.runtime.onnx import OnnxRuntime
from vecferry.sources import Checkpoint, reopen
from vecferry.spec import Overrides
from vecferry.verify import Progress, Reference, Report, verify


@dataclass(frozen=True)
class Conversion:
    """A finished conversion; report is None if verification was declined."""

    artifact: Artifact
    report: Report | None


def convert(
    checkpoint: Checkpoint,
    output: Path,
    *,
    overrides: Overrides | None = None,
    verified: bool = True,
    progress: Progress = lambda _: None,
) -> Conversion:
    """Write the artifact of a checkpoint to `output`, verified before it takes that place.

    Leaves `output` whole and new, or as it was. Repeating it is safe and gives the same bytes. Raises
    SourceError (what is wrong with the checkpoint), ArtifactWriteFailed, Locked, VerificationFailed.
    """
    progress("reading the checkpoint")
    model = read_model(checkpoint.folder, overrides)
    report = None
    with writing(output) as folder:
        artifact = _write(checkpoint, model, folder, progress)
        model.weights.release()  # the converted model is loaded next; both at once would be twice the memory
        if verified:
            report = verify(artifact, lambda: OnnxRuntime(artifact), torch_reference(lambda: model), progress)
            report.gate(output)
            artifact.write_verification(report.to_dict())
    return Conversion(Artifact(output, artifact.manifest), report)


def verify_artifact(artifact: Artifact, *, progress: Progress = lambda _: None) -> Report:
    """Verify an artifact where it lies and renew its verification.json, whatever the outcome."""

    def converted_from() -> Model:
        folder = reopen(artifact.manifest.source).folder
        return read_model(folder, Overrides.of(artifact.manifest.encoder))

    report = verify(artifact, lambda: OnnxRuntime(artifact), torch_reference(converted_from), progress)
    artifact.write_verification(report.to_dict())
    return report


def _write(checkpoint: Checkpoint, model: Model, folder: Path, progress: Progress) -> Artifact:
    progress("writing the graph and its weights")
    graph = build_graph(model)
    files = write_graph(graph, folder)
    onnx.checker.check_model(str(folder / MODEL))
    (folder / TOKENIZER).write_bytes(model.tokenizer)
    files[TOKENIZER] = file_record(folder / TOKENIZER)
    manifest = Manifest(
        format=FORMAT,
        source=checkpoint.record(),
        encoder=model.spec,
        space=model.space,
        fingerprint=model.space.fingerprint,
        opset=OPSET,
        tools={package: version(package) for package in ("vecferry", "onnx", "numpy")},
        files=files,
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return Artifact(folder, manifest)


def torch_reference(checkpoint: Callable[[], Model]) -> Reference:
    """The PyTorch runtime over the checkpoint, where the extra is installed (else it is not read) and it is at hand."""
    try:
        from vecferry.runtime.torch import TorchRuntime

        model = checkpoint()
    except MissingExtra as exc:
        return Reference(None, f"PyTorch is not installed ({exc.hint})")
    except SourceError as exc:
        return Reference(None, f"the checkpoint is not at hand ({exc.message})")
    return Reference(lambda: TorchRuntime(model))
