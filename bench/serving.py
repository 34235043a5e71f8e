"""The server under load, as a fraction of what the library does with the same texts; beside another server.

    python -m bench.serving [FOLDER] [--texts 192] [--turns 3] [--clients 1 8 32 64] [--only throughput|queries]
        [--peer COMMAND] [--json FILE]

FOLDER has `checkpoint` and `fp32`, as those of bench.speed; without it the demo's stand-in is made, whose weights are
real. The library and the servers have equal threads and take turns; clients run on the same processors, which counts
against the servers.
--peer: a command that starts another server with OpenAI's interface on port 7997 on FOLDER/checkpoint, for instance of
an environment with infinity-emb[server,torch]==0.0.78 and torch==2.13.0: "infinity_emb v2 --engine torch --device cpu
--dtype float32 --host 127.0.0.1 --port 7997 --model-id FOLDER/checkpoint --served-model-name m".
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from bench.interleaved import Process
from bench.load import Target, queries_beside_bulk
from vecferry.conversion.convert import convert_checkpoint
from vecferry.demo.passages import load_passages
from vecferry.demo.standin import make_standin
from vecferry.encode.runtime.host import available_cpus, machine
from vecferry.model.sources import open_source

WORK = Path("bench/work/serving")
CLIENTS = (1, 8, 32, 64)
OURS_PORT, PEER_PORT = 7996, 7997
BULK_CLIENTS, QUERIES, PEER_QUERIES = 4, 60, 10
"""A server without lanes takes seconds for each query beside bulk."""


def main() -> None:
    args = _arguments()
    folder = args.folder or _standin()
    texts, queries = _texts(args.texts)
    threads = available_cpus()
    with ExitStack() as stack:
        library = stack.enter_context(closing(Process("fp32", folder, threads)))
        targets = [stack.enter_context(_ours(folder / "fp32"))]
        if args.peer:
            targets.append(stack.enter_context(_peer(args.peer, threads)))
        report: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
        report |= {"folder": folder.name, "threads": threads, "machine": machine()}
        if args.only != "queries":
            report["throughput"] = _throughput(library, targets, texts, args.clients, args.turns)
        if args.only != "throughput":
            report["queries"] = {
                target.name: _queries(target, queries[:count], texts, turns)
                for target, count, turns in zip(targets, (QUERIES, PEER_QUERIES), (args.turns, 1), strict=False)
            }
            print(json.dumps(report["queries"], indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _throughput(
    library: Process, targets: Sequence[Target], texts: Sequence[str], counts: Sequence[int], turns: int
) -> list[dict[str, Any]]:
    """Of each number of clients: the rate as a fraction of the library's of the same turn, and latencies."""
    library.request("texts", texts=list(texts[:8]))
    for target in targets:
        target.run(texts[:8], 4)
    rows = []
    for clients in counts:
        loads_of: dict[str, list[Any]] = {target.name: [] for target in targets}
        rates = []
        for _ in range(turns):
            rates.append(len(texts) / library.request("texts", texts=list(texts)))
            for target in targets:
                loads_of[target.name].append(target.run(texts, clients))
        row: dict[str, Any] = {"clients": clients, "texts": len(texts), "library_texts_per_s": round(median(rates), 2)}
        for name, loads in loads_of.items():
            fraction = median(load.texts_per_s / rate for load, rate in zip(loads, rates, strict=True))
            row[name] = {
                "of_library": round(fraction, 3),
                "texts_per_s": round(median(load.texts_per_s for load in loads), 2),
                "p50_ms": median(load.percentile_ms(50) for load in loads),
                "p95_ms": median(load.percentile_ms(95) for load in loads),
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def _queries(target: Target, queries: Sequence[str], texts: Sequence[str], turns: int) -> dict[str, Any]:
    """One client's queries alone, and while bulk requests saturate the server."""
    alone = [target.run(queries, 1) for _ in range(turns)]  # all of them first: some go on with what nobody waits for
    beside = [queries_beside_bulk(target, queries, texts, BULK_CLIENTS) for _ in range(turns)]
    ratios = [b.percentile_ms(95) / a.percentile_ms(95) for a, b in zip(alone, beside, strict=True)]
    return {
        "queries": len(queries),
        "p50_alone_ms": median(load.percentile_ms(50) for load in alone),
        "p95_alone_ms": median(load.percentile_ms(95) for load in alone),
        "p50_beside_bulk_ms": median(load.percentile_ms(50) for load in beside),
        "p95_beside_bulk_ms": median(load.percentile_ms(95) for load in beside),
        "p95_ratio": round(median(ratios), 2),
    }


@contextmanager
def _ours(artifact: Path) -> Iterator[Target]:
    command = [sys.executable, "-m", "vecferry.cli", "serve", f"m={artifact}", "--port", str(OURS_PORT)]
    with _started(command, OURS_PORT, dict(os.environ)):
        yield Target("vecferry", f"http://127.0.0.1:{OURS_PORT}", "/v1/embeddings", "m")


@contextmanager
def _peer(command: str, threads: int) -> Iterator[Target]:
    with _started(shlex.split(command), PEER_PORT, dict(os.environ) | {"OMP_NUM_THREADS": str(threads)}):
        yield Target("peer", f"http://127.0.0.1:{PEER_PORT}", "/embeddings", "m")


@contextmanager
def _started(command: Sequence[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    with (WORK.parent / f"server-{port}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for _ in range(600):
                time.sleep(0.2)
                with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    if answer.status == 200:
                        break
            else:
                raise RuntimeError(f"no server on port {port}; see {log.name}")
            yield
        finally:
            process.terminate()
            process.wait(30)


def _texts(count: int) -> tuple[list[str], list[str]]:
    """Passages and questions of the demo, spread over its languages."""
    demo = load_passages()
    step = len(demo.passages) // count
    return (
        [passage.text for passage in demo.passages[:: max(step, 1)][:count]],
        [question.text for question in demo.questions[:: len(demo.questions) // QUERIES][:QUERIES]],
    )


def _standin() -> Path:
    checkpoint = make_standin(WORK / "checkpoint")
    if not (WORK / "fp32").exists():
        convert_checkpoint(open_source(str(checkpoint)), WORK / "fp32", verified=False)
    return WORK


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--only", choices=["throughput", "queries"], help="the other part stays in FILE as it is")
    parser.add_argument("--peer")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
