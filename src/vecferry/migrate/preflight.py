"""What can be seen to fail later is looked at before a row is encoded: `plan` reports it, `start` refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vecferry.encode.encoder import TextEncoder
from vecferry.errors import MissingExtra, SettingsError, SpaceMismatch, StagingUnusable, StoreSchemaError, VecferryError
from vecferry.migrate.record import known_old_fingerprint, recorded_fingerprint
from vecferry.migrate.staging import free_bytes, require_writable
from vecferry.migrate.throttle import GIGABYTE
from vecferry.migrate.values import MigrationOptions
from vecferry.stores.protocol import Store
from vecferry.stores.values import TableInfo

GateCheck = Callable[[Store], Sequence[str]]
"""Looks at what a gate is going to ask. Returns what to mind; raises SettingsError, MissingExtra if it cannot be
asked."""
VECTOR_OVERHEAD_BYTES = 8


def nothing_asked(_: Store) -> Sequence[str]:
    """Look at nothing: there is no gate, or nobody has named it yet."""
    return ()


@dataclass(frozen=True)
class Preflight:
    """problems: what `start` refuses, each as the error that it raises. warnings: what an operator should mind."""

    problems: tuple[VecferryError, ...] = ()
    warnings: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise the first problem, if there is one."""
        if self.problems:
            raise self.problems[0]


@dataclass(frozen=True)
class NewSide:
    """What is to be made. staged_bytes: that wait at the staging folder until `finalize`."""

    dimension: int
    staged_bytes: int


def preflight(
    store: Store,
    old: TextEncoder | None,
    options: MigrationOptions,
    table: TableInfo,
    side: NewSide,
    gate_check: GateCheck,
) -> Preflight:
    """Look at the side to be made, the old model's space, the staging folder and what the gate is to ask.

    Writes nothing. Raises what a model or the store does that cannot be used.
    """
    warnings: list[str] = []
    checks: tuple[Callable[[], object], ...] = (
        partial(_require_vectors, store, table),
        partial(store.check_new_side, side.dimension, options.outputs),
        lambda: known_old_fingerprint(store, options, recorded_fingerprint(store, table), old),
        partial(require_writable, options.staging),
        partial(_require_room, options, side.staged_bytes),
        lambda: warnings.extend(gate_check(store)),
    )
    return Preflight(tuple(filter(None, map(_problem, checks))), tuple(warnings))


def _problem(check: Callable[[], object]) -> VecferryError | None:
    """Return why a check fails; None if it does not."""
    try:
        check()
    except (MissingExtra, SettingsError, SpaceMismatch, StagingUnusable, StoreSchemaError) as exc:
        return exc
    return None


def _require_vectors(store: Store, table: TableInfo) -> None:
    """Raise StoreSchemaError where no row has a vector, so that none would be given a new one."""
    if table.rows and not table.rows_to_embed(embed_missing=store.traits.embed_missing):
        remedy = "To have all rows embedded: --embed-missing, or [store] embed_missing = true."
        raise StoreSchemaError(f"no row of {store.target} has a vector, and rows without one are left so", remedy)


def _require_room(options: MigrationOptions, staged_bytes: int) -> None:
    """Raise StagingUnusable if a run would pause for want of space before its end. `min_free_gb` 0: nobody looks."""
    free, staged = free_bytes(options.staging) / GIGABYTE, staged_bytes / GIGABYTE
    if options.min_free_gb and free < staged + options.min_free_gb:
        needed = f"{staged:.2f} GB are needed and {options.min_free_gb:g} are to be left (min_free_gb)"
        raise StagingUnusable(options.staging, f"{needed}, and {free:.2f} are free")


def vector_bytes_each(dimension: int) -> int:
    """Return the bytes of a dense vector, in a row or staged."""
    return 4 * dimension + VECTOR_OVERHEAD_BYTES
