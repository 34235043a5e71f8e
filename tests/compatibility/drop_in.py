"""What becomes of every argument and member of the classes that ours stand for.

    python -m tests.compatibility.drop_in

It inspects those of the two packages that are installed, writes their signatures to tests/data/drop_in/, and the table
of all of them between two marks in docs/integrations.md. The fast tests beside it need neither package.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from tests.compatibility.page import DOCS, replace_section
from vecferry.integrations import flag_embedding, sentence_transformers
from vecferry.integrations.foreign import Deviations

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data/drop_in"
PAGE = DOCS / "integrations.md"
CALLED = "__init__"
OPERATORS = ("__init__", "__call__", "__getitem__")


@dataclass(frozen=True)
class DropIn:
    """A class of ours, and the one that it stands for, of that package."""

    ours: type
    deviations: Deviations
    package: str
    module: str

    @property
    def name(self) -> str:
        return self.ours.__name__

    def original(self) -> type:
        original: type = getattr(import_module(self.module), self.name)
        return original

    @property
    def path(self) -> Path:
        return DATA / f"{self.name}.json"

    def recorded(self) -> dict[str, Any]:
        """Return the package's version, and the arguments of each member; None of one that is not called."""
        recorded: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return recorded


DROP_INS = (
    DropIn(
        sentence_transformers.SentenceTransformer,
        sentence_transformers.DEVIATIONS,
        "sentence-transformers",
        "sentence_transformers",
    ),
    DropIn(flag_embedding.BGEM3FlagModel, flag_embedding.DEVIATIONS, "FlagEmbedding", "FlagEmbedding"),
)


def inspected(drop_in: DropIn) -> dict[str, Any]:
    """Return what `recorded` returns, of the package that is installed. Raises ImportError without it."""
    original = drop_in.original()
    names = [name for name in dir(original) if name in OPERATORS or not name.startswith("_")]
    members = {name: arguments_of(inspect.getattr_static(original, name)) for name in names}
    members |= dict.fromkeys(attributes_of(original, drop_in.module) - members.keys())
    return {"version": metadata.version(drop_in.package), "members": dict(sorted(members.items()))}


def arguments_of(member: object) -> list[str] | None:
    """Return the names of the arguments of a method, in their order; those of any name are left out."""
    function = getattr(member, "__func__", member)
    if not inspect.isfunction(function):
        return None
    parameters = inspect.signature(function).parameters.values()
    named = (each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD))
    return [each.name for each in named if each.name not in ("self", "cls")]


def attributes_of(original: type, module: str) -> set[str]:
    """Return what the constructors set, of classes of that package."""
    kinds = [kind for kind in original.__mro__ if kind.__module__.startswith(module) and "__init__" in vars(kind)]
    sources = [inspect.getsource(vars(kind)["__init__"]) for kind in kinds]
    return {name for source in sources for name in re.findall(r"self\.([a-z]\w*) =", source)}


# --- the table ------------------------------------------------------------------------------------


def tables() -> str:
    """Return the lines between the marks."""
    rows = "\n".join(line for drop_in in DROP_INS for line in _table_of(drop_in))
    return f"{rows}\n{_reasons()}"


def _table_of(drop_in: DropIn) -> list[str]:
    recorded, deviations = drop_in.recorded(), drop_in.deviations
    refused: dict[str, list[str]] = defaultdict(list)
    without_effect: dict[str, list[str]] = defaultdict(list)
    honoured, rows = [], []
    for name, arguments in recorded["members"].items():
        if is_refused(drop_in, name):
            refused[deviations.refused[name]].append(name)
        elif name in deviations.no_effect:
            without_effect[deviations.no_effect[name]].append(name)
        elif arguments:
            rows.append(_row(drop_in, name, arguments))
        else:
            honoured.append(name)
    return [
        f"`{drop_in.name}` of {drop_in.package} {recorded['version']}:",
        "",
        "| | honoured | accepted without effect | refused |",
        "|---|---|---|---|",
        *rows,
        f"| {_names(honoured)} | yes | | |",
        *(f"| {_names(names)} | | {reason} | |" for reason, names in without_effect.items()),
        *(f"| {_names(names)} | | | {remedy} |" for remedy, names in refused.items()),
        "",
    ]


def is_refused(drop_in: DropIn, name: str) -> bool:
    """Return whether a member as a whole is refused; it may be an argument's name too."""
    return isinstance(inspect.getattr_static(drop_in.ours, name, None), REFUSED)


REFUSED = type(inspect.getattr_static(flag_embedding.BGEM3FlagModel, "model"))


def _row(drop_in: DropIn, name: str, arguments: list[str]) -> str:
    no_effect, refused = drop_in.deviations.no_effect, drop_in.deviations.refused
    shown = f"`{drop_in.name}(...)`" if name == CALLED else f"`{name}`"
    kinds: dict[bool | None, list[str]] = defaultdict(list)
    for argument in arguments:
        kinds[None if argument in refused else argument not in no_effect].append(argument)
    return f"| {shown} | {_names(kinds[True])} | {_names(kinds[False])} | {_names(kinds[None])} |"


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _reasons() -> str:
    """Return what is said once of each argument, below the tables."""
    lines = []
    for drop_in in DROP_INS:
        arguments = {name for each in drop_in.recorded()["members"].values() for name in each or ()}
        named: dict[str, list[str]] = defaultdict(list)
        for kind, texts in (("no effect", drop_in.deviations.no_effect), ("refused", drop_in.deviations.refused)):
            for name, text in texts.items():
                if name in arguments and not is_refused(drop_in, name):
                    named[f"{kind}: {text.rstrip('.')}."].append(name)
        lines += [f"- `{drop_in.name}`, {_names(names)}: {text}" for text, names in named.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for drop_in in DROP_INS:
        try:
            found = inspected(drop_in)
        except ImportError as exc:
            print(f"{drop_in.package} is not inspected: {exc}")
            continue
        drop_in.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{drop_in.path.relative_to(ROOT)}: {drop_in.package} {found['version']}")
    replace_section("drop-in", tables(), PAGE)


if __name__ == "__main__":
    main()
