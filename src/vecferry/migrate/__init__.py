"""Move the vectors of a live collection to another model: plan, start, verify, cutover; rollback until finalize."""

from vecferry.encode.encoder import Progress, TextEncoder
from vecferry.migrate.migration import EngineFor, Migration
from vecferry.migrate.states import State
from vecferry.migrate.values import (
    Check,
    Cost,
    CutoverReport,
    GateVerdict,
    MappedThreshold,
    MigrationOptions,
    Override,
    Plan,
    Resources,
    RollbackReport,
    Status,
    VerifyReport,
)
from vecferry.migrate.verification import Gate

__all__ = [
    "Check",
    "Cost",
    "CutoverReport",
    "EngineFor",
    "Gate",
    "GateVerdict",
    "MappedThreshold",
    "Migration",
    "MigrationOptions",
    "Override",
    "Plan",
    "Progress",
    "Resources",
    "RollbackReport",
    "State",
    "Status",
    "TextEncoder",
    "VerifyReport",
]
