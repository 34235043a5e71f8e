"""Every metric against its definition, computed here."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vecferry.demo.passages import load_passages
from vecferry.embeddings import Embeddings
from vecferry.evaluate import JudgedQueries, Judgement, Question
from vecferry.evaluate.metrics import QUERIES_EACH, per_query
from vecferry.evaluate.ranking import NONE, Ranked, nearest
from vecferry.evaluate.values import METRICS

EXACT = 1e-9
"""Both sides are sums of at most 100 terms in float64."""


def discounted(grades: Sequence[int]) -> float:
    """Return Σ grade / log2(rank + 1) over the first ten: Järvelin & Kekäläinen (2002), with the grade as gain."""
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades[:10], start=1))


def by_definition(judged: Mapping[str, int], passage_ids: Sequence[str]) -> dict[str, float]:
    grades = [judged.get(passage_id, 0) for passage_id in passage_ids]
    relevant = sum(grade > 0 for grade in judged.values())
    best = discounted(sorted(judged.values(), reverse=True))
    ranks = [rank for rank, grade in enumerate(grades[:10], start=1) if grade > 0]
    return {
        "nDCG@10": discounted(grades) / best if best else 0.0,
        "R@10": sum(grade > 0 for grade in grades[:10]) / relevant if relevant else 0.0,
        "R@100": sum(grade > 0 for grade in grades[:100]) / relevant if relevant else 0.0,
        "RR@10": 1 / ranks[0] if ranks else 0.0,
    }


def check(queries: JudgedQueries, ids: Sequence[str], ranking: Ranked) -> dict[str, np.ndarray]:
    """Compare every value of every question with the definition; return the values."""
    judged: dict[str, dict[str, int]] = {question.id: {} for question in queries.questions}
    for judgement in queries.judgements:
        judged[judgement.query_id][judgement.passage_id] = judgement.relevance
    values = per_query(queries, ids, ranking, METRICS)
    lists = [[ids[number] for number in row if number != NONE] for row in ranking.passages.tolist()]
    expected = [by_definition(judged[q.id], row) for q, row in zip(queries.questions, lists, strict=True)]
    assert set(values) == set(METRICS)
    for metric in METRICS:
        np.testing.assert_allclose(values[metric], [row[metric] for row in expected], rtol=0, atol=EXACT)
    return values


@pytest.mark.parametrize("seed", range(5))
def test_random_rankings_with_graded_judgements_have_the_values_of_the_definitions(seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = [f"p{n}" for n in range(150)]
    passages = np.stack([random.permutation(150)[:120] for _ in range(60)])
    for row in passages:
        row[random.integers(0, 121) :] = NONE
    judgements = [
        Judgement(f"q{q}", ids[p], int(random.integers(0, 4)))
        for q in range(60)
        for p in random.permutation(150)[: random.integers(1, 40)]
    ]
    questions = tuple(Question(f"q{q}", "?") for q in range(60))
    ranking = Ranked(passages, np.zeros(passages.shape, np.float32))
    values = check(JudgedQueries(questions, tuple(judgements)), ids, ranking)
    assert len(np.unique(values["nDCG@10"])) > 20


def test_the_demo_set_has_the_values_of_the_definitions() -> None:
    """995 questions, each with one passage of grade 2 and four of grade 1; planted vectors stand for a model's."""
    shipped = load_passages()
    random = np.random.default_rng(3)
    vectors = random.normal(size=(len(shipped.passages), 16)).astype(np.float32)
    place = {passage.id: number for number, passage in enumerate(shipped.passages)}
    query_vectors = random.normal(size=(len(shipped.questions), 16)).astype(np.float32)
    row_of = {question.id: row for row, question in enumerate(shipped.questions)}
    for judgement in shipped.judgements:
        query_vectors[row_of[judgement.query_id]] += 0.5 * judgement.relevance * vectors[place[judgement.passage_id]]
    ranking = nearest(_embeddings(query_vectors), _embeddings(vectors), 100)
    values = check(shipped.queries, [passage.id for passage in shipped.passages], ranking)
    assert len(shipped.questions) == 995
    assert all(0.1 < values[metric].mean() < 0.95 for metric in METRICS)  # neither everything found nor nothing


def _embeddings(dense: np.ndarray) -> Embeddings:
    return Embeddings("a", np.ones(len(dense), np.int64), np.zeros(len(dense), bool), dense)


def test_a_query_that_found_nothing_has_zero_and_so_has_one_with_nothing_to_find() -> None:
    questions = (Question("nothing found", "?"), Question("fine", "?"), Question("only zeros", "?"))
    judgements = (Judgement("nothing found", "a", 1), Judgement("fine", "a", 1), Judgement("only zeros", "a", 0))
    ranking = Ranked(np.array([[NONE, NONE], [0, 1], [0, 1]]), np.zeros((3, 2), np.float32))
    values = per_query(JudgedQueries(questions, judgements), ["a", "b"], ranking, METRICS)
    assert [values[metric].tolist() for metric in METRICS] == [[0.0, 1.0, 0.0]] * len(METRICS)


def test_equal_scores_keep_the_order_of_the_ranking() -> None:
    """By their names, as trec_eval breaks ties, "z" would come first."""
    queries = JudgedQueries((Question("q", "?"),), (Judgement("q", "a", 1),))
    for numbers, expected in (([0, 1, 2], 1.0), ([2, 1, 0], 1 / 3)):
        ranking = Ranked(np.array([numbers]), np.ones((1, 3), np.float32))
        assert per_query(queries, ["a", "m", "z"], ranking, ["RR@10"])["RR@10"].tolist() == pytest.approx([expected])


def test_more_questions_than_are_judged_at_once_keep_their_values() -> None:
    number = QUERIES_EACH + 100
    questions = tuple(Question(f"q{q}", "?") for q in range(number))
    judgements = tuple(Judgement(f"q{q}", "p0", 1) for q in range(number))
    passages = np.array([[0, 1] if q % 3 else [1, 0] for q in range(number)])
    ranking = Ranked(passages, np.zeros(passages.shape, np.float32))
    values = per_query(JudgedQueries(questions, judgements), ["p0", "p1"], ranking, ["RR@10"])["RR@10"]
    np.testing.assert_array_equal(values, [1.0 if q % 3 else 0.5 for q in range(number)])
