"""Logs, the choice of questions, and the slices that they fall into."""

from pathlib import Path

import pytest

from tests.evaluate.doubles import queries_about
from vecferry.errors import SettingsError, UnreadableFile
from vecferry.evaluate import Passage, QuerySet, Question, read_log
from vecferry.evaluate.pairs import sentence_pairs
from vecferry.evaluate.questions import chosen, script_of, sliced


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "queries"),
    [
        ("log.txt", "one\n\n  two \none\r\n   \nthree", ("one", "two", "three")),
        ("log.txt", "\ufeffone\ntwo\x85of it\n", ("one", "two\x85of it")),
        ("log.jsonl", '{"text": "one"}\n{"query": "two", "at": 1}\n\n{"text": "one"}\n', ("one", "two")),
        ("log.jsonl", '{"query": "line\u2028break"}\r\n{"query": " "}\n', ("line\u2028break",)),
    ],
)
def test_a_log_is_its_distinct_queries_in_their_order(
    tmp_path: Path, name: str, content: str, queries: tuple[str, ...]
) -> None:
    assert read_log(written(tmp_path, name, content)) == queries


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.txt", " \n\n", "one that has queries"),
        ("log.jsonl", '{"text": ""}\n', "one that has queries"),
        ("log.jsonl", "plain text\n", "a query a line, or JSON lines"),
        ("log.jsonl", '{"question": "one"}\n', '"text" or "query" (KeyError'),
        ("log.jsonl", '"one"\n', "a query a line, or JSON lines"),
        ("log.jsonl", "[1]\n", "a query a line, or JSON lines"),
        ("log.jsonl", '{"text": null}\n', "a query that is no text: None"),
        ("log.jsonl", '{"text": ["one"]}\n', "a query that is no text"),
    ],
)
def test_another_form_of_log_is_refused_by_name(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(SettingsError, match="the query log") as caught:
        read_log(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_log_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="the query log"):
        read_log(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("Fähre\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="the query log"):
        read_log(tmp_path / "latin.txt")


# --- what is asked --------------------------------------------------------------------------------

PASSAGES = [Passage(str(n), f"This is one sentence of {n}. This is another one of {n}.") for n in range(30)]


def test_what_is_asked_and_what_it_is_worth() -> None:
    judged, pairs = queries_about(9), sentence_pairs(PASSAGES, 9, 0)
    assert QuerySet(judged).evidence == "judged queries"
    assert QuerySet(judged).questions == judged.questions
    assert QuerySet(pairs=pairs).evidence == "pairs from the corpus"
    assert QuerySet(pairs=pairs).questions == tuple(pair.question for pair in pairs)
    assert QuerySet(pairs=pairs, log=("one",)).evidence == "query log"
    assert QuerySet().questions == ()


def test_at_most_so_many_of_each_kind_are_chosen_by_the_seed() -> None:
    query_set = QuerySet(queries_about(30), sentence_pairs(PASSAGES, 20, 0), tuple("abcdefghij"))
    few = query_set.limited(5, 1)
    assert few.queries is not None
    assert (len(few.questions), len(few.pairs), len(few.log)) == (5, 5, 5)
    assert {judgement.query_id for judgement in few.queries.judgements} == {question.id for question in few.questions}
    assert few == query_set.limited(5, 1)
    assert few != query_set.limited(5, 2)
    assert query_set.limited(None, 1) == query_set.limited(99, 1) == query_set


def test_chosen_keeps_the_order() -> None:
    assert chosen("abc", 3, 0) == chosen("abc", None, 0) == ("a", "b", "c")
    assert list(chosen(range(100), 20, 4)) == sorted(chosen(range(100), 20, 4))


# --- slices ---------------------------------------------------------------------------------------


def slices_of(question: Question, truncated: dict[str, bool] | None = None) -> dict[str, str]:
    (question_with_slices,) = sliced([question], {question.id: ["p1", "p2", "gone"]}, truncated or {}, 256)
    return dict(question_with_slices.slices)


@pytest.mark.parametrize(
    ("message", "length"),
    [(2, "under 4 words"), (3, "under 4 words"), (4, "4 to 9 words"), (9, "4 to 9 words"), (10, "10 words or more")],
)
def test_the_length_of_a_query_is_told_in_words(message: int, length: str) -> None:
    assert slices_of(Question("q", " ".join(["word"] * message))) == {"script": "Latin", "query length": length}


def test_words_are_not_counted_where_no_space_tells_them() -> None:
    assert slices_of(Question("q", "渡轮几点出发？")) == {"script": "Han"}


def test_where_a_language_is_said_the_script_is_not() -> None:
    assert slices_of(Question("q", "渡轮", {"language": "zh", "kind": "fact"})) == {"language": "zh", "kind": "fact"}


def test_what_a_question_says_of_itself_is_kept() -> None:
    assert slices_of(Question("q", "two words", {"query length": "mine"}))["query length"] == "mine"


@pytest.mark.parametrize(
    ("truncated", "length"),
    [
        ({"p1": False, "p2": False}, "up to 256 tokens"),
        ({"p1": False, "p2": True}, "over 256 tokens"),
        ({"p2": True, "other": False}, "over 256 tokens"),
        ({"other": True}, None),
    ],
)
def test_the_length_of_passages_is_told_by_what_the_old_model_cuts(
    truncated: dict[str, bool], length: str | None
) -> None:
    assert slices_of(Question("q", "?"), truncated).get("passage length") == length


@pytest.mark.parametrize(
    ("text", "script"),
    [("Fähre um 9", "Latin"), ("паром", "Cyrillic"), ("العبّارة", "Arabic"), ("渡轮", "Han"), ("フェリー", "Japanese"),
     ("नाव", "Devanagari"), ("페리", "Hangul"), ("12 + 3!", "none"), ("", "none"), ("a паром", "Cyrillic")],
)  # fmt: skip
def test_the_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script
