"""Questions to rankings and values: each side is asked, and what it answers is judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vecferry.embeddings import DENSE, Embeddings, HybridWeights, Int64, Outputs
from vecferry.evaluate.corpora import Corpus, Stage
from vecferry.evaluate.hybrid import fitted
from vecferry.evaluate.metrics import Float64, per_query
from vecferry.evaluate.pairs import judged_by_text
from vecferry.evaluate.questions import QuerySet, sliced
from vecferry.evaluate.ranking import NONE, Ranked, candidates
from vecferry.evaluate.statistics import Resampling
from vecferry.evaluate.thresholds import Scored
from vecferry.evaluate.values import METRICS, HybridFit, JudgedQueries, Method

DEPTH = 100
CANDIDATES = 50
"""Of dense and of sparse search each, that ColBERT and the hybrid put into order."""
HITS = 10
"""Answers that an application shows; thresholds and replay are about these."""

System = tuple[Literal["old", "new"], Method]
OLD: System = ("old", "dense")
NEW: System = ("new", "dense")


@dataclass(frozen=True)
class Answers:
    """ids: of the passages, by number. values: by system and metric, of each question. hybrid: as `fitted` gives it."""

    queries: JudgedQueries
    ids: tuple[str, ...]
    found: Mapping[System, Ranked]
    values: Mapping[System, Mapping[str, Float64]]
    hybrid: HybridFit | None

    def scored(self, system: System) -> Scored:
        """The hits that an application shows, with what is known of their relevance."""
        found = self.found[system].first(HITS)
        judged = relevance_of(self.queries)
        relevant = [
            [number != NONE and judged[question.id].get(self.ids[number], 0) > 0 for number in row]
            for question, row in zip(self.queries.questions, found.passages.tolist(), strict=True)
        ]
        return Scored(found.scores, found.passages != NONE, np.array(relevant, bool).reshape(found.passages.shape))


def relevance_of(queries: JudgedQueries) -> Mapping[str, Mapping[str, int]]:
    """By question and passage; empty for a question without judgements."""
    judged: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for judgement in queries.judgements:
        judged[judgement.query_id][judgement.passage_id] = judgement.relevance
    return judged


def search(corpus: Corpus, asked: QuerySet, outputs: Outputs, resampling: Resampling, stage: Stage) -> Answers:
    """outputs: heads of the new model."""
    texts = [question.text for question in asked.questions]
    stage(f"asking {len(texts):,} questions in the old space")
    old = corpus.old.encoder.encode(texts, role="query")
    found: dict[System, Ranked] = {OLD: corpus.search("old", old, DEPTH)}
    stage(f"asking {len(texts):,} questions in the new space")
    new = corpus.new.encoder.encode(texts, outputs=outputs, role="query")
    found[NEW] = corpus.search("new", new, DEPTH)
    shown = [one.first(HITS) for one in found.values()]
    queries = asked.queries or judged_by_text(asked.pairs, shown, corpus.ids, corpus.texts)
    judging = _Judging(queries, corpus)
    hybrid = None
    if outputs != DENSE:
        stage(f"ordering by {' and '.join((outputs & ~DENSE).names)} vectors")
        hybrid = _by_heads(corpus, new, found, judging, resampling)
    stage("judging")
    values = {system: judging.values(ranked) for system, ranked in found.items()}
    return Answers(_with_slices(queries, corpus), tuple(corpus.ids), found, values, hybrid)


@dataclass(frozen=True)
class _Judging:
    queries: JudgedQueries
    corpus: Corpus

    def values(self, found: Ranked) -> Mapping[str, Float64]:
        return per_query(self.queries, self.corpus.ids, found, METRICS)

    def first_metric(self, found: Ranked, rows: Int64) -> Float64:
        """Of some questions."""
        some = replace(self.queries, questions=tuple(self.queries.questions[row] for row in rows))
        return per_query(some, self.corpus.ids, found, METRICS[:1])[METRICS[0]]


def _by_heads(
    corpus: Corpus, queries: Embeddings, found: dict[System, Ranked], judging: _Judging, resampling: Resampling
) -> HybridFit | None:
    """Leaves the rankings of the other heads in `found`, and that of the published weights."""
    message = corpus.search_words(queries, DEPTH) if queries.sparse_or_none is not None else None
    outputs = _outputs_of(queries)
    first = [one.first(CANDIDATES) for one in (found[NEW], message) if one is not None]
    scored = candidates(first, queries, lambda numbers: corpus.embeddings(numbers, outputs))
    if queries.sparse_or_none is not None:
        found["new", "sparse"] = message or scored.best(DEPTH, HybridWeights(0, 1, 0))
    if queries.colbert_or_none is not None:
        found["new", "colbert"] = scored.best(DEPTH, HybridWeights(0, 0, 1))
    heads: list[Method] = [method for side, method in found if side == "new"]
    found["new", "hybrid"] = scored.best(DEPTH, HybridWeights())
    everything = np.arange(len(queries))
    alone = {method: judging.first_metric(found["new", method], everything) for method in heads}
    return fitted(scored, judging.first_metric, alone, resampling)


def _outputs_of(queries: Embeddings) -> Outputs:
    there = {Outputs.SPARSE: queries.sparse_or_none, Outputs.COLBERT: queries.colbert_or_none}
    return DENSE | Outputs(sum(flag.value for flag, value in there.items() if value is not None))


def _best(judged: Mapping[str, int]) -> list[str]:
    """The most relevant passages."""
    highest = max(judged.values())
    return [passage_id for passage_id, grade in judged.items() if grade == highest > 0]


def _with_slices(queries: JudgedQueries, corpus: Corpus) -> JudgedQueries:
    relevant = {query_id: _best(judged) for query_id, judged in relevance_of(queries).items()}
    wanted = sorted({passage_id for passage_ids in relevant.values() for passage_id in passage_ids})
    questions = sliced(queries.questions, relevant, corpus.are_cut(wanted), corpus.old.encoder.space.max_tokens)
    return replace(queries, questions=questions)
