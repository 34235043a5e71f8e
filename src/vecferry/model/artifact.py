"""The converted model's folder as data: what lies where, its digests, its vector space.

    models/bge-m3-onnx/
    ├── model.onnx           the graph
    ├── model.onnx.data      its weights
    ├── tokenizer.json       as the reference tokenises, see tokens.py
    ├── manifest.json        this module's `Manifest`
    └── verification.json    the last report of verify.py (not among the digests: it is made anew)

A folder appears whole or not at all: it is written under a temporary name beside its place, synced
and renamed. It takes the place of a converted model, and of nothing else; behind a symbolic link, that of
its target. If the process dies between setting the previous folder aside and putting the new one
in its place, the next `open` or `write` puts the previous one back.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vecferry.embeddings import Outputs
from vecferry.errors import ArtifactDamaged, ArtifactNotFound, ArtifactWriteFailed, Locked, cut_repr, reason_of
from vecferry.model.files import read_whole, sync_folder, write_json
from vecferry.model.json_files import Text
from vecferry.model.prompts import Role
from vecferry.model.spec import EncoderSpec, Pooling, Size

MODEL, DATA, TOKENIZER = "model.onnx", "model.onnx.data", "tokenizer.json"
HIDDEN = "hidden"
"""The last hidden states, a value inside of the graph."""
MANIFEST, VERIFICATION = "manifest.json", "verification.json"
RECORDED = {MODEL, DATA, TOKENIZER}
"""The files of which a manifest has the digests."""
IN_FOLDER = {*RECORDED, MANIFEST, VERIFICATION}
FORMAT = 1
OTHERS_SHOWN = 5
MAX_MANIFEST_BYTES = 1_000_000
IN_BOTH = ("pooling", "normalize", "max_tokens", "query_prefix", "passage_prefix")
"""What a manifest says of its space and of its encoder."""
REPLACING_S = 10.0
"""How long an opening waits for a writer that has set the previous folder aside and not yet put the new one there."""

Precision = Literal["fp32", "fp16", "int8"]
Head = Literal["dense", "sparse", "colbert"]


TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VectorSpace(_Value):
    """All that decides whether two vectors may be compared."""

    weights: str
    """SHA-256 over the architecture and every tensor that the model uses, as fp32 (graph.weights_digest)."""
    tokenizer: str
    """SHA-256 of tokenizer.json as written in the artifact."""
    special_ids: Annotated[tuple[TokenId, ...], Field(max_length=100)]
    """Token ids that carry no lexical weight: beginning, padding, end, unknown."""
    dimension: Size
    pooling: Pooling
    normalize: bool
    max_tokens: Size
    query_prefix: Text
    passage_prefix: Text
    precision: Precision
    heads: tuple[Head, ...]
    recipe: str | None = None
    """How the numbers were quantized (quantize.RECIPE), where they were."""
    adapted: str | None = None
    """What an application does beside the model, where it does (encode.adapted.Adaptation, as JSON)."""

    @property
    def fingerprint(self) -> str:
        """The space's id: SHA-256 of the fields above, but those that are None, as canonical JSON."""
        return hashlib.sha256(canonical_json(self.model_dump(exclude_none=True))).hexdigest()

    def prefix(self, role: Role) -> str:
        """Return what goes before each text in that role."""
        return self.query_prefix if role == "query" else self.passage_prefix

    @property
    def outputs(self) -> Outputs:
        return Outputs.of(self.heads)


class SourceRecord(_Value):
    """Where the checkpoint came from. files: name -> SHA-256 of each file that was read."""

    kind: Literal["folder", "package", "hub"]
    id: str
    revision: str | None
    files: dict[str, str]


class FileRecord(_Value):
    """What a file must be to be the one that was written."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Manifest(_Value):
    """manifest.json: everything about an artifact that is not a weight."""

    format: int
    source: SourceRecord
    encoder: EncoderSpec
    space: VectorSpace
    fingerprint: str
    opset: int
    tools: dict[str, str]
    files: dict[str, FileRecord]
    evidence: dict[str, Any] | None = None
    """What decided for this precision: figures of `vecferry.conversion.convert`."""


@dataclass(frozen=True)
class Artifact:
    """A folder that holds what its manifest says, as far as sizes and small files tell.

    `open` compares every file's size and the digests of all but the weights; `damaged_files` reads
    the weights too.
    """

    path: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Open a converted model's folder, also by the model.onnx inside.

        Raises ArtifactNotFound, ArtifactDamaged, Locked.
        """
        path = Path(path)
        path = path.parent if path.name == MODEL else path
        if _is_half_replaced(place := _place(path)):
            with _sole_writer(place, wait_s=REPLACING_S):  # a writer that lives is between its two renames
                _put_back(place)
        if not (path / MANIFEST).exists():
            raise ArtifactNotFound(path)
        artifact = cls(path, _read_manifest(path))
        for problem in artifact._sizes():
            raise ArtifactDamaged(path, problem)
        for problem in artifact.damaged_files(but=DATA):
            raise ArtifactDamaged(path, problem)
        return artifact

    @staticmethod
    def peek(path: Path) -> Manifest | None:
        """Return the manifest alone, or None where there is none that can be read."""
        path = Path(path)
        try:
            return _read_manifest(path.parent if path.name == MODEL else path)
        except (ArtifactDamaged, OSError):
            return None

    def _sizes(self) -> Iterator[str]:
        for name, record in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                yield f"{name} is missing"
            elif file.stat().st_size != record.bytes:
                yield f"{name} has {file.stat().st_size} bytes, not {record.bytes}"

    def damaged_files(self, but: str | None = None) -> Iterator[str]:
        """Yield a sentence for each file whose SHA-256 is not the manifest's."""
        for name, record in self.manifest.files.items():
            if name != but and (digest := sha256_of(self.path / name)) != record.sha256:
                yield _differing(name, digest, record.sha256)

    def read_tokenizer(self) -> bytes:
        """Return tokenizer.json. Raises ArtifactDamaged if these are not the bytes that the manifest says."""
        content, recorded = (self.path / TOKENIZER).read_bytes(), self.manifest.files[TOKENIZER].sha256
        if (digest := hashlib.sha256(content).hexdigest()) != recorded:
            raise ArtifactDamaged(self.path, _differing(TOKENIZER, digest, recorded))
        return content

    def write_verification(self, report: dict[str, Any]) -> None:
        """Write verification.json. Raises ArtifactWriteFailed where the folder cannot be written to."""
        try:
            write_json(self.path / VERIFICATION, report)
        except OSError as exc:
            raise ArtifactWriteFailed(self.path / VERIFICATION, reason_of(exc)) from exc


def _differing(name: str, digest: str, recorded: str) -> str:
    return f"{name} has SHA-256 {digest[:12]}…, not {recorded[:12]}…"


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(read_whole(path / MANIFEST, MAX_MANIFEST_BYTES))
    except ValidationError as exc:
        first = exc.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactDamaged(path, f"{MANIFEST}: {where:.100}: {first['msg']:.200}") from exc
    except (ValueError, OSError) as exc:
        raise ArtifactDamaged(path, f"{MANIFEST}: {exc}") from exc
    if manifest.format != FORMAT:
        raise ArtifactDamaged(path, f"{MANIFEST} is of format {manifest.format}, this release reads {FORMAT}")
    if manifest.space.fingerprint != manifest.fingerprint:
        raise ArtifactDamaged(path, f"{MANIFEST}: the fingerprint does not belong to the space beside it")
    if manifest.files.keys() != RECORDED:
        reason = f"{MANIFEST} names the files {cut_repr(sorted(manifest.files))}, not {', '.join(sorted(RECORDED))}"
        raise ArtifactDamaged(path, reason)
    if manifest.files[TOKENIZER].sha256 != manifest.space.tokenizer:
        raise ArtifactDamaged(path, f"{MANIFEST}: {TOKENIZER} is not the tokenizer of the vector space")
    space, encoder = manifest.space, manifest.encoder
    for name, ours, theirs in (
        ("dimension", space.dimension, encoder.hidden),
        *((name, getattr(space, name), getattr(encoder, name)) for name in IN_BOTH),
    ):
        if ours != theirs:
            raise ArtifactDamaged(path, f"{MANIFEST}: the {name} of space and encoder differ ({ours!r}, {theirs!r})")
    return manifest


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path, *, over_anything: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on leaving without an error it takes the place of `path`.

    over_anything: whether it does so whatever lies there, as in a cache; else only an empty folder and a converted
    model, with nothing beside it, are replaced.
    Leaves nothing behind on an error, and what was at `path` as it was. Repeating is safe. Raises
    ArtifactWriteFailed where the system refuses to write or something else lies at `path`, and Locked if another
    process writes `path`.
    """
    path = _place(path)
    try:
        _require_replaceable(path, over_anything=over_anything)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(path, wait_s=0):
            _put_back(path)
            _sweep(path)
            temporary = path.parent / f".{path.name}.partial-{os.getpid()}"
            temporary.mkdir()
            try:
                yield temporary
                _sync(temporary)
                _require_replaceable(path, over_anything=over_anything)  # it has been minutes
                _replace(path, temporary)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as exc:
        raise ArtifactWriteFailed(path, reason_of(exc)) from exc


@contextmanager
def _sole_writer(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock of `path`. Raises Locked if another process goes on writing for longer than `wait_s`."""
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as exc:
        raise Locked(str(path), "another conversion") from exc
    try:
        yield
    finally:
        lock.release()


def _place(path: Path) -> Path:
    """Return where a folder lies, behind symbolic links."""
    return Path(os.path.realpath(path))


def _require_replaceable(path: Path, *, over_anything: bool) -> None:
    """Raise ArtifactWriteFailed unless nothing would be lost but a converted model, or any folder may."""
    if path.exists() and not path.is_dir():
        raise ArtifactWriteFailed(path, "there is a file of that name")
    if path.exists() and not over_anything and (others := _others_in(path)):
        shown = ", ".join(others[:OTHERS_SHOWN]) + (", ..." if len(others) > OTHERS_SHOWN else "")
        raise ArtifactWriteFailed(path, f"the folder holds something else than a converted model: {shown}")


def _others_in(folder: Path) -> list[str]:
    """Return the names of what no conversion has written there; of everything where the manifest is not one of ours."""
    ours = set() if Artifact.peek(folder / MODEL) is None else IN_FOLDER
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in ours or not entry.is_file())


def _replace(path: Path, new: Path) -> None:
    aside = _aside(path)
    if path.exists():
        path.rename(aside)
    new.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.previous"


def _is_half_replaced(path: Path) -> bool:
    """Return whether the previous folder lies aside and its place is empty."""
    return _aside(path).exists() and not path.exists()


def _put_back(path: Path) -> None:
    """Undo a replacement that died half-way; the lock says that none is at work."""
    if _is_half_replaced(path):
        _aside(path).rename(path)


def _sweep(path: Path) -> None:
    """Remove what killed writers left; the lock says that none is at work."""
    aside = _aside(path)
    if aside.is_symlink():  # an earlier version set links aside
        aside.unlink()
    elif path.exists() and aside.is_dir() and {entry.name for entry in aside.iterdir()} <= IN_FOLDER:
        shutil.rmtree(aside, ignore_errors=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def file_record(path: Path) -> FileRecord:
    """Return the record of a file as it is now; reads it whole."""
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; reads it whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the same bytes for equal values: keys sorted, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
