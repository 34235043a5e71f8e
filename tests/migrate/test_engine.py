import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.migrate.doubles import Clock, TruthEncoder, truth
from tests.migrate.test_staging import assert_same
from tests.waiting import PATIENCE_S, wait_until
from vecferry.embeddings import DENSE, Embeddings, MultiVector, Outputs, Sparse, TextVectors, indptr_of
from vecferry.encode.encoder import Role
from vecferry.errors import OutOfMemory, OutputWriteFailed, StoreUnreachable
from vecferry.migrate.engines import StagedRange, partwise, range_name
from vecferry.migrate.engines.local import LocalEngine
from vecferry.migrate.engines.partwise import PartwiseEncoder
from vecferry.migrate.staging import Staging
from vecferry.stores.backend import Point
from vecferry.stores.ledger import MigrationSpec, RangeRecord
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import EVERYTHING, Key, KeyRange, Patience, Row, Side

ROOT = Path(__file__).parents[2]
LEAVE_IN_THE_MIDDLE = """
import sys
from pathlib import Path
from tests.migrate.test_engine import collection, engine_of, in_ranges
store = collection(Path(sys.argv[1]), [f"t{i}" for i in range(40)])
for staged in (ranges := engine_of(store, Path(sys.argv[1])).run(in_ranges(store))):
    raise SystemExit(f"left at {staged.number}")
"""


def collection(folder: Path, texts: Sequence[str]) -> MirrorStore:
    """Its new side is prepared, and empty. Keys are 000, 001, ..."""
    points = [Point(f"{i:03}", text, TextVectors(truth("old", text, 8))) for i, text in enumerate(texts)]
    store = MirrorStore(MemoryBackend({"docs": points}), "docs", SqliteLedger.open(folder / "control.db"))
    spec = MigrationSpec(
        target="docs",
        text_source="text",
        dimension=16,
        fingerprint=TruthEncoder().fingerprint,
        old_fingerprint=None,
        old_not_null=False,
        generation=2,
        old_locator="docs",
        new_locator="docs_vecferry_2",
    )
    store.ledger.install()
    store.ledger.create(spec, "backfilling")
    store.exclusively(lambda: store.prepare(16, spec.fingerprint), Patience())
    return store


def engine_of(
    store: MirrorStore, folder: Path, encoder: TruthEncoder | None = None, rows_per_range: int = 4
) -> LocalEngine:
    encoder = encoder or TruthEncoder()
    return LocalEngine(store, encoder, Staging(folder / "staging", encoder.fingerprint), "uid", rows_per_range)


def in_ranges(store: MirrorStore, rows_each: int = 4) -> list[RangeRecord]:
    return [RangeRecord(number, keys) for number, keys in enumerate(store.key_ranges(rows_each), start=1)]


def numbers(ranges: Iterable[StagedRange]) -> list[int]:
    return [staged.number for staged in ranges]


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vecferry")]


@pytest.fixture(autouse=True)
def _no_thread_outlives_a_run() -> Iterator[None]:
    yield
    assert own_threads() == []


def test_every_range_is_staged_when_its_number_comes_out(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(18)]
    store = collection(tmp_path, texts)
    engine = engine_of(store, tmp_path)
    done = []
    for staged in engine.run(in_ranges(store)):
        read = Staging(tmp_path / "staging", engine.encoder.fingerprint).read(range_name("uid", staged.number))
        assert staged.embedded is not None
        assert_same(read, staged.embedded)
        store.write(Side.NEW, staged.embedded.vectors)
        done.append(staged.number)
    assert done == [1, 2, 3, 4, 5]
    assert range_name("uid", 5) == "uid-00000005"
    assert store.counts().done == 18
    for row, vector in store.sample_vectors(18):
        np.testing.assert_array_equal(vector, truth("new", row.text or "", 16))


def test_equal_texts_are_encoded_once_over_all_ranges_and_runs(tmp_path: Path) -> None:
    store, encoder = collection(tmp_path, ["a", "b", "a", "c", "b", "d", "a", "POISON"]), TruthEncoder()
    engine = engine_of(store, tmp_path, encoder, rows_per_range=2)
    assert numbers(engine.run(in_ranges(store, 2))) == [1, 2, 3, 4]
    assert {text: n for text, n in encoder.encoded.items() if not text.startswith("POISON")} == dict.fromkeys("abcd", 1)
    staged = engine.staging.read(range_name("uid", 4))
    assert staged is not None
    assert staged.vectors[0].vectors is not None
    np.testing.assert_array_equal(staged.vectors[0].vectors.dense, encoder.truth("a"))
    assert [letter.key for letter in staged.dead_letters] == [("007",)]
    again = TruthEncoder()
    assert numbers(replace(engine_of(store, tmp_path, again), uid="another").run(in_ranges(store, 3))) == [1, 2, 3]
    assert set(again.encoded) == {"POISON"}  # a dead letter is tried again


def test_a_staged_range_is_not_encoded_again_unless_its_rows_have_changed(tmp_path: Path) -> None:
    store = collection(tmp_path, ["a", "b", "POISON", "d"])
    numbers(engine_of(store, tmp_path).run(in_ranges(store, 2)))
    encoder = TruthEncoder()
    assert numbers(engine_of(store, tmp_path, encoder).run(in_ranges(store, 2))) == [1, 2]
    assert encoder.calls == 0
    store._backend.put("docs", [Point("001", "changed", TextVectors(truth("old", "changed", 8)))])
    engine = engine_of(store, tmp_path, encoder)
    assert numbers(engine.run(in_ranges(store, 2))) == [1, 2]
    assert encoder.encoded == {"changed": 1}
    staged = engine.staging.read(range_name("uid", 1))
    assert staged is not None
    assert staged.vectors[1].vectors is not None
    np.testing.assert_array_equal(staged.vectors[1].vectors.dense, encoder.truth("changed"))


def test_a_range_whose_rows_are_gone_is_committed_too(tmp_path: Path) -> None:
    store = collection(tmp_path, ["a"])
    engine = engine_of(store, tmp_path)
    assert numbers(engine.run([RangeRecord(3, KeyRange(("5",), ("6",)))])) == [3]
    staged = engine.staging.read(range_name("uid", 3))
    assert staged is not None
    assert staged.vectors == ()
    assert numbers(engine.run([])) == []


class _EveryHead(TruthEncoder):
    """The double with a token for each letter."""

    def encode(
        self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage", progress: object = None
    ) -> Embeddings:
        found = super().encode(texts, role=role)
        lengths = [len(text) for text in texts]
        ids = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        colbert = np.stack([truth("colbert", letter, 16) for text in texts for letter in text])
        return replace(
            found,
            sparse_or_none=Sparse(indptr_of(lengths), ids, np.ones(len(ids), np.float32)),
            colbert_or_none=MultiVector(indptr_of(lengths), colbert),
        )


def test_all_heads_are_staged_and_found_again_by_their_text(tmp_path: Path) -> None:
    store, encoder = collection(tmp_path, ["one", "two", "two"]), _EveryHead()
    staging = Staging(tmp_path / "staging", encoder.fingerprint, Outputs.ALL)
    engine = LocalEngine(store, encoder, staging, "uid", 2, Outputs.ALL)
    ranges = list(engine.run(in_ranges(store, 2)))
    assert [(staged.number, staged.embedded) for staged in ranges] == [(1, None), (2, None)]
    assert encoder.encoded == {"one": 1, "two": 1}
    staged = staging.read(range_name("uid", 2))
    assert staged is not None
    vectors = staged.vectors[0].vectors
    assert vectors is not None
    assert vectors.sparse is not None
    assert vectors.colbert is not None
    assert vectors.sparse.indices.tolist() == [0, 1, 2]
    assert vectors.colbert.shape == (3, 16)
    with pytest.raises(AssertionError, match="heads"):
        LocalEngine(store, encoder, staging, "uid", 2)


# --- a pipeline that can be stopped ---------------------------------------------------------------


def test_one_who_takes_no_more_stops_the_whole(tmp_path: Path) -> None:
    store, encoder = collection(tmp_path, [f"t{i}" for i in range(80)]), TruthEncoder()
    with closing(replace(engine_of(store, tmp_path, encoder), ahead=2).run(in_ranges(store))) as ranges:
        assert next(ranges).number == 1
        wait_until(lambda: encoder.calls == 4)  # one taken, two in the queue, one that waits for room
        time.sleep(0.1)
        assert encoder.calls == 4
        assert sorted(own_threads()) == ["vecferry-encoder", "vecferry-reader"]
        assert numbers(islice(ranges, 19)) == list(range(2, 21))
    assert encoder.calls == 20


def test_a_run_that_is_closed_early_ends_its_threads(tmp_path: Path) -> None:
    store, encoder = collection(tmp_path, [f"t{i}" for i in range(80)]), TruthEncoder()
    ranges = engine_of(store, tmp_path, encoder).run(in_ranges(store))
    assert next(ranges).number == 1
    wait_until(lambda: encoder.calls == 4)
    ranges.close()
    assert own_threads() == []
    assert encoder.calls == 4
    assert numbers(engine_of(store, tmp_path, encoder).run(in_ranges(store))) == list(range(1, 21))
    assert encoder.encoded == {f"t{i}": 1 for i in range(80)}


def test_an_interrupt_while_a_range_is_encoded_ends_the_threads(tmp_path: Path) -> None:
    encoding, go_on = threading.Event(), threading.Event()

    def block(texts: Sequence[str]) -> None:
        encoding.set()
        go_on.wait(PATIENCE_S)

    ranges = engine_of(collection(tmp_path, ["a"] * 8), tmp_path, TruthEncoder(before_each=block)).run(
        [RangeRecord(1, KeyRange(None, ("003",))), RangeRecord(2, KeyRange(("003",), ("007",)))]
    )

    def interrupt() -> None:
        encoding.wait(PATIENCE_S)
        threading.Timer(0.1, go_on.set).start()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        next(ranges)
    assert own_threads() == []


def test_a_process_that_leaves_a_run_in_the_middle_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAVE_IN_THE_MIDDLE, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr.strip()) == (1, b"left at 1")


class _Unreliable(MirrorStore):
    """A store whose connection breaks at the third range that is read; the last that was opened is `opened`."""

    reads = 0
    closed = 0

    def outdated(self, side: Side, among: Sequence[Key] | KeyRange = EVERYTHING, limit: int | None = None) -> list[Row]:
        type(self).reads += 1
        if type(self).reads == 3:
            raise StoreUnreachable("memory", "it went away")
        return super().outdated(side, among, limit)

    def close(self) -> None:
        type(self).closed += 1


def test_what_the_reader_raises_comes_after_what_was_read_before_it(tmp_path: Path) -> None:
    made = collection(tmp_path, [f"t{i}" for i in range(20)])
    store = _Unreliable(made._backend, "docs", made.ledger)
    ranges = engine_of(store, tmp_path).run(in_ranges(store))
    assert numbers(islice(ranges, 2)) == [1, 2]
    with pytest.raises(StoreUnreachable, match="it went away"):
        next(ranges)
    assert (_Unreliable.reads, _Unreliable.closed) == (3, 1)


def test_what_the_encoder_raises_comes_out_and_the_reader_ends(tmp_path: Path) -> None:
    store = collection(tmp_path, ["a", "b", "c", "d", "HUGE 1", "HUGE 2", *(f"t{i}" for i in range(40))])
    ranges = engine_of(store, tmp_path, rows_per_range=2).run(in_ranges(store, 2))
    assert numbers(islice(ranges, 2)) == [1, 2]
    with pytest.raises(OutOfMemory):
        next(ranges)


def test_a_staging_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    store = collection(tmp_path, [f"t{i}" for i in range(20)])
    engine = engine_of(store, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        with pytest.raises(OutputWriteFailed, match="uid-00000001"):
            numbers(engine.run(in_ranges(store)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert numbers(engine.run(in_ranges(store))) == [1, 2, 3, 4, 5]


# --- how far a range is ---------------------------------------------------------------------------


def test_a_slow_model_is_asked_for_as_many_texts_as_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told, asked = Clock(), list[int](), list[int]()
    monkeypatch.setattr(partwise, "time", clock)

    def slow(texts: Sequence[str]) -> None:
        asked.append(len(texts))
        clock.sleep(0.25 * len(texts))

    encoder, texts = TruthEncoder(before_each=slow), [f"t{i}" for i in range(40)]
    embeddings = PartwiseEncoder(encoder, told.append).encode(texts)
    np.testing.assert_array_equal(embeddings.dense, np.stack([encoder.truth(text) for text in texts]))
    assert asked == [16, *[4] * 6]
    assert told == [16, 20, 24, 28, 32, 36]


def test_a_fast_model_gets_its_texts_in_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partwise, "time", Clock())
    encoder = TruthEncoder()
    partwise_encoder = PartwiseEncoder(encoder, lambda _: None)
    partwise_encoder.encode([f"t{i}" for i in range(256)])
    assert encoder.calls == 3
    partwise_encoder.encode([f"t{i}" for i in range(256)])
    assert encoder.calls == 4


def test_whoever_waits_for_a_range_is_told_how_much_of_it_is_encoded(tmp_path: Path) -> None:
    store, told, threads = collection(tmp_path, [f"t{i}" for i in range(40)]), list[int](), set[int]()

    def tell(texts: int) -> None:
        told.append(texts)
        threads.add(threading.get_ident())

    def wait(texts: Sequence[str]) -> None:
        if "t16" in texts:
            wait_until(lambda: told == [16])

    engine = replace(engine_of(store, tmp_path, TruthEncoder(before_each=wait), rows_per_range=40), tell=tell)
    assert numbers(engine.run(in_ranges(store, 40))) == [1]
    assert told == [16]
    assert threads == {threading.get_ident()}
