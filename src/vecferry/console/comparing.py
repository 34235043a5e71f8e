"""One query, asked in the old space and in the new: what both answer, and what moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vecferry.console.highlighting import Highlighter, Run, Scores, scores_of
from vecferry.console.operator import Task
from vecferry.embeddings import DENSE
from vecferry.encode.encoder import TextEncoder
from vecferry.errors import SpaceMismatch
from vecferry.stores.marks import side_asked
from vecferry.stores.protocol import Store
from vecferry.stores.values import Hit, Key, shown

K = 10
MAX_QUERY_CHARS = 2000
MAX_SHOWN_CHARS = 1200
"""Of a passage; the rest is cut off."""


@dataclass(frozen=True)
class Cut:
    """A cut-off of the application, and whether the hit is at or above it."""

    name: str
    value: float
    passed: bool


@dataclass(frozen=True)
class RankedPassage:
    """One answer. rank: from 1. other: its rank on the other side; None if it is not among the first there.

    runs: the text, highlighted where the model's heads say why. scores: of these heads.
    """

    key: str
    rank: int
    score: float
    other: int | None
    runs: tuple[Run, ...]
    is_cut: bool
    cuts: tuple[Cut, ...] = ()
    scores: Scores | None = None

    @property
    def up(self) -> int:
        """By how many ranks it stands higher than on the other side."""
        return 0 if self.other is None else self.other - self.rank


@dataclass(frozen=True)
class ResultColumn:
    """The answers of one side; `message` says why there are none."""

    side: str
    passages: tuple[RankedPassage, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class Comparison:
    """The answers of both sides. heads: of the new model. shared: how many both have among their first K."""

    query: str
    old: ResultColumn
    new: ResultColumn
    heads: tuple[str, ...]

    @property
    def shared(self) -> int:
        return sum(passage.other is not None for passage in self.new.passages)


def compare(store: Store, task: Task, query: str) -> Comparison:
    """Search both sides for their first K. Raises InvalidText, ModelRuntimeError, ArtifactError, StoreError."""
    serving = store.ledger.serving(store.target)
    cuts = _cuts(store, task)
    sides = {store.new_space(), serving.fingerprint if serving is not None else None} - {None}
    is_new_there = side_asked(store, task.new.space.mark()) in sides
    old = _search(store, task.old, query, "The migration's file does not name the old model.")
    new = _search(store, task.new if is_new_there else None, query, "There are no new vectors before start.")
    texts = _texts(store, [*old.hits, *new.hits])
    left = _column("old", old, new.hits, texts, cuts["old"])
    right = _column("new", new, old.hits, texts, cuts["new"])
    return Comparison(query, left, _highlighted(task, query, right), task.new.space.outputs.names)


# --- searching------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SideAnswer:
    hits: Sequence[Hit]
    message: str = ""


def _search(store: Store, model: TextEncoder | None, query: str, otherwise: str) -> _SideAnswer:
    if model is None:
        return _SideAnswer((), otherwise)
    vector = model.encode([query], role="query").dense[0]
    try:
        return _SideAnswer(store.search(vector, K, fingerprint=side_asked(store, model.space.mark())))
    except SpaceMismatch:
        return _SideAnswer((), "This side's vectors are not in its model's space.")


def _texts(store: Store, hits: Sequence[Hit]) -> dict[Key, str]:
    keys = list(dict.fromkeys(hit.key for hit in hits))
    return {row.key: row.text or "" for row in store.rows(keys)}


def _cuts(store: Store, task: Task) -> dict[str, Mapping[str, float]]:
    """Return, by side, the cut-offs that the file names, and what the last gate has mapped them to."""
    record = store.ledger.find(store.target)
    gate = (record.verification or {}).get("gate") if record is not None else None
    mapped = {name: threshold["new"] for name, threshold in gate["thresholds"].items()} if gate else {}
    return {"old": task.options.thresholds, "new": mapped}


def _column(
    side: str, answer: _SideAnswer, others: Sequence[Hit], texts: Mapping[Key, str], cuts: Mapping[str, float]
) -> ResultColumn:
    ranks = {hit.key: rank for rank, hit in enumerate(others, 1)}
    passages = []
    for rank, hit in enumerate(answer.hits, 1):
        text = texts.get(hit.key, "")
        crossed = tuple(Cut(name, value, hit.score >= value) for name, value in cuts.items())
        shortened = Run(text[:MAX_SHOWN_CHARS])
        (key,) = shown([hit.key])
        passages.append(
            RankedPassage(key, rank, hit.score, ranks.get(hit.key), (shortened,), len(text) > MAX_SHOWN_CHARS, crossed)
        )
    return ResultColumn(side, tuple(passages), answer.message)


# --- why ------------------------------------------------------------------------------------------


def _highlighted(task: Task, query: str, column: ResultColumn) -> ResultColumn:
    """Add to the new side's answers the scores of each head, and mark the tokens that matched."""
    outputs = task.new.space.outputs
    if outputs == DENSE or not column.passages:
        return column
    texts = [passage.runs[0].text for passage in column.passages]
    embedded_query = task.new.encode([query], outputs=outputs, role="query")
    embeddings = task.new.encode(texts, outputs=outputs, role="passage")
    space = task.new.space
    highlighter = Highlighter(query, embedded_query, task.pieces, (space.query_prefix, space.passage_prefix))
    highlighted = [
        replace(passage, scores=scores, runs=highlighter.highlight(text, embeddings, row))
        for row, (passage, scores, text) in enumerate(
            zip(column.passages, scores_of(embedded_query, embeddings), texts, strict=True)
        )
    ]
    return replace(column, passages=tuple(highlighted))
