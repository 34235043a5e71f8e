"""What a migration would take, from what the collection is now and a sample that was really encoded."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vecferry.embeddings import DENSE, Embeddings, Outputs
from vecferry.encode.encoder import Role, TextEncoder
from vecferry.migrate.embed import Embedded, embed
from vecferry.migrate.preflight import NewSide, Preflight, vector_bytes_each
from vecferry.migrate.provenance import Provenance
from vecferry.migrate.values import Cost, Plan, Problem, Resources
from vecferry.stores.protocol import Store, members_of
from vecferry.stores.values import Dependent, Layout, LayoutCost, Row, TableInfo, tell_nobody

PAGE_BYTES = 8192
PAGE_SLACK = 1.2
"""Pages are not full, and vectors of more than 2 kB lie apart from their row, with an index of their own."""
GRAPH_BYTES = 400
"""An HNSW element's neighbours and headers, at m = 16."""
COLBERT_NUMBER_BYTES = 2
SPARSE_ENTRY_BYTES = 8

FIRST_ROWS = 8
SAMPLE_S = 4.0
"""What encoding the sample may take, so that a plan is there within ten seconds of the models being loaded."""

Look = Callable[[TableInfo, NewSide], Preflight]
"""What is looked at before a migration begins, for a collection and the side that is to be made."""


def make_plan(
    store: Store,
    encoder: TextEncoder,
    outputs: Outputs,
    old_fingerprint: str | None,
    provenance: Provenance,
    sample: int,
    sample_s: float,
    resources: Resources,
    look: Look,
    stage: Callable[[str], None] = tell_nobody,
) -> Plan:
    """Plan a migration, writing nothing. Encodes `sample` rows, to measure the time and the size of their vectors.

    sample_s: seconds after which no more rows are encoded than have been; 8 are, however long that takes.
    """
    stage("looking at the collection")
    table, layouts = store.describe(), store.layouts(encoder.dimension)
    counting = _CountingEncoder(encoder)
    rows, embedded, seconds = _encoded_sample(counting, store.sample(sample), outputs, sample_s, stage)
    embed_missing = store.traits.embed_missing
    num_rows = table.rows_to_embed(embed_missing=embed_missing)
    vector_bytes = num_rows * vector_bytes_each(encoder.dimension)
    head_bytes = int(mean_head_bytes(embedded) * num_rows)
    looked = look(table, NewSide(encoder.dimension, vector_bytes + head_bytes))
    return Plan(
        target=store.target,
        table=table,
        old_dimension=table.dimension,
        new_dimension=encoder.dimension,
        outputs=outputs.names,
        old_fingerprint=old_fingerprint,
        new_fingerprint=str(encoder.space.mark(outputs)),
        vector_bytes_after=vector_bytes,
        head_bytes_after=head_bytes,
        disk_bytes=disk_bytes(table, num_rows, encoder.dimension, chosen_layout(layouts)) + head_bytes,
        staging_bytes=vector_bytes + head_bytes,
        sample_rows=len(rows),
        sample_seconds=seconds,
        sample_failures=len(embedded.dead_letters),
        seconds=seconds / len(rows) * num_rows if rows else 0.0,
        cost=cost_of(EncodedSample(len(rows), counting.tokens, seconds), num_rows, resources),
        creates=table.creates,
        undo="vecferry migrate abort; it takes all of this away, until the switch and after a rollback",
        warnings=(*plan_warnings(table, embed_missing=embed_missing), *looked.warnings),
        provenance=provenance,
        problems=tuple(Problem(problem.message, problem.hint) for problem in looked.problems),
        layouts=layouts,
        collections=members_of(store),
    )


def _encoded_sample(
    encoder: TextEncoder, rows: Sequence[Row], outputs: Outputs, sample_s: float, stage: Callable[[str], None]
) -> tuple[Sequence[Row], Embedded, float]:
    """Return the first rows, their vectors and the seconds: as many rows as can be expected to take `sample_s`.

    Each part is twice as large as the one before, so that most of them are encoded in a batch as a run has them.
    """
    parts, done, seconds = list[Embedded](), 0, 0.0
    while done < len(rows) and (not done or seconds / done * (done + FIRST_ROWS) <= sample_s):
        affordable = int(sample_s * done / seconds) - done if seconds and sample_s < math.inf else len(rows)
        part = rows[done : done + min(max(done, FIRST_ROWS), max(affordable, FIRST_ROWS))]
        stage(f"encoding {len(part)} rows with the new model, to measure the time")
        began = time.perf_counter()
        parts.append(embed(encoder, part, outputs))
        seconds += time.perf_counter() - began
        done += len(part)
    vectors = tuple(vector for part in parts for vector in part.vectors)
    return rows[:done], Embedded(vectors, tuple(each for part in parts for each in part.dead_letters)), seconds


def cheapest_pair(store: Store, new: TextEncoder, serve: TextEncoder, sample: int) -> str:
    """Say which of two precisions takes least here for the rows, and which for queries that may ask these."""
    texts = [row.text for row in store.sample(sample) if row.text]
    if not texts:
        return "there is no text to compare two precisions with"
    seconds = {model: _seconds_each(model, texts) for model in (new, serve)}
    marks = {model: model.space.mark() for model in seconds}
    pairs = [(rows, asks) for rows in marks for asks in marks if not marks[asks].refusal(marks[rows], "query")]
    rows, asks = min(pairs, key=lambda pair: (seconds[pair[0]], seconds[pair[1]]))
    measured = ", ".join(f"{1000 * each:.3g} ms in {marks[model].form.name}" for model, each in seconds.items())
    return (
        f"cheapest here: rows in {marks[rows].form.name}, queries in {marks[asks].form.name} (a text takes {measured})"
    )


def _seconds_each(model: TextEncoder, texts: Sequence[str]) -> float:
    model.encode(texts[:1])  # loads it
    began = time.perf_counter()
    model.encode(texts)
    return (time.perf_counter() - began) / len(texts)


def chosen_layout(layouts: Sequence[LayoutCost]) -> Layout:
    """Return the layout of a migration; columns of the collection, or points of another, where there is no choice."""
    return next((each.layout for each in layouts if each.is_chosen), Layout.COLUMNS)


class _CountingEncoder:
    """Another encoder, and the tokens of what it has encoded."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self.space, self.fingerprint, self.dimension = encoder.space, encoder.fingerprint, encoder.dimension
        self.tokens = 0

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        embeddings = self._encoder.encode(texts, outputs=outputs, role=role)
        self.tokens += int(embeddings.num_tokens.sum())
        return embeddings


@dataclass(frozen=True)
class EncodedSample:
    """Rows that were encoded, the tokens of their texts, equal ones once, and the time it took."""

    rows: int
    tokens: int
    seconds: float


def cost_of(sampled: EncodedSample, rows: int, resources: Resources) -> Cost:
    """Return what a backfill of `rows` would take, if they are as those of the sample."""
    share = rows / sampled.rows if sampled.rows else 0.0
    encode_seconds = sampled.seconds * share / resources.workers
    write_seconds = rows / resources.write_rows_per_s
    seconds, paid = max(encode_seconds, write_seconds), resources.price_per_hour
    return Cost(
        tokens=round(sampled.tokens * share),
        tokens_per_s=sampled.tokens / sampled.seconds if sampled.tokens else 0.0,
        workers=resources.workers,
        encode_seconds=encode_seconds,
        write_rows_per_s=resources.write_rows_per_s,
        write_seconds=write_seconds,
        seconds=seconds,
        price=None if paid is None else paid * resources.workers * seconds / 3600,
    )


def mean_head_bytes(embedded: Embedded) -> float:
    """Return the bytes of sparse and ColBERT vectors per row: 8 an entry, and 2 a number in fp16."""
    made = [new.vectors for new in embedded.vectors if new.vectors is not None]
    sparse = sum(len(vectors.sparse.indices) for vectors in made if vectors.sparse is not None)
    colbert = sum(vectors.colbert.size for vectors in made if vectors.colbert is not None)
    return (SPARSE_ENTRY_BYTES * sparse + COLBERT_NUMBER_BYTES * colbert) / max(len(embedded.vectors), 1)


def disk_bytes(table: TableInfo, num_rows: int, dimension: int, layout: Layout = Layout.COLUMNS) -> int:
    """Return what must be free: new vectors, each row written anew with its index entries, indexes on new vectors.

    num_rows: that are to have one. With a side table: that, with both vectors of each row, and the whole table once
    more while it is written anew.
    """
    indexes = sum(index.holds_vectors for index in table.vector_indexes)
    new_side = num_rows * (vector_bytes_each(dimension) + indexes * index_bytes_each(dimension))
    if layout is Layout.SIDE_TABLE:
        filled = 2 * new_side + table.vector_bytes + table.table_bytes
    else:  # a row that is written anew is entered again in every index
        filled = new_side + table.row_bytes + table.index_bytes
    return int(filled * PAGE_SLACK)


def index_bytes_each(dimension: int) -> int:
    """Return the share of a page of a vector and its place in the graph: pgvector splits none over two pages."""
    return PAGE_BYTES // max(PAGE_BYTES // (vector_bytes_each(dimension) + GRAPH_BYTES), 1)


def _dependent_warning(dependent: Dependent) -> str:
    if dependent.is_carried:
        return str(dependent)
    option = f"--accept-dependent {shlex.quote(dependent.name)}"
    return f"start refuses: {dependent}; to leave it there all the same: {option}"


def plan_warnings(table: TableInfo, *, embed_missing: bool) -> tuple[str, ...]:
    """Return what an operator should look at before `start`."""
    bare, bare_texts = table.rows_without_vector, table.texts_without_vector
    dead_letters = table.null_texts - (0 if embed_missing else bare - bare_texts)
    warnings = [f"{dead_letters} rows have no text (NULL) and will be dead letters"] if dead_letters else []
    if embed_missing and bare_texts:
        warnings.append(f"{bare_texts} rows have a text and no vector, and will have a new one (embed_missing)")
    elif 0 < bare < table.rows:
        warnings.append(
            f"{bare} rows have no vector and are left without one; if they are to have one: --embed-missing,"
            " or [store] embed_missing = true"
        )
    warnings += [_dependent_warning(each) for each in table.dependents]
    if table.views:
        views = ", ".join(table.views)
        warnings.append(f"views that go on showing the old vectors, and that stop finalize: {views}")
    if table.triggers:
        warnings.append(f"triggers fire for every row that is written: {', '.join(table.triggers)}")
    warnings += [
        f"index {index.name} casts vectors to {index.cast_length} numbers; its like casts the new ones to theirs, and"
        " queries that use it must do so too"
        for index in table.vector_indexes
        if index.cast_length is not None and index.cast_length == table.dimension
    ]
    return (*warnings, *table.notices)
