"""From passages and questions to an `Evaluation`, with encoders whose quality is chosen."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.evaluate.doubles import TopicEncoder, passages_about, queries_about, text_about
from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import InvalidText, MissingOption, SettingsError
from vecferry.evaluate import (
    EvaluatedModel,
    Evaluation,
    EvaluationOptions,
    FolderCorpus,
    JudgedQueries,
    Judgement,
    Passage,
    QuerySet,
    Question,
    run_evaluation,
)
from vecferry.evaluate.pairs import sentence_pairs
from vecferry.evaluate.values import METRICS

COUNT = 60
PASSAGES, QUERIES = passages_about(COUNT), queries_about(COUNT)
GOOD, FAIR, BAD = 0.2, 1.0, 2.5
"""Noise: at GOOD everything is found, at FAIR most, at BAD little."""
JUDGED = QuerySet(QUERIES)
OPTIONS = EvaluationOptions(thresholds={"related": 0.4}, sample=40)
LOG = ("what of topic001?", "паром topic002", "topic003", "nothing of this kind")
MEASURED = ("texts_per_s", "query_ms")


def evaluated(
    old: float,
    new: float,
    *,
    query_set: QuerySet = JUDGED,
    options: EvaluationOptions = OPTIONS,
    heads: tuple[str, ...] = ("dense",),
    passages: tuple[Passage, ...] = PASSAGES,
) -> Evaluation:
    models = (
        EvaluatedModel("small", TopicEncoder("old", old, dimension=16, max_tokens=10)),
        EvaluatedModel("large", TopicEncoder("new", new, heads=heads), "double", 1234),
    )
    corpus = FolderCorpus("folder", passages, *models, options.outputs, lambda _: None)
    return run_evaluation(corpus, query_set, options, provenance={"command": "as typed"})


def unmeasured(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation's values without the time of day and without what depends on the machine's speed."""
    values = evaluation.to_dict()
    del values["made_at"]
    for side in ("old", "new"):
        values[side] = {name: value for name, value in values[side].items() if name not in MEASURED}
    return values


def test_a_better_model_passes() -> None:
    evaluation = evaluated(FAIR, GOOD)
    assert evaluation.gate.verdict == "passed"
    assert "better" in evaluation.gate.message
    assert (evaluation.evidence, evaluation.passages, evaluation.queries_asked, evaluation.judgements) == (
        "judged queries", COUNT, COUNT, COUNT,
    )  # fmt: skip
    assert evaluation.gains
    assert not evaluation.losses
    gain = evaluation.gains[0]
    assert gain.wanted[0].id == gain.new_hits[0].id
    assert gain.new_hits[0].relevance == 1
    assert gain.old_hits[0].relevance is None


def test_a_degraded_model_fails() -> None:
    evaluation = evaluated(GOOD, BAD)
    assert evaluation.gate.verdict == "failed"
    assert evaluation.losses
    assert evaluation.slices[0].losses > evaluation.slices[0].wins


def test_a_model_that_is_worse_in_one_language_fails_by_its_name() -> None:
    german = " Und das auf Deutsch."
    passages = tuple(replace(p, text=p.text + german) if p.slices["language"] == "de" else p for p in PASSAGES)

    class Blind(TopicEncoder):
        def _vector(self, text: str) -> Float32:
            return super()._vector(text.replace("topic", "") if text.endswith(german) else text)

    models = EvaluatedModel("old", TopicEncoder("old", GOOD)), EvaluatedModel("new", Blind("new", GOOD))
    corpus = FolderCorpus("folder", passages, *models, DENSE, lambda _: None)
    evaluation = run_evaluation(corpus, JUDGED, replace(OPTIONS, sample=0, margin=0.1))
    by_name = {score.value: score for score in evaluation.slices}
    assert by_name["en"].difference.mean == pytest.approx(0, abs=0.05)
    assert by_name["de"].difference.high < -0.1
    assert (evaluation.gate.verdict, evaluation.gate.worse_slices) == ("failed", ("language de",))


def test_everything_there_is_to_see_is_there() -> None:
    evaluation = evaluated(FAIR, GOOD)
    assert [(score.side, score.method) for score in evaluation.systems] == [("old", "dense"), ("new", "dense")]
    assert all(tuple(score.metrics) == METRICS for score in evaluation.systems)
    assert {score.by for score in evaluation.slices} == {
        "all",
        "language",
    }  # all queries are as long, all passages are cut
    assert [query.id for query in evaluation.queries] == [question.id for question in QUERIES.questions]
    assert evaluation.queries[0].slices == {
        "language": "de", "query length": "under 4 words", "passage length": "over 10 tokens",
    }  # fmt: skip
    assert [score.side for score in evaluation.scores] == ["old", "new"]
    assert all(score.relevant is not None for score in evaluation.scores)
    (threshold,) = evaluation.thresholds
    assert (threshold.name, threshold.old, threshold.method) == ("related", 0.4, "matched precision")
    assert threshold.low <= threshold.new <= threshold.high
    assert evaluation.findings
    assert evaluation.map is not None
    assert (len(evaluation.map.points), evaluation.map.colour) == (40, "language")
    assert evaluation.replay is None
    assert (evaluation.new.name, evaluation.new.runtime, evaluation.new.bytes) == ("large", "double", 1234)
    assert (evaluation.old.dimension, evaluation.old.max_tokens, evaluation.old.index_bytes) == (16, 10, 4 * 16 * COUNT)
    assert (evaluation.provenance["command"], evaluation.provenance["seed"]) == ("as typed", 0)


def test_a_question_falls_into_the_length_of_the_passage_that_answers_it_best() -> None:
    """The first has a short passage of grade 2 beside its long one of grade 1; the second has the two the other way."""
    short = Passage("short", "topic001 in short")
    more = (Judgement("q1", "short", 2), Judgement("q2", "short", 1), Judgement("q2", "2", 2))
    judgements = tuple(score for score in QUERIES.judgements if score.query_id != "q2") + more
    evaluation = evaluated(
        FAIR, GOOD, query_set=QuerySet(JudgedQueries(QUERIES.questions, judgements)), passages=(*PASSAGES, short)
    )
    lengths = [query.slices["passage length"] for query in evaluation.queries]
    assert lengths[:3] == ["up to 10 tokens", "over 10 tokens", "over 10 tokens"]


def test_it_is_plain_json_without_numbers_that_json_lacks() -> None:
    """Fewer passages than hits that are looked at, so that some hits are none."""
    few = 7
    query_set = QuerySet(queries_about(few))
    for options in (replace(OPTIONS, outputs=Outputs.ALL), replace(OPTIONS, thresholds={"none": 1.0, "all": -1.0})):
        evaluation = evaluated(
            FAIR, GOOD, query_set=query_set, passages=PASSAGES[:few], options=options, heads=("dense", "sparse")
        )
        text = json.dumps(evaluation.to_dict(), allow_nan=False)
        assert json.dumps(json.loads(text)) == text
        assert json.loads(text)["gate"]["verdict"] == "inconclusive"


def test_the_heads_of_the_new_model_are_looked_at() -> None:
    options = replace(OPTIONS, outputs=Outputs.ALL, sample=0)
    evaluation = evaluated(FAIR, BAD, options=options, heads=("dense", "sparse", "colbert"))
    assert [(score.side, score.method) for score in evaluation.systems] == [
        ("old", "dense"), ("new", "dense"), ("new", "sparse"), ("new", "colbert"), ("new", "hybrid"),
    ]  # fmt: skip
    means = {score.method: score.metrics["nDCG@10"].mean for score in evaluation.systems if score.side == "new"}
    assert means["sparse"] > 0.9 > means["dense"]  # the topic's name is a word of query and passage
    assert evaluation.hybrid is not None
    assert evaluation.hybrid.held_out["hybrid"].mean > evaluation.hybrid.held_out["dense"].mean
    assert evaluation.hybrid.weights["dense"] < 1
    assert evaluation.compared == ("dense", "dense")


def test_a_log_is_replayed_and_pairs_stand_in_for_judgements() -> None:
    evaluation = evaluated(FAIR, GOOD, query_set=QuerySet(pairs=sentence_pairs(PASSAGES, 40, 0), log=LOG))
    assert (evaluation.evidence, evaluation.queries_asked) == ("query log", 40)
    assert evaluation.judgements >= 40
    replay = evaluation.replay
    assert replay is not None
    assert (replay.queries, replay.k, len(replay.most_changed)) == (4, 10, 4)
    assert 0 < replay.overlap.mean < 1
    assert [(score["value"], score["queries"]) for score in replay.slices] == [("Cyrillic", 1), ("Latin", 3)]
    assert replay.most_changed[0].difference <= replay.most_changed[-1].difference <= 0


def test_pairs_alone_are_named_as_what_they_are() -> None:
    evaluation = evaluated(FAIR, GOOD, query_set=QuerySet(pairs=sentence_pairs(PASSAGES, 40, 0)))
    assert (evaluation.evidence, evaluation.replay) == ("pairs from the corpus", None)


def test_the_seed_decides_everything_but_the_speed() -> None:
    query_set = QuerySet(pairs=sentence_pairs(PASSAGES, 50, 0), log=LOG)
    options = replace(OPTIONS, max_queries=30, seed=1)
    first, again = (unmeasured(evaluated(FAIR, GOOD, query_set=query_set, options=options)) for _ in range(2))
    assert first == again
    other = unmeasured(evaluated(FAIR, GOOD, query_set=query_set, options=replace(options, seed=2)))
    assert first["queries"] != other["queries"]


def test_without_a_sample_there_is_no_finding_and_no_map() -> None:
    evaluation = evaluated(FAIR, GOOD, options=replace(OPTIONS, sample=0))
    assert (evaluation.findings, evaluation.map) == ((), None)


def test_no_question_is_refused() -> None:
    with pytest.raises(MissingOption, match="--queries is missing"):
        evaluated(FAIR, GOOD, query_set=QuerySet())


@pytest.mark.parametrize(
    ("name", "value"),
    [("margin", -0.01), ("margin", 1.5), ("margin", float("nan")), ("confidence", 1.0), ("confidence", 0.0),
     ("max_queries", 0), ("sample", -1)],
)  # fmt: skip
def test_options_that_are_wrong_are_named(name: str, value: float) -> None:
    wrong: dict[str, Any] = {name: value}
    with pytest.raises(SettingsError, match=name):
        EvaluationOptions(**wrong)


# --- texts that are no texts ----------------------------------------------------------------------


def test_a_passage_or_a_question_without_a_utf8_form_is_named() -> None:
    broken = replace(PASSAGES[3], text="half a pair \ud800")
    with pytest.raises(InvalidText, match="text 3 cannot be encoded"):
        evaluated(FAIR, GOOD, passages=(*PASSAGES[:3], broken, *PASSAGES[4:]))
    questions = (*QUERIES.questions[:5], Question("q6", "\udfff?"), *QUERIES.questions[6:])
    with pytest.raises(InvalidText, match="text 5 cannot be encoded"):
        evaluated(FAIR, GOOD, query_set=QuerySet(JudgedQueries(questions, QUERIES.judgements)))


def test_a_nul_and_an_empty_text_are_texts() -> None:
    odd = (replace(PASSAGES[0], text=f"\0{text_about(1)}"), replace(PASSAGES[1], text=""), *PASSAGES[2:])
    evaluation = evaluated(FAIR, GOOD, passages=odd)
    assert json.loads(json.dumps(evaluation.to_dict()))["passages"] == COUNT
