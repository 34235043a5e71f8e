"""Move the vectors of a live collection to another model: plan, start, verify, cutover; rollback until finalize."""

from vecferry.encoder import Progress, TextEncoder
from vecferry.migrate.migration import Migration
from vecferry.migrate.states import State
from vecferry.migrate.values import (
    Check,
    CutoverReport,
    MigrationOptions,
    Plan,
    RollbackReport,
    Status,
    VerifyReport,
)

__all__ = [
    "Check",
    "CutoverReport",
    "Migration",
    "MigrationOptions",
    "Plan",
    "Progress",
    "RollbackReport",
    "State",
    "Status",
    "TextEncoder",
    "VerifyReport",
]
