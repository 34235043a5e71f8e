"""Files of texts in, files of embeddings out, and what happens to bad lines and full disks."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.embeddings import Embeddings, MultiVector, Outputs, Sparse, indptr_of
from vecferry.encode.export import Records, check_target, load_npz, parse_lines, write
from vecferry.errors import EmptyInput, InvalidRecord, MissingExtra, OutputWriteFailed, SettingsError, SpaceMismatch

COMBINATIONS = [
    Outputs.DENSE, Outputs.SPARSE, Outputs.COLBERT, Outputs.DENSE | Outputs.SPARSE,
    Outputs.DENSE | Outputs.COLBERT, Outputs.SPARSE | Outputs.COLBERT, Outputs.ALL,
]  # fmt: skip
IDS = ["a", "a", "ünïcödé ☃", "", "4"]


def embeddings(outputs: Outputs, num_texts: int = 5, seed: int = 0, fingerprint: str = "f" * 64) -> Embeddings:
    """Return random embeddings, with a text that has neither lexical weights nor ColBERT vectors."""
    random = np.random.default_rng(seed)
    lengths = np.array([3, 0, 1, 2, 4])[:num_texts]
    total = int(lengths.sum())
    return Embeddings(
        fingerprint,
        lengths + 2,
        np.arange(num_texts) == 3,
        random.normal(size=(num_texts, 6)).astype(np.float32) if Outputs.DENSE in outputs else None,
        Sparse(
            indptr_of(lengths),
            np.arange(total, dtype=np.int32) * 7,
            random.random(total, np.float32) + np.float32(1e-9),
        )
        if Outputs.SPARSE in outputs
        else None,
        MultiVector(indptr_of(lengths), random.normal(size=(total, 6)).astype(np.float32))
        if Outputs.COLBERT in outputs
        else None,
    )


def in_chunks(whole: Embeddings) -> Iterator[tuple[list[str], Embeddings]]:
    yield IDS[:2], whole.take(np.arange(2))
    yield IDS[2:], whole.take(np.arange(2, 5))


def assert_same(embeddings: Embeddings, expected: Embeddings) -> None:
    """Assert that all outputs, also those that were not requested, are the same to the bit."""
    assert embeddings.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(embeddings.num_tokens, expected.num_tokens)
    np.testing.assert_array_equal(embeddings.truncated, expected.truncated)
    for output in ("dense_or_none", "sparse_or_none", "colbert_or_none"):
        ours, theirs = getattr(embeddings, output), getattr(expected, output)
        assert type(ours) is type(theirs)
        for mine, other in zip(arrays_of(ours), arrays_of(theirs), strict=True):
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other)


def arrays_of(value: object) -> list[np.ndarray]:
    return [] if value is None else [value] if isinstance(value, np.ndarray) else list(vars(value).values())


# --- reading --------------------------------------------------------------------------------------


def read(content: bytes, name: str = "input") -> list[tuple[str, str]]:
    return list(parse_lines(io.BytesIO(content), name))


def test_records_keep_their_ids_and_whole_numbers_become_strings() -> None:
    content = '{"id": "a", "text": "one"}\n{"text": "två", "id": 2, "more": null}\n{"id": "a", "text": ""}\n'
    assert read(content.encode()) == [("a", "one"), ("2", "två"), ("a", "")]


def test_plain_texts_are_numbered_by_their_lines() -> None:
    assert read(b"one\n\n  \ntwo {\n three ") == [("1", "one"), ("4", "two {"), ("5", " three ")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\n"])
def test_a_byte_order_mark_blank_lines_and_line_ends_do_not_matter(start: bytes, end: bytes) -> None:
    content = end.join([start + b'{"id": "a", "text": "one"}', b"", b'{"id": "b", "text": "two"}', b""])
    assert read(content) == [("a", "one"), ("b", "two")]


def test_the_name_decides_before_the_first_line_does() -> None:
    assert read(b'{"id": 1, "text": "one"}', "in.txt") == [("1", '{"id": 1, "text": "one"}')]
    with pytest.raises(InvalidRecord, match=r"in\.jsonl, line 1: it is not JSON"):
        read(b"one", "in.jsonl")


def test_characters_that_look_like_line_ends_stay_in_the_text() -> None:
    text = "a\u2028b\x85c\x0bd\x0ce\x00f"
    assert read(json.dumps({"id": "1", "text": text}, ensure_ascii=False).encode()) == [("1", text)]
    assert read(text.encode()) == [("1", text)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "it is not JSON"),
        (b"plain", "it is not JSON"),
        (b'["a", "b"]', "it is not a JSON object"),
        (b'{"text": "b"}', 'it has no "id"'),
        (b'{"id": "a"}', 'it has no "text"'),
        (b'{"id": "a", "text": null}', 'its "text" is not a string'),
        (b'{"id": "a", "text": ["b"]}', 'its "text" is not a string'),
        (b'{"id": null, "text": "b"}', 'its "id" is neither'),
        (b'{"id": 1.5, "text": "b"}', 'its "id" is neither'),
        (b'{"id": true, "text": "b"}', 'its "id" is neither'),
        (b'{"id": "a\\u0000", "text": "b"}', 'its "id" holds a NUL'),
        (b'{"id": "a", "text": "x\\ud800y"}', 'its "text" holds a lone surrogate'),
        (b'{"id": "\\udfff", "text": "b"}', 'its "id" holds a lone surrogate'),
        (b'{"id": "a", "text": "\xff"}', "it is not UTF-8"),
        (b'{"id": "a", "text": "\xed\xa0\x80"}', "it is not UTF-8"),
        (b'{"id": ' + b"9" * 5000 + b', "text": "b"}', "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        read(b'{"id": "ok", "text": "fine \\ud83d\\ude00"}\n\n' + line + b'\n{"id": "z", "text": ""}')
    assert (caught.value.path, caught.value.line) == ("input", 3)
    assert caught.value.reason.startswith(reason)


@given(st.lists(st.tuples(st.integers() | st.text(), st.text()), min_size=1))
def test_whatever_json_writes_is_read_back(records: list[tuple[int | str, str]]) -> None:
    valid = [(i, t) for i, t in records if "\0" not in str(i)]
    content = "\n".join(json.dumps({"id": i, "text": t}) for i, t in valid)
    assert read(content.encode()) == [(str(i), t) for i, t in valid]


def test_files_and_standard_input_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"id": 7, "text": "one"}\n{"id": "x", "text": "two"}')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("not this file")
    assert list(Records(str(path))) == list(Records("-")) == [("7", "one"), ("x", "two")]


def test_a_pipe_is_read_once_and_a_file_anew(tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "texts.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("one\ntwo\n",))
    writer.start()
    piped = Records(str(pipe))
    writer.join()
    assert (len(piped), list(piped), list(piped)) == (2, [("1", "one"), ("2", "two")], [("1", "one"), ("2", "two")])
    file.write_text("one\n")
    records = Records(str(file))
    assert list(records) == list(records) == [("1", "one")]
    file.write_text("one\ntwo\n")
    with pytest.raises(SettingsError, match="it had 1 texts, and has 2"):
        list(records)


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_texts_is_empty_input(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(EmptyInput):
        Records(str(path))


def test_a_file_that_cannot_be_read_is_a_wrong_argument(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(SettingsError, match="a file that can be read"):
            Records(str(path))


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", COMBINATIONS, ids=lambda o: "-".join(o.names))
def test_npz_gives_back_the_same_bits_and_only_the_keys_asked_for(tmp_path: Path, outputs: Outputs) -> None:
    whole = embeddings(outputs)
    write(tmp_path / "out.npz", in_chunks(whole))
    ids, loaded = load_npz(tmp_path / "out.npz")
    assert ids == IDS
    assert_same(loaded, whole)
    keys = {
        "dense": {"dense"},
        "sparse": {"sparse_indptr", "sparse_indices", "sparse_weights"},
        "colbert": {"colbert_indptr", "colbert"},
    }
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        always = {"ids", "num_tokens", "truncated", "fingerprint", "mark"}
        assert set(file) == always.union(*(keys[name] for name in outputs.names))


@pytest.mark.parametrize("outputs", COMBINATIONS, ids=lambda o: "-".join(o.names))
def test_jsonl_gives_back_the_same_float32(tmp_path: Path, outputs: Outputs) -> None:
    whole = embeddings(outputs)
    write(tmp_path / "out.jsonl", in_chunks(whole))
    lines = (tmp_path / "out.jsonl").read_bytes().decode("ascii").split("\n")
    assert lines.pop() == ""
    records = [json.loads(line) for line in lines]
    assert [r["id"] for r in records] == IDS
    for row, record in enumerate(records):
        assert set(record) == {"id", "num_tokens", "truncated", "fingerprint", "form", *outputs.names}
        assert record["num_tokens"] == whole.num_tokens[row]
        assert record["truncated"] is bool(whole.truncated[row])
        assert record["fingerprint"] == whole.fingerprint
        if Outputs.DENSE in outputs:
            np.testing.assert_array_equal(np.array(record["dense"], np.float32), whole.dense[row])
        if Outputs.SPARSE in outputs:
            pairs = {int(token): np.float32(weight) for token, weight in record["sparse"].items()}
            assert pairs == {token: np.float32(weight) for token, weight in whole.sparse.row(row).items()}
        if Outputs.COLBERT in outputs:
            vectors = np.array(record["colbert"], np.float32).reshape(-1, 6)
            np.testing.assert_array_equal(vectors, whole.colbert[row])


@pytest.mark.parametrize("outputs", COMBINATIONS, ids=lambda o: "-".join(o.names))
def test_parquet_gives_back_the_same_float32(tmp_path: Path, outputs: Outputs) -> None:
    whole = embeddings(outputs)
    write(tmp_path / "out.parquet", in_chunks(whole))
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"fingerprint"].decode() == whole.fingerprint
    columns = {
        "dense": {"dense": "list<element: float>"},
        "sparse": {"sparse_indices": "list<element: int32>", "sparse_weights": "list<element: float>"},
        "colbert": {"colbert": "list<element: list<element: float>>"},
    }
    expected = {"id": "string", "num_tokens": "int64", "truncated": "bool"}
    for name in outputs.names:
        expected |= columns[name]
    assert {field.name: str(field.type) for field in table.schema} == expected
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == IDS
    for i, row in enumerate(rows):
        assert (row["num_tokens"], row["truncated"]) == (whole.num_tokens[i], whole.truncated[i])
        if Outputs.DENSE in outputs:
            np.testing.assert_array_equal(np.array(row["dense"], np.float32), whole.dense[i])
        if Outputs.SPARSE in outputs:
            assert dict(zip(row["sparse_indices"], row["sparse_weights"], strict=True)) == whole.sparse.row(i)
        if Outputs.COLBERT in outputs:
            np.testing.assert_array_equal(np.array(row["colbert"], np.float32).reshape(-1, 6), whole.colbert[i])


def test_parquet_of_many_texts_with_colbert_is_written_in_row_groups(tmp_path: Path) -> None:
    whole = embeddings(Outputs.ALL).take(np.arange(300) % 5)
    ids = [str(i) for i in range(300)]
    write(tmp_path / "out.parquet", iter([(ids, whole)]))
    table = pyarrow.parquet.ParquetFile(tmp_path / "out.parquet")
    assert table.num_row_groups == 3
    rows = table.read().to_pylist()
    assert [row["id"] for row in rows] == ids
    np.testing.assert_array_equal(np.array(rows[299]["colbert"], np.float32), whole.colbert[299])


def test_what_was_written_is_counted(tmp_path: Path) -> None:
    whole = embeddings(Outputs.DENSE)
    for name in ("out.npz", "out.jsonl", "out.parquet"):
        written = write(tmp_path / name, in_chunks(whole))
        assert (written.texts, written.tokens, written.truncated) == (5, 20, 1)
        assert written.fingerprint == whole.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.npz", "out.parquet"]


def test_without_a_target_json_lines_go_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = embeddings(Outputs.ALL)
    write(tmp_path / "out.jsonl", in_chunks(whole))
    write(None, in_chunks(whole))
    assert capsys.readouterr().out == (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl", "out.parquet"])
def test_the_same_embeddings_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    contents = []
    for _ in range(2):
        write(tmp_path / name, in_chunks(embeddings(Outputs.ALL)))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl", "out.parquet"])
def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    def mixed() -> Iterator[tuple[list[str], Embeddings]]:
        yield IDS, embeddings(Outputs.ALL)
        yield IDS, embeddings(Outputs.ALL, fingerprint="e" * 64)

    (tmp_path / name).write_text("before")
    with pytest.raises(SpaceMismatch):
        write(tmp_path / name, mixed())
    with pytest.raises(EmptyInput):
        write(tmp_path / name, iter([]))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"


@pytest.mark.parametrize("name", ["out", "out.json", "out.npz.gz", ".npz"])
def test_a_name_of_another_format_is_refused_with_those_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"--output=.*expected a name that ends in \.npz, \.jsonl, \.parquet"):
        check_target(tmp_path / name)


def test_a_target_that_cannot_be_written_is_said_before_encoding(tmp_path: Path) -> None:
    check_target(None)
    check_target(tmp_path / "OUT.NPZ")
    with pytest.raises(OutputWriteFailed, match="there is no folder"):
        check_target(tmp_path / "missing" / "out.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OutputWriteFailed, match="there is a folder of that name"):
        check_target(tmp_path / "folder.npz")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vecferry\[parquet\]'"):
        write(tmp_path / "out.parquet", in_chunks(embeddings(Outputs.DENSE)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount 64 KiB of memory; this needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["out.npz", "out.jsonl", "out.parquet"])
def test_a_full_disk_is_said_and_the_old_file_stays(small_disk: Path, name: str) -> None:
    (small_disk / name).write_text("before")
    chunk = Embeddings(
        "f" * 64, np.ones(100, np.int64), np.zeros(100, bool), np.random.default_rng(0).random((100, 1024), np.float32)
    )
    with pytest.raises(OutputWriteFailed, match="the disk is full"):
        write(small_disk / name, iter([([str(i) for i in range(100)], chunk)]))
    assert [path.name for path in small_disk.iterdir()] == [name]
    assert (small_disk / name).read_text() == "before"


def test_parquet_in_is_read_as_records(tmp_path: Path) -> None:
    path = str(tmp_path / "texts.parquet")
    columns = {"text": ["one", "two", ""], "other": [1, 2, 3], "id": [7, 8, 8]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert list(Records(path)) == [("7", "one"), ("8", "two"), ("8", "")]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": ["a"]}, "a Parquet file with a column id"),
        ({"id": ["a"], "text": [None]}, 'line 1: its "text" is not a string'),
        ({"id": [1.5], "text": ["a"]}, 'line 1: its "id" is neither a string nor a whole number'),
    ],
)
def test_wrong_parquet_is_named(tmp_path: Path, columns: dict[str, list[Any]], expected: str) -> None:
    path = str(tmp_path / "texts.parquet")
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises((SettingsError, InvalidRecord), match=expected):
        Records(path)


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts.parquet").write_text("no parquet")
    with pytest.raises(SettingsError, match="a Parquet file"):
        Records(str(tmp_path / "texts.parquet"))
