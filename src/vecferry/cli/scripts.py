"""The two scripts that the migration guide names, convert_to_onnx.py and test_model.py."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vecferry.cli.model import Offline, convert, verify
from vecferry.cli.output import Json, output, short, show, show_table
from vecferry.encode.loading import EncoderOptions, RuntimeName, chosen_runtime, load_runtime
from vecferry.errors import ModelRuntimeError, VecferryError
from vecferry.model.sources import BGE_M3
from vecferry.settings import DEFAULT_ARTIFACT, read_settings

RUNTIMES: tuple[RuntimeName, ...] = ("onnx", "torch", "lightweight")
TEXTS = ("What is BGE M3?", "Wie spät ist es?", "你好，世界", "")


def convert_to_onnx(
    source: Annotated[str, typer.Option(help="A folder, package:NAME or hub id.")] = BGE_M3,
    out: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")] = DEFAULT_ARTIFACT,
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Check the folder; convert nothing.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Convert BGE-M3 to ./models/bge-m3-onnx/ and verify it, or verify what is there."""
    if verify_only:
        verify(out, as_json=as_json)
    else:
        convert(source, out, offline=offline, as_json=as_json)


def test_model(as_json: Json = False) -> None:
    """Load each runtime that can be loaded, encode with it, and print what was seen.

    Succeeds if the runtime that the settings choose works. Nothing is downloaded.
    """
    options = replace(read_settings().options(), offline=True)
    chosen = chosen_runtime(options)
    results = {name: _tried(options, name) for name in RUNTIMES}
    if as_json:
        show({"chosen": chosen, "runtimes": results}, as_json=True)
    else:
        _show(chosen, results)
    if results[chosen]["result"] != "works":
        raise typer.Exit(ModelRuntimeError.exit_code)


def _tried(options: EncoderOptions, name: RuntimeName) -> dict[str, Any]:
    """Try a runtime: how fast it encodes, or why it cannot."""
    try:
        encoder = load_runtime(options, name)
        encoder.encode(TEXTS)
        started = time.perf_counter()
        embeddings = encoder.encode(TEXTS)
        ms = (time.perf_counter() - started) * 1000 / len(TEXTS)
    except VecferryError as exc:
        return {"result": "not available", "why_not": exc.message, "hint": exc.hint}
    off_unit = not np.allclose(np.linalg.norm(embeddings.dense, axis=1), 1, atol=1e-4)
    if not np.isfinite(embeddings.dense).all() or (off_unit and encoder.space.normalize):
        return {"result": "wrong numbers", "why_not": "vectors are not finite, or not of unit length", "hint": ""}
    return {
        "result": "works",
        "dimension": encoder.dimension,
        "ms_per_text": round(ms, 2),
        "fingerprint": encoder.fingerprint,
    }


def _show(chosen: RuntimeName, results: dict[RuntimeName, dict[str, Any]]) -> None:
    """Print the results as a table, and below it why a runtime cannot be used."""
    keys = ("result", "dimension", "ms_per_text", "fingerprint")
    rows = [
        [f"{name} (chosen)" if name == chosen else name, *(short(result.get(key)) for key in keys)]
        for name, result in results.items()
    ]
    show_table("", ("runtime", "result", "dimension", "ms per text", "vector space"), rows)
    for name, result in results.items():
        if "why_not" in result:
            output.print(f"{name}: {result['why_not']} {result['hint']}", markup=False, highlight=False, soft_wrap=True)
