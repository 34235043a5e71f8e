"""vecferry serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecferry.cli.migrate_target import Target
from vecferry.cli.output import errors, stages
from vecferry.errors import MissingExtra, MissingOption
from vecferry.migrate.config import read_config
from vecferry.server.keys import ApiKeys
from vecferry.server.options import ServerLimits, ServerOptions
from vecferry.settings import Settings, read_settings

if TYPE_CHECKING:
    from vecferry.migrate.router import Router
    from vecferry.server.service import Service

LIMITS = "Limits"
ModelNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=]FOLDER...", help="Converted models. Default: ONNX_MODEL_PATH.", show_default=False),
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
PlainLogs = Annotated[bool, typer.Option("--plain-logs", help="Lines for people instead of JSON.")]
Traces = Annotated[bool, typer.Option("--traces", help="Send spans to OTEL_EXPORTER_OTLP_ENDPOINT (extra: otel).")]


def _limit(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=LIMITS)


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    models: ModelNames = None,
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_keys: Keys = None,
    without_key: WithoutKey = False,
    cors_origin: Origins = None,
    plain_logs: PlainLogs = False,
    traces: Traces = False,
    max_body_mb: Annotated[int, _limit("Millions of bytes of a request.")] = ServerLimits.max_body_mb,
    max_texts: Annotated[int, _limit("Texts of a request; batches are made of any number.")] = ServerLimits.max_texts,
    max_text_chars: Annotated[int, _limit("Characters of a text.")] = ServerLimits.max_text_chars,
    max_request_tokens: Annotated[int, _limit("Tokens of a request.")] = ServerLimits.max_request_tokens,
    max_answer_mb: Annotated[
        int, _limit("Numbers of an answer, as float32, in millions of bytes.")
    ] = ServerLimits.max_answer_mb,
    max_queue_tokens: Annotated[
        int, _limit("Tokens that may wait in each lane; then 429.")
    ] = ServerLimits.max_queue_tokens,
    query_tokens: Annotated[
        int, _limit("Requests of up to so many tokens go before longer ones.")
    ] = ServerLimits.query_tokens,
    deadline_s: Annotated[float, _limit("Seconds from a request to its answer.")] = ServerLimits.deadline_s,
    receive_s: Annotated[
        float, _limit("Seconds for a request to arrive, and for a client to take its answer.")
    ] = ServerLimits.receive_s,
    drain_s: Annotated[
        float, _limit("Seconds after SIGTERM in which accepted requests are answered.")
    ] = ServerLimits.drain_s,
    max_connections: Annotated[int, _limit("Connections at a time.")] = ServerLimits.max_connections,
) -> None:
    """Serve models over HTTP, to clients of OpenAI and of text-embeddings-inference. See docs/serving.md.

    Ends on SIGTERM once accepted requests are answered.
    """
    given = locals()
    try:
        from vecferry.server import logs, process, tracing
        from vecferry.server.app import create_app
    except ImportError as exc:
        raise MissingExtra("server", exc.name or "fastapi") from exc
    settings = read_settings()
    options = ServerOptions(
        host=host,
        keys=keys_of(api_keys, settings),
        without_key=without_key,
        origins=tuple(cors_origin or ()),
        limits=ServerLimits(**{name: given[name] for name in ServerLimits.__dataclass_fields__}),
        traces=traces,
    )
    if traces:
        tracing.require()
    with process.listen(host, port) as listening:
        service, router = _service(models, config, settings, options.limits)
        logs.set_up(as_json=not plain_logs)
        shown, bound_port = listening.getsockname()[:2]
        errors.out(
            f"vecferry serves {', '.join(one.name for one in service.models.all)} at http://{shown}:{bound_port}"
        )
        process.serve(create_app(service, options, router), options, listening)


def keys_of(file: Path | None, settings: Settings) -> ApiKeys:
    """Those of the file, else those of the settings. Raises SettingsError."""
    if file is not None:
        return ApiKeys.read(file)
    named = settings.api_keys.get_secret_value() if settings.api_keys else ""
    return ApiKeys(key.strip() for key in named.split(",") if key.strip())


def _service(
    names: list[str] | None, config: Path | None, settings: Settings, limits: ServerLimits
) -> tuple[Service, Router | None]:
    """The service with its models loaded, and the router where there is a migration to follow."""
    from vecferry.server.models import ModelChoice, ServedModels
    from vecferry.server.service import Service

    target = None if config is None else Target(read_config(config))
    choices = [ModelChoice.parse(name) for name in names or []]
    if target is not None:
        if target.config.models.old is None:
            raise MissingOption(
                "[models] old",
                "the old model, which answers until the switch",
                'old = "FOLDER" to [models] of the file',
            )
        choices += [ModelChoice(target.config.models.new), ModelChoice(target.config.models.old)]
    choices = choices or [ModelChoice(settings.options().artifact)]
    served = []
    with stages() as stage:
        for choice in choices:
            stage(f"loading {choice.folder}")
            served.append(choice.load(replace(settings.options(), artifact=choice.folder)))
    service = Service(ServedModels(served), limits)
    return service, None if target is None else _router(target, service)


def _router(target: Target, service: Service) -> Router:
    from vecferry.migrate.router import Router
    from vecferry.server.service import QueuedEncoder

    *_, new, old = service.models.all
    return Router(target.open_store(), old=QueuedEncoder(service, old), new=QueuedEncoder(service, new))
