"""Which characters are highlighted, by a tiny model with all three heads and random weights."""

from collections.abc import Callable

import pytest

from vecferry.console.highlighting import LEVELS, Highlighter, Run, scores_of
from vecferry.embeddings import DENSE, Outputs, colbert_scores, dense_scores, lexical_scores
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.model.artifact import Artifact
from vecferry.model.tokens import Piece, Tokenizer

PASSAGE = "Oxygen was discovered by Scheele, اكتشف الأكسجين, 氧气由舍勒发现 in 1773. 😀"


@pytest.fixture(scope="module")
def encoder(tiny_artifact: Artifact) -> Encoder:
    return load_runtime(EncoderOptions(artifact=tiny_artifact.path), "onnx")


@pytest.fixture(scope="module")
def pieces(encoder: Encoder) -> Callable[[str], list[Piece]]:
    tokenizer = encoder.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    return lambda text: list(tokenizer.pieces(text))


def highlighted(
    encoder: Encoder,
    pieces: Callable[[str], list[Piece]],
    query: str,
    passage: str,
    prefixes: tuple[str, str] = ("", ""),
) -> tuple[Run, ...]:
    query_embeddings = encoder.encode([prefixes[0] + query], outputs=Outputs.ALL)
    passage_embeddings = encoder.encode([prefixes[1] + passage], outputs=Outputs.ALL)
    return Highlighter(query, query_embeddings, pieces, prefixes).highlight(passage, passage_embeddings, 0)


def message(runs: tuple[Run, ...]) -> str:
    """Return the text that the sparse head highlights."""
    return "".join(run.text for run in runs if run.word)


@pytest.mark.parametrize("query", ["who discovered oxygen?", "من اكتشف الأكسجين؟", "氧气", "x", "😀"])
@pytest.mark.parametrize("passage", [PASSAGE, "x", "", "  two  spaces  ", "\u0000 nothing"])
def test_the_runs_are_the_text(
    encoder: Encoder, pieces: Callable[[str], list[Piece]], query: str, passage: str
) -> None:
    assert "".join(run.text for run in highlighted(encoder, pieces, query, passage)) == passage


def test_words_that_both_have_are_highlighted_and_no_others(
    encoder: Encoder, pieces: Callable[[str], list[Piece]]
) -> None:
    """Of the words that both have, the head gives a weight to some."""
    query = "Scheele discovered oxygen in 1773"
    query_embeddings, passage_embeddings = (
        encoder.encode([text], outputs=Outputs.SPARSE).sparse.row(0) for text in (query, PASSAGE)
    )
    shared = [piece for piece in pieces(PASSAGE) if piece.id in query_embeddings.keys() & passage_embeddings.keys()]
    runs = highlighted(encoder, pieces, query, PASSAGE)
    assert message(runs) == "".join(piece.text for piece in shared) != ""
    assert max(run.word for run in runs) == LEVELS


def test_nothing_is_highlighted_by_words_where_none_is_shared(
    encoder: Encoder, pieces: Callable[[str], list[Piece]]
) -> None:
    assert message(highlighted(encoder, pieces, "氧气", "Scheele")) == ""


def test_the_best_match_of_a_token_in_the_same_text_is_itself(
    encoder: Encoder, pieces: Callable[[str], list[Piece]]
) -> None:
    """The cosine of a token with itself is 1, shown with two digits."""
    runs = highlighted(encoder, pieces, PASSAGE, PASSAGE)
    explained = [run for run in runs if run.why]
    assert {run.why.rpartition(" ")[2] for run in explained} == {"1.00"}
    highlighted_texts = "".join(run.text for run in runs if run.best)
    assert highlighted_texts.replace(" ", "") == PASSAGE.replace(" ", "")


def test_a_models_prefixes_are_not_highlighted_and_shift_nothing(
    encoder: Encoder, pieces: Callable[[str], list[Piece]]
) -> None:
    runs = highlighted(encoder, pieces, "discovered", PASSAGE, ("query: ", "passage: "))
    assert "".join(run.text for run in runs) == PASSAGE
    assert message(runs).strip() in "discovered"


def test_a_truncated_passage_is_highlighted_as_far_as_it_was_read(
    encoder: Encoder, pieces: Callable[[str], list[Piece]]
) -> None:
    passage = "word " * (encoder.space.max_tokens + 50) + "discovered"
    runs = highlighted(encoder, pieces, "discovered", passage)
    assert "".join(run.text for run in runs) == passage


def test_a_tokenizer_without_pieces_highlights_nothing(encoder: Encoder) -> None:
    assert highlighted(encoder, lambda _: [], "discovered", PASSAGE) == (Run(PASSAGE),)


def test_scores_are_those_of_the_heads(encoder: Encoder) -> None:
    query_embeddings = encoder.encode(["who discovered oxygen?"], outputs=Outputs.ALL)
    passage_embeddings = encoder.encode([PASSAGE, "another"], outputs=Outputs.ALL)
    for number, score in enumerate(scores_of(query_embeddings, passage_embeddings)):
        assert score.dense == dense_scores(query_embeddings, passage_embeddings)[0, number]
        assert score.sparse == lexical_scores(query_embeddings, passage_embeddings)[0, number]
        assert score.colbert == colbert_scores(query_embeddings, passage_embeddings)[0, number]
    dense_only = encoder.encode(["x"], outputs=DENSE)
    assert (scores_of(dense_only, dense_only)[0].sparse, scores_of(dense_only, dense_only)[0].colbert) == (None, None)
