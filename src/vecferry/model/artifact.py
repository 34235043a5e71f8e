"""The converted model's folder as data: what lies where, its digests, its vector space.

    models/bge-m3-onnx/
    ├── model.onnx           the graph
    ├── model.onnx.data      its weights
    ├── tokenizer.json       as the reference tokenises, see tokens.py
    ├── tokenizer.pieces     its vocabulary as a file that is mapped, see pieces.py; of some tokenizers alone
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from vecferry.embeddings import Outputs
from vecferry.errors import ArtifactDamaged, ArtifactNotFound, ArtifactWriteFailed, Locked, cut_repr, reason_of
from vecferry.model.files import read_whole, sync_folder, write_json
from vecferry.model.json_files import Text
from vecferry.model.prompts import Role
from vecferry.model.spec import EncoderSpec, Pooling, Size
from vecferry.precisions import FP32, Form, Head, Mark, Pairing, Precision, Verdict, verdicts_of, worst

MODEL, DATA, TOKENIZER = "model.onnx", "model.onnx.data", "tokenizer.json"
PIECES = "tokenizer.pieces"
"""Beside the tokenizer, where its vocabulary can be mapped and was proven to give the same ids."""
HIDDEN = "hidden"
"""The last hidden states, a value inside of the graph."""
MANIFEST, VERIFICATION = "manifest.json", "verification.json"
RECORDED = {MODEL, DATA, TOKENIZER}
"""The files of which a manifest has the digests; of `PIECES` too, where there are some."""
IN_FOLDER = {*RECORDED, PIECES, MANIFEST, VERIFICATION}
FORMAT = 2
NOT_OF_THE_FUNCTION = {"precision", "recipe", "verdicts", "heads", "head_weights"}
"""What of a space its fingerprint leaves out: how exactly it is computed, and what else is computed beside."""
OTHERS_SHOWN = 5
HEADS_SHOWN = 12
"""Hexadecimal digits of a digest that tell two sets of heads apart in a mark."""
MAX_MANIFEST_BYTES = 1_000_000
IN_BOTH = ("pooling", "normalize", "max_tokens", "query_prefix", "passage_prefix")
"""What a manifest says of its space and of its encoder."""
REPLACING_S = 10.0
"""How long an opening waits for a writer that has set the previous folder aside and not yet put the new one there."""


TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VectorSpace(_Value):
    """All that decides whether two vectors may be compared: the function, and beside it how exactly it is computed."""

    weights: str
    """SHA-256 over the architecture and every tensor that dense vectors depend on, as fp32 (checkpoint.py)."""
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
    head_weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 over the tensors of the sparse and the ColBERT head, where there are any."""
    recipe: Annotated[str, Field(pattern="^int8-[0-9a-z]{1,20}$")] | None = None
    """How the numbers were quantized (int8.RECIPE), where they were; it is a part of marks and of folders' names."""
    verdicts: dict[Head, Verdict] = {}
    """Of a narrower precision how each head compares to fp32; one that was not measured stays apart."""
    adapted: str | None = None
    """What an application does beside the model, where it does (encode.adapted.Adaptation, as JSON)."""

    @model_validator(mode="after")
    def _quantized_is_int8(self) -> Self:
        if self.recipe is not None and self.precision != "int8":
            raise ValueError(f"recipe: {self.recipe} is none of {self.precision}")
        return self

    @property
    def fingerprint(self) -> str:
        """The function's id: SHA-256 of the fields above, but those beside the function and those that are None."""
        function = self.model_dump(exclude_none=True, exclude=NOT_OF_THE_FUNCTION)
        return hashlib.sha256(canonical_json(function)).hexdigest()

    def form(self, outputs: Outputs = Outputs.DENSE) -> Form:
        """Return how exactly these outputs are computed; of several, the verdict that allows least."""
        heads = "" if self.head_weights is None else self.head_weights[:HEADS_SHOWN]
        if self.precision == "fp32":
            return replace(FP32, heads=heads)
        verdicts = [self.verdicts.get(head, "apart") for head in self.heads if head in outputs.names]
        return Form(self.recipe or self.precision, worst(verdicts), heads)

    def mark(self, outputs: Outputs = Outputs.DENSE) -> Mark:
        """Return what an index of these outputs is marked with; one of dense vectors alone regards no other heads."""
        form = self.form(outputs)
        return Mark(self.fingerprint, replace(form, heads="") if outputs == Outputs.DENSE else form)

    @property
    def key(self) -> str:
        """What its bytes are kept under: one for each function, form and heads."""
        return Mark(self.fingerprint, self.form()).key

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


class Override(_Value):
    """A verdict that somebody has put in the place of the measured one, and why."""

    verdict: Verdict
    reason: Annotated[str, Field(min_length=1, max_length=1000)]


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
    override: Override | None = None

    def require_covered(self) -> None:
        """Raise ValueError if the space claims verdicts that neither an override nor the pairings stand for."""
        if self.space.verdicts != self._covered():
            raise ValueError("the verdicts of the space are neither measured nor overridden")

    def _covered(self) -> Mapping[Head, Verdict]:
        """Return the verdicts that follow from what was measured of these very bytes, or from the override."""
        evidence = self.evidence or {}
        if self.space.precision == "fp32":
            return {}
        if self.override is not None:
            return dict.fromkeys(self.space.heads, self.override.verdict)
        measured = _PAIRINGS.validate_python(evidence.get("pairings", ()))
        if measured and evidence.get("measured_key") != self.space.key:
            raise ValueError("its pairings were measured of another model, recipe or heads")
        return {head: verdict for head, verdict in verdicts_of(measured).items() if head in self.space.heads}


_PAIRINGS = TypeAdapter(tuple[Pairing, ...])


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
    try:
        manifest.require_covered()
    except ValueError as exc:
        raise ArtifactDamaged(path, f"{MANIFEST}: {exc}") from exc
    if manifest.files.keys() - {PIECES} != RECORDED:
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
