"""A user whom the system does not know, without a home and with folders that cannot be written to, as in containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx2
import pytest

from tests.server.conftest import serving
from vecferry.conversion.convert import convert_checkpoint
from vecferry.model.artifact import Artifact
from vecferry.model.sources import open_source

NAMELESS = "54321"
PYTHONPATH = os.pathsep.join(path for path in sys.path if path)
COMMAND = ["setpriv", "--reuid", NAMELESS, "--regid", NAMELESS, "--clear-groups", sys.executable]


def _can_be_nameless() -> bool:
    """Return whether this process may become a user without a name who can run the interpreter."""
    if shutil.which("setpriv") is None:
        return False
    return subprocess.run([*COMMAND, "-c", "import onnxruntime, typer"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _can_be_nameless(), reason="needs root, setpriv, and an interpreter that other users may run"
    ),
]


@pytest.fixture
def folder(tiny_artifact: Artifact) -> Iterator[Path]:
    """Yield a folder that everybody may read and only root write to, with a model in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # that of pytest is root's alone
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(tiny_artifact.path, folder / "model")
        (folder / "texts.txt").write_text("one\ntwo\n")
        yield folder


def run(folder: Path, *arguments: str, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run vecferry, or code, as the nameless user in that folder."""
    command = [*COMMAND, *(("-c", code) if code else ("-m", "vecferry.cli")), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True,
        env={"PATH": os.defpath, "PYTHONPATH": PYTHONPATH, "COLUMNS": "200", **env},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("target", ["vectors.npz", "vectors.jsonl", "/root/vectors.npz"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(folder: Path, target: str) -> None:
    done = run(folder, "encode", "no-model", "texts.txt", "-o", target)
    assert done.returncode == 3
    assert f"{target} was not written" in done.stderr
    assert "no converted model" not in done.stderr


def test_a_model_that_cannot_be_written_to_is_verified_and_the_report_printed(folder: Path) -> None:
    done = run(folder, "verify", "model", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, bool(report["checks"])) == (0, True)
    assert "verification.json was not written" in done.stderr
    assert "Mount model writable" in done.stderr


def test_without_a_home_the_hub_is_refused_with_what_to_set(folder: Path) -> None:
    done = run(folder, "convert", "BAAI/bge-m3", "out")
    assert done.returncode == 3
    assert "set HF_HOME to a folder" in done.stderr


def test_without_a_home_a_chart_says_what_to_set(folder: Path) -> None:
    code = "try: import vecferry.report.charts\nexcept Exception as e: print(type(e).__name__, e)"
    assert run(folder, code=code).stdout.startswith("SettingsError HOME=")


def test_a_model_is_served_its_user_without_a_home(folder: Path) -> None:
    code = "from vecferry import Encoder; print(Encoder.open('model').encode(['a']).dense.shape)"
    assert run(folder, code=code).stdout.strip() == "(1, 64)"


def test_encode_text_needs_no_home(folder: Path) -> None:
    code = "from backend.core.embedding_utils import encode_text; print(encode_text('a').shape)"
    assert run(folder, code=code, ONNX_MODEL_PATH="model").stdout.strip() == "(64,)"


def test_doctor_needs_no_home(folder: Path) -> None:
    done = run(folder, "doctor", "--json", ONNX_MODEL_PATH="model")
    assert (done.returncode, json.loads(done.stdout)["active"]["runtime"]) == (0, "onnx")


def test_a_server_needs_no_home(folder: Path) -> None:
    nameless = ("env", "-u", "HOME", *COMMAND)
    with serving(str(folder / "model"), python=nameless, env={"PYTHONPATH": PYTHONPATH}) as server:
        answer = httpx2.post(f"{server.url}/v1/m3", json={"inputs": ["a"]}, timeout=60)
        assert answer.json()["num_tokens"] == [3]
        assert server.stop() == 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_narrower_model_is_verified_without_a_temporary_folder(
    folder: Path, tiny_checkpoint: Path, precision: Literal["fp16", "int8"]
) -> None:
    """Where the root file system is read-only and nothing is mounted at /tmp."""
    convert_checkpoint(open_source(str(tiny_checkpoint)), folder / "narrow", precision=precision, verified=False)
    code = f"""
import tempfile
tempfile.tempdir = {str(folder / "none")!r}
from vecferry.cli import main
main(["verify", "narrow", "--json"])
"""
    done = run(folder, code=code)
    (skipped,) = (check for check in json.loads(done.stdout)["checks"] if check["status"] == "skipped")
    assert (done.returncode, skipped["name"]) == (0, "keeps what fp32 has")
    assert "there is no temporary folder" in skipped["note"]
    assert "name it in TMPDIR" in skipped["note"]


def test_a_migration_file_with_a_home_in_it_is_refused_without_one(folder: Path) -> None:
    (folder / "migration.toml").write_text(
        '[store]\nurl = "lancedb:data"\ncollection = "d"\n[models]\nnew = "~/model"\n'
    )
    done = run(folder, "migrate", "status", "--config", "migration.toml")
    assert done.returncode == 2
    assert "[models] new=~/model is not valid: expected a path without ~" in done.stderr
