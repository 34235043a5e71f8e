"""A model as it comes to the machines of a cluster: from a shared folder, or piece by piece; never unverified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from vecferry.encode.encoder import TextEncoder
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.encode.runtime import Device
from vecferry.encode.runtime.host import instruction_sets, machine
from vecferry.errors import ArtifactDamaged, ArtifactError, SettingsError
from vecferry.model.artifact import MANIFEST, Artifact, sha256_of, writing

PIECE_BYTES = 64 << 20
CACHE = Path("~/.cache/vecferry/artifacts")
"""On each machine that has not the artifact under the path that the driver knows."""


class ArtifactRef(Protocol):
    """Small and to be pickled. `pieces` is for the driver's machine, the other methods for a worker's."""

    @property
    def key(self) -> str:
        """The model's `VectorSpace.key`."""

    @property
    def device(self) -> Device: ...
    def kind(self) -> str:
        """Name the kind of this machine; on two of one kind the model gives the same vectors."""

    def missing(self) -> str:
        """Say why the model cannot be loaded here before `receive`; empty if it can. Raises ArtifactDamaged."""

    def pieces(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name of a file and a part of its content, in order."""

    def receive(self, pieces: Iterable[tuple[str, bytes]]) -> None:
        """Leave the model here. Repeating is safe. Raises ArtifactDamaged, ArtifactWriteFailed."""

    def load(self, threads: int) -> TextEncoder:
        """Load the encoder. Raises what `load_encoder` raises."""


@dataclass(frozen=True)
class ShippedArtifact:
    """options: as on the driver's machine. key: the model's `VectorSpace.key`.

    manifest: the SHA-256 of manifest.json, which has those of all files.
    """

    options: EncoderOptions
    key: str
    manifest: str
    cache: Path = CACHE

    @classmethod
    def of(cls, options: EncoderOptions, cache: Path = CACHE) -> ShippedArtifact:
        """Refer to an artifact on this machine. Raises ArtifactNotFound, ArtifactDamaged, Locked."""
        artifact = Artifact.open(options.artifact)
        shipped = replace(
            options, artifact=artifact.path.absolute(), use_onnx=True, lightweight=False, cache=None,
            fingerprint=str(artifact.manifest.space.mark()),
        )  # fmt: skip
        return cls(shipped, artifact.manifest.space.key, sha256_of(artifact.path / MANIFEST), cache)

    @property
    def device(self) -> Device:
        return self.options.device

    def kind(self) -> str:
        """Name processor, instruction sets and device."""
        return f"{machine()['processor']}, {' '.join(instruction_sets())}, {self.options.device}"

    def missing(self) -> str:
        """Say what is missing or damaged, "" if nothing is; reads all of the weights."""
        if self._is_ours(self.options.artifact):
            self._refuse_damaged(self.options.artifact)
            return ""
        try:
            self._refuse_damaged(self._received)
        except ArtifactError as exc:
            return exc.message
        return ""

    def pieces(self) -> Iterator[tuple[str, bytes]]:
        folder = self.options.artifact
        for name in (MANIFEST, *Artifact.open(folder).manifest.files):
            with (folder / name).open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield name, piece

    def receive(self, pieces: Iterable[tuple[str, bytes]]) -> None:
        """Write it whole and verified, or not at all; one of several who come at once writes, the others wait."""
        folder = self._received
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.receiving"):
            if not self.missing():
                return
            with writing(folder, over_anything=True) as temporary:
                for name, piece in pieces:
                    with (temporary / Path(name).name).open("ab") as file:
                        file.write(piece)
                self._refuse_damaged(temporary)

    def load(self, threads: int) -> TextEncoder:
        place = self.options.artifact if self._is_ours(self.options.artifact) else self._received
        return load_encoder(replace(self.options, artifact=place, threads=threads, processes=1)).encoder

    @property
    def _received(self) -> Path:
        try:
            return self.cache.expanduser() / self.key
        except RuntimeError as exc:  # of pathlib
            wanted = f"a folder for the models that are received ({self.cache}), as /tmp: this user has none"
            raise SettingsError("HOME", "", wanted) from exc

    def _is_ours(self, folder: Path) -> bool:
        try:
            return sha256_of(folder / MANIFEST) == self.manifest
        except OSError:
            return False

    def _refuse_damaged(self, folder: Path) -> None:
        """Raise ArtifactNotFound or ArtifactDamaged unless the folder has what was shipped."""
        for problem in Artifact.open(folder).damaged_files():
            raise ArtifactDamaged(folder, problem)
        if not self._is_ours(folder):
            raise ArtifactDamaged(folder, "it is not the artifact that the driver has")
