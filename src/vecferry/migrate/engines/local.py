"""The engine in this process.

    store ── reader ──► rows ── encoder ──► staging
                              └──────────► ranges ──► whoever applies them

Both queues are short, so that memory is bounded, and one who stops taking ranges stops the whole. What was encoded
goes along with its range; only ColBERT vectors, of which a range may have gigabytes, are read from the staging again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from vecferry.embeddings import DENSE, Outputs
from vecferry.encode.encoder import TextEncoder
from vecferry.migrate.embed import Embedded
from vecferry.migrate.engines import StagedRange, range_name, rows_to_embed
from vecferry.migrate.engines.partwise import PartwiseEncoder
from vecferry.migrate.engines.pipeline import Queue, Stage, run_pipeline, tell_nobody
from vecferry.migrate.engines.task import embed_unknown
from vecferry.migrate.staging import Staging
from vecferry.stores.ledger import RangeRecord
from vecferry.stores.protocol import Store
from vecferry.stores.values import Row


@dataclass(frozen=True)
class LocalEngine:
    """In this process: one thread reads ahead, one encodes and stages.

    rows_per_range: rows read of a range; what was inserted into it since is the caller's to find.
    ahead: ranges that wait between two threads at most. tell: told about every second how many texts of the range to
    come are encoded, by the thread that waits for it.
    """

    store: Store
    encoder: TextEncoder
    staging: Staging
    uid: str
    rows_per_range: int
    outputs: Outputs = DENSE
    ahead: int = 2
    tell: Callable[[int], None] = tell_nobody

    def __post_init__(self) -> None:
        assert self.staging.outputs == self.outputs, "the staging is for other heads"

    def run(self, ranges: Sequence[RangeRecord]) -> Generator[StagedRange, None, None]:
        """Embed in the order given. What a thread raises is raised here, the first of it, after the ranges before it.

        Closing it waits for the range that is being encoded; no thread is left then.
        """
        rows: Queue[tuple[int, list[Row] | None]] = Queue(self.ahead)
        staged: Queue[StagedRange] = Queue(self.ahead, self.tell)
        reader = Stage("reader", lambda: self._read(ranges, rows), rows)
        encoder = Stage("encoder", lambda: self._encode(rows, staged), staged)
        yield from run_pipeline(encoder, reader)

    def _read(self, ranges: Sequence[RangeRecord], rows: Queue[tuple[int, list[Row] | None]]) -> None:
        """Read each range's rows; None where all of them are staged with the text that they have now."""
        with closing(self.store.another()) as store:
            for each in ranges:
                found = rows_to_embed(store, each.keys, self.rows_per_range)
                rows.put((each.number, None if self.staging.holds(range_name(self.uid, each.number), found) else found))

    def _encode(self, rows: Queue[tuple[int, list[Row] | None]], staged: Queue[StagedRange]) -> None:
        can_wait = Outputs.COLBERT not in self.outputs
        encoder = PartwiseEncoder(self.encoder, staged.note)
        for number, found in rows:
            embedded = None if found is None else self._embed(encoder, found)
            if embedded is not None:
                self.staging.keep(range_name(self.uid, number), embedded)
            staged.put(StagedRange(number, embedded if can_wait else None))

    def _embed(self, encoder: TextEncoder, rows: Sequence[Row]) -> Embedded:
        """Embed as `embed`, but encode no text that is staged."""
        staged = self.staging.vectors([row.digest for row in rows])
        return embed_unknown(encoder, rows, self.outputs, staged)
