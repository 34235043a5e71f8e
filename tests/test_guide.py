"""The migration guide's commands and snippets, as written, in a folder of their own.

A small checkpoint of BGE-M3's shape (1,024 numbers, seeded random weights) stands for the download.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vecferry.model.artifact import IN_FOLDER

ROOT = Path(__file__).parent.parent
DIMENSION_SNIPPET = """
from backend.core.embedding_utils import encode_text
embedding = encode_text("This is a test")
assert len(embedding) == 1024, f"expected 1024, got {len(embedding)}"
print(f"Embedding dimension: {len(embedding)}")
"""
BENCHMARK_ONE_LINER = (
    "import time; from backend.core.embedding_utils import encode_text; encode_text('warm-up'); "
    "start = time.time(); [encode_text('This is a test sentence') for _ in range(10)]; "
    "print(f'{(time.time() - start) / 10 * 1000:.1f} ms per text')"
)
LIST_SNIPPET = """
from backend.core.embedding_utils import encode_text, encode_texts, get_embedding_dimension
texts = ["one", "zwei", "三"]
vectors = encode_text(texts)
assert len(vectors) == 3 and all(len(vector) == 1024 for vector in vectors)
assert (encode_texts(texts) == vectors).all()
assert abs((vectors[0] - encode_text("one")).max()) < 1e-4
assert get_embedding_dimension() == 1024
"""


@pytest.fixture(scope="module")
def application(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what the guide's user has checked out, with the model converted by the guide's command."""
    folder = tmp_path_factory.mktemp("application")
    shutil.copytree(ROOT / "backend", folder / "backend")
    for name in ("convert_to_onnx.py", "test_model.py", ".env.example"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(folder / ".env.example", folder / ".env")
    done = run(folder, "convert_to_onnx.py", "--source", str(wide_checkpoint))
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env={**kept, **settings}, capture_output=True, text=True, timeout=600, check=False
    )


def test_convert_writes_to_the_guides_folder(application: Path) -> None:
    written = {path.name for path in (application / "models/bge-m3-onnx").iterdir()}
    assert written == IN_FOLDER
    assert json.loads((application / "models/bge-m3-onnx/verification.json").read_text())["passed"]


def test_verify_only_checks_what_is_there(application: Path) -> None:
    done = run(application, "convert_to_onnx.py", "--verify-only", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"]
    assert {"dense agrees with PyTorch, 512 tokens", "colbert agrees with PyTorch, texts"} <= {
        c["name"] for c in report["checks"]
    }


def test_test_model_prints_a_table_of_runtimes(application: Path) -> None:
    done = run(application, "test_model.py")
    assert done.returncode == 0, done.stderr
    for runtime in ("onnx (chosen)", "torch", "lightweight"):
        assert runtime in done.stdout
    assert done.stdout.count("works") == 3


RUNTIMES = {"onnx": {}, "pytorch": {"USE_ONNX": "0"}, "lightweight": {"LIGHTWEIGHT_EMBEDDING": "1"}}
SLOW = {("pytorch", "benchmark"), ("pytorch", "list")}
"""PyTorch takes seconds to load."""
ACTIVE_SNIPPET = (
    "from backend.core.embedding_utils import active; a = active(); print(a.encoder.runtime.name, a.reason)"
)
"""The active runtime and its reason can be asked for."""
ACTIVE = {
    "onnx": "onnx first choice",
    "pytorch": "torch asked for by the settings",
    "lightweight": "lightweight asked for by the settings",
}
SNIPPETS = {"dimension": DIMENSION_SNIPPET, "benchmark": BENCHMARK_ONE_LINER, "list": LIST_SNIPPET}


@pytest.mark.parametrize(
    ("runtime", "snippet"),
    [
        pytest.param(runtime, snippet, marks=pytest.mark.slow if (runtime, snippet) in SLOW else ())
        for runtime in RUNTIMES
        for snippet in SNIPPETS
    ],
)
def test_snippets_run_as_written(application: Path, runtime: str, snippet: str) -> None:
    done = run(application, "-W", "error", "-c", f"{SNIPPETS[snippet]}\n{ACTIVE_SNIPPET}", **RUNTIMES[runtime])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ACTIVE[runtime]


def test_a_model_that_is_not_there_says_what_to_type(application: Path, tmp_path: Path) -> None:
    hidden = 'import sys; sys.modules["torch"] = None; '
    done = run(
        application, "-c", hidden + DIMENSION_SNIPPET.strip().replace("\n", "; ", 1), ONNX_MODEL_PATH="./nowhere"
    )
    assert done.returncode == 1
    assert (
        "ArtifactNotFound: no converted model at nowhere. Convert one: vecferry convert BAAI/bge-m3 nowhere"
        in done.stderr
    )


def test_a_bad_setting_in_dotenv_is_refused_by_name(application: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("USE_ONNX=sometimes\n")
    shutil.copytree(application / "backend", tmp_path / "backend")
    done = run(tmp_path, "-c", DIMENSION_SNIPPET)
    assert "SettingsError: USE_ONNX=sometimes is not valid: expected true or false." in done.stderr


@pytest.mark.slow
def test_a_flipped_byte_fails_verify_only(application: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(application / "models/bge-m3-onnx", tmp_path / "damaged"))
    with (damaged / "model.onnx.data").open("r+b") as file:
        file.seek(1_000_001)
        byte = file.read(1)
        file.seek(1_000_001)
        file.write(bytes([byte[0] ^ 1]))
    done = run(application, "convert_to_onnx.py", "--verify-only", "--output", str(damaged))
    assert done.returncode == 4
    assert "error: " in done.stderr
    assert "SHA-256" in done.stderr
    as_json = run(application, "convert_to_onnx.py", "--verify-only", "--output", str(damaged), "--json")
    assert as_json.returncode == 4
    assert not json.loads(as_json.stdout)["passed"]
