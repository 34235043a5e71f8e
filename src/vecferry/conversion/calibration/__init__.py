"""Texts in 26 languages: some to calibrate int8 with, others to hold it against fp32. README.md says whose they are."""

from __future__ import annotations

import json
import lzma
from importlib.resources import files
from typing import Literal


def calibration_texts() -> list[str]:
    """Return the texts that decide the scales of the int8 form: sentences in 26 languages, passages in five."""
    return _texts("calibrate")


def comparison_texts() -> list[str]:
    """Return other texts of the same kinds, and questions."""
    return _texts("compare")


def _texts(use: Literal["calibrate", "compare"]) -> list[str]:
    lines = lzma.decompress(files(__name__).joinpath("texts.jsonl.xz").read_bytes()).splitlines()
    return [record["text"] for record in map(json.loads, lines) if record["use"] == use]
