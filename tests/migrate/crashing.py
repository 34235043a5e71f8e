"""Run by the tests as a process of its own: migrations in forked processes, which die at a named point or are killed.

Each line of the input is a job in JSON, the arguments of `Script` and the name of one of its methods;
each job has two lines of output, the process's id and how it ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow

from tests.migrate.doubles import TruthEncoder
from tests.migrate.faults import Faulty, Fuse
from tests.migrate.file_backend import FileBackend
from tests.stores import backends
from tests.stores.collections import CONDITIONS, LAYOUTS
from tests.stores.groups import PREFIX, spread_over
from tests.waiting import wait_until
from vecferry.embeddings import TextVectors
from vecferry.errors import Locked, MigrationError, SpaceMismatch, StoreError, VecferryError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.engines import Engine
from vecferry.migrate.engines.local import LocalEngine
from vecferry.migrate.staging import Staging
from vecferry.stores.backend import Backend
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.mirror import GroupStore, MirrorStore
from vecferry.stores.opening import open_backend
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.protocol import Store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Patience, Record

OLD_DIMENSION, NEW_DIMENSION = 8, 16
ROWS_PER_RANGE = 4
ABANDONED_AFTER_S = 0.3
TEXTS = {str(i): f"text {i}" for i in range(1, 10)} | {"90": "POISON", "91": "text 1"}
WRITES: tuple[Mapping[str, str | None], ...] = (
    {"2": "two, changed", "21": "first insert", "3": None},
    {"4": "four, changed", "22": "second insert", "5": None, "21": "first insert, changed", "3": "three again"},
    {"6": "six, changed", "23": "third insert", "22": None},
)
"""Texts by key that an application writes in turn; None deletes."""


@cache
def opened_once(url: str) -> Backend:
    """Open the backend at `url` once in this process: some stores let nobody in twice."""
    return open_backend(url, backends.fields(url))


@dataclass(frozen=True)
class Script:
    """folder: of staging, notes and the control database. where: the store's URL, or the folder of `file`.

    until: the step before which it ends. point: where it gets the signal.
    """

    store: str
    where: str
    folder: Path
    until: str = ""
    point: str = ""
    signal: str = "SIGKILL"
    rows_per_range: int = ROWS_PER_RANGE
    lease_s: float = 5.0
    seed: int = 0
    max_pause_s: float = 1.0

    def options(self, old_fingerprint: str | None) -> MigrationOptions:
        return MigrationOptions(
            accept_unconfirmed="a test",
            rows_per_range=self.rows_per_range,
            old_fingerprint=old_fingerprint,
            staging=self.folder / "staging",
            patience=Patience(self.max_pause_s, 20.0, 0.05),
            lease_s=self.lease_s,
            reconnect_s=0.0,
        )

    def encoder(self, model: str, fuse: Fuse) -> TruthEncoder:
        def note(texts: Sequence[str]) -> None:
            with (self.folder / "encoded").open("a") as file:
                file.writelines(f"{model}: {text}\n" for text in texts)
            if self.signal == "SIGSTOP" and fuse.is_next(f"in encode {model}"):
                # another thread writes the range before; stopped in that, it would be a stop in a write
                wait_until(lambda: fuse.passed[f"after write {model}"] >= encoder.calls)
            fuse.at(f"in encode {model}")

        encoder = TruthEncoder(model, OLD_DIMENSION if model == "old" else NEW_DIMENSION, note)
        return encoder

    def open(self, fuse: Fuse, prefix: str = "") -> Store:
        if self.store in LAYOUTS:
            layout, where = LAYOUTS[self.store], CONDITIONS.get(self.store)
            store = PgVectorStore.connect(
                self.where, "docs", "body", "embedding", where=where, embed_missing=True, layout=layout
            )
            return Faulty(store, fuse, prefix)
        backend: Backend
        kind = self.store.removeprefix(PREFIX)
        if kind == "file":
            backend = FileBackend(Path(self.where), lambda: fuse.at(f"in {prefix}backend put"))
        else:
            backend = opened_once(self.where).another()
        faulty: Any = Faulty(backend, fuse, prefix + "backend ")
        ledger = SqliteLedger.open(self.folder / "control.db", abandoned_after_s=ABANDONED_AFTER_S)
        if kind != self.store:
            return Faulty(GroupStore(spread_over(faulty), ledger), fuse, prefix)
        return Faulty(MirrorStore(faulty, "docs", ledger), fuse, prefix)

    # --- from the beginning to the end ----------------------------------------------------------------

    def migrate(self) -> None:
        """Go the whole path, with writes between the steps; those that are noted as done are left out."""
        fuse = Fuse(self.point, signal.Signals[self.signal])
        self._do(Course(self, fuse).steps())

    def _do(self, steps: Mapping[str, Callable[[], None]]) -> None:
        notes = self.folder / "steps"
        done = notes.read_text().splitlines() if notes.exists() else []
        for name, step in steps.items():
            if name == self.until:
                return
            if name not in done:
                step()
                with notes.open("a") as file:
                    file.write(f"{name}\n")

    def give_up(self) -> None:
        """Run `migrate` up to the first rollback, and then abort."""
        fuse = Fuse(self.point)
        replace(self, until="third writes", point="").migrate()
        with suppress(MigrationError):  # it was aborted already
            Migration(self.open(fuse), options=self.options(None)).abort()

    def start_again(self) -> None:
        """Run `start` alone, whatever has been done already."""
        fuse = Fuse(self.point, signal.Signals[self.signal])
        new, old = self.encoder("new", fuse), self.encoder("old", fuse)
        Migration(self.open(fuse), new=new, old=old, options=self.options(old.fingerprint)).start()

    def switch_once(self) -> None:
        """Run `cutover` alone, of a migration that is ready."""
        fuse = Fuse(self.point, signal.Signals[self.signal])
        new, old = self.encoder("new", fuse), self.encoder("old", fuse)
        Migration(self.open(fuse), new=new, options=self.options(old.fingerprint)).cutover()

    # --- until it is killed ---------------------------------------------------------------------------

    def endless(self) -> None:
        """Run without end: one thread follows; the other, the operator, switches to and fro and ends migrations."""
        store, operated = self.open(Fuse()), self.open(Fuse())
        ending, failed = threading.Event(), list[BaseException]()
        operator = threading.Thread(target=self._operate, args=(operated, ending, failed), daemon=True)
        operator.start()
        # the operator follows by himself just now; or, with points, has dropped the collection that was being read, or
        # ended the migration since it was looked whose models are asked for
        passing: tuple[type[VecferryError], ...] = (Locked,)
        if self.store not in LAYOUTS:
            passing = (Locked, StoreError, SpaceMismatch)
        while not failed:
            old, new = self.models(store)
            ending.clear()
            migration = Migration(store, new=new, old=old, options=self.options(old.fingerprint))
            with suppress(*passing):
                migration.start(follow=lambda: ending.is_set() or bool(failed))
            while ending.is_set() and not failed:
                threading.Event().wait(0.005)
        raise failed[0]

    def models(self, store: Store) -> tuple[TruthEncoder, TruthEncoder]:
        """Return the model that the open migration goes out from, or the next one will, and the other."""
        ours = (self.encoder("old", Fuse()), self.encoder("new", Fuse()))
        record, serving = store.ledger.find(store.target), store.ledger.serving(store.target)
        if record is not None and record.state not in (State.FINALIZED, State.ABORTED):
            first = record.spec.old_fingerprint
        else:
            first = serving.fingerprint if serving is not None else ours[0].fingerprint
        return ours if first == ours[0].fingerprint else (ours[1], ours[0])

    def _operate(self, store: Store, ending: threading.Event, failed: list[BaseException]) -> None:
        chance = Random(self.seed)
        try:
            while True:
                try:
                    self._operate_once(store, ending, chance)
                except MigrationError:  # not now
                    ending.clear()
                    threading.Event().wait(0.01)
        except BaseException as exc:  # noqa: BLE001  # raised again in the other thread
            failed.append(exc)

    def _operate_once(self, store: Store, ending: threading.Event, chance: Random) -> None:
        old, new = self.models(store)
        migration = Migration(store, new=new, options=self.options(old.fingerprint))
        state = migration.status().state
        if state in (State.CATCHING_UP, State.VERIFIED):
            replace(migration, old=old).verify(sample=5, override="no gate in this test")
        elif state in (State.READY, State.CUTTING_OVER) or (state is State.SERVING_OLD and chance.random() < 0.5):
            migration.cutover()
        elif state is State.SERVING_OLD:
            ending.set()  # an abort waits for the run to end
            replace(migration, old=old).abort()
            ending.clear()
        elif state is State.SERVING_NEW and chance.random() < 0.3:
            migration.finalize(confirmed=True)
        elif state in (State.SERVING_NEW, State.ROLLING_BACK):
            migration.rollback()
        else:
            threading.Event().wait(0.01)


@dataclass
class Course:
    """The steps of a whole migration, each safe to repeat."""

    script: Script
    fuse: Fuse

    def __post_init__(self) -> None:
        self.new, self.old = self.script.encoder("new", self.fuse), self.script.encoder("old", self.fuse)
        self.application = self.script.open(self.fuse, "application ")
        options = self.script.options(self.old.fingerprint)
        self.migration = Migration(self.script.open(self.fuse), new=self.new, old=self.old, options=options)

    def steps(self) -> Mapping[str, Callable[[], None]]:
        return {
            "start": self.start,
            "first writes": lambda: self.write(0),
            "follow": self.start,
            "verify": self.verify,
            "cutover": lambda: self.switch(2),
            "second writes": lambda: self.write(1),
            "rollback": lambda: self.switch(3),
            "third writes": lambda: self.write(2),
            "second cutover": lambda: self.switch(4),
            "finalize": self.finalize,
        }

    def start(self) -> None:
        self.migration.start(engine=self._engine)

    def _engine(self, store: Store, staging: Staging, record: MigrationRecord) -> Engine:
        faulty: Any = Faulty(staging, self.fuse)
        return LocalEngine(store, self.new, faulty, record.spec.uid, self.script.rows_per_range)

    def write(self, number: int) -> None:
        serving = self.application.ledger.serving(self.application.target)
        is_new = serving is not None and serving.fingerprint == self.new.fingerprint
        encoder = self.new if is_new else self.old
        for key, text in WRITES[number].items():
            if text is None:
                self.application.remove([(key,)])
            else:
                record = Record((key,), text, TextVectors(encoder.truth(text)))
                self.application.put([record], fingerprint=encoder.fingerprint)

    def verify(self) -> None:
        report = self.migration.verify(override="no gate in this test")
        assert report.passed, report

    def switch(self, epoch: int) -> None:
        if self.migration.serving().epoch >= epoch:
            return
        if epoch == 3:
            self.migration.rollback()
        else:
            self.migration.cutover(accept_dead_letters=1)

    def finalize(self) -> None:
        if self.migration.status().state is not State.FINALIZED:
            self.migration.finalize(confirmed=True, accept_dead_letters=1)


def _ended(job: dict[str, Any]) -> str:
    """Do a job in a fork and return how it ended; never return in the fork itself."""
    pid = os.fork()
    if pid == 0:
        code = 0
        _die_with_parent()
        try:
            method = job.pop("do")
            getattr(Script(**{**job, "folder": Path(job["folder"])}), method)()
        except VecferryError as exc:
            traceback.print_exc()
            (Path(job["folder"]) / "error").write_text(type(exc).__name__)
            code = 2
        except BaseException:  # noqa: BLE001  # a fork must not go on with what its mother does
            traceback.print_exc()
            code = 1
        os._exit(code)
    _say(str(pid))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    code = os.WEXITSTATUS(status)
    return {0: "done", 1: "failed"}.get(code) or (Path(job["folder"]) / "error").read_text()


def _die_with_parent() -> None:
    """Die with the parent: a stopped process, too, must not stay behind when a test run is broken off."""
    PR_SET_PDEATHSIG = 1  # noqa: N806  # as in prctl(2)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _die_with_parent()
    pyarrow.array([])  # which imports pandas, if it is there: 0.7 s in each process that is forked without it
    for line in sys.stdin:
        _say(_ended(json.loads(line)))
