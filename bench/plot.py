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
    "openvino-fp32": "#9ecae1",
    "openvino-int8": "#fdd0a2",
    "gguf-f16": "#a1d99b",
    "gguf-q8_0": "#41ab5d",
    "lite-fp32": "#bcbddc",
    "lite-int8": "#807dba",
}
LABELS = {
    "gemm": "bare products, fp32",
    "transformers": "PyTorch fp32",
    "fp32": "vecferry fp32",
    "int8": "vecferry int8",
    "openvino-fp32": "OpenVINO fp32",
    "openvino-int8": "OpenVINO int8",
    "gguf-f16": "llama.cpp F16",
    "gguf-q8_0": "llama.cpp Q8_0",
    "lite-fp32": "bge-m3-lite fp32",
    "lite-int8": "bge-m3-lite int8",
}


def draw(report: dict[str, Any], target: Path) -> None:
    parts = {name: draw_part for name, draw_part in PARTS.items() if name in report}
    widths = [1.2 if name == "mix" else 3 for name in parts]
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
    grouped_bars(axes, shapes, "gflop_per_s", LABELS)
    axes.set_ylabel("GFLOP/s")


def bars_of_peers(axes: Any, peers: dict[str, Any]) -> None:
    """What is far from PyTorch's vectors says so in the legend."""
    cosines = peers["smallest_cosine"]
    grouped_bars(axes, peers["shapes"], "over_transformers", {n: f"{LABELS[n]} ({cosines[n]:.4f})" for n in cosines})
    axes.set_ylabel("times as fast as PyTorch")
    axes.get_legend().set_title("(smallest cosine with PyTorch's)")


def grouped_bars(axes: Any, shapes: list[dict[str, Any]], figure: str, labels: dict[str, str]) -> None:
    """Draw that figure of each contender, shape by shape."""
    names = list(shapes[0][figure])
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        places = [n + (at - (len(names) - 1) / 2) * width for n in range(len(shapes))]
        heights = [shape[figure][name] for shape in shapes]
        axes.bar(places, heights, width, color=COLOURS[name], label=labels.get(name, name))
    axes.set_xticks(range(len(shapes)), [shape["shape"] for shape in shapes])
    axes.set_xlabel("texts × tokens")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def bars_of_mix(axes: Any, mix: dict[str, Any]) -> None:
    rates = sorted(mix["tokens_per_s"].items(), key=lambda item: item[1])
    axes.barh([LABELS.get(name, name) for name, _ in rates], [rate for _, rate in rates],
              color=[COLOURS[name] for name, _ in rates])  # fmt: skip
    axes.set_xlabel(f"tokens/s, real lengths ({mix['texts']} texts)")
    axes.spines[["top", "right"]].set_visible(False)


PARTS: dict[str, Callable[[Any, Any], None]] = {
    "shapes": bars_by_shape,
    "mix": bars_of_mix,
    "peers": bars_of_peers,
}


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
