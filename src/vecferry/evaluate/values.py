"""What an evaluation finds: values that a report draws, a gate judges and `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from vecferry.embeddings import Value
from vecferry.options import Cosine, Help, Name

Evidence = Literal["judged queries", "query log", "pairs from the corpus"]
"""Strongest first. A log says what changes and not whether that is good; pairs ask for what is easy to find."""
Method = Literal["dense", "sparse", "colbert", "hybrid"]
METRICS = ("nDCG@10", "R@10", "R@100", "RR@10")
"""By their names in ir-measures; the first is the one that is judged by."""
ALL = "all"
CutOffs = Annotated[
    Mapping[Name, Cosine],
    Field(description="names, each with a number from -1 to 1"),
    Help("the application's cut-offs, if it has any: cosines in the old space"),
]


@dataclass(frozen=True)
class Judgement:
    """Whether a passage answers a query. relevance: 0 is not relevant; higher is better."""

    query_id: str
    passage_id: str
    relevance: int


@dataclass(frozen=True)
class Question:
    """A query. slices: what it belongs to, by kind: {"language": "en"}. made_from: its passage, if it has one."""

    id: str
    text: str
    slices: Mapping[str, str] = field(default_factory=dict)
    made_from: str = ""


@dataclass(frozen=True)
class Passage:
    """A text to be found; its title goes before it where both are encoded."""

    id: str
    text: str
    title: str = ""
    slices: Mapping[str, str] = field(default_factory=dict)

    @property
    def full(self) -> str:
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class JudgedQueries:
    """Questions with judgements, over passages that are kept elsewhere, in a store. Every question is judged."""

    questions: tuple[Question, ...]
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True)
class Interval(Value):
    """A mean, and where the bootstrap puts it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelFacts(Value):
    """Facts about a model. bytes: of the artifact on disk; None where unknown. texts_per_s: passages encoded a second
    in this evaluation, None if they were not. query_ms: median of single queries. index_bytes: all vectors.
    """

    name: str
    fingerprint: str
    dimension: int
    max_tokens: int
    precision: str
    runtime: str
    bytes: int | None = None
    texts_per_s: float | None = None
    query_ms: float | None = None
    index_bytes: int | None = None


@dataclass(frozen=True)
class SystemScore(Value):
    """One way of searching: a model and a method. metrics: by name, the mean over all queries."""

    side: Literal["old", "new"]
    method: Method
    metrics: Mapping[str, Interval]


@dataclass(frozen=True)
class SliceScore(Value):
    """The first metric on the queries of one slice; old and new are the two systems that are compared.

    by: "language", "passage length", ...; "all" for all queries. difference: new - old, paired by query.
    """

    by: str
    value: str
    queries: int
    old: Interval
    new: Interval
    difference: Interval
    wins: int
    losses: int
    ties: int

    @property
    def name(self) -> str:
        return f"{self.by} {self.value}"


@dataclass(frozen=True)
class QueryScore(Value):
    """The first metric of one query under the two systems. slices: by kind, {"language": "en"}."""

    id: str
    text: str
    old: float
    new: float
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownHit(Value):
    """A hit as it is shown. relevance: of the judgement; None where nobody judged it."""

    id: str
    text: str
    score: float
    relevance: int | None


@dataclass(frozen=True)
class QueryChange(Value):
    """A query whose answers changed much: `difference` of the first metric, or of overlap in a replay.

    wanted: relevant passages, best first. Hits are the first five of each side.
    """

    query: str
    difference: float
    wanted: tuple[ShownHit, ...]
    old_hits: tuple[ShownHit, ...]
    new_hits: tuple[ShownHit, ...]


@dataclass(frozen=True)
class HybridFit(Value):
    """Weights (dense, sparse, colbert; they sum to 1) chosen on `fitted_on` queries, and what they reach on the others.

    held_out: the first metric there of each method; published: of the weights published with BGE-M3.
    """

    weights: Mapping[str, float]
    fitted_on: int
    reported_on: int
    held_out: Mapping[str, Interval]
    published: Interval | None


@dataclass(frozen=True)
class Replay(Value):
    """A log of queries, searched on both sides. k: answers compared.

    overlap: share of the first k that both have. rbo: rank-biased overlap. most_changed: those that overlap least.
    """

    queries: int
    k: int
    overlap: Interval
    rbo: Interval
    rbo_p: float
    slices: tuple[Mapping[str, Any], ...]
    most_changed: tuple[QueryChange, ...]


@dataclass(frozen=True)
class Histogram(Value):
    """Counts of values in bins. edges: n + 1, ascending. counts: n."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ScoreDistribution(Value):
    """Cosines of one side. relevant: of judged pairs; None without judgements. first: of each query's first hit.
    tenth: of its tenth.
    """

    side: Literal["old", "new"]
    relevant: Histogram | None
    first: Histogram
    tenth: Histogram


GUESS = "a guess: no answer reaches it"


@dataclass(frozen=True)
class Threshold(Value):
    """A cut-off of the application in the old space, and the one in the new space that does the same.

    low, high: the bootstrap's interval of `new`. method: "matched precision" or "matched quantile". old_share,
    new_share: of the hits, those at or above the cut-off. old_precision, new_precision: of these, the relevant ones,
    where judged.
    """

    name: str
    old: float
    new: float
    low: float
    high: float
    method: str
    old_share: float
    new_share: float
    old_precision: float | None = None
    new_precision: float | None = None

    @property
    def basis(self) -> str:
        """What it rests on: the method, or that it is a guess, since no answer reaches it."""
        return self.method if self.new_share else f"{self.method}, {GUESS}"


@dataclass(frozen=True)
class CorpusFinding(Value):
    """A finding about the texts themselves. examples: (id, text, note)."""

    name: str
    count: int
    of: int
    message: str
    examples: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class MapPoint(Value):
    """A passage in the first two principal components of the old and of the new space."""

    id: str
    text: str
    slice: str
    old: tuple[float, float]
    new: tuple[float, float]


@dataclass(frozen=True)
class SpaceMap(Value):
    """Points of both spaces. explained: variance that two axes hold, old and new. colour: what `slice` is."""

    points: tuple[MapPoint, ...]
    explained: tuple[float, float]
    colour: str


@dataclass(frozen=True)
class GateResult(Value):
    """The gate's decision. verdict: "passed"; "failed", shown worse by more than the margin; "inconclusive"."""

    verdict: Literal["passed", "failed", "inconclusive"]
    message: str
    margin: float
    confidence: float
    metric: str
    difference: Interval | None
    worse_slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation(Value):
    """All figures of a comparison; the report is drawn from it alone. Parts that were not measured are None or empty.

    target: a folder, or the collection of a store. compared: the methods of the old and the new side that slices,
    queries and the gate are about. provenance: commands, seeds, versions, the machine, digests of what was read.
    """

    target: str
    made_at: str
    evidence: Evidence
    passages: int
    queries_asked: int
    judgements: int
    old: ModelFacts
    new: ModelFacts
    compared: tuple[Method, Method]
    gate: GateResult
    systems: tuple[SystemScore, ...] = ()
    slices: tuple[SliceScore, ...] = ()
    queries: tuple[QueryScore, ...] = ()
    gains: tuple[QueryChange, ...] = ()
    losses: tuple[QueryChange, ...] = ()
    hybrid: HybridFit | None = None
    replay: Replay | None = None
    scores: tuple[ScoreDistribution, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    findings: tuple[CorpusFinding, ...] = ()
    map: SpaceMap | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
