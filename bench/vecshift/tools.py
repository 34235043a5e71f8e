"""The two tools as an operator drives them: each verb a command in a process of its own.

    python -m bench.vecshift.tools start|verify|cutover|rollback JOB

stands for `vecferry migrate`, with the encoder of the benchmark in place of a model's folder. JOB is `Job` as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.vecshift.application import NAME, NEW, OLD, TEXT, VECTOR
from bench.vecshift.embeddings import ServedEncoder
from vecferry.errors import MigrationNotFound
from vecferry.migrate import Migration, MigrationOptions, State, Status
from vecferry.stores.pgvector import PgVectorStore

REPEATED_S = 600.0
"""How long a verb that is refused, or ends with an error, is called again."""
MIN_RECALL = 0.0
"""It is measured and not asked for: in random vectors of 1,024 numbers an HNSW index finds a third of the nearest."""
POLL_S = 0.5
READY_S = 3600.0
SETTLED_S = 60.0


@dataclass(frozen=True)
class Job:
    """folder: for a tool's own files. server: base URL of the embeddings. dimensions: numbers in a vector, by model."""

    url: str
    folder: str
    server: str
    dimensions: Mapping[str, int]


class Commands:
    """Calls a program's verbs. attempts: how often, by verb; refusals: what a call that did not succeed said last."""

    def __init__(self, program: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> None:
        self.program, self.environment = tuple(program), dict(environment)
        self.attempts: Counter[str] = Counter()
        self.refusals: list[str] = []
        self._folder = folder

    def call(self, verb: str, *arguments: str) -> str:
        """What it printed, once it has succeeded. Raises RuntimeError after `REPEATED_S` seconds of refusals."""
        until = time.monotonic() + REPEATED_S
        while time.monotonic() < until:
            self.attempts[verb] += 1
            ended = subprocess.run(
                [*self.program, verb, *arguments],
                capture_output=True,
                text=True,
                env=self.environment,
                cwd=self._folder,
            )
            if ended.returncode == 0:
                return ended.stdout
            lines = f"{ended.stdout}\n{ended.stderr}".strip().splitlines()
            self.refusals.append(f"{verb}: {lines[-1] if lines else ended.returncode}")
        raise RuntimeError(f"refused {self.attempts[verb]} times: {self.refusals[-1]}")


class Tool(Protocol):
    """A tool on one table. commands: with which it is driven."""

    commands: Commands

    def start(self) -> None:
        """Leaves a new vector for every row, and the index: ready to switch."""

    def cutover(self) -> None: ...

    def rollback(self) -> None: ...

    def settle(self) -> None:
        """Let it finish what it still has to do, now that nothing is written."""

    def close(self) -> None: ...

    def details(self) -> dict[str, Any]:
        """Figures that this tool alone has."""


class Peer:
    """VecShift. Its rollback says how many rows have no old vector; to embed them is left to the application."""

    def __init__(self, program: str, job: Job) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"VECSHIFT_DSN": job.url, "NO_PROXY": "127.0.0.1"}
        self.commands = Commands([program], environment, Path(job.folder))
        self._reported: dict[str, Any] = {}
        model = f"compat/{NEW},url={job.server},dims={job.dimensions[NEW]},price=0"
        self.commands.call("init", "--table", f"public.{NAME}", "--model", model)

    def start(self) -> None:
        self.commands.call("apply", "--yes", "--json")

    def cutover(self) -> None:
        self._report("cutover", "caught_up")

    def rollback(self) -> None:
        self._report("rollback", "missing")

    def settle(self) -> None:
        self.commands.call("apply", "--yes", "--json")

    def close(self) -> None:
        pass

    def details(self) -> dict[str, Any]:
        return self._reported

    def _report(self, verb: str, figure: str) -> None:
        answer = self.commands.call(verb, "--yes", "--json").strip().splitlines()[-1]
        self._reported[f"{verb}_reported_{figure}"] = json.loads(answer)[figure]


class Ours:
    """vecferry: `start` follows in a process of its own until the end; the other verbs are called beside it."""

    def __init__(self, job: Job) -> None:
        self.commands = Commands([sys.executable, "-m", __spec__.name], os.environ)
        self._job = job
        self._argument = json.dumps(asdict(job))
        self._store = PgVectorStore.connect(job.url, NAME, TEXT, VECTOR)
        self._migration = Migration(self._store, options=_options(job))
        self._follower: subprocess.Popen[bytes] | None = None
        self._verified_s = 0.0

    def start(self) -> None:
        self.commands.attempts["start"] += 1
        command = [*self.commands.program, "start", self._argument]
        self._follower = subprocess.Popen(command, env=self.commands.environment)
        self._await(lambda status: status.state is State.CATCHING_UP, READY_S)
        began = time.monotonic()
        self.commands.call("verify", self._argument)
        self._verified_s = time.monotonic() - began

    def cutover(self) -> None:
        self.commands.call("cutover", self._argument)

    def rollback(self) -> None:
        self.commands.call("rollback", self._argument)

    def settle(self) -> None:
        self._await(lambda status: status.backlog == status.old_backlog == 0, SETTLED_S)

    def close(self) -> None:
        if self._follower is not None:
            self._follower.terminate()
            self._follower.wait()
        self._store.close()

    def details(self) -> dict[str, Any]:
        return {"verify_s": round(self._verified_s, 2)}

    def _await(self, condition: Callable[[Status], bool], limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            assert self._follower is not None
            if self._follower.poll() is not None:
                raise RuntimeError("start ended")
            try:
                if condition(self._migration.status()):
                    return
            except MigrationNotFound:  # it has not begun
                pass
            time.sleep(POLL_S)
        raise RuntimeError(f"still not so after {limit_s:g} s: {self._migration.status()}")


# --- vecferry's verbs -----------------------------------------------------------------------------


def _options(job: Job) -> MigrationOptions:
    fingerprint = ServedEncoder(job.server, OLD, job.dimensions[OLD]).fingerprint
    staging = Path(job.folder) / "staging"
    return MigrationOptions(
        accept_unconfirmed="a bench", staging=staging, old_fingerprint=fingerprint, min_recall=MIN_RECALL
    )


def main() -> None:
    verb, argument = sys.argv[1:]
    job = Job(**json.loads(argument))
    old, new = (ServedEncoder(job.server, model, job.dimensions[model]) for model in (OLD, NEW))
    with PgVectorStore.connect(job.url, NAME, TEXT, VECTOR) as store:
        migration = Migration(store, new=new, old=old, options=_options(job))
        match verb:
            case "start":
                migration.start(follow=lambda: False)
            case "verify":
                report = migration.verify(override="a benchmark judges no queries")
                if not report.passed:
                    sys.exit(str([check for check in report.checks if not check.passed]))
            case "cutover":
                migration.cutover()
            case "rollback":
                migration.rollback()
            case _:
                raise ValueError(verb)


if __name__ == "__main__":
    main()
