"""The names under which a server may be asked. Any name may be made to lead here (DNS rebinding)."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from vecferry.errors import UnknownHost

MAX_SHOWN = 200


class HostNames:
    """Addresses and localhost, which nobody else can make lead here, and the names that were allowed."""

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = {name.lower() for name in names} | {"localhost"}

    def require(self, host: bytes) -> None:
        """Raise UnknownHost unless the value of a Host header, with or without a port, is one of them."""
        text = host.decode("latin-1")
        if not self._has(text):
            raise UnknownHost(text[:MAX_SHOWN].encode("ascii", "replace").decode())

    def _has(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False
