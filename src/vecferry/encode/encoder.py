"""Texts to embeddings: tokenise, plan, run, restore the order. Where tokens, batches and runtime meet."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import DENSE, Embeddings, Outputs, TokenBatch, require_heads
from vecferry.encode.batching import MB, Limits, plan, plan_packed
from vecferry.encode.device_limits import DeviceLimits
from vecferry.encode.memory import predicted_bytes
from vecferry.encode.runtime import Runtime, begin, depth_of, is_packed
from vecferry.errors import NotPicklable, OutOfMemory, OverMemoryBudget, SpaceMismatch, VectorUnusable
from vecferry.model.artifact import VectorSpace
from vecferry.model.prompts import Role as Role
from vecferry.model.spec import EncoderSpec
from vecferry.model.texts import iterate_texts, require_texts
from vecferry.precisions import Mark

if TYPE_CHECKING:
    from vecferry.encode.cache import Cache

T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[int, int], None]
Rows = NDArray[np.intp]
log = logging.getLogger("vecferry")

TEXTS_EACH = 1024
"""How many texts are tokenised at a time, at least; those to come while the runtime is busy with the ones before."""


class TextEncoder(Protocol):
    """What applications, migrations and integrations need of an encoder: `Encoder`, or one on a server."""

    @property
    def space(self) -> VectorSpace: ...

    @property
    def fingerprint(self) -> str:
        return self.space.fingerprint

    @property
    def dimension(self) -> int:
        return self.space.dimension

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings: ...


class SharedCopy:
    """What is safe to share: a copy, also a deep one, is the same object."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self


class TextTokenizer(Protocol):
    """The tokenizer before a runtime: `tokens.Tokenizer`, or the lightweight mode's."""

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        """Return the token ids of each text. Raises EmptyInput and InvalidText."""


class Encoder(SharedCopy, TextEncoder):
    """A model with its tokenizer, thread-safe and synchronous; `Encoder.open` and `load_encoder` make one.

    A pickle has its folder and options, never its weights: they are opened where it is used, in the same vector space.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        runtime: Runtime,
        limits: Limits | DeviceLimits | None = None,
        *,
        spec: EncoderSpec | None = None,
        cache: Cache | None = None,
        reopen: Callable[[], Encoder] | None = None,
        index: Mark | None = None,
    ) -> None:
        """Combine the parts. spec: predicts a run's memory; without it there is no budget. cache: looked up first.

        limits: `Limits()` by default, or what was measured of a device. Where a run of several texts is out of memory,
        its batch is halved, and `limits` with it.
        reopen: opens the same encoder in another process, for pickles, in which it is. index: of an index that the
        vectors are for; in a role in which they may not be used with it nothing is encoded.
        """
        self.tokenizer = tokenizer
        self.device_limits = limits if isinstance(limits, DeviceLimits) else None
        self.limits = limits.limits() if isinstance(limits, DeviceLimits) else limits or Limits()
        self._spec = spec
        self._cache = cache
        self._reopen = reopen
        self.index = index
        self.runtime = runtime

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            remedy = "Encoder.open and load_encoder give one that can be."
            raise NotPicklable("this Encoder", "it was combined of parts that have no address", remedy)
        return _ReopenedEncoder, (self._reopen, self.space.key)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, threads: int | None = None) -> Encoder:
        """Open a converted model with ONNX Runtime, and with nothing else.

        path: the folder that `convert_checkpoint` wrote. threads: processors to use; None is all that this process
        may. `load_encoder` also knows fallbacks, limits and a cache. Raises ArtifactError, ModelRuntimeError.
        """
        from vecferry.encode.loading import EncoderOptions, load_runtime

        return load_runtime(EncoderOptions(artifact=Path(path), threads=threads), "onnx")

    @property
    def space(self) -> VectorSpace:
        return self.runtime.space

    @property
    def max_positions(self) -> int | None:
        """How many tokens the architecture could read; `space.max_tokens` may be fewer. None where it is not known."""
        return None if self._spec is None else self._spec.positions - self._spec.first_position

    def encode(
        self,
        texts: Sequence[str],
        *,
        outputs: Outputs = DENSE,
        role: Role = "passage",
        progress: Progress | None = None,
    ) -> Embeddings:
        """Encode texts, in the order given; equal texts are computed once and have equal results.

        dense: float32 [len(texts), dimension], unit length where the model normalises. sparse: CSR,
        the maximum weight per token id. colbert: per text float32 [tokens - 1, dimension].
        role: which of the model's prefixes goes before each text (BGE-M3 has none).
        progress: called with (texts done, texts in all) after each batch.
        Texts over `space.max_tokens` are cut, and counted in `Embeddings.num_truncated`.
        Raises EmptyInput, WrongInputType, InvalidText, HeadUnavailable before anything is computed; OverMemoryBudget
        for a text that alone is over the budget; RuntimeFailed with the batch's shape; OutOfMemory for a text for which
        alone there is no room; VectorUnusable
        with the text's position where its vector is not finite, or zero.
        """
        require_heads(outputs, self.space.outputs)
        texts = require_texts(texts)
        distinct, places = _distinct(texts)
        counts, rows = np.bincount(places), _first_rows(places)
        parts, slices = [], [slice(at, at + self._texts_each) for at in range(0, len(distinct), self._texts_each)]
        prepared = _ahead(lambda part: self._prepare(distinct[part], rows[part], outputs, role), slices)
        for part, work in zip(slices, prepared, strict=True):
            so_far = _Counting(progress, int(counts[: part.start].sum()), counts[part], len(texts))
            parts.append(self._alone(work, so_far))
        return Embeddings.concat(parts).take(places)

    def encode_iter(
        self, texts: Iterable[str], *, outputs: Outputs = DENSE, role: Role = "passage", texts_each: int | None = None
    ) -> Generator[Embeddings, None, None]:
        """Encode a corpus that does not fit in memory: yield embeddings of `texts_each` texts at a time.

        texts_each: by default 1,024, and on a GPU as many as a batch may have. `texts` may be a generator; it is read
        that many ahead. Equal texts are computed once among those that come together, and once in all where there is a
        cache. Raises as `encode` does; positions count from the first text of all.
        """
        require_heads(outputs, self.space.outputs)
        return self._encode_chunks(chunks(texts, texts_each or self._texts_each), outputs, role)

    @property
    def _texts_each(self) -> int:
        return max(TEXTS_EACH, self.limits.max_batch_rows)

    def _encode_chunks(
        self, parts: Iterator[tuple[int, list[str]]], outputs: Outputs, role: Role
    ) -> Generator[Embeddings, None, None]:
        def prepare(chunk: tuple[int, list[str]]) -> Work:
            distinct, places = _distinct(require_texts(chunk[1], first_row=chunk[0]))
            return self._prepare(distinct, chunk[0] + _first_rows(places), outputs, role, places)

        for work in _ahead(prepare, parts):
            yield self._alone(work, _Counting())

    # --- the two halves: before the runtime, and the runtime ------------------------------------------

    def prepare(
        self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage", first_row: int = 0
    ) -> Work:
        """Prepare texts for `compute`: `encode` up to the runtime. Raises what `encode` raises before it.

        first_row: the number of the first text, where these are a part of some.
        """
        require_heads(outputs, self.space.outputs)
        texts = require_texts(texts)
        distinct, places = _distinct(texts)
        return self._prepare(distinct, first_row + _first_rows(places), outputs, role, places)

    def prepare_tokens(self, tokens: TokenBatch, *, outputs: Outputs = DENSE, first_row: int = 0) -> Work:
        """Prepare texts that are token ids already, special tokens included; no cache is asked."""
        require_heads(outputs, self.space.outputs)
        everything = np.arange(len(tokens))
        work = Work((), outputs, [None] * len(tokens), everything, tokens, everything, first_row + everything)
        return self._checked_budget(work)

    def compute(
        self,
        works: Sequence[Work],
        *,
        is_wanted: Callable[[int], bool] = lambda _: True,
        done: Callable[[int, NDArray[np.intp]], None] = lambda _, __: None,
    ) -> Iterator[tuple[int, Embeddings]]:
        """Yield (number of the work, its embeddings) as soon as its last text is done; one plan serves all of them.

        The works have the same outputs. is_wanted: asked before each run; what is not wanted any more is left out and
        never comes. done: called with (number of the work, its texts) after each run. Raises RuntimeFailed,
        OutOfMemory, VectorUnusable; works that have not come by then have no embeddings.
        """
        gathered = [_Gathered(work) for work in works]
        for number, work in enumerate(works):
            done(number, np.flatnonzero([hit is not None for hit in work.cached]))
            if gathered[number].is_complete:
                yield number, gathered[number].embeddings()
        waiting = [number for number, work in enumerate(works) if work.tokens is not None]
        if not waiting:
            return
        tokens = TokenBatch.concat([works[number].tokens_there for number in waiting])
        owners = np.repeat(waiting, [len(works[number].missing) for number in waiting])  # [M]
        rows = np.concatenate([works[number].missing for number in waiting])  # [M]

        def wanted(rows: Rows) -> Rows:
            return rows[[is_wanted(owner) for owner in owners[rows]]]

        for batch, computed in self._runs(tokens, works[0].outputs, wanted):
            for number in np.unique(owners[batch]):
                own = np.flatnonzero(owners[batch] == number)
                part, texts = computed.take(own), rows[batch[own]]
                for text, defect in part.defects().items():
                    raise VectorUnusable(int(works[number].rows[texts[text]]), defect)
                self._keep(works[number], texts, part)
                done(number, texts)
                gathered[number].add(texts, part)
                if gathered[number].is_complete:
                    yield int(number), gathered[number].embeddings()

    def _runs(
        self, tokens: TokenBatch, outputs: Outputs, wanted: Callable[[Rows], Rows]
    ) -> Iterator[tuple[Rows, Embeddings]]:
        """Yield (rows, their embeddings), run by run; `wanted` leaves rows out before each begins.

        A runtime that can has the next runs under way meanwhile.

        A run of several texts that is out of memory is repeated in halves, and what is left is planned anew.
        """
        waiting = deque(self._plan(tokens.lengths, outputs))
        under_way = deque[tuple[Rows, Callable[[], Embeddings]]]()
        depth = depth_of(self.runtime)
        while waiting or under_way:
            while waiting and len(under_way) < depth:
                if len(batch := wanted(waiting.popleft())):
                    under_way.append((batch, begin(self.runtime, tokens.take(batch), outputs)))
            if not under_way:
                return
            batch, embeddings = under_way.popleft()
            try:
                computed = embeddings()
            except OutOfMemory as exc:
                left = np.concatenate([batch, *waiting])
                self._halve(tokens.lengths[batch], exc)
                waiting = deque(left[rows] for rows in self._plan(tokens.lengths[left], outputs))
                continue
            yield batch, computed

    def _halve(self, lengths: NDArray[np.integer], cause: OutOfMemory) -> None:
        """Allow half of what did not fit, from now on. Raises the cause where that was one text."""
        if len(lengths) == 1:
            raise cause
        tokens = int(lengths.max()) * len(lengths)
        if is_packed(self.runtime):
            tokens = int(lengths.sum())
        max_tokens = max(min(self.limits.max_batch_tokens, tokens // 2), 1)
        self.limits = replace(self.limits, max_batch_tokens=max_tokens)
        log.warning("%s Batches have %d tokens at most from now on, not %d.", cause.message, max_tokens, tokens)

    def _alone(self, work: Work, counting: _Counting) -> Embeddings:
        ((_, embeddings),) = self.compute([work], done=lambda _, rows: counting.add(rows))
        return embeddings

    def _prepare(
        self,
        texts: Sequence[str],
        rows: NDArray[np.intp],
        outputs: Outputs,
        role: Role,
        places: NDArray[np.intp] | None = None,
    ) -> Work:
        """Look distinct and valid texts up in the cache, and tokenise the others."""
        if self.index is not None:
            self.space.mark(outputs).require(self.index, role, "the model")
        prefix = self.space.prefix(role)
        full = [prefix + text for text in texts]
        mark = Mark(self.fingerprint, self.space.form(outputs))
        hits = self._cache.find(mark, full, outputs, self.dimension) if self._cache else [None] * len(texts)
        missing = np.array([i for i, hit in enumerate(hits) if hit is None], np.intp)
        tokens = self.tokenizer([texts[i] for i in missing], prefix) if len(missing) else None
        places = np.arange(len(texts)) if places is None else places
        return self._checked_budget(Work(full, outputs, hits, missing, tokens, places, rows))

    def _keep(self, work: Work, texts: NDArray[np.intp], part: Embeddings) -> None:
        if self._cache and work.texts:
            self._cache.keep([work.texts[i] for i in texts], part)

    def _checked_budget(self, work: Work) -> Work:
        """Return the work if its longest text fits. Raises OverMemoryBudget."""
        if self._spec is not None and work.tokens is not None:
            longest, allowed_mb = int(work.tokens.lengths.max()), self.limits.memory_budget_mb
            predicted = predicted_bytes(self._spec, 1, longest, outputs=work.outputs, padded=False)
            if (predicted_mb := -(-predicted // MB)) > allowed_mb:
                raise OverMemoryBudget(self.runtime.name, 1, longest, predicted_mb, allowed_mb)
        return work

    def _plan(self, lengths: NDArray[np.integer], outputs: Outputs) -> list[NDArray[np.intp]]:
        if is_packed(self.runtime):
            return plan_packed(lengths, self.limits)
        bytes_of = None if self._spec is None else partial(predicted_bytes, self._spec, outputs=outputs)
        return plan(lengths, self.limits, bytes_of)


class _ReopenedEncoder(Encoder):
    """An encoder out of a pickle, which is opened when one of its parts is first needed."""

    def __init__(self, reopen: Callable[[], Encoder], key: str) -> None:
        self._reopen, self._expected, self._opening = reopen, key, threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _ReopenedEncoder, (self._reopen, self._expected)

    def __getattr__(self, name: str) -> Any:
        """Open the parts; called for what is not there yet. Raises SpaceMismatch, and as `load_encoder`."""
        if name not in PARTS:
            raise AttributeError(f"an Encoder has no attribute {name!r}")
        with self._opening:
            if name not in vars(self):
                vars(self).update(self._opened_parts())
        return vars(self)[name]

    def _opened_parts(self) -> dict[str, Any]:
        assert self._reopen is not None
        encoder = self._reopen()
        if encoder.space.key != self._expected:
            raise SpaceMismatch(expected=self._expected, found=encoder.space.key, where="the model of a pickle")
        return {part: getattr(encoder, part) for part in PARTS}


PARTS = ("tokenizer", "runtime", "limits", "device_limits", "_spec", "_cache", "index")
"""Of an `Encoder`: what it is combined of."""


@dataclass(frozen=True)
class Work:
    """Texts on their way to the runtime, distinct ones: N of them.

    texts: with their prefix; none where token ids were given. cached: of each its embeddings, if the cache had them.
    missing: int [M], which had none. tokens: of those; None if M is 0. places: int [texts asked for], of each its
    number among the N. rows: int [N], of each where the caller has it first.
    """

    texts: Sequence[str]
    outputs: Outputs
    cached: Sequence[Embeddings | None]
    missing: NDArray[np.intp]
    tokens: TokenBatch | None
    places: NDArray[np.intp]
    rows: NDArray[np.intp]

    @property
    def num_tokens(self) -> int:
        """The tokens that are left to compute."""
        return 0 if self.tokens is None else len(self.tokens.ids)

    @property
    def tokens_there(self) -> TokenBatch:
        assert self.tokens is not None, "nothing is missing"
        return self.tokens

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text of the request, those of equal texts each time."""
        lengths = np.array([0 if hit is None else hit.num_tokens[0] for hit in self.cached])
        if self.tokens is not None:
            lengths[self.missing] = self.tokens.lengths
        return lengths[self.places]

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each text of the request is longer than the model's limit, bool [texts]."""
        is_truncated = np.array([hit is not None and hit.num_truncated > 0 for hit in self.cached])
        if self.tokens is not None:
            is_truncated[self.missing] = self.tokens.truncated
        return is_truncated[self.places]


class _Gathered:
    """Parts of a work's embeddings, until all of its texts are there."""

    def __init__(self, work: Work) -> None:
        self._places = work.places
        self._missing = len(work.cached)
        self._rows: list[NDArray[np.intp]] = []
        self._parts: list[Embeddings] = []
        for row, hit in enumerate(work.cached):
            if hit is not None:
                self.add(np.array([row]), hit)

    def add(self, rows: NDArray[np.intp], part: Embeddings) -> None:
        self._rows.append(rows)
        self._parts.append(part)
        self._missing -= len(rows)

    @property
    def is_complete(self) -> bool:
        return self._missing == 0

    def embeddings(self) -> Embeddings:
        """Return the embeddings in the order of the request."""
        order = np.argsort(np.concatenate(self._rows))
        return Embeddings.concat(self._parts).take(order[self._places])


class _Counting:
    """The number of texts that are done, for `progress`. counts: how often each of the texts occurs."""

    def __init__(
        self,
        progress: Progress | None = None,
        done: int = 0,
        counts: NDArray[np.intp] | None = None,
        total: int = 0,
    ) -> None:
        self._progress, self._done, self._counts, self._total = progress, done, counts, total

    def add(self, rows: NDArray[np.intp]) -> None:
        if self._progress is None or self._counts is None or not len(rows):
            return
        self._done += int(self._counts[rows].sum())
        self._progress(self._done, self._total)


def _distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """Return the distinct texts in the order of their first occurrence, and for each text its place among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), np.array([places[text] for text in texts], np.intp)


def _first_rows(places: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return where each of the distinct texts occurs first."""
    return np.unique(places, return_index=True)[1]


def chunks(texts: Iterable[str], size: int = TEXTS_EACH) -> Iterator[tuple[int, list[str]]]:
    """Iterate over (number of texts before, up to `size` texts, unchecked). Raises WrongInputType at once."""
    return _chunks(iterate_texts(texts), size)


def _chunks(remaining: Iterator[str], size: int) -> Iterator[tuple[int, list[str]]]:
    done = 0
    while chunk := list(islice(remaining, size)):
        yield done, chunk
        done += len(chunk)


def _ahead(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield function(item) of each, in order; the next is under way in a thread while the caller has this one.

    Items are read by the caller's thread. An error comes where its item would have come.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="vecferry-tokens") as pool:  # starts no thread for a single item
        for first in islice(remaining, 1):
            current = function(first)
            for item in remaining:
                following = pool.submit(function, item)
                yield current
                current = following.result()
            yield current
