"""A release as a stranger has it: the wheel in an empty environment with README's quickstart, and the sdist beside it.

`make release` runs it on the files that it has built: python -m tests.release dist. Nothing is signed or uploaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from bench.make_checkpoint import make_checkpoint
from tests.conftest import WIDE
from tests.test_docs import ROOT, blocks


def main(folder: Path) -> None:
    """Check the wheel and the sdist in the folder. Raises CalledProcessError, AssertionError."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="vecferry-release-") as name:
        assert contents(rebuilt(sdist, Path(name, "sdist"))) == contents(wheel), "sdist and wheel are not of one tree"
        try_quickstart(wheel, Path(name))
    print(f"{wheel}\n{sdist}")


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel by their names."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rebuilt(sdist: Path, folder: Path) -> Path:
    """Build a wheel from nothing but the sdist; return its path."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    run(folder, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=tree)
    (wheel,) = folder.glob("*.whl")
    return wheel


def try_quickstart(wheel: Path, folder: Path) -> None:
    """Install the wheel in an empty environment; convert a small model there, and use it as README does."""
    venv.create(folder / "env", with_pip=True)
    home = folder / "home"
    home.mkdir()
    checkpoint = make_checkpoint(folder / "checkpoint", WIDE)
    python, command = folder / "env/bin/python", folder / "env/bin/vecferry"
    run(home, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel.resolve())
    run(home, command, "convert", checkpoint, "models/bge-m3-onnx")
    run(home, command, "verify", "models/bge-m3-onnx")
    examples = [block for block in blocks(ROOT / "README.md", "python") if "from vecferry import" in block]
    assert examples
    for block in examples:
        run(home, python, "-W", "error", "-c", block)


def run(home: Path, *command: str | Path, cwd: Path | None = None) -> None:
    """Run a command in `cwd`, or else in `home`, without this checkout and its environment."""
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith(("PIP_", "SSL_"))}
    subprocess.run([str(word) for word in command], cwd=cwd or home, env={**kept, "HOME": str(home)}, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
