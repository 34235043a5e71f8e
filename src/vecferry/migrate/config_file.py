"""A migration.toml for a collection that was looked at: comments say what was found, and what to look at again."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from vecferry.errors import printable
from vecferry.migrate.config import DEFAULT_FILE, LOCAL_SCHEMES
from vecferry.migrate.provenance import Verdict
from vecferry.migrate.recipe import Recipe
from vecferry.stores.backend import ServerAccess, VectorField
from vecferry.stores.opening import POSTGRES, store_kind

WIDTH = 118
HELD_ALONE = ("chroma", "milvus", "qdrant")
SECRETS = frozenset({"password", "sslpassword"})
"""Parameters of a URL of PostgreSQL that are never written down."""
OLD_MODEL_VERDICTS = frozenset({Verdict.CONFIRMED, Verdict.EXPLAINED, Verdict.MIXED})
"""Those by which the old model that was compared is the one that made vectors."""


@dataclass(frozen=True)
class StoreAddress:
    """A URL, and what of it may be written down."""

    url: str

    @property
    def written(self) -> str:
        """Return the URL without password and key."""
        if not self.has_secret:
            return self.url
        parts = urlsplit(self.url)
        user, _, host = parts.netloc.rpartition("@")
        user = user.partition(":")[0] if self._is_of_postgres else ""
        query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in SECRETS], safe="/")
        return urlunsplit((parts.scheme, f"{user}@{host}" if user else host, parts.path, query, ""))

    @property
    def has_secret(self) -> bool:
        """Return whether it has a password, or a key in its place, which is not written down."""
        if self.is_local:
            return False
        parts = urlsplit(self.url)
        user, _, _ = parts.netloc.rpartition("@")
        secret = user.partition(":")[2] if self._is_of_postgres else user
        return bool(secret) or any(name in SECRETS for name, _ in parse_qsl(parts.query))

    @property
    def is_local(self) -> bool:
        """Return whether it is a file or folder."""
        return self.url.partition(":")[0].lower() in LOCAL_SCHEMES

    @property
    def is_held_alone(self) -> bool:
        """Return whether it is a file or folder that a process has for itself while it is open."""
        return self.url.partition(":")[0].lower() in HELD_ALONE

    @property
    def _is_of_postgres(self) -> bool:
        return store_kind(self.url) == POSTGRES

    def seen_from(self, folder: Path) -> StoreAddress:
        """Return the address for a file in that folder, to which its relative path is relative."""
        scheme, _, path = self.url.partition(":")
        is_elsewhere = self.is_local and not path.startswith("/") and folder.absolute() != Path.cwd()
        return StoreAddress(f"{scheme}://{Path(path).absolute()}") if is_elsewhere else self


@dataclass(frozen=True)
class Draft:
    """What goes into the file.

    access: its token is left out. new, old: folders of the models. is_old_known: whether that one has made the vectors.
    """

    address: StoreAddress
    access: ServerAccess
    field: VectorField
    recipe: Recipe
    new: Path
    old: Path
    is_old_known: bool

    def text(self, file: Path) -> str:
        """Return the file, as it is to be called; its paths are relative to its folder."""
        return "\n".join([*self._head(), *self._store(file), *self._models(file), *self._old(), *self._next(file), ""])

    def _head(self) -> Iterator[str]:
        yield from _comment(f"{self.field.name}, as vecferry init has found it. Every option: docs/migrate.md.")
        rows, lengths = self.field.rows, " or ".join(f"{each:,}" for each in self.field.dimensions)
        yield from _comment(
            f"{rows:,} vectors of {lengths or 'an unknown number of'} numbers"
            + (f"; the layout is that of {self.recipe.framework}." if self.recipe.framework else ".")
        )
        yield ""

    def _store(self, file: Path) -> Iterator[str]:
        address, field = self.address.seen_from(file.parent), self.field
        yield "[store]"
        if address.has_secret:
            yield "# With its password the URL stands in the environment, and nowhere else: VECFERRY_STORE_URL"
        yield f"{'# ' if address.has_secret else ''}url = {_quoted(address.written)}"
        yield f"{'collections' if field.members else 'collection'} = {_quoted(field.collection)}"
        if field.members:
            yield from _comment(f"These are {len(field.members):,} now; those that are made later are migrated too.")
        if field.where:
            yield from _comment(f"The collection {field.part}; others in the table are left as they are.")
            yield f"where = {_quoted(field.where)}"
        yield from _comment(self.evidence)
        yield f"text = {_quoted(self.recipe.text)}"
        if self.recipe.others and not self.recipe.is_confirmed:
            yield from _comment(f"Other texts beside the vectors: {', '.join(map(_quoted, self.recipe.others))}.")
        if store_kind(address.url) != "chroma":
            yield f"vector = {_quoted(field.vector)}"
        if store_kind(address.url) not in (POSTGRES, "chroma"):
            yield f"key = {_quoted(field.key)}"
        places = {"tenant": self.access.tenant, "database": self.access.database}
        yield from (f"{name} = {_quoted(value)}" for name, value in places.items() if value)
        if not field.rows:
            yield from _comment("No row has a vector yet: with embed_missing = true every row with a text gets one.")
        yield ""

    @property
    def evidence(self) -> str:
        """Say what speaks for the text."""
        seen, likely = self.recipe.provenance, self.recipe.likely_model
        if seen.verdict is Verdict.CONFIRMED:
            return f"Confirmed: {seen.message}"
        if seen.verdict is Verdict.EXPLAINED:
            more = ", with what stands in [old]" if self.recipe.adaptation else ""
            share = f"Confirmed: {seen.explained:.0%} of {seen.rows} sampled vectors"
            return f"{share} are what the old model makes of this text{more}. {self._pooling}".strip()
        is_told = self.is_old_known and seen.verdict is not Verdict.NO_MODEL
        return f"Not confirmed. {seen.message} {'' if is_told else likely}".strip()

    @property
    def _pooling(self) -> str:
        """Say what to do where the vectors were pooled otherwise; empty where they were not."""
        return self.recipe.provenance.remedy.partition(" Write to")[0] if self.recipe.pooling else ""

    def _models(self, file: Path) -> Iterator[str]:
        yield "# The new model; and the old one, which keeps the old vectors current until finalize."
        yield "[models]"
        yield f"new = {_quoted(str(_seen_from(self.new, file.parent)))}"
        line = f"old = {_quoted(str(_seen_from(self.old, file.parent)))}"
        if self.is_old_known:
            yield line
        else:
            yield from _comment("Name the model that has made the vectors. This one has not:")
            yield f"# {line}"

    def _old(self) -> Iterator[str]:
        adaptation = {name: value for name, value in self.recipe.adaptation.to_dict().items() if value}
        if adaptation:
            yield ""
            yield "[old]"
            yield from (f"{name} = {_value(value)}" for name, value in adaptation.items())

    def _next(self, file: Path) -> Iterator[str]:
        yield ""
        yield "# Next:"
        yield from (f"#   {command}" for command in self.commands(file))

    def commands(self, file: Path) -> list[str]:
        """Return what is to be typed next, in this order; a file that is found by itself is not named."""
        config = "" if file == DEFAULT_FILE else f" --config {shlex.quote(str(file))}"
        run = f"run{config} --offline" if self.address.is_held_alone else f"start{config} --follow"
        return [
            *([] if self.new.exists() else [f"vecferry convert BAAI/bge-m3 {shlex.quote(str(self.new))}"]),
            *(
                [f"vecferry convert sentence-transformers/all-MiniLM-L6-v2 {shlex.quote(str(self.old))}"]
                if self.is_old_known and not self.old.exists()
                else []
            ),
            f"vecferry migrate plan{config}",
            f"vecferry migrate {run}",
        ]


def _comment(text: str) -> list[str]:
    """Return a text as lines of comments."""
    return [
        f"# {line}" for line in textwrap.wrap(printable(text), WIDTH, break_long_words=False, break_on_hyphens=False)
    ]


def _quoted(text: str) -> str:
    """Return a text as a basic string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _seen_from(path: Path, folder: Path) -> Path:
    """Return a path for a file in that folder."""
    return path if path.is_absolute() or folder.absolute() == Path.cwd() else path.absolute()
