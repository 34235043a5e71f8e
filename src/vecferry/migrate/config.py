"""The file of a migration, migration.toml: which store, which models, which limits. docs/migrate.md shows all of it.

Each section is a value that is passed on, or holds the values of one. Needed are `collection` and `new`. Paths, those
in a URL too, are relative to the folder of the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from vecferry.encode.adapted import Adaptation
from vecferry.errors import SettingsError, UnknownSetting, UnreadableFile, reason_of
from vecferry.evaluate.evaluation import GateOptions, MaxQueries
from vecferry.evaluate.values import CutOffs
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.values import Heads, MigrationOptions, MinRecall, RunLimits
from vecferry.options import (
    NO_HOME,
    Checked,
    Count,
    FolderPath,
    Help,
    Name,
    expected_of,
    folder_of,
    in_folder,
    names_of,
)
from vecferry.stores.group import Member, group_name
from vecferry.stores.opening import CONTROL, TEXT, VECTOR
from vecferry.stores.values import Layout, MaxPause, Patience

DEFAULT_FILE = Path("migration.toml")
"""The file of a migration, in the present folder, where none is named."""
LOCAL_SCHEMES = ("chroma", "faiss", "lancedb", "milvus", "qdrant", "sqlite")
UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
"""What pydantic calls a name that is not a field."""
COLLECTION = "the name of a table or collection"
HIDDEN = "…"
"""Instead of a value that may hold a password."""


def _url_in_folder(url: SecretStr, info: ValidationInfo) -> SecretStr:
    scheme, _, path = url.get_secret_value().partition(":")
    if folder_of(info) is None or scheme not in LOCAL_SCHEMES or not path or path.startswith("/"):
        return url
    return SecretStr(f"{scheme}://{in_folder(Path(path), info)}")


@dataclass(frozen=True)
class StoreConfig(Checked):
    """[store]. url: None if it is not in the file. One of `collection`, `collections` and [[collections]] is there."""

    collection: Annotated[
        Annotated[Name, Field(description=COLLECTION)] | None,
        Help("a table or collection; schema.table if need be"),
    ] = None
    collections: Annotated[
        tuple[Name, ...],
        BeforeValidator(lambda names: (names,) if isinstance(names, str) else names),
        Field(description="a pattern such as file-*, or a list of names"),
        Help("instead, several that are switched together: a pattern such as file-*, or their names"),
    ] = ()
    url: Annotated[
        Annotated[SecretStr, AfterValidator(_url_in_folder)] | None,
        Field(description="postgresql://..., chroma:..., lancedb:..., qdrant:..., milvus:..., sqlite:... or faiss:..."),
        Help("URL of the store: postgresql://..., or chroma:, lancedb:, milvus:, qdrant:, sqlite:, faiss:"),
    ] = None
    text: Annotated[
        Name,
        Field(description="the name of the column or field with the texts"),
        Help("column or field with the texts, or a template over several such as {title}\\n{body}"),
    ] = TEXT
    source: Annotated[
        Name | None,
        Field(description="the name of a view, or a query"),
        Help("view or query of PostgreSQL with the table's key, in which `text` is a column"),
    ] = None
    where: Annotated[
        Name | None,
        Field(description="a condition of SQL"),
        Help("condition of SQL on the rows that are meant, where others share a table of PostgreSQL"),
    ] = None
    layout: Annotated[
        Annotated[Layout, Field(description="columns or side-table")] | None,
        Help(
            "where PostgreSQL keeps the vectors that do not serve: in columns of the table, the default, or in a"
            " side-table, as always beside `where`"
        ),
    ] = None
    vector: Annotated[
        str,
        Field(description="the name of the column or field with the vectors"),
        Help("column or field with the vectors"),
    ] = VECTOR
    new_vector: Annotated[
        Annotated[str, Field(description="the name of a vector")] | None,
        Help("name of the vector in the new collection of Qdrant, if it is to be another"),
    ] = None
    key: Annotated[
        Name | None,
        Field(description="the name of the field with the keys"),
        Help(
            "field with the keys, by default id; in PostgreSQL a unique key instead of the one that it finds by itself"
        ),
    ] = None
    control: Annotated[
        FolderPath, Field(description="a file"), Help("control database; PostgreSQL keeps the ledger itself")
    ] = CONTROL
    embed_missing: Annotated[
        bool,
        Field(strict=True, description="true or false"),
        Help("give rows without a vector one too, as an embedding worker does; else they are left without"),
    ] = False
    tenant: Annotated[
        Annotated[str, Field(min_length=1, description="the name of a tenant")] | None,
        Help("tenant in a Chroma store, if not its default one"),
    ] = None
    database: Annotated[
        Annotated[str, Field(min_length=1, description="the name of a database")] | None,
        Help("database in a Chroma store, if not its default one"),
    ] = None
    embedding_function: Annotated[
        bool,
        Field(strict=True, description="true or false"),
        Help("whether the new Chroma collection embeds query texts itself, with the new model"),
    ] = False


@dataclass(frozen=True)
class MemberConfig(Checked):
    """[[collections]]: one of several that are switched together, where they are not all alike."""

    name: Annotated[
        Name, Field(description="the name of a collection, or a pattern"), Help("a collection, or a pattern of several")
    ]
    text: Annotated[
        Annotated[Name, Field(description="the name of the field with the texts")] | None,
        Help("its field with the texts, if not that of [store]"),
    ] = None
    vector: Annotated[
        Annotated[str, Field(description="the name of the field with the vectors")] | None,
        Help("its field with the vectors, if not that of [store]"),
    ] = None
    key: Annotated[
        Annotated[Name, Field(description="the name of the field with the keys")] | None,
        Help("its field with the keys, if not that of [store]"),
    ] = None


@dataclass(frozen=True)
class ModelsConfig(Checked):
    """[models]. new, serve and old: folders of converted models."""

    new: Annotated[FolderPath, Field(description="the folder of the new model"), Help("folder of the new model")]
    old: Annotated[
        Annotated[FolderPath, Field(description="the folder of the old model")] | None,
        Help("folder of the old model, which keeps the old vectors current after the switch"),
    ] = None
    outputs: Heads = MigrationOptions.outputs
    serve: Annotated[
        Annotated[FolderPath, Field(description="the folder of the new model in another precision")] | None,
        Help("folder of the new model in the precision for queries and followed writes, if not the backfill's"),
    ] = None
    reencode: Annotated[
        bool,
        Field(strict=True, description="true or false"),
        Help("encode all again though the vectors are of the new model already, in another precision"),
    ] = False


@dataclass(frozen=True)
class LimitsConfig(RunLimits):
    """[limits]."""

    max_pause_s: MaxPause = Patience.max_pause_s


@dataclass(frozen=True)
class EngineConfig(RaySettings):
    """[engine]. All but kind are for Ray."""

    kind: Annotated[Literal["local", "ray"], Field(description="local or ray"), Help("where the model runs")] = "local"


@dataclass(frozen=True)
class VerifyConfig(Checked):
    """[verify]."""

    sample: Annotated[Count, Help("rows encoded again")] = 100
    min_recall: MinRecall = MigrationOptions.min_recall


@dataclass(frozen=True)
class GateConfig(GateOptions):
    """[gate]. queries: None is pairs made from the collection's own sentences."""

    queries: Annotated[
        Annotated[FolderPath, Field(description="a folder in BEIR layout, or a file with a query log")] | None,
        Help("judged queries (a folder in BEIR layout) or a query log; by default pairs made from the rows"),
    ] = None
    max_queries: MaxQueries = 500


class MigrationConfig(BaseModel):
    """The whole file. A field's description is what a message says was expected."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    store: StoreConfig = Field(description="a section [store]")
    collections: tuple[MemberConfig, ...] = Field((), description="tables, each [[collections]] with its name")
    models: ModelsConfig = Field(description="a section [models]")
    limits: LimitsConfig = Field(LimitsConfig(), description="a section [limits]")
    engine: EngineConfig = Field(EngineConfig(), description="a section [engine]")
    old: Adaptation = Field(Adaptation(), description="a section [old]")
    verify: VerifyConfig = Field(VerifyConfig(), description="a section [verify]")
    gate: GateConfig = Field(GateConfig(), description="a section [gate]")
    thresholds: CutOffs = {}

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        """Raise SettingsError if nothing says what is migrated, or two places do."""
        store = self.store
        places = {"[store] collection": store.collection, "[store] collections": store.collections}
        places |= {"[[collections]]": tuple(each.name for each in self.collections)}
        given = [place for place, names in places.items() if names]
        if not given:
            raise SettingsError("[store] collection", "", COLLECTION)
        if len(given) > 1:
            expected = f"none beside {given[0]}: one of them says what is migrated"
            raise SettingsError(given[1], places[given[1]], expected)
        return self

    @property
    def target(self) -> str | tuple[Member, ...]:
        """The collection, or those that are switched together."""
        if self.store.collection is not None:
            return self.store.collection
        listed = tuple(Member(each.name, each.text, each.vector, each.key) for each in self.collections)
        return listed or tuple(Member(name) for name in self.store.collections)

    @property
    def target_name(self) -> str:
        """What is migrated, for messages."""
        target = self.target
        return target if isinstance(target, str) else group_name([member.name for member in target])

    @property
    def options(self) -> MigrationOptions:
        """What a migration goes by."""
        limits = {each.name: getattr(self.limits, each.name) for each in fields(RunLimits)}
        return MigrationOptions(
            **limits,
            outputs=self.models.outputs,
            patience=Patience(self.limits.max_pause_s),
            min_recall=self.verify.min_recall,
            thresholds=self.thresholds,
            reencode=self.models.reencode,
            new_name=self.models.new.name,
            old_name=self.models.old.name if self.models.old else "",
        )


SECTIONS: Mapping[str, type[Checked]] = {
    "store": StoreConfig,
    "models": ModelsConfig,
    "limits": LimitsConfig,
    "engine": EngineConfig,
    "old": Adaptation,
    "verify": VerifyConfig,
    "gate": GateConfig,
}
"""Those with fields of their own; the names in [thresholds] are the application's."""
ARRAYS: Mapping[str, type[Checked]] = {"collections": MemberConfig}
"""Those of which there may be several."""


def read_config(path: Path) -> MigrationConfig:
    """Read a file. Raises SettingsError: it cannot be read, is not TOML, or the first value that is wrong, by place."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise UnreadableFile("--config", path, reason_of(exc)) from exc
    except UnicodeDecodeError as exc:
        raise SettingsError("--config", path, f"a file in UTF-8 (byte {exc.start} is not)") from exc
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError("--config", path, f"TOML ({exc})") from exc
    return _validated(values, path.absolute().parent)


def merged(config: MigrationConfig, values: Mapping[str, object]) -> MigrationConfig:
    """Return the configuration with some values replaced: `{"limits.rows_per_s": 100.0}`. None leaves one as it is.

    Paths are relative to where the process runs. Raises SettingsError.
    """
    whole = config.model_dump()
    if values.get("store.collection") or values.get("store.collections"):
        whole["store"] |= {"collection": None, "collections": ()}
        whole["collections"] = ()
    for place, value in values.items():
        if value is not None:
            section, _, name = place.partition(".")
            whole[section][name] = value
    return _validated(whole, folder=None)


def _validated(values: Mapping[str, object], folder: Path | None) -> MigrationConfig:
    sections = {"limits": {}, "verify": {}, "gate": {}} | dict(values)  # or their paths would not be seen as relative
    try:
        return MigrationConfig.model_validate(sections, context={"folder": folder})
    except ValidationError as exc:
        raise _translated(min(exc.errors(), key=_rank)) from exc


def _rank(problem: Any) -> int:
    """Return 0 for an unknown name, which often is why another one is missing, and 1 for any other problem."""
    return 0 if problem["type"] in UNKNOWN else 1


def _translated(problem: Any) -> SettingsError:
    """Name the place as in the file, the value unless it may hold a password, and what was expected."""
    section, *inside = (part for part in problem["loc"] if isinstance(part, str) and part[:1] != "[")
    heading = f"[[{section}]]" if section in ARRAYS else f"[{section}]"
    place = f"{heading} {inside[0]}" if inside else heading
    options = {**SECTIONS, **ARRAYS}.get(section)
    if problem["type"] in UNKNOWN:
        names = MigrationConfig.model_fields if options is None or not inside else names_of(options)
        return UnknownSetting(place, HIDDEN, f"one of {', '.join(names)}", _meant(section, *inside[:1]))
    value = problem["input"] if inside and inside[0] != "url" else HIDDEN
    if problem["type"].startswith("missing"):
        value = ""
    if problem["type"] == NO_HOME:
        return SettingsError(place, value, problem["msg"])
    if options is None or not inside:
        return SettingsError(place, value, MigrationConfig.model_fields[section].description or problem["msg"])
    return SettingsError(place, value, expected_of(options, inside[0]))


def _meant(section: str, key: str = "") -> str:
    """Return the known place that an unknown one is spelt most like, `[store] collection`; empty if none is close.

    A key is looked for in its own section first, then in the others; a name outside of sections is taken for both.
    """
    sections = {**SECTIONS, **ARRAYS}
    own = names_of(sections[section]) if key and section in sections else ()
    if near := get_close_matches(key, own, 1):
        return f"[[{section}]] {near[0]}" if section in ARRAYS else f"[{section}] {near[0]}"
    places = {name: f"[{each}] {name}" for each, options in SECTIONS.items() for name in names_of(options)}
    if not key and section in places:
        return places[section]
    if not key and (near := get_close_matches(section, MigrationConfig.model_fields, 1)):
        return f"[{near[0]}]"
    near = get_close_matches(key or section, places, 1)
    return places[near[0]] if near else ""
