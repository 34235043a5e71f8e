"""kill -9 at random times, under writers; at the end every row is there once, and true."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.migrate.crashing import Script
from tests.migrate.doubles import TruthEncoder
from tests.migrate.faults import Mother, mother
from tests.migrate.test_crashes import Rows, World, world_of_points, world_of_rows
from tests.stores.collections import LAYOUTS
from vecferry.embeddings import TextVectors
from vecferry.errors import SpaceMismatch
from vecferry.migrate import Migration
from vecferry.migrate.states import CAUGHT_UP, ENDED, State
from vecferry.stores.protocol import Store
from vecferry.stores.values import Record

__all__ = ["mother"]

KEYS = [str(key) for key in range(60)]
ROWS_PER_RANGE = 8


class Writer(threading.Thread):
    """An application that inserts, changes and deletes rows, one at a time, and remembers what it did."""

    def __init__(
        self,
        store: Store,
        encoders: tuple[TruthEncoder, TruthEncoder],
        writes_per_s: float,
        seed: int,
        keys: Sequence[str] = KEYS,
    ) -> None:
        super().__init__(daemon=True)
        self.texts: dict[str, str] = {}
        self.writes = 0
        self.longest_s = 0.0
        self._store, self._chance, self._keys = store, Random(seed), keys
        self._encoders = {encoder.fingerprint: encoder for encoder in encoders}
        self._first = encoders[0]
        self._pause_s = 1 / writes_per_s
        self._ended = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._ended.wait(self._pause_s):
                self.write(self._chance.choice(self._keys))
        except BaseException as exc:  # noqa: BLE001  # looked at by `end`
            self.failure = exc

    def end(self) -> None:
        self._ended.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def write(self, key: str) -> None:
        self.writes += 1
        began = time.monotonic()
        if self._chance.random() < 0.25:
            self._store.remove([(key,)])
            self.texts.pop(key, None)
        else:
            text = f"text {self.writes} of {key}"
            while not self._put(key, text):
                pass
            self.texts[key] = text
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _put(self, key: str, text: str) -> bool:
        """Put a row; False if the other vectors serve since we looked."""
        serving = self._store.ledger.serving(self._store.target)
        encoder = self._encoders[serving.fingerprint or ""] if serving is not None else self._first
        try:
            self._store.put([Record((key,), text, TextVectors(encoder.truth(text)))], fingerprint=encoder.fingerprint)
        except SpaceMismatch:
            return False
        return True


class SqlWriter(Writer):
    """A writer that knows nothing of us: transactions of several statements, some rolled back or abandoned.

    From the first switch on it leaves vectors to others: it writes none, one of another text, or leaves the former.
    Before it, the old vectors are its own, and right.
    """

    def __init__(self, url: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connection = psycopg.connect(url, autocommit=True)

    def write(self, key: str) -> None:
        self.writes += 1
        began = time.monotonic()
        after = dict(self.texts)
        abandoned = self._chance.random() < 0.1
        with self._connection.transaction(force_rollback=abandoned):
            encoder, is_followed = self._serving()
            for _ in range(self._chance.randint(1, 3)):
                self._execute(key, after, encoder, is_followed=is_followed)
                key = self._chance.choice([key, self._chance.choice(self._keys)])
        if not abandoned:
            self.texts = after
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _serving(self) -> tuple[TruthEncoder, bool]:
        """Return whose vectors serve until the transaction ends, and whether both sides are followed already."""
        self._connection.execute("LOCK TABLE docs IN ACCESS SHARE MODE")
        serving = self._store.ledger.serving(self._store.target)
        record = self._store.ledger.find(self._store.target)
        if serving is None or record is None:
            return self._first, False
        is_followed = State(record.state) not in ENDED and serving.epoch > record.spec.epoch
        return self._encoders[serving.fingerprint or ""], is_followed

    def _execute(self, key: str, texts: dict[str, str], encoder: TruthEncoder, *, is_followed: bool) -> None:
        """Make one change by SQL. texts: as they are in this transaction."""
        kind = self._chance.random()
        text = self._chance.choice([f"text {self.writes} of {key}", texts.get(key, "new")])
        if kind < 0.15:
            self._connection.execute("DELETE FROM docs WHERE id = %s", [int(key)])
            texts.pop(key, None)
        elif kind < 0.3:
            self._exchange(key, self._chance.choice(self._keys), texts)
        elif is_followed and kind < 0.5 and key in texts:
            self._connection.execute("UPDATE docs SET body = %s WHERE id = %s", [text, int(key)])
            texts[key] = text
        elif is_followed and kind < 0.65:
            vector = self._chance.choice([None, encoder.truth("of another text").tolist()])
            statement = "UPDATE docs SET embedding = %s::real[]::vector WHERE id = %s"
            self._connection.execute(statement, [vector, int(key)])
        else:
            vector = None if is_followed and kind < 0.8 else encoder.truth(text).tolist()
            self._connection.execute(
                "INSERT INTO docs (id, body, embedding) VALUES (%s, %s, %s::real[]::vector)"
                " ON CONFLICT (id) DO UPDATE SET body = excluded.body, embedding = excluded.embedding",
                [int(key), text, vector],
            )
            texts[key] = text

    def _exchange(self, key: str, other: str, texts: dict[str, str]) -> None:
        for before, after in ((int(key), -1), (int(other), int(key)), (-1, int(other))):
            self._connection.execute("UPDATE docs SET id = %s WHERE id = %s", [after, before])
        mine, its = texts.pop(key, None), texts.pop(other, None) if other != key else None
        exchanged = {key: its, other: mine}
        texts.update({name: text for name, text in exchanged.items() if text is not None})

    def end(self) -> None:
        try:
            super().end()
        finally:
            self._connection.close()


def writers_of(world: World, writes_per_s: float, seed: int) -> list[Writer]:
    """Return a writer through `put` and `remove`; on a table also one with SQL, for half of the rows."""
    encoders = TruthEncoder("old", 8), TruthEncoder("new", 16)
    if world.connection is None:
        return [Writer(world.store.another(), encoders, writes_per_s, seed)]
    half = len(KEYS) // 2
    return [
        Writer(world.store.another(), encoders, writes_per_s / 2, seed, KEYS[:half]),
        SqlWriter(world.where, world.store.another(), encoders, writes_per_s / 2, seed, KEYS[half:]),
    ]


def kill_at_random_times(
    kills: int, world: World, mother: Mother, *, longest_s: float, writes_per_s: float, seed: int
) -> str:
    """Kill runs at random times; return what was survived, for people. longest_s: before a kill; most are sooner."""
    chance, job = Random(seed), world.job | {"rows_per_range": ROWS_PER_RANGE}
    script = Script(**job)
    writers = writers_of(world, writes_per_s, seed)
    for writer in writers:
        for key in writer._keys:
            Writer.write(writer, key)
        writer.start()
    states, epochs = Counter[str](), 0
    for number in range(kills):
        running = mother.begin(do="endless", seed=seed + number, **job)
        time.sleep(longest_s * chance.choice((0.1, 0.3, 1)) * chance.random())
        running.send(signal.SIGKILL)
        assert running.wait() == "killed"
        record, serving = world.store.ledger.find(world.store.target), world.store.ledger.serving(world.store.target)
        states[record.state if record else "none"] += 1
        epochs = serving.epoch if serving else 0
    for writer in writers:
        writer.end()
        writer._store.close()
    complete(world, script, {key: text for writer in writers for key, text in writer.texts.items()})
    longest_ms = 1000 * max(writer.longest_s for writer in writers)
    written = f"{sum(writer.writes for writer in writers)} writes, the longest {longest_ms:.0f} ms"
    return f"{world.name}: {kills} kills survived, in {dict(states)}; {epochs - 1} switches; {written}"


def complete(world: World, script: Script, texts: dict[str, str]) -> None:
    old, new = script.models(world.store)
    migration = Migration(world.store, new=new, old=old, options=script.options(old.fingerprint))
    migration.start()
    serves_new = migration.serving().fingerprint == new.fingerprint
    assert_equal(world.serving(), texts, new if serves_new else old, world.tolerance)
    if not world.is_ending():
        assert_equal(world.other(), texts, old if serves_new else new, world.tolerance)
    if not serves_new:
        if migration.status().state in CAUGHT_UP - {State.SERVING_OLD}:
            assert migration.verify(override="no gate in this test").passed
        migration.cutover()
    migration.finalize(confirmed=True)
    assert_equal(world.serving(), texts, new, world.tolerance)
    assert world.leftovers() == []


def assert_equal(rows: Rows, texts: dict[str, str], encoder: TruthEncoder, tolerance: float) -> None:
    assert {key: text for key, (text, _) in rows.items()} == texts
    for key, (text, vector) in rows.items():
        assert vector is not None, key
        np.testing.assert_allclose(vector, encoder.truth(text), rtol=0, atol=tolerance, err_msg=key)


def world_of(name: str, request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[World]:
    if name not in LAYOUTS:
        return world_of_points(name, folder)
    connection, url = map(request.getfixturevalue, ("connection", "database_url"))
    return world_of_rows(connection, url, folder, name)


@pytest.mark.parametrize(
    ("name", "kills"), [("pgvector", 8), ("side-table", 8), ("part", 8), ("file", 8), ("group-of-file", 8)]
)
def test_a_few_kills_at_random_times_lose_nothing(
    name: str, kills: int, request: pytest.FixtureRequest, mother: Mother, tmp_path: Path
) -> None:
    with world_of(name, request, tmp_path) as world:
        kill_at_random_times(kills, world, mother, longest_s=1.5, writes_per_s=50, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills", "longest_s", "writes_per_s"),
    [
        pytest.param("pgvector", 300, 1.5, 50, id="pgvector"),
        pytest.param("side-table", 100, 1.5, 50, id="side-table"),
        pytest.param("part", 100, 1.5, 50, id="part"),
        pytest.param("partitioned", 100, 1.5, 50, id="partitioned"),
        pytest.param("partitioned-side-table", 40, 1.5, 50, id="partitioned-side-table"),
        pytest.param("lancedb", 40, 8.0, 4, id="lancedb"),
        pytest.param("chroma-server", 40, 4.0, 10, id="chroma-server"),
        pytest.param("faiss", 40, 4.0, 10, id="faiss"),
        pytest.param("sqlite-vec", 40, 4.0, 10, id="sqlite-vec"),
        pytest.param("group-of-file", 100, 1.5, 50, id="group-of-file"),
        pytest.param("group-of-lancedb", 20, 8.0, 4, id="group-of-lancedb"),
        pytest.param("group-of-chroma-server", 20, 4.0, 10, id="group-of-chroma-server"),
    ],
)
def test_many_kills_at_random_times_lose_nothing(
    name: str,
    kills: int,
    longest_s: float,
    writes_per_s: float,
    request: pytest.FixtureRequest,
    mother: Mother,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with world_of(name, request, tmp_path) as world:
        survived = kill_at_random_times(kills, world, mother, longest_s=longest_s, writes_per_s=writes_per_s, seed=2)
    with capsys.disabled():
        print(f"\n{survived}")  # the figures of the documentation
