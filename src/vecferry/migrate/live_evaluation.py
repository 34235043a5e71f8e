"""What a live collection is asked, and whether its sides or a sample of its rows can answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vecferry.evaluate import (
    EvaluatedModel,
    Evaluation,
    EvaluationOptions,
    FolderCorpus,
    Passage,
    QuerySet,
    StoreCorpus,
    read_log,
    run_evaluation,
)
from vecferry.evaluate.corpora import Stage, id_of
from vecferry.evaluate.pairs import MAX_CHARS, MIN_CHARS, Pair, sentence_pairs
from vecferry.evaluate.questions import chosen, read_query_set
from vecferry.evaluate.values import Question
from vecferry.migrate.states import CAUGHT_UP, State
from vecferry.stores.marks import side_asked
from vecferry.stores.protocol import Store
from vecferry.stores.text_source import TextSource, scalar_paths
from vecferry.stores.values import Row, StoredRow

PAIRS = 500
ROWS_IN_MEMORY = 2000
ROWS_AT_ONCE = 1000
DISTINCT = 0.8
"""The share of different values from which a field says which row is meant."""
ASKED = "asked for"
SPARE = 3
"""So many rows are looked at for each question, since some are too short to give one."""


def query_set_of(
    store: Store, queries: Path | None, options: EvaluationOptions, rows: Sequence[StoredRow] | None = None
) -> QuerySet:
    """Return judged queries of a BEIR folder, whose document ids are the rows' keys; or pairs, and a query log.

    rows: that pairs are made of; by default a sample of the store. Raises SettingsError, MissingExtra.
    """
    asked = read_question_files(queries)
    if asked.questions:
        return asked
    if rows is None:
        rows = store.sample_stored(SPARE * (options.max_queries or PAIRS))
    return replace(asked, pairs=pairs_of(rows, store.traits.source, options))


def read_question_files(queries: Path | None) -> QuerySet:
    """Read the queries of a folder in BEIR layout, or the log in a file. Raises SettingsError, MissingExtra."""
    if queries is not None and queries.is_dir():
        return read_query_set(queries)
    return QuerySet(log=read_log(queries) if queries is not None else ())


def pairs_of(rows: Sequence[StoredRow], source: TextSource, options: EvaluationOptions) -> tuple[Pair, ...]:
    """Ask for rows by a sentence of their text, and half of them by a title or what else says which row is meant.

    Sentences alone cannot see that a title was embedded and is not any more.
    """
    rows, number = sorted(rows, key=lambda row: row.key), options.max_queries or PAIRS
    values = {path: at for path, at in _telling_values(rows).items() if path not in source.fields[-1:]}
    asked = [
        Pair(Question(f"{id_} {path}", value, {ASKED: path}), id_, value)
        for path, by_id in values.items()
        for id_, value in by_id.items()
    ]
    by_field = chosen(asked, number // 2, options.seed)
    slices = {ASKED: "a sentence"} if by_field else {}
    passages = [Passage(id_of(row.key), source.render(row.fields) or "", slices=slices) for row in rows]
    return sentence_pairs(passages, number - len(by_field), options.seed) + by_field


def _telling_values(rows: Sequence[StoredRow]) -> dict[str, dict[str, str]]:
    """Return, by the path of a field, the values by row of those that say which row is meant, as titles do."""
    values: dict[str, dict[str, str]] = {}
    for row in rows:
        for path, value in scalar_paths(row.fields):
            if " " in value.strip() and MIN_CHARS <= len(value) <= MAX_CHARS:
                values.setdefault(path, {})[id_of(row.key)] = value
    return {
        path: by_id
        for path, by_id in values.items()
        if len(by_id) >= len(rows) / 2 and len(set(by_id.values())) >= DISTINCT * len(by_id)
    }


def evaluation_of_store(
    store: Store,
    models: tuple[EvaluatedModel, EvaluatedModel],
    queries: Path | None,
    options: EvaluationOptions,
    stage: Stage,
    provenance: Mapping[str, Any],
) -> Evaluation:
    """Evaluate both sides of a live collection; a sample of its rows in memory where these are not both there.

    Raises what `run_evaluation` does.
    """
    if are_both_sides_there(store, *models):
        asked = query_set_of(store, queries, options)
        return run_evaluation(StoreCorpus(store, *models, stage=stage), asked, options, stage, provenance)
    rows, source = store.sample_stored(ROWS_IN_MEMORY), store.traits.source
    asked = query_set_of(store, queries, options, rows)
    passages = {id_of(row.key): Passage(id_of(row.key), source.render(row.fields) or "") for row in rows}
    missing = asked.passage_ids - passages.keys()
    passages |= {id_of(row.key): Passage(id_of(row.key), row.text or "") for row in rows_of_ids(store, missing)}
    name = f"{store.target}, {len(passages):,} of its rows in memory"
    corpus = FolderCorpus(name, tuple(passages.values()), *models, options.outputs, stage)
    return run_evaluation(corpus, asked, options, stage, provenance)


def are_both_sides_there(store: Store, old: EvaluatedModel, new: EvaluatedModel) -> bool:
    """Say whether each side is known to be of its model, and has a vector for every row."""
    record = store.ledger.find(store.target)
    if record is None:
        return False
    state = State(record.paused.before if record.paused else record.state)
    sides = ((old, record.spec.old_fingerprint), (new, record.spec.fingerprint))
    are_asked = [mark is not None and side_asked(store, model.encoder.space.mark()) == mark for model, mark in sides]
    return state in CAUGHT_UP and all(are_asked)


def rows_of_ids(store: Store, ids: Collection[str]) -> Iterator[Row]:
    """Yield the rows that are named as `id_of` does, a part of them at a time.

    A "/" parts a key, or stands in one: a key of another number of parts than the store's is no row's.
    """
    ordered = sorted(ids)
    for first in range(0, len(ordered), ROWS_AT_ONCE):
        some = ordered[first : first + ROWS_AT_ONCE]
        yield from store.rows([key for id_ in some for key in dict.fromkeys([(id_,), tuple(id_.split("/"))])])
