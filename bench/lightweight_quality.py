"""What the lightweight mode retrieves, and how fast it encodes.

    python -m bench.lightweight_quality                 the shipped set: 1,200 passages in five languages
    python -m bench.lightweight_quality BEIR_FOLDER     corpus.jsonl, queries.jsonl, qrels/test.tsv
    python -m bench.lightweight_quality --json

nDCG@10 of exact search by dense and by sparse scores, per language of the question (the part of its id
before ":") and over all questions. Needs the `eval` extra. Throughput is of the second of two runs, dense alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.demo.passages import DemoSet, Text, load_passages
from vecferry.embeddings import Float32, Outputs, dense_scores, lexical_scores
from vecferry.encoder import Encoder
from vecferry.evaluate import Hit, Judgement, mean_by_slice, ndcg_at_10
from vecferry.runtime.lightweight import LightweightRuntime, LightweightTokenizer


def measure(data: DemoSet) -> dict[str, Any]:
    encoder = Encoder(LightweightTokenizer(), LightweightRuntime())
    both = Outputs.DENSE | Outputs.SPARSE
    texts = [p.text for p in data.passages]
    passages = encoder.encode(texts, outputs=both)
    started = time.perf_counter()
    encoder.encode(texts)
    seconds = time.perf_counter() - started
    questions = encoder.encode([q.text for q in data.questions], outputs=both, role="query")
    return {
        "fingerprint": encoder.fingerprint,
        "passages": len(data.passages),
        "questions": len(data.questions),
        "ndcg_at_10": {
            "dense": quality(data, dense_scores(questions, passages)),
            "sparse": quality(data, lexical_scores(questions, passages)),
        },
        "passages_per_second": round(len(texts) / seconds),
        "characters_per_passage": round(sum(map(len, texts)) / len(texts)),
    }


def quality(data: DemoSet, scores: Float32) -> dict[str, float]:
    """scores: [questions, passages] -> nDCG@10 by language and `all`."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]  # [questions, 10]
    hits = [
        Hit(question.id, data.passages[column].id, float(scores[row, column]))
        for row, question in enumerate(data.questions)
        for column in best[row]
    ]
    slices = defaultdict(list)
    for question in data.questions:
        slices[question.lang].append(question.id)
    by_question = ndcg_at_10(data.judgements, hits)
    return {name: round(value, 4) for name, value in mean_by_slice(by_question, slices).items()}


def read_beir(folder: Path) -> DemoSet:
    def texts(name: str) -> tuple[Text, ...]:
        records = map(json.loads, (folder / name).read_bytes().splitlines())
        return tuple(Text(r["_id"], language(r["_id"]), f"{r.get('title', '')} {r['text']}".strip()) for r in records)

    lines = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judged = ((question, passage, int(grade)) for question, passage, grade in (line.split("\t") for line in lines))
    return DemoSet(texts("corpus.jsonl"), texts("queries.jsonl"), tuple(Judgement(*row) for row in judged))


def language(text_id: str) -> str:
    return text_id.split(":")[0] if ":" in text_id else "unnamed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="in BEIR layout; by default the shipped set")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    report = measure(read_beir(options.folder) if options.folder else load_passages())
    if options.as_json:
        print(json.dumps(report, indent=2))
        return
    values = report["ndcg_at_10"]
    print(f"{report['passages']} passages, {report['questions']} questions; nDCG@10")
    print(f"{'':8}{'dense':>8}{'sparse':>8}")
    for name in values["dense"]:
        print(f"{name:8}{values['dense'][name]:8.3f}{values['sparse'][name]:8.3f}")
    print(f"{report['passages_per_second']} passages of {report['characters_per_passage']} characters a second")


if __name__ == "__main__":
    main()
