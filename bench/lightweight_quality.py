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
from statistics import mean
from typing import Any

from vecferry.demo.passages import DemoSet, Text, load_passages
from vecferry.embeddings import Float32, Outputs, dense_scores, lexical_scores
from vecferry.encode.encoder import Encoder
from vecferry.encode.runtime.lightweight import LightweightRuntime, LightweightTokenizer
from vecferry.evaluate import read_beir
from vecferry.evaluate.metrics import per_query
from vecferry.evaluate.qrels import NDCG
from vecferry.evaluate.ranking import ranked


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
    values = per_query(data.queries, [passage.id for passage in data.passages], ranked(scores, 10), (NDCG,))[NDCG]
    slices = defaultdict(list)
    for value, question in zip(values.tolist(), data.questions, strict=True):
        slices[question.lang].append(value)
    return {name: round(mean(of), 4) for name, of in (*slices.items(), ("all", values.tolist()))}


def read_set(folder: Path) -> DemoSet:
    labelled = read_beir(folder)
    passages = tuple(Text(passage.id, language(passage.id), passage.full) for passage in labelled.passages)
    questions = tuple(Text(q.id, language(q.id), q.text) for q in labelled.queries.questions)
    return DemoSet(passages, questions, labelled.queries.judgements)


def language(text_id: str) -> str:
    return text_id.split(":")[0] if ":" in text_id else "unnamed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="in BEIR layout; by default the shipped set")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    report = measure(read_set(options.folder) if options.folder else load_passages())
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
