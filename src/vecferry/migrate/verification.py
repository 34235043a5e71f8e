"""What is checked before a switch. Nothing here changes a vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from vecferry.embeddings import Float32
from vecferry.encode.encoder import TextEncoder
from vecferry.errors import CutoverRefused
from vecferry.migrate.embed import embed
from vecferry.migrate.following import SwitchFollower
from vecferry.migrate.record import find_record
from vecferry.migrate.states import State, can_move
from vecferry.migrate.values import Check, GateVerdict, Override, VerifyReport
from vecferry.precisions import INTERCHANGEABLE_COSINE, Mark
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.protocol import Store, StoreGroup
from vecferry.stores.values import NOTHING, Examination, Finding, Hit, Key, Row, Side, has_direction, shown

MIN_COSINE = 0.999
"""Of a stored vector to the same text encoded again in its own precision; across precisions the evidence's holds."""
RECALL_QUERIES = 20
RECALL_K = 10
MAX_SUSPECTS = 1000
"""Rows that are looked at again, because they may have been written while all were being compared."""
MAX_CAPTURED = MAX_SUSPECTS // 4
"""Writes that may be left to be followed while all are being compared, so that more than these can come meanwhile."""
SECOND_LOOKS = 5


class Gate(Protocol):
    """The last word before `ready`: retrieval quality. It may search in either side of the store."""

    def __call__(self, store: Store) -> GateVerdict: ...


@dataclass(frozen=True)
class Verification:
    """One verification of the new side. new: the model that made it. min_recall: of the index."""

    store: Store
    record: MigrationRecord
    new: TextEncoder
    min_recall: float

    def compare(self, follower: SwitchFollower) -> Examination:
        """Look at every row, as soon as what was written before is followed."""

        def catch_up() -> None:
            follower.catch_up(Side.NEW, few=MAX_CAPTURED)

        catch_up()
        return check_integrity(self.store, self.record.spec.dimension, catch_up)

    def conclude(
        self, compared: Examination, sample: int, gate: Gate | None, override: Override | None
    ) -> VerifyReport:
        """Leave the report in the ledger, and the state that follows. The gate is asked if all checks passed.

        While the new vectors serve, the report alone is left: to go back is for `rollback`.
        """
        report = self._checked(compared, sample)
        if all(check.passed for check in report.checks):
            report = self._judged(report, gate, override)
        self._keep(report)
        return report

    def _checked(self, compared: Examination, sample: int) -> VerifyReport:
        spec = self.record.spec
        dead_letters = self.store.ledger.count_dead_letters(self.record, Side.NEW)
        cosines = recomputed_cosines(self.store, self.new, sample)
        recall = index_recall(self.store, spec.fingerprint)
        with_vector = compared.rows - compared.unembedded - compared.without_vector.count
        comparable = compared.rows - compared.unembedded - compared.without_vector.count - compared.outdated.count
        checks = (
            *structural_checks(compared, dead_letters, spec.dimension, unit=self.new.space.normalize),
            recomputation_check(
                cosines,
                expected=-(-min(sample, comparable) // 2),  # rows may be written meanwhile
                limit=self._limit(),
            ),
            recall_check(recall, self.min_recall),
        )
        return VerifyReport(
            target=spec.target,
            passed=False,
            rows=compared.rows,
            dead_letters=dead_letters,
            sampled=len(cosines),
            lowest_cosine=min(cosines.values(), default=None),
            recall=recall,
            checks=checks,
            state=self._state(State.VERIFIED if all(check.passed for check in checks) else State.CATCHING_UP),
            precisions=precisions_of(self.store, self.record, with_vector),
            epoch=serving.epoch if (serving := self.store.ledger.serving(self.store.target)) else None,
        )

    def _limit(self) -> float:
        """Return the least cosine of a stored vector to its text encoded again; across precisions the evidence's."""
        forms = {Mark.parse(self.record.spec.fingerprint).form.name, self.new.space.form().name}
        forms |= self.store.ledger.count_forms(self.record).keys()
        return INTERCHANGEABLE_COSINE if len(forms) > 1 else MIN_COSINE

    def _state(self, state: State) -> State:
        """Return the state that a result leads to; none leads out of the one in which the new vectors serve."""
        return State.SERVING_NEW if State(self.record.state) is State.SERVING_NEW else state

    def _judged(self, report: VerifyReport, gate: Gate | None, override: Override | None) -> VerifyReport:
        verdict = None if gate is None else gate(self.store)
        passed = verdict is not None and verdict.passed
        report = replace(report, gate=verdict, override=None if passed else override)
        is_passed = passed or override is not None
        return replace(report, passed=True, state=self._state(State.READY)) if is_passed else report

    def _keep(self, report: VerifyReport) -> None:
        ledger = self.store.ledger
        detail = {
            "failed": [check.name for check in report.checks if not check.passed],
            "gate": report.gate.message if report.gate else None,
        }
        with self.store.transaction():
            record = find_record(self.store)
            ledger.keep_verification(record, report.to_dict())
            if report.state is State.SERVING_NEW:
                ledger.add_event(record, "verified" if report.passed else "not verified", detail)
            else:
                record = self._moved(record, report.state, detail)
            if report.override is not None:
                _note_override(self.store, record, report.override)

    def _moved(self, record: MigrationRecord, end: State, detail: Mapping[str, Any]) -> MigrationRecord:
        for state in (State.VERIFIED, end) if end is State.READY else (end,):
            if state != record.state and can_move(State(record.state), state):
                record = self.store.ledger.move(record, state, detail)
        return record


def precisions_of(store: Store, record: MigrationRecord, rows: int) -> dict[str, int]:
    """Return how many of the rows with a new vector are in each precision, the index's own first."""
    others = store.ledger.count_forms(record)
    own = Mark.parse(record.spec.fingerprint).form.name
    return {own: max(rows - sum(others.values()), 0), **others}


def refuse_not_verified(record: MigrationRecord) -> None:
    """Raise CutoverRefused if the last verification did not pass: one in `serving_new`, before a rollback."""
    if not (record.verification or {}).get("passed"):
        raise CutoverRefused("the last verification did not pass", "vecferry migrate verify")


def override_gate(store: Store, record: MigrationRecord, override: Override) -> None:
    """Leave the state `ready`, and the reason in the ledger. Raises CutoverRefused if a check failed."""
    verification = record.verification or {}
    _refuse_failed(verification)
    overridden = {"passed": True, "state": State.READY, "override": override.to_dict()}
    with store.transaction():
        store.ledger.keep_verification(record, {**verification, **overridden})
        _note_override(store, store.ledger.move(record, State.READY, {}), override)


def _refuse_failed(verification: Mapping[str, Any]) -> None:
    failed = [check["name"] for check in verification.get("checks", ()) if not check["passed"]]
    if failed or not verification:
        reason = f"the last verification failed ({', '.join(failed)})" if failed else "nothing was verified"
        raise CutoverRefused(reason, "vecferry migrate verify")


def _note_override(store: Store, record: MigrationRecord, override: Override) -> None:
    store.ledger.add_event(record, "gate overridden", {"reason": override.reason, "by": override.by})


# --- every row ------------------------------------------------------------------------------------


def check_integrity(store: Store, dimension: int, catch_up: Callable[[], object]) -> Examination:
    """Check every row; those that were only just written, and are captured, count as current."""
    examination = store.check_integrity(dimension, MAX_SUSPECTS)
    if examination.outdated.count > MAX_SUSPECTS or examination.orphaned.count > MAX_SUSPECTS:
        return examination
    outdated, orphaned = list(examination.outdated.keys), list(examination.orphaned.keys)
    for _ in range(SECOND_LOOKS):
        if not outdated and not orphaned:
            break
        catch_up()
        outdated = [row.key for row in store.outdated(Side.NEW, outdated)]
        orphaned = [key for key in store.orphans(MAX_SUSPECTS) if key in set(orphaned)]
        captured = {change.key for change in store.captured(MAX_SUSPECTS)}
        outdated = [key for key in outdated if key not in captured]
        orphaned = [key for key in orphaned if key not in captured]
    return replace(examination, outdated=_finding(outdated), orphaned=_finding(orphaned))


def _finding(keys: Sequence[Key]) -> Finding:
    return Finding(len(keys), tuple(keys)) if keys else NOTHING


def structural_checks(examination: Examination, dead_letters: int, dimension: int, *, unit: bool) -> tuple[Check, ...]:
    """Return the checks of all rows. dead_letters: in the ledger; every row without a vector must have one."""
    without, missing, unembedded = examination.without_vector, examination.missing_indexes, examination.unembedded
    with_vector = examination.rows - unembedded - without.count - examination.outdated.count
    on_purpose = f", {unembedded} without one on purpose" if unembedded else ""
    norm = "farther than 0.001 from length 1"
    return (
        _check("text unchanged", examination.outdated, "without a vector of their present text"),
        _check("no vector without a row", examination.orphaned, "are gone, their vectors are not"),
        Check(
            "every row has a vector",
            without.count <= dead_letters,
            f"{with_vector} of {examination.rows} rows{on_purpose}, {dead_letters} dead letters{_named(without)}",
            shown(without.keys[:10]),
        ),
        _check("dimension", examination.wrong_dimension, f"without {dimension} numbers"),
        _check("finite", examination.not_finite, "with numbers that are not finite"),
        _check("no zero vector", examination.zero, "with a vector of zeros"),
        _check("unit norm", examination.off_norm if unit else NOTHING, norm if unit else "looked at: no unit vectors"),
        Check("indexes", not missing, f"missing: {', '.join(missing) or 'none'}"),
    )


def _check(name: str, finding: Finding, defect: str) -> Check:
    return Check(name, not finding, f"{finding.count} rows {defect}{_named(finding)}", shown(finding.keys[:10]))


def _named(finding: Finding) -> str:
    return f": {', '.join(shown(finding.keys[:10]))}" if finding.keys else ""


# --- a sample, encoded again ----------------------------------------------------------------------


def recomputed_cosines(store: Store, encoder: TextEncoder, sample: int) -> dict[Key, float]:
    """Return by key the cosine between a stored vector and the same text encoded again; 0 where it cannot be."""
    pairs: list[tuple[Row, Float32]] = store.sample_vectors(sample)
    again = embed(encoder, [row for row, _ in pairs]).vectors
    return {
        new.key: 0.0 if new.vectors is None else cosine(new.vectors.dense, stored)
        for new, (_, stored) in zip(again, pairs, strict=True)
    }


def recomputation_check(cosines: dict[Key, float], expected: int, limit: float = MIN_COSINE) -> Check:
    """Require that `expected` rows were encoded again, each at a cosine of at least `limit` to its stored vector."""
    low = [key for key, value in cosines.items() if not value >= limit]
    lowest = f"{min(cosines.values()):.6f}" if cosines else "none"
    counts = f"{len(cosines)} rows encoded again, {len(low)} below {limit}, lowest cosine {lowest}"
    return Check("recomputed sample", not low and len(cosines) >= expected, counts, shown(low[:10]))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine, in float64; 0 if either is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


# --- the index ------------------------------------------------------------------------------------


def index_recall(store: Store, fingerprint: str, queries: int = RECALL_QUERIES, k: int = RECALL_K) -> float | None:
    """Return the mean share of the k nearest that the new index finds too; stored vectors ask. None: no rows.

    In a group a vector asks the index of its own member.
    """
    shares = []
    for row, vector in store.sample_vectors(queries):
        if has_direction(vector):
            search = _search_of(store, row.key)
            exact = {hit.key for hit in search(vector, k, fingerprint=fingerprint, exact=True)}
            near = {hit.key for hit in search(vector, k, fingerprint=fingerprint)}
            shares.append(len(exact & near) / len(exact) if exact else 1.0)
    return float(np.mean(shares)) if shares else None


def _search_of(store: Store, key: Key) -> Callable[..., list[Hit]]:
    """Return the search of the index that the row is in."""
    if not isinstance(store, StoreGroup):
        return store.search
    member, _ = store.key_of_member(key)
    return partial(store.search_within, member)


def recall_check(recall: float | None, minimum: float) -> Check:
    figure = "no rows to ask for" if recall is None else f"{recall:.3f} of the exact ten nearest, at least {minimum:g}"
    return Check("index recall", recall is None or recall >= minimum, figure)
