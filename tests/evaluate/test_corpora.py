"""The same passages in a folder and in a live store give the same answers."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psycopg
import pytest

from tests.evaluate.doubles import TopicEncoder, passages_about, queries_about
from tests.postgres import connection, database_url, postgres_url
from tests.stores.collections import MirrorCollection, mirror_collection
from vecferry.embeddings import DENSE, Embeddings, Outputs
from vecferry.encode import progress
from vecferry.encode.batching import Limits
from vecferry.encode.encoder import Encoder
from vecferry.evaluate import (
    EvaluatedModel,
    EvaluationOptions,
    FolderCorpus,
    Passage,
    QuerySet,
    StoreCorpus,
    run_evaluation,
)
from vecferry.evaluate.corpora import Side, id_of
from vecferry.evaluate.ranking import NONE, Ranked
from vecferry.migrate import Migration, MigrationOptions
from vecferry.model.artifact import Artifact

__all__ = ["connection", "database_url", "postgres_url"]

COUNT = 30
OLD = TopicEncoder("old", 1.0, dimension=16, max_tokens=10)
NEW = TopicEncoder("new", 1.0, heads=("dense", "sparse", "colbert"))
MODELS = EvaluatedModel("old", OLD), EvaluatedModel("new", NEW)
SIDES: tuple[Side, ...] = ("old", "new")
PASSAGES = (*passages_about(COUNT - 1), Passage(str(COUNT), "short"))
QUESTIONS = [question.text for question in queries_about(COUNT).questions]


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[MirrorCollection]:
    """Yield a collection with both sides, of which the old one serves."""
    with mirror_collection("memory", tmp_path) as made:
        for passage, vector in zip(PASSAGES, OLD.encode([p.text for p in PASSAGES]).dense, strict=True):
            made.put(int(passage.id), passage.text, vector)
        fill_new_side(made, tmp_path)
        yield made


def fill_new_side(collection: MirrorCollection, staging: Path) -> None:
    """Fill the new side, also with what was written since it was filled before."""
    Migration(
        collection.store,
        new=NEW,
        options=MigrationOptions(accept_unconfirmed="a test", old_fingerprint=OLD.fingerprint, staging=staging),
    ).start()


def folder(outputs: Outputs = DENSE) -> FolderCorpus:
    return FolderCorpus("folder", PASSAGES, *MODELS, outputs, lambda _: None)


def queries_of(side: Side) -> Embeddings:
    return (OLD if side == "old" else NEW).encode(QUESTIONS, role="query")


def named(corpus: FolderCorpus | StoreCorpus, ranking: Ranked) -> list[list[str]]:
    ids = list(corpus.ids)
    return [[ids[number] for number in row if number != NONE] for row in ranking.passages.tolist()]


@pytest.mark.parametrize("side", SIDES)
def test_a_folder_and_a_store_answer_alike(collection: MirrorCollection, side: Side) -> None:
    store, here = StoreCorpus(collection.store, *MODELS), folder()
    stored, evaluation = store.search(side, queries_of(side), 10), here.search(side, queries_of(side), 10)
    assert named(store, stored) == named(here, evaluation)
    # The store's cosine is divided by lengths that are 1 within float32's 6e-8.
    np.testing.assert_allclose(stored.scores, evaluation.scores, atol=1e-6)
    assert store.num_passages == here.num_passages == COUNT
    texts = [store.texts(row) for row in stored.passages.tolist()]
    assert texts == [here.texts(row) for row in evaluation.passages.tolist()]


def test_a_store_numbers_rows_as_they_are_found_and_both_sides_have_the_same_numbers(
    collection: MirrorCollection,
) -> None:
    corpus = StoreCorpus(collection.store, *MODELS)
    assert list(corpus.ids) == []
    first = corpus.search("old", queries_of("old").take(np.array([4])), 3)
    assert first.passages.tolist() == [[0, 1, 2]]
    assert corpus.ids[0] == "5"
    second = corpus.search("new", queries_of("new").take(np.array([4])), 3)
    assert second.passages[0, 0] == 0
    assert len(set(corpus.ids)) == len(corpus.ids)


def test_where_fewer_are_there_than_asked_for_the_rest_is_none(collection: MirrorCollection) -> None:
    evaluation = StoreCorpus(collection.store, *MODELS).search("old", queries_of("old"), COUNT + 5)
    assert evaluation.passages.shape == (COUNT, COUNT + 5)
    assert (evaluation.passages[:, COUNT:] == NONE).all()
    assert (evaluation.scores[:, COUNT:] == -np.inf).all()


def test_which_passages_the_old_model_cuts_is_told_of_those_that_are_there(collection: MirrorCollection) -> None:
    store, here = StoreCorpus(collection.store, *MODELS), folder()
    assert store.are_cut(["1"]) == {}  # nothing was found yet
    store.search("old", queries_of("old"), COUNT)
    expected = {"1": True, str(COUNT): False}
    assert store.are_cut(["1", "none", str(COUNT)]) == here.are_cut(["1", "none", str(COUNT)]) == expected


def test_the_heads_of_some_passages_are_those_of_their_texts(collection: MirrorCollection) -> None:
    store, here = StoreCorpus(collection.store, *MODELS), folder(Outputs.ALL)
    store.search("old", queries_of("old"), COUNT)
    numbers = np.array([0, 3, 7])
    for corpus in (store, here):
        evaluation = corpus.embeddings(numbers, Outputs.ALL)
        expected = NEW.encode(corpus.texts(numbers.tolist()), outputs=Outputs.ALL)
        np.testing.assert_array_equal(evaluation.dense, expected.dense)
        np.testing.assert_array_equal(evaluation.sparse.indices, expected.sparse.indices)
        np.testing.assert_array_equal(evaluation.colbert.vectors, expected.colbert.vectors)


def test_an_encoding_that_takes_long_says_how_far_it_is(
    tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, told = itertools.count(step=60), list[str]()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    opened = Encoder.open(tiny_artifact.path)
    encoder = Encoder(opened.tokenizer, opened.runtime, Limits(max_batch_rows=1))
    EvaluatedModel("tiny", encoder).encode(["one", "two", "three"], told.append, "encoding")
    assert told == ["encoding", "encoding: 1 of 3", "encoding: 2 of 3, about 0:01:00 left"]


def test_words_are_searched_in_a_folder_only(collection: MirrorCollection) -> None:
    queries = NEW.encode(QUESTIONS[:3], outputs=Outputs.ALL)
    evaluation = folder(Outputs.ALL).search_words(queries, 2)
    assert evaluation is not None
    assert [row[0] for row in named(folder(), evaluation)] == ["1", "2", "3"]
    assert StoreCorpus(collection.store, *MODELS).search_words(queries, 2) is None


@pytest.mark.parametrize("outputs", [Outputs.ALL, Outputs.COLBERT, Outputs.SPARSE])
def test_heads_that_the_new_model_lacks_are_left_out(outputs: Outputs) -> None:
    corpus = FolderCorpus("folder", PASSAGES, MODELS[1], MODELS[0], outputs, lambda _: None)
    held = corpus.embeddings(np.arange(2), DENSE)
    assert held.dense.shape == (2, OLD.dimension)
    assert held.sparse_or_none is None


def test_a_sample_holds_the_same_passages_under_both_models(collection: MirrorCollection) -> None:
    for corpus in (StoreCorpus(collection.store, *MODELS), folder()):
        sample = corpus.sample(7, 1)
        texts = [passage.text for passage in sample.passages]
        assert len({passage.id for passage in sample.passages}) == 7
        np.testing.assert_array_equal(sample.old.dense, OLD.encode(texts).dense)
        np.testing.assert_array_equal(sample.new.dense, NEW.encode(texts).dense)
        assert len(corpus.sample(COUNT + 9, 1).passages) == COUNT
        assert all(rate is not None and rate > 0 for rate in corpus.texts_per_s)
    assert folder().sample(7, 1).passages == folder().sample(7, 1).passages != folder().sample(7, 2).passages


def test_a_row_that_is_deleted_meanwhile_has_no_text(collection: MirrorCollection) -> None:
    corpus = StoreCorpus(collection.store, *MODELS)
    corpus.search("old", queries_of("old"), COUNT)
    collection.remove(3)
    number = list(corpus.ids).index("3")
    assert corpus.texts([number]) == [""]
    assert corpus.are_cut(["3"]) == {"3": False}
    assert len(corpus.embeddings(np.array([number]), DENSE)) == 1


def test_a_store_is_evaluated_with_every_head_of_the_new_model(collection: MirrorCollection) -> None:
    options = EvaluationOptions(outputs=Outputs.ALL, sample=20, thresholds={"related": 0.4})
    evaluation = run_evaluation(StoreCorpus(collection.store, *MODELS), QuerySet(queries_about(COUNT - 1)), options)
    here = run_evaluation(folder(), QuerySet(queries_about(COUNT - 1)), replace(options, outputs=DENSE))
    assert evaluation.queries == here.queries
    assert evaluation.gate == here.gate
    means = {system.method: system.metrics["nDCG@10"].mean for system in evaluation.systems if system.side == "new"}
    assert list(means) == ["dense", "sparse", "colbert", "hybrid"]
    assert means["sparse"] > 0.9  # of what dense search found, the words tell the right one
    assert evaluation.map is not None
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_a_store_without_rows_is_evaluated_too(collection: MirrorCollection, tmp_path: Path) -> None:
    for number in range(1, COUNT + 1):
        collection.remove(number)
    fill_new_side(collection, tmp_path)
    evaluation = run_evaluation(
        StoreCorpus(collection.store, *MODELS), QuerySet(queries_about(COUNT)), EvaluationOptions()
    )
    assert (evaluation.gate.verdict, evaluation.passages, evaluation.map) == ("inconclusive", 0, None)


def test_a_key_of_several_parts_is_joined(connection: psycopg.Connection, database_url: str) -> None:
    from vecferry.stores.pgvector import PgVectorStore

    connection.execute(
        "CREATE TABLE docs (shop text, id integer, body text, embedding vector(16), PRIMARY KEY (shop, id))"
    )
    for number, vector in enumerate(OLD.encode([p.text for p in PASSAGES[:4]]).dense):
        connection.execute(
            "INSERT INTO docs VALUES (%s, %s, %s, %s::real[]::vector)",
            [f"shop {number % 2}", number, PASSAGES[number].text, vector.tolist()],
        )
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        corpus = StoreCorpus(store, *MODELS)
        evaluation = corpus.search("old", queries_of("old").take(np.arange(2)), 4)
        assert {*corpus.ids} == {"shop 0/0", "shop 1/1", "shop 0/2", "shop 1/3"}
        assert [row[0] for row in named(corpus, evaluation)] == ["shop 0/0", "shop 1/1"]
        assert corpus.texts([int(evaluation.passages[1, 0])]) == [PASSAGES[1].text]
    assert id_of(("one",)) == "one"
