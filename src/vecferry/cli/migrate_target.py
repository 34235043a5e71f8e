"""What a verb of `vecferry migrate` works on: the values of the file, and those of the options over them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.cli.options import CommandLine, option, taking
from vecferry.cli.output import Rows, output, show
from vecferry.encode.encoder import TextEncoder
from vecferry.encode.loading import LazyEncoder
from vecferry.errors import MissingOption, NotConfirmed
from vecferry.migrate import EngineFor, Migration
from vecferry.migrate.config import DEFAULT_FILE, MigrationConfig, ModelsConfig, StoreConfig, merged, read_config
from vecferry.migrate.engines import Engine
from vecferry.migrate.engines.model_distribution import ShippedArtifact
from vecferry.migrate.opening import follower_encoder, model_options, new_encoder, old_encoder, open_configured_store
from vecferry.migrate.staging import Staging
from vecferry.model.artifact import Artifact
from vecferry.settings import read_settings
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.protocol import Store
from vecferry.stores.values import Layout


@dataclass(frozen=True)
class Target:
    """A migration to be opened, and its models, loaded when a verb first needs them.

    command_line: the verb that is being run on it.
    """

    config: MigrationConfig
    command_line: CommandLine = field(default_factory=CommandLine)

    def merged(self, values: Mapping[str, object]) -> Target:
        """Return the target with these values over those of the file, as `config.merged` takes them."""
        return replace(self, config=merged(self.config, values))

    def with_models(self, new: Path | None, old: Path | None = None, outputs: str | None = None) -> Target:
        """Return the target with the models of the options over those of the file."""
        heads = tuple(name.strip() for name in outputs.split(",")) if outputs else None
        return self.merged({"models.new": new, "models.old": old, "models.outputs": heads})

    def show(self, value: Mapping[str, Any], rows: Rows, *, title: str, as_json: bool) -> None:
        """Print what a verb returned: as JSON, or as rows with the commands that lead on, ready to be typed."""
        show(value, as_json=as_json, title=title, rows=self.command_line.completed_rows(rows))

    def confirm(self, verb: str, effect: str, *, yes: bool) -> None:
        """Ask whether the verb shall do that. Raises NotConfirmed, with the command that does it without a question."""
        if not yes and not (output.is_terminal and typer.confirm(f"{verb.capitalize()} {effect}. Go on?")):
            raise NotConfirmed(verb, effect, self.command_line.again("--yes"))

    @contextmanager
    def migration(self, **said: Any) -> Iterator[Migration]:
        """Open the store and yield its migration; close it at the end. said: options over those of the file."""
        with closing(self.open_store()) as store:
            options = replace(self.config.options, **said)
            yield Migration(store, new=self.new, old=self.old, serve=self.serve, options=options)

    def open_store(self) -> Store:
        """Open the store of the file, or of the environment; to be closed."""
        return open_configured_store(self.config, self._embedding_function)

    def _embedding_function(self) -> object:
        """Return Chroma's embedding function for the new model, which it finds by its folder. Raises MissingExtra."""
        from vecferry.integrations.chroma import VecferryEmbeddingFunction
        from vecferry.integrations.connecting import Connection

        folder = (self.config.models.serve or self.config.models.new).absolute()
        manifest = Artifact.peek(folder)
        space = manifest.space if manifest else (self.serve or self.new).space
        return VecferryEmbeddingFunction(Connection(str(folder), fingerprint=str(space.mark())))

    def engine(self) -> EngineFor | None:
        """Return what makes the engine; None for the one in this process. Raises MissingExtra, ArtifactError."""
        config = self.config
        if config.engine.kind == "local":
            return None
        from vecferry.migrate.engines.distributed import RayEngine

        model = ShippedArtifact.of(model_options(config.models.new))

        def made(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
            rows = config.limits.rows_per_range
            return RayEngine(store, self.new, staging, record.spec.uid, rows, model, config.engine)

        return made

    def gate_check(self, store: Store) -> Sequence[str]:
        """Look at what the gate of the file is going to ask, as `Migration.plan` and `start` take it."""
        from vecferry.migrate.gate import check_gate

        return check_gate(self.config, store)

    @cached_property
    def new(self) -> LazyEncoder:
        """The new model."""
        return new_encoder(self.config)

    @cached_property
    def serve(self) -> LazyEncoder | None:
        """The new model in the precision for queries and followed writes, if that is another one."""
        return follower_encoder(self.config)

    @cached_property
    def old(self) -> TextEncoder | None:
        """The old model as it was used, if there is one."""
        return old_encoder(self.config)


WHERE = "Where it is"
CONFIG = typer.Option(
    help=f"TOML file; the options below go over its values. Default: {DEFAULT_FILE} in this folder, if neither a store"
    " nor a collection is named.",
    rich_help_panel=WHERE,
)
URL = option(
    StoreConfig, "url", "--store", panel=WHERE,
    note="Or VECFERRY_STORE_URL, which keeps a password out of the process list.",
)  # fmt: skip


def _target(
    context: typer.Context,
    config: Annotated[Path | None, CONFIG] = None,
    store: Annotated[str | None, URL] = None,
    collection: Annotated[str | None, option(StoreConfig, "collection", panel=WHERE)] = None,
    collections: Annotated[
        list[str] | None, option(StoreConfig, "collections", panel=WHERE, note="Repeat it for several names.")
    ] = None,
    text: Annotated[str | None, option(StoreConfig, "text", panel=WHERE)] = None,
    vector: Annotated[str | None, option(StoreConfig, "vector", panel=WHERE)] = None,
    new_vector: Annotated[str | None, option(StoreConfig, "new_vector", panel=WHERE)] = None,
    key: Annotated[str | None, option(StoreConfig, "key", panel=WHERE)] = None,
    control: Annotated[Path | None, option(StoreConfig, "control", panel=WHERE)] = None,
    where: Annotated[str | None, option(StoreConfig, "where", panel=WHERE)] = None,
    embed_missing: Annotated[bool | None, option(StoreConfig, "embed_missing", panel=WHERE)] = None,
    layout: Annotated[Layout | None, option(StoreConfig, "layout", panel=WHERE)] = None,
    tenant: Annotated[str | None, option(StoreConfig, "tenant", panel=WHERE)] = None,
    database: Annotated[str | None, option(StoreConfig, "database", panel=WHERE)] = None,
) -> Target:
    """Return what the options say, over the file if there is one. Raises SettingsError."""
    names = {"collection": collection, "text": text, "vector": vector, "key": key, "control": control}
    values = {"url": store, **names, "where": where, "embed_missing": embed_missing, "layout": layout}
    values |= {"tenant": tenant, "database": database, "new_vector": new_vector}
    several = tuple(collections or ())
    if not (store or collection or several):
        config = config or file_here()
    base = read_config(config) if config else _without_file(collection, several)
    command_line = context.ensure_object(CommandLine)
    command_line.context = context
    return Target(base, command_line).merged(
        {f"store.{name}": value for name, value in values.items()} | {"store.collections": several or None}
    )


def file_here() -> Path | None:
    """Return migration.toml of the present folder; None where it has none."""
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _without_file(collection: str | None, collections: tuple[str, ...]) -> MigrationConfig:
    """Return the defaults, for a collection or several. Raises MissingOption."""
    if collection is None and not collections:
        raise MissingOption(
            "--collection",
            "the name of a table or collection",
            "--collection NAME, --collections PATTERN, or --config FILE with [store] collection; `vecferry init STORE`"
            f" writes such a file, and {DEFAULT_FILE} in this folder is found without --config",
        )
    return MigrationConfig(
        store=StoreConfig(collection, collections), models=ModelsConfig(new=read_settings().options().artifact)
    )


on_target = taking(_target, list(inspect.signature(_target, eval_str=True).parameters.values()))
"""Gives a command the options that say what it works on; it gets a `Target` instead of them."""
