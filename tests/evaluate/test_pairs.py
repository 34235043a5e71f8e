"""Questions that are made of the passages themselves."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.evaluate import Judgement, Passage
from vecferry.evaluate.pairs import MAX_CHARS, MAX_SHARE, MIN_CHARS, Pair, judged_by_text, sentence_pairs, title_pairs
from vecferry.evaluate.ranking import NONE, Ranked

SENTENCES = {
    "en": ["The ferry leaves at nine.", "Is there a later one on Sundays?", "Tickets are sold aboard only!"],
    "de": ["Die Fähre fährt um neun Uhr ab.", "Gibt es sonntags eine spätere?", "Karten gibt es nur an Bord!"],
    "ar": ["تغادر العبّارة في الساعة التاسعة.", "هل توجد رحلة أخرى يوم الأحد؟", "تباع التذاكر على متن العبّارة!"],
    "hi": ["नाव सुबह नौ बजे यहाँ से निकलती है।", "क्या रविवार को कोई और नाव है?", "टिकट केवल नाव पर मिलते हैं।"],
    "zh": ["渡轮每天上午九点整从这个码头出发。", "星期天还有没有更晚一些的班次？", "船票只在船上出售请准备好零钱！"],
}


def passage(number: int, text: str, title: str = "") -> Passage:
    return Passage(f"p{number}", text, title, {"language": "en"})


def asked_of(text: str) -> str | None:
    pairs = sentence_pairs([passage(1, text)], 1, 0)
    return pairs[0].question.text if pairs else None


@pytest.mark.parametrize("language", SENTENCES)
def test_each_sentence_of_a_text_may_be_asked(language: str) -> None:
    """Sentences end with the marks of their script; Chinese ones without a space."""
    sentences = SENTENCES[language]
    text = ("" if language == "zh" else " ").join(sentences)
    question = {sentence_pairs([passage(1, text)], 1, seed)[0].question.text for seed in range(40)}
    assert question == set(sentences)


def test_a_line_is_a_sentence_too() -> None:
    text = "first line of a list\nsecond line of a list\n\nthird line of a list"
    assert {sentence_pairs([passage(1, text)], 1, seed)[0].needle for seed in range(40)} == set(text.split("\n")) - {""}


def test_a_pair_is_named_by_its_passage_and_has_its_slices() -> None:
    text = " ".join(SENTENCES["en"])
    (pair,) = sentence_pairs([passage(7, text)], 5, 0)
    assert (pair.origin, pair.question.id, pair.question.slices) == ("p7", "p7", {"language": "en"})
    assert pair.needle == pair.question.text


WORDS = st.text("abcdefg . ?。渡轮\n؟", max_size=200)


@given(WORDS)
def test_a_question_is_a_proper_part_of_its_passage(text: str) -> None:
    question = asked_of(text)
    if question is not None:
        assert question in text
        assert MIN_CHARS <= len(question) <= min(MAX_CHARS, MAX_SHARE * len(text) + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one sentence without an end that is longer than it should be", "that is longer than it should be"),
        ("渡轮每天上午九点整从这个码头出发而且星期天也没有更晚一些的班次", "发而且星期天也没有更晚一些的班次"),
        ("1 渡轮每天上午九点整从这个码头出发而且星期天也没有更晚一些的班次", "出发而且星期天也没有更晚一些的班次"),
    ],
)
def test_of_a_single_sentence_its_second_half_is_asked(text: str, expected: str) -> None:
    assert asked_of(text) == expected


@pytest.mark.parametrize("text", ["", " ", "short", "too short to halve", "。" * 12])
def test_a_text_that_is_too_short_gives_none(text: str) -> None:
    assert asked_of(text) is None


def test_a_long_sentence_is_cut() -> None:
    assert len(asked_of("word " * 1000) or "") <= MAX_CHARS


def test_the_seed_decides_and_the_order_of_the_passages_does_not() -> None:
    passages = [passage(number, " ".join(f"Sentence {number} and {i}." for i in range(9))) for number in range(30)]
    pairs = sentence_pairs(passages, 10, 1)
    assert len(pairs) == 10
    assert len({pair.origin for pair in pairs}) == 10
    assert sentence_pairs(passages[::-1], 10, 1) == pairs
    assert sentence_pairs(passages, 10, 2) != pairs


def test_titles_ask_for_their_texts() -> None:
    passages = [passage(number, f"The text of {number}.", f"A title of its own, {number}") for number in range(9)]
    short, empty = passage(20, "text", "Short"), passage(21, "", "A title without a text")
    pairs = title_pairs([*passages, short, empty], 100, 0)
    assert {pair.origin for pair in pairs} == {passage.id for passage in passages}
    for pair in pairs:
        origin = next(passage for passage in passages if passage.id == pair.origin)
        assert (pair.question.text, pair.needle) == (origin.title, origin.text)
        assert pair.question.text not in replace(origin, title="").full
    assert title_pairs(passages, 4, 3) == title_pairs(passages[::-1], 4, 3)
    assert len(title_pairs(passages, 4, 3)) == 4


def test_what_holds_the_sentence_too_is_relevant_where_either_side_finds_it() -> None:
    texts = ["has the needle in it", "another", "the needle twice: the needle", "the needle, found by nobody"]
    ids = ["a", "b", "c", "d"]
    (pair,) = sentence_pairs([Passage("a", texts[0] + ". And more of it here.")], 1, 0)
    pair = replace(pair, needle="the needle")

    def side(*numbers: int) -> Ranked:
        return Ranked(np.array([numbers]), np.zeros((1, len(numbers)), np.float32))

    def judged(pairs: Sequence[Pair], *rankings: Ranked) -> list[Judgement]:
        return list(judged_by_text(pairs, rankings, ids, lambda numbers: [texts[n] for n in numbers]).judgements)

    assert judged([pair], side(1, NONE), side(1, 2)) == [Judgement("a", "a", 1), Judgement("a", "c", 1)]
    assert judged([pair], side(NONE, NONE), side(1, NONE)) == [Judgement("a", "a", 1)]
