"""Retrieval quality. The only file that imports `ir_measures`, which computes every metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vecferry.errors import MissingExtra


@dataclass(frozen=True)
class Judgement:
    """relevance: 0 is not relevant; higher is better."""

    query_id: str
    passage_id: str
    relevance: int


@dataclass(frozen=True)
class Hit:
    """A passage found for a query; the higher the score, the better."""

    query_id: str
    passage_id: str
    score: float


def ndcg_at_10(judgements: Iterable[Judgement], hits: Iterable[Hit]) -> dict[str, float]:
    """nDCG@10 by query id, for every judged query; one that found nothing has 0. Raises MissingExtra."""
    try:
        import ir_measures
        from ir_measures import nDCG
    except ModuleNotFoundError as exc:
        raise MissingExtra("eval", "ir-measures") from exc
    qrels = [ir_measures.Qrel(j.query_id, j.passage_id, j.relevance) for j in judgements]
    run = [ir_measures.ScoredDoc(h.query_id, h.passage_id, h.score) for h in hits]
    return {metric.query_id: float(metric.value) for metric in ir_measures.iter_calc([nDCG @ 10], qrels, run)}


def mean_by_slice(values: Mapping[str, float], slices: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Mean of the queries' values for each slice (name -> query ids), and for `all` of them."""
    means = {name: sum(values[q] for q in queries) / len(queries) for name, queries in slices.items()}
    return {**means, "all": sum(values.values()) / len(values)}
