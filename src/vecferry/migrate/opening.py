"""What the file of a migration names, opened: its store, its models. The environment says the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vecferry.encode.adapted import adapted
from vecferry.encode.encoder import TextEncoder
from vecferry.encode.loading import EncoderOptions, LazyEncoder, load_encoder, peek_space
from vecferry.errors import MissingOption
from vecferry.migrate.config import MigrationConfig, StoreConfig
from vecferry.model.artifact import VectorSpace
from vecferry.settings import read_settings
from vecferry.stores.opening import (
    ChromaOptions,
    MadeFunction,
    PostgresOptions,
    QdrantOptions,
    StoreOptions,
    open_store,
    store_kind,
)
from vecferry.stores.protocol import Store


def open_configured_store(
    config: MigrationConfig, embedding_function: MadeFunction | None = None, client: object | None = None
) -> Store:
    """Open the store of the file, or of the environment; to be closed.

    embedding_function: makes the one of a new Chroma collection, where the file wants one. client: as in `open_store`.
    Raises MissingOption where nobody says the URL, and as `open_store` does.
    """
    store, settings = config.store, read_settings()
    url = store.url or settings.store_url
    if url is None:
        raise MissingOption(
            "the URL of the store",
            "where the vectors are",
            "--store URL, or VECFERRY_STORE_URL=postgresql://user:password@host/database to the environment, or url to"
            " [store] of the file",
        )
    return open_store(
        url.get_secret_value(),
        config.target,
        text=store.text,
        vector=store.vector,
        key=store.key,
        control=store.control,
        embed_missing=store.embed_missing,
        token=settings.store_token.get_secret_value() if settings.store_token else None,
        options=_options(store, url.get_secret_value(), embedding_function),
        client=client,
    )


def _options(store: StoreConfig, url: str, embedding_function: MadeFunction | None) -> StoreOptions | None:
    """Return what the file says for this kind of store; or for another kind, which `open_store` refuses by name."""
    made = embedding_function if store.embedding_function else None
    choices: dict[str, StoreOptions] = {
        "postgresql": PostgresOptions(store.source, store.layout, store.where),
        "chroma": ChromaOptions(store.tenant, store.database, made),
        "qdrant": QdrantOptions(store.new_vector),
    }
    own = choices.pop(store_kind(url), None)
    return next((each for each in choices.values() if each != type(each)()), own)


def model_options(artifact: Path) -> EncoderOptions:
    """Return the settings, for that model."""
    return replace(read_settings().options(), artifact=artifact)


def new_encoder(config: MigrationConfig) -> LazyEncoder:
    """Return the new model, to be loaded as the settings say; a fallback keeps its vector space or is refused."""
    return _encoder(config.models.new)


def old_encoder(config: MigrationConfig) -> TextEncoder | None:
    """Return the old model as it was used, if there is one. Raises MissingOption where [old] adapts none."""
    if config.models.old is None and not config.old:
        return None
    return adapted(_encoder(old_model(config)), config.old)


def old_model(config: MigrationConfig) -> Path:
    """Return the folder of the old model. Raises MissingOption."""
    if config.models.old is None:
        example = 'old = "MODEL" to [models] of the file'
        raise MissingOption("[models] old", "the old model, which answers until the switch", example)
    return config.models.old


def serving_model(config: MigrationConfig) -> Path:
    """Return the folder of the new model in the precision for queries and followed writes."""
    return config.models.serve or config.models.new


def follower_encoder(config: MigrationConfig) -> LazyEncoder | None:
    """Return the new model in the precision for queries and followed writes, if that is another than the backfill's."""
    return None if config.models.serve is None else _encoder(config.models.serve)


def serving_encoders(config: MigrationConfig) -> tuple[TextEncoder, TextEncoder]:
    """Return the old and the new model, each loaded once something is encoded with it. Raises MissingOption."""
    folders = (old_model(config), serving_model(config))
    old, new = (_encoder(folder, peek_space(model_options(folder))) for folder in folders)
    return adapted(old, config.old), new


def _encoder(artifact: Path, space: VectorSpace | None = None) -> LazyEncoder:
    return LazyEncoder(lambda: load_encoder(model_options(artifact)), space=space)
