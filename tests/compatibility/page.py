"""Parts of pages in docs/ that are written by scripts, each between two marks."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "compatibility.md"


def section(name: str, page: Path = PAGE) -> str:
    """Return the lines between the marks of that name."""
    return _find(name, page)[2].strip("\n") + "\n"


def replace_section(name: str, lines: str, page: Path = PAGE) -> None:
    """Write those lines between the marks of that name."""
    match = _find(name, page)
    text, (start, end) = match.string, match.span(2)
    page.write_text(f"{text[:start]}\n{lines}\n{text[end:]}", encoding="utf-8")


def _find(name: str, page: Path) -> re.Match[str]:
    text = page.read_text(encoding="utf-8")
    match = re.search(f"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->)", text, re.DOTALL)
    assert match is not None, f"{page.name} has no marks for {name}"
    return match
