"""Evaluations that nobody made: a test double, every number of which is invented from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vecferry.evaluate.values import (
    ALL,
    METRICS,
    CorpusFinding,
    Evaluation,
    GateResult,
    Histogram,
    HybridFit,
    Interval,
    MapPoint,
    ModelFacts,
    QueryChange,
    QueryScore,
    Replay,
    ScoreDistribution,
    ShownHit,
    SliceScore,
    SpaceMap,
    SystemScore,
    Threshold,
)

ATTACK = '<script>alert(1)</script><svg onload=alert(2)> {{7*7}} {% raw %} " onmouseover="alert(3)" \'q\''
QUERIES = {
    "en": "how long does the ferry to the northern islands take in winter",
    "de": "Wie lange dauert die Überfahrt zu den Inseln, wenn das Wetter schlecht ist?",
    "fr": "horaires du bac pour les véhicules de plus de trois tonnes",
    "ar": "كم تستغرق رحلة العبّارة إلى الجزر الشمالية في الشتاء؟",
    "zh": "冬天去北部岛屿的渡轮要多长时间",
}
PASSAGES = {
    "en": "The winter crossing takes four hours and ten minutes; it is cancelled above wind force nine. Tickets of a "
    "cancelled crossing are valid on the next one, and a place for the night is found for every passenger.",
    "de": "Die Überfahrt dauert im Winter vier Stunden und zehn Minuten und fällt bei Windstärke neun aus.",
    "fr": "La traversée dure quatre heures et dix minutes en hiver ; elle est annulée au-delà de force neuf.",
    "ar": "تستغرق الرحلة في الشتاء أربع ساعات وعشر دقائق، وتُلغى إذا تجاوزت قوة الرياح تسع درجات.",
    "zh": "冬季航程为四小时十分钟；风力超过九级时取消。",
}
GAIN = {"en": 0.02, "de": 0.18, "fr": 0.15, "ar": 0.34, "zh": 0.29}
LENGTHS = ("up to 64 tokens", "65 to 256 tokens", "over 256 tokens")


def make_evaluation(num_queries: int = 400, seed: int = 0) -> Evaluation:
    """Make an evaluation with every part, in five languages; one query and one passage have the text `ATTACK`."""
    random = np.random.default_rng(seed)
    queries = _queries(num_queries, random)
    slices = (
        _slice(ALL, ALL, queries),
        *(_slice("language", name, [q for q in queries if q.slices["language"] == name]) for name in QUERIES),
        *(_slice("length", name, [q for q in queries if q.slices["length"] == name]) for name in LENGTHS),
    )
    ordered = sorted(queries, key=lambda q: q.new - q.old)
    difference = slices[0].difference
    return Evaluation(
        target="postgresql://…/docs · passages",
        made_at="2026-03-02T10:15:00Z",
        evidence="judged queries",
        passages=52_310,
        queries_asked=num_queries,
        judgements=3 * num_queries,
        old=ModelFacts("all-MiniLM-L6-v2", "3f" * 32, 384, 256, "fp32", "onnx", 90_900_000, 412.0, 3.1, 80_348_160),
        new=ModelFacts("bge-m3", "b7" * 32, 1024, 8192, "int8", "onnx", 571_000_000, 38.5, 21.4, 214_261_760),
        compared=("dense", "dense"),
        gate=GateResult(
            "passed",
            f"The new model is better: nDCG@10 went from {slices[0].old.mean:.3f} to {slices[0].new.mean:.3f} "
            f"({difference.low:+.3f} to {difference.high:+.3f} at 95% confidence) on {num_queries:,} queries.",
            0.02, 0.95, "nDCG@10", difference,
        ),
        systems=_systems(random),
        slices=slices,
        queries=tuple(queries),
        gains=tuple(_change(q, random) for q in reversed(ordered[-6:])),
        losses=tuple(_change(q, random) for q in ordered[:6]),
        hybrid=HybridFit(
            {"dense": 0.5, "sparse": 0.15, "colbert": 0.35}, num_queries // 2, num_queries // 2,
            {"dense": _around(0.66, 0.02), "sparse": _around(0.55, 0.02), "hybrid": _around(0.71, 0.02)},
            _around(0.70, 0.02),
        ),
        replay=Replay(
            1200, 10, _around(0.46, 0.02), _around(0.51, 0.02), 0.9,
            tuple({"by": "language", "value": name, "queries": 240, "overlap": _around(0.6 - gain, 0.03).to_dict()}
                  for name, gain in GAIN.items()),
            tuple(replace(_change(q, random), wanted=(), difference=-0.9) for q in ordered[:3]),
        ),
        scores=(_distribution("old", 0.35, random), _distribution("new", 0.55, random)),
        thresholds=(
            Threshold("related", 0.42, 0.587, 0.574, 0.601, "matched precision", 0.31, 0.29, 0.81, 0.82),
            Threshold("duplicate", 0.85, 0.903, 0.889, 0.915, "matched quantile", 0.04, 0.04),
        ),
        findings=(
            CorpusFinding("truncated", 1834, 52_310, "1,834 of 52,310 passages are longer than the old model reads.",
                    (("p-17", PASSAGES["en"] * 3, "311 of 567 tokens were cut"), ("p-18", ATTACK, "40 were cut"))),
            CorpusFinding("equal texts", 212, 52_310, "212 of 52,310 passages have the same text as another."),
        ),
        map=_map(random),
        provenance={
            "vecferry": "0.1.0", "command": f"vecferry eval --beir labelled --old MiniLM --new bge-m3 # {ATTACK}",
            "seeds": {"bootstrap": seed, "sample": 7}, "queries": {"sha256": "9c" * 32, "files": ["queries.jsonl"]},
            "resamples": 10_000, "not looked at": None,
        },
    )  # fmt: skip


def with_attacks_everywhere(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with `ATTACK` as every name that a user can choose."""
    return replace(
        evaluation,
        target=ATTACK,
        old=replace(evaluation.old, name=ATTACK),
        new=replace(evaluation.new, name=ATTACK),
        slices=tuple(s if s.by == ALL else replace(s, by=f"{ATTACK} {s.by}", value=ATTACK) for s in evaluation.slices),
        queries=tuple(replace(q, text=ATTACK, id=ATTACK, slices={"language": ATTACK}) for q in evaluation.queries),
        thresholds=tuple(replace(t, name=ATTACK) for t in evaluation.thresholds),
        map=replace(evaluation.map, points=tuple(replace(p, slice=ATTACK, text=ATTACK) for p in evaluation.map.points))
        if evaluation.map
        else None,
        provenance={ATTACK: ATTACK},
    )


def only_the_verdict(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation without every part that may be absent."""
    return Evaluation(
        target=evaluation.target, made_at=evaluation.made_at, evidence=evaluation.evidence,
        passages=evaluation.passages, queries_asked=evaluation.queries_asked, judgements=0, old=evaluation.old,
        new=evaluation.new, compared=evaluation.compared, gate=evaluation.gate,
    )  # fmt: skip


def _queries(count: int, random: np.random.Generator) -> list[QueryScore]:
    names = list(QUERIES)
    queries = []
    for at in range(count):
        language = names[at % len(names)]
        old = float(np.clip(random.choice([0.0, 0.39, 0.5, 0.63, 1.0]) + random.normal(0, 0.1), 0, 1))
        moves = random.random() < 0.7
        new = float(np.clip(old + moves * random.normal(GAIN[language], 0.25), 0, 1))
        text = ATTACK if at == 3 else f"{QUERIES[language]} ({at})"
        slices = {"language": language, "length": LENGTHS[at % len(LENGTHS)]}
        queries.append(QueryScore(f"q{at}", text, round(old, 4), round(new, 4), slices))
    return queries


def _slice(by: str, value: str, queries: Sequence[QueryScore]) -> SliceScore:
    old, new = (np.array([getattr(q, side) for q in queries]) for side in ("old", "new"))
    wins, losses = int((new > old).sum()), int((new < old).sum())
    before, after, difference = map(_interval_of, (old, new, new - old))
    return SliceScore(by, value, len(queries), before, after, difference, wins, losses, len(queries) - wins - losses)


def _interval_of(values: np.ndarray) -> Interval:
    return _around(float(values.mean()), float(1.96 * values.std() / np.sqrt(len(values))))


def _around(mean: float, half: float) -> Interval:
    return Interval(mean, mean - half, mean + half)


def _systems(random: np.random.Generator) -> tuple[SystemScore, ...]:
    means: dict[tuple[Any, Any], float] = {
        ("old", "dense"): 0.5, ("new", "dense"): 0.66, ("new", "sparse"): 0.55, ("new", "colbert"): 0.68,
        ("new", "hybrid"): 0.71,
    }  # fmt: skip
    return tuple(
        SystemScore(side, method, {name: _around(min(mean + 0.04 * at, 0.98), 0.02) for at, name in enumerate(METRICS)})
        for (side, method), mean in means.items()
    )


def _change(query: QueryScore, random: np.random.Generator) -> QueryChange:
    language = query.slices["language"]
    names = [language, *(name for name in QUERIES if name != language)]
    texts = [ATTACK if at == 4 else PASSAGES[name] for at, name in enumerate(names)]
    wanted = ShownHit(f"p-{query.id}-0", texts[0], 0.0, 2)
    sides = []
    for order in ((3, 1, 4, 2, 5), (0, 3, 1, 2, 4)):
        scores = np.sort(random.uniform(0.3, 0.9, 5))[::-1]
        sides.append(tuple(
            ShownHit(f"p-{query.id}-{at}", texts[at % 5], float(score), {0: 2, 3: 0}.get(at))
            for at, score in zip(order, scores, strict=True)
        ))  # fmt: skip
    old, new = sides if query.new >= query.old else reversed(sides)
    return QueryChange(query.text, query.new - query.old, (wanted,), old, new)


def _distribution(side: str, middle: float, random: np.random.Generator) -> ScoreDistribution:
    edges = np.linspace(0, 1, 41)

    def histogram(mean: float) -> Histogram:
        counts, _ = np.histogram(random.normal(mean, 0.11, 3000), bins=edges)
        return Histogram(tuple(edges.round(4).tolist()), tuple(counts.tolist()))

    return ScoreDistribution(side, histogram(middle + 0.2), histogram(middle + 0.15), histogram(middle))  # type: ignore[arg-type]


def _map(random: np.random.Generator) -> SpaceMap:
    points = []
    for place, name in enumerate(QUERIES):
        angle = 2 * np.pi * place / len(QUERIES)
        for at in range(80):
            old = random.normal((0.4 * np.cos(angle), 0.4 * np.sin(angle)), 0.12)
            new = random.normal((0.0, 0.0), (0.3, 0.2))
            ends = ((float(old[0]), float(old[1])), (float(new[0]), float(new[1])))
            points.append(MapPoint(f"m-{name}-{at}", PASSAGES[name], name, *ends))
    return SpaceMap(tuple(points), (0.31, 0.12), "language")
