"""The engine on many machines: the driver reads ranges and stages files, workers make the files of the rows.

    store ──► rows ── Pool ──► files, as bytes ──► staging ──► ranges ──► whoever applies them

Reading is cheap beside encoding, so the driver does it: workers need neither the store nor its password.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice

from vecferry.embeddings import Embeddings, Outputs
from vecferry.encode.encoder import Role, TextEncoder, chunks
from vecferry.encode.export import as_npz, load_npz
from vecferry.errors import InvalidText
from vecferry.migrate.engines import RaySettings, StagedRange, range_name, rows_to_embed
from vecferry.migrate.engines.model_distribution import ArtifactRef
from vecferry.migrate.engines.pipeline import Queue, Stage, run_pipeline
from vecferry.migrate.engines.ray.pool import Pool
from vecferry.migrate.engines.task import RangeTask
from vecferry.migrate.staging import Staging
from vecferry.model.texts import require_texts
from vecferry.stores.ledger import RangeRecord
from vecferry.stores.protocol import Store


@dataclass(frozen=True)
class RayEngine:
    """Stages the same files as `LocalEngine`, in another order. encoder: of the driver; model: the same for workers.

    What is staged lies in the staging of the driver alone.
    """

    store: Store
    encoder: TextEncoder
    staging: Staging
    uid: str
    rows_per_range: int
    model: ArtifactRef
    settings: RaySettings

    def run(self, ranges: Sequence[RangeRecord]) -> Generator[StagedRange, None, None]:
        """Run wave by wave; the rows of one are read at once. Raises what `Pool.results` raises.

        A thread stages what comes as soon as it does, up to a wave ahead of who takes the ranges. Without a range
        to be done Ray is not started; closing it ends all that was.
        """
        staged: Queue[StagedRange] = Queue(self.settings.jobs_per_wave)
        yield from run_pipeline(Stage("stager", lambda: self._stage(ranges, staged), staged))

    def _stage(self, ranges: Sequence[RangeRecord], staged: Queue[StagedRange]) -> None:
        do, failed = partial(_range_file, outputs=self.staging.outputs), set[bytes]()
        with (
            closing(self.store.another()) as store,
            Pool(self.settings, self.model, self.encoder, do, staged.raise_if_cancelled) as pool,
        ):
            for start in range(0, len(ranges), self.settings.jobs_per_wave):
                wave = {each.number: each for each in ranges[start : start + self.settings.jobs_per_wave]}
                while wave:
                    for number in self._pass(store, pool, [*wave.values()], failed):
                        del wave[number]
                        staged.put(StagedRange(number))

    def _pass(self, store: Store, pool: Pool, ranges: Sequence[RangeRecord], failed: set[bytes]) -> Iterator[int]:
        """Yield numbers of ranges that are staged now; at least of the first.

        A text is encoded by the first range that has it; the number of another comes when its vector is staged. Where
        a text fails, the ranges that count on it are left out, and `failed` has its digest: in the next pass each
        tries it by itself.
        """
        coming, depends_on = set[bytes](), dict[int, set[bytes]]()
        for each in ranges:
            name, rows = range_name(self.uid, each.number), rows_to_embed(store, each.keys, self.rows_per_range)
            if self.staging.holds(name, rows):
                yield each.number
                continue
            digests = {row.digest for row in rows if row.text is not None}
            staged = self.staging.known([*digests], but=name)
            depends_on[each.number] = (coming & digests) - staged
            elsewhere = staged | depends_on[each.number]
            task = RangeTask(rows, elsewhere, self.staging.vectors([*(digests - elsewhere)]))
            pool.put(each.number, task.to_bytes())
            coming |= digests - elsewhere - failed
        arrived = set[int]()
        with closing(pool.results()) as results:
            for number, file in results:
                self.staging.keep_file(range_name(self.uid, number), file)
                arrived.add(number)
                complete = {
                    number for number in arrived if depends_on[number] <= self.staging.known([*depends_on[number]])
                }
                arrived -= complete
                yield from complete
        failed |= coming - self.staging.known([*coming])


def _range_file(encoder: TextEncoder, job: bytes, outputs: Outputs) -> bytes:
    return RangeTask.from_bytes(job).done(encoder, outputs)


# --- texts without a store ------------------------------------------------------------------------


def encode_on_workers(
    settings: RaySettings,
    model: ArtifactRef,
    encoder: TextEncoder,
    texts: Iterable[str],
    *,
    outputs: Outputs,
    role: Role,
) -> Generator[Embeddings, None, None]:
    """Encode as `Encoder.encode_iter`, in the order of the texts. To be closed, if it is not taken to its end.

    A wave of texts is read ahead. Raises what `Pool.results` raises.
    """
    remaining = chunks(texts)
    with Pool(settings, model, encoder, partial(_encoded, outputs=outputs, role=role)) as pool:
        while wave := [_put(pool, chunk) for chunk in islice(remaining, settings.jobs_per_wave)]:
            with closing(pool.results()) as results:
                yield from _in_order(wave, results)


def _put(pool: Pool, chunk: tuple[int, list[str]]) -> int:
    """Put a chunk, and return its number, which is that of the texts before."""
    first_row, texts = chunk
    pool.put(first_row, json.dumps([first_row, *require_texts(texts, first_row)]).encode())
    return first_row


def _encoded(encoder: TextEncoder, job: bytes, outputs: Outputs, role: Role) -> bytes:
    first_row, *texts = json.loads(job)
    try:
        return as_npz([""] * len(texts), encoder.encode(texts, outputs=outputs, role=role))
    except InvalidText as exc:
        raise exc.at(first_row + exc.row) from exc


def _in_order(numbers: Iterable[int], results: Iterator[tuple[int, bytes]]) -> Iterator[Embeddings]:
    early = dict[int, bytes]()
    for number in numbers:
        while number not in early:
            early |= [next(results)]
        yield load_npz(BytesIO(early.pop(number)))[1]
