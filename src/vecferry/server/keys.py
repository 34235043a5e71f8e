"""API keys: known by their digests, compared in constant time, never shown."""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from vecferry.errors import SettingsError, UnreadableFile, reason_of

MIN_CHARACTERS = 16
log = logging.getLogger("vecferry.server")


class ApiKeys:
    """The keys that requests may carry; without any, every request is let in."""

    def __init__(self, keys: Iterable[str] = (), *, source: str = "VECFERRY_API_KEYS") -> None:
        """Keep the keys' digests. Raises SettingsError, without the key, for one that is too short."""
        keys = list(keys)
        if any(len(key) < MIN_CHARACTERS for key in keys):
            raise SettingsError(source, "…", f"keys of at least {MIN_CHARACTERS} characters")
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one key a line; blank lines and those that begin with # are left out. Raises SettingsError.

        Warns of a file that others may read.
        """
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            is_open = path.stat().st_mode & stat.S_IROTH
        except (OSError, UnicodeDecodeError) as exc:
            reason = reason_of(exc) if isinstance(exc, OSError) else "it is not UTF-8"
            raise UnreadableFile("--api-keys", path, reason) from exc
        if is_open:
            log.warning("everybody on this machine may read --api-keys %s. Type: chmod 600 %s", path, path)
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise SettingsError("--api-keys", path, "a file with a key a line (it has none)")
        return cls(keys, source=f"--api-keys {path}")

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"<{len(self._digests)} API keys>"

    def accepts(self, authorization: bytes) -> bool:
        """Return whether the value of an Authorization header carries one of the keys; all of them are compared."""
        if not self._digests:
            return True
        scheme, _, key = authorization.partition(b" ")
        digest_sent = _digest(key.strip())
        matches = [hmac.compare_digest(digest_sent, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
