"""A model that says how far it is in a long list of texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vecferry.embeddings import DENSE, Embeddings, Outputs
from vecferry.encode.encoder import Role, TextEncoder
from vecferry.model.artifact import VectorSpace

PART_S = 1.0
"""How long a part takes, as far as the one before it says."""
FIRST_TEXTS = 16
FASTER = 4
"""Times as many texts as in the part before, at most."""


class PartwiseEncoder(TextEncoder):
    """Another encoder, asked for parts of about a second each. tell: called after each part but the last, with the
    texts that are done; it costs a fast model nothing, since a second's worth of texts fills its batches.
    """

    def __init__(self, encoder: TextEncoder, tell: Callable[[int], None]) -> None:
        self._encoder, self._tell, self._size = encoder, tell, FIRST_TEXTS

    @property
    def space(self) -> VectorSpace:
        return self._encoder.space

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode as the other does; a position in an error is one in a part."""
        parts, done = list[Embeddings](), 0
        while done < len(texts) or not parts:
            began, part = time.monotonic(), texts[done : done + self._size]
            parts.append(self._encoder.encode(part, outputs=outputs, role=role))
            done += len(part)
            self._fit(len(part), time.monotonic() - began)
            if done < len(texts):
                self._tell(done)
        return Embeddings.concat(parts)

    def _fit(self, texts: int, seconds: float) -> None:
        fitting = int(texts * PART_S / max(seconds, 1e-6))
        self._size = max(1, min(fitting, FASTER * self._size))
