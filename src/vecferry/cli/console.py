"""vecferry console."""

from __future__ import annotations

import secrets
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vecferry.cli.migrate_target import Target, file_here
from vecferry.cli.output import errors
from vecferry.cli.serve import Host, Keys, keys_of
from vecferry.errors import MissingExtra, MissingOption, SettingsError
from vecferry.migrate.config import DEFAULT_FILE, read_config
from vecferry.model.tokens import Piece, Tokenizer
from vecferry.server.keys import ApiKeys
from vecferry.server.options import LOOPBACK, ServerLimits, ServerOptions
from vecferry.settings import read_settings

if TYPE_CHECKING:
    from vecferry.console.operator import Task
    from vecferry.encode.loading import LazyEncoder

LIMITS = ServerLimits(max_body_mb=1, receive_s=15.0, drain_s=5.0, max_connections=128)
Config = Annotated[
    Path | None,
    typer.Option(
        help=f"File with the store, the models, the limits and the gate. Default: {DEFAULT_FILE} in this folder."
    ),
]
Port = Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)]
Names = Annotated[
    list[str] | None,
    typer.Option("--host-name", help="Name under which browsers reach it, beside addresses and localhost."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(console)


def console(
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 8081,
    api_keys: Keys = None,
    host_name: Names = None,
) -> None:
    """Show and steer a migration in a browser. See docs/console.md.

    Without an API key one is made, and printed once. Ends on SIGTERM, and when its terminal is closed; a run of its own
    stops, and goes on with the next start.
    """
    try:
        from vecferry.console.app import create_app
        from vecferry.console.operator import Operator
        from vecferry.console.sessions import Sessions
        from vecferry.server import logs, process
    except ImportError as exc:
        raise MissingExtra("console", exc.name or "jinja2") from exc
    config = config or file_here()
    if config is None:
        example = "--config FILE; `vecferry init STORE` writes one"
        raise MissingOption("--config", "the file of a migration", example)
    keys = keys_of(api_keys, read_settings())
    if host not in LOOPBACK and not keys:
        raise SettingsError("--host", host, "127.0.0.1, or API keys (VECFERRY_API_KEYS, --api-keys FILE)")
    own_key = "" if keys else secrets.token_urlsafe(24)
    sessions = Sessions(keys or ApiKeys([own_key]))
    with process.listen(host, port) as listening:
        operator = Operator(_task(Target(read_config(config)), config))
        logs.set_up(as_json=False)
        shown_host, port = listening.getsockname()[:2]
        errors.out(f"vecferry's console is at http://{shown_host}:{port}")
        if own_key:
            errors.out(f"Its key, made for this run: {own_key}")
        app = create_app(operator, sessions, names=host_name or (), receive_s=LIMITS.receive_s)
        process.serve(app, ServerOptions(host, keys or ApiKeys([own_key]), limits=LIMITS), listening)


def _task(target: Target, config: Path) -> Task:
    """Return the migration that the console steers, with its gate and its engine."""
    from vecferry.console.operator import Task
    from vecferry.migrate.gate import make_gate

    return Task(
        target.open_store(),
        target.config.options,
        target.new,
        target.old,
        gate=lambda: make_gate(target.config, old=target.old, new=target.new),
        sample=target.config.verify.sample,
        engine=target.engine(),
        gate_check=target.gate_check,
        pieces=lambda text: _pieces(target.new, text),
        config=config,
    )


def _pieces(encoder: LazyEncoder, text: str) -> list[Piece]:
    """Return the pieces of a text that the model reads; none for a model whose tokens are no pieces of it."""
    tokenizer = encoder.get().encoder.tokenizer
    return list(islice(tokenizer.pieces(text), encoder.space.max_tokens)) if isinstance(tokenizer, Tokenizer) else []
