"""Which staged file holds the vectors of a text, by the text's digest."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import Int32

RECENT_DIGESTS = 65_536
Place = tuple[int, int]
"""The number of a file, and of a row in it."""


class StagedIndex:
    """Sorted arrays, 40 bytes a text, and before them a dict of the latest, at most a sixteenth. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: NDArray[np.bytes_] = np.empty(0, "S32")
        self._places: Int32 = np.empty((0, 2), np.int32)
        self._recent: dict[bytes, Place] = {}
        self._name_of: list[str | None] = []  # None: replaced or gone
        self._number_of: dict[str, int] = {}

    def names(self) -> set[str]:
        """Return the files that were added and not forgotten."""
        with self._lock:
            return set(self._number_of)

    def add(self, name: str, held: Mapping[int, bytes]) -> None:
        """Leave the digests of these rows to be found in the file `name`, instead of what it held before."""
        with self._lock:
            self._forget(name)
            number = self._number_of[name] = len(self._name_of)
            self._name_of.append(name)
            self._recent |= {digest: (number, row) for row, digest in held.items()}
            if len(self._recent) > max(RECENT_DIGESTS, len(self._digests) // 16):
                self._merge()

    def forget(self, name: str) -> None:
        """Leave nothing to be found in that file. Repeating is safe."""
        with self._lock:
            self._forget(name)

    def find(self, digests: Sequence[bytes], but: str = "") -> dict[str, dict[int, bytes]]:
        """Return by file the rows that hold those digests; the file `but` is left out."""
        found: dict[str, dict[int, bytes]] = {}
        with self._lock:
            for digest, places in self._look_up(list(dict.fromkeys(digests))).items():
                for number, row in places:
                    name = self._name_of[number]
                    if name is not None and name != but:
                        found.setdefault(name, {})[row] = digest
                        break
        return found

    def _forget(self, name: str) -> None:
        if name in self._number_of:
            self._name_of[self._number_of.pop(name)] = None

    def _look_up(self, digests: list[bytes]) -> dict[bytes, list[Place]]:
        places = {digest: [self._recent[digest]] if digest in self._recent else [] for digest in digests}
        at, there = self._in_arrays(np.array(digests, "S32"))
        for i in np.flatnonzero(there):
            number, row = self._places[at[i]].tolist()
            places[digests[i]].append((number, row))
        return places

    def _in_arrays(self, digests: NDArray[np.bytes_]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return where each is or would be, and whether it is."""
        at = np.searchsorted(self._digests, digests)
        if not len(self._digests):
            return at, np.zeros(len(digests), np.bool_)
        there: NDArray[np.bool_] = self._digests[np.minimum(at, len(self._digests) - 1)] == digests
        return at, there

    def _merge(self) -> None:
        """Merge the dict into the arrays; the latest place of a digest stays."""
        in_order = sorted(self._recent)
        digests = np.array(in_order, "S32")
        places = np.array([self._recent[digest] for digest in in_order], np.int32)
        at, there = self._in_arrays(digests)
        self._places[at[there]] = places[there]
        self._digests = np.insert(self._digests, at[~there], digests[~there])
        self._places = np.insert(self._places, at[~there], places[~there], axis=0)
        self._recent.clear()
