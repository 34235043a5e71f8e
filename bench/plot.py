"""Draw the results of bench.speed: bench/results/speed-*.json to an SVG of the same name beside each.

python -m bench.plot
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

RESULTS = Path("bench/results")
COLOURS = {
    "gemm": "#c8c8c8",
    "transformers": "#9aa5b1",
    "sentence-transformers": "#9aa5b1",
    "FlagEmbedding": "#5c6b7a",
    "fp32": "#1f77b4",
    "int8": "#e07a1f",
}
LABELS = {"gemm": "bare products, fp32", "fp32": "vecferry fp32", "int8": "vecferry int8"}


def draw(report: dict[str, Any], target: Path) -> None:
    parts = {name: draw_part for name, draw_part in PARTS.items() if name in report}
    widths = [3 if name == "shapes" else 1.2 for name in parts]
    size = (2.6 * sum(widths), 4)
    figure, axes = plt.subplots(1, len(parts), figsize=size, width_ratios=widths, layout="constrained", squeeze=False)
    for (name, draw_part), on in zip(parts.items(), axes[0], strict=True):
        draw_part(on, report[name]["seen"])
    machine = report["machine"]
    as_avx2 = ", as if it had AVX2 only" if machine["as_if_avx2"] else ""
    processor = f"{machine['threads']} threads of {machine['processor']}{as_avx2}"
    figure.suptitle(f"BGE-M3's shape, {report['weights']}; {processor}", fontsize=10)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def bars_by_shape(axes: Any, shapes: list[dict[str, Any]]) -> None:
    names = list(shapes[0]["gflop_per_s"])
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        places = [n + (at - (len(names) - 1) / 2) * width for n in range(len(shapes))]
        heights = [shape["gflop_per_s"][name] for shape in shapes]
        axes.bar(places, heights, width, color=COLOURS[name], label=LABELS.get(name, name))
    axes.set_xticks(range(len(shapes)), [shape["shape"] for shape in shapes])
    axes.set_xlabel("texts × tokens")
    axes.set_ylabel("GFLOP/s")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def bars_of_mix(axes: Any, mix: dict[str, Any]) -> None:
    rates = sorted(mix["tokens_per_s"].items(), key=lambda item: item[1])
    axes.barh([LABELS.get(name, name) for name, _ in rates], [rate for _, rate in rates],
              color=[COLOURS[name] for name, _ in rates])  # fmt: skip
    axes.set_xlabel(f"tokens/s, real lengths ({mix['texts']} texts)")
    axes.spines[["top", "right"]].set_visible(False)


PARTS: dict[str, Callable[[Any, Any], None]] = {"shapes": bars_by_shape, "mix": bars_of_mix}


def main() -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vecferry"  # the same figures give the same file
    for file in sorted(RESULTS.glob("speed-*.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        if PARTS.keys() & report.keys():
            draw(report, file.with_suffix(".svg"))
            print(file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
