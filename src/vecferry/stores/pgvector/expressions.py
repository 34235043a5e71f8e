"""Expressions of SQL as a row of tokens: which names are in one, and the same over another column."""

from __future__ import annotations

import re
from collections.abc import Iterator

from psycopg import sql

TOKEN = re.compile(
    r"""(?P<text>E'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')
      | (?P<cast>::(?:(?:\w+|"(?:[^"]|"")+")\.)?(?P<type>vector|halfvec|bit)\()(?P<length>\d+)(?=\))
      | (?P<before>::|\.)?(?P<name>"(?:[^"]|"")+"|[^\W\d][\w$]*)(?P<call>\()?(?P<qualifies>(?=\.))?""",
    re.VERBOSE,
)
"""What may be, or hide, a column's name or a vector's length in an expression as PostgreSQL writes it."""


def names_in(expression: str, *, calls: bool = False) -> Iterator[str]:
    """Yield what may be a name in it, in any place; calls: of functions alone."""
    for token in TOKEN.finditer(expression):
        if token["name"] and (token["call"] or not calls):
            yield unquoted(token["name"])


def over_another(expression: str, columns: tuple[str, str], lengths: tuple[int, int]) -> str:
    """Return an expression, as PostgreSQL writes it, with one column in place of another.

    A cast to the length of the old vectors becomes one to that of the new; texts, functions and types stay.
    """
    old, new = columns
    return _replaced(expression, old, sql.Identifier(new).as_string(), lengths)


def over_expression(expression: str, column: str, written: str) -> str:
    """Return an expression, as PostgreSQL writes it, with another one in place of a column."""
    return _replaced(expression, column, written, (0, 0))


def _replaced(expression: str, old: str, new: str, lengths: tuple[int, int]) -> str:
    old_length, new_length = lengths

    def replaced(token: re.Match[str]) -> str:
        if token["cast"]:
            return token["cast"] + str(new_length if int(token["length"]) == old_length else token["length"])
        name = token["name"]
        is_other = token["before"] or token["call"] or token["qualifies"] is not None
        if name is None or is_other or unquoted(name) != old:
            return token[0]
        return new

    return TOKEN.sub(replaced, expression)


def unquoted(name: str) -> str:
    """Return a name as it is in the catalogue."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
