"""Options of commands, made from the values that they set: help, default and bounds are said there."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any

import typer

from vecferry.embeddings import Outputs
from vecferry.migrate.config import LOCAL_SCHEMES
from vecferry.options import bounds_of, default_of, help_of, number_type

Command = Callable[..., None]


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
    if value is None or value is MISSING:
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


def command_again(context: typer.Context, *more: str) -> str:
    """Return the command that is being run as it was typed, with more options after it.

    The URL of a server may hold a password, so `URL` stands in its place.
    """
    options = ((each, context.params[each.name]) for each in context.command.params if _is_typed(context, each.name))
    words = (word for option, value in options for word in (option.opts[0], *_value_again(option.name, value)))
    return shlex.join(["vecferry", *_names(context), *words, *more])


def _names(context: Any) -> tuple[str, ...]:
    """Return the names of a command and of those above it, but for the program's."""
    return () if context.parent is None else (*_names(context.parent), context.info_name)


def _is_typed(context: typer.Context, name: str | None) -> bool:
    source = context.get_parameter_source(name) if name in context.params else None
    return source is not None and source.name == "COMMANDLINE"


def _value_again(name: str | None, value: object) -> tuple[str, ...]:
    if value is True:
        return ()
    hides = name == "store" and str(value).partition(":")[0] not in LOCAL_SCHEMES
    return ("URL" if hides else str(value),)
