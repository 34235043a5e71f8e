"""A narrower form of an fp32 artifact: written, held against it, and chosen on what this processor shows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import onnx

from vecferry.conversion.calibration import calibration_texts
from vecferry.conversion.fp16 import halve
from vecferry.conversion.int8 import RECIPE, Ranges, probed, quantize, range_of
from vecferry.conversion.onnx_file import Graph, write_graph
from vecferry.conversion.pairings import Labelled, pairings
from vecferry.conversion.verify import LOSSES, ConversionCheck, Progress, Reference, Report, at_most, verify
from vecferry.embeddings import DENSE, TokenBatch
from vecferry.encode.encoder import Encoder
from vecferry.encode.runtime.host import machine
from vecferry.encode.runtime.onnx import OnnxRuntime, run_each
from vecferry.model.artifact import HIDDEN, MANIFEST, MODEL, PIECES, TOKENIZER, Artifact
from vecferry.model.files import write_json
from vecferry.model.tokens import open_tokenizer
from vecferry.precisions import Pairing, Precision, verdicts_of

Wanted = Literal["fp32", "fp16", "int8", "auto"]

PROBE, SPEED_SHAPES, REPEATS = "probe.onnx", ((1, 16), (4, 128)), 7
WORTH = 1.1
"""How much faster than fp32 int8 must be, at both shapes, to be chosen."""


@dataclass(frozen=True)
class Narrowed:
    """A narrower artifact beside its fp32 baseline. report: None where it was not to be compared; then no pairings."""

    artifact: Artifact
    report: Report | None
    pairings: tuple[Pairing, ...] = ()


def quantized(
    baseline: Artifact,
    graph: Graph,
    precision: Literal["fp16", "int8"],
    folder: Path,
    *,
    labelled: Labelled | None,
    verified: bool,
    progress: Progress,
) -> Narrowed:
    """Write the narrower form of `baseline`, whose graph is `graph`, to `folder`, and compare the two."""
    artifact = _write(baseline, graph, precision, folder, progress)
    if not verified:
        return Narrowed(artifact, None)
    reference = Reference(lambda: OnnxRuntime(baseline))
    report = verify(artifact, lambda: OnnxRuntime(artifact), reference, progress)
    progress("queries and passages in either form")
    measured = pairings(partial(_encoder, baseline), partial(_encoder, artifact), labelled)
    report = report.with_checks(*_quality_lost(measured, precision))
    return Narrowed(artifact, report, measured)


def _write(
    baseline: Artifact, graph: Graph, precision: Literal["fp16", "int8"], folder: Path, progress: Progress
) -> Artifact:
    if precision == "int8":
        progress("calibrating")
        graph = quantize(graph, calibrated(baseline))
    else:
        graph = halve(graph, HIDDEN)
    progress(f"writing the {precision} form")
    files = write_graph(graph, folder)
    for name in baseline.manifest.files.keys() & {TOKENIZER, PIECES}:
        shutil.copyfile(baseline.path / name, folder / name)
        files[name] = baseline.manifest.files[name]
    recipe = RECIPE if precision == "int8" else None
    space = baseline.manifest.space.model_copy(update={"precision": precision, "recipe": recipe})
    changes = {"space": space, "fingerprint": space.fingerprint, "files": files}
    artifact = Artifact(folder, baseline.manifest.model_copy(update=changes))
    save_manifest(artifact)
    return artifact


def save_manifest(artifact: Artifact) -> None:
    write_json(artifact.path / MANIFEST, artifact.manifest.model_dump(mode="json"))


def calibrated(baseline: Artifact) -> Ranges:
    """Return the range of each product's input over the shipped texts; each runs alone, so that no padding counts."""
    manifest, probe = baseline.manifest, baseline.path / PROBE
    onnx.save(probed(onnx.load(baseline.path / MODEL, load_external_data=False)), probe)
    texts = calibration_texts()
    tokens = open_tokenizer(baseline)(texts, manifest.space.passage_prefix)
    rows = (tokens.take(np.array([row])) for row in range(len(texts)))
    largest: dict[str, Any] = {}
    try:
        for outputs in run_each(probe, rows, manifest.encoder.pad_id):
            for name, value in outputs.items():
                if (weight := range_of(name)) is not None:
                    largest[weight] = np.maximum(largest.get(weight, 0), value)
    finally:
        probe.unlink()
    return largest


# --- comparing ------------------------------------------------------------------------------------


def _quality_lost(measured: Sequence[Pairing], precision: Precision) -> Iterator[ConversionCheck]:
    """Yield how much worse dense vectors in the narrower form find than in fp32; nothing without a labelled set."""
    for pairing in measured:
        if pairing.head == "dense" and pairing.queries == pairing.passages != "fp32" and pairing.loss is not None:
            note = f"{pairing.ndcg + pairing.loss:.4f} → {pairing.ndcg:.4f}" if pairing.ndcg is not None else ""
            yield at_most("nDCG@10 lost to fp32", pairing.loss, LOSSES[precision]["ndcg"], note=note)


def _encoder(artifact: Artifact) -> Encoder:
    return Encoder(open_tokenizer(artifact), OnnxRuntime(artifact), spec=artifact.manifest.encoder)


def speed_over(baseline: Artifact, artifact: Artifact) -> dict[str, float]:
    """Measure how many times as fast as its baseline an artifact is here, by batch × tokens.

    It is the median over interleaved runs A B A B.
    """
    runtimes = (OnnxRuntime(baseline), OnnxRuntime(artifact))
    return {
        f"{rows} × {tokens}": round(_ratio(runtimes, _batch(baseline, rows, tokens)), 3)
        for rows, tokens in SPEED_SHAPES
        if tokens <= baseline.manifest.space.max_tokens
    }


def _batch(artifact: Artifact, rows: int, tokens: int) -> TokenBatch:
    random = np.random.default_rng(0)
    ids = random.integers(artifact.manifest.encoder.pad_id + 1, artifact.manifest.encoder.vocabulary, (rows, tokens))
    return TokenBatch.from_lists(ids.tolist())


def _ratio(runtimes: tuple[OnnxRuntime, OnnxRuntime], batch: TokenBatch) -> float:
    def seconds(runtime: OnnxRuntime) -> float:
        started = time.perf_counter()
        runtime.run(batch, DENSE)
        return time.perf_counter() - started

    repeats = [tuple(map(seconds, runtimes)) for _ in range(REPEATS + 1)][1:]  # the first makes room
    return median(ours / theirs for ours, theirs in repeats)


def evidence(precision: Precision, narrowed: Narrowed, speed: dict[str, float] | None) -> dict[str, Any]:
    """Return what was measured, and on which machine, for the manifest.

    measured_key: of the form whose pairings these are. verdicts: of the form that was chosen.
    """
    checks = () if narrowed.report is None else narrowed.report.checks
    losses = {check.name: check.value for check in checks if check.value is not None}
    measured = {"chosen": precision, "losses": losses, "speed_over_fp32": speed, "machine": machine()}
    verdicts = {} if precision == "fp32" else verdicts_of(narrowed.pairings)
    pairings_of = {"measured_key": narrowed.artifact.manifest.space.key, "verdicts": verdicts}
    return measured | pairings_of | {"pairings": [each.to_dict() for each in narrowed.pairings]}
