"""Files that are read within bounds, and that are written whole or not at all: temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vecferry.errors import CheckpointIncomplete

LFS = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for another one, which Git LFS has not fetched."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary name beside `target`; what is written there takes its place on leaving without an error.

    Otherwise `target` is as it was, and nothing lies beside it. A symbolic link is followed. Raises FileExistsError
    where something else than a file lies there, such as a device.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "what is there is not a file", str(target))
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_whole(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file. Raises OSError; ValueError for a pipe, a device or more than `max_bytes`."""
    # A pipe without a writer would hold up an open that waits.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:  # noqa: PTH123  # of a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than the {max_bytes} bytes that are allowed")
    return content


def check_not_pointer(path: Path, beginning: bytes) -> None:
    """Raise CheckpointIncomplete for a file that Git LFS has not fetched."""
    if beginning.startswith(LFS):
        remedy = f"Fetch it: git -C '{path.parent}' lfs pull (with Git LFS installed: git lfs install)"
        raise CheckpointIncomplete(path, "it is a pointer of Git LFS, not the file itself", remedy)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make the names in the folder as durable as the files; there is nothing to do on Windows."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
