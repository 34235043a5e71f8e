"""Values of each query by `ir_measures`: nDCG@10, recall, MRR."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vecferry.errors import MissingExtra
from vecferry.evaluate.ranking import NONE, Ranked
from vecferry.evaluate.values import JudgedQueries

Float64 = NDArray[np.float64]
QUERIES_EACH = 2000


def require_metrics() -> None:
    """Check that the metrics can be computed. Raises MissingExtra."""
    for package in ("ir_measures", "scipy"):
        try:
            __import__(package)
        except ModuleNotFoundError as exc:
            raise MissingExtra("eval", package.replace("_", "-")) from exc


def per_query(
    queries: JudgedQueries, passage_ids: Sequence[str], ranking: Ranked, metrics: Sequence[str]
) -> dict[str, Float64]:
    """Return, by metric ("nDCG@10", "R@100", "RR@10"), its value for each question; 0 where there were no hits.

    Values are in the questions' order. The order of `ranking` counts, not its scores, so that equal scores are not
    put into another order. Raises MissingExtra.
    """
    require_metrics()
    import ir_measures

    measures = [ir_measures.parse_measure(name) for name in metrics]
    judged: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for judgement in queries.judgements:
        judged[judgement.query_id][judgement.passage_id] = judgement.relevance
    values = {name: np.zeros(len(queries.questions)) for name in metrics}
    for at in range(0, len(queries.questions), QUERIES_EACH):
        part = queries.questions[at : at + QUERIES_EACH]
        place = {question.id: at + i for i, question in enumerate(part)}
        run = {question.id: _run(passage_ids, ranking.passages[place[question.id]]) for question in part}
        for metric in ir_measures.iter_calc(measures, {q.id: judged[q.id] for q in part}, run):
            values[str(metric.measure)][place[metric.query_id]] = metric.value
    return values


def _run(passage_ids: Sequence[str], row: NDArray[np.int64]) -> Mapping[str, float]:
    numbers = [number for number in row.tolist() if number != NONE]
    return {passage_ids[number]: float(len(numbers) - place) for place, number in enumerate(numbers)}
