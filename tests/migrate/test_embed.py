"""Rows to vectors and dead letters, by a real encoder with a damaged word."""

import pytest

from tests.server.inside import inside
from vecferry.embeddings import Outputs
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.errors import ServerFailed
from vecferry.migrate.embed import embed
from vecferry.model.artifact import Artifact
from vecferry.server.options import ServerLimits, ServerOptions
from vecferry.stores.values import Row


@pytest.fixture(scope="module")
def damaged(damaged_artifact: Artifact) -> Encoder:
    return load_runtime(EncoderOptions(artifact=damaged_artifact.path), "onnx")


@pytest.mark.parametrize("outputs", [Outputs.DENSE, Outputs.ALL])
def test_a_text_whose_vector_is_not_finite_is_a_dead_letter_and_the_others_are_done(
    damaged: Encoder, outputs: Outputs
) -> None:
    rows = [Row((str(n),), text) for n, text in enumerate(["peace", "a war", "words", "peace", "a war"])]
    embedded = embed(damaged, rows, outputs)
    assert [new.key for new in embedded.vectors if new.vectors is None] == [("1",), ("4",)]
    assert [letter.key for letter in embedded.dead_letters] == [("1",), ("4",)]
    assert {"not finite" in letter.reason for letter in embedded.dead_letters} == {True}


def test_a_text_that_a_server_cannot_encode_is_a_dead_letter_too(damaged: Encoder) -> None:
    limits = ServerLimits(max_text_chars=100)
    with inside(damaged, options=ServerOptions(limits=limits)) as server, RemoteEncoder(server.url) as remote:
        embedded = embed(remote, [Row(("1",), "peace"), Row(("2",), "long " * 30), Row(("3",), "a war")])
        assert [new.vectors is None for new in embedded.vectors] == [False, True, True]
        too_long, not_finite = embedded.dead_letters
        assert "characters of text 0: 150, and 100 is allowed" in too_long.reason
        assert "not finite" in not_finite.reason
        with pytest.raises(ServerFailed):
            embed(remote, [Row(("1",), "a war"), Row(("2",), "war of words")])


def test_a_few_rows_that_have_no_vector_all_of_them_end_no_run(damaged: Encoder) -> None:
    embedded = embed(damaged, [Row(("1",), "a war"), Row(("2",), "war of words")])
    assert [letter.key for letter in embedded.dead_letters] == [("1",), ("2",)]
