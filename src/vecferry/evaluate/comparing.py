"""Old and new side by side: by query, by slice, and the queries that gain and lose most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vecferry.embeddings import Int64
from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.statistics import Resampling, mean_with_interval
from vecferry.evaluate.values import ALL, QueryScore, Question, SliceScore

MIN_IN_SLICE = 5
"""Queries; slices with fewer are not shown."""
MAX_SLICES = 12
"""Of one kind, the largest."""
SAME = 1e-6
"""Two values of a metric that differ by less are a tie."""


@dataclass(frozen=True)
class Compared:
    """A metric of both sides, one number for each question. slices: that of all queries first."""

    metric: str
    questions: tuple[Question, ...]
    old: Float64
    new: Float64
    slices: tuple[SliceScore, ...]

    def scores(self) -> tuple[QueryScore, ...]:
        return tuple(
            QueryScore(question.id, question.text, round(old, 6), round(new, 6), question.slices)
            for question, old, new in zip(self.questions, self.old.tolist(), self.new.tolist(), strict=True)
        )

    def extremes(self, number: int) -> tuple[list[int], list[int]]:
        """Return the questions that gain most, and those that lose most, by their places."""
        difference = self.new - self.old
        order = np.argsort(difference, kind="stable")
        losses = [int(i) for i in order[:number] if difference[i] < -SAME]
        gains = [int(i) for i in order[::-1][:number] if difference[i] > SAME]
        return gains, losses


def compare(metric: str, questions: Sequence[Question], old: Float64, new: Float64, resampling: Resampling) -> Compared:
    """Compare a metric question by question, over all of them and by slice."""

    def scored(by: str, value: str, rows: Int64) -> SliceScore:
        difference = new[rows] - old[rows]
        return SliceScore(
            by=by,
            value=value,
            queries=len(rows),
            old=mean_with_interval(old[rows], resampling),
            new=mean_with_interval(new[rows], resampling),
            difference=mean_with_interval(difference, resampling, bounds=(-1.0, 1.0)),
            wins=int((difference > SAME).sum()),
            losses=int((difference < -SAME).sum()),
            ties=int((np.abs(difference) <= SAME).sum()),
        )

    slices = [scored(ALL, ALL, np.arange(len(questions)))]
    for by, values in slices_by_kind(questions).items():
        slices += [scored(by, value, rows) for value, rows in values.items()]
    return Compared(metric, tuple(questions), old, new, tuple(slices))


def slices_by_kind(questions: Sequence[Question]) -> Mapping[str, Mapping[str, Int64]]:
    """Return kind → value → places of its questions; single values and values with few questions are left out."""
    places: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, question in enumerate(questions):
        for by, value in question.slices.items():
            places[by][value].append(place)
    slices = {}
    for by, values in sorted(places.items()):
        large = sorted((v for v in values.items() if len(v[1]) >= MIN_IN_SLICE), key=lambda v: (-len(v[1]), v[0]))
        if len(values) > 1 and large:
            slices[by] = {value: np.array(rows) for value, rows in sorted(large[:MAX_SLICES])}
    return slices
