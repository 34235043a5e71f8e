"""A live collection is asked on sides that are there, and otherwise rows of it are encoded in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.migrate.doubles import TruthEncoder, truth
from vecferry.embeddings import TextVectors
from vecferry.evaluate import EvaluatedModel, Evaluation, EvaluationOptions
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.live_evaluation import evaluation_of_store, pairs_of
from vecferry.stores.backend import Point
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.text_source import FieldText

DIMENSION = 16
OLD, NEW = TruthEncoder("old", DIMENSION), TruthEncoder("new", DIMENSION)
MODELS = EvaluatedModel("old", OLD), EvaluatedModel("new", NEW)
OPTIONS = EvaluationOptions(sample=0)


@pytest.fixture
def store() -> Iterator[MirrorStore]:
    """Forty rows with a title that says which one is meant; both models have vectors of as many numbers."""
    points = [
        Point(
            str(n),
            f"the first sentence of text number {n}. the second one is here too.",
            TextVectors(truth("old", f"the first sentence of text number {n}. the second one is here too.", DIMENSION)),
            {"title": f"how to cross river number {n}", "author": "somebody@example.org", "kind": "a kind of document"},
        )
        for n in range(40)
    ]
    with closing(
        MirrorStore(MemoryBackend({"docs": points}), "docs", SqliteLedger.in_memory(), FieldText("text"))
    ) as store:
        yield store


def evaluated(store: MirrorStore) -> Evaluation:
    return evaluation_of_store(store, MODELS, None, OPTIONS, lambda _: None, {})


def test_before_start_the_new_model_is_not_asked_of_the_old_vectors(store: MirrorStore) -> None:
    evaluation = evaluated(store)
    assert evaluation.target.endswith("40 of its rows in memory")
    assert evaluation.passages == 40


def test_a_migration_that_has_caught_up_is_asked_on_both_sides(store: MirrorStore, tmp_path: Path) -> None:
    options = MigrationOptions(staging=tmp_path, min_free_gb=0)
    migration = Migration(store, new=NEW, old=OLD, options=options)
    migration.start()
    assert evaluated(store).target == store.target
    migration.abort()
    assert evaluated(store).target.endswith("in memory")


def test_sides_of_other_models_are_not_asked(store: MirrorStore, tmp_path: Path) -> None:
    options = MigrationOptions(staging=tmp_path, min_free_gb=0, accept_unconfirmed="a test")
    Migration(store, new=NEW, old=TruthEncoder("other", DIMENSION), options=options).start()
    assert evaluated(store).target.endswith("in memory")


def test_half_of_the_questions_are_titles_and_a_slice_of_their_own(store: MirrorStore) -> None:
    pairs = pairs_of(store.sample_stored(40), FieldText("text"), EvaluationOptions(max_queries=20))
    asked = [pair.question.slices for pair in pairs]
    assert asked.count({"asked for": "title"}) == 10
    assert len(asked) == 20
    assert all("kind" not in slices.values() for slices in asked)  # says of no row which one it is
    assert any(score.value == "title" for score in evaluated(store).slices)
