"""Options of commands, made from the values that they set: help, default and bounds are said there."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

from vecferry.cli.output import Rows
from vecferry.embeddings import Outputs
from vecferry.errors import VecferryError
from vecferry.migrate.config_file import StoreAddress
from vecferry.options import bounds_of, default_of, help_of, number_type

Command = Callable[..., None]
MIGRATE = re.compile(r"vecferry migrate ([a-z]+)\b")
TARGET_OPTIONS = frozenset(
    {
        *("config", "store", "collection", "collections", "text", "vector", "new_vector", "key", "control"),
        *("tenant", "database", "embed_missing", "new_model", "old_model", "outputs"),
    }
)
"""Those that say which migration is meant, and so are the same for all of its verbs that have them."""


def option(section: type, name: str, *names: str, note: str = "", panel: str | None = None) -> Any:
    """Return the option for a field of `section`, by default under the field's name.

    note: said instead of the default of the field. A bound that is itself no value is left to `section`.
    """
    text, bounds = help_of(section, name), bounds_of(section, name)
    note = note or _default(default_of(section, name))
    return typer.Option(
        *(names or (f"--{name.replace('_', '-')}",)),
        help=f"{text[:1].upper()}{text[1:]}. {note}".strip(),
        min=bounds.get("ge"),
        max=bounds.get("le"),
        rich_help_panel=panel,
    )


def _default(value: object) -> str:
    """Return what a help text says of the default; nothing where there is none."""
    if value is None or value is MISSING or value == ():
        return ""
    return f"Default: {','.join(value.names) if isinstance(value, Outputs) else value}."


def parameters_of(section: type, panel: str) -> list[inspect.Parameter]:
    """Return a parameter for each field of `section`, all of them numbers."""
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=Annotated[number_type(section, each.name), option(section, each.name, note=" ", panel=panel)],
        )
        for each in fields(section)
    ]


def taking(make: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[[Command], Command]:
    """Give a command these options too; what `make` returns for them is the command's first argument."""

    def decorate(command: Command) -> Command:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @wraps(command)
        def with_options(**values: Any) -> None:
            command(make(**{each.name: values.pop(each.name) for each in parameters}), **values)

        every = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *parameters)]
        with_options.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        with_options.__annotations__ = {each.name: each.annotation for each in every}
        return with_options

    return decorate


@dataclass
class CommandLine:
    """The verb of a migration that is being run, so that others can be typed for the same store and models.

    context: None until it is known, and for other commands. For a URL with a password `URL` stands in its place.
    """

    context: typer.Context | None = None

    def again(self, *more: str) -> str:
        """Return the command as it was typed, with more options after it. Only inside a verb."""
        assert self.context is not None
        return shlex.join(["vecferry", *_names(self.context), *_typed(self.context), *more])

    def completed(self, text: str) -> str:
        """Return the text with what was said of store, collection and models in each `vecferry migrate VERB` in it.

        So it can be typed as it stands. What `again` has made is complete.
        """
        return text if self.context is None else MIGRATE.sub(self._completed, text)

    def completed_rows(self, rows: Rows) -> Rows:
        """Return the rows of a table with their commands completed."""
        return [[self.completed(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]

    def _completed(self, match: re.Match[str]) -> str:
        assert self.context is not None
        verb = getattr(self.context.parent and self.context.parent.command, "commands", {}).get(match[1])
        if verb is None or match.string.startswith(self.again(), match.start()):
            return match[0]
        shared = TARGET_OPTIONS & {each.name for each in verb.params}
        return " ".join(filter(None, (match[0], shlex.join(_typed(self.context, shared)))))


def _typed(context: typer.Context, names: Collection[str] | None = None) -> list[str]:
    """Return the options that were typed, or those of them with these names, as words."""
    options = [each for each in context.command.params if _is_typed(context, each.name)]
    return [
        word
        for each in options
        if names is None or each.name in names
        for value in _values(context.params[each.name])
        for word in (each.opts[0], *_value_again(each.name, value))
    ]


def _values(value: object) -> Sequence[object]:
    """Return the values of an option, of which one that may be repeated has several."""
    return value if isinstance(value, list | tuple) else [value]


def _names(context: Any) -> tuple[str, ...]:
    """Return the names of a command and of those above it, but for the program's."""
    return () if context.parent is None else (*_names(context.parent), context.info_name)


def _is_typed(context: typer.Context, name: str | None) -> bool:
    source = context.get_parameter_source(name) if name in context.params else None
    return source is not None and source.name == "COMMANDLINE"


def _value_again(name: str | None, value: object) -> tuple[str, ...]:
    if value is True:
        return ()
    return ("URL" if name == "store" and _is_secret(str(value)) else str(value),)


def _is_secret(url: str) -> bool:
    """Return whether a URL has a password or key; so may one that is none."""
    try:
        return StoreAddress(url).has_secret
    except (VecferryError, ValueError):
        return True
