"""vecferry serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

import typer

from vecferry.cli.migrate_target import Target
from vecferry.cli.options import parameters_of, taking
from vecferry.cli.output import errors, stages
from vecferry.errors import MissingExtra
from vecferry.migrate.config import read_config
from vecferry.migrate.opening import old_model, serving_model
from vecferry.server.keys import ApiKeys
from vecferry.server.options import ServerLimits, ServerOptions
from vecferry.settings import Settings, read_settings

if TYPE_CHECKING:
    from vecferry.migrate.router import Router
    from vecferry.server.models import ModelChoice
    from vecferry.server.service import Service

ModelNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]MODEL...", help="Converted models. Default: ONNX_MODEL_PATH.", show_default=False),
]
Config = Annotated[
    Path | None, typer.Option(help="migration.toml: serves its two models too, and POST /search follows its switch.")
]
Host = Annotated[str, typer.Option(help="Where to listen. Other than loopback wants API keys.")]
Port = Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)]
Keys = Annotated[
    Path | None, typer.Option("--api-keys", help="File with one API key a line; or VECFERRY_API_KEYS=KEY,KEY.")
]
WithoutKey = Annotated[bool, typer.Option("--without-key", help="Listen beyond loopback without any API key.")]
Origins = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", help="Origin of web pages that may ask, for instance https://a.org."),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--host-name", help="Name under which it is asked without a key, beside addresses and localhost."),
]
TokenIds = Annotated[
    bool, typer.Option("--token-ids", help="Take lists of numbers as this model's token ids (POST /tokenize).")
]
AnyModelName = Annotated[
    bool, typer.Option("--any-model-name", help="Answer whatever model a client names, with the only one.")
]
ServingName = Annotated[
    str, typer.Option("--serving-name", help="With --config: model name for the model that serves, whichever it is.")
]
SearchFields = Annotated[
    list[str] | None,
    typer.Option(
        "--search-field",
        help="With --config: column or field that clients of /search may filter by and read; all others are hidden.",
    ),
]
PlainLogs = Annotated[bool, typer.Option("--plain-logs", help="Lines for people instead of JSON.")]
Traces = Annotated[bool, typer.Option("--traces", help="Send spans to OTEL_EXPORTER_OTLP_ENDPOINT (extra: otel).")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(taking(ServerLimits, parameters_of(ServerLimits, panel="Limits"))(serve))


def serve(
    limits: ServerLimits,
    models: ModelNames = None,
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_keys: Keys = None,
    without_key: WithoutKey = False,
    cors_origin: Origins = None,
    host_name: Names = None,
    token_ids: TokenIds = False,
    any_model_name: AnyModelName = False,
    serving_name: ServingName = ServerOptions.serving_name,
    search_field: SearchFields = None,
    plain_logs: PlainLogs = False,
    traces: Traces = False,
) -> None:
    """Serve models over HTTP, to clients of OpenAI and of text-embeddings-inference. See docs/serving.md.

    Ends on SIGTERM once accepted requests are answered.
    """
    _require_server(traces=traces)
    from vecferry.server import process
    from vecferry.server.app import create_app

    settings = read_settings()
    keys, origins = keys_of(api_keys, settings), tuple(cors_origin or ())
    names = tuple(host_name or ())
    fields = tuple(search_field or ())
    options = ServerOptions(host, keys, without_key, origins, names, limits, traces, token_ids, serving_name, fields)
    target = None if config is None else Target(read_config(config))
    with process.listen(host, port) as listening:  # before the models are loaded
        service = _service(_choices(models or [], target, settings), settings, limits, any_name=any_model_name)
        router = None if target is None else _router(target, service)
        _announce(service, listening, as_json=not plain_logs)
        process.serve(create_app(service, options, router), options, listening)


def _require_server(*, traces: bool) -> None:
    """Raise MissingExtra before anything is loaded."""
    try:
        from vecferry.server import app, logs, process, tracing  # noqa: F401
    except ImportError as exc:
        raise MissingExtra("server", exc.name or "fastapi") from exc
    if traces:
        tracing.require()


def _choices(names: list[str], target: Target | None, settings: Settings) -> list[ModelChoice]:
    """Return the models of the command line, then of the file; else the one of the settings. Raises MissingOption."""
    from vecferry.server.models import ModelChoice

    choices = [ModelChoice.parse(name) for name in names]
    if target is not None:
        old = old_model(target.config)
        choices += [ModelChoice(serving_model(target.config)), ModelChoice(old)]
    return choices or [ModelChoice(settings.options().artifact)]


def _service(choices: list[ModelChoice], settings: Settings, limits: ServerLimits, *, any_name: bool) -> Service:
    """Load the models of a service."""
    from vecferry.server.models import ServedModels
    from vecferry.server.service import Service

    served = []
    with stages() as stage:
        for choice in choices:
            stage(f"loading {choice.folder}")
            served.append(choice.load(replace(settings.options(), artifact=choice.folder)))
    return Service(ServedModels(served, any_name=any_name), limits)


def _router(target: Target, service: Service) -> Router:
    """Return the router of a migration, over the last two models of the service: the new one and the old one."""
    from vecferry.migrate.router import Router
    from vecferry.server.service import QueuedEncoder

    *_, new, old = service.models.all
    return Router(target.open_store(), old=QueuedEncoder(service, old), new=QueuedEncoder(service, new))


def _announce(service: Service, listening: socket, *, as_json: bool) -> None:
    """Set up the log, and say what is served where."""
    from vecferry.server import logs

    logs.set_up(as_json=as_json)
    host, port = listening.getsockname()[:2]
    errors.out(f"vecferry serves {', '.join(model.name for model in service.models.all)} at http://{host}:{port}")


def keys_of(file: Path | None, settings: Settings) -> ApiKeys:
    """Return the keys of the file, else those of the settings. Raises SettingsError."""
    if file is not None:
        return ApiKeys.read(file)
    named = settings.api_keys.get_secret_value() if settings.api_keys else ""
    return ApiKeys(key.strip() for key in named.split(",") if key.strip())
