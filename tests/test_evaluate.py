"""A labelled set in BEIR layout, and nDCG against the formula."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vecferry.embeddings import Embeddings
from vecferry.errors import SettingsError
from vecferry.evaluate import read_beir


class Planted:
    """Stands for an encoder: the vector of a text is the one that was given for it."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], role: str) -> Embeddings:
        dense = np.array([self.vectors[text] for text in texts], np.float32)
        return Embeddings("", np.ones(len(texts), np.int64), np.zeros(len(texts), bool), dense)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus = [{"_id": "a", "title": "A", "text": "one"}, {"_id": "b", "text": "two"}, {"_id": "c", "text": "three"}]
    queries = [{"_id": "q", "text": "who?"}, {"_id": "unjudged", "text": "what?"}]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nq\tc\t1\nq\tb\t0\n")
    return tmp_path


def test_ndcg_of_a_planted_order(folder: Path) -> None:
    labelled = read_beir(folder)
    assert labelled.passages == {"a": "A one", "b": "two", "c": "three"}
    planted = Planted({"A one": [0.9], "two": [0.5], "three": [0.1], "who?": [1.0], "what?": [1.0]})
    gained = 1 / math.log2(2) + 1 / math.log2(4)  # found: a, b, c
    best = 1 / math.log2(2) + 1 / math.log2(3)
    assert labelled.ndcg_at_10(planted) == pytest.approx(gained / best)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content"),
    [("corpus.jsonl", None), ("queries.jsonl", "{"), ("qrels/test.tsv", "h\nq\ta\n"), ("corpus.jsonl", ""),
     ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nother\ta\t1\n"), ("queries.jsonl", '{"_id": "q"}\n')],
)  # fmt: skip
def test_another_layout_is_refused_by_name(folder: Path, name: str, content: str | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(SettingsError, match="the labelled set") as caught:
        read_beir(folder)
    assert str(folder) in str(caught.value)
