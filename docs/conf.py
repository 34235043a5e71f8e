"""Say how `make docs` makes a site of these pages, which are whole without it."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!\[[^\]]*)?\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
DECISIONS = "\n```{toctree}\n:hidden:\n:glob:\n0*\n```\n"

project = "vecferry"
extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = "index"
nitpicky = True
myst_heading_anchors = 4
html_theme = "furo"
html_title = "vecferry"
html_copy_source = False
html_use_index = False
html_show_copyright = False
html_show_sphinx = False


def add_parts(_app: Sphinx, name: str, source: list[str]) -> None:
    """Begin the index with README, and list the decisions below their table."""
    if name == root_doc:
        source[0] = LINK.sub(r"\1](../\2\3)", (ROOT / "README.md").read_text(encoding="utf-8")) + source[0]
    if name == "decisions/README":
        source[0] += DECISIONS


def rewrite_links(app: Sphinx, name: str, source: list[str]) -> None:
    """Let files that a page names outside this folder come along, to be downloaded."""
    folder = Path(app.srcdir, name).parent

    def rewritten(link: re.Match[str]) -> str:
        image, target, anchor = link[1] or "", (folder / link[2]).resolve(), link[3] or ""
        relative = os.path.relpath(target, folder)
        if image or target.is_relative_to(app.srcdir):
            return f"{image}]({relative}{anchor})"
        return f"](path:{relative})"

    source[0] = LINK.sub(rewritten, source[0])


def setup(app: Sphinx) -> None:
    """Connect what this file adds."""
    app.connect("source-read", add_parts)
    app.connect("source-read", rewrite_links)
