"""What a verb of `vecferry migrate` works on: the values of the file, and those of the options over them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from vecferry.encode.loading import EncoderOptions, LazyEncoder, load_encoder
from vecferry.errors import MissingOption
from vecferry.migrate import EngineFor, Migration, MigrationOptions
from vecferry.migrate.config import MigrationConfig, ModelsConfig, StoreConfig, merged, read_config
from vecferry.migrate.engines import Engine
from vecferry.migrate.engines.model_distribution import ShippedArtifact
from vecferry.migrate.staging import Staging
from vecferry.settings import read_settings
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.opening import open_store
from vecferry.stores.protocol import Store
from vecferry.stores.values import Patience


@dataclass(frozen=True)
class Target:
    """A migration to be opened, and its models, loaded when a verb first needs them."""

    config: MigrationConfig

    @contextmanager
    def migration(self, old_fingerprint: str | None = None) -> Iterator[Migration]:
        with closing(self.open_store()) as store:
            options = replace(self.options(), old_fingerprint=old_fingerprint)
            yield Migration(store, new=self.new, old=self.old, options=options)

    def open_store(self) -> Store:
        store = self.config.store
        url = store.url.get_secret_value() if store.url else _url_of_settings()
        return open_store(
            url, store.collection, text=store.text, vector=store.vector, key=store.key, control=store.control
        )

    def options(self) -> MigrationOptions:
        limits = self.config.limits
        return MigrationOptions(
            rows_per_range=limits.rows_per_range,
            rows_per_write=limits.rows_per_write,
            patience=Patience(max_pause_s=limits.max_pause_s),
            outputs=self.config.models.heads,
            staging=limits.staging,
            lease_s=limits.lease_s,
            rows_per_s=limits.rows_per_s,
            max_query_ms=limits.max_query_ms,
            min_free_gb=limits.min_free_gb,
            min_recall=self.config.verify.min_recall,
            thresholds=self.config.thresholds,
        )

    def engine(self) -> EngineFor | None:
        """None for the one that a migration takes by itself. Raises MissingExtra, ArtifactError."""
        config = self.config
        if config.engine.kind == "local":
            return None
        from vecferry.migrate.engines.distributed import RayEngine

        model = ShippedArtifact.of(_model_options(config.models.new))

        def made(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
            rows = config.limits.rows_per_range
            return RayEngine(store, self.new, staging, record.spec.uid, rows, model, config.engine.ray)

        return made

    @cached_property
    def new(self) -> LazyEncoder:
        return _encoder(self.config.models.new)

    @cached_property
    def old(self) -> LazyEncoder | None:
        folder = self.config.models.old
        return None if folder is None else _encoder(folder)


def _encoder(artifact: Path) -> LazyEncoder:
    """A fallback keeps its vector space or is refused, and lightweight is as the settings say."""
    return LazyEncoder(lambda: load_encoder(_model_options(artifact)))


def _model_options(artifact: Path) -> EncoderOptions:
    return replace(read_settings().options(), artifact=artifact)


def _url_of_settings() -> str:
    url = read_settings().database_url
    if url is None:
        raise MissingOption(
            "the URL of the store",
            "where the vectors are",
            "--store URL, or VECFERRY_DATABASE_URL=postgresql://user:password@host/database to the environment",
        )
    return url.get_secret_value()


def _option(*names: str, text: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Where it is")


CONFIG = _option(text="TOML file; the options below go over its values.")
URL = _option(
    "--store",
    "--database",
    text="postgresql://..., chroma:..., lancedb:..., qdrant:..., milvus:...; or VECFERRY_DATABASE_URL, which keeps"
    " a password out of the process list.",
)
COLLECTION = _option("--table", "--collection", text="Table or collection; schema.table if need be.")
TEXT = _option("--text-column", "--text-field", text="Column or field with the texts. Default: text.")
VECTOR = _option("--vector-column", "--vector-field", text="Column or field with the vectors. Default: embedding.")
KEY = _option("--key-field", text="Field with the keys; not for PostgreSQL. Default: id.")
CONTROL = _option(text="The control database; not for PostgreSQL. Default: .vecferry/control.db.")


def _target(
    config: Annotated[Path | None, CONFIG] = None,
    store: Annotated[str | None, URL] = None,
    collection: Annotated[str | None, COLLECTION] = None,
    text: Annotated[str | None, TEXT] = None,
    vector: Annotated[str | None, VECTOR] = None,
    key: Annotated[str | None, KEY] = None,
    control: Annotated[Path | None, CONTROL] = None,
) -> Target:
    given = {"url": store, "collection": collection, "text": text, "vector": vector, "key": key, "control": control}
    base = read_config(config) if config else _without_file(collection)
    return Target(merged(base, {f"store.{name}": value for name, value in given.items()}))


def _without_file(collection: str | None) -> MigrationConfig:
    if collection is None:
        raise MissingOption(
            "--table", "the name of a table or collection", "--table NAME, or --config FILE with [store] collection"
        )
    return MigrationConfig(
        store=StoreConfig(collection=collection), models=ModelsConfig(new=read_settings().options().artifact)
    )


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that say what it works on; it gets a `Target` instead of them."""
    shared = list(inspect.signature(_target, eval_str=True).parameters.values())
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def with_options(**given: Any) -> None:
        command(_target(**{each.name: given.pop(each.name) for each in shared}), **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options
