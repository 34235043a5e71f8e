"""What this machine lets the process use: processors, instruction sets, memory.

Linux says it in /proc and /sys; of another system what is not known is left out. Limits of control groups hold
for all groups below, so that the tightest on the way up counts. `read` gives a file's content, None without one.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath

Read = Callable[[str], str | None]

GROUPS = "/sys/fs/cgroup"
INSTRUCTION_SETS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "AMX": {"amx_int8", "amx_bf16"},
    "dot product": {"asimddp"},
    "I8MM": {"i8mm"},
    "SVE": {"sve"},
}
"""Name -> flags of /proc/cpuinfo (x86: flags, ARM: Features), of which one says that it is there."""


def read_file(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


# --- processors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processors:
    """affinity: how many the process may run on. quota: of how many it gets the time; None without a limit."""

    affinity: int
    quota: float | None = None

    @property
    def usable(self) -> int:
        """Threads that are of use: the lesser of both, rounded up, at least 1."""
        return max(1, self.affinity if self.quota is None else min(self.affinity, ceil(self.quota)))

    def __str__(self) -> str:
        quota = "no cgroup quota" if self.quota is None else f"a cgroup quota of {self.quota:.3g}"
        return f"{self.affinity} by affinity, {quota}"


def processors(read: Read = read_file) -> Processors:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Processors(affinity, min(_quotas(read), default=None))


def available_cpus() -> int:
    """Return the number of processors that this process may use, its quota rounded up."""
    return processors().usable


def machine(read: Read = read_file) -> dict[str, str]:
    """Return what figures depend on: system, processor, cpus, python."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(read),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
    }


def _processor(read: Read) -> str:
    lines = (read("/proc/cpuinfo") or "").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def instruction_sets(read: Read = read_file) -> tuple[str, ...]:
    """Return the names of those that matter for a matrix product; empty where the system does not say."""
    lines = (read("/proc/cpuinfo") or "").splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    return tuple(name for name, signs in INSTRUCTION_SETS.items() if flags & signs)


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Memory in bytes; None where it is not known, and for `limit` where the control group has none."""

    total: int | None = None
    available: int | None = None
    limit: int | None = None

    @property
    def usable(self) -> int | None:
        """The bytes that the process can have at most."""
        return min((size for size in (self.total, self.limit) if size is not None), default=None)


def memory(read: Read = read_file) -> Memory:
    fields = dict(line.split(":", 1) for line in (read("/proc/meminfo") or "").splitlines() if ":" in line)
    total, available = (_kilobytes(fields.get(name)) for name in ("MemTotal", "MemAvailable"))
    limits = (limit for limit in _memory_limits(read) if total is None or limit < total)
    return Memory(total, available, min(limits, default=None))


def _kilobytes(field: str | None) -> int | None:
    return None if field is None else int(field.split()[0]) * 1024


# --- control groups -------------------------------------------------------------------------------


def _quotas(read: Read) -> Iterator[float]:
    for group in _groups(read, "cpu"):
        both = (read(f"{group}/cpu.max") or "").split() or [
            (read(f"{group}/cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period")
        ]
        if len(both) == 2 and all(number.isdecimal() and int(number) for number in both):  # not max, not -1
            yield int(both[0]) / int(both[1])


def _memory_limits(read: Read) -> Iterator[int]:
    for group in _groups(read, "memory"):
        limit = (read(f"{group}/memory.max") or read(f"{group}/memory.limit_in_bytes") or "").strip()
        if limit.isdecimal():
            yield int(limit)


def _groups(read: Read, controller: str) -> Iterator[str]:
    """Yield folders of the process's groups, version 2 and 1, each with those above it.

    In a container the path may be the host's, of which only the uppermost folder is to be seen.
    """
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = f"{GROUPS}/{controller}" if controllers else GROUPS
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            yield f"{root}{group}".rstrip("/")
