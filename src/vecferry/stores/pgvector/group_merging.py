"""What is said of several tables as one: sums, the first of several findings, what is alike in all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from vecferry.stores.text_source import Fields, TextSource, as_text
from vecferry.stores.values import Counts, Examination, Finding, Key, Layout, LayoutCost, TableInfo


@dataclass(frozen=True)
class TextsOfMembers:
    """The text of a row whose table has its own source: rendered by the group, under this name among its fields."""

    name: str

    @property
    def field(self) -> str:
        return self.name

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)

    def at(self, text_field: str) -> TextSource:  # noqa: ARG002  # each table has its own
        return self

    def render(self, fields: Fields) -> str | None:
        return as_text(fields.get(self.name))


def source_of_all(sources: Sequence[TextSource], texts: Mapping[str, str]) -> TextSource:
    """Return the source that all tables have; else one that stands for all, by whose name a migration is known.

    texts: what was said of each pattern, so that the name stays when a table comes.
    """
    if len(set(texts.values())) == 1 and len({source.name for source in sources}) == 1:
        return sources[0]
    return TextsOfMembers("; ".join(f"{pattern}: {text}" for pattern, text in sorted(texts.items())))


def merged_finding(findings: Iterable[tuple[str, Finding]], max_keys: int) -> Finding:
    """Return what was found in all, by the keys of the group."""
    listed = list(findings)
    keys = tuple((member, *key) for member, finding in listed for key in finding.keys)
    return Finding(sum(finding.count for _, finding in listed), keys[:max_keys])


def merged_counts(counts: Iterable[Counts]) -> Counts:
    listed = list(counts)
    return Counts(*(sum(getattr(each, field.name) for each in listed) for field in fields(Counts)))


def merged_examination(examinations: Mapping[str, Examination], max_keys: int) -> Examination:
    """Return what was found in all tables; missing indexes by their names."""
    merged: dict[str, Any] = {}
    for field in fields(Examination):
        values = {member: getattr(each, field.name) for member, each in examinations.items()}
        first = next(iter(values.values()))
        if isinstance(first, Finding):
            merged[field.name] = merged_finding(values.items(), max_keys)
        else:
            merged[field.name] = sum(values.values()) if isinstance(first, int) else tuple(chain(*values.values()))
    return Examination(**merged)


def merged_info(infos: Sequence[TableInfo]) -> TableInfo:
    """Return what `describe` says of all: sums, every name once; None where the tables differ in a thing.

    vector_not_null: of any. `PgGroupStore` knows of which.
    """
    merged: dict[str, Any] = {}
    for field in fields(TableInfo):
        values = [getattr(info, field.name) for info in infos]
        if isinstance(values[0], tuple):
            merged[field.name] = tuple(dict.fromkeys(chain(*values)))
        elif field.name in ("dimension", "fingerprint"):
            merged[field.name] = values[0] if len(set(values)) == 1 else None
        else:
            merged[field.name] = any(values) if isinstance(values[0], bool) else sum(values)
    return TableInfo(**merged)


def merged_layouts(costs: Mapping[str, Sequence[LayoutCost]]) -> tuple[LayoutCost, ...]:
    """Return each layout with the seconds of all tables, which are locked together; obstacles by their tables."""
    merged = []
    for layout in Layout:
        own = {member: cost for member, each in costs.items() for cost in each if cost.layout is layout}
        first = next(iter(own.values()))
        obstacle = "; ".join(f"{member}: {cost.obstacle}" for member, cost in own.items() if cost.obstacle)
        seconds = sum(cost.switch_s for cost in own.values())
        merged.append(
            LayoutCost(layout, all(cost.is_chosen for cost in own.values()), first.shape, first.lock, seconds, obstacle)
        )
    return tuple(merged)


def shares(weights: Mapping[str, int], number: int) -> dict[str, int]:
    """Share out a number by weight, at least one to each that has any; somewhat more than the number in all."""
    total = sum(weights.values())
    return {name: -(-number * weight // total) for name, weight in weights.items() if weight}


def own_keys(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """Return the keys that each table has by itself, by its name, in the order of the names."""
    by_member: dict[str, list[Key]] = {}
    for key in keys:
        if key:
            by_member.setdefault(key[0], []).append(key[1:])
    return dict(sorted(by_member.items()))
