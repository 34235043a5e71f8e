import fcntl
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from vecferry.embeddings import DENSE, Outputs, SparseVector, TextVectors
from vecferry.errors import InvalidText, MissingExtra, OutputWriteFailed, StoreFailed
from vecferry.migrate import staged_file, staged_index
from vecferry.migrate.embed import Embedded, embed
from vecferry.migrate.staging import Staging, remove_staged
from vecferry.stores.ledger import DeadLetter
from vecferry.stores.values import NewVector, Row, text_digest

FINGERPRINT = "f" * 64
ROOT = Path(__file__).parents[2]
KEEP_FOREVER = """
import sys, time
from pathlib import Path
from vecferry.migrate import staging
staging.write = lambda file, rows: (file.write(b"half"), file.flush(), print("writing", flush=True), time.sleep(60))
staging.Staging(Path(sys.argv[1]), sys.argv[2]).keep("a", staging.Embedded((), ()))
"""


def new(text: str, outputs: Outputs = DENSE, dimension: int = 4) -> NewVector:
    """The key is the text; as many tokens as letters."""
    sparse = SparseVector(np.arange(len(text), dtype=np.int32), np.full(len(text), 0.25, np.float32))
    colbert = np.stack([truth("colbert", letter, dimension) for letter in text])
    return NewVector(
        (text,),
        text_digest(text),
        TextVectors(
            truth("new", text, dimension),
            sparse if Outputs.SPARSE in outputs else None,
            colbert if Outputs.COLBERT in outputs else None,
        ),
    )


def embedded(texts: Sequence[str], dead: Sequence[str] = (), outputs: Outputs = DENSE) -> Embedded:
    vectors = [new(text, outputs) for text in texts] + [NewVector((text,), text_digest(text), None) for text in dead]
    letters = [DeadLetter((text,), f"no {text}", text_digest(text)) for text in dead]
    return Embedded(tuple(vectors), tuple(letters))


def under(name: str, texts: Sequence[str]) -> Embedded:
    """The same texts in rows of other keys."""
    return Embedded(tuple(NewVector((name, text), text_digest(text), new(text).vectors) for text in texts), ())


def assert_same(found: Embedded | None, expected: Embedded) -> None:
    assert found is not None
    assert found.dead_letters == expected.dead_letters
    assert [(v.key, v.digest) for v in found.vectors] == [(v.key, v.digest) for v in expected.vectors]
    for a, b in zip(found.vectors, expected.vectors, strict=True):
        assert (a.vectors is None) == (b.vectors is None)
        if a.vectors is not None and b.vectors is not None:
            assert_same_vectors(a.vectors, b.vectors)


def assert_same_vectors(a: TextVectors, b: TextVectors) -> None:
    assert a.outputs == b.outputs
    np.testing.assert_array_equal(a.dense, b.dense)
    if a.sparse is not None and b.sparse is not None:
        np.testing.assert_array_equal(a.sparse.indices, b.sparse.indices)
        np.testing.assert_array_equal(a.sparse.weights, b.sparse.weights)
    if a.colbert is not None and b.colbert is not None:
        assert a.colbert.dtype == np.float32
        np.testing.assert_allclose(a.colbert, b.colbert, atol=5e-4)  # half precision of numbers up to 1


def file_of(folder: Path, name: str) -> Path:
    return folder / FINGERPRINT / "dense" / f"{name}.parquet"


# --- keeping and reading --------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [DENSE, DENSE | Outputs.SPARSE, Outputs.ALL])
def test_what_is_kept_is_read_in_its_order_by_this_and_the_next_process(tmp_path: Path, outputs: Outputs) -> None:
    expected = embedded(["one", "two", "three"], ["bad", "worse"], outputs)
    first = Staging(tmp_path, FINGERPRINT, outputs)
    first.keep("a", expected)
    for staging in (first, Staging(tmp_path, FINGERPRINT, outputs)):
        assert_same(staging.read("a"), expected)
        assert staging.read("b") is None
        digests = [text_digest(text) for text in ("one", "nothing", "three")]
        assert staging.known(digests) == {digests[0], digests[2]}


def test_nothing_and_only_dead_letters_are_kept_too(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    null = Embedded((NewVector(("7", "eu"), b"", None),), (DeadLetter(("7", "eu"), "the text is NULL", b""),))
    for name, expected in (("nothing", Embedded((), ())), ("null", null), ("dead", embedded([], ["x"]))):
        staging.keep(name, expected)
        assert_same(staging.read(name), expected)
    assert Staging(tmp_path, FINGERPRINT).known([b"", text_digest("x")]) == set()
    assert staging.vectors([b"", text_digest("x")]) == {}


def test_a_reason_with_a_lone_surrogate_can_be_kept(tmp_path: Path) -> None:
    def refuse(texts: Sequence[str]) -> None:
        raise InvalidText(0, "bad \udcff")

    dead = embed(TruthEncoder(before_each=refuse), [Row(("1",), "text")])
    assert [dead_letter.reason for dead_letter in dead.dead_letters] == ["bad ?"]
    staging = Staging(tmp_path, FINGERPRINT)
    staging.keep("a", dead)
    assert_same(staging.read("a"), dead)


def test_more_texts_than_are_written_at_once_with_colbert(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(2 * staged_file.ROWS_WITH_COLBERT + 3)]
    staging = Staging(tmp_path, FINGERPRINT, Outputs.ALL)
    expected = embedded(texts, ["x"], Outputs.ALL)
    staging.keep("a", expected)
    (path,) = tmp_path.rglob("*.parquet")
    assert pyarrow.parquet.read_metadata(path).num_row_groups == 3
    assert_same(staging.read("a"), expected)
    (found,) = staging.vectors([text_digest(texts[-1])]).values()
    np.testing.assert_array_equal(found.dense, truth("new", texts[-1], 4))


def test_equal_texts_lie_there_once_and_are_found_from_every_row(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    staging.keep("a", embedded(["one", "two"]))
    size = staging.bytes()
    twice = Embedded((*under("x", ["two", "new"]).vectors, *under("y", ["new", "one"]).vectors), ())
    staging.keep("b", twice)
    held = [row.vectors is not None for row in staged_file.read(file_of(tmp_path, "b"))]
    assert held == [False, True, False, False]
    for reader in (staging, Staging(tmp_path, FINGERPRINT)):
        assert_same(reader.read("b"), twice)
    assert staging.bytes() == size + file_of(tmp_path, "b").stat().st_size


def test_what_replaces_a_file_does_not_count_on_the_file_that_it_replaces(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    staging.keep("a", embedded(["one", "two"]))
    staging.keep("a", embedded(["two", "three"]))
    assert_same(staging.read("a"), embedded(["two", "three"]))
    assert staging.known([text_digest("one"), text_digest("two")]) == {text_digest("two")}


def test_a_row_whose_vectors_have_gone_with_another_file_is_not_staged(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    staging.keep("a", embedded(["one"]))
    staging.keep("b", under("x", ["one", "two"]))
    file_of(tmp_path, "a").unlink()
    assert staging.read("b") is None
    assert staging.known([text_digest("one"), text_digest("two")]) == {text_digest("two")}
    staging.keep("b", under("x", ["one", "two"]))
    assert_same(staging.read("b"), under("x", ["one", "two"]))


def test_what_another_process_stages_meanwhile_is_found(tmp_path: Path) -> None:
    early, late = Staging(tmp_path, FINGERPRINT), Staging(tmp_path, FINGERPRINT)
    late.keep("a", embedded(["one"]))
    late.keep("b", under("x", ["one"]))
    assert early.known([text_digest("one")]) == set()
    assert_same(early.read("b"), under("x", ["one"]))


def test_other_spaces_and_heads_are_other_stagings(tmp_path: Path) -> None:
    Staging(tmp_path, FINGERPRINT).keep("a", embedded(["one"]))
    others = (Staging(tmp_path, "e" * 64), Staging(tmp_path, FINGERPRINT, Outputs.ALL))
    for other in others:
        assert other.read("a") is None
        assert other.known([text_digest("one")]) == set()
    with pytest.raises(AssertionError, match="heads"):
        others[1].keep("a", embedded(["one"]))


def test_what_a_migration_has_staged_is_removed_and_nothing_of_others(tmp_path: Path) -> None:
    spaces = (FINGERPRINT, "e" * 64)
    for each in spaces:
        Staging(tmp_path, each).keep("mine-00000001", embedded(["one"]))
    Staging(tmp_path, FINGERPRINT, Outputs.DENSE).keep("other-00000001", embedded(["two"]))
    for _ in range(2):
        remove_staged(tmp_path, FINGERPRINT, "mine")
        staging = Staging(tmp_path, FINGERPRINT)
        assert (staging.read("mine-00000001"), staging.known([text_digest("one")])) == (None, set())
        assert_same(staging.read("other-00000001"), embedded(["two"]))
    assert_same(Staging(tmp_path, spaces[1]).read("mine-00000001"), embedded(["one"]))
    remove_staged(tmp_path, FINGERPRINT, "other")
    remove_staged(tmp_path, "f" * 64, "other")
    assert [path.name for path in tmp_path.iterdir()] == ["e" * 64]


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", "/a", ".a"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    with pytest.raises(AssertionError):
        staging.keep(name, embedded(["one"]))
    with pytest.raises(AssertionError):
        staging.read(name)
    with pytest.raises(AssertionError):
        Staging(tmp_path, name)


def test_a_vector_needs_a_letter_exactly_when_it_is_none(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    for wrong in (Embedded(embedded([], ["x"]).vectors, ()), Embedded((new("x"),), embedded([], ["x"]).dead_letters)):
        with pytest.raises(AssertionError, match="letter"):
            staging.keep("a", wrong)


def test_many_digests_are_found_after_they_were_sorted_into_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_index, "RECENT_DIGESTS", 50)
    index = staged_index.StagedIndex()
    digests = [text_digest(str(i))[:-1] + bytes([i % 2]) for i in range(500)]  # half of them end in a zero byte
    for start in range(0, 500, 20):
        index.add(f"file {start}", dict(enumerate(digests[start : start + 20])))
    index.add("file 0", {3: digests[7]})
    index.forget("file 20")
    expected = {f"file {start}": dict(enumerate(digests[start : start + 20])) for start in range(40, 500, 20)}
    assert index.find([*digests, b"", bytes(32)]) == expected | {"file 0": {3: digests[7]}}
    assert index.find(digests[:60], but="file 0") == {"file 40": expected["file 40"]}


def test_a_digest_that_two_files_hold_is_found_in_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_index, "RECENT_DIGESTS", 0)
    index, digests = staged_index.StagedIndex(), [text_digest("a"), text_digest("b")]
    index.add("first", dict(enumerate(digests)))
    index.add("second", {5: digests[1]})
    assert index.find(digests) == {"first": {0: digests[0]}, "second": {5: digests[1]}}
    index.forget("first")
    assert index.find(digests) == {"second": {5: digests[1]}}


# --- damage ---------------------------------------------------------------------------------------


def test_a_file_that_was_cut_anywhere_is_not_staged_and_is_removed(tmp_path: Path) -> None:
    staging, path = Staging(tmp_path, FINGERPRINT), file_of(tmp_path, "a")
    staging.keep("a", embedded(["one", "two"], ["x"]))
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        assert Staging(tmp_path, FINGERPRINT).read("a") is None
        assert not path.exists()


def test_a_byte_that_was_changed_anywhere_never_leads_to_another_vector(tmp_path: Path) -> None:
    expected, found = embedded(["one", "two"], ["x"], Outputs.ALL), 0
    Staging(tmp_path, FINGERPRINT, Outputs.ALL).keep("a", expected)
    (path,) = tmp_path.rglob("*.parquet")
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if (read := Staging(tmp_path, FINGERPRINT, Outputs.ALL).read("a")) is not None:
            assert_same(read, expected)
            found += 1
    assert found < len(content) / 7 / 2  # most bytes matter


def test_a_row_that_is_not_what_was_written_is_not_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    with monkeypatch.context() as patched:
        patched.setattr(staged_file, "checksum", lambda *parts: 12345)
        staging.keep("a", embedded(["one"]))
    assert staging.read("a") is None


def test_a_damaged_file_takes_its_digests_with_it(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    staging.keep("a", embedded(["one"]))
    file_of(tmp_path, "a").write_bytes(b"PAR1")
    assert staging.vectors([text_digest("one")]) == {}
    assert staging.known([text_digest("one")]) == set()


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    staging, path = Staging(tmp_path, FINGERPRINT), file_of(tmp_path, "a")
    path.symlink_to(path)  # a loop: the system refuses, to root too
    with pytest.raises(StoreFailed, match=r"a\.parquet"):
        staging.read("a")
    assert path.is_symlink()


# --- the disk -------------------------------------------------------------------------------------


def test_a_full_disk_leaves_what_was_there_before(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    staging.keep("a", embedded(["one"]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        with pytest.raises(OutputWriteFailed) as failed:
            staging.keep("a", embedded(["two", "three"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (failed.value.path, failed.value.reason) == (file_of(tmp_path, "a"), "File too large")
    assert [path.name for path in file_of(tmp_path, "a").parent.iterdir()] == ["a.parquet"]
    assert_same(staging.read("a"), embedded(["one"]))
    assert staging.known([text_digest("two")]) == set()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputWriteFailed, match="file"):
        Staging(tmp_path / "file", FINGERPRINT)


def test_a_file_half_written_is_kept_while_its_writer_lives_and_removed_after(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KEEP_FOREVER, str(tmp_path), FINGERPRINT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            folder = tmp_path / FINGERPRINT / "dense"
            (partial,) = folder.iterdir()
            assert Staging(tmp_path, FINGERPRINT).read("a") is None
            assert list(folder.iterdir()) == [partial]
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait(10)
    assert list(folder.iterdir()) == [partial]
    assert Staging(tmp_path, FINGERPRINT).bytes() == 0
    assert list(folder.iterdir()) == []


def test_a_writer_whose_file_is_swept_before_it_was_locked_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, locked = Staging(tmp_path, FINGERPRINT), list[str]()
    lock = fcntl.flock

    def late(handle: int, operation: int) -> None:
        if not locked:
            monkeypatch.setattr(fcntl, "flock", lock)
            Staging(tmp_path, FINGERPRINT)
        locked.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    staging.keep("a", embedded(["one"]))
    assert locked[0].endswith("(deleted)")
    assert_same(staging.read("a"), embedded(["one"]))


def test_threads_share_a_staging(tmp_path: Path) -> None:
    staging = Staging(tmp_path, FINGERPRINT)
    wrong: list[str] = []

    def work(thread: int) -> None:
        for i in range(12):
            staging.keep(f"{thread}-{i}", under(str(thread), ["both", f"{thread} {i}"]))
            if staging.read(f"{thread}-{i}") is None:
                wrong.append(f"{thread}-{i}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert_same(Staging(tmp_path, FINGERPRINT).read("3-11"), under("3", ["both", "3 11"]))


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"vecferry\[parquet\]"):
        Staging(tmp_path, FINGERPRINT)


def test_nobody_else_may_read_what_is_staged(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging", FINGERPRINT)
    staging.keep("one", embedded(["a"]))
    (file,) = (tmp_path / "staging").rglob("*.parquet")
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
