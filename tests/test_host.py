"""What the machine allows, from the contents of /proc and /sys as containers show them."""

import os

import pytest

from vecferry.encode.runtime.host import Memory, Processors, instruction_sets, memory, processors

NO_LIMIT_V1 = "9223372036854771712"
MEMINFO = "MemTotal:        8000000 kB\nMemFree:  1 kB\nMemAvailable:    6000000 kB\n"


@pytest.mark.parametrize(
    ("affinity", "quota", "threads"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.2, 1), (2, 6.0, 2), (1, 0.001, 1)],
)
def test_threads_are_the_lesser_of_affinity_and_quota_rounded_up(
    affinity: int, quota: float | None, threads: int
) -> None:
    assert Processors(affinity, quota).usable == threads


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (  # the group above is tighter
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "/sys/fs/cgroup/a/cpu.max": "100000 100000\n",
            },
            1.0,
        ),
        (  # version 1, in a container that sees the host's path and its own root
            {
                "/proc/self/cgroup": "5:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "/proc/self/cgroup": "1:cpu:/\n0::/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_quota_is_read_from_both_versions_of_control_groups(files: dict[str, str], quota: float | None) -> None:
    assert processors(files.get).quota == quota


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_is_this_processs_own() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processors(dict[str, str]().get) == Processors(1)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "1000000000\n"}, 10**9),
        ({"/proc/self/cgroup": "4:memory:/x\n", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": NO_LIMIT_V1}, None),
        ({"/proc/self/cgroup": "4:memory:/x\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": "512"}, 512),
    ],
)  # fmt: skip
def test_memory_is_the_machines_and_the_groups(files: dict[str, str], limit: int | None) -> None:
    available = memory({"/proc/meminfo": MEMINFO, **files}.get)
    assert available == Memory(8_192_000_000, 6_144_000_000, limit)
    assert available.usable == (limit or 8_192_000_000)


def test_a_system_that_says_nothing_is_no_error() -> None:
    assert memory(dict[str, str]().get) == Memory()
    assert Memory().usable is None
    assert instruction_sets(dict[str, str]().get) == ()


@pytest.mark.parametrize(
    ("cpuinfo", "names"),
    [
        ("flags\t\t: fpu sse2 avx2 fma\n", ("AVX2",)),
        ("flags : avx2 avx512f avx512_vnni amx_tile amx_int8\n", ("AVX2", "AVX-512", "VNNI", "AMX")),
        ("flags : avx2 avx_vnni\n", ("AVX2", "VNNI")),
        ("Features\t: fp asimd asimddp i8mm\n", ("dot product", "I8MM")),
    ],
)
def test_instruction_sets_are_known_by_their_names(cpuinfo: str, names: tuple[str, ...]) -> None:
    assert instruction_sets({"/proc/cpuinfo": f"processor : 0\n{cpuinfo}"}.get) == names
