"""What is known about how stored vectors were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vecferry.embeddings import Value
from vecferry.encode.adapted import NOT_ADAPTED, Adaptation


class Verdict(StrEnum):
    """CONFIRMED: as the file says. EXPLAINED: otherwise, and it is known how. MIXED: a part is as the file says."""

    CONFIRMED = "confirmed"
    EXPLAINED = "explained"
    MIXED = "mixed"
    UNEXPLAINED = "unexplained"
    NO_VECTORS = "no vectors"
    NO_TEXTS = "no texts"
    NO_MODEL = "no old model"


@dataclass(frozen=True)
class Making(Value):
    """How vectors are made of rows. text: a text source, by its name in migration.toml; then the old model's part.

    pooling: where it is not that of the old model that is named; "cls" or "max".
    """

    text: str
    adaptation: Adaptation = NOT_ADAPTED
    pooling: str | None = None

    def as_toml(self) -> str:
        """Return it as lines of migration.toml."""
        given = {name: value for name, value in self.adaptation.to_dict().items() if value}
        lines = ["[store]", f"text = {json.dumps(self.text, ensure_ascii=False)}"]
        lines += ["[old]", *(f"{name} = {json.dumps(value)}" for name, value in given.items())] if given else []
        return " ".join(lines)


@dataclass(frozen=True)
class Provenance(Value):
    """What a sample of stored vectors was made from.

    rows: that were compared; matching: the share of them with a cosine of 0.99 or more; median and lowest: of the
    cosines; all of these as the file says. dimensions: how many rows have vectors of each length. shortest, longest:
    vectors by their Euclidean length, 1 where they were normalised. making: what fits better than what the file says,
    and explained: the share that matches with it. message: the same in sentences.
    """

    verdict: Verdict
    message: str
    rows: int = 0
    matching: float = 0.0
    median: float = 0.0
    lowest: float = 0.0
    dimensions: Mapping[int, int] = field(default_factory=dict)
    shortest: float = 1.0
    longest: float = 1.0
    making: Making | None = None
    explained: float | None = None

    @property
    def is_confirmed(self) -> bool:
        """Whether the new vectors would be made of what the old ones were made of; so too where there are none."""
        return self.verdict in (Verdict.CONFIRMED, Verdict.NO_VECTORS)

    @property
    def remedy(self) -> str:
        """What to do where the vectors are not confirmed."""
        if self.making is not None:
            return " ".join(filter(None, (self._pooling_remedy, f"Write to migration.toml: {self.making.as_toml()}")))
        if self.verdict is Verdict.NO_MODEL:
            return 'Name it: vecferry migrate start --old-model FOLDER, or [models] old = "FOLDER" in migration.toml.'
        return "Look at text and vector columns and at the old model: vecferry migrate plan says more."

    @property
    def _pooling_remedy(self) -> str:
        """What to do where the named old model pools otherwise; empty where it does not."""
        if self.making is None or self.making.pooling is None:
            return ""
        if self.making.pooling == "cls":
            return "Convert the old model with that pooling, and name it: vecferry convert MODEL FOLDER --pooling cls"
        return "No conversion pools so: the new vectors are right all the same, the old side cannot be kept current."
