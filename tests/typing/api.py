"""User code over the public names; mypy checks it strictly, and nothing runs it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecferry import (
    Artifact,
    Embeddings,
    Encoder,
    EncoderOptions,
    Limits,
    Migration,
    MigrationOptions,
    Outputs,
    RemoteEncoder,
    Router,
    VecferryError,
    convert_checkpoint,
    dense_scores,
    hybrid_scores,
    load_encoder,
    open_source,
    open_store,
)
from vecferry.stores.opening import PostgresOptions
from vecferry.stores.values import Layout


def converted() -> Artifact:
    return convert_checkpoint(open_source("BAAI/bge-m3"), Path("models/bge-m3-onnx"), precision="auto").artifact


def encoded(folder: Path) -> Embeddings:
    encoder: Encoder = Encoder.open(folder, threads=2)
    return encoder.encode(["one", "two"], outputs=Outputs.DENSE | Outputs.SPARSE, role="query")


def first_vector(passages: Embeddings) -> NDArray[np.float32]:
    return passages[0].dense


def loaded(folder: Path) -> Encoder:
    return load_encoder(EncoderOptions(artifact=folder, limits=Limits(), cache=folder / "cache")).encoder


def scores(queries: Embeddings, passages: Embeddings) -> NDArray[np.float32]:
    try:
        return hybrid_scores(queries, passages)
    except VecferryError as exc:
        print(exc.message, exc.hint)
        return dense_scores(queries, passages)


def embedded_by_a_server(url: str) -> Embeddings:
    remote = RemoteEncoder(url)
    return remote.encode(["one"])


def moved(folder: Path, old: Encoder, new: Encoder) -> str:
    store = open_store(
        "postgresql://localhost/shop",
        "products",
        text="title",
        options=PostgresOptions(layout=Layout.SIDE_TABLE),
    )
    migration = Migration(store, new=new, old=old, options=MigrationOptions(staging=folder / "staging"))
    migration.start()
    migration.verify(override="judged by hand")
    report = migration.cutover()
    answers = Router(store, old=old, new=new).search("a question", 10)
    return f"{report.state}, {answers.hits[0].key}"
