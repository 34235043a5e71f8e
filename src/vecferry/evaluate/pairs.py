"""Questions made of the passages themselves, where nobody has judged any: weaker evidence, and named so.

A sentence should find the passage that it stands in, a title its text. Such questions share words with what they look
for, so that any model finds most of them; what they show is a model that is broken, or blind to a language or to what
stands late in a text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vecferry.evaluate.ranking import NONE, Ranked
from vecferry.evaluate.values import JudgedQueries, Judgement, Passage, Question

MIN_CHARS, MAX_CHARS = 15, 300
MAX_SHARE = 0.6
"""Of its passage that a question may be; a whole text finds itself."""
ENDS = re.compile(r"(?<=[.!?؟।])\s+|(?<=[。！？])|\n+")


@dataclass(frozen=True)
class Pair:
    """A question taken from a passage. needle: what every passage that is as good as `origin` contains."""

    question: Question
    origin: str
    needle: str


def sentence_pairs(passages: Sequence[Passage], number: int, seed: int) -> tuple[Pair, ...]:
    """Take from up to `number` passages one sentence each, anywhere in the text; a half of it if there is but one.

    Passages that are too short to give one are left out.
    """
    rng = random.Random(seed)  # noqa: S311  # for a sample
    order = sorted(passages, key=lambda passage: passage.id)
    rng.shuffle(order)
    pairs: list[Pair] = []
    for passage in order:
        if len(pairs) == number:
            break
        choices = _choices(passage.text)
        if choices:
            needle = rng.choice(choices)
            pairs.append(Pair(Question(passage.id, needle, passage.slices), passage.id, needle))
    return tuple(pairs)


def title_pairs(passages: Sequence[Passage], number: int, seed: int) -> tuple[Pair, ...]:
    """Take from up to `number` passages their titles, which must then not be among what is searched."""
    titled = sorted((p for p in passages if len(p.title) >= MIN_CHARS and p.text), key=lambda p: p.id)
    chosen = random.Random(seed).sample(titled, min(number, len(titled)))  # noqa: S311
    return tuple(Pair(Question(p.id, p.title, p.slices), p.id, p.text) for p in chosen)


def _choices(text: str) -> list[str]:
    """Return the sentences of the text that make a question."""
    sentences = [part.strip() for part in ENDS.split(text)]
    fit = [part for part in sentences if MIN_CHARS <= len(part) <= min(MAX_CHARS, MAX_SHARE * len(text))]
    if fit:
        return fit
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    nearest = min(starts, key=lambda start: abs(start - len(text) / 2), default=0)
    middle = nearest if 1 - MAX_SHARE <= nearest / max(len(text), 1) <= MAX_SHARE else len(text) // 2
    remainder = text[middle:][:MAX_CHARS].strip()
    return [remainder] if len(remainder) >= MIN_CHARS else []


def judged_by_text(
    pairs: Sequence[Pair],
    rankings: Sequence[Ranked],
    ids: Sequence[str],
    texts_of: Callable[[Sequence[int]], Sequence[str]],
) -> JudgedQueries:
    """Judge hits: relevant is the passage that a question was taken from, and any that contains it too.

    texts_of: of passages by number; asked once.
    """
    numbers = sorted({n for ranking in rankings for n in ranking.passages.ravel().tolist()} - {NONE})
    texts = dict(zip(numbers, texts_of(numbers), strict=True))
    judgements = []
    for row, pair in enumerate(pairs):
        shown = {n for ranking in rankings for n in ranking.passages[row].tolist()} - {NONE}
        relevant = {pair.origin} | {ids[n] for n in shown if pair.needle in texts[n]}
        judgements += [Judgement(pair.question.id, passage_id, 1) for passage_id in sorted(relevant)]
    return JudgedQueries(tuple(pair.question for pair in pairs), tuple(judgements))
