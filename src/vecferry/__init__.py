"""Move an application from all-MiniLM-L6-v2 embeddings to BGE-M3 on ONNX Runtime, stored vectors included.

Names are loaded when they are first used, so that `import vecferry` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vecferry.conversion.convert import convert
    from vecferry.embeddings import Embeddings, Outputs, colbert_scores, dense_scores, hybrid_scores, lexical_scores
    from vecferry.encode.encoder import Encoder
    from vecferry.encode.loading import Options, load_encoder
    from vecferry.errors import VecferryError
    from vecferry.model.artifact import Artifact

_HOME = {
    "Artifact": "model.artifact",
    "Embeddings": "embeddings",
    "Encoder": "encode.encoder",
    "Options": "encode.loading",
    "Outputs": "embeddings",
    "VecferryError": "errors",
    "colbert_scores": "embeddings",
    "convert": "conversion.convert",
    "dense_scores": "embeddings",
    "hybrid_scores": "embeddings",
    "lexical_scores": "embeddings",
    "load_encoder": "encode.loading",
}

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Embeddings",
    "Encoder",
    "Options",
    "Outputs",
    "VecferryError",
    "colbert_scores",
    "convert",
    "dense_scores",
    "hybrid_scores",
    "lexical_scores",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vecferry' has no attribute {name!r}")
    return getattr(import_module(f"vecferry.{_HOME[name]}"), name)
