"""What an option may be: its bounds and its help stand in its type, its default beside it, and nowhere else.

    rows_per_range: Annotated[Count, Help("rows encoded and kept at a time")] = 256

Files, the command line and the documentation read these declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from vecferry.errors import SettingsError

NO_HOME = "no_home"


class Help(str):
    """What an option means, in a few words that begin small and end without a stop."""


def folder_of(info: ValidationInfo) -> Path | None:
    """Return the folder of the file that is read; None where there is none, and paths stay as they are."""
    folder: Path | None = info.context and info.context["folder"]
    return folder


def in_folder(path: Path, info: ValidationInfo) -> Path:
    """Return a path of a file as it is seen from here."""
    folder = folder_of(info)
    if folder is None:
        return path
    try:
        return folder / path.expanduser()
    except RuntimeError as exc:  # of pathlib: no HOME, and a user whom the system does not know
        raise PydanticCustomError(
            NO_HOME, "a path without ~, whose home is not known, or HOME set to a folder"
        ) from exc


# A description says what was expected instead of a wrong value.
Count = Annotated[int, Field(strict=True, ge=1, description="a whole number from 1")]
CountFrom0 = Annotated[int, Field(strict=True, ge=0, description="a whole number from 0")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Above0 = Annotated[Number, Field(gt=0, description="a number above 0")]
From0 = Annotated[Number, Field(ge=0, description="a number from 0")]
Seconds = Annotated[Number, Field(gt=0, description="seconds above 0")]
Share = Annotated[Number, Field(ge=0, le=1, description="a number from 0 to 1")]
Cosine = Annotated[Number, Field(ge=-1, le=1)]
Name = Annotated[str, Field(min_length=1)]
FolderPath = Annotated[Path, AfterValidator(in_folder), Field(description="a folder")]


class Checked:
    """Base of a frozen dataclass whose fields are within their bounds; SettingsError is raised otherwise."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    def __post_init__(self) -> None:
        section: type = type(self)
        for name, adapter in _adapters(section).items():
            try:
                adapter.validate_python(getattr(self, name))
            except ValidationError as exc:
                problem = exc.errors()[0]
                place = " ".join(
                    (name, *(part for part in problem["loc"] if isinstance(part, str) and part[:1] != "["))
                )
                raise SettingsError(place, problem["input"], expected_of(section, name)) from exc


@cache
def _adapters(section: type) -> dict[str, TypeAdapter[Any]]:
    """Return the adapters of those fields that have bounds."""
    hints = {each.name: _hints(section)[each.name] for each in fields(section)}
    return {name: TypeAdapter(hint) for name, hint in hints.items() if any(_infos(hint))}


@cache
def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def _metadata(hint: Any) -> Iterator[Any]:
    """Yield what a type is annotated with: the outer before the inner, the later before the former."""
    yield from reversed(getattr(hint, "__metadata__", ()))
    for part in get_args(hint):
        yield from _metadata(part)


def _infos(hint: Any) -> Iterator[FieldInfo]:
    return (each for each in _metadata(hint) if isinstance(each, FieldInfo))


def names_of(section: type) -> tuple[str, ...]:
    """Return the names of the options of a section."""
    return tuple(each.name for each in fields(section))


def default_of(section: type, name: str) -> Any:
    """Return the default of a field; dataclasses.MISSING where it has none."""
    return next(each.default for each in fields(section) if each.name == name)


def help_of(section: type, name: str) -> str:
    """Return the help of a field."""
    return next((str(each) for each in _metadata(_hints(section)[name]) if isinstance(each, Help)), "")


def expected_of(section: type, name: str) -> str:
    """Return what a value of a field must be, in words."""
    return next((each.description for each in _infos(_hints(section)[name]) if each.description), "another value")


def bounds_of(section: type, name: str) -> dict[str, Any]:
    """Return the bounds of a field by their names in annotated_types: {"ge": 0, "le": 1}."""
    constraints = [each for info in _infos(_hints(section)[name]) for each in info.metadata]
    return {key: getattr(each, key) for each in constraints for key in ("ge", "gt", "le", "lt") if hasattr(each, key)}


def number_type(section: type, name: str) -> type[int | float] | None:
    """Return int or float for a field that is a number."""
    kinds = _types(_hints(section)[name])
    return int if int in kinds else float if float in kinds else None


def _types(hint: Any) -> set[Any]:
    """Return a type, or those that a union is made of."""
    if hasattr(hint, "__metadata__"):
        return _types(hint.__origin__)
    if get_origin(hint) not in (Union, UnionType):
        return {hint}
    return {kind for part in get_args(hint) for kind in _types(part)}
