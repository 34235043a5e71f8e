"""nDCG@10 of queries in one precision on passages in another, by exact search with dense vectors.

    python -m bench.precisions OUTPUT FOLDER... -- NAME=LABELLED...

FOLDER: converted models, of one checkpoint each in a precision, fp32 first. LABELLED: sets in BEIR layout. Each line of
OUTPUT is a pairing with the loss to fp32 on fp32 and its 95% interval (bootstrap over questions). fp16 takes 6 to 9
times as long as fp32 on a processor.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from vecferry.conversion.pairings import SCORES
from vecferry.encode.encoder import Encoder
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.evaluate import LabelledSet, read_beir
from vecferry.model.artifact import Artifact
from vecferry.model.tokens import open_tokenizer
from vecferry.precisions import FP32


def measured(name: str, labelled: LabelledSet, folders: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield each pairing of the set."""
    queries, passages = {}, {}
    for folder in folders:
        artifact = Artifact.open(folder)
        encoder = Encoder(open_tokenizer(artifact), OnnxRuntime(artifact), spec=artifact.manifest.encoder)
        form = artifact.manifest.space.form().name
        queries[form] = replace(encoder.encode(labelled.question_texts, role="query"), form=FP32)
        passages[form] = replace(encoder.encode(labelled.passage_texts), form=FP32)
    before = labelled.ndcg_at_10(SCORES["dense"](queries["fp32"], passages["fp32"]))
    for asked, stored in product(queries, passages):
        values = labelled.ndcg_at_10(SCORES["dense"](queries[asked], passages[stored]))
        loss = labelled.interval(before - values)
        figures = {"ndcg": float(values.mean()), "loss": loss.mean, "low": loss.low, "high": loss.high}
        yield {"set": name, "questions": len(before), "queries": asked, "passages": stored, **figures}


def main() -> None:
    """Measure the sets one after another, each written when it is done."""
    output, *rest = sys.argv[1:]
    at = rest.index("--")
    with Path(output).open("a") as file:
        for named in rest[at + 1 :]:
            name, _, folder = named.partition("=")
            for pairing in measured(name, read_beir(Path(folder)), [Path(each) for each in rest[:at]]):
                file.write(json.dumps(pairing) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
