"""Judged queries: texts, what is relevant to what, and the folder in BEIR layout that they are read from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecferry.embeddings import Float32
from vecferry.errors import SettingsError
from vecferry.evaluate.metrics import Float64, per_query, require_metrics
from vecferry.evaluate.ranking import ranked
from vecferry.evaluate.statistics import Resampling, mean_with_interval
from vecferry.evaluate.values import Interval, JudgedQueries, Judgement, Passage, Question

NDCG = "nDCG@10"
NAMES_OF_SLICES = {"lang": "language"}
MADE_FROM = "made_from"
"""The field of a query that nobody asked: it was taken from this passage."""
UNSLICED = ("_id", "text", "title", MADE_FROM)
MAX_VALUE = 40
"""Characters of a value that a slice can be named after; longer ones are texts."""


@dataclass(frozen=True)
class LabelledSet:
    """Passages and judged questions."""

    passages: tuple[Passage, ...]
    queries: JudgedQueries

    @property
    def passage_texts(self) -> list[str]:
        return [passage.full for passage in self.passages]

    @property
    def question_texts(self) -> list[str]:
        return [question.text for question in self.queries.questions]

    def ndcg_at_10(self, scores: Float32) -> Float64:
        """Return nDCG@10 of each judged question, [Q], for scores [Q, P]. Raises MissingExtra."""
        ids = [passage.id for passage in self.passages]
        return per_query(self.queries, ids, ranked(scores, 10), (NDCG,))[NDCG]

    def interval(self, values: Float64) -> Interval:
        """Return the mean of values [Q] with the bootstrap's 95% interval."""
        return mean_with_interval(values, Resampling(), bounds=(-1.0, 1.0))


def read_beir(folder: Path) -> LabelledSet:
    """Read corpus.jsonl, and the queries as `read_queries` does.

    Raises SettingsError with the file that is missing or of another form, and MissingExtra.
    """
    queries = read_queries(folder)
    return LabelledSet(read_passages(folder), queries)


def read_passages(folder: Path) -> tuple[Passage, ...]:
    """Read the passages of corpus.jsonl. Raises SettingsError."""
    try:
        passages = tuple(
            Passage(str(record["_id"]), record["text"], record.get("title") or "", slices_of(record))
            for record in _records(folder / "corpus.jsonl")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _refused(folder, exc) from exc
    if not passages:
        raise SettingsError("the labelled set", folder, "one that has passages")
    return passages


def read_queries(folder: Path) -> JudgedQueries:
    """Read queries.jsonl and qrels/test.tsv with a header; questions that nobody judged are left out.

    A query's other fields, and those of its `metadata`, are its slices where they are short texts: "lang" is its
    language. Raises SettingsError with the file that is missing or of another form, and MissingExtra.
    """
    require_metrics()
    try:
        questions = [
            Question(str(q["_id"]), q["text"], slices_of(q), str(q.get(MADE_FROM) or ""))
            for q in _records(folder / "queries.jsonl")
        ]
        lines = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
        judged = [Judgement(q, p, int(grade)) for q, p, grade in (line.split("\t") for line in lines)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _refused(folder, exc) from exc
    known = {question.id for question in questions} & {judgement.query_id for judgement in judged}
    if not known:
        raise SettingsError("the labelled set", folder, "one that has questions with judgements")
    return JudgedQueries(
        tuple(question for question in questions if question.id in known),
        tuple(judgement for judgement in judged if judgement.query_id in known),
    )


def slices_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the short texts among a record's fields and those of its `metadata`, by name."""
    fields = dict(record) | dict(record.get("metadata") or {})
    return {
        NAMES_OF_SLICES.get(name, name): value
        for name, value in fields.items()
        if name not in UNSLICED and isinstance(value, str) and 0 < len(value) <= MAX_VALUE
    }


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        if not isinstance(record["text"], str):
            raise TypeError(f"a text that is no text: {record['_id']}")
        yield record


def _refused(folder: Path, exc: Exception) -> SettingsError:
    return SettingsError("the labelled set", folder, f"a folder in BEIR layout ({exc!r})")
