"""Who acts: the run, one verb by hand at a time, and the plan, each in a thread and with a store of its own.

Nothing is remembered here that the ledger does not know, but what this process does just now, what came of it, and how
far the migration was while somebody looked.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from vecferry.encode.encoder import TextEncoder
from vecferry.errors import Locked, MigrationNotFound, StoreError, StoreUnreachable, VecferryError
from vecferry.migrate import EngineFor, Migration, MigrationOptions, Plan, State, Status
from vecferry.migrate.preflight import GateCheck, nothing_asked
from vecferry.migrate.verification import Gate
from vecferry.model.tokens import Piece
from vecferry.stores.protocol import Store

T = TypeVar("T")
FAULT = "The console failed; the log in its terminal says why."
AT_MOST_EVERY_S = 0.9
"""A status is that old at most, however many look."""
MAX_READINGS = 240
"""Of the progress; beyond that every second one is forgotten."""
READING_S = 5.0
"""A change after a longer quiet is preceded by a reading of that quiet."""
PATIENCE_S = 10.0
"""How long the end of the process waits for what is under way; a killed verb is safe."""


@dataclass(frozen=True)
class Task:
    """A migration's store and models. store: closed by the operator.

    gate: makes the gate of a verification. sample: rows that it encodes again. engine, gate_check: as
    `Migration.start` takes them.
    pieces: what the new model's tokenizer makes of a text, special tokens included; nothing where nobody can say.
    config: the file by which the same migration is reached from a terminal.
    """

    store: Store
    options: MigrationOptions
    new: TextEncoder
    old: TextEncoder | None
    gate: Callable[[], Gate]
    sample: int = 100
    engine: EngineFor | None = None
    gate_check: GateCheck = nothing_asked
    pieces: Callable[[str], Iterable[Piece]] = lambda _: ()
    config: Path = Path("migration.toml")

    def migration(self, store: Store) -> Migration:
        return Migration(store, new=self.new, old=self.old, options=self.options)


@dataclass(frozen=True)
class Outcome:
    """The result of a verb. is_elsewhere: it was refused because another process is at work."""

    verb: str
    message: str
    hint: str = ""
    failed: bool = False
    is_elsewhere: bool = False

    @classmethod
    def of(cls, verb: str, error: VecferryError) -> Outcome:
        """Return an error as people read it."""
        return cls(verb, error.message, error.hint, failed=True, is_elsewhere=isinstance(error, Locked))


@dataclass(frozen=True)
class Doing:
    """A verb under way or ended. began_at, ended_at: of the monotonic clock. outcome: None while it goes on."""

    verb: str
    began_at: float
    ended_at: float = 0.0
    outcome: Outcome | None = None


class TaskThread(StrEnum):
    """The threads of work: the run, verbs by hand, and the plan before the first start."""

    RUN = "run"
    HAND = "hand"
    PLAN = "plan"


@dataclass(frozen=True)
class Reading:
    """How far the migration was. at: seconds since 1970. rows: with a new vector or encoded. writes: to be followed."""

    at: float
    rows: int
    writes: int


@dataclass(frozen=True)
class Snapshot:
    """A migration at a moment. status: None before `start`. problem: why it is unknown.

    before: the state to which a pause goes back. is_held: whether that pause is an operator's.
    at, now: of the monotonic clock. run, hand, planning: what this process does, or did last. plan: what `start` would
    do, once that is known. readings: of the progress, the oldest first.
    """

    target: str
    at: float
    now: float = 0.0
    status: Status | None = None
    before: State | None = None
    is_held: bool = False
    problem: Outcome | None = None
    run: Doing | None = None
    hand: Doing | None = None
    planning: Doing | None = None
    plan: Plan | None = None
    readings: tuple[Reading, ...] = ()

    @property
    def is_unplanned(self) -> bool:
        """Whether no migration has begun and nobody has looked at what one would do."""
        return self.status is None and self.problem is None and self.planning is None

    @property
    def is_running(self) -> bool:
        return self.run is not None and self.run.outcome is None


@dataclass
class Operator:
    """The migration for the event loop: only threads wait for the store."""

    task: Task
    _doing: dict[TaskThread, Doing] = field(default_factory=dict)
    _threads: dict[TaskThread, threading.Thread] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._looking = _Desk(self.task.store)
        self._asking = _Desk(self.task.store)
        self._look: asyncio.Task[Snapshot] | None = None
        self._plan: Plan | None = None
        self._readings: tuple[Reading, ...] = ()
        self._last: Snapshot | None = None

    # --- looking ----------------------------------------------------------------------------------

    async def look(self, *, anew: bool = False) -> Snapshot:
        """Return the migration as it is now, or was a moment ago."""
        if anew or self._last is None or time.monotonic() - self._last.at > AT_MOST_EVERY_S:
            if anew or self._look is None or self._look.done():
                self._look = asyncio.create_task(self._look_anew())
            self._last = await asyncio.shield(self._look)
        doing = {place.value: self._doing.get(place) for place in TaskThread}
        return replace(
            self._last,
            now=time.monotonic(),
            run=doing["run"],
            hand=doing["hand"],
            planning=doing["plan"],
            plan=self._plan,
            readings=self._readings,
        )

    async def _look_anew(self) -> Snapshot:
        try:
            snapshot = await self._looking.do(self._snapshot)
            if snapshot.status is not None:
                self._readings = with_reading(self._readings, _reading(snapshot.status))
            return snapshot
        except StoreError as exc:
            return Snapshot(self.task.store.target, time.monotonic(), problem=Outcome.of("status", exc))

    def _snapshot(self, store: Store) -> Snapshot:
        at, target = time.monotonic(), store.target
        try:
            status = self.task.migration(store).status()
        except MigrationNotFound:
            return Snapshot(target, at)
        record = store.ledger.find(target)
        paused = record.paused if record is not None else None
        if paused is None:
            return Snapshot(target, at, status=status)
        return Snapshot(target, at, status=status, before=State(paused.before), is_held=paused.by_operator)

    async def read(self, question: Callable[[Store], T]) -> T:
        """Call `question` with a store, for what may take a moment: a search. Raises as it does."""
        return await self._asking.do(question)

    # --- acting -----------------------------------------------------------------------------------

    async def at_once(self, verb: Callable[[Migration], object]) -> None:
        """Call a verb that only records a wish. Raises as it does."""
        await self._looking.do(lambda store: verb(self.task.migration(store)))

    def start(self) -> None:
        """Run the migration here, until `stop` or its end. Raises Locked if it runs already."""
        self._stopping.clear()

        def follow(migration: Migration) -> Outcome:
            ended = migration.start(
                follow=lambda: False,
                stop=self._stopping.is_set,
                engine=self.task.engine,
                gate_check=self.task.gate_check,
            )
            return Outcome("start", f"The migration has ended: {ended.state}.")

        self._begin(TaskThread.RUN, "start", follow)

    def plan(self) -> None:
        """Look at what `start` would do; the next snapshots have it. Raises Locked while that goes on."""

        def look(migration: Migration) -> Outcome:
            self._plan = migration.plan(gate_check=self.task.gate_check)
            return Outcome("plan", "")

        self._plan = None
        self._begin(TaskThread.PLAN, "plan", look)

    def stop(self) -> None:
        """End the run at the next row; `start` goes on from there."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        """Whether the run was asked to end."""
        return self._stopping.is_set()

    def by_hand(self, verb: str, work: Callable[[Migration], Outcome]) -> None:
        """Run `work` in a thread. Raises Locked while another one is at work."""
        self._begin(TaskThread.HAND, verb, work)

    def _begin(self, place: TaskThread, verb: str, work: Callable[[Migration], Outcome]) -> None:
        doing = self._doing.get(place)
        if doing is not None and doing.outcome is None:
            raise Locked(self.task.store.target, f"this console ({doing.verb})")
        self._doing[place] = Doing(verb, time.monotonic())
        thread = threading.Thread(target=self._do, args=(place, work), name=f"console-{place}", daemon=True)
        self._threads[place] = thread
        thread.start()

    def _do(self, place: TaskThread, work: Callable[[Migration], Outcome]) -> None:
        doing = self._doing[place]
        outcome = Outcome(doing.verb, FAULT, failed=True)
        try:
            with closing(self.task.store.another()) as store:
                outcome = work(self.task.migration(store))
        except VecferryError as exc:
            outcome = Outcome.of(doing.verb, exc)
        finally:
            self._doing[place] = replace(doing, outcome=outcome, ended_at=time.monotonic())

    def close(self) -> None:
        """Stop the run and wait for it, and for a verb that is under way, for a time."""
        self.stop()
        until = time.monotonic() + PATIENCE_S
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))
        self._looking.close()
        self._asking.close()
        self.task.store.close()


def _reading(status: Status) -> Reading:
    encoded = status.running.rows_encoded if status.running is not None else 0
    return Reading(time.time(), status.rows_done + encoded, status.backlog)


def with_reading(readings: tuple[Reading, ...], reading: Reading) -> tuple[Reading, ...]:
    """Return the readings with this one, where something has changed; a long quiet before it is kept as such."""
    if not readings:
        return (reading,)
    last = readings[-1]
    if (last.rows, last.writes) == (reading.rows, reading.writes):
        return readings
    quiet = (replace(last, at=reading.at - 1.0),) if reading.at - last.at > READING_S else ()
    longer = (*readings, *quiet, reading)
    return longer if len(longer) <= MAX_READINGS else (*longer[:-1:2], reading)


class _Desk:
    """A thread with a store of its own, for one thing after the other."""

    def __init__(self, store: Store) -> None:
        self._origin = store
        self._store: Store | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="console-desk")

    async def do(self, work: Callable[[Store], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._connected, work)

    def _connected(self, work: Callable[[Store], T]) -> T:
        """Call `work`; once more, by a new connection, if the old one is gone."""
        store = self._opened()
        try:
            return work(store)
        except StoreUnreachable:
            store.reconnect()
            return work(store)

    def _opened(self) -> Store:
        if self._store is None:
            self._store = self._origin.another()
        return self._store

    def close(self) -> None:
        self._pool.submit(self._close_store).result()
        self._pool.shutdown()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
