"""From a corpus and questions to an `Evaluation`: both sides are asked, compared, and looked at."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Annotated, Any

from pydantic import Field

from vecferry.embeddings import DENSE, Outputs
from vecferry.encode.runtime.host import machine
from vecferry.errors import MissingOption
from vecferry.evaluate.changes import MAX_CHARS, changes, replayed
from vecferry.evaluate.comparing import compare
from vecferry.evaluate.corpora import Corpus, EvaluatedModel, PassageSample, Stage
from vecferry.evaluate.distributions import distribution
from vecferry.evaluate.findings import Sampled, look_at
from vecferry.evaluate.gate import judge
from vecferry.evaluate.metrics import require_metrics
from vecferry.evaluate.questions import LANGUAGE, SCRIPT, QuerySet, script_of
from vecferry.evaluate.retrieval import NEW, OLD, Answers, System, search
from vecferry.evaluate.space_map import space_map
from vecferry.evaluate.statistics import Resampling, mean_with_interval
from vecferry.evaluate.thresholds import Scored, all_mapped
from vecferry.evaluate.values import (
    METRICS,
    CorpusFinding,
    CutOffs,
    Evaluation,
    ModelFacts,
    ScoreDistribution,
    SpaceMap,
    SystemScore,
)
from vecferry.options import Checked, Count, CountFrom0, Help, Number, Share

TIMED_QUERIES = 21
MAX_ON_MAP = 1000


MaxQueries = Annotated[Count | None, Help("queries asked on both sides, at most")]


@dataclass(frozen=True)
class GateOptions(Checked):
    """When the new side counts as not worse."""

    margin: Annotated[Share, Help("largest acceptable drop in nDCG@10")] = 0.02
    confidence: Annotated[
        Number,
        Field(gt=0, lt=1, description="a number between 0 and 1"),
        Help("confidence with which a larger drop must be excluded"),
    ] = 0.95


@dataclass(frozen=True)
class EvaluationOptions(GateOptions):
    """The options of an evaluation. max_queries: None uses all.

    outputs: heads of the new model to look at; those that it lacks are left out. thresholds: cut-offs of the
    application in the old space, by name. sample: 0 leaves findings and map out. Raises SettingsError.
    """

    seed: Annotated[int, Help("seed of every random choice")] = 0
    max_queries: MaxQueries = None
    outputs: Outputs = DENSE
    thresholds: CutOffs = field(default_factory=dict)
    sample: Annotated[CountFrom0, Help("passages that are looked at for findings and map")] = 1000

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.confidence, self.seed)


def run_evaluation(
    corpus: Corpus,
    query_set: QuerySet,
    options: EvaluationOptions,
    stage: Stage = lambda _: None,
    provenance: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Compare the two sides of a corpus by these queries.

    Raises MissingExtra, MissingOption where there is no question; what the models and the store raise.
    """
    require_metrics()
    query_set = query_set.limited(options.max_queries, options.seed)
    if not query_set.questions:
        expected = "no passage is long enough to ask for a part of it"
        raise MissingOption("--queries", expected, "--queries FOLDER, with judged queries in BEIR layout")
    outputs = options.outputs & corpus.new.encoder.space.outputs | DENSE
    answers = search(corpus, query_set, outputs, options.resampling, stage)
    first = METRICS[0]
    compared = compare(
        first, answers.queries.questions, answers.values[OLD][first], answers.values[NEW][first], options.resampling
    )
    stage("looking at the queries that change most")
    gains, losses = changes(corpus, answers, compared)
    hits = {system: answers.scored(system) for system in (OLD, NEW)}
    sample = corpus.sample(options.sample, options.seed) if options.sample and corpus.num_passages else None
    stage("drawing conclusions: intervals, cut-offs, findings")
    old_rate, new_rate = corpus.texts_per_s
    texts = [question.text for question in query_set.questions]
    return Evaluation(
        target=corpus.target,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        evidence=query_set.evidence,
        passages=corpus.num_passages,
        queries_asked=len(texts),
        judgements=len(answers.queries.judgements),
        old=_facts(corpus.old, corpus.num_passages, old_rate, texts),
        new=_facts(corpus.new, corpus.num_passages, new_rate, texts),
        compared=("dense", "dense"),
        gate=judge(compared, margin=options.margin, confidence=options.confidence),
        systems=_systems(answers, options),
        slices=compared.slices,
        queries=compared.scores(),
        gains=gains,
        losses=losses,
        hybrid=answers.hybrid,
        replay=replayed(corpus, query_set.log, options.resampling) if query_set.log else None,
        scores=_distributions(hits),
        thresholds=all_mapped(options.thresholds, hits[OLD], hits[NEW], options.resampling),
        findings=_findings(corpus, sample) if sample else (),
        map=_map(sample) if sample else None,
        provenance={**_provenance(options), **(provenance or {})},
    )


# --- quality --------------------------------------------------------------------------------------


def _systems(answers: Answers, options: EvaluationOptions) -> tuple[SystemScore, ...]:
    return tuple(
        SystemScore(
            side, method, {name: mean_with_interval(values, options.resampling) for name, values in metrics.items()}
        )
        for (side, method), metrics in answers.values.items()
    )


# --- scores ---------------------------------------------------------------------------------------


def _distributions(scored: Mapping[System, Scored]) -> tuple[ScoreDistribution, ...]:
    distributions = []
    for system, hits in scored.items():
        answered = hits.is_hit[:, 0]
        if answered.any():
            relevant = hits.scores[hits.relevant] if hits.relevant is not None and hits.relevant.any() else None
            distributions.append(distribution(system[0], hits.scores[answered], relevant))
    return tuple(distributions)


# --- texts, models, where it comes from -----------------------------------------------------------


def _findings(corpus: Corpus, sample: PassageSample) -> tuple[CorpusFinding, ...]:
    return look_at(
        Sampled(
            ids=tuple(passage.id for passage in sample.passages),
            texts=tuple(passage.full for passage in sample.passages),
            old=sample.old,
            new=sample.new,
            old_name=corpus.old.name,
            new_name=corpus.new.name,
            old_max_tokens=corpus.old.encoder.space.max_tokens,
            new_max_tokens=corpus.new.encoder.space.max_tokens,
        )
    )


def _map(sample: PassageSample) -> SpaceMap | None:
    by = LANGUAGE if any(LANGUAGE in passage.slices for passage in sample.passages) else SCRIPT
    shown = sample.passages[:MAX_ON_MAP]
    return space_map(
        [passage.id for passage in shown],
        [passage.full[:MAX_CHARS] for passage in shown],
        [passage.slices.get(by) or script_of(passage.full) for passage in shown],
        sample.old.dense[: len(shown)],
        sample.new.dense[: len(shown)],
        by,
    )


def _facts(model: EvaluatedModel, passages: int, texts_per_s: float | None, questions: Sequence[str]) -> ModelFacts:
    space = model.encoder.space
    return ModelFacts(
        name=model.name,
        fingerprint=space.fingerprint,
        dimension=space.dimension,
        max_tokens=space.max_tokens,
        precision=space.precision,
        runtime=model.runtime,
        bytes=model.bytes,
        texts_per_s=None if texts_per_s is None else round(texts_per_s, 2),
        query_ms=round(1000 * _query_seconds(model, questions), 2),
        index_bytes=4 * space.dimension * passages,
    )


def _query_seconds(model: EvaluatedModel, questions: Sequence[str]) -> float:
    """Return the median time of single queries."""
    seconds = []
    for question in questions[:TIMED_QUERIES]:
        began = time.perf_counter()
        model.encoder.encode([question], role="query")
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _provenance(options: EvaluationOptions) -> dict[str, Any]:
    return {
        "vecferry": version("vecferry"),
        **machine(),
        "seed": options.seed,
        "resamples": "bootstrap over queries, percentile intervals",
    }
