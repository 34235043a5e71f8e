"""The folder appears whole or not at all, and damage is found."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.values import OF_EACH_KIND
from vecferry.conversion.convert import convert_checkpoint
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.errors import ArtifactDamaged, ArtifactNotFound, ArtifactWriteFailed, Locked
from vecferry.model.artifact import PIECES, Artifact, _read_manifest, _sole_writer, file_record, writing
from vecferry.model.files import write_json
from vecferry.model.sources import open_source
from vecferry.model.tokens import MappedTokenizer, Tokenizer, open_tokenizer


@pytest.fixture
def copied(tiny_artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact.path, tmp_path / "copied"))


def test_what_was_written_is_opened_by_folder_or_by_model_file(tiny_artifact: Artifact) -> None:
    assert Artifact.open(tiny_artifact.path) == tiny_artifact
    assert Artifact.open(tiny_artifact.path / "model.onnx") == tiny_artifact


def test_a_missing_artifact_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound) as caught:
        Artifact.open(tmp_path / "none")
    assert caught.value.hint == f"Convert one: vecferry convert BAAI/bge-m3 {tmp_path / 'none'}"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_missing_and_a_truncated_file_are_named(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[:-1])
    with pytest.raises(ArtifactDamaged, match=rf"{name} has {len(content) - 1} bytes, not {len(content)}"):
        Artifact.open(copied)
    (copied / name).unlink()
    with pytest.raises(ArtifactDamaged, match=f"{name} is missing"):
        Artifact.open(copied)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_flipped_byte_of_a_small_file_is_found_at_opening(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=f"{name} has SHA-256"):
        Artifact.open(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=99), "format 99"),
        (lambda m: m["space"].update(pooling="mean"), "fingerprint does not belong"),
        (lambda m: m["files"].update({"../outside": m["files"]["model.onnx"]}), r"names the files \['\.\./outside'"),
        (lambda m: m["files"].update({"..": m["files"]["model.onnx"]}), r"names the files \['\.\.'"),
        (lambda m: m.update(files={}), r"names the files \[\], not model\.onnx, model\.onnx\.data, tokenizer\.json"),
        (lambda m: m["files"].pop("model.onnx.data"), "names the files"),
        (lambda m: m["files"]["model.onnx"].update(sha256="../x"), r"files\.model\.onnx\.sha256"),
        (lambda m: m["files"]["model.onnx"].update(bytes=-1), r"files\.model\.onnx\.bytes"),
        (lambda m: m["files"]["tokenizer.json"].update(sha256="0" * 64), "not the tokenizer of the vector space"),
        (lambda m: m["encoder"].update(layer_norm_eps=1e400), r"encoder\.layer_norm_eps|not JSON|expected value"),
        (lambda m: m["encoder"].update(layers=10**9), r"encoder\.layers"),
        (lambda m: m["encoder"].update(hidden=32), "the dimension of space and encoder differ"),
        (lambda m: m["encoder"].update(query_prefix="q: "), "the query_prefix of space and encoder differ"),
        (lambda m: m["space"].update(special_ids=[-1]), r"space\.special_ids"),
        (lambda m: m["space"].update(dimension=10**30), r"space\.dimension"),
        (lambda m: m.pop("opset"), "opset"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update({"x" * 10_000: 1}), r"json: x{100}: Extra"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(copied: Path, change: object, message: str) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    change(manifest)  # type: ignore[operator]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactDamaged, match=message):
        Artifact.open(copied)


def test_an_unreadable_manifest_is_refused(copied: Path) -> None:
    (copied / "manifest.json").write_text("{")
    with pytest.raises(ArtifactDamaged, match=r"manifest\.json"):
        Artifact.open(copied)


def fields(value: object, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the way to each field of a manifest."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from fields(inner, *path, name)


def test_no_value_of_any_field_of_a_manifest_raises_anything_but_an_artifact_error(
    tiny_artifact: Artifact, tmp_path: Path
) -> None:
    manifest = tiny_artifact.manifest.model_dump(mode="json")
    for *way, last in filter(None, fields(manifest)):
        for value in OF_EACH_KIND:
            changed: Any = copy.deepcopy(manifest)
            inner = changed
            for name in way:
                inner = inner[name]
            inner[last] = value
            (tmp_path / "manifest.json").write_text(json.dumps(changed))
            with suppress(ArtifactDamaged):
                _read_manifest(tmp_path)


def test_a_manifest_without_an_end_or_of_many_megabytes_is_refused(copied: Path) -> None:
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text() + " " * 1_000_000)
    with pytest.raises(ArtifactDamaged, match="more than the 1000000 bytes"):
        Artifact.open(copied)
    manifest.unlink()
    manifest.symlink_to("/dev/zero")
    with pytest.raises(ArtifactDamaged, match="not a regular file"):
        Artifact.open(copied)


def test_a_pipe_in_the_place_of_a_file_is_missing(copied: Path) -> None:
    (copied / "model.onnx.data").unlink()
    os.mkfifo(copied / "model.onnx.data")
    with pytest.raises(ArtifactDamaged, match=r"model\.onnx\.data is missing"):
        Artifact.open(copied)


def with_tokenizer(folder: Path, content: bytes) -> Path:
    """Put another tokenizer.json into an artifact, with a manifest that says so throughout."""
    (folder / "tokenizer.json").write_bytes(content)
    manifest = Artifact.peek(folder)
    assert manifest is not None
    record = file_record(folder / "tokenizer.json")
    space = manifest.space.model_copy(update={"tokenizer": record.sha256})
    files = manifest.files | {"tokenizer.json": record}
    changed = manifest.model_copy(update={"space": space, "fingerprint": space.fingerprint, "files": files})
    (folder / "manifest.json").write_text(changed.model_dump_json())
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(model=7), "not a tokenizer"),
        (lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": ""}), "not a tokenizer"),
        (
            lambda t: (t["model"]["vocab"][1].__setitem__(0, "x"), t["added_tokens"][1].update(content="x")),
            "special ids",
        ),
    ],
)
def test_a_tokenizer_that_is_not_the_spaces_is_refused(copied: Path, change: object, message: str) -> None:
    tokenizer = json.loads((copied / "tokenizer.json").read_bytes())
    change(tokenizer)  # type: ignore[operator]
    artifact = Artifact.open(with_tokenizer(copied, json.dumps(tokenizer).encode()))
    with pytest.raises(ArtifactDamaged, match=message):
        open_tokenizer(artifact)


def test_a_tokenizer_that_is_changed_after_the_opening_is_refused_before_it_is_parsed(copied: Path) -> None:
    """It was tried in a process of its own at conversion alone; the digest is what makes that enough."""
    artifact = Artifact.open(copied)
    (copied / "tokenizer.json").write_bytes(b"not a tokenizer")
    with pytest.raises(ArtifactDamaged, match=r"tokenizer\.json has SHA-256"):
        open_tokenizer(artifact)


def test_low_memory_maps_the_vocabulary_and_gives_the_same_ids(copied: Path) -> None:
    artifact, texts = Artifact.open(copied), ["Hello world", "你好 <mask>", ""]
    tokenizer = open_tokenizer(artifact, mapped=True)
    assert isinstance(tokenizer, MappedTokenizer)
    assert tokenizer(texts).ids.tolist() == open_tokenizer(artifact)(texts).ids.tolist()


def test_an_artifact_without_a_mapped_vocabulary_is_read_from_tokenizer_json(copied: Path) -> None:
    """Those of earlier releases have none."""
    manifest = Artifact.open(copied).manifest
    files = {name: record for name, record in manifest.files.items() if name != PIECES}
    (copied / "manifest.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    (copied / PIECES).unlink()
    assert type(open_tokenizer(Artifact.open(copied), mapped=True)) is Tokenizer


def test_a_mapped_vocabulary_that_is_not_the_manifests_is_refused(copied: Path) -> None:
    artifact = Artifact.open(copied)
    content = bytearray((copied / PIECES).read_bytes())
    content[-1] ^= 1
    (copied / PIECES).write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"tokenizer\.pieces.*SHA-256"):
        open_tokenizer(artifact, mapped=True)
    with pytest.raises(ArtifactDamaged, match=r"tokenizer\.pieces has SHA-256"):
        Artifact.open(copied)


def test_a_mapped_vocabulary_of_another_tokenizer_is_refused(copied: Path) -> None:
    tokenizer = json.loads((copied / "tokenizer.json").read_bytes())
    tokenizer["model"]["vocab"][9][1] -= 1.0
    artifact = Artifact.open(with_tokenizer(copied, json.dumps(tokenizer).encode()))
    with pytest.raises(ArtifactDamaged, match="made of another tokenizer"):
        open_tokenizer(artifact, mapped=True)


def test_a_model_that_does_not_load_is_damaged_not_a_traceback(copied: Path) -> None:
    artifact = Artifact.open(copied)
    (copied / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactDamaged, match="ONNX Runtime does not load it"):
        OnnxRuntime(artifact)


# --- writing --------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_an_error_while_writing_leaves_the_old_artifact(copied: Path) -> None:
    before = Artifact.open(copied)

    def interrupted() -> None:
        with writing(copied) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert Artifact.open(copied) == before
    assert leftovers(copied.parent) == ["copied"]


def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactWriteFailed, match="something else"), writing(tmp_path / "documents"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactWriteFailed, match="a file of that name"), writing(tmp_path / "file"):
        pass


def write_a_model(folder: Path, source: Path) -> None:
    with writing(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


@pytest.mark.parametrize("manifest", ['{"name": "my web app", "start_url": "/"}', "{}", "not JSON", "\udcff"])
def test_a_folder_with_the_manifest_of_something_else_is_not_replaced(tmp_path: Path, manifest: str) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text(manifest, encoding="utf-8", errors="surrogateescape")
    refused = r"something else than a converted model: manifest\.json.*--output"
    with pytest.raises(ArtifactWriteFailed, match=refused), writing(app):
        raise AssertionError("nothing is converted for a folder that is not replaced")
    assert leftovers(tmp_path) == ["app"]
    assert (app / "manifest.json").exists()


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", "tokenizer.json/inside"])
def test_a_converted_model_with_something_beside_it_is_not_replaced(copied: Path, name: str) -> None:
    foreign = copied / name
    if foreign.parent != copied:
        foreign.parent.unlink(missing_ok=True)
        foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(ArtifactWriteFailed, match=name.split("/")[0]), writing(copied):
        pass
    assert foreign.read_text() == "mine"


def test_what_was_put_there_while_it_was_written_is_not_replaced(copied: Path, tiny_artifact: Artifact) -> None:
    def write_meanwhile() -> None:
        with writing(copied) as temporary:
            shutil.copytree(tiny_artifact.path, temporary, dirs_exist_ok=True)
            (copied / "notes.txt").write_text("mine")

    with pytest.raises(ArtifactWriteFailed, match=r"notes\.txt"):
        write_meanwhile()
    assert (copied / "notes.txt").read_text() == "mine"
    assert leftovers(copied.parent) == ["copied"]


def test_a_link_is_followed_and_stays_one_however_often(tmp_path: Path, tiny_artifact: Artifact) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk" / "model-1")
    for _ in range(3):
        write_a_model(link, tiny_artifact.path)
        assert link.is_symlink()
        assert Artifact.open(link).manifest == tiny_artifact.manifest
    assert leftovers(tmp_path / "disk") == ["model-1"]
    assert leftovers(tmp_path) == ["disk", "model"]


def test_death_between_the_two_renames_is_undone_behind_a_link_too(copied: Path, tiny_artifact: Artifact) -> None:
    link = copied.parent / "link"
    link.symlink_to(copied)
    copied.rename(copied.parent / ".copied.previous")
    assert Artifact.open(link).manifest == tiny_artifact.manifest


def test_a_link_that_an_earlier_version_set_aside_is_in_nobodys_way(copied: Path, tiny_artifact: Artifact) -> None:
    (copied.parent / ".copied.previous").symlink_to(tiny_artifact.path)
    write_a_model(copied, tiny_artifact.path)
    assert leftovers(copied.parent) == ["copied"]
    assert Artifact.open(tiny_artifact.path) == tiny_artifact


def test_death_while_the_previous_folder_is_removed_is_in_nobodys_way(copied: Path, tiny_artifact: Artifact) -> None:
    (copied.parent / ".copied.previous").mkdir()
    (copied.parent / ".copied.previous" / "model.onnx.data").write_bytes(b"what was not yet removed")
    write_a_model(copied, tiny_artifact.path)
    assert leftovers(copied.parent) == ["copied"]


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path, tiny_artifact: Artifact) -> None:
    (tmp_path / ".model1.partial-1").mkdir()
    (tmp_path / ".model[1].partial-1").mkdir()
    write_a_model(tmp_path / "model[1]", tiny_artifact.path)
    assert leftovers(tmp_path) == [".model1.partial-1", "model[1]"]


@pytest.mark.parametrize("names", [["link"], ["link", "link 2"]])
def test_a_file_behind_links_is_replaced_where_it_lies(tmp_path: Path, names: list[str]) -> None:
    target = tmp_path / "target.json"
    target.write_text("old")
    for name in names:
        (tmp_path / name).symlink_to(target)
        target = tmp_path / name
    write_json(target, "new")
    assert (target.is_symlink(), json.loads((tmp_path / "target.json").read_text())) == (True, "new")
    assert leftovers(tmp_path) == [*names, "target.json"]


def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="not a file"):
        write_json(pipe, "new")
    assert pipe.is_fifo()


def test_two_writers_of_one_folder_are_kept_apart(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with writing(tmp_path / "out") as folder:
            (folder / "manifest.json").write_text("{}")
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(30)
    with pytest.raises(Locked), writing(tmp_path / "out"):
        pass
    leave.set()
    thread.join()
    assert (tmp_path / "out" / "manifest.json").exists()


def test_death_between_the_two_renames_is_undone_at_the_next_opening(copied: Path, tiny_artifact: Artifact) -> None:
    copied.rename(copied.parent / ".copied.previous")
    assert Artifact.open(copied).manifest == tiny_artifact.manifest


def test_opening_waits_for_a_writer_between_its_two_renames(copied: Path, tiny_artifact: Artifact) -> None:
    """Opening must not put the previous folder back under the writer's hands."""
    aside, opened = copied.parent / ".copied.previous", []
    with _sole_writer(copied, wait_s=0):
        new = Path(shutil.copytree(copied, copied.parent / ".copied.partial-1"))
        copied.rename(aside)
        reader = threading.Thread(target=lambda: opened.append(Artifact.open(copied)))
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        new.rename(copied)
        shutil.rmtree(aside)
    reader.join(30)
    assert opened[0].manifest == tiny_artifact.manifest


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ArtifactWriteFailed, match="Permission denied"):
        convert_checkpoint(open_source(str(tiny_checkpoint)), tmp_path / "locked" / "out", verified=False)


def test_a_folder_that_cannot_be_made_is_named(tiny_checkpoint: Path) -> None:
    with pytest.raises(ArtifactWriteFailed, match="/proc/nowhere/out was not written"):
        convert_checkpoint(open_source(str(tiny_checkpoint)), Path("/proc/nowhere/out"), verified=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 2 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_leaves_what_was_there(
    small_disk: Path, tiny_checkpoint: Path, tiny_artifact: Artifact
) -> None:
    out = small_disk / "out"
    out.mkdir()
    shutil.copyfile(tiny_artifact.path / "manifest.json", out / "manifest.json")
    with pytest.raises(ArtifactWriteFailed, match="the disk is full"):
        convert_checkpoint(open_source(str(tiny_checkpoint)), out, verified=False)
    assert Artifact.peek(out) == tiny_artifact.manifest
    assert leftovers(small_disk) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from vecferry.conversion import onnx_file
from vecferry.conversion.convert import convert_checkpoint
from vecferry.model.sources import open_source
from vecferry.model.tokens import open_tokenizer
written = 0
original = onnx_file._write_weight
def write_weight(weight, data):
    global written
    written += 1
    if written == 12:
        print("half-way", flush=True)
        signal.pause()
    return original(weight, data)
onnx_file._write_weight = write_weight
convert_checkpoint(open_source(sys.argv[1]), Path(sys.argv[2]), verified=False)
"""


def test_kill_9_in_the_middle_of_a_conversion_leaves_the_old_artifact(tiny_checkpoint: Path, copied: Path) -> None:
    before = Artifact.open(copied)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tiny_checkpoint, copied], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half-way\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert Artifact.open(copied) == before
    assert len(leftovers(copied.parent)) == 2  # the half-written folder, under its temporary name
    convert_checkpoint(open_source(str(tiny_checkpoint)), copied, verified=False)
    assert leftovers(copied.parent) == ["copied"]
    assert Artifact.open(copied).manifest == before.manifest


def test_the_old_artifact_keeps_running_while_a_new_one_takes_its_place(copied: Path, tiny_checkpoint: Path) -> None:
    import numpy as np

    from vecferry.embeddings import Outputs, TokenBatch

    runtime, batch = OnnxRuntime(Artifact.open(copied)), TokenBatch.from_lists([[0, 10, 2]])
    before = runtime.run(batch, Outputs.ALL).dense
    convert_checkpoint(open_source(str(tiny_checkpoint)), copied, verified=False)
    np.testing.assert_array_equal(runtime.run(batch, Outputs.ALL).dense, before)
