"""Values to HTML. What is put into a page is text, whatever it holds."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from rich.filesize import decimal

from vecferry.console.view import Look, duration, place_of

PARTS = (
    "state",
    "progress",
    "chart",
    "plan",
    "run",
    "pace",
    "verify",
    "verify_outcome",
    "override",
    "switch",
    "switch_outcome",
    "gate",
    "dead_letters",
    "dead_letters_outcome",
    "serving",
    "events",
    "terminal",
)
"""What is put in its place anew while the page is open, each when it has changed; `parts/NAME.html.j2`.

Forms have parts of their own, in which nothing else changes, so that nobody loses what he is typing.
"""
STATIC: Mapping[str, str] = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "events.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def _template(name: str) -> str | None:
    file = files("vecferry.console").joinpath("templates", name)
    return file.read_text(encoding="utf-8") if file.is_file() else None


def static(name: str) -> bytes:
    """Return one file of STATIC."""
    return files("vecferry.console").joinpath("static", name).read_bytes()


class Pages:
    """The templates, each read once."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FunctionLoader(_template),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= {"count": "{:,}".format, "figure": _figure, "moment": _moment}
        self._templates.filters |= {"size": decimal, "duration": duration, "place": place_of}

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        return self._templates.get_template(f"{name}.html.j2").render(values)

    def parts(self, look: Look, csrf: str) -> dict[str, str]:
        """Render each part by its name."""
        return {name: self.render(f"parts/{name}", {"look": look, "csrf": csrf}) for name in PARTS}


def _figure(value: float) -> str:
    """Format with three digits, or as whole numbers with commas."""
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _moment(at: str) -> str:
    """Format ISO 8601 of UTC as the date and the time to the second, with the zone."""
    return f"{at[:19].replace('T', ' ')} UTC"
