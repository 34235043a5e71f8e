"""Write docs/benchmarks.md, and the figures of README, from bench/results/*.json.

python -m bench.page [demo/journey.json]

With the journey that `make demo` has written, its figures are kept as bench/results/demo.json first. A figure without a
file of results is a constant below: its command prints it, and it is entered by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs/benchmarks.md", ROOT / "README.md"
FIGURES = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)
HEAD = """# Benchmarks

On 2 cores of an AMD EPYC (AVX-512), fp32 where nothing else is said. Random weights give real speed and memory and say
nothing of quality: BGE-M3's own weights cannot be had where vecferry is built. This page is written by
`python -m bench.page` from the files of results that it links; a figure without such a file is what the command beside
it printed. "The stand-in" is multilingual-e5-small, which the demo takes in BGE-M3's place.

![GFLOP/s by shape, tokens/s on real lengths](../bench/results/speed-amd-epyc-24-layers.svg)

"""


class Row(NamedTuple):
    """A line of the page. file: the results in bench/results, if they are kept."""

    what: str
    seen: str
    command: str
    file: str = ""


def read(file: str) -> Any:
    """Return the content of a file of results."""
    return json.loads((ROOT / "bench/results" / file).read_text(encoding="utf-8"))


def page() -> str:
    """Return docs/benchmarks.md."""
    return HEAD + "\n".join(section(title, rows) for title, rows in sections().items())


def section(title: str, rows: list[Row]) -> str:
    """Return a heading and a table."""
    lines = [f"| {row.what} | {row.seen} | {row.command}{_link(row.file)} |" for row in rows]
    return "\n".join([f"## {title}", "", "| | seen | command |", "|---|---|---|", *lines, ""])


def _link(file: str) -> str:
    return f", [figures](../bench/results/{file})" if file else ""


def figures() -> str:
    """Return the figures of README, as lines of a list."""
    demo, speed, live = read("demo.json"), read(FULL), _vecshift("live")
    latency = speed["latency"]["seen"]["ms"]
    fp32, int8, peer = (latency[name]["p50"] for name in ("fp32", "int8", "sentence-transformers"))
    lines = [
        f"nDCG@10 of 995 questions in five languages: **{demo['old']['all']:.2f} → {demo['new']['all']:.2f}**"
        " (all-MiniLM-L6-v2 → the stand-in; `make demo`)",
        "20,000 rows of PostgreSQL migrated, switched and finalized under 50 writes/s and four query"
        " threads: **none of 909 writes"
        " and 8,940 queries failed**, no row lost, doubled or of a mixed space",
        f"the longest write that waited while a table was migrated, switched and rolled back:"
        f" **{live['vecferry']['longest_ms']:.0f} ms**"
        f" (with VecShift 0.4.0 {live['VecShift']['longest_ms']:,.0f} ms)",
        f"one query at BGE-M3's full size on two cores: **{fp32:.0f} ms in fp32, {int8:.0f} ms in int8**"
        f" (sentence-transformers {peer:.0f} ms)",
        "`kill -9` at 300 random moments under a writer: **every row there once, with the vector of its text**",
    ]
    return "".join(f"- {line}\n" for line in lines)


# --- the rows -------------------------------------------------------------------------------------

FULL, SIX, AVX2 = (f"speed-amd-epyc-{name}.json" for name in ("24-layers", "6-layers", "as-avx2-6-layers"))
SERVING, SERVING_STANDIN = (f"serving-amd-epyc-{name}.json" for name in ("24-layers", "standin"))
VECSHIFT, PROVENANCE, DEMO = "vecshift-20000-rows.json", "provenance.json", "demo.json"
ENGINES, ENGINES_MINILM = (f"engines-{texts}-texts-256-a-range.json" for texts in (20000, 6144))


def sections() -> dict[str, list[Row]]:
    """Return the lines by heading."""
    return {
        "Quality": quality(),
        "The model": model(),
        "The server": server(),
        "The migration": migration(),
        "On Ray": ray(),
    }


def quality() -> list[Row]:
    """Return what is found before and after."""
    demo, provenance = read(DEMO), read(PROVENANCE)
    languages = ", ".join(
        f"{name} {old:.2f} → {demo['new'][name]:.2f}" for name, old in demo["old"].items() if name != "all"
    )
    asked, doubted = provenance["title questions"], len(provenance["correct collections that were doubted"])
    named = sum(each["verdict"] != "confirmed" or "not normalised" in each["says"] for each in provenance["causes"])
    return [
        Row(
            "nDCG@10 of 995 questions in five languages over 1,200 passages: all-MiniLM-L6-v2 → the stand-in",
            f"{demo['old']['all']:.3f} → {demo['new']['all']:.3f} ({languages})",
            "`make demo`",
            DEMO,
        ),
        Row(
            f"{asked['questions']} questions about titles in LlamaIndex's PGVectorStore, the right chunk"
            f" among the first three,"
            " real weights: before, migrated by the recipe that `plan` names, embedded anew by LlamaIndex;"
            " migrated from the text"
            " column alone, which `start` refuses",
            f"{asked['before']}, {asked['migrated with the recipe']}, {asked['embedded anew by LlamaIndex']};"
            f" {asked['migrated from the text alone']}",
            "`pip install -r bench/requirements.txt`, then `python -m bench.provenance`",
            PROVENANCE,
        ),
        Row(
            "Ways in which vectors were made otherwise than the file says: named by `plan`; correct"
            " collections doubted",
            f"{named} of {len(provenance['causes'])}; {doubted} of 20",
            "the same",
        ),
        Row(
            "What int8 loses, nDCG@10 (Cranfield / XQuAD cross-lingual / mixed)",
            "stand-in −0.0031, −0.0005, −0.0018, smallest cosine 0.9992; all-MiniLM-L6-v2 −0.0019, +0.0015, +0.0011",
            "`vecferry convert --precision int8 --labelled FOLDER`",
        ),
        Row(
            "Evaluation and report of 20,000 queries on 20,000 passages, vectors given: exact search,"
            " metrics, intervals, replay,"
            " page",
            "36 s, of which the page 2 s; 0.8 MB",
            "`python -m bench.report`",
        ),
    ]


def model() -> list[Row]:
    """Return how exact, how fast and how large the converted model is."""
    full, six, avx2 = read(FULL), read(SIX), read(AVX2)
    shapes, latency, memory = (full[part]["seen"] for part in ("shapes", "latency", "memory"))
    mix, mix_avx2 = six["mix"]["seen"], avx2["mix"]["seen"]
    peak = [shape["fp32_of_gemm_peak"] for shape in shapes]
    fp32_ms, int8_ms, peer_ms, flag_ms = (
        latency["ms"][name]["p50"] for name in ("fp32", "int8", "sentence-transformers", "FlagEmbedding")
    )
    loaded = {name: (memory[name]["loaded_mb"], memory[name]["peak_at_8192_tokens_mb"]) for name in ("fp32", "int8")}
    return [
        Row(
            "ONNX against PyTorch fp32, largest absolute difference at 1 to 8,192 tokens, BGE-M3's full"
            " size, random weights",
            "dense 5.6e-7, sparse 1.0e-5, ColBERT 5.8e-7",
            "`python -m bench.full_size`",
        ),
        Row(
            "Conversion of that size (2.27 GB): alone / verified / verified against PyTorch too",
            "15 s, 1.2 × the checkpoint in memory / 100 s, 1.5 × / 190 s, 2.1 ×",
            "the same",
        ),
        Row(
            "fp32 over PyTorch (transformers, SDPA), full size, batch × tokens",
            f"{_by_shape(shapes, 'fp32_over_transformers')}; {min(peak[1:5]):.2f} to {max(peak[1:5]):.2f} of"
            f" the rate of bare"
            f" matrix products from 128 to 2,048 tokens, {peak[5]:.2f} at 8,192",
            "`make bench`",
            FULL,
        ),
        Row("int8 over our fp32, the same", _by_shape(shapes, "int8_over_fp32"), "the same"),
        Row(
            "int8 over our fp32, as if there were AVX2 only, 6 layers",
            _by_shape(avx2["shapes"]["seen"], "int8_over_fp32"),
            "`make bench BENCH=--avx2`",
            AVX2,
        ),
        Row(
            f"One query of {latency['tokens']} tokens, full size, p50",
            f"fp32 {fp32_ms:.0f} ms, int8 {int8_ms:.0f} ms, sentence-transformers {peer_ms:.0f} ms,"
            f" FlagEmbedding {flag_ms:.0f} ms",
            "`make bench`",
            FULL,
        ),
        Row(
            f"Real lengths to 2,048 tokens ({mix['texts']} of {mix['all_texts']['texts']:,} texts in 28"
            f" languages, not shipped),"
            " 6 layers, all three outputs against the dense one of others",
            f"fp32 {mix['fp32_over']['sentence-transformers']:.2f} × sentence-transformers,"
            f" {mix['fp32_over']['FlagEmbedding']:.2f} × FlagEmbedding; int8"
            f" {mix['int8_over']['sentence-transformers']:.1f} ×,"
            f" {mix['int8_over']['FlagEmbedding']:.1f} ×; as if there were AVX2 only, int8"
            f" {mix_avx2['int8_over']['sentence-transformers']:.1f} × sentence-transformers",
            '`make bench BENCH="--texts FILE"`; without it the demo\'s passages are taken',
            SIX,
        ),
        Row(
            "Memory, full size: loaded, and at its highest with a text of 8,192 tokens",
            ", ".join(f"{name} {low / 1000:.2f} and {high / 1000:.2f} GB" for name, (low, high) in loaded.items()),
            "`make bench`",
            FULL,
        ),
    ]


def _by_shape(shapes: list[dict[str, Any]], name: str) -> str:
    return " · ".join(f"{shape['shape']}: {shape[name]:.2f}" for shape in shapes)


def server() -> list[Row]:
    """Return what the server keeps of the library's rate."""
    full, standin = read(SERVING), read(SERVING_STANDIN)
    query, small = full["queries"]["vecferry"], standin["queries"]
    return [
        Row(
            "The server under load, full size, one passage of 195 tokens a request: of what the library does"
            " with all of them at"
            " once; beside it infinity 0.0.78 (PyTorch) on the same weights",
            f"by clients {_shares(full, 'vecferry')}; infinity {_shares(full, 'peer')}",
            "`python -m bench.serving bench/work/24-layers --peer ...` after `make bench`",
            SERVING,
        ),
        Row(
            "the same, the stand-in (real weights)",
            f"by clients {_shares(standin, 'vecferry')}; infinity {_shares(standin, 'peer')}",
            "`python -m bench.serving --peer ...`",
            SERVING_STANDIN,
        ),
        Row(
            "A query's p95 while bulk requests saturate the server, over its p95 alone",
            f"full size {_ratio(query)}, stand-in {_ratio(small['vecferry'])}; infinity with the stand-in"
            f" {_ratio(small['peer'])}",
            "the same",
        ),
    ]


def _shares(report: dict[str, Any], name: str) -> str:
    return " · ".join(f"{each['clients']}: {each[name]['of_library']:.2f}" for each in report["throughput"])


def _ratio(query: dict[str, Any]) -> str:
    return f"{query['p95_ratio']:,.3g} ({query['p95_alone_ms']:,.0f} → {query['p95_beside_bulk_ms']:,.0f} ms)"


def migration() -> list[Row]:
    """Return what a migration takes, and what it asks of others."""
    quiet, live = _vecshift("quiet"), _vecshift("live")
    pairs = "; ".join(
        f"{name} {each['VecShift']['start_s']:.1f} → {each['vecferry']['start_s']:.1f} s and"
        f" {each['VecShift']['both_s']:.1f} → {each['vecferry']['both_s']:.1f} s"
        for name, each in (("quiet", quiet), ("under 50 writes/s", live))
    )
    return [
        Row(
            "Migration under load: PostgreSQL, 20,000 rows, 50 writes/s and four query threads from `start`"
            " to `finalize`,"
            " vectors that say their text and model",
            "909 writes, 8,940 queries: none failed, none lost, doubled, outdated or of a mixed space;"
            " longest write 23 ms, at a"
            " switch 20 ms",
            "`python -m tests.migrate.live --rows 20000`, 31 s",
        ),
        Row(
            "VecShift 0.4.0 → vecferry on the same table, 20,000 rows with an HNSW index, an embedder that"
            " answers at once, durable"
            " PostgreSQL: medians of 3 until it may be switched, and with the switch (ours with `verify`);"
            " the longest write;"
            " rows without an old vector after the way back",
            f"{pairs}; {live['VecShift']['longest_ms']:,.0f} → {live['vecferry']['longest_ms']:.0f} ms;"
            f" {live['VecShift']['missing']} → {live['vecferry']['missing']}",
            "`python -m bench.vecshift --peer PEER/bin/vecshift --runs 3`",
            VECSHIFT,
        ),
        Row(
            "The longest write of an application while each step of a migration is under way",
            "7 to 33 ms; 450 ms at a switch between transactions of 0.5 s that leave no gap",
            "`python -m bench.pauses`, [table](promises.md#how-long-a-writer-waits)",
        ),
        Row("What a capture adds to an UPDATE", "5 to 8 µs", "`python -m bench.writers`"),
        Row(
            "`kill -9` at random times under a writer",
            "300 on PostgreSQL, 40 on LanceDB, 40 on Chroma: every row there once and true",
            "`make test-slow`",
        ),
        Row(
            "Vectors of 1,024 numbers written into the live table, against COPY of the same into a fresh one",
            "0.41 to 0.57, mostly 0.49 (19,000 rows/s; on an Intel Xeon 0.53, 22,700)",
            "`python -m bench.applier`",
            "applier.json",
        ),
        Row(
            "What `start` costs beyond encoding the same texts, all-MiniLM-L6-v2, 600 passages",
            "0.8 %",
            "`python -m bench.overhead`",
        ),
    ]


def _vecshift(scenario: str) -> dict[str, dict[str, float]]:
    """Return by tool the medians of seconds, and the most of all else."""
    runs = [run for run in read(VECSHIFT)["runs"] if run["scenario"] == scenario]
    return {
        tool: {
            "start_s": median(run["start_s"] for run in runs if run["tool"] == tool),
            "both_s": median(run["start_s"] + run["cutover_s"] for run in runs if run["tool"] == tool),
            "longest_ms": max(
                (ms for run in runs if run["tool"] == tool for ms in run["longest_ms"].values()), default=0.0
            ),
            "missing": max(run["old_vectors"]["missing"] for run in runs if run["tool"] == tool),
        }
        for tool in ("VecShift", "vecferry")
    }


def ray() -> list[Row]:
    """Return what the engine on Ray does with the same processors."""
    rows = []
    for file, what, command in (
        (ENGINES, "the stand-in, 20,000 texts", "--model demo/models/multilingual-e5-small --texts 20000 --runs 1"),
        (ENGINES_MINILM, "all-MiniLM-L6-v2, 6,144 texts", "--texts 6144 --runs 1"),
    ):
        engines = read(file)
        one, two = (engines["over_local"][name] for name in ("ray 1 × 2", "ray 2 × 1"))
        seen = f"1 worker of 2 cores {one:.2f}, 2 of 1 core {two:.2f}; {engines['more_workers_over_one']:.2f}"
        text = f"The engine on Ray over the one in this process, the same two cores, {what}; two workers over one"
        rows.append(Row(text, seen, f"`python -m bench.engines {command}`", file))
    million = "A million rows through a migration on Ray, no model, 16 numbers"
    return [*rows, Row(million, "`start` 102 s, 387 MB in the driver, none lost", "`python -m tests.migrate.million`")]


def with_figures(readme: str) -> str:
    """Return README with its figures as they are now."""
    return FIGURES.sub(lambda _: figures(), readme)


def keep_demo(journey: Path) -> None:
    """Keep what the demo has found, by language."""
    seen = json.loads(journey.read_text(encoding="utf-8"))
    kept = {side: seen[side]["ndcg_at_10"] for side in ("old", "new")}
    (ROOT / "bench/results" / DEMO).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        keep_demo(Path(sys.argv[1]))
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
