"""Move an application from all-MiniLM-L6-v2 embeddings to BGE-M3 on ONNX Runtime, stored vectors included.

Names are loaded when they are first used, so that `import vecferry` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vecferry.conversion.convert import convert_checkpoint
    from vecferry.embeddings import Embeddings, Outputs, colbert_scores, dense_scores, hybrid_scores, lexical_scores
    from vecferry.encode.batching import Limits
    from vecferry.encode.client import RemoteEncoder
    from vecferry.encode.encoder import Encoder
    from vecferry.encode.loading import EncoderOptions, load_encoder
    from vecferry.errors import VecferryError
    from vecferry.evaluate.evaluation import run_evaluation
    from vecferry.migrate.migration import Migration
    from vecferry.migrate.router import Router
    from vecferry.migrate.values import MigrationOptions
    from vecferry.model.artifact import Artifact
    from vecferry.model.sources import Checkpoint, open_source
    from vecferry.stores.opening import open_store

_HOME = {
    "Artifact": "model.artifact",
    "Checkpoint": "model.sources",
    "Embeddings": "embeddings",
    "Encoder": "encode.encoder",
    "EncoderOptions": "encode.loading",
    "Limits": "encode.batching",
    "Migration": "migrate.migration",
    "MigrationOptions": "migrate.values",
    "Outputs": "embeddings",
    "RemoteEncoder": "encode.client",
    "Router": "migrate.router",
    "VecferryError": "errors",
    "colbert_scores": "embeddings",
    "convert_checkpoint": "conversion.convert",
    "dense_scores": "embeddings",
    "hybrid_scores": "embeddings",
    "lexical_scores": "embeddings",
    "load_encoder": "encode.loading",
    "open_source": "model.sources",
    "open_store": "stores.opening",
    "run_evaluation": "evaluate.evaluation",
}

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Checkpoint",
    "Embeddings",
    "Encoder",
    "EncoderOptions",
    "Limits",
    "Migration",
    "MigrationOptions",
    "Outputs",
    "RemoteEncoder",
    "Router",
    "VecferryError",
    "colbert_scores",
    "convert_checkpoint",
    "dense_scores",
    "hybrid_scores",
    "lexical_scores",
    "load_encoder",
    "open_source",
    "open_store",
    "run_evaluation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vecferry' has no attribute {name!r}")
    return getattr(import_module(f"vecferry.{_HOME[name]}"), name)
