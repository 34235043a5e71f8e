"""The further vectors of a point, which are carried along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from qdrant_client import models

VECTORS = "$vectors"
"""Where they stand in a point's payload here, by name; in Qdrant they stand beside it."""
TOLERANCE = 1e-6  # float32; with the cosine metric Qdrant divides by the length once more with each write


class KeptVectors(dict[str, Any]):
    """Vectors by name, as the client returns them. Equal if they have the same names and the same numbers.

    The same within rounding, since Qdrant makes the length of some 1 again.
    """

    __hash__ = None  # as a dict

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mapping)
            and self.keys() == other.keys()
            and all(_is_alike(vector, other[name]) for name, vector in self.items())
        )

    def __ne__(self, other: object) -> bool:
        return not self == other


def _is_alike(a: Any, b: Any) -> bool:
    if isinstance(a, models.SparseVector) and isinstance(b, models.SparseVector):
        first, second = (dict(zip(each.indices, each.values, strict=True)) for each in (a, b))
        return first.keys() == second.keys() and _is_alike([*first.values()], [second[id_] for id_ in first])
    one, other = np.asarray(a), np.asarray(b)
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE))
