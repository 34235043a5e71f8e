"""A GPU's whole table: ours in both forms beside the peers, memory, fp16 against fp32, a migration from the card.

    pip install 'vecferry[torch,pgvector,demo]' sentence-transformers FlagEmbedding, and flash-attn if it can be built
    python -m bench.gpu [--folder bench/work/gpu] [--texts FILE] [--rows 200000] [--tokens 2000000] [--json FILE]
    python -m bench.gpu --dry-run             everything small, in fp32 on the CPU: that it runs, no figure of worth

BGE-M3's shape with seeded random weights: real speed and memory, no quality. Texts have exactly 128, 512, 2,048 and
8,192 tokens, or the lengths of real ones (--texts, a text a line; without it the demo's passages). Each contender is
called as its users call it, tokenising included, loaded alone on the card, once to be warm and then three times, of
which the median counts. The rate of the card is that of bare fp16 products of the model's shapes, in the same run.
What cannot be had here (a package, a card) is named in its place.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import torch

from bench.make_checkpoint import Shape, make_checkpoint
from bench.pauses import database
from bench.speed import flops
from tests.migrate.doubles import TruthEncoder
from vecferry.conversion.convert import convert_checkpoint
from vecferry.conversion.verify import differences
from vecferry.demo.database import running_database
from vecferry.demo.passages import load_passages
from vecferry.embeddings import Outputs
from vecferry.encode.device_limits import measured_limits
from vecferry.encode.encoder import Encoder, TextEncoder
from vecferry.encode.runtime import Device, Runtime
from vecferry.encode.runtime.host import machine
from vecferry.encode.runtime.torch_packed import PackedPrecision, PackedTorchRuntime
from vecferry.errors import VecferryError
from vecferry.migrate import Migration, MigrationOptions
from vecferry.model.artifact import Artifact
from vecferry.model.checkpoint import Model, read_model
from vecferry.model.sources import open_source
from vecferry.model.tokens import Tokenizer
from vecferry.stores.pgvector import PgVectorStore

LENGTHS = (128, 512, 2048, 8192)
TURNS = 3
NOT_HERE = (ImportError, OSError, RuntimeError, ValueError, VecferryError)
"""What a contender raises that cannot run here."""


@dataclass(frozen=True)
class Plan:
    """What is measured. tokens: of each case."""

    device: Device
    shape: Shape
    lengths: Sequence[int]
    tokens: int
    rows: int
    folder: Path

    @property
    def precision(self) -> PackedPrecision:
        """fp16, in which a processor would take many times as long."""
        return "fp16" if self.device == "cuda" else "fp32"


FULL = Plan("cuda", Shape(), LENGTHS, 2_000_000, 200_000, Path("bench/work/gpu"))
TINY = Shape(layers=2, hidden=64, attention_heads=4, feed_forward=128, vocabulary=4000, positions=514)
DRY = Plan("cpu", TINY, (16, 128), 1000, 300, Path("bench/work/gpu-dry"))

Encode = Callable[[Sequence[str]], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    base = DRY if args.dry_run else FULL
    plan = Plan(
        base.device, base.shape, base.lengths, args.tokens or base.tokens, args.rows or base.rows,
        args.folder or base.folder,
    )  # fmt: skip
    texts = args.texts.read_text(encoding="utf-8").splitlines() if args.texts else None
    report = measured(plan, texts or [passage.text for passage in load_passages().passages])
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(plan: Plan, texts: Sequence[str]) -> dict[str, Any]:
    checkpoint, fp16 = made(plan)
    model = read_model(checkpoint)
    tokenizer = Tokenizer(model.tokenizer, model.space.max_tokens)
    cases = {str(length): of_length(length, plan.tokens) for length in plan.lengths}
    cases["mix"] = mixed(texts, tokenizer, plan.tokens)
    rate = matrix_rate(plan)
    table = {
        name: contender(open_it, cases, tokenizer, plan, rate)
        for name, open_it in contenders(plan, model, fp16, tokenizer).items()
    }
    return {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else "cpu: a dry run, no figure counts",
        "torch": torch.__version__,
        "matrix_tflop_per_s": round(rate / 1e12, 4),
        "contenders": table,
        "over_best_peer": over_best_peer(table),
        "fp16_against_fp32": parity(plan, model, cases),
        "migration": migration(plan, model, tokenizer, cases["mix"]),
    }


def made(plan: Plan) -> tuple[Path, Artifact]:
    checkpoint, fp16 = plan.folder / "checkpoint", plan.folder / plan.precision
    if not (checkpoint / "tokenizer.json").exists():
        make_checkpoint(checkpoint, plan.shape)
    if not (fp16 / "manifest.json").exists():
        convert_checkpoint(open_source(str(checkpoint)), fp16, precision=plan.precision, verified=False)
    return checkpoint, Artifact.open(fp16)


# --- texts ----------------------------------------------------------------------------------------


def of_length(length: int, tokens: int) -> list[str]:
    """Return different texts of so many tokens each, of words that are one token."""
    words, count = ("a", "i"), max(tokens // length, 1)
    return [" ".join(words[row >> at & 1] if at < 40 else words[0] for at in range(length - 2)) for row in range(count)]


def mixed(texts: Sequence[str], tokenizer: Tokenizer, tokens: int) -> list[str]:
    """Return about so many tokens of texts as they come, repeated with a number before them."""
    lengths, chosen, total = tokenizer(texts).lengths, list[str](), 0
    while total < tokens:
        at = len(chosen) % len(texts)
        chosen.append(f"{len(chosen)} {texts[at]}")
        total += int(lengths[at])
    return chosen


# --- contenders -----------------------------------------------------------------------------------


def contenders(plan: Plan, model: Model, fp16: Artifact, tokenizer: Tokenizer) -> dict[str, Callable[[], Encode]]:
    """Return how each is opened, by name; those of ours begin with "vecferry"."""
    from vecferry.encode.runtime.onnx import OnnxRuntime

    def ours(open_runtime: Callable[[], Runtime]) -> Callable[[], Encode]:
        def opened() -> Encode:
            runtime = open_runtime()
            return Encoder(tokenizer, runtime, measured_limits(runtime, model.spec), spec=model.spec).encode

        return opened

    def sentence_transformers(attention: str) -> Callable[[], Encode]:
        def opened() -> Encode:
            from sentence_transformers import SentenceTransformer

            options = {
                "dtype": torch.float16 if plan.precision == "fp16" else torch.float32,
                "attn_implementation": attention,
            }
            peer = SentenceTransformer(str(model.folder), device=plan.device, model_kwargs=options)
            return lambda texts: peer.encode(list(texts), batch_size=64)

        return opened

    def flag_embedding() -> Encode:
        from FlagEmbedding import BGEM3FlagModel

        peer = BGEM3FlagModel(str(model.folder), use_fp16=plan.device == "cuda", devices=[plan.device])
        return lambda texts: peer.encode(list(texts), batch_size=64, max_length=model.space.max_tokens)

    device = plan.device
    return {
        "vecferry PyTorch packed fp16": ours(
            lambda: PackedTorchRuntime(model, device=device, precision=plan.precision)
        ),
        "vecferry ONNX fp16": ours(lambda: OnnxRuntime(fp16, device=device)),
        "vecferry ONNX packed fp16": ours(lambda: OnnxRuntime(fp16, device=device, packed=True)),
        "sentence-transformers fp16 SDPA": sentence_transformers("sdpa"),
        "sentence-transformers fp16 flash": sentence_transformers("flash_attention_2"),
        "FlagEmbedding fp16": flag_embedding,
    }


def contender(
    open_it: Callable[[], Encode], cases: Mapping[str, Sequence[str]], tokenizer: Tokenizer, plan: Plan, rate: float
) -> dict[str, Any]:
    """Return tokens a second of each case and its share of the card's rate, and the memory; or why there is none."""
    try:
        before = emptied(plan.device)
        encode = open_it()
        rows = {name: case(encode, texts, tokenizer, plan, rate) for name, texts in cases.items()}
        peak = torch.cuda.max_memory_allocated() - before if plan.device == "cuda" else None
    except NOT_HERE as exc:
        return {"not_here": f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"}
    return {"cases": rows, "peak_mb": None if peak is None else round(peak / 1e6)}


def case(encode: Encode, texts: Sequence[str], tokenizer: Tokenizer, plan: Plan, rate: float) -> dict[str, float]:
    lengths = tokenizer(texts).lengths
    work = sum(flops(plan.shape, 1, int(length)) for length in lengths)
    seconds = timed(lambda: encode(texts))
    return {"tokens_per_s": round(int(lengths.sum()) / seconds), "of_matrix_rate": round(work / seconds / rate, 3)}


def timed(work: Callable[[], object]) -> float:
    """Return the median of three, after one to be warm."""
    work()
    seconds = []
    for _ in range(TURNS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def emptied(device: Device) -> int:
    """Free what the last contender had, and return what is taken nevertheless."""
    gc.collect()
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def matrix_rate(plan: Plan) -> float:
    """Return FLOP/s of the layers' four products over 16,384 rows, in fp16, with nothing between them."""
    hidden, wide = plan.shape.hidden, plan.shape.feed_forward
    dtype, rows, runs = (torch.float16, 16_384, 50) if plan.device == "cuda" else (torch.float32, 256, 2)
    weights = [
        torch.randn(shape, dtype=dtype, device=plan.device)
        for shape in ((hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden))
    ]
    inputs = [torch.randn((rows, len(weight)), dtype=dtype, device=plan.device) for weight in weights]

    def products() -> None:
        for _ in range(runs):
            for x, weight in zip(inputs, weights, strict=True):
                torch.mm(x, weight)
        if plan.device == "cuda":
            torch.cuda.synchronize()

    return runs * sum(2 * rows * weight.numel() for weight in weights) / timed(products)


def over_best_peer(table: Mapping[str, Any]) -> dict[str, float | str]:
    """Return, of each case, how many times as fast our faster form is as the fastest peer."""
    here = {name: row["cases"] for name, row in table.items() if "cases" in row}
    ours, peers = (
        [rows for name, rows in here.items() if name.startswith("vecferry") is is_ours] for is_ours in (True, False)
    )
    if not ours or not peers:
        return {"not_here": "no contender of ours" if not ours else "no peer"}
    return {case: round(fastest(ours, case) / fastest(peers, case), 3) for case in ours[0]}


def fastest(rows: Sequence[Mapping[str, Any]], case: str) -> float:
    return float(max(row[case]["tokens_per_s"] for row in rows))


# --- the rest of the table ------------------------------------------------------------------------


def parity(plan: Plan, model: Model, cases: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the largest differences and the lowest cosine of fp16 from fp32, over some texts of each case."""
    tokenizer = Tokenizer(model.tokenizer, model.space.max_tokens)
    texts = [text for each in cases.values() for text in each[:4]]
    fp32, fp16 = (
        Encoder(tokenizer, PackedTorchRuntime(model, device=plan.device, precision=precision)).encode(
            texts, outputs=Outputs.ALL
        )
        for precision in ("fp32", "fp16")
    )
    cosines = (fp32.dense * fp16.dense).sum(1)
    return {"lowest_cosine": round(float(cosines.min()), 6), **differences(fp32, fp16)}


def migration(plan: Plan, model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """Return rows a second of `start` into PostgreSQL, of the encoder and of the store alone, and which one bounds."""
    runtime = PackedTorchRuntime(model, device=plan.device, precision=plan.precision)
    encoder = Encoder(tokenizer, runtime, measured_limits(runtime, model.spec), spec=model.spec)
    rows = [f"{number} {texts[number % len(texts)]}" for number in range(plan.rows)]
    rates = {
        "end_to_end": started(rows, encoder),
        "store_alone": started(rows, TruthEncoder(dimension=model.spec.hidden)),
        "encoder_alone": len(rows) / seconds_of(lambda: list(encoder.encode_iter(rows))),
    }
    slower = min(("store_alone", "encoder_alone"), key=lambda name: rates[name])
    return {"rows": plan.rows, "rows_per_s": {name: round(rate) for name, rate in rates.items()}, "bounded_by": slower}


def started(rows: Sequence[str], encoder: TextEncoder) -> float:
    """Return rows a second of `start`, on a table of these texts in a PostgreSQL of its own."""
    with (
        running_database() as server,
        database(server, "gpu") as url,
        tempfile.TemporaryDirectory() as staging,
    ):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text NOT NULL, embedding vector(3))")
            with connection.cursor().copy("COPY docs FROM STDIN") as copy:
                for number, text in enumerate(rows):
                    copy.write_row((number, text, "[1,2,3]"))
        with PgVectorStore.connect(url, "docs", "body", "embedding") as store:
            options = MigrationOptions(
                staging=Path(staging), min_free_gb=0, rows_per_range=4096, accept_unconfirmed="a benchmark"
            )
            run = Migration(store, new=encoder, options=options)
            return len(rows) / seconds_of(run.start)


def seconds_of(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


if __name__ == "__main__":
    main()
