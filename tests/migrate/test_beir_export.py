"""A collection that is written in BEIR layout is read back as it is, and evaluates as it does live."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from vecferry.embeddings import TextVectors
from vecferry.errors import SettingsError
from vecferry.evaluate import (
    EvaluatedModel,
    Evaluation,
    EvaluationOptions,
    FolderCorpus,
    read_beir,
    run_evaluation,
)
from vecferry.evaluate.qrels import read_passages
from vecferry.evaluate.questions import read_query_set
from vecferry.migrate import beir_export
from vecferry.migrate.beir_export import export_collection
from vecferry.migrate.live_evaluation import evaluation_of_store, rows_of_ids
from vecferry.stores.backend import Point
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.pgvector.connection import Database, Fragment, Params
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.text_source import FieldText
from vecferry.stores.values import Row

DIMENSION, COUNT = 16, 40
MODELS = EvaluatedModel("old", TruthEncoder("old", DIMENSION)), EvaluatedModel("new", TruthEncoder("new", DIMENSION))
OPTIONS = EvaluationOptions(sample=0)


def text(number: int) -> str:
    return f"the first sentence of text number {number}. the second one is here too, in text {number}."


def store_of(points: Sequence[Point]) -> MirrorStore:
    return MirrorStore(MemoryBackend({"docs": points}), "docs", SqliteLedger.in_memory(), FieldText("text"))


def point(key: str, text: str | None, **payload: str) -> Point:
    return Point(key, text, TextVectors(truth("old", text or "", DIMENSION)), payload)


@pytest.fixture
def store() -> Iterator[MirrorStore]:
    """Forty rows, one of which has a "/" in its key, with a title that says which one is meant."""
    points = [point(f"docs/{n}" if n == 7 else str(n), text(n), title=f"how to cross river {n}") for n in range(COUNT)]
    with closing(store_of(points)) as store:
        yield store


def exported(store: MirrorStore, folder: Path, queries: Path | None = None) -> list[tuple[int, int]]:
    """Export the store; return what the progress bar was told."""
    told: list[tuple[int, int]] = []
    export_collection(store, folder, queries, OPTIONS, lambda done, total: told.append((done, total)))
    return told


def figures(evaluation: Evaluation) -> tuple[object, ...]:
    systems = [(system.side, system.method, dict(system.metrics)) for system in evaluation.systems]
    return evaluation.queries_asked, evaluation.evidence, systems, [score.value for score in evaluation.slices]


def evaluated(folder: Path) -> Evaluation:
    corpus = FolderCorpus("folder", read_passages(folder), *MODELS, OPTIONS.outputs, lambda _: None)
    return run_evaluation(corpus, read_query_set(folder), OPTIONS, lambda _: None)


def test_a_folder_evaluates_as_the_collection_does_live(store: MirrorStore, tmp_path: Path) -> None:
    exported(store, tmp_path / "out")
    live = evaluation_of_store(store, MODELS, None, OPTIONS, lambda _: None, {})
    assert figures(evaluated(tmp_path / "out")) == figures(live)
    assert live.evidence == "pairs from the corpus"
    assert {score.by for score in live.slices} >= {"all", "asked for"}


def test_rows_are_read_page_by_page_and_come_back_with_their_keys(
    store: MirrorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beir_export, "ROWS_AT_ONCE", 15)
    assert exported(store, tmp_path / "out") == [(15, 40), (30, 40), (40, 40)]
    passages = {passage.id: passage.full for passage in read_beir(tmp_path / "out").passages}
    assert passages == {f"docs/{n}" if n == 7 else str(n): text(n) for n in range(COUNT)}
    assert {row.key for row in rows_of_ids(store, passages)} == {(id_,) for id_ in passages}
    assert not [path for path in tmp_path.iterdir() if path.name != "out"]


def test_an_export_holds_a_page_of_rows_at_a_time(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are the rows of every answer of the database, keys alone included, and the `Row`s that are alive."""
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, embedding vector(2))")
    connection.execute("INSERT INTO docs SELECT n, 'a sentence in row ' || n, '[1,0]' FROM generate_series(1, 100) n")
    monkeypatch.setattr(beir_export, "ROWS_AT_ONCE", 10)
    answered, alive = list[int](), list[int]()
    read = Database.rows

    def counted(self: Database, query: Fragment | str, params: Params = ()) -> list[tuple[Any, ...]]:
        rows = read(self, query, params)
        answered.append(len(rows))
        return rows

    monkeypatch.setattr(Database, "rows", counted)
    few = EvaluationOptions(sample=0, max_queries=3)
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        answered.clear()  # of the catalogue
        written = export_collection(store, tmp_path / "out", None, few, lambda *_: alive.append(rows_alive()))
    assert (written.passages, len(alive)) == (100, 10)
    assert max(answered) <= 10
    assert max(alive) <= 2 * 10


def rows_alive() -> int:
    return sum(type(each) is Row for each in gc.get_objects())


def test_a_query_is_answered_by_every_row_that_contains_it(tmp_path: Path) -> None:
    twins = [point("a", text(1)), point("b", text(1)), *(point(str(n), text(n)) for n in range(2, 30))]
    with closing(store_of(twins)) as store:
        exported(store, tmp_path / "out")
    judged = read_beir(tmp_path / "out").queries.judgements
    assert {j.passage_id for j in judged if j.query_id in "ab"} == {"a", "b"}


def test_judged_queries_are_written_as_they_are(store: MirrorStore, tmp_path: Path) -> None:
    (tmp_path / "judged" / "qrels").mkdir(parents=True)
    (tmp_path / "judged" / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "where?", "lang": "en"}))
    (tmp_path / "judged" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tdocs/7\t2\n")
    exported(store, tmp_path / "out", tmp_path / "judged")
    queries = read_beir(tmp_path / "out").queries
    assert [(question.text, question.slices) for question in queries.questions] == [("where?", {"language": "en"})]
    assert [(j.query_id, j.passage_id, j.relevance) for j in queries.judgements] == [("q", "docs/7", 2)]
    assert read_query_set(tmp_path / "out").evidence == "judged queries"


def test_a_row_without_a_text_is_left_out_and_counted(tmp_path: Path) -> None:
    with closing(store_of([point("none", None), *(point(str(n), text(n)) for n in range(5))])) as store:
        written = export_collection(store, tmp_path / "out", None, OPTIONS, lambda done, total: None)
    assert (written.passages, written.without_text) == (5, 1)


def test_a_folder_with_something_in_it_is_refused(store: MirrorStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(SettingsError, match="a folder that is empty"):
            exported(store, taken)
    (tmp_path / "empty").mkdir()
    exported(store, tmp_path / "empty")
    assert (tmp_path / "empty" / "corpus.jsonl").exists()


def test_a_key_that_the_layout_cannot_hold_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with (
        closing(store_of([point("a\tb", text(1)), point("c", text(2))])) as store,
        pytest.raises(SettingsError, match="without tab and line break"),
    ):
        exported(store, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_keys_of_several_parts_come_back_as_they_are(
    connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    connection.execute("CREATE TABLE parts (shop text, id int, body text, embedding vector(2), PRIMARY KEY (shop, id))")
    for n in range(3):
        connection.execute("INSERT INTO parts VALUES ('eu', %s, %s, '[1,0]')", [n, text(n)])
    with PgVectorStore.connect(database_url, "parts", "body", "embedding") as store:
        export_collection(store, tmp_path / "out", None, OPTIONS, lambda done, total: None)
        labelled = read_beir(tmp_path / "out")
        assert [passage.id for passage in labelled.passages] == ["eu/0", "eu/1", "eu/2"]
        judged = {judgement.passage_id for judgement in labelled.queries.judgements}
        assert {row.key for row in rows_of_ids(store, judged)} == {("eu", str(n)) for n in range(3)}
