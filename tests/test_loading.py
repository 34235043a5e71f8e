"""Which runtime serves, and that a fallback never changes the vector space."""

import builtins
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.make_checkpoint import make_checkpoint
from tests.conftest import TINY
from vecferry.encode.loading import EncoderOptions, LazyEncoder, Loaded, load_encoder, load_runtime, peek_dimension
from vecferry.errors import (
    ArtifactDamaged,
    ArtifactNotFound,
    RuntimeUnavailable,
    SettingsError,
    SpaceMismatch,
)
from vecferry.model.artifact import Artifact
from vecferry.settings import read_settings


@pytest.fixture
def damaged(tiny_artifact: Artifact, tmp_path: Path) -> Path:
    """Return an artifact whose weights are cut short; its manifest is whole and its checkpoint at hand."""
    folder = Path(shutil.copytree(tiny_artifact.path, tmp_path / "damaged"))
    with (folder / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    return folder


def without_module(monkeypatch: pytest.MonkeyPatch, name: str, *loaded: str) -> None:
    """Act as if a package were not installed."""
    original = builtins.__import__

    def importing(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted == name or wanted.startswith(f"{name}."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    for module in (name, *loaded):
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_onnx_is_the_first_choice(tiny_artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vecferry"):
        loaded = load_encoder(EncoderOptions(artifact=tiny_artifact.path))
    assert (loaded.encoder.runtime.name, loaded.reason) == ("onnx", "first choice")
    assert f"onnx (first choice) in vector space {tiny_artifact.fingerprint}" in caplog.text


def test_a_damaged_artifact_falls_back_to_pytorch_in_the_same_space_and_says_why(
    damaged: Path, tiny_artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vecferry"):
        loaded = load_encoder(EncoderOptions(artifact=damaged))
    assert loaded.encoder.runtime.name == "torch"
    assert loaded.encoder.fingerprint == tiny_artifact.fingerprint
    assert "model.onnx.data has 1000 bytes" in loaded.reason
    assert "model.onnx.data has 1000 bytes" in caplog.text


def test_a_fallback_into_another_space_is_refused(damaged: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", TINY, seed=1)
    with pytest.raises(SpaceMismatch, match="PyTorch fallback"):
        load_encoder(EncoderOptions(artifact=damaged, source=str(other)))


def test_a_fallback_that_cannot_be_had_leaves_the_cause(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_module(monkeypatch, "torch", "vecferry.encode.runtime.torch")
    with pytest.raises(ArtifactDamaged, match=r"model\.onnx\.data"):
        load_encoder(EncoderOptions(artifact=damaged))


def test_an_artifact_that_does_not_say_its_space_allows_no_fallback(damaged: Path, tiny_checkpoint: Path) -> None:
    (damaged / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactDamaged, match=r"manifest\.json"):
        load_encoder(EncoderOptions(artifact=damaged, source=str(tiny_checkpoint)))


def test_lightweight_is_never_a_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_module(monkeypatch, "torch", "vecferry.encode.runtime.torch")
    with pytest.raises(ArtifactNotFound):
        load_encoder(EncoderOptions(artifact=tmp_path / "none"))
    assert (
        load_encoder(EncoderOptions(artifact=tmp_path / "none", lightweight=True)).encoder.runtime.name == "lightweight"
    )


def test_an_expected_fingerprint_refuses_every_other_space(tiny_artifact: Artifact) -> None:
    load_encoder(EncoderOptions(artifact=tiny_artifact.path, fingerprint=tiny_artifact.fingerprint))
    with pytest.raises(SpaceMismatch, match="the lightweight runtime"):
        load_encoder(
            EncoderOptions(artifact=tiny_artifact.path, lightweight=True, fingerprint=tiny_artifact.fingerprint)
        )


def test_a_missing_onnxruntime_says_what_to_type(tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    without_module(monkeypatch, "onnxruntime", "vecferry.encode.runtime.onnx")
    with pytest.raises(RuntimeUnavailable) as caught:
        load_runtime(EncoderOptions(artifact=tiny_artifact.path), "onnx")
    assert caught.value.hint == "pip install --force-reinstall onnxruntime"


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_cuda_that_is_not_usable_is_an_error_that_says_what_to_set(tiny_artifact: Artifact, name: Any) -> None:
    if name == "torch" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(RuntimeUnavailable) as caught:
        load_runtime(EncoderOptions(artifact=tiny_artifact.path, device="cuda"), name)
    assert "VECFERRY_DEVICE=cpu" in caught.value.hint


STARVED = """
import resource, sys
from pathlib import Path
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.encode.batching import Limits
limits = Limits(max_batch_tokens=10**7, max_batch_rows=10**4, memory_budget_mb=10**6)
encoder = load_runtime(EncoderOptions(artifact=Path(sys.argv[1]), threads=1, limits=limits), "onnx")
encoder.encode(["warm"])
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
texts = ["word " * 500 + " ".join("ab"[n >> bit & 1] for bit in range(10)) for n in range(800)]  # equally long
print(len(encoder.encode(texts)), encoder.limits.max_batch_tokens)
"""


@pytest.mark.slow
def test_too_little_memory_halves_the_batches_and_goes_on(tiny_artifact: Artifact) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, tiny_artifact.path], capture_output=True, text=True, check=True
    )
    number, tokens = map(int, done.stdout.split())
    assert number == 800
    assert tokens < 800 * 500
    assert "out of memory in the onnx runtime on a batch of 800 × 512" in done.stderr
    assert f"Batches have {tokens} tokens at most from now on" in done.stderr


def test_the_dimension_is_known_without_loading(tiny_artifact: Artifact, tmp_path: Path) -> None:
    assert peek_dimension(EncoderOptions(artifact=tiny_artifact.path)) == 64
    assert peek_dimension(EncoderOptions(artifact=tmp_path / "none", lightweight=True)) == 1024
    assert peek_dimension(EncoderOptions(artifact=tmp_path / "none")) is None
    assert peek_dimension(EncoderOptions(artifact=tiny_artifact.path, use_onnx=False)) == 64
    assert peek_dimension(EncoderOptions(artifact=tiny_artifact.path, use_onnx=False, source="another")) is None


# --- lazy loading ---------------------------------------------------------------------------------


def test_threads_that_ask_at_once_load_once(tiny_artifact: Artifact) -> None:
    loads: list[int] = []

    def load() -> Loaded:
        loads.append(1)
        return load_encoder(EncoderOptions(artifact=tiny_artifact.path))

    lazy, encoders = LazyEncoder(load), []
    threads = [threading.Thread(target=lambda: encoders.append(lazy.get().encoder)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(encoder) for encoder in encoders}) == 1


def test_a_failed_load_is_tried_again() -> None:
    loaded = load_encoder(EncoderOptions(artifact=Path("none"), lightweight=True))
    outcomes: list[ArtifactNotFound | Loaded] = [ArtifactNotFound(Path("none")), loaded]

    def load() -> Loaded:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    lazy = LazyEncoder(load)
    with pytest.raises(ArtifactNotFound):
        lazy.get()
    assert lazy.get() is loaded


FORKED = """
import os
import numpy as np
from vecferry.dropin import encode_text
before = encode_text("text")
child = os.fork()
if child == 0:
    same = np.array_equal(encode_text("text"), before)
    raise SystemExit(0 if same else 1)  # as a worker ends: what it inherited is torn down
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_gets_an_encoder_of_its_own(tiny_artifact: Artifact) -> None:
    environment = {"ONNX_MODEL_PATH": str(tiny_artifact.path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout == "0\n"


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("USE_ONNX", "perhaps"),
        ("LIGHTWEIGHT_EMBEDDING", "2"),
        ("VECFERRY_DEVICE", "tpu"),
        ("VECFERRY_THREADS", "0"),
        ("VECFERRY_MAX_BATCH_TOKENS", "many"),
        ("VECFERRY_FINGERPRINT", "abc"),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}={value}"):
        read_settings()


def test_settings_are_read_from_dotenv_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("\ufeffUSE_ONNX=0\nONNX_MODEL_PATH=/from/file\nLIGHTWEIGHT_EMBEDDING=\nUNKNOWN=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNX_MODEL_PATH", "/from/environment")
    settings = read_settings()
    assert (settings.use_onnx, settings.lightweight_embedding) == (False, False)
    assert settings.onnx_model_path == Path("/from/environment")


def test_the_database_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECFERRY_STORE_URL", "postgresql://app:hunter2@localhost/app")
    assert "hunter2" not in repr(read_settings())
    assert "hunter2" not in str(read_settings().model_dump())
