"""How long an evaluation and its report take, and how large they get: 20,000 queries on 20,000 passages.

The vectors are planted, so that no model runs: each query lies near its passage, under the new model nearer than under
the old. Everything else is as `vecferry eval --output` does it: exact search, metrics, intervals, a replay, the page.

    python -m bench.report [--queries 20000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vecferry.embeddings import DENSE, Embeddings, Float32, Outputs
from vecferry.encode.encoder import Role
from vecferry.evaluate import (
    EvaluatedModel,
    EvaluationOptions,
    FolderCorpus,
    JudgedQueries,
    Judgement,
    QuerySet,
    run_evaluation,
)
from vecferry.evaluate.values import Passage, Question
from vecferry.model.artifact import VectorSpace
from vecferry.report import write_report

DIMENSION = 384
NOISE = {"old": 3.2, "new": 2.6}
LANGUAGES = ("ar", "de", "en", "es", "zh")
WORDS = "of what is asked here, and of what it is asked for; " * 8


class Planted:
    """Stands for an encoder: the vector of a text is that of the number it begins with; a query's has noise."""

    def __init__(self, name: str, vectors: Float32) -> None:
        self.space = VectorSpace(
            weights=name, tokenizer="planted", special_ids=(), dimension=DIMENSION, pooling="cls", normalize=True,
            max_tokens=256, query_prefix="", passage_prefix="", precision="fp32", heads=("dense",),
        )  # fmt: skip
        self.fingerprint, self.dimension = self.space.fingerprint, DIMENSION
        self._name, self._vectors = name, vectors

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        assert outputs == DENSE
        vectors = self._vectors[[int(text.split()[0]) for text in texts]]
        if role == "query":
            noise = np.random.default_rng(len(self._name)).standard_normal(vectors.shape, np.float32)
            vectors = vectors + np.float32(NOISE[self._name]) * noise
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return Embeddings(self.fingerprint, np.full(len(texts), 60), np.zeros(len(texts), bool), vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000)
    args = parser.parse_args()
    numbers = range(args.queries)
    vectors = np.random.default_rng(0).standard_normal((args.queries, DIMENSION), np.float32)
    passages = [Passage(f"p{i}", f"{i} {WORDS}") for i in numbers]
    questions = tuple(Question(f"q{i}", f"{i} is asked for", {"language": LANGUAGES[i % 5]}) for i in numbers)
    judged = JudgedQueries(questions, tuple(Judgement(f"q{i}", f"p{i}", 1) for i in numbers))
    old, new = (EvaluatedModel(name, Planted(name, vectors)) for name in ("old", "new"))
    began = time.perf_counter()
    corpus = FolderCorpus("planted", passages, old, new, DENSE, lambda _: None)
    query_set = QuerySet(judged, log=tuple(question.text for question in questions))
    evaluation = run_evaluation(corpus, query_set, EvaluationOptions(thresholds={"similar": 0.3}))
    between = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        write_report(evaluation, path)
        ended = time.perf_counter()
        sizes = ", ".join(f"{file.stat().st_size / 1e6:.1f} MB {file.suffix[1:]}" for file in path.parent.iterdir())
    print(f"{args.queries:,} queries: evaluation {between - began:.1f} s, report {ended - between:.1f} s; {sizes}")
    print(evaluation.gate.message)


if __name__ == "__main__":
    main()
