"""The file of a migration: which store, which models, which limits. TOML, read by `read_config`.

    [store]
    url = "postgresql://app@localhost/app"   # or chroma:, lancedb:, qdrant:, milvus:; else VECFERRY_DATABASE_URL
    collection = "shop.products"             # a table or collection
    text = "description"                     # its column or field
    vector = "embedding"
    key = "id"                               # not for PostgreSQL, which knows its primary key
    control = ".vecferry/control.db"         # not for PostgreSQL, which keeps the ledger itself
    [models]
    new = "./models/bge-m3-onnx"
    old = "./models/all-MiniLM-L6-v2-onnx"   # keeps the old vectors current after the switch
    outputs = ["dense"]                      # and "sparse", "colbert"
    [limits]
    rows_per_range = 256
    rows_per_write = 64                      # written, and so locked, together; fewer where that takes long
    max_pause_s = 1.0                        # others wait for a switch; thrice as long for a rollback
    rows_per_s = 500.0
    max_query_ms = 250.0                     # pauses while a query takes longer
    min_free_gb = 1.0                        # pauses while less is free at `staging`
    lease_s = 15.0
    staging = ".vecferry/staging"
    [engine]
    kind = "local"                           # or "ray"; the others are for Ray
    address = "head:6379"                    # of a cluster that this machine is part of; else Ray runs on this machine
    workers = 1                              # each with the model in memory
    cpus_per_worker = 2                      # else the CPUs are shared out evenly
    gpus_per_worker = 0.0
    wave = 64                                # ranges read at once, for each worker
    stall_s = 600.0                          # longer than the slowest range takes
    [verify]
    sample = 100
    min_recall = 0.9
    [gate]
    queries = "./judged"                     # a folder in BEIR layout, or a query log
    margin = 0.02                            # of nDCG@10, by which the new model may be worse
    confidence = 0.95
    max_queries = 500
    [thresholds]                             # the application's cut-offs: cosines in the old space
    duplicate = 0.92

Needed are `collection` and `new`. Paths, those in a URL too, are relative to the folder of the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from vecferry.embeddings import Outputs
from vecferry.errors import SettingsError, UnreadableFile, reason_of
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.values import MigrationOptions
from vecferry.stores.values import Patience

LOCAL_SCHEMES = ("chroma", "lancedb", "milvus", "qdrant")
HIDDEN = "…"
"""Instead of a value that may hold a password."""


def _folder(info: ValidationInfo) -> Path | None:
    """Of the file; None where there is none, and paths stay as they are."""
    folder: Path | None = info.context and info.context["folder"]
    return folder


def _in_folder(path: Path, info: ValidationInfo) -> Path:
    folder = _folder(info)
    return path if folder is None else folder / path.expanduser()


def _url_in_folder(url: SecretStr, info: ValidationInfo) -> SecretStr:
    scheme, _, path = url.get_secret_value().partition(":")
    if _folder(info) is None or scheme not in LOCAL_SCHEMES or not path or path.startswith("/"):
        return url
    return SecretStr(f"{scheme}://{_in_folder(Path(path), info)}")


Name = Annotated[str, Field(min_length=1)]
PathHere = Annotated[Path, AfterValidator(_in_folder)]
Whole = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Above0 = Annotated[Number, Field(gt=0)]


class _Section(BaseModel):
    """A field's description is what a message says was expected."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class StoreConfig(_Section):
    """[store]. url: None if it is not in the file."""

    url: Annotated[SecretStr, AfterValidator(_url_in_folder)] | None = Field(
        None, description="postgresql://..., chroma:..., lancedb:..., qdrant:... or milvus:..."
    )
    collection: Name = Field(description="the name of a table or collection")
    text: Name = Field("text", description="the name of the column or field with the texts")
    vector: str = Field("embedding", description="the name of the column or field with the vectors")
    key: Name = Field("id", description="the name of the field with the keys")
    control: PathHere = Field(Path(".vecferry/control.db"), description="a file")


class ModelsConfig(_Section):
    """[models]. new and old: folders of converted models."""

    new: PathHere = Field(description="the folder of the new model")
    old: PathHere | None = Field(None, description="the folder of the old model")
    outputs: tuple[Literal["dense", "sparse", "colbert"], ...] = Field(
        ("dense",), description='["dense"], and "sparse" or "colbert" beside it'
    )

    @field_validator("outputs")
    @classmethod
    def _has_dense(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if "dense" not in names:
            raise ValueError("no dense")
        return names

    @property
    def heads(self) -> Outputs:
        """The same as a flag."""
        return Outputs.of(self.outputs)


class LimitsConfig(_Section):
    """[limits]. rows_per_s, max_query_ms: None is no limit."""

    rows_per_range: Whole = Field(256, description="a whole number from 1")
    rows_per_write: Whole = Field(MigrationOptions.rows_per_write, description="a whole number from 1")
    max_pause_s: Above0 = Field(Patience.max_pause_s, description="seconds above 0")
    rows_per_s: Above0 | None = Field(None, description="a number above 0")
    max_query_ms: Above0 | None = Field(None, description="milliseconds above 0")
    min_free_gb: Annotated[Number, Field(ge=0)] = Field(1.0, description="gigabytes from 0")
    lease_s: Annotated[Number, Field(ge=1)] = Field(15.0, description="seconds from 1")
    staging: PathHere = Field(Path(".vecferry/staging"), description="a folder")


class EngineConfig(_Section):
    """[engine]. All but kind as in `RaySettings`."""

    kind: Literal["local", "ray"] = Field("local", description="local or ray")
    address: Name | None = Field(None, description="HOST:PORT, or auto")
    workers: Whole = Field(RaySettings.workers, description="a whole number from 1")
    cpus_per_worker: Whole | None = Field(None, description="a whole number from 1")
    gpus_per_worker: Annotated[Number, Field(ge=0)] = Field(RaySettings.gpus_per_worker, description="a number from 0")
    wave: Whole = Field(RaySettings.wave, description="a whole number from 1")
    stall_s: Above0 = Field(RaySettings.stall_s, description="seconds above 0")

    @property
    def ray(self) -> RaySettings:
        """Those of the kind ray."""
        return RaySettings(**self.model_dump(exclude={"kind"}))


class VerifyConfig(_Section):
    """[verify]. sample: rows."""

    sample: Whole = Field(100, description="a whole number from 1")
    min_recall: Annotated[Number, Field(ge=0, le=1)] = Field(0.9, description="a number from 0 to 1")


class GateConfig(_Section):
    """[gate]. queries: judged ones, a folder in BEIR layout whose document ids are the collection's keys; or a file
    with a query log; None is pairs made from the collection's own sentences. margin: of nDCG@10.
    """

    queries: PathHere | None = Field(None, description="a folder in BEIR layout, or a file with a query log")
    margin: Annotated[Number, Field(ge=0, le=1)] = Field(0.02, description="a number from 0 to 1")
    confidence: Annotated[Number, Field(gt=0, lt=1)] = Field(0.95, description="a number between 0 and 1")
    max_queries: Whole = Field(500, description="a whole number from 1")


Cosine = Annotated[Number, Field(ge=-1, le=1)]


class MigrationConfig(_Section):
    """The whole file."""

    store: StoreConfig = Field(description="a section [store]")
    models: ModelsConfig = Field(description="a section [models]")
    limits: LimitsConfig = Field(LimitsConfig(), description="a section [limits]")
    engine: EngineConfig = Field(EngineConfig(), description="a section [engine]")
    verify: VerifyConfig = Field(VerifyConfig(), description="a section [verify]")
    gate: GateConfig = Field(GateConfig(), description="a section [gate]")
    thresholds: dict[Name, Cosine] = Field({}, description="names, each with a number from -1 to 1")


SECTIONS: Mapping[str, type[BaseModel]] = {
    "store": StoreConfig,
    "models": ModelsConfig,
    "limits": LimitsConfig,
    "engine": EngineConfig,
    "verify": VerifyConfig,
    "gate": GateConfig,
}
"""Those with fields of their own; the names in [thresholds] are the application's."""


def read_config(path: Path) -> MigrationConfig:
    """Raises SettingsError: the file cannot be read or is not TOML, or the first value that is wrong, by its place."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UnreadableFile("--config", path, reason_of(exc)) from exc
    except UnicodeDecodeError as exc:
        raise SettingsError("--config", path, f"a file in UTF-8 (byte {exc.start} is not)") from exc
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError("--config", path, f"TOML ({exc})") from exc
    return _validated(values, path.absolute().parent)


def merged(config: MigrationConfig, values: Mapping[str, object]) -> MigrationConfig:
    """The configuration with some values replaced: `{"limits.rows_per_s": 100.0}`. None leaves a value as it is.

    Paths are relative to where the process runs. Raises SettingsError.
    """
    whole = config.model_dump()
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
        raise _translated(exc.errors()[0]) from exc


def _translated(problem: Any) -> SettingsError:
    """The place as in the file, the value unless it may hold a password, and what was expected."""
    section, *inside = (part for part in problem["loc"] if isinstance(part, str))
    place = f"[{section}] {inside[0]}" if inside else f"[{section}]"
    name, fields = section, MigrationConfig.model_fields
    if inside and section in SECTIONS:
        name, fields = inside[0], SECTIONS[section].model_fields
    if problem["type"] == "extra_forbidden":
        return SettingsError(place, HIDDEN, f"one of {', '.join(fields)}")
    value = problem["input"] if inside and inside[0] != "url" else HIDDEN
    if problem["type"] == "missing":
        value = ""
    return SettingsError(place, value, fields[name].description or problem["msg"])
