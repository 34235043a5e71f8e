"""The texts that the demo moves: XQuAD's passages and questions in five languages (data/README.md)."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from vecferry.evaluate import JudgedQueries, Judgement, Question


@dataclass(frozen=True)
class Text:
    """A passage or a question. lang: ar, de, en, es or zh."""

    id: str
    lang: str
    text: str


@dataclass(frozen=True)
class DemoSet:
    """1,200 passages, 995 questions and 4,975 judgements: of each question one passage, in five languages.

    Relevance is 2 for the passage that holds the answer, 1 for its translation into another language.
    """

    passages: tuple[Text, ...]
    questions: tuple[Text, ...]
    judgements: tuple[Judgement, ...]

    @property
    def queries(self) -> JudgedQueries:
        """The questions as an evaluation takes them, by language."""
        questions = tuple(Question(q.id, q.text, {"language": q.lang}) for q in self.questions)
        return JudgedQueries(questions, self.judgements)


def load_passages() -> DemoSet:
    """Unpack the shipped set in memory."""
    return DemoSet(tuple(_texts("corpus.jsonl.xz")), tuple(_texts("queries.jsonl.xz")), tuple(_judgements()))


def shipped(name: str) -> bytes:
    """Unpack a file of data/."""
    return lzma.decompress(files("vecferry.demo").joinpath("data", name).read_bytes())


def _texts(name: str) -> Iterator[Text]:
    for line in shipped(name).splitlines():
        record = json.loads(line)
        yield Text(record["_id"], record["lang"], record["text"])


def _judgements() -> Iterator[Judgement]:
    for line in shipped("qrels.tsv.xz").decode().splitlines()[1:]:
        question_id, passage_id, grade = line.split("\t")
        yield Judgement(question_id, passage_id, int(grade))
