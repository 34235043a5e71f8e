"""Start and private memory in low-memory mode, from a new Python to the first embedding.

    python -m bench.footprint ARTIFACT [--repeats 7]

Each start is a process of its own, with the mapped vocabulary and with tokenizer.json by turns, the files in the page
cache. Private is what no other process shares (Private_Clean + Private_Dirty of /proc/self/smaps_rollup); seconds are
those of the clock, cpu_seconds those of the processors. Writes bench/results/footprint.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from vecferry.encode.runtime.host import machine
from vecferry.model.artifact import Artifact

RESULTS = Path("bench/results/footprint.json")
START = """
import json, sys, time
began = float(sys.argv[3])
from pathlib import Path
import vecferry.encode.loading as loading
if sys.argv[2] == "tokenizer.json":
    read = loading.open_tokenizer
    loading.open_tokenizer = lambda artifact, *, mapped: read(artifact)
options = loading.EncoderOptions(artifact=Path(sys.argv[1]), low_memory=True)
loading.load_encoder(options).encoder.encode(["What is BGE M3?"])
seconds, cpu = time.time() - began, time.process_time()
kilobytes = {line.split(":")[0]: int(line.split()[1])
             for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.endswith("kB")}
private = (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) * 1024
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "private_mb": private / 1e6}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    manifest = Artifact.open(args.artifact).manifest
    runs: dict[str, list[dict[str, float]]] = {"mapped": [], "tokenizer.json": []}
    for _ in range(args.repeats):
        for form, figures in runs.items():
            figures.append(started(args.artifact, form))
    report = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "layers": manifest.encoder.layers,
        "precision": manifest.space.precision,
        "repeats": args.repeats,
        **{form: medians(figures) for form, figures in runs.items()},
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


def started(artifact: Path, form: str) -> dict[str, float]:
    """Return the figures of one start. seconds: with the start of Python itself."""
    command = [sys.executable, "-c", START, str(artifact), form, repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def medians(figures: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(figures)
    return {name: round(median(row[name] for row in rows), 2) for name in rows[0]}


if __name__ == "__main__":
    main()
