"""How long a report takes to write, and how large it gets. The evaluation is invented; its size is not.

python -m bench.report [--queries 20000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.evaluations import make_evaluation
from vecferry.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000)
    args = parser.parse_args()
    evaluation = make_evaluation(args.queries)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        began = time.perf_counter()
        write_report(evaluation, path)
        taken_s = time.perf_counter() - began
        sizes = [f"{file.stat().st_size / 1e6:.1f} MB {file.suffix[1:]}" for file in sorted(path.parent.iterdir())]
    print(f"{args.queries} queries: {taken_s:.1f} s, {', '.join(sizes)}")


if __name__ == "__main__":
    main()
