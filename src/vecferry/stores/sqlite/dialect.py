"""What SQLite takes instead of the words and functions of PostgreSQL that the ledger's statements use.

Times are seconds since 1970, and a list of texts is JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REPLACEMENTS = {
    "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY": "integer PRIMARY KEY AUTOINCREMENT",
    "= ANY(%s)": "IN (SELECT value FROM json_each(%s))",
    " FOR KEY SHARE": "",  # who is in a transaction is the only writer
    "vecferry.": "",
    "%s": "?",
}

FUNCTIONS: Mapping[tuple[str, int], Callable[..., Any]] = {
    ("clock_timestamp", 0): time.time,
    ("to_timestamp", 1): lambda seconds: seconds,
    ("date_part", 2): lambda _, seconds: seconds,
}
"""By name and number of arguments."""


def as_statement(statement: str) -> str:
    for word, replacement in REPLACEMENTS.items():
        statement = statement.replace(word, replacement)
    return statement


def as_params(params: Sequence[object]) -> list[object]:
    return [json.dumps(param) if isinstance(param, list) else param for param in params]
