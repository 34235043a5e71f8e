"""What the server sees of a runtime's runs, and that it takes nothing from the runtime."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch
from vecferry.encode.batching import Limits
from vecferry.encode.encoder import Encoder
from vecferry.encode.runtime import Runtime
from vecferry.model.artifact import VectorSpace
from vecferry.server.workers import WatchedRuntime

LENGTHS = [3, 9, 2, 5, 7, 4]
TOKENS = TokenBatch.from_lists([[0] * length for length in LENGTHS])


@dataclass
class Pipelined:
    """A double of a runtime on a device: packed, with three runs under way. under_way: how many were, at each end."""

    space: VectorSpace
    is_packed: bool = True
    depth: int = 3
    name: str = "double"
    begun: int = 0
    ended: int = 0
    under_way: list[int] = field(default_factory=list)

    def begin(self, batch: TokenBatch, outputs: Outputs) -> Callable[[], Embeddings]:
        self.begun += 1
        return partial(self._end, batch)

    def _end(self, batch: TokenBatch) -> Embeddings:
        self.under_way.append(self.begun - self.ended)
        self.ended += 1
        dense = np.eye(len(batch), self.space.dimension, dtype=np.float32)
        return Embeddings(self.space.fingerprint, batch.lengths, batch.truncated, dense, None, None)

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        raise AssertionError("a run that nobody else could be beside")

    def describe(self) -> dict[str, str]:
        return {}


@pytest.fixture
def space(library: Encoder) -> VectorSpace:
    return library.space


def test_a_runtime_that_is_watched_packs_and_has_several_runs_under_way(library: Encoder, space: VectorSpace) -> None:
    runtime, seen = Pipelined(space), list[tuple[int, int, int]]()
    watched = WatchedRuntime(runtime, lambda rows, padded, tokens, _: seen.append((rows, padded, tokens)))
    encoder = Encoder(library.tokenizer, watched, Limits(max_batch_tokens=10))
    ((_, embeddings),) = encoder.compute([encoder.prepare_tokens(TOKENS)])
    assert len(embeddings) == len(LENGTHS)
    assert seen == [(1, 9, 9), (1, 7, 7), (2, 9, 9), (2, 5, 5)], "four runs, none of them with padding"
    assert runtime.under_way == [3, 3, 2, 1]


def test_a_runtime_of_one_run_at_a_time_is_watched_as_it_is(library: Encoder) -> None:
    seen = list[tuple[int, int, int]]()
    real: Runtime = library.runtime
    watched = WatchedRuntime(real, lambda rows, padded, tokens, _: seen.append((rows, padded, tokens)))
    encoder = Encoder(library.tokenizer, watched, Limits(max_batch_rows=6))
    work = encoder.prepare_tokens(TokenBatch.from_lists([[0, 5, 2], [0, 5, 6, 2]]))
    ((_, embeddings),) = encoder.compute([work])
    np.testing.assert_array_equal(embeddings.num_tokens, [3, 4])
    assert (watched.is_packed, watched.depth) == (False, 1)
    assert seen == [(2, 8, 7)]
    assert encoder.encode(["a text"], outputs=DENSE).dense.shape == (1, encoder.dimension)
