"""Retrieval quality. The only file that imports `ir_measures`, which computes every metric."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vecferry.embeddings import Float32, dense_scores
from vecferry.encoder import Encoder
from vecferry.errors import MissingExtra, SettingsError


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


@dataclass(frozen=True)
class LabelledSet:
    """Texts by id, and what is relevant to what."""

    passages: Mapping[str, str]
    questions: Mapping[str, str]
    judgements: tuple[Judgement, ...]

    def ndcg_at_10(self, encoder: Encoder) -> float:
        """Of exact search with dense vectors; the mean of all judged questions. Raises MissingExtra."""
        passages = encoder.encode(list(self.passages.values()), role="passage")
        questions = encoder.encode(list(self.questions.values()), role="query")
        found = best_hits(list(self.questions), list(self.passages), dense_scores(questions, passages))
        values = ndcg_at_10(self.judgements, found)
        return sum(values.values()) / len(values)


def best_hits(question_ids: Sequence[str], passage_ids: Sequence[str], scores: Float32) -> Iterator[Hit]:
    """The ten best passages of each question. scores: [questions, passages]; of equal ones the first is taken."""
    for question, row in zip(question_ids, scores, strict=True):
        for best in np.argsort(-row, kind="stable")[:10]:
            yield Hit(question, passage_ids[best], float(row[best]))


def read_beir(folder: Path) -> LabelledSet:
    """corpus.jsonl, queries.jsonl and qrels/test.tsv with a header. A passage's title goes before its text.

    Raises SettingsError with the file that is missing or of another form, and MissingExtra.
    """
    require_metrics()
    try:
        passages, questions = (dict(_texts(folder / name)) for name in ("corpus.jsonl", "queries.jsonl"))
        lines = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
        judged = tuple(Judgement(q, p, int(grade)) for q, p, grade in (line.split("\t") for line in lines))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SettingsError("the labelled set", folder, f"a folder in BEIR layout ({exc!r})") from exc
    if not passages or not {judgement.query_id for judgement in judged} & questions.keys():
        raise SettingsError("the labelled set", folder, "one that has passages, and questions with judgements")
    return LabelledSet(passages, questions, tuple(j for j in judged if j.query_id in questions))


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        yield record["_id"], f"{record.get('title', '')} {record['text']}".strip()


def require_metrics() -> None:
    """Raises MissingExtra."""
    try:
        import ir_measures  # noqa: F401
    except ModuleNotFoundError as exc:
        raise MissingExtra("eval", "ir-measures") from exc


def ndcg_at_10(judgements: Iterable[Judgement], hits: Iterable[Hit]) -> dict[str, float]:
    """nDCG@10 by query id, for every judged query; one that found nothing has 0. Raises MissingExtra."""
    require_metrics()
    import ir_measures
    from ir_measures import nDCG

    qrels = [ir_measures.Qrel(j.query_id, j.passage_id, j.relevance) for j in judgements]
    run = [ir_measures.ScoredDoc(h.query_id, h.passage_id, h.score) for h in hits]
    return {metric.query_id: float(metric.value) for metric in ir_measures.iter_calc([nDCG @ 10], qrels, run)}


def mean_by_slice(values: Mapping[str, float], slices: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Mean of the queries' values for each slice (name -> query ids), and for `all` of them."""
    means = {name: sum(values[q] for q in queries) / len(queries) for name, queries in slices.items()}
    return {**means, "all": sum(values.values()) / len(values)}
