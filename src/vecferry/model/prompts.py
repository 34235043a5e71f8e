"""The prompts that a checkpoint names, and which of them are the prefixes of queries and of passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vecferry.errors import CheckpointDamaged, ConfigMissing, cut_repr
from vecferry.model.json_files import JsonFile, Text, read_fields
from vecferry.model.layout import PROMPTS_FILE
from vecferry.precisions import Role as Role

PROMPT_ROLES: dict[str, Role] = {
    "passage": "passage", "document": "passage", "query": "query", "corpus": "passage",
    "search_document": "passage", "search_query": "query",
    "retrieval.passage": "passage", "retrieval.query": "query",
    "Retrieval-document": "passage", "Retrieval-query": "query",
}  # fmt: skip
"""What published checkpoints call the prefix of a role: by sentence-transformers, Nomic, Jina, Google."""
SHOWN = 10


class _PromptsFile(JsonFile):
    prompts: Annotated[dict[str, Text | None], Field(max_length=1000)] | None = None
    default_prompt_name: Text | None = None


class Prompts:
    """What config_sentence_transformers.json says; sentence-transformers itself writes empty prompts into it."""

    def __init__(self, folder: Path) -> None:
        """Read the file. Raises CheckpointDamaged, also for a default prompt that there is not."""
        path = folder / PROMPTS_FILE
        declared = read_fields(path, _PromptsFile)
        self._texts = {name: text for name, text in (declared.prompts or {}).items() if text}
        name = declared.default_prompt_name
        if name is not None and name not in {*(declared.prompts or {}), *PROMPT_ROLES}:
            reason = f"its default_prompt_name is {cut_repr(name)}, and it has no prompt of that name"
            raise CheckpointDamaged(path, reason)
        self._default = "" if name is None else self._texts.get(name, "")

    def prefix(self, role: Role) -> str:
        """Return the role's prompt, or else the default one, or "" where the checkpoint has no prompts at all.

        Raises ConfigMissing where there are prompts and none of them is known to be the role's.
        """
        names = (name for name in ("document", *PROMPT_ROLES) if PROMPT_ROLES[name] == role)
        text = next((self._texts[name] for name in names if name in self._texts), self._default)
        unknown = sorted(self._texts.keys() - PROMPT_ROLES.keys())
        if not text and unknown:
            more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
            prompts = ", ".join(f"{cut_repr(name)}: {cut_repr(self._texts[name])}" for name in unknown[:SHOWN])
            plural = {"passage": "passages", "query": "queries"}[role]
            reason = f"{PROMPTS_FILE} has the prompts {prompts}{more}, and which is theirs is not known"
            raise ConfigMissing([f"prefix of {plural} ({reason})"], [f'--{role}-prefix "TEXT", or ""'])
        return text
