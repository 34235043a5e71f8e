"""What a collection consists of, and how one like it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from qdrant_client import QdrantClient, models

from vecferry.embeddings import Outputs
from vecferry.errors import StoreSchemaError

M = TypeVar("M", bound=BaseModel)

SPARSE, COLBERT = "sparse", "colbert"
NO_VECTOR_NAME = ""


@dataclass(frozen=True)
class QdrantLayout:
    """The vectors of a collection. others: names of those that are neither the dense one nor a head of ours."""

    collection: str
    name: str
    dense: models.VectorParams
    heads: Outputs
    others: tuple[str, ...]
    is_sharded_by_key: bool

    @classmethod
    def of(cls, info: models.CollectionInfo, collection: str, name: str) -> QdrantLayout:
        """Read a layout. Raises StoreSchemaError if there is no dense vector of that name."""
        params = info.config.params
        config = params.vectors or {}
        vectors: Mapping[str, models.VectorParams] = config if isinstance(config, dict) else {NO_VECTOR_NAME: config}
        sparse = params.sparse_vectors or {}
        dense = vectors.get(name)
        if dense is None or dense.multivector_config is not None:
            named = ", ".join(repr(other) for other in (*vectors, *sparse)) or "none"
            raise StoreSchemaError(f"{collection} has no dense vector {name!r}", f"Its vectors are: {named}.")
        heads = Outputs.DENSE
        heads |= Outputs.SPARSE if SPARSE in sparse else Outputs(0)
        heads |= Outputs.COLBERT if COLBERT in vectors and vectors[COLBERT].multivector_config else Outputs(0)
        others = tuple(other for other in (*vectors, *sparse) if other != name and other not in heads.names)
        by_key = params.sharding_method == models.ShardingMethod.CUSTOM
        return cls(collection, name, dense, heads, others, by_key)

    @property
    def names(self) -> list[str]:
        return [self.name, *(head for head in (SPARSE, COLBERT) if head in self.heads.names)]

    def check(self) -> None:
        """Raise StoreSchemaError if there can be no collection like this one."""
        self.refuse_others()
        if self.is_sharded_by_key:
            raise StoreSchemaError(f"{self.collection} is sharded by keys", "A migration needs automatic sharding.")
        if self.dense.distance == models.Distance.MANHATTAN:
            raise StoreSchemaError(f"the metric of {self.collection} is Manhattan", "Cosine, Dot and Euclid will do.")
        datatype = self.dense.datatype
        if datatype not in (None, models.Datatype.FLOAT32, models.Datatype.FLOAT16):
            what = f"the vectors of {self.collection} are kept as {datatype.value}"
            raise StoreSchemaError(what, "Those of the new model need float32 or float16.")

    def refuse_others(self) -> None:
        """Raise StoreSchemaError for other vectors: a point is written as a whole, and they would be lost."""
        if self.others:
            what = f"{self.collection} has vectors besides {self.name!r}: {', '.join(self.others)}"
            raise StoreSchemaError(what, "Only a collection with one dense vector can be written to.")

    def vectors(self, dimension: int, outputs: Outputs) -> models.VectorParams | dict[str, models.VectorParams]:
        """Return the vectors of a new collection, dense like this one. Beside ColBERT the unnamed one is called ""."""
        dense = self.dense.model_copy(update={"size": dimension})
        named = {self.name: dense}
        if Outputs.COLBERT in outputs:
            named[COLBERT] = models.VectorParams(
                size=dimension,
                distance=models.Distance.COSINE,
                datatype=models.Datatype.FLOAT16,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
                hnsw_config=models.HnswConfigDiff(m=0),  # only to rank what another vector has found
                on_disk=True,
            )
        return dense if list(named) == [NO_VECTOR_NAME] else named


def create(
    client: QdrantClient,
    collection: str,
    like: models.CollectionInfo,
    layout: QdrantLayout,
    dimension: int,
    outputs: Outputs,
) -> None:
    """Create a collection with the settings of `like`, whose layout is given; its payload indexes are not made."""
    config, params = like.config, like.config.params
    client.create_collection(
        collection,
        layout.vectors(dimension, outputs),
        {SPARSE: models.SparseVectorParams()} if Outputs.SPARSE in outputs else None,
        shard_number=params.shard_number,
        replication_factor=params.replication_factor,
        write_consistency_factor=params.write_consistency_factor,
        on_disk_payload=params.on_disk_payload,
        hnsw_config=_as(models.HnswConfigDiff, config.hnsw_config),
        optimizers_config=_as(models.OptimizersConfigDiff, config.optimizer_config),
        wal_config=_as(models.WalConfigDiff, config.wal_config),
        quantization_config=config.quantization_config,
        strict_mode_config=_as(models.StrictModeConfig, config.strict_mode_config),
    )


def _as(kind: type[M], value: BaseModel | None) -> M | None:
    """Return what a server says of its settings in the form in which it takes them."""
    settings = value.model_dump(exclude_none=True) if value is not None else {}
    known = {name: part for name, part in settings.items() if name in kind.model_fields}
    return kind(**known) if known else None


def missing_indexes(info: models.CollectionInfo, like: models.CollectionInfo) -> tuple[str, ...]:
    """Return payload indexes by their field; `hnsw` while the server is at work on the first one, if `like` has one.

    A small collection never gets an HNSW index: the server searches it whole.
    """
    payload = tuple(name for name in like.payload_schema if name not in info.payload_schema)
    is_idle = info.status == models.CollectionStatus.GREEN
    if like.indexed_vectors_count and not info.indexed_vectors_count and info.points_count and not is_idle:
        return (*payload, "hnsw")
    return payload
