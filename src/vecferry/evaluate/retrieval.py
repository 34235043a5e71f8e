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
    """Rankings and their values: by system and metric, of each question. ids: of the passages, by number."""

    queries: JudgedQueries
    ids: tuple[str, ...]
    rankings: Mapping[System, Ranked]
    values: Mapping[System, Mapping[str, Float64]]
    hybrid: HybridFit | None

    def scored(self, system: System) -> Scored:
        """Return the hits that an application shows, with what is known of their relevance."""
        ranking = self.rankings[system].first(HITS)
        judged = relevance_of(self.queries)
        relevant = [
            [number != NONE and judged[question.id].get(self.ids[number], 0) > 0 for number in row]
            for question, row in zip(self.queries.questions, ranking.passages.tolist(), strict=True)
        ]
        is_hit = ranking.passages != NONE
        return Scored(ranking.scores, is_hit, np.array(relevant, bool).reshape(is_hit.shape))


def relevance_of(queries: JudgedQueries) -> Mapping[str, Mapping[str, int]]:
    """Return relevance by question and passage; empty for a question without judgements."""
    judged: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for judgement in queries.judgements:
        judged[judgement.query_id][judgement.passage_id] = judgement.relevance
    return judged


def search(corpus: Corpus, query_set: QuerySet, outputs: Outputs, resampling: Resampling, stage: Stage) -> Answers:
    """Search both sides for every question, and judge the rankings. outputs: heads of the new model."""
    texts = [question.text for question in query_set.questions]
    old = corpus.old.encode(texts, stage, f"asking {len(texts):,} questions in the old space", role="query")
    rankings: dict[System, Ranked] = {OLD: corpus.search("old", old, DEPTH)}
    label = f"asking {len(texts):,} questions in the new space"
    new = corpus.new.encode(texts, stage, label, outputs=outputs, role="query")
    rankings[NEW] = corpus.search("new", new, DEPTH)
    shown = [ranking.first(HITS) for ranking in rankings.values()]
    queries = query_set.queries or judged_by_text(query_set.pairs, shown, corpus.ids, corpus.texts)
    judging = _Judging(queries, corpus)
    hybrid = None
    if outputs != DENSE:
        stage(f"ordering by {' and '.join((outputs & ~DENSE).names)} vectors")
        hybrid = _by_heads(corpus, new, rankings, judging, resampling)
    stage("judging")
    values = {system: judging.values(ranked) for system, ranked in rankings.items()}
    return Answers(_with_slices(queries, corpus), tuple(corpus.ids), rankings, values, hybrid)


@dataclass(frozen=True)
class _Judging:
    queries: JudgedQueries
    corpus: Corpus

    def values(self, ranking: Ranked) -> Mapping[str, Float64]:
        return per_query(self.queries, self.corpus.ids, ranking, METRICS)

    def first_metric(self, ranking: Ranked, rows: Int64) -> Float64:
        """Return the first metric of the questions at `rows`."""
        subset = replace(self.queries, questions=tuple(self.queries.questions[row] for row in rows))
        return per_query(subset, self.corpus.ids, ranking, METRICS[:1])[METRICS[0]]


def _by_heads(
    corpus: Corpus, queries: Embeddings, rankings: dict[System, Ranked], judging: _Judging, resampling: Resampling
) -> HybridFit | None:
    """Add the rankings of the other heads, and that of the published weights, to `rankings`."""
    lexical = corpus.search_words(queries, DEPTH) if queries.sparse_or_none is not None else None
    outputs = _outputs_of(queries)
    first = [ranking.first(CANDIDATES) for ranking in (rankings[NEW], lexical) if ranking is not None]
    scored = candidates(first, queries, lambda numbers: corpus.embeddings(numbers, outputs))
    if queries.sparse_or_none is not None:
        rankings["new", "sparse"] = lexical or scored.best(DEPTH, HybridWeights(0, 1, 0))
    if queries.colbert_or_none is not None:
        rankings["new", "colbert"] = scored.best(DEPTH, HybridWeights(0, 0, 1))
    heads: list[Method] = [method for side, method in rankings if side == "new"]
    rankings["new", "hybrid"] = scored.best(DEPTH, HybridWeights())
    everything = np.arange(len(queries))
    alone = {method: judging.first_metric(rankings["new", method], everything) for method in heads}
    return fitted(scored, judging.first_metric, alone, resampling)


def _outputs_of(queries: Embeddings) -> Outputs:
    values = {Outputs.SPARSE: queries.sparse_or_none, Outputs.COLBERT: queries.colbert_or_none}
    return DENSE | Outputs(sum(flag.value for flag, value in values.items() if value is not None))


def _best(judged: Mapping[str, int]) -> list[str]:
    """Return the most relevant passages."""
    highest = max(judged.values())
    return [passage_id for passage_id, grade in judged.items() if grade == highest > 0]


def _with_slices(queries: JudgedQueries, corpus: Corpus) -> JudgedQueries:
    relevant = {query_id: _best(judged) for query_id, judged in relevance_of(queries).items()}
    wanted = sorted({passage_id for passage_ids in relevant.values() for passage_id in passage_ids})
    questions = sliced(queries.questions, relevant, corpus.are_cut(wanted), corpus.old.encoder.space.max_tokens)
    return replace(queries, questions=questions)
