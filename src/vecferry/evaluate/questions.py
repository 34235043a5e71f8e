"""What is asked: judged questions, questions made of the passages, queries of a log; and the slices of each."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from vecferry.errors import SettingsError, UnreadableFile, reason_of
from vecferry.evaluate.pairs import Pair
from vecferry.evaluate.qrels import read_queries
from vecferry.evaluate.values import Evidence, JudgedQueries, Question

T = TypeVar("T")
LANGUAGE, SCRIPT, QUERY_LENGTH, PASSAGE_LENGTH = "language", "script", "query length", "passage length"
SHORT, LONG = 4, 10
"""Words below which a query is short, and from which it is long."""
SCRIPTS = {"CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"}


@dataclass(frozen=True)
class QuerySet:
    """What an evaluation asks. queries: None where nobody judged any, so pairs stand in. log: what users asked."""

    queries: JudgedQueries | None = None
    pairs: tuple[Pair, ...] = ()
    log: tuple[str, ...] = ()

    @property
    def questions(self) -> tuple[Question, ...]:
        return self.queries.questions if self.queries is not None else tuple(pair.question for pair in self.pairs)

    @property
    def evidence(self) -> Evidence:
        return "judged queries" if self.queries is not None else "query log" if self.log else "pairs from the corpus"

    @property
    def passage_ids(self) -> set[str]:
        """The passages that were judged, or that pairs were taken from."""
        if self.queries is not None:
            return {judgement.passage_id for judgement in self.queries.judgements}
        return {pair.origin for pair in self.pairs}

    def limited(self, number: int | None, seed: int) -> QuerySet:
        """Keep at most so many of each kind, chosen by the seed."""
        queries = self.queries
        if queries is not None:
            queries = replace(queries, questions=chosen(queries.questions, number, seed))
            kept = {question.id for question in queries.questions}
            queries = replace(queries, judgements=tuple(j for j in queries.judgements if j.query_id in kept))
        return QuerySet(queries, chosen(self.pairs, number, seed), chosen(self.log, number, seed))


def chosen(of: Sequence[T], number: int | None, seed: int) -> tuple[T, ...]:
    """Choose at most so many, in their order."""
    if number is None or len(of) <= number:
        return tuple(of)
    places = sorted(random.Random(seed).sample(range(len(of)), number))  # noqa: S311  # a sample
    return tuple(of[place] for place in places)


def read_query_set(folder: Path) -> QuerySet:
    """Read the judged queries of a folder in BEIR layout; as pairs, where all of them were taken from passages.

    Raises as `read_queries` does.
    """
    queries = read_queries(folder)
    if not all(question.made_from for question in queries.questions):
        return QuerySet(queries)
    return QuerySet(pairs=tuple(Pair(question, question.made_from, question.text) for question in queries.questions))


def read_log(path: Path) -> tuple[str, ...]:
    """Read the distinct queries of a log: a query a line, or JSON lines with "text" or "query".

    Raises SettingsError.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        if path.suffix == ".jsonl":
            lines = [_query_of(json.loads(line)) for line in lines]
    except OSError as exc:
        raise UnreadableFile("the query log", path, reason_of(exc)) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise SettingsError(
            "the query log", path, f'a query a line, or JSON lines with "text" or "query" ({exc!r})'
        ) from exc
    queries = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not queries:
        raise SettingsError("the query log", path, "one that has queries")
    return queries


def _query_of(record: Mapping[str, Any]) -> str:
    query = record["text"] if "text" in record else record["query"]
    if not isinstance(query, str):
        raise TypeError(f"a query that is no text: {query!r}")
    return query


# --- slices ---------------------------------------------------------------------------------------


def sliced(
    questions: Iterable[Question], relevant: Mapping[str, Sequence[str]], are_cut: Mapping[str, bool], max_tokens: int
) -> tuple[Question, ...]:
    """Add what can be told of each: the length of query and passage, and the script where no language is given.

    relevant: the passages that a question looks for, by its id. max_tokens: what the old model reads of a passage.
    """
    return tuple(
        replace(question, slices={**_traits(question, relevant, are_cut, max_tokens), **question.slices})
        for question in questions
    )


def _traits(
    question: Question, relevant: Mapping[str, Sequence[str]], are_cut: Mapping[str, bool], max_tokens: int
) -> dict[str, str]:
    slices = {} if LANGUAGE in question.slices else {SCRIPT: script_of(question.text)}
    if " " in question.text:  # elsewhere words are not told by spaces
        slices[QUERY_LENGTH] = _length(len(question.text.split()))
    is_truncated = [are_cut[passage_id] for passage_id in relevant.get(question.id, ()) if passage_id in are_cut]
    if is_truncated:
        slices[PASSAGE_LENGTH] = f"over {max_tokens} tokens" if any(is_truncated) else f"up to {max_tokens} tokens"
    return slices


def _length(num_words: int) -> str:
    if num_words < SHORT:
        return f"under {SHORT} words"
    return f"{LONG} words or more" if num_words >= LONG else f"{SHORT} to {LONG - 1} words"


def script_of(text: str) -> str:
    """Return the script that most letters of the text belong to, as Unicode names it: "Latin", "Arabic", "Han"."""
    names = Counter(unicodedata.name(letter, "other").split()[0] for letter in text if letter.isalpha())
    if not names:
        return "none"
    name = names.most_common(1)[0][0]
    return SCRIPTS.get(name, name.capitalize())
