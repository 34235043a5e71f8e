"""How results look: a table for people, or one JSON object for programs; progress beside either."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vecferry.encode.progress import ProgressLines
from vecferry.errors import printable

output = Console()
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Rows = Sequence[Sequence[object]]
LINE_EVERY_S = 10.0
STDERR = 2
INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]


def show(value: Mapping[str, Any], *, as_json: bool, title: str = "", rows: Rows | None = None) -> None:
    """Print `value` as JSON, or as a table of its items; `rows` where the table is to say something else."""
    if as_json:
        output.out(json.dumps(value, ensure_ascii=False, indent=2), highlight=False)
        return
    show_table(title, ("", ""), [(k, plain(v)) for k, v in value.items()] if rows is None else rows)


def show_table(title: str, header: Sequence[str], rows: Rows) -> None:
    """Print a table on standard output."""
    output.print(table_of(title, header, rows), markup=False, highlight=False)


def table_of(title: str, header: Sequence[str], rows: Rows) -> Table:
    """Return a table without lines; a header of empty names is left out."""
    table = Table(title=title or None, title_justify="left", show_header=any(header), header_style="bold", box=None)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def plain(value: object) -> str:
    """Return a value as people read it: four digits of a number, the items of a mapping or list."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    return "" if value is None else printable(str(value))


def short(value: object) -> str:
    """Write a value as `plain` does, but with two digits of a number and the beginning of a fingerprint."""
    if isinstance(value, float):
        return f"{value:.2g}"
    text = plain(value)
    fingerprint, _, form = text.partition(":")
    if len(fingerprint) != 64 or " " in fingerprint:
        return text
    return f"{fingerprint[:12]}…" + (f" in {form.partition(':')[0]}" if form else "")


@contextmanager
def counting(label: str, unit: str = "texts") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with rate and time left, or lines where nobody looks; yield `(done, total) -> None`."""
    if not errors.is_terminal:
        yield ProgressLines(label, lambda line: errors.out(line, highlight=False), LINE_EVERY_S)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def answered_interrupt(message: str) -> Iterator[None]:
    """Answer the first Ctrl-C at once with a line on standard error: what it interrupts may take a while to end.

    A terminal that is closed (SIGHUP) interrupts as Ctrl-C does. What is ignored, or somebody else's, stays so.
    """
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
    answered = [number for number, known in handlers.items() if known in (signal.default_int_handler, signal.SIG_DFL)]

    def answer(number: int, frame: FrameType | None) -> None:
        for each in answered:
            signal.signal(each, signal.default_int_handler)
        with suppress(OSError):  # there may be no terminal any more
            os.write(STDERR, f"\n{message}\n".encode())  # a stream may be in the middle of a write
        signal.default_int_handler(number, frame)

    for number in answered:
        signal.signal(number, answer)
    try:
        yield
    finally:
        for number in answered:
            signal.signal(number, handlers[number])


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Show a spinner with the name of what is being done; yield `(name) -> None`. Plain lines where nobody looks."""
    if not errors.is_terminal:
        yield lambda name: errors.out(f"· {name}", highlight=False)
        return
    with errors.status("starting") as status:
        yield lambda name: status.update(escape(name))
