"""docs/compatibility.md: parts of it are written by scripts, each between two marks."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/compatibility.md"


def section(name: str) -> str:
    """Return the lines between the marks of that name."""
    return _find(name)[2].strip("\n") + "\n"


def replace_section(name: str, lines: str) -> None:
    """Write those lines between the marks of that name."""
    match = _find(name)
    page = match.string
    PAGE.write_text(f"{page[: match.start(2)]}\n{lines}\n{page[match.end(2) :]}", encoding="utf-8")


def _find(name: str) -> re.Match[str]:
    page = PAGE.read_text(encoding="utf-8")
    match = re.search(f"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->)", page, re.DOTALL)
    assert match is not None, f"{PAGE.name} has no marks for {name}"
    return match
