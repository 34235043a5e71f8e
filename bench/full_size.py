"""Conversion at BGE-M3's full size: time, peak memory, agreement with PyTorch.

    python -m bench.full_size [FOLDER]        about 15 GB of disk, 10 minutes on 2 cores

Makes a checkpoint of 24 layers with seeded random weights (2.27 GB pytorch_model.bin), then runs
`vecferry convert` twice, each in a process of its own: without verification, and with it. With the
`torch` extra installed the second run compares with PyTorch at 1 to 8,192 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measured(*arguments: str) -> dict[str, Any]:
    """Wall seconds, peak resident bytes and JSON output of one `vecferry` command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "vecferry.cli", *arguments, "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"vecferry {' '.join(arguments)} failed: {printed.decode()}")
    return {"seconds": round(seconds, 1), "peak_bytes": usage.ru_maxrss * 1024, "result": json.loads(printed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench/work/full-size"))
    folder = parser.parse_args().folder
    checkpoint, artifact = folder / "checkpoint", folder / "artifact"
    if not (checkpoint / "tokenizer.json").exists():
        subprocess.run([sys.executable, "-m", "bench.make_checkpoint", str(checkpoint)], check=True)
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    for label, flags in (("conversion alone", ["--skip-verification"]), ("conversion and verification", [])):
        run = measured("convert", str(checkpoint), str(artifact), *flags)
        print(
            f"{label}: {run['seconds']} s,",
            f"peak {run['peak_bytes'] / 1e9:.2f} GB = {run['peak_bytes'] / size:.2f} × the checkpoint",
        )
    for check in run["result"]["verification"]["checks"]:
        value = "" if check["value"] is None else f"{check['value']:.2g}"
        print(f"  {check['status']:8} {check['name']:60} {value:>8} {check['note']}")


if __name__ == "__main__":
    main()
