"""Who brings a side up to date for a switch: the run in another process, and this one with the models it was given."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vecferry.migrate.applier import MAX_LAST_ROWS, Applier
from vecferry.stores import Side, Store

RUN_MAY_TAKE_S, RUN_SHOULD_TAKE_S, POLL_S = 10.0, 0.5, 0.002
"""How long a run in another process is waited for: at all, and until but a few rows are left."""
WAIT_FOR_WRITERS_S = 0.5


@dataclass(frozen=True)
class SwitchFollower:
    """`switch.Follower`. runs_elsewhere: another process holds the lease, and follows too.

    Two that follow do each other no harm: a vector is written only beside the text that it was made from.
    """

    store: Store
    applier: Applier
    runs_elsewhere: bool

    def catch_up(self, side: Side) -> bool:
        is_followed = self.runs_elsewhere and self._await_run(side)
        if self.applier.can_follow(side):
            self.applier.catch_up({side}, wait_s=WAIT_FOR_WRITERS_S)
            is_followed = True
        self.applier.forget_gone_letters()
        return is_followed

    def _await_run(self, side: Side) -> bool:
        """Whether the run follows that side: it may have been given one model alone."""
        began = changed_at = time.monotonic()
        fewest = self.store.backlog(side)
        while (backlog := self.store.backlog(side)) and (now := time.monotonic()) < began + RUN_MAY_TAKE_S:
            if backlog < fewest:
                fewest, changed_at = backlog, now
            if backlog <= MAX_LAST_ROWS and now > began + RUN_SHOULD_TAKE_S:
                break
            time.sleep(POLL_S)
        return not backlog or time.monotonic() < changed_at + RUN_SHOULD_TAKE_S

    def finish(self, side: Side, within_s: float) -> bool:
        return self.applier.finish(side, within_s)
