"""Who brings a side up to date for a switch: the run in another process, and this one with the models it was given."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from vecferry.migrate.applier import MAX_LAST_ROWS, Applier
from vecferry.stores.protocol import Store
from vecferry.stores.values import Side

STANDSTILL_S = 10.0
"""After so long without a write less to be followed, a run in another process is not waited for any more."""
SOON_S, POLL_S = 0.5, 0.002
"""After so long a few rows are enough: where writes never end, they are never all followed."""


@dataclass(frozen=True)
class SwitchFollower:
    """`switch.Follower`. elsewhere: the sides that a run in another process follows, which holds the lease.

    That both write the last rows does no harm: a vector is written only beside the text that it was made from.
    """

    store: Store
    applier: Applier
    elsewhere: Collection[Side] = ()

    def catch_up(self, side: Side, few: int = MAX_LAST_ROWS) -> bool:
        """Bring that side up to date, as far as it can be while others write.

        few: so many may be left where a run elsewhere follows.
        """
        can_follow = self.applier.can_follow(side)
        if side in self.elsewhere:
            self._await_run(side, few)
        elif can_follow:
            self.applier.catch_up_once({side})
        self.applier.forget_gone_letters()
        return can_follow or side in self.elsewhere

    def _await_run(self, side: Side, few: int) -> None:
        began = changed_at = time.monotonic()
        fewest = backlog = self.store.backlog(side)
        while backlog and (now := time.monotonic()) < changed_at + STANDSTILL_S:
            if backlog <= few and now > began + SOON_S:
                return
            if backlog < fewest:
                fewest, changed_at = backlog, now
            time.sleep(POLL_S)
            backlog = self.store.backlog(side)

    def finish(self, side: Side, within_s: float) -> bool:
        return self.applier.finish(side, within_s)
