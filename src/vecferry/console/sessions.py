"""Logins: who holds a key gets a cookie, for as long as he does something. All of it is in this process's memory."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from vecferry.console.operator import Outcome
from vecferry.server.keys import ApiKeys

T = TypeVar("T")
COOKIE = "vecferry-console"
IDLE_S = 30 * 60.0
FREE_FAILURES = 3
"""Wrong keys before the next one has to wait: 1 s, then twice as long each time."""
MAX_WAIT_S = 60.0
MAX_REMEMBERED = 1024
"""Clients whose failures are known, and sessions at a time; the oldest go first."""


@dataclass
class LoginSession:
    """A logged-in browser. csrf: in every form of this session. notice: the outcome of its last form, until shown."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    seen_at: float = 0.0
    notice: Outcome | None = None

    def owns(self, form: str) -> bool:
        """Return whether a form with this token is one of the session's."""
        return hmac.compare_digest(self.csrf.encode(), form.encode())


class Sessions:
    """The logins of a console. keys: at least one. clock: monotonic seconds."""

    def __init__(self, keys: ApiKeys, clock: Callable[[], float] = time.monotonic) -> None:
        assert keys, "a console without a key would be open to everybody"
        self._keys, self._clock = keys, clock
        self._sessions: dict[str, LoginSession] = {}
        self._failures: dict[str, tuple[int, float]] = {}

    def accepts(self, key: str, client: str) -> bool:
        """Return whether it is one of the keys; never before `wait_s` of that client is 0."""
        if self.wait_s(client) > 0:
            return False
        if self._keys.accepts(b"Bearer " + key.strip().encode(errors="replace")) and key.strip():
            self._failures.pop(client, None)
            return True
        number = self._failures.pop(client, (0, 0.0))[0] + 1
        self._failures[client] = number, self._clock()
        _keep(self._failures)
        return False

    def wait_s(self, client: str) -> float:
        """Return how long that client has to wait, by the wrong keys that it gave."""
        number, last = self._failures.get(client, (0, 0.0))
        if number < FREE_FAILURES:
            return 0.0
        wait: float = min(MAX_WAIT_S, 2.0 ** (number - FREE_FAILURES))
        return max(0.0, last + wait - self._clock())

    def begin(self) -> LoginSession:
        session = LoginSession(seen_at=self._clock())
        self._sessions[session.token] = session
        _keep(self._sessions)
        return session

    def find(self, token: str, *, active: bool = True) -> LoginSession | None:
        """Return the session of that cookie, if it is not over. active: a person acted, so that it goes on."""
        session = self._sessions.get(token)
        if session is None:
            return None
        if self._clock() - session.seen_at > IDLE_S:
            self.end(session)
            return None
        if active:
            session.seen_at = self._clock()
        return session

    def end(self, session: LoginSession) -> None:
        self._sessions.pop(session.token, None)


def _keep(remembered: dict[str, T]) -> None:
    while len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]
