"""Staged embeddings: what a model has made lies on disk until it is applied, and after.

    FOLDER/<space>/<heads>/<name>.parquet     space: fingerprint and precision; heads: dense, dense-sparse and so on

One file is one range. It is there whole or not at all, and one that is damaged is removed: its range
is done again. What was staged once is found again by the digest of its text, so that equal texts are
encoded once and a redo costs nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vecferry.embeddings import DENSE, Outputs, TextVectors
from vecferry.errors import StagingUnusable, reason_of
from vecferry.migrate.embed import Embedded
from vecferry.migrate.staged_file import (
    NotReadable,
    StagedRow,
    held_digests,
    read,
    require_pyarrow,
    write,
)
from vecferry.migrate.staged_index import StagedIndex
from vecferry.model.files import sync_folder
from vecferry.stores.ledger import DeadLetter
from vecferry.stores.values import NewVector, Row

PARTIAL = ".partial"


class Staging:
    """The staged embeddings of one vector space in one precision, with the same heads.

    Threads may share it, and processes the folder.

    Opening reads the digests of all that is staged, about 50 bytes a text, and removes what killed
    processes left half-written. Raises MissingExtra, StagingUnusable; every method raises StoreFailed
    if the system refuses to read a file.
    """

    def __init__(self, folder: Path, space: str, outputs: Outputs = DENSE) -> None:
        """Open the folder. space: `VectorSpace.key`, under which bytes are kept."""
        assert _is_plain(space), f"not a folder's name: {space!r}"
        require_pyarrow()
        self.outputs = outputs
        self._folder = folder.absolute() / space / "-".join(outputs.names)
        self._index = StagedIndex()
        with _writing(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(self._folder)
        self._look_around()

    def keep(self, name: str, embedded: Embedded) -> None:
        """Leave it staged under `name`, durably, instead of what was there before. Repeating is safe.

        Raises StagingUnusable, and then what was there before is untouched.
        """
        known = self.known([new.digest for new in embedded.vectors], but=name)
        rows = staged_rows(embedded, self.outputs, known)
        held = {i: row.digest for i, row in enumerate(rows) if row.vectors is not None}
        self._put(name, lambda file: write(file, rows), held)

    def keep_file(self, name: str, content: bytes) -> set[bytes]:
        """Keep as `keep` does a file that was written elsewhere; return the digests whose vectors it holds.

        Raises NotReadable if it is not as it was written, StagingUnusable; then what was there before is untouched.
        """
        held = held_digests(BytesIO(content))
        self._put(name, lambda file: file.write(content), held)
        return set(held.values())

    def _put(self, name: str, fill: Callable[[BinaryIO], object], held: Mapping[int, bytes]) -> None:
        path = self._path(name)
        with _writing(path):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _replacing(path) as file:
                fill(file)
        self._index.add(name, held)

    def read(self, name: str) -> Embedded | None:
        """Return what was staged under `name`, in its order; None if nothing was, or not all of it can be had."""
        rows = self._load(name)
        if rows is None:
            return None
        held = {row.digest: row.vectors for row in rows if row.vectors is not None}
        missing = {row.digest for row in rows if row.reason is None} - held.keys()
        if missing:
            held |= self.vectors(list(missing))
        if missing - held.keys():
            self._look_around()  # another process may have staged it
            held |= self.vectors(list(missing))
        if missing - held.keys():
            return None
        return Embedded(
            tuple(NewVector(row.key, row.digest, held[row.digest] if row.reason is None else None) for row in rows),
            tuple(DeadLetter(row.key, row.reason, row.digest) for row in rows if row.reason is not None),
        )

    def holds(self, name: str, rows: Sequence[Row]) -> bool:
        """Return whether all of these rows are staged under `name` with the text that they have."""
        staged = self.read(name)
        there = None if staged is None else {(new.key, new.digest) for new in staged.vectors}
        return there is not None and {(row.key, row.digest) for row in rows} <= there

    def known(self, digests: Sequence[bytes], but: str = "") -> set[bytes]:
        """Return those that are staged with a vector, by what opening and `keep` have seen; no file is read.

        but: a name under which nothing is looked for.
        """
        return {digest for rows in self._index.find(digests, but).values() for digest in rows.values()}

    def vectors(self, digests: Sequence[bytes]) -> dict[bytes, TextVectors]:
        """Return what is staged of these; dead letters have none."""
        found = {}
        for name, wanted in self._index.find(digests).items():
            for row in self._load(name, wanted) or ():
                if row.vectors is not None and row.digest in wanted.values():
                    found[row.digest] = row.vectors
        return found

    def bytes(self) -> int:
        """Return the bytes on disk of all that is staged here."""
        sizes = 0
        for path in self._files():
            with suppress(FileNotFoundError):
                sizes += path.stat().st_size
        return sizes

    def _path(self, name: str) -> Path:
        assert _is_plain(name), f"not a file's name: {name!r}"
        return self._folder / f"{name}.parquet"

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[!.]*.parquet"))

    def _look_around(self) -> None:
        """Take the files that are not in the index into it."""
        names = self._index.names()
        for path in self._files():
            if path.stem not in names:
                try:
                    self._index.add(path.stem, held_digests(path))
                except NotReadable:
                    self._remove(path)

    def _load(self, name: str, rows: Collection[int] | None = None) -> list[StagedRow] | None:
        """Return those rows of the file, or all; None if it is not there or damaged."""
        path = self._path(name)
        try:
            return read(path, rows)
        except NotReadable:
            self._remove(path)
            return None

    def _remove(self, path: Path) -> None:
        self._index.forget(path.stem)
        with _writing(path):
            path.unlink(missing_ok=True)


def remove_staged(folder: Path, fingerprint: str, uid: str) -> None:
    """Leave nothing staged of the migration `uid`, in whatever precision and under whatever heads. Repeating is safe.

    What others have staged in the same folder stays; where they counted on vectors that are gone, they encode anew.
    """
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    for space in [folder / name for name in names if name == fingerprint or name.startswith(f"{fingerprint}-")]:
        for path in space.glob(f"*/{uid}-*.parquet"):
            with _writing(path):
                path.unlink(missing_ok=True)
        for empty in (*space.glob("*/"), space):
            with suppress(OSError):  # something else is there, or nothing
                empty.rmdir()


def _is_plain(name: str) -> bool:
    return bool(name) and Path(name).name == name and not name.startswith(".")


def staged_rows(embedded: Embedded, outputs: Outputs, known: Collection[bytes]) -> list[StagedRow]:
    """Return rows; the first of a digest that is not known has its vectors, which those of known ones may lack."""
    reasons, rows, held = {dead_letter.key: dead_letter.reason for dead_letter in embedded.dead_letters}, [], set(known)
    for new in embedded.vectors:
        reason, vectors = reasons.get(new.key), None
        is_right = new.digest in known or (new.vectors is None) == (reason is not None)
        assert is_right, f"{new.key} has a vector and a letter, or neither"
        if new.vectors is not None and new.digest not in held:
            assert new.vectors.outputs == outputs, f"{new.key} has not the heads that are staged here"
            vectors = new.vectors
            held.add(new.digest)
        rows.append(StagedRow(new.key, new.digest, reason, vectors))
    return rows


# --- the disk -------------------------------------------------------------------------------------


def require_writable(folder: Path) -> None:
    """Raise StagingUnusable if nothing can be written to the folder, MissingExtra if no file can be. Leaves nothing."""
    require_pyarrow()
    with _writing(folder), tempfile.TemporaryFile(dir=_existing(folder)):
        pass


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where the folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StagingUnusable(path, reason_of(exc)) from exc


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path`, which durably takes its place on leaving without an error."""
    temporary, file = _locked_partial(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _locked_partial(path: Path) -> tuple[Path, BinaryIO]:
    """Open a new file, locked as long as it is open: by that `_sweep` sees that its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(PARTIAL, f".{path.stem}.", path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():  # it was not swept between the two
            return Path(name), os.fdopen(handle, "wb")
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left."""
    for path in folder.glob(f".*{PARTIAL}"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
