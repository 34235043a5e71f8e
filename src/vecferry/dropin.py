"""The functions that applications already call, on the encoder that the settings choose.

The encoder is loaded at the first call, once for all threads, anew in a forked child, and again after
a load that failed. Settings are read at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from vecferry.embeddings import Float32
from vecferry.encode.encoder import Role
from vecferry.encode.loading import LazyEncoder, Loaded, load_encoder, peek_dimension
from vecferry.settings import read_settings


def _load_by_settings() -> Loaded:
    return load_encoder(read_settings().options())


_default = LazyEncoder(_load_by_settings)


def encode_text(text: str | Sequence[str], *, role: Role = "passage") -> Float32:
    """Encode one text or many.

    A string gives float32 [dimension]; a list, an array or a column gives float32 [len(text), dimension], one vector
    per text.

    The dimension is 1,024 for BGE-M3; vectors have unit length. Raises VecferryError.
    """
    if isinstance(text, str):
        vector: Float32 = encode_texts([text], role=role)[0]
        return vector
    return encode_texts(text, role=role)


def encode_texts(texts: Sequence[str], *, role: Role = "passage") -> Float32:
    """Encode texts to float32 [len(texts), dimension], in the order given. Raises VecferryError."""
    return _default.get().encoder.encode(texts, role=role).dense


def get_embedding_dimension() -> int:
    """Return the numbers in a vector, from the converted model's manifest where there is one, else from the model."""
    return peek_dimension(read_settings().options()) or _default.get().encoder.dimension


def active() -> Loaded:
    """Return the encoder in use, and the reason: `active().encoder.runtime.name`, `active().reason`."""
    return _default.get()
