"""Run a process as if its processor had AVX2 and nothing newer, on one that has more (Linux, x86-64).

    from bench.avx2 import environment
    subprocess.run([...], env=environment(folder))

ONNX Runtime asks the processor itself and offers no setting, so that its shared library is copied with each CPUID
instruction replaced by a trap, and a small preloaded library answers the trap with what the processor says, less
AVX-512, VNNI and AMX. PyTorch, MKL and oneDNN have settings. Frequencies, caches and units stay those of the processor:
one whose AVX-512 runs at half rate shows in AVX2 what it can; what an older one has is not seen here.
Needs gcc and objdump.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

CPUID, TRAP = b"\x0f\xa2", b"\xcc\x90"  # int3, nop
SETTINGS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

ANSWERS = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))
static const unsigned ebx_7_0 = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned ecx_7_0 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned edx_7_0 = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
static const unsigned eax_7_1 = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const unsigned edx_7_1 = BIT(4) | BIT(5) | BIT(8) | BIT(10);

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned leaf = (unsigned)r[REG_RAX], sub = (unsigned)r[REG_RCX], a, b, c, d;
    (void)number, (void)info;
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) { b &= ~ebx_7_0; c &= ~ecx_7_0; d &= ~edx_7_0; }
    if (leaf == 7 && sub == 1) { a &= ~eax_7_1; d &= ~edx_7_1; }
    r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
}

__attribute__((constructor)) static void listen(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGTRAP, &action, 0);
}
"""


def environment(folder: Path) -> dict[str, str]:
    """The variables of such a process. folder: where the copies are made, once."""
    folder = folder.absolute()
    library, package = folder / "answers.so", folder / "site" / "onnxruntime"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "answers.c").write_text(ANSWERS)
        command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(folder / "answers.c")]
        subprocess.run(command, check=True)
    if not package.exists():
        copied = package.with_name("partial")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(onnxruntime_folder(), copied)
        for file in copied.rglob("*.so*"):
            trap_cpuid(file)
        copied.rename(package)
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **SETTINGS, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)}


def onnxruntime_folder() -> Path:
    spec = find_spec("onnxruntime")
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations or ())))


def trap_cpuid(library: Path) -> None:
    """Replace each CPUID instruction of a shared library, in its place."""
    sections = subprocess.run(["objdump", "-h", str(library)], capture_output=True, text=True, check=True).stdout
    text = re.search(r"\s\.text\s+\S+\s+(\S+)\s+\S+\s+(\S+)", sections)
    if text is None:
        return
    shift = int(text[2], 16) - int(text[1], 16)  # from addresses to places in the file
    command = ["objdump", "-d", "-j", ".text", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as code:
        assert code.stdout is not None
        lines = (line for line in code.stdout if line.rstrip().endswith("cpuid"))
        places = [int(line.split(":")[0], 16) + shift for line in lines]
    with library.open("r+b") as file:
        for place in places:
            file.seek(place)
            assert file.read(2) == CPUID, f"{library}: no CPUID at {place:#x}"
            file.seek(place)
            file.write(TRAP)
