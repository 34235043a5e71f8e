"""What a sample of passages tells of the texts and the spaces, whatever is asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from vecferry.embeddings import Embeddings, Float32, Int64
from vecferry.errors import EmptyInput
from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.ranking import Ranked, concat, ranked
from vecferry.evaluate.values import CorpusFinding

NEIGHBOURS = 10
NEAR = 0.99
UNUSUAL_Z = -4.0
MIN_SPREAD = 0.001
"""Of cosines: where all are alike, a smaller difference is no sign of anything."""
MIN_FOR_OUTLIERS = 50
EXAMPLES = 5
MAX_CHARS = 400
"""Of a text that is shown."""
ROWS_EACH = 512


@dataclass(frozen=True)
class Sampled:
    """The same passages under both models, with dense vectors of unit length.

    max_tokens: what a model reads of a text at most.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    old: Embeddings
    new: Embeddings
    old_name: str
    new_name: str
    old_max_tokens: int
    new_max_tokens: int

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.texts) == len(self.old) == len(self.new)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Int64) -> Sampled:
        """Take the given passages, in the given order."""
        ids, texts = (tuple(column[row] for row in rows) for column in (self.ids, self.texts))
        old, new = self.old.take(rows), self.new.take(rows)
        return Sampled(ids, texts, old, new, self.old_name, self.new_name, self.old_max_tokens, self.new_max_tokens)


def look_at(sampled: Sampled) -> tuple[CorpusFinding, ...]:
    """Return five findings: hidden by truncation, duplicates, near duplicates, outliers, empty neighbourhoods.

    The order is always this. A finding of nothing has count 0 and says so. The last three are about distinct texts,
    as an equal text would be everyone's nearest. Raises EmptyInput for no passages, and NotEncoded without dense
    vectors.
    """
    if not len(sampled):
        raise EmptyInput
    first = _first_with_the_text(sampled.texts)
    distinct = sampled.take(np.unique(first))
    new = _neighbours(distinct.new.dense)
    return (
        _hidden_by_truncation(sampled),
        _duplicates(sampled, first),
        _near_duplicates(distinct, new),
        _outliers(distinct, new),
        _empty_neighbourhoods(distinct, _times_found(new), _times_found(_neighbours(distinct.old.dense))),
    )


# --- texts ----------------------------------------------------------------------------------------


def _hidden_by_truncation(sampled: Sampled) -> CorpusFinding:
    old, new = sampled.old, sampled.new
    rows = np.flatnonzero(old.truncated & ~new.truncated)
    message = (
        f"{_of(len(rows), len(sampled))} cut by the old model and read whole by the new ({sampled.old_name} reads "
        f"{sampled.old_max_tokens:,} tokens, {sampled.new_name} {sampled.new_max_tokens:,}); "
        f"{_count_is(new.num_truncated)} cut even by the new."
    )
    unread = _unread_share(old, new)
    examples = (
        (row, f"{_part(unread[row], len(sampled.texts[row]))}; {new.num_tokens[row]:,} tokens to the new model")
        for row in rows[np.argsort(-new.num_tokens[rows], kind="stable")]
    )
    return _finding("hidden by truncation", sampled, len(rows), message, examples)


def _unread_share(old: Embeddings, new: Embeddings) -> Float64:
    """Return the share [N] of each text that the old model did not see; 0 where it cannot be told.

    An estimate: how many tokens of the old model one of the new is worth is the median of the texts that both read
    whole.
    """
    old_tokens, new_tokens = np.maximum(old.num_tokens, 1), np.maximum(new.num_tokens, 1)
    whole = ~old.truncated & ~new.truncated
    if not whole.any():
        return np.zeros(len(old))
    old_per_new = float(np.median(old_tokens[whole] / new_tokens[whole]))
    share: Float64 = np.maximum(0.0, 1 - old_tokens / (new_tokens * old_per_new))
    return share


def _part(share: float, characters: int) -> str:
    unread = round(share * characters)
    part = f"about {unread:,} of {characters:,} characters" if unread else f"the end of {characters:,} characters"
    return f"the old model never saw {part}"


def _first_with_the_text(texts: Sequence[str]) -> Int64:
    """Return, for each text, the number of the first that equals it, white space around it aside."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(text.strip(), number) for number, text in enumerate(texts)], np.int64)


def _duplicates(sampled: Sampled, first: Int64) -> CorpusFinding:
    rows = np.flatnonzero(first < np.arange(len(first)))
    message = f"{_of(len(rows), len(sampled))} the same, word for word, as an earlier one."
    examples = ((row, f"the same text as {sampled.ids[first[row]]}") for row in rows)
    return _finding("duplicates", sampled, len(rows), message, examples)


# --- neighbours -----------------------------------------------------------------------------------


def _neighbours(vectors: Float32) -> Ranked:
    """Return the ten nearest others of each vector, fewer where there are fewer; one block of cosines at a time."""
    k = min(NEIGHBOURS, len(vectors) - 1)
    parts = []
    for at in range(0, len(vectors), ROWS_EACH):
        cosines = vectors[at : at + ROWS_EACH] @ vectors.T  # [rows, N]
        own = np.arange(len(cosines))
        cosines[own, at + own] = -np.inf
        parts.append(ranked(cosines, k))
    return concat(parts)


def _nearest_cosine(neighbours: Ranked) -> Float32:
    """Return float32 [N]; -1 for a passage that is alone."""
    nearest: Float32 = neighbours.scores.max(axis=1, initial=-1.0)
    return nearest


def _near_duplicates(distinct: Sampled, new: Ranked) -> CorpusFinding:
    cosine = _nearest_cosine(new)
    rows = np.flatnonzero(cosine >= NEAR)
    description = f"nearly the same as another in other words (cosine of {NEAR} or more in the new space)"
    message = f"{_of(len(rows), len(distinct))} {description}."
    pairs: dict[frozenset[int], int] = {}
    for row in rows[np.argsort(-cosine[rows], kind="stable")].tolist():
        pairs.setdefault(frozenset((row, int(new.passages[row, 0]))), row)
    examples = ((row, f"cosine {cosine[row]:.3f} with {distinct.ids[new.passages[row, 0]]}") for row in pairs.values())
    return _finding("near duplicates", distinct, len(rows), message, examples)


def _outliers(distinct: Sampled, new: Ranked) -> CorpusFinding:
    """Find outliers by the modified z-score (Iglewicz and Hoaglin, 1993) of the cosine to the nearest passage.

    Near duplicates do not count towards what is usual, or a corpus of templates would make every other text strange.
    """
    cosine = _nearest_cosine(new).astype(np.float64)
    usual = cosine[cosine < NEAR]
    if len(usual) < MIN_FOR_OUTLIERS:
        message = f"Outliers are not looked for in fewer than {MIN_FOR_OUTLIERS} passages that have no near duplicate."
        return _finding("outliers", distinct, 0, message, ())
    middle = float(np.median(usual))
    spread = max(float(np.median(np.abs(usual - middle))), MIN_SPREAD)
    rows = np.flatnonzero(0.6745 * (cosine - middle) < UNUSUAL_Z * spread)
    description = f"unusually far from every other in the new space (the median cosine to the nearest is {middle:.2f})"
    message = f"{_of(len(rows), len(distinct))} {description}."
    examples = (
        (row, f"cosine {cosine[row]:.3f} with the nearest, {distinct.ids[new.passages[row, 0]]}")
        for row in rows[np.argsort(cosine[rows], kind="stable")]
    )
    return _finding("outliers", distinct, len(rows), message, examples)


def _times_found(neighbours: Ranked) -> Int64:
    """Return int64 [N]: of how many others each passage is among the nearest."""
    return np.bincount(neighbours.passages.ravel(), minlength=len(neighbours))


def _empty_neighbourhoods(distinct: Sampled, new: Int64, old: Int64) -> CorpusFinding:
    """Find anti-hubs and the largest hub (Radovanović, Nanopoulos and Ivanović, JMLR 11, 2010).

    Examples: those that most others led to in the old space come first.
    """
    if len(distinct) <= NEIGHBOURS + 1:
        message = f"Empty neighbourhoods are not looked for in fewer than {NEIGHBOURS + 2} distinct passages."
        return _finding("empty neighbourhoods", distinct, 0, message, ())
    rows = np.flatnonzero(new == 0)
    hub = int(new.argmax())
    message = (
        f"{_of(len(rows), len(distinct))} among the {NEIGHBOURS} nearest of no other in the new space, and "
        f"{_count_is(int((old == 0).sum()))} in the old; the passage found most often, {distinct.ids[hub]}, "
        f"is among those of {new[hub]:,} others, against {old.max():,} in the old space."
    )
    examples = (
        (row, f"among the {NEIGHBOURS} nearest of {old[row]:,} others in the old space")
        for row in rows[np.argsort(-old[rows], kind="stable")]
    )
    return _finding("empty neighbourhoods", distinct, len(rows), message, examples)


# --- words ----------------------------------------------------------------------------------------


def _finding(
    name: str, sampled: Sampled, count: int, message: str, examples: Iterable[tuple[int | np.int64, str]]
) -> CorpusFinding:
    """Build a finding. examples: (row, note), of which the first five are kept."""
    shown = [(sampled.ids[row], sampled.texts[row][:MAX_CHARS], note) for row, note in islice(examples, EXAMPLES)]
    return CorpusFinding(name, count, len(sampled), message, tuple(shown))


def _of(count: int, total: int) -> str:
    """Begin a sentence: "None of 20 passages is", "3 of 20 passages are"."""
    return f"{f'{count:,}' if count else 'None'} of {total:,} {'passage' if total == 1 else 'passages'} {_be(count)}"


def _count_is(count: int) -> str:
    """Return a count within a sentence: "none is", "3 are"."""
    return f"{f'{count:,}' if count else 'none'} {_be(count)}"


def _be(count: int) -> str:
    return "is" if count < 2 else "are"
