"""What goes into a migration and what its verbs return; all of it ready for JSON with `to_dict`."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vecferry.embeddings import DENSE, Outputs, Value
from vecferry.errors import SettingsError
from vecferry.evaluate.values import CutOffs
from vecferry.migrate.engines import Workers
from vecferry.migrate.provenance import Provenance
from vecferry.migrate.states import State
from vecferry.options import Above0, Checked, Count, FolderPath, From0, Help, Name, Number, Seconds, Share
from vecferry.stores.ledger import Control, DeadLetter, Event, RunningProcess, Serving
from vecferry.stores.values import LayoutCost, Patience, TableInfo

MinRecall = Annotated[Share, Help("recall of the new index against exact search, at least")]


def _outputs(names: object) -> Outputs:
    """Return outputs, of the names in a file or as they are. Raises ValueError."""
    try:
        outputs = names if isinstance(names, Outputs) else Outputs.of(names)  # type: ignore[arg-type]
    except (SettingsError, TypeError, AttributeError) as exc:
        raise ValueError("no list of names") from exc
    if Outputs.DENSE not in outputs:
        raise ValueError("no dense")
    return outputs


Heads = Annotated[
    Outputs,
    BeforeValidator(_outputs),
    Field(description='["dense"], and "sparse" or "colbert" beside it'),
    Help("heads of the new side: dense, and sparse or colbert beside it where the store can hold them"),
]


@dataclass(frozen=True)
class RunLimits(Checked):
    """What a run may do at a time, and when it pauses by itself. rows_per_s, max_query_ms: None is no limit."""

    rows_per_range: Annotated[Count, Help("rows encoded and kept at a time; what a kill repeats at most")] = 256
    rows_per_write: Annotated[
        Count, Help("rows written, and so locked, in one transaction; fewer where that takes long")
    ] = 64
    rows_per_s: Annotated[Above0 | None, Help("rows written a second at most, to begin with; no limit by default")] = (
        None
    )
    max_query_ms: Annotated[
        Annotated[Number, Field(gt=0, description="milliseconds above 0")] | None,
        Help("milliseconds of a query above which a run pauses; off by default"),
    ] = None
    min_free_gb: Annotated[
        Number,
        Field(ge=0, description="gigabytes from 0"),
        Help("gigabytes free at `staging` below which a run pauses"),
    ] = 1.0
    lease_s: Annotated[Seconds, Help("seconds without a sign of life after which a run may be replaced")] = 15.0
    staging: Annotated[FolderPath, Help("folder where encoded vectors wait for their place")] = Path(
        ".vecferry/staging"
    )


@dataclass(frozen=True)
class MigrationOptions(RunLimits):
    """What a migration goes by: the limits of a run, and what its verbs share.

    old_fingerprint: the space of the vectors there are, if known; then a search in another is refused
    before the switch too. outputs: heads of the new side; dense always. patience: how long the short steps
    wait for a moment without others, and how long others may wait for these; `rollback` is surer.
    reconnect_s: how long a run waits for a store that went away. wait_for_writers_s: and for rows that others
    are writing, when nothing else is left to be done; then they are left for the next look. min_recall: of the
    new index, against exact search. thresholds: the application's cut-offs in the old space, cosines by
    name; they stand in the serving epoch that `start` records. accept_unconfirmed: why a migration may begin though a
    sample does not show what the vectors were made from; it is kept in the ledger. accept_dependents: names of what
    stands on the vectors and may be left on the old ones. new_name, old_name: of the models, for people; `start` keeps
    them too. reencode: make vectors anew though they are of the new model in another precision.
    Raises SettingsError for a value out of bounds.
    """

    old_fingerprint: str | None = None
    accept_unconfirmed: Annotated[
        Name | None, Help("why a migration may begin though it is not known what the vectors were made from")
    ] = None
    accept_dependents: tuple[str, ...] = ()
    outputs: Heads = DENSE
    patience: Patience = field(default_factory=Patience)
    reconnect_s: float = 60.0
    wait_for_writers_s: float = 10.0
    min_recall: MinRecall = 0.9
    thresholds: CutOffs = field(default_factory=dict)
    new_name: str = ""
    old_name: str = ""
    reencode: bool = False


@dataclass(frozen=True)
class Resources(Checked):
    """What an estimate is for. workers: each as fast as the process that plans. write_rows_per_s: what the store takes;
    the default was measured with PostgreSQL on 2 cores, and is assumed anywhere else. price_per_hour: of a worker.
    """

    workers: Workers = 1
    write_rows_per_s: Annotated[
        Above0, Help("rows a second that the store takes; the default is PostgreSQL's on 2 cores")
    ] = 19_000.0
    price_per_hour: Annotated[From0 | None, Help("of one worker, to estimate the price")] = None


@dataclass(frozen=True)
class Cost(Value):
    """An estimate, of the backfill alone. tokens: of all rows, if they are as those of the sample; tokens_per_s: of one
    worker, in the sample. encode_seconds: with `workers` of them; write_seconds: at the rate that was assumed or given.
    seconds: the longer of the two, since they go on side by side. price: of all workers for so long.
    """

    tokens: int
    tokens_per_s: float
    workers: int
    encode_seconds: float
    write_rows_per_s: float
    write_seconds: float
    seconds: float
    price: float | None


@dataclass(frozen=True)
class Problem(Value):
    """Why `start` refuses, and what to do about it."""

    message: str
    hint: str


@dataclass(frozen=True)
class Plan(Value):
    """What a migration would do and cost. Nothing was written.

    seconds: for encoding every text, from `sample_rows` that were really encoded in `sample_seconds`.
    sample_failures: how many of these cannot be embedded. vector_bytes_after: of the new dense vectors
    alone; head_bytes_after: of sparse and ColBERT vectors. disk_bytes: what must be free in the store:
    the new vectors, a rewrite of every row with its index entries, and the new indexes; staging_bytes:
    at the staging folder, until `finalize`. creates: by name; undo: how it is taken away. problems: why `start`
    refuses, beside an unconfirmed provenance and dependents; none where a migration is under way. layouts: those that
    the store offers, with the chosen one. collections: those of a group, by name; none where there is one alone.
    """

    target: str
    table: TableInfo
    old_dimension: int | None
    new_dimension: int
    outputs: tuple[str, ...]
    old_fingerprint: str | None
    new_fingerprint: str
    vector_bytes_after: int
    head_bytes_after: int
    disk_bytes: int
    staging_bytes: int
    sample_rows: int
    sample_seconds: float
    sample_failures: int
    seconds: float
    cost: Cost
    creates: tuple[str, ...]
    undo: str
    warnings: tuple[str, ...]
    provenance: Provenance
    problems: tuple[Problem, ...] = ()
    layouts: tuple[LayoutCost, ...] = ()
    collections: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status(Value):
    """rows_done: with a new vector. backlog, old_backlog: captured writes that were not applied to the new side yet,
    and to the old one, which is followed from the first switch on.

    paused: why, while it is. serving is None before `start`. first_dead_letters: ten at most. running: the process
    that has the lease, None where none has. seconds_left: of the backfill at its present rate, None where that is not
    known. new_model, old_model: names, empty where nobody has said them. unembedded: rows that take no vector.
    collections: as in `Plan`.
    """

    target: str
    state: State
    paused: str | None
    version: int
    rows: int
    rows_done: int
    ranges: int
    ranges_done: int
    backlog: int
    old_backlog: int
    control: Control
    dead_letters: int
    first_dead_letters: tuple[DeadLetter, ...]
    old_fingerprint: str | None
    new_fingerprint: str
    dimension: int
    serving: Serving | None
    verification: dict[str, Any] | None
    events: tuple[Event, ...]
    running: RunningProcess | None = None
    seconds_left: float | None = None
    new_model: str = ""
    old_model: str = ""
    unembedded: int = 0
    collections: tuple[str, ...] = ()
    precisions: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"first_dead_letters": [each.to_dict() for each in self.first_dead_letters]}


@dataclass(frozen=True)
class Check(Value):
    """seen: what was found, in words and numbers. keys: of the rows concerned, ten at most. warning: what is not well
    though it passed.
    """

    name: str
    passed: bool
    seen: str
    keys: tuple[str, ...] = ()
    warning: str = ""


@dataclass(frozen=True)
class MappedThreshold(Value):
    """A cut-off of the application, mapped to the new space. low and high: the interval in which `new` may lie.

    method: "matched precision" or "matched quantile", and whether it is a guess.
    """

    old: float
    new: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class GateVerdict(Value):
    """What a gate found. words: in a sentence. evidence: what was judged by. thresholds: by the application's names.

    detail: figures, ready for JSON.
    """

    passed: bool
    message: str
    evidence: str
    checks: tuple[Check, ...] = ()
    thresholds: Mapping[str, MappedThreshold] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Override(Value):
    """Somebody's word that a gate's is not to count. at: ISO 8601, UTC. Raises SettingsError for a blank reason."""

    reason: str
    by: str
    at: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise SettingsError(
                "the reason of the override (--override, --reason)", repr(self.reason), "some words that say why"
            )

    @classmethod
    def for_reason(cls, reason: str) -> Override:
        """Return an override by the user of this process, now."""
        return cls(reason, f"{_user()}@{socket.gethostname()}", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # an id without a name, as in some containers
        return "unknown"


@dataclass(frozen=True)
class VerifyReport(Value):
    """passed: whether every check passed, and the gate too, or it was overridden; then the state is `ready`, or still
    `serving_new`. epoch: the serving epoch in which it was made.

    precisions: rows with a new vector by the form that it was made in, fp32, fp16 or a recipe such as int8-1.
    dead_letters: rows without a vector, which `cutover` must be told of. gate: None if none was asked;
    it is asked when all checks have passed. override: None if none was needed.
    """

    target: str
    passed: bool
    rows: int
    dead_letters: int
    sampled: int
    lowest_cosine: float | None
    recall: float | None
    checks: tuple[Check, ...]
    state: State
    epoch: int | None = None
    gate: GateVerdict | None = None
    override: Override | None = None
    precisions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CutoverReport(Value):
    """dead_letters: rows that were accepted without a new vector.

    tries: how often the switch was begun. seconds: how long writers were held off in the last try.
    """

    target: str
    serving: Serving
    dead_letters: int
    tries: int
    seconds: float
    state: State


@dataclass(frozen=True)
class RollbackReport(Value):
    """outdated_rows: written since the switch and not followed, so that their old vector is missing or of another
    text; 0 unless this was accepted. dead_letters: rows whose present text the old model cannot embed.

    not_null_restored: false if the old vectors were required and cannot be, because some are missing.
    tries and seconds: as in `CutoverReport`.
    """

    target: str
    serving: Serving
    outdated_rows: int
    dead_letters: int
    not_null_restored: bool
    tries: int
    seconds: float
    state: State
