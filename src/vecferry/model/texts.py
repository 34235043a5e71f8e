"""What counts as texts, everywhere: a sequence of strings, and nothing whose iteration would be something else.

Arrays and columns of other libraries (NumPy, pandas, polars, PyArrow) are known by what they offer; none is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from vecferry.errors import EmptyInput, InvalidText, WrongInputType, WrongTextType, cut_repr

TO_LIST = ("to_pylist", "to_list", "tolist")
"""How PyArrow's arrays, the Series of pandas and polars, and NumPy's arrays give their items as Python's own."""


def as_texts(texts: object, first_row: int = 0) -> list[str]:
    """Return the texts of a sequence in their order; empty for none.

    A list, a tuple or another sequence, a one-dimensional array, or a column of a data frame. first_row: the number of
    the first text, where these are a part of some. Raises WrongInputType, InvalidText.
    """
    items = as_items(texts)
    for row, text in enumerate(items, first_row):
        check_text(text, row)
    return items


def require_texts(texts: object, first_row: int = 0) -> list[str]:
    """Return one text or more, as `as_texts` does. Raises EmptyInput, WrongInputType, InvalidText."""
    checked = as_texts(texts, first_row)
    if not checked:
        raise EmptyInput
    return checked


def iterate_texts(texts: object) -> Iterator[Any]:
    """Iterate over what is a sequence for `as_texts`, or an iterable whose order is its own; items are not checked.

    Raises WrongInputType.
    """
    is_column = any(hasattr(texts, name) for name in TO_LIST)
    if isinstance(texts, Iterable) and _refusal(texts) is None and not is_column:
        return iter(texts)
    return iter(as_items(texts))


def check_text(text: object, row: int) -> None:
    """Check one text. Raises WrongTextType if it is not a string, InvalidText if it has no UTF-8 form."""
    if not isinstance(text, str):
        raise WrongTextType(row, "None" if text is None else f"{_with_article(text)}: {cut_repr(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        reason = f"lone surrogate U+{ord(text[exc.start]):04X} at character {exc.start}"
        raise InvalidText(row, reason) from exc


def as_items(texts: object) -> list[Any]:
    """Return the items of a sequence as `as_texts` does, whatever they are. Raises WrongInputType."""
    if isinstance(texts, list | tuple):
        return list(texts)
    if (remedy := _refusal(texts)) is not None:
        raise WrongInputType("a list of strings", _kind(texts), remedy)
    if (items := _converted(texts)) is not None:
        return items
    if isinstance(texts, Sequence):
        return list(texts)
    remedy = "Pass list(texts)" if isinstance(texts, Iterable) else "Pass a list of strings"
    raise WrongInputType("a list of strings", _kind(texts), f"{remedy}.")


def _converted(texts: object) -> list[Any] | None:
    """Return the items of an array or column; None for what is neither, or has no dimension."""
    for name in TO_LIST:
        if callable(convert := getattr(texts, name, None)):
            items = convert()
            return items if isinstance(items, list) else None
    return None


def _refusal(texts: object) -> str | None:
    """Return what to pass instead of something whose iteration gives no texts, or gives them in no order."""
    if isinstance(texts, str):
        return "Pass [text]."
    if isinstance(texts, bytes | bytearray | memoryview):
        return "Pass [text.decode()]."
    if isinstance(texts, Mapping):
        return "Pass its values: list(texts.values())."
    if isinstance(texts, AbstractSet):
        return "It has no order of its own: pass sorted(texts)."
    if hasattr(texts, "columns"):
        return "Pass one of its columns: texts['COLUMN']."
    return None


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _with_article(value: object) -> str:
    kind = _kind(value)
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
