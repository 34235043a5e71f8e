"""A checkpoint's JSON files, each with a schema of what is read of it: types and bounds; other content is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vecferry.errors import CheckpointDamaged, cut_repr
from vecferry.model.files import check_not_pointer, read_whole

Text = Annotated[str, Field(strict=True, max_length=10_000)]
"""With a bound, since what is then read is refused where it has no UTF-8 form."""
MAX_JSON_BYTES = 4_000_000


class JsonFile(BaseModel):
    """A JSON file: the fields that are read, of exactly these types. Others are left alone."""

    model_config = ConfigDict(frozen=True, strict=True)


FileT = TypeVar("FileT", bound=BaseModel)


def read_fields(path: Path, schema: type[FileT]) -> FileT:
    """Return the file's fields, or their defaults where there is no file. Raises CheckpointDamaged."""
    parsed = read_json(path)
    return checked(path, schema, {} if parsed is None else parsed)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return what the JSON file holds, or None where there is none. Raises CheckpointDamaged."""
    try:
        content = read_whole(path, max_bytes)
        check_not_pointer(path, content)
        parsed = json.loads(content, parse_constant=_not_a_number)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as exc:
        raise CheckpointDamaged(path, f"it is not JSON ({exc})") from exc
    if parsed is None:
        raise CheckpointDamaged(path, "it holds nothing but null")
    return parsed


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def checked(path: Path, schema: type[FileT], parsed: Any) -> FileT:
    """Return the fields of a file that was read. Raises CheckpointDamaged."""
    try:
        return schema.model_validate(parsed)
    except ValidationError as exc:
        refuse(path, exc)


def refuse(path: Path, exc: ValidationError) -> NoReturn:
    """Raise CheckpointDamaged for the first field that is not as its schema says."""
    first = exc.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])).encode(errors="backslashreplace").decode() or "content"
    is_missing = first["type"] == "missing"
    reason = f"it has no {where}" if is_missing else f"its {where} is {cut_repr(first['input'])} ({first['msg']})"
    raise CheckpointDamaged(path, reason) from exc
