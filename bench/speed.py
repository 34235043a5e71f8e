"""Speed, memory and start of vecferry beside what its users would take instead, in one run.

    make bench                                    about 40 minutes on 2 cores, 20 GB of disk, 16 GB of memory
    python -m bench.speed [--layers 24] [--only shapes,latency,memory] [--texts FILE] [--threads N] [--avx2]
    python -m bench.speed --layers 6 --only mix   real lengths: at full size they would take an hour
    python -m bench.speed --layers 6 --only peers OpenVINO, llama.cpp and bge-m3-lite: speed and quality, 9 minutes

BGE-M3's shape with seeded random weights: real speed and memory, no quality. Everybody has equal threads and a process
of their own, and they take turns; figures are medians, ratios are medians of the ratios of one turn. The rate of the
processor is that of bare matrix products (`gemm`), which take turns as well. What is fast and far off is no peer, so
that `peers` has the smallest cosine of each with PyTorch's vectors of shipped texts beside its speed. --avx2: as if the
processor had nothing newer (bench/avx2.py); llama.cpp must have been built for that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from bench.avx2 import environment
from bench.contender import gemm_rows
from bench.interleaved import Process, in_turns, ratio
from bench.make_checkpoint import Shape
from bench.peers import prepare_peers
from vecferry.demo.passages import load_passages
from vecferry.embeddings import TokenBatch
from vecferry.encode.batching import Limits, plan
from vecferry.encode.runtime.host import available_cpus, instruction_sets, machine
from vecferry.model.artifact import MANIFEST, Artifact
from vecferry.model.tokens import open_tokenizer

RESULTS, WORK = Path("bench/results"), Path("bench/work")
SHAPES = ((1, 16), (1, 128), (8, 128), (2, 512), (1, 2048))
PEERS = ("openvino-fp32", "openvino-int8", "gguf-f16", "gguf-q8_0", "lite-fp32", "lite-int8")
COMPARED, CALIBRATING = slice(0, None, 40), slice(5, None, 24)
"""Of the 1,200 shipped passages: 30 whose vectors are compared, and 50 others for peers to calibrate int8 on."""
LONGEST, LONGEST_OF_MIX = 8192, 2048
QUERY = "How long does it take to move the vectors to another model?"
PACKAGES = (
    "vecferry", "onnxruntime", "torch", "transformers", "sentence-transformers", "FlagEmbedding", "numpy",
    "openvino", "nncf", "llama-cpp-python", "bge-m3-lite",
)  # fmt: skip


class Bench:
    """One run. Each method is a part of the report."""

    def __init__(
        self, folder: Path, shape: Shape, threads: int, turns: int, peers: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        self.folder, self.shape, self.threads, self.turns, self.variables = folder, shape, threads, turns, variables
        self.peers = peers
        self.artifact = Artifact.open(folder / "fp32")
        self.tokenizer = open_tokenizer(self.artifact)

    @contextmanager
    def at_work(self, *names: str) -> Iterator[list[Process]]:
        """Contenders by name, loaded one after another."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(closing(Process(name, self.folder, self.threads, self.variables))) for name in names
            ]

    def shapes(self) -> list[dict[str, Any]]:
        """Batches of random tokens of equal length, to 8,192."""
        rows = []
        with self.at_work("gemm", "transformers", "fp32", "int8") as processes:
            for count, tokens in (*SHAPES, (1, LONGEST)):
                turns = 1 if tokens == LONGEST else self.turns if count * tokens < 2048 else 3
                results = in_turns(processes, turns, "batch", warm=tokens < LONGEST, rows=count, tokens=tokens)
                rows.append(self._shape(results, count, tokens))
                print(shown(rows[-1]), flush=True)
            idle = {process.name: process.request("idle", seconds=2) / 2 for process in processes}
            rows[-1]["idle_cpu_s_per_s"] = idle
        return rows

    def _shape(self, seconds: dict[str, list[float]], rows: int, tokens: int) -> dict[str, Any]:
        ours = flops(self.shape, rows, tokens, last_for_first_token=True)
        peak = 4 * 2 * gemm_rows(rows * tokens) * 1024 * 4096
        work = {"gemm": peak, "transformers": flops(self.shape, rows, tokens), "fp32": ours, "int8": ours}
        rate = {name: work[name] / median(took) / 1e9 for name, took in seconds.items()}
        fraction = median((ours / a) / (peak / b) for a, b in zip(seconds["fp32"], seconds["gemm"], strict=True))
        return {
            "shape": f"{rows} × {tokens}",
            "ms": {name: round(median(took) * 1e3, 2) for name, took in seconds.items()},
            "gflop_per_s": {name: round(value, 1) for name, value in rate.items()},
            "fp32_of_gemm_peak": round(fraction, 3),
            "fp32_over_transformers": round(ratio(seconds, "transformers", "fp32"), 3),
            "int8_over_fp32": round(ratio(seconds, "fp32", "int8"), 3),
        }

    def peers_beside(self, passages: Sequence[str]) -> dict[str, Any]:
        """Batches of equal length, and how near each one's vectors are to PyTorch's: other passages calibrate."""
        prepare_peers(self.folder, self.tokenizer(passages[CALIBRATING]))
        rows = []
        with self.at_work("transformers", "fp32", "int8", *PEERS) as processes:
            quality = self._quality(processes, self.tokenizer(passages[COMPARED]))
            print(shown(quality), flush=True)
            for count, tokens in SHAPES[:-1]:
                turns = self.turns if count * tokens < 1024 else 3
                seconds = in_turns(processes, turns, "batch", rows=count, tokens=tokens)
                rows.append({"shape": f"{count} × {tokens}", **over(seconds, "transformers")})
                print(shown(rows[-1]), flush=True)
        return {"smallest_cosine": quality, "shapes": rows}

    def _quality(self, processes: Sequence[Process], texts: TokenBatch) -> dict[str, float]:
        """Return each one's smallest cosine with the vectors of the first."""
        vectors = {}
        for process in processes:
            file = self.folder / f"{process.name}.npy"
            process.request("vectors", ids=[part.tolist() for part in np.split(texts.ids, texts.indptr[1:-1])],
                            file=str(file))  # fmt: skip
            vectors[process.name] = np.load(file)
        reference = vectors[processes[0].name]
        return {name: round(float((each * reference).sum(1).min()), 5) for name, each in vectors.items()}

    def latency(self) -> dict[str, Any]:
        """One query of 16 tokens, as users call it."""
        with self.at_work("fp32", "int8", *self.peers) as processes:
            results = in_turns(processes, 30, "texts", texts=[QUERY])
        ms = {
            name: {"p50": round(median(t) * 1e3, 1), "p95": round(quantiles(t, n=20)[-1] * 1e3, 1)}
            for name, t in results.items()
        }
        return {"tokens": len(self.tokenizer([QUERY]).ids), "ms": ms, **ratios(results)}

    def mix(self, texts: Sequence[str], tokens: int) -> dict[str, Any]:
        """A sample of real lengths, as users call it; padding, and tokenising at the rate of fp32.

        Ours gives all three outputs, the others dense alone: with few layers the one that ours cuts short for dense
        would count for too much.
        """
        sample = of_all_lengths(texts, self.tokenizer(texts).lengths, tokens)
        with self.at_work("fp32", "int8", *self.peers) as processes:
            for process in processes:
                process.request("texts", texts=sample[-16:], all=True)  # the shortest, to be warm
            results = {process.name: [process.request("texts", texts=sample, all=True)] for process in processes}
        count = int(self.tokenizer(sample).lengths.sum())
        rate = {name: round(count / took[0], 1) for name, took in results.items()}
        planned = self.planning(texts, rate["fp32"])
        return {"texts": len(sample), "tokens": count, "tokens_per_s": rate, **ratios(results), "all_texts": planned}

    def memory(self) -> dict[str, Any]:
        """Of a process of its own: from its start to the first embedding, and one text of 8,192 tokens."""
        report = {}
        for name in ("fp32", "int8", "fp32-low-memory", "int8-low-memory", "sentence-transformers"):
            with self.at_work(name) as (process,):
                first = process.request("texts", texts=[QUERY])
                report[name] = {
                    "start_to_first_embedding_s": round(process.start_s + first, 2),
                    "first_embedding_s": round(first, 3),
                    "loaded_mb": round(process.request("peak") / 1e6),
                    "private_mb": round(process.request("private") / 1e6),
                }
                if name in ("fp32", "int8"):
                    process.request("batch", rows=1, tokens=LONGEST)
                    report[name]["peak_at_8192_tokens_mb"] = round(process.request("peak") / 1e6)
        return report

    def planning(self, texts: Sequence[str], tokens_per_s: float) -> dict[str, Any]:
        """Padding of all the texts, and tokenising them against encoding them at the rate seen in the mix."""
        batch, lengths = [], []
        spent = []
        for _ in range(3):
            before = os.times()
            batch = [self.tokenizer(texts[at : at + 1024]) for at in range(0, len(texts), 1024)]
            spent.append(os.times().elapsed - before.elapsed)
        padding = 0
        for part in batch:
            lengths.append(part.lengths)
            for rows in plan(part.lengths, Limits()):
                padding += int(len(rows) * part.lengths[rows].max() - part.lengths[rows].sum())
        total = int(np.concatenate(lengths).sum())
        return {
            "texts": len(texts),
            "tokens": total,
            "padding": round(padding / total, 4),
            "tokenising_of_encoding": round(median(spent) / (total / tokens_per_s), 4),
        }


def flops(shape: Shape, rows: int, tokens: int, *, last_for_first_token: bool = False) -> int:
    """Operations of the model's matrix products. last_for_first_token: as ours computes the last layer for dense."""
    square, wide = shape.hidden**2, shape.hidden * shape.feed_forward
    attention = 4 * tokens * shape.hidden
    layer = tokens * (2 * (4 * square + 2 * wide) + attention)
    saved = tokens * 4 * square + 2 * (2 * square + 2 * wide) + attention
    return rows * (shape.layers * layer - (layer - saved if last_for_first_token else 0))


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """By how much ours are faster than each other one."""
    ours = {name for name in ("fp32", "int8") if name in seconds}
    return {
        f"{name}_over": {
            other: round(ratio(seconds, other, name), 3) for other in seconds if other not in {name, "int8"}
        }
        for name in sorted(ours)
    }


def over(seconds: Mapping[str, Sequence[float]], slower: str) -> dict[str, Any]:
    """Milliseconds, and by how much each one is faster than `slower`."""
    return {
        "ms": {name: round(median(took) * 1e3, 2) for name, took in seconds.items()},
        f"over_{slower}": {name: round(ratio(seconds, slower, name), 3) for name in seconds},
    }


def of_all_lengths(texts: Sequence[str], lengths: Any, tokens: int) -> list[str]:
    """About `tokens` tokens of the texts of up to `LONGEST_OF_MIX`: of those by length, every so many blocks of 32.

    Neighbours by length stay together, so that others pad a batch as they would in the whole.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] <= LONGEST_OF_MIX]
    blocks = [order[at : at + 32] for at in range(0, len(order), 32)]
    step = max(1, round(int(lengths[order].sum()) / tokens))
    return [texts[row] for block in blocks[step // 2 :: step] for row in block]


def read_texts(file: Path | None) -> list[str]:
    if file is None:
        return [passage.text for passage in load_passages().passages]
    return [json.loads(line)["text"] for line in file.read_bytes().splitlines()]


def shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def prepared(folder: Path, shape: Shape) -> None:
    """The checkpoint and both artifacts, made once."""
    run = [sys.executable, "-m"]
    if not (folder / "checkpoint" / "tokenizer.json").exists():
        size = ["--layers", str(shape.layers)]
        subprocess.run([*run, "bench.make_checkpoint", str(folder / "checkpoint"), *size], check=True)
    newest = max(file.stat().st_mtime for file in Path("src/vecferry").glob("*.py"))
    for precision in ("fp32", "int8"):
        manifest = folder / precision / MANIFEST
        if manifest.exists() and manifest.stat().st_mtime > newest:
            continue
        target = [str(folder / "checkpoint"), str(folder / precision)]
        command = ["vecferry.cli", "convert", *target, "--precision", precision, "--skip-verification", "--json"]
        subprocess.run([*run, *command], check=True, stdout=subprocess.DEVNULL)


def facts(threads: int, *, avx2: bool) -> dict[str, Any]:
    sets = [name for name in instruction_sets() if not avx2 or name == "AVX2"]
    return {**machine(), "instruction_sets": sets, "threads": threads, "as_if_avx2": avx2, "packages": versions()}


def versions() -> dict[str, str]:
    results = {}
    for name in PACKAGES:
        try:
            results[name] = version(name)
        except PackageNotFoundError:
            results[name] = "not installed"
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--texts", type=Path, help="JSON lines with a text; by default the demo's passages")
    parser.add_argument("--tokens", type=int, default=50_000, help="of the sample of real lengths")
    parser.add_argument(
        "--peers", default="sentence-transformers,FlagEmbedding", help="whom queries and texts go to as well"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--avx2", action="store_true", help="as if the processor had AVX2 and nothing newer")
    parser.add_argument("--only", default="shapes,latency,mix,memory", help="parts of these")
    args = parser.parse_args()
    shape, folder = Shape(layers=args.layers), WORK / f"{args.layers}-layers"
    prepared(folder, shape)
    variables = environment(WORK / "avx2") if args.avx2 else dict(os.environ)
    bench = Bench(folder, shape, args.threads, args.turns, args.peers.split(","), variables)
    texts = read_texts(args.texts)
    target = RESULTS / file_name(args.layers, avx2=args.avx2)
    for part in args.only.split(","):
        results = run_part(bench, part, texts, args.tokens)
        print(part, shown(results), flush=True)
        outcome = {"command": command(), "date": date.today().isoformat(), "seen": results}
        save(target, bench, {part: outcome}, avx2=args.avx2)
    print(f"{target}; python -m bench.plot draws it")


def run_part(bench: Bench, part: str, texts: Sequence[str], tokens: int) -> Any:
    match part:
        case "mix":
            return bench.mix(texts, tokens)
        case "peers":
            return bench.peers_beside(texts)
    return getattr(bench, part)()


def file_name(layers: int, *, avx2: bool) -> str:
    processor = re.sub(r"[^a-z0-9]+", "-", machine()["processor"].lower()).strip("-")
    kind = "-as-avx2" if avx2 else "" if "AVX-512" in instruction_sets() else "-avx2"
    return f"speed-{processor}{kind}-{layers}-layers.json"


def command() -> str:
    return " ".join(["python -m bench.speed", *(Path(word).name if "/" in word else word for word in sys.argv[1:])])


def save(target: Path, bench: Bench, parts: dict[str, Any], *, avx2: bool) -> None:
    """Parts that were measured before on this machine stay."""
    about = {
        "weights": f"random, seed 0, {bench.shape.layers} layers",
        "machine": facts(bench.threads, avx2=avx2),
    }
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else about
    same = {name: part for name, part in before.items() if before["machine"] == about["machine"]}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**same, **about, **parts}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
