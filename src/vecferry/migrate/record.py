"""The record of a migration: found, begun or gone on with; and what an ended one has left on this disk."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from vecferry.encode.encoder import TextEncoder
from vecferry.errors import (
    DependentsInTheWay,
    MigrationConflict,
    MigrationNotFound,
    SameFunction,
    SpaceMismatch,
    VectorsUnconfirmed,
)
from vecferry.migrate.applier import SideModels, refuse_conflicts
from vecferry.migrate.provenance import Provenance, provenance_of
from vecferry.migrate.staging import remove_staged
from vecferry.migrate.states import ENDED, State, require
from vecferry.migrate.values import MigrationOptions
from vecferry.precisions import Mark
from vecferry.stores.ledger import FIRST_EPOCH, Control, MigrationRecord, MigrationSpec, Serving
from vecferry.stores.protocol import Store
from vecferry.stores.values import Dependent, Side, TableInfo, tell_nobody


def find_record(store: Store) -> MigrationRecord:
    """Return the record of the migration that was not given up. Raises MigrationNotFound."""
    record = store.ledger.find(store.target)
    if record is None:
        raise MigrationNotFound(store.target)
    return record


def has_ended(store: Store) -> bool:
    """Say whether no migration is open."""
    record = store.ledger.find(store.target)
    return record is None or State(record.state) in ENDED


def ended_record(store: Store) -> MigrationRecord | None:
    """Return the record of the last migration if it has ended; None where there was none, or one is open."""
    last = store.ledger.last(store.target)
    return last if last is not None and State(last.state) in ENDED else None


def sweep_ended(store: Store, options: MigrationOptions) -> None:
    """Leave nothing staged on this disk of a migration that has ended."""
    if (last := ended_record(store)) is not None:
        sweep_staging(last, options)


def sweep_staging(record: MigrationRecord, options: MigrationOptions) -> None:
    """Leave nothing staged on this disk of that migration."""
    remove_staged(options.staging, Mark.parse(record.spec.fingerprint).fingerprint, record.spec.uid)


@dataclass(frozen=True)
class Beginning:
    """What a migration begins from. provenance: what the ledger keeps about where the vectors come from."""

    table: TableInfo
    old_fingerprint: str | None
    provenance: dict[str, Any]


def beginning_of(
    store: Store,
    new: TextEncoder,
    old: TextEncoder | None,
    options: MigrationOptions,
    table: TableInfo,
    stage: Callable[[str], None] = tell_nobody,
) -> Beginning:
    """Return what a migration would begin from, once nothing stands in its way. Writes nothing.

    stage: told what is being done. Raises SpaceMismatch, SameFunction, DependentsInTheWay, VectorsUnconfirmed.
    """
    old_fingerprint = known_old_fingerprint(store, options, recorded_fingerprint(store, table), old)
    _refuse_same_function(store, new, options, old_fingerprint)
    _refuse_dependents(table, options.accept_dependents)
    provenance = _confirmed_provenance(provenance_of(store, old, stage=stage), store.target, options.accept_unconfirmed)
    return Beginning(table, old_fingerprint, provenance)


def begin(
    store: Store, new: TextEncoder, old: TextEncoder | None, options: MigrationOptions, beginning: Beginning | None
) -> MigrationRecord:
    """Return the record to go on with; a new one if there is none, or if the last has ended.

    beginning: None where one was open when it was looked for. Raises MigrationConflict if the migration was begun with
    something else, and what `beginning_of` does.
    """
    record = store.ledger.find(store.target)
    if record is None or State(record.state) in ENDED:
        return _create(store, new, options, beginning or beginning_of(store, new, old, options, store.describe()))
    if record.paused is None or record.paused.by_operator:
        require("start", State(record.state))
    refuse_conflicts(record, store, SideModels(new, old))
    if options.old_fingerprint not in (None, record.spec.old_fingerprint):
        stored, stated = record.spec.old_fingerprint, options.old_fingerprint
        raise MigrationConflict(record.spec.target, "old_fingerprint", stored, stated)
    return record


def _create(store: Store, new: TextEncoder, options: MigrationOptions, beginning: Beginning) -> MigrationRecord:
    target, ledger = store.target, store.ledger
    table, serving = beginning.table, ledger.serving(target)
    new_locator = store.serving_locator(Side.NEW)
    serving = serving or Serving(FIRST_EPOCH, 1, store.serving_locator(Side.OLD), beginning.old_fingerprint)
    thresholds = options.thresholds or serving.thresholds
    serving = replace(serving, fingerprint=beginning.old_fingerprint, thresholds=dict(thresholds))
    spec = MigrationSpec(
        target=target,
        text_source=store.traits.text_source,
        dimension=new.dimension,
        fingerprint=str(new.space.mark(options.outputs)),
        old_fingerprint=beginning.old_fingerprint,
        old_not_null=table.vector_not_null,
        generation=serving.generation + 1,
        epoch=serving.epoch,
        old_locator=serving.locator,
        new_locator=new_locator,
        outputs=options.outputs.names,
        uid=uuid.uuid4().hex[:12],
        model=options.new_name,
        old_model=options.old_name,
        embed_missing=store.traits.embed_missing,
    )
    with store.transaction():
        store.check_new_side(new.dimension, options.outputs)  # another may have begun since that was looked at
        ledger.serve(target, serving)
        record = ledger.create(spec, State.PLANNED, beginning.provenance)
        ledger.set_control(record, Control(options.rows_per_s))
    return record


def dependents_in_the_way(table: TableInfo, accepted: Collection[str]) -> list[Dependent]:
    """Return what would be left on the wrong vectors, but for what somebody has accepted by its name."""
    return [each for each in table.dependents if not each.is_carried and each.name not in accepted]


def _refuse_same_function(store: Store, new: TextEncoder, options: MigrationOptions, present: str | None) -> None:
    """Raise SameFunction if the vectors are of the new model in another precision, and nobody asks for them anew.

    Heads that they have not yet are asked for by naming them.
    """
    mark, index = new.space.mark(options.outputs), Mark.parse(present or "")
    is_same = mark.fingerprint == index.fingerprint and mark.form != index.form
    if is_same and mark.form.heads in ("", index.form.heads) and not options.reencode:
        raise SameFunction(store.target, index.form.name, mark.form.name)


def _refuse_dependents(table: TableInfo, accepted: Collection[str]) -> None:
    """Raise DependentsInTheWay if something would be left on the wrong vectors, and nobody has said that it may."""
    if refused := dependents_in_the_way(table, accepted):
        names = " --accept-dependent ".join(shlex.quote(dependent.name) for dependent in refused)
        raise DependentsInTheWay("; ".join(map(str, refused)), names)


def _confirmed_provenance(provenance: Provenance, target: str, accept_unconfirmed: str | None) -> dict[str, Any]:
    """Return what the ledger keeps about where the vectors come from. Raises VectorsUnconfirmed."""
    if not provenance.is_confirmed and accept_unconfirmed is None:
        raise VectorsUnconfirmed(target, provenance.message, provenance.remedy)
    detail = {"vectors": provenance.verdict, "finding": provenance.message}
    return detail if accept_unconfirmed is None else detail | {"accepted": accept_unconfirmed}


def recorded_fingerprint(store: Store, table: TableInfo) -> str | None:
    """Return the space of the vectors that serve, as the ledger or else the collection has recorded it."""
    serving = store.ledger.serving(store.target)
    return serving.fingerprint if serving else table.fingerprint


def known_old_fingerprint(
    store: Store, options: MigrationOptions, recorded: str | None, old: TextEncoder | None = None
) -> str | None:
    """Return the mark of the vectors there are, as far as anybody says it. Raises SpaceMismatch if two differ.

    The old model may be another form of what they are marked with, if it may make more of them.
    """
    where, stated = f"the vectors of {store.target}", options.old_fingerprint
    if stated and recorded and stated != recorded:
        raise SpaceMismatch(expected=stated, found=recorded, where=where)
    index, own = stated or recorded, None if old is None else old.space.mark()
    if index and own is not None:
        own.require(Mark.parse(index), "passage", where)
    return index or (None if own is None else str(own))
