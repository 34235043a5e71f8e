"""A live collection as a folder in BEIR layout: its rows, and what they are asked for, to be evaluated elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from vecferry.embeddings import Value
from vecferry.encode.encoder import Progress
from vecferry.errors import OutputWriteFailed, SettingsError, reason_of
from vecferry.evaluate import EvaluationOptions, QuerySet
from vecferry.evaluate.corpora import id_of
from vecferry.evaluate.qrels import MADE_FROM
from vecferry.evaluate.values import Judgement, Question
from vecferry.migrate.live_evaluation import ROWS_AT_ONCE, query_set_of
from vecferry.stores.protocol import Store
from vecferry.stores.values import EVERYTHING, KeyRange, Row

HEADER = "query-id\tcorpus-id\tscore\n"


@dataclass(frozen=True)
class Exported(Value):
    """What was written. without_text: rows that were left out. evidence: what the queries are."""

    folder: str
    passages: int
    without_text: int
    queries: int
    judgements: int
    evidence: str


def export_collection(
    store: Store, folder: Path, queries: Path | None, options: EvaluationOptions, progress: Progress
) -> Exported:
    """Write corpus.jsonl, queries.jsonl and qrels/test.tsv; `read_beir` reads them. Ids are the rows' keys.

    queries: as `query_set_of` takes them; one that was made from a row names it, and every row that contains it is
    judged to answer it. Rows are held a page at a time. The folder is there whole or not at all. Raises SettingsError
    for a folder that has something in it, and for a key that the layout cannot hold; MissingExtra, OutputWriteFailed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError("--export", folder, "a folder that is empty, or not there yet")
    asked = query_set_of(store, queries, options)
    with _whole(folder) as made:
        export = _Export(made, asked)
        export.write_corpus(_pages(store, progress))
        export.write_queries()
    return export.exported(folder)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a folder that takes the place of `folder` on leaving without an error; else nothing is left of it."""
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as beside:
            made = Path(beside) / "made"
            (made / "qrels").mkdir(parents=True)
            yield made
            made.rename(folder)
    except OSError as exc:
        raise OutputWriteFailed(folder, reason_of(exc)) from exc


def _pages(store: Store, progress: Progress) -> Iterator[list[Row]]:
    """Yield all rows, by ascending key, as they are when their page is read."""
    within, num_read, num_rows = EVERYTHING, 0, store.counts().rows
    while page := store.rows_within(within, ROWS_AT_ONCE):
        yield page
        within, num_read = KeyRange(page[-1].key, None), num_read + len(page)
        progress(num_read, max(num_read, num_rows))


class _Export:
    """Files in a folder, and what was written to them."""

    def __init__(self, folder: Path, asked: QuerySet) -> None:
        self._folder, self._asked = folder, asked
        self._passages = self._without_text = self._num_judgements = 0

    def write_corpus(self, pages: Iterable[Sequence[Row]]) -> None:
        """Write every row that has a text; judge it where a question was taken from it or from one like it.

        Raises SettingsError.
        """
        with self._opened("corpus.jsonl") as corpus, self._opened("qrels/test.tsv") as qrels:
            qrels.write(HEADER)
            self._judge(qrels, self._asked.queries.judgements if self._asked.queries is not None else ())
            for row in (row for page in pages for row in page):
                if row.text is None:
                    self._without_text += 1
                    continue
                id_, self._passages = id_of(row.key), self._passages + 1
                corpus.write(_line({"_id": id_, "title": "", "text": row.text}))
                self._judge(qrels, self._judgements_of(id_, row.text))

    def _judgements_of(self, id_: str, text: str) -> Iterator[Judgement]:
        for pair in self._asked.pairs:
            if pair.origin == id_ or pair.needle in text:
                yield Judgement(pair.question.id, id_, 1)

    def _judge(self, qrels: TextIO, judgements: Iterable[Judgement]) -> None:
        for judgement in judgements:
            qrels.write(_judged(judgement))
            self._num_judgements += 1

    def write_queries(self) -> None:
        """Write the questions with their slices."""
        origins = {pair.question.id: pair.origin for pair in self._asked.pairs}
        with self._opened("queries.jsonl") as file:
            file.writelines(_line(_record(each, origins.get(each.id, ""))) for each in self._asked.questions)

    def _opened(self, name: str) -> TextIO:
        return (self._folder / name).open("w", encoding="utf-8", errors="surrogatepass")

    def exported(self, folder: Path) -> Exported:
        queries, evidence = len(self._asked.questions), self._asked.evidence
        return Exported(str(folder), self._passages, self._without_text, queries, self._num_judgements, evidence)


def _record(question: Question, made_from: str) -> dict[str, Any]:
    """Return a query as it stands in the file, with the passage that it was made from, if it was."""
    record = {"_id": question.id, "text": question.text, "metadata": dict(question.slices)}
    return record | {MADE_FROM: made_from} if made_from else record


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _judged(judgement: Judgement) -> str:
    """Return a line of the judgements. Raises SettingsError for an id with a tab or a line break."""
    for id_ in (judgement.query_id, judgement.passage_id):
        if "\t" in id_ or id_.splitlines() != [id_]:
            raise SettingsError("--export", repr(id_), "a key that the layout can hold, without tab and line break")
    return f"{judgement.query_id}\t{judgement.passage_id}\t{judgement.relevance}\n"
