"""Where a checkpoint has its files: modules.json, of sentence-transformers, names the modules and their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from vecferry.errors import UnsupportedModel
from vecferry.model.json_files import JsonFile, Text, read_json, refuse

TOKENIZER_FILES = TOKENIZER, TOKENIZER_CONFIG, ADDED_TOKENS, SPECIAL_TOKENS = (
    "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"
MODULES_FILE, PROMPTS_FILE = "modules.json", "config_sentence_transformers.json"
MODULES = {
    "Transformer": PurePosixPath(),
    "Pooling": PurePosixPath("1_Pooling"),
    "Normalize": PurePosixPath("2_Normalize"),
}
"""In their order, with the folder of each where modules.json names none."""
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names that sentence-transformers has had for one file; the first that is there is read."""


class _Module(JsonFile):
    type: Text
    path: Text | None = None


MODULE_LIST = TypeAdapter(Annotated[list[_Module], Field(max_length=100)])


@dataclass(frozen=True)
class Layout:
    """The folders of a checkpoint's modules, relative to its own. normalize: None where there is no modules.json."""

    transformer: PurePosixPath = MODULES["Transformer"]
    pooling: PurePosixPath = MODULES["Pooling"]
    normalize: bool | None = None

    @property
    def json_files(self) -> tuple[str, ...]:
        """The names of the JSON files that are read where they are there, relative to the checkpoint."""
        inside = ("config.json", ADAPTER_CONFIG, *TOKENIZER_FILES, *TRANSFORMER_FILES)
        names = [MODULES_FILE, PROMPTS_FILE, self.pooling_file, *(str(self.transformer / name) for name in inside)]
        return tuple(dict.fromkeys(names))

    @property
    def pooling_file(self) -> str:
        return str(self.pooling / "config.json")

    def transformer_file(self, folder: Path) -> Path:
        """Return the path of the transformer's own options under the name that it has in this checkpoint."""
        paths = [folder / self.transformer / name for name in TRANSFORMER_FILES]
        return next((path for path in paths if path.exists()), paths[0])


def read_layout(folder: Path) -> Layout:
    """Read modules.json. Raises UnsupportedModel (a module, their order, a folder outside), CheckpointDamaged."""
    path = folder / MODULES_FILE
    parsed = read_json(path)
    if parsed is None:
        return Layout()
    try:
        modules = MODULE_LIST.validate_python(parsed)
    except ValidationError as exc:
        refuse(path, exc)
    folders = {kind: _folder(kind, module.path) for module in modules if (kind := _kind(module.type))}
    kinds = [_kind(module.type) for module in modules]
    if kinds != list(MODULES)[: len(kinds)] or len(kinds) < 2:
        raise UnsupportedModel("the order of modules", ", ".join(kinds), ", ".join(MODULES))
    return Layout(folders["Transformer"], folders["Pooling"], "Normalize" in folders)


def _kind(type_name: str) -> str:
    """Return the class of a module of sentence-transformers, such as Pooling. Raises UnsupportedModel for another."""
    package, _, kind = type_name.rpartition(".")
    if package.split(".")[0] != "sentence_transformers":
        raise UnsupportedModel("the module", type_name, ", ".join(MODULES) + " of sentence_transformers")
    if kind not in MODULES:
        raise UnsupportedModel("the module", kind, ", ".join(MODULES))
    return kind


def _folder(kind: str, path: str | None) -> PurePosixPath:
    folder = MODULES[kind] if path is None else PurePosixPath(path)
    if folder.is_absolute() or ".." in folder.parts or set(str(folder)) & {"\\", ":", "\0"}:
        raise UnsupportedModel(f"the module {kind} in the folder", path, "a folder inside the checkpoint")
    return folder
