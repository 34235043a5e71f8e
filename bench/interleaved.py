"""Contenders in processes of their own, which take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

PAUSE_S = 0.25
"""Between two turns: OpenMP's threads go on spinning for up to 0.2 s after their work."""


class Process:
    """A contender that answers. Its standard error goes to a file beside the results."""

    def __init__(self, name: str, folder: Path, threads: int, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log = (folder / f"{name}.log").open("w")
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.contender", name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=dict(environment or os.environ) | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        self._answer()
        self.start_s = time.perf_counter() - started

    def request(self, do: str, **what: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended; its last words are in {self._log.name}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def in_turns(
    processes: Sequence[Process], turns: int, do: str, *, warm: bool = True, **what: Any
) -> dict[str, list[float]]:
    """Seconds of each, A B C A B C. warm: a turn goes before, in which memory is made, and is left out."""
    seconds: dict[str, list[float]] = {process.name: [] for process in processes}
    for turn in range(turns + warm):
        for process in processes:
            took = process.request(do, **what)
            if turn >= warm:
                seconds[process.name].append(took)
            time.sleep(PAUSE_S)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], slower: str, faster: str) -> float:
    """How many times as fast: the median of the ratios of the same turn."""
    return median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True))
