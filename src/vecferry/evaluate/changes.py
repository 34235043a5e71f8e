"""Queries whose answers change most: by judgements, or by nothing but the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vecferry.evaluate.comparing import Compared
from vecferry.evaluate.corpora import Corpus
from vecferry.evaluate.questions import SCRIPT, script_of
from vecferry.evaluate.ranking import NONE, Ranked
from vecferry.evaluate.replay import overlap_at, rank_biased_overlap
from vecferry.evaluate.retrieval import HITS, NEW, OLD, Answers, relevance_of
from vecferry.evaluate.statistics import Resampling, mean_with_interval
from vecferry.evaluate.values import QueryChange, Replay, ShownHit

SHOWN_HITS, SHOWN_CHANGES = 5, 10
MAX_CHARS = 400
"""Of a passage that is shown."""
RBO_P = 0.9
"""Persistence: the first ten answers hold 0.86 of the weight."""


def changes(
    corpus: Corpus, answers: Answers, compared: Compared
) -> tuple[tuple[QueryChange, ...], tuple[QueryChange, ...]]:
    """Return the largest gains, and the largest losses."""
    judged = relevance_of(answers.queries)
    numbers = {passage_id: number for number, passage_id in enumerate(answers.ids)}

    def change(row: int) -> QueryChange:
        question = answers.queries.questions[row]
        grades = judged[question.id]
        relevant = sorted(grades.items(), key=lambda item: (-item[1], item[0]))
        wanted = [numbers[passage_id] for passage_id, grade in relevant if grade > 0 and passage_id in numbers]
        return QueryChange(
            query=question.text,
            difference=float(compared.new[row] - compared.old[row]),
            wanted=_shown(corpus, wanted[:SHOWN_HITS], [0.0] * SHOWN_HITS, grades),
            old_hits=_first(corpus, answers.rankings[OLD], row, grades),
            new_hits=_first(corpus, answers.rankings[NEW], row, grades),
        )

    gains, losses = compared.extremes(SHOWN_CHANGES)
    return tuple(map(change, gains)), tuple(map(change, losses))


def replayed(corpus: Corpus, log: Sequence[str], resampling: Resampling) -> Replay:
    """Search the queries of a log on both sides, and measure how much the answers agree."""
    old = corpus.search("old", corpus.old.encoder.encode(log, role="query"), HITS)
    new = corpus.search("new", corpus.new.encoder.encode(log, role="query"), HITS)
    overlap = overlap_at(old.passages, new.passages, HITS)
    rbo = rank_biased_overlap(old.passages, new.passages, RBO_P)
    scripts = np.array([script_of(query) for query in log])
    slices = [
        {
            "by": SCRIPT,
            "value": str(script),
            "queries": int((scripts == script).sum()),
            "overlap": mean_with_interval(overlap[scripts == script], resampling).to_dict(),
            "rbo": mean_with_interval(rbo[scripts == script], resampling).to_dict(),
        }
        for script in np.unique(scripts)
    ]
    most = [
        QueryChange(log[row], float(overlap[row]) - 1, (), _first(corpus, old, row, {}), _first(corpus, new, row, {}))
        for row in np.lexsort((rbo, overlap))[:SHOWN_CHANGES]
    ]
    return Replay(
        queries=len(log),
        k=HITS,
        overlap=mean_with_interval(overlap, resampling),
        rbo=mean_with_interval(rbo, resampling),
        rbo_p=RBO_P,
        slices=tuple(slices),
        most_changed=tuple(most),
    )


def _first(corpus: Corpus, ranking: Ranked, row: int, grades: Mapping[str, int]) -> tuple[ShownHit, ...]:
    numbers = [number for number in ranking.passages[row, :SHOWN_HITS].tolist() if number != NONE]
    return _shown(corpus, numbers, ranking.scores[row].tolist(), grades)


def _shown(
    corpus: Corpus, numbers: Sequence[int], scores: Sequence[float], grades: Mapping[str, int]
) -> tuple[ShownHit, ...]:
    ids = corpus.ids
    hits = zip([ids[number] for number in numbers], corpus.texts(numbers), scores, strict=False)
    return tuple(ShownHit(i, text[:MAX_CHARS], round(score, 4), grades.get(i)) for i, text, score in hits)
