"""A labelled set in BEIR layout, and nDCG against the formula."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vecferry.embeddings import Embeddings, dense_scores
from vecferry.errors import SettingsError
from vecferry.evaluate import Judgement, Passage, Question, read_beir, read_queries
from vecferry.evaluate.qrels import MAX_VALUE, read_passages, slices_of


class Planted:
    """Stand for an encoder: the vector of a text is the one that was planted for it."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], role: str) -> Embeddings:
        dense = np.array([self.vectors[text] for text in texts], np.float32)
        return Embeddings("", np.ones(len(texts), np.int64), np.zeros(len(texts), bool), dense)


def write(folder: Path, name: str, records: list[dict[str, object]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "corpus", [
        {"_id": "a", "title": "A", "text": "one", "lang": "en"}, {"_id": "b", "text": "two", "title": None},
        {"_id": 3, "text": "three", "metadata": {"kind": "note"}},
    ])  # fmt: skip
    write(tmp_path, "queries", [
        {"_id": "q", "text": "who?", "lang": "en", "metadata": {"kind": "person", "url": "x" * 99, "n": 1}},
        {"_id": "unjudged", "text": "what?"},
    ])  # fmt: skip
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nq\t3\t1\nq\tb\t0\n")
    return tmp_path


def test_passages_are_read_with_title_and_slices(folder: Path) -> None:
    passages = read_passages(folder)
    assert passages == (
        Passage("a", "one", "A", {"language": "en"}),
        Passage("b", "two"),
        Passage("3", "three", "", {"kind": "note"}),
    )
    assert [passage.full for passage in passages] == ["A one", "two", "three"]


def test_questions_are_read_with_their_slices_and_those_that_nobody_judged_are_left_out(folder: Path) -> None:
    queries = read_queries(folder)
    assert queries.questions == (Question("q", "who?", {"language": "en", "kind": "person"}),)
    assert queries.judgements == (Judgement("q", "a", 1), Judgement("q", "3", 1), Judgement("q", "b", 0))
    assert read_beir(folder).queries == queries


def test_a_slice_is_a_short_text_of_the_record_or_its_metadata() -> None:
    longest = "x" * MAX_VALUE
    record = {"_id": "1", "text": "t", "title": "T", "n": 7, "empty": "", "a": longest, "b": longest + "x"}
    assert slices_of(record | {"metadata": {"lang": "zh"}}) == {"a": longest, "language": "zh"}
    assert slices_of({"_id": "1", "text": "t", "metadata": None}) == {}


def test_ndcg_of_a_planted_order_is_the_formulas(folder: Path) -> None:
    planted = Planted({"A one": [0.9], "two": [0.5], "three": [0.1], "who?": [1.0]})
    gained = 1 / math.log2(2) + 1 / math.log2(4)  # found: a, b, 3
    best = 1 / math.log2(2) + 1 / math.log2(3)
    labelled = read_beir(folder)
    asked, stored = planted.encode(labelled.question_texts, "query"), planted.encode(labelled.passage_texts, "passage")
    assert labelled.ndcg_at_10(dense_scores(asked, stored)) == pytest.approx([gained / best])


def test_a_line_separator_inside_a_text_does_not_end_its_record(folder: Path) -> None:
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "who\u2028is it?"}\n', encoding="utf-8")
    assert read_queries(folder).questions == (Question("q", "who\u2028is it?"),)


@pytest.mark.parametrize(
    ("name", "content"),
    [("corpus.jsonl", None), ("queries.jsonl", "{"), ("qrels/test.tsv", "h\nq\ta\n"), ("corpus.jsonl", ""),
     ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nother\ta\t1\n"), ("queries.jsonl", '{"_id": "q"}\n'),
     ("corpus.jsonl", '{"_id": "a", "text": null}\n'), ("corpus.jsonl", "[]\n"), ("qrels/test.tsv", "h\nq\ta\thigh\n"),
     ("queries.jsonl", '{"_id": "q", "text": "t", "metadata": [1]}\n')],
)  # fmt: skip
def test_another_layout_is_refused_by_name(folder: Path, name: str, content: str | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(SettingsError, match="the labelled set") as caught:
        read_beir(folder)
    assert str(folder) in str(caught.value)
