"""ONNX Runtime against PyTorch (transformers, SDPA), side by side.

    python -m bench.speed [--layers 6] [--runs 7] [--threads N]

BGE-M3's shape with seeded random weights, cut to some layers; dense output, fp32, equal threads. The
two take turns, A B A B; what is printed is the median of each and the median of the ratios, pair by
pair. GFLOP/s counts multiplications and additions of the matrix products. bench/results/ keeps a
checkpoint between runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from bench.make_checkpoint import Shape, make_checkpoint
from vecferry.convert import convert
from vecferry.embeddings import Outputs, TokenBatch
from vecferry.model import read_model
from vecferry.runtime import Runtime
from vecferry.runtime.host import available_cpus
from vecferry.runtime.onnx import OnnxRuntime
from vecferry.runtime.torch import TorchRuntime
from vecferry.sources import open_source

BATCHES = ((1, 16), (1, 128), (8, 128), (2, 512), (1, 2048))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=available_cpus())
    args = parser.parse_args()
    shape = Shape(layers=args.layers, vocabulary=8000)
    onnx, torch = runtimes(shape, args.threads)
    print(f"{shape.layers} layers, {args.threads} threads, median of {args.runs} alternating runs, random weights")
    print(f"{'batch × tokens':>15} {'ONNX ms':>9} {'PyTorch ms':>11} {'ONNX GFLOP/s':>13} {'ratio':>6}")
    for rows, tokens in BATCHES:
        ours, theirs, ratio = compared(onnx, torch, batch_of(rows, tokens), args.runs)
        rate = flops(shape, rows, tokens) / ours / 1e9
        print(f"{f'{rows} × {tokens}':>15} {ours * 1e3:9.1f} {theirs * 1e3:11.1f} {rate:13.0f} {ratio:6.2f}")


def runtimes(shape: Shape, threads: int) -> tuple[Runtime, Runtime]:
    folder = Path("bench/results") / f"speed-{shape.layers}-layers"
    if not (folder / "checkpoint" / "tokenizer.json").exists():
        make_checkpoint(folder / "checkpoint", shape)
    artifact = convert(open_source(str(folder / "checkpoint")), folder / "artifact", verified=False).artifact
    model = read_model(folder / "checkpoint")
    return OnnxRuntime(artifact, threads=threads), TorchRuntime(model, threads=threads)


def batch_of(rows: int, tokens: int) -> TokenBatch:
    random = np.random.default_rng(0)
    return TokenBatch.from_lists([[0, *random.integers(5, 7999, tokens - 2), 2] for _ in range(rows)])


def compared(a: Runtime, b: Runtime, batch: TokenBatch, runs: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of b's time over a's in the same turn."""
    seconds(a, batch)
    seconds(b, batch)
    turns = [(seconds(a, batch), seconds(b, batch)) for _ in range(runs)]
    return median(t[0] for t in turns), median(t[1] for t in turns), median(t[1] / t[0] for t in turns)


def seconds(runtime: Runtime, batch: TokenBatch) -> float:
    started = time.perf_counter()
    runtime.run(batch, Outputs.DENSE)
    return time.perf_counter() - started


def flops(shape: Shape, rows: int, tokens: int) -> int:
    linear = 2 * (4 * shape.hidden**2 + 2 * shape.hidden * shape.feed_forward)
    attention = 4 * tokens * shape.hidden
    return rows * tokens * shape.layers * (linear + attention)


if __name__ == "__main__":
    main()
