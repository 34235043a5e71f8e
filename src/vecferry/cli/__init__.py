"""The command line: commands only. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from vecferry import __version__
from vecferry.cli import console, demo, evaluate, init, migrate, migrate_run, model, serve
from vecferry.cli.options import CommandLine
from vecferry.cli.output import errors, show
from vecferry.errors import VecferryError, printable

EXIT_CODES = {
    0: "done",
    1: "a fault of ours",
    2: "wrong input or setting",
    3: "something is missing or broken (model, package, database, server)",
    4: "refused by a check or by the state of a migration",
    5: "somebody else is at work",
    130: "interrupted",
}
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
EPILOG = f"Exit codes: {' · '.join(f'{code} {text}' for code, text in EXIT_CODES.items())}."

app = typer.Typer(
    name="vecferry",
    help="""Move an application from all-MiniLM-L6-v2 to BGE-M3 on ONNX Runtime: model, code and stored vectors.

    Begin with `vecferry init STORE`, which looks at a store, writes migration.toml and names the next command.""",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings=HELP_OPTIONS,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
model.register(app)
init.register(app)
evaluate.register(app)
migrate_run.register(migrate.app)
app.add_typer(migrate.app, name="migrate")
serve.register(app)
console.register(app)
demo.register(app)


def _print_version(wanted: bool) -> None:
    """Print the version and stop, if --version is there."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(help=app.info.help)
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version and stop.", is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take the options before the command."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line. An error is a line and a hint, as JSON too under --json; a traceback only under --debug."""
    run(app, sys.argv[1:] if argv is None else argv, name="vecferry")


def run(command: typer.Typer, argv: list[str], name: str | None = None) -> NoReturn:
    """Run a command and leave the process with its exit code. name: of the program, by default that of the script."""
    # psycopg warns of what it meets while it gives a lost connection up; why it was lost is an error of ours
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    command_line = CommandLine()
    try:
        command(args=argv, prog_name=name, standalone_mode=True, obj=command_line)
    except VecferryError as exc:
        if "--debug" in argv:
            errors.print_exception()
        report(exc, command_line, as_json="--json" in argv)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has gone
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


def run_script(command: Callable[..., None]) -> NoReturn:
    """Run one function as a script of its own."""
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    script.command(epilog=EPILOG, context_settings=HELP_OPTIONS)(command)
    run(script, sys.argv[1:])


def report(exc: VecferryError, command_line: CommandLine, *, as_json: bool) -> None:
    """Print the message and the hint on standard error; under --json one object on standard output too.

    Commands in them are completed, so that they can be typed as they stand.
    """
    message, hint = (printable(command_line.completed(text)) for text in (exc.message, exc.hint))
    if as_json:
        error = {"type": type(exc).__name__, "message": message, "hint": hint, "exit_code": exc.exit_code}
        show({"error": error}, as_json=True)
    errors.print("[bold red]error:[/]", end=" ")
    errors.out(message, highlight=False)
    if hint:
        errors.print("[bold]hint:[/]", end=" ")
        errors.out(hint, highlight=False)
