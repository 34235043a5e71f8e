"""What a collection consists of, and how one like it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from qdrant_client import QdrantClient, models

from vecferry.embeddings import Outputs
from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.backend import Fields, is_made_by_migration

M = TypeVar("M", bound=BaseModel)

SPARSE, COLBERT = "sparse", "colbert"
NO_VECTOR_NAME = ""


KEPT = "vecferry_kept"
"""In the metadata of a collection that was made here: names of heads that are the application's own vectors in it."""


@dataclass(frozen=True)
class QdrantLayout:
    """The vectors of a collection. heads: those of the model, in a collection that was made here.

    others, other_sparse: the application's further vectors, which are carried along. metadata: of the collection.
    """

    collection: str
    name: str
    dense: models.VectorParams
    heads: Outputs
    others: Mapping[str, models.VectorParams]
    other_sparse: Mapping[str, models.SparseVectorParams]
    metadata: Mapping[str, Any]
    is_sharded_by_key: bool

    @classmethod
    def of(cls, info: models.CollectionInfo, collection: str, fields: Fields) -> QdrantLayout:
        """Read a layout; the dense vector has the old name, or else the new one.

        Raises StoreSchemaError if there is no dense vector of these names.
        """
        params = info.config.params
        config = params.vectors or {}
        vectors: Mapping[str, models.VectorParams] = config if isinstance(config, dict) else {NO_VECTOR_NAME: config}
        sparse = params.sparse_vectors or {}
        names = (fields.vector, fields.new_vector)
        name = next((each for each in names if each is not None and each in vectors), fields.vector)
        dense = vectors.get(name)
        if dense is None or dense.multivector_config is not None:
            named = ", ".join(repr(other) for other in (*vectors, *sparse)) or "none"
            raise StoreSchemaError(f"{collection} has no dense vector {name!r}", f"Its vectors are: {named}.")
        metadata = info.config.metadata or {}
        ours = {SPARSE, COLBERT}.difference(metadata.get(KEPT, ())) if is_made_by_migration(collection) else set()
        heads = Outputs.DENSE
        heads |= Outputs.SPARSE if SPARSE in ours and SPARSE in sparse else Outputs(0)
        heads |= Outputs.COLBERT if COLBERT in ours and COLBERT in vectors else Outputs(0)
        own = {name, *heads.names}
        others = {other: params for other, params in vectors.items() if other not in own}
        other_sparse = {other: params for other, params in sparse.items() if other not in own}
        by_key = params.sharding_method == models.ShardingMethod.CUSTOM
        return cls(collection, name, dense, heads, others, other_sparse, metadata, by_key)

    @property
    def names(self) -> list[str]:
        return [self.name, *(head for head in (SPARSE, COLBERT) if head in self.heads.names)]

    @property
    def other_names(self) -> list[str]:
        return [*self.others, *self.other_sparse]

    @property
    def has_multivectors(self) -> bool:
        """Return whether points have vectors for each token beside the dense one."""
        return Outputs.COLBERT in self.heads or any(each.multivector_config for each in self.others.values())

    def check(self, outputs: Outputs, new_name: str) -> None:
        """Raise StoreSchemaError if there can be no collection like this one with these heads and that name."""
        heads = {SPARSE, COLBERT}.intersection(outputs.names)
        if taken := heads.union({new_name}).intersection(self.other_names):
            what = f"{self.collection} has a vector {min(taken)!r} of its own"
            hint = "Leave that head out." if min(taken) in heads else "Take another name for `new_vector`."
            raise StoreSchemaError(what, hint)
        if new_name in heads:
            what = f"the vector of {self.collection} is named {new_name}"
            raise StoreSchemaError(what, "That name is a head's: leave that head out, or set `new_vector`.")
        if self.is_sharded_by_key:
            raise StoreSchemaError(f"{self.collection} is sharded by keys", "A migration needs automatic sharding.")
        if self.dense.distance == models.Distance.MANHATTAN:
            raise StoreSchemaError(f"the metric of {self.collection} is Manhattan", "Cosine, Dot and Euclid will do.")
        datatype = self.dense.datatype
        if datatype not in (None, models.Datatype.FLOAT32, models.Datatype.FLOAT16):
            what = f"the vectors of {self.collection} are kept as {datatype.value}"
            raise StoreSchemaError(what, "Those of the new model need float32 or float16.")

    def vectors(
        self, dimension: int, outputs: Outputs, name: str
    ) -> models.VectorParams | dict[str, models.VectorParams]:
        """Return the vectors of a new collection, dense like this one. Beside others the unnamed one is called ""."""
        dense = self.dense.model_copy(update={"size": dimension})
        named = {name: dense, **self.others}
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

    def sparse_vectors(self, outputs: Outputs) -> dict[str, models.SparseVectorParams] | None:
        """Return the sparse vectors of a new collection; None for none."""
        ours = {SPARSE: models.SparseVectorParams()} if Outputs.SPARSE in outputs else {}
        return {**self.other_sparse, **ours} or None

    def new_metadata(self) -> dict[str, Any] | None:
        """Return the metadata of a new collection; None for none."""
        kept = sorted({SPARSE, COLBERT}.intersection(self.other_names))
        return {**{k: v for k, v in self.metadata.items() if k != KEPT}, **({KEPT: kept} if kept else {})} or None


def dense_vectors(info: models.CollectionInfo) -> dict[str, int]:
    """Return the dense vectors of a collection by name, one for each point, and how many numbers they have."""
    config = info.config.params.vectors or {}
    vectors: Mapping[str, models.VectorParams] = config if isinstance(config, dict) else {NO_VECTOR_NAME: config}
    return {name: params.size for name, params in vectors.items() if params.multivector_config is None}


def create(
    client: QdrantClient,
    collection: str,
    like: models.CollectionInfo,
    layout: QdrantLayout,
    dimension: int,
    outputs: Outputs,
    name: str,
) -> None:
    """Create a collection with the settings of `like`, whose layout is given; its payload indexes are not made.

    name: of the dense vector. Raises StoreFailed where the application's own vectors could not be told from heads.
    """
    config, params = like.config, like.config.params
    metadata = layout.new_metadata()
    client.create_collection(
        collection,
        layout.vectors(dimension, outputs, name),
        layout.sparse_vectors(outputs),
        shard_number=params.shard_number,
        replication_factor=params.replication_factor,
        write_consistency_factor=params.write_consistency_factor,
        on_disk_payload=params.on_disk_payload,
        hnsw_config=_as(models.HnswConfigDiff, config.hnsw_config),
        optimizers_config=_as(models.OptimizersConfigDiff, config.optimizer_config),
        wal_config=_as(models.WalConfigDiff, config.wal_config),
        quantization_config=config.quantization_config,
        strict_mode_config=_as(models.StrictModeConfig, config.strict_mode_config),
        metadata=metadata,
    )
    if metadata and KEPT in metadata and KEPT not in (client.get_collection(collection).config.metadata or {}):
        client.delete_collection(collection)
        kept = " and ".join(metadata[KEPT])
        raise StoreFailed("qdrant", f"it keeps no metadata, by which {kept} could be told from the new model's heads")


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
