"""The quality gate of a migration: both sides of the store are asked before either is let go."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vecferry.encode.encoder import TextEncoder
from vecferry.errors import SettingsError, StoreFailed
from vecferry.evaluate import (
    EvaluatedModel,
    Evaluation,
    EvaluationOptions,
    QuerySet,
    StoreCorpus,
    run_evaluation,
)
from vecferry.evaluate.evaluation import GateOptions
from vecferry.evaluate.gate import MIN_QUERIES, slice_message, too_few_message
from vecferry.evaluate.metrics import require_metrics
from vecferry.evaluate.values import ALL, GateResult, SliceScore
from vecferry.migrate.config import MigrationConfig
from vecferry.migrate.live_evaluation import query_set_of, read_question_files, rows_of_ids
from vecferry.migrate.values import Check, GateVerdict, MappedThreshold
from vecferry.migrate.verification import Gate
from vecferry.stores.protocol import Store

WEAK = "This is weaker evidence: questions made of the rows' own sentences and titles, since nobody has judged any. "
NO_OLD_MODEL = "There is no old model to compare with: name it under [models] old, or override the gate with a reason."
NOT_JUDGED = "There is nothing to ask: no row has a text long enough to ask for a part of it."


def make_gate(
    config: MigrationConfig,
    *,
    old: TextEncoder | None,
    new: TextEncoder,
    stage: Callable[[str], None] = lambda _: None,
) -> Gate:
    """Return a gate by the judged queries, or the query log, that [gate] names; else by pairs made of the rows.

    Raises MissingExtra. What it judges by is read when it is asked, and SettingsError is raised then; `check_gate`
    looks at it beforehand.
    """
    if old is None:
        return lambda _: GateVerdict(passed=False, message=NO_OLD_MODEL, evidence="none")
    require_metrics()
    models = (
        EvaluatedModel.of_folder(config.models.old or Path("old"), old),
        EvaluatedModel.of_folder(config.models.new, new),
    )
    options = replace(options_of(config), sample=0)
    return QualityGate(*models, options, lambda store: query_set_of(store, config.gate.queries, options), stage)


def check_gate(config: MigrationConfig, store: Store) -> tuple[str, ...]:
    """Look at what the gate is going to ask, as `make_gate` reads it later, and return what an operator should mind.

    Raises MissingExtra; SettingsError for files that cannot be read, or judgements of which none is about a row.
    """
    if config.models.old is None:
        return (NO_OLD_MODEL,)
    require_metrics()
    asked = read_question_files(config.gate.queries)
    limit = config.gate.max_queries or MIN_QUERIES
    if not asked.questions:
        return _too_few(limit)
    return (*_too_few(min(len(asked.questions), limit)), *_unknown(asked.passage_ids, config, store))


def _too_few(asked: int) -> tuple[str, ...]:
    return () if asked >= MIN_QUERIES else (f"the gate cannot pass: {too_few_message(asked)}",)


def _unknown(ids: Collection[str], config: MigrationConfig, store: Store) -> tuple[str, ...]:
    """Say how many documents that were judged are no rows. Raises SettingsError where none is one."""
    expected = f"document ids that are keys of {store.target}, as {min(ids, default='none')} should be"
    try:
        unknown = len(ids) - sum(1 for _ in rows_of_ids(store, ids))
    except StoreFailed as exc:  # a key of that form there cannot be
        raise SettingsError("[gate] queries", config.gate.queries, f"{expected} ({exc.reason})") from exc
    if unknown == len(ids):
        raise SettingsError("[gate] queries", config.gate.queries, expected)
    message = f"{unknown:,} of {len(ids):,} judged documents are no rows, and found by neither side"
    return (message,) if unknown else ()


def options_of(config: MigrationConfig) -> EvaluationOptions:
    """Return what [gate] and [thresholds] say."""
    judged = {each.name: getattr(config.gate, each.name) for each in fields(GateOptions)}
    return EvaluationOptions(**judged, max_queries=config.gate.max_queries, thresholds=config.thresholds)


@dataclass
class QualityGate:
    """query_set: what is asked of a store. evaluation: what the last verdict rests on; None without a question."""

    old: EvaluatedModel
    new: EvaluatedModel
    options: EvaluationOptions
    query_set: Callable[[Store], QuerySet]
    stage: Callable[[str], None] = lambda _: None
    evaluation: Evaluation | None = field(default=None, init=False)

    def __call__(self, store: Store) -> GateVerdict:
        queries = self.query_set(store)
        if not queries.questions:
            return GateVerdict(passed=False, message=NOT_JUDGED, evidence=queries.evidence)
        corpus = StoreCorpus(store, self.old, self.new, stage=self.stage)
        self.evaluation = run_evaluation(corpus, queries, self.options, self.stage)
        return verdict_of(self.evaluation)


def verdict_of(evaluation: Evaluation) -> GateVerdict:
    """Return the verdict, with a check for all queries and one for each slice that is large enough."""
    judged = evaluation.gate
    weak = "" if evaluation.evidence == "judged queries" else WEAK
    return GateVerdict(
        passed=judged.verdict == "passed",
        message=weak + judged.message,
        evidence=evaluation.evidence,
        checks=tuple(_check(score, judged) for score in evaluation.slices),
        thresholds={
            each.name: MappedThreshold(each.old, each.new, each.low, each.high, each.basis)
            for each in evaluation.thresholds
        },
        detail=_detail(evaluation),
    )


def _check(score: SliceScore, judged: GateResult) -> Check:
    """Require that all queries are shown to be no worse, and that a slice is not shown to be worse."""
    if score.by == ALL:
        name, passed = "all queries", judged.verdict != "inconclusive" and score.difference.low >= -judged.margin
    else:
        name = score.name
        passed = name not in judged.worse_slices
    difference = f"{score.difference.low:+.3f} to {score.difference.high:+.3f}"
    figures = (
        f"{judged.metric} {score.old.mean:.3f} → {score.new.mean:.3f} ({difference}), "
        f"{score.queries} queries: {score.wins} better, {score.losses} worse"
    )
    return Check(name, passed, figures, warning=slice_message(score, judged))


def _detail(evaluation: Evaluation) -> dict[str, Any]:
    """Return what is kept with the migration: all but texts and single queries."""
    return {
        "verdict": evaluation.gate.to_dict(),
        "queries": evaluation.queries_asked,
        "judgements": evaluation.judgements,
        "systems": [system.to_dict() for system in evaluation.systems],
        "slices": [score.to_dict() for score in evaluation.slices],
        "old": evaluation.old.to_dict(),
        "new": evaluation.new.to_dict(),
        "made_at": evaluation.made_at,
    }
