"""The truth embedder as workers of a cluster load it, and what can be told to it there."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.migrate.doubles import TruthEncoder
from vecferry.embeddings import Float32
from vecferry.encode.encoder import TextEncoder
from vecferry.encode.runtime import Device


def as_vector(encoder: TextEncoder, job: bytes) -> bytes:
    """Return the vector of a text."""
    return encoder.encode([job.decode()]).dense.tobytes()


def gpus_seen(encoder: TextEncoder, job: bytes, *, folder: Path, workers: int) -> bytes:
    """Return this worker's process and the GPUs that CUDA would show it, as soon as so many workers have begun."""
    (folder / f"worker-{os.getpid()}").touch()
    while len([*folder.glob("worker-*")]) < workers:
        time.sleep(0.1)
    return json.dumps([os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")]).encode()


class Disturbed(TruthEncoder):
    """Vectors that are a little beside the truth."""

    def truth(self, text: str) -> Float32:
        return super().truth(text) + np.float32(0.01)


@dataclass(frozen=True)
class TruthModel:
    """folder: with `counts`, a line in its file `encoded` for each text of a call, after its process; a file `stall`
    makes each call wait for its end, and a file `die` is taken away by the one who then dies.

    driver: the process that made it; elsewhere its kind is `kind_of_workers`.
    """

    folder: Path
    model: str = "new"
    dimension: int = 16
    seconds_each: float = 0.0
    kind_of_workers: str = "of one kind"
    disturbed: bool = False
    counts: bool = True
    driver: int = 0
    device: Device = "cpu"

    @property
    def key(self) -> str:
        return TruthEncoder(self.model, self.dimension).space.key

    def kind(self) -> str:
        return "of one kind" if os.getpid() == self.driver else self.kind_of_workers

    def missing(self) -> str:
        return ""

    def pieces(self) -> Iterator[tuple[str, bytes]]:
        raise NotImplementedError

    def receive(self, pieces: Iterable[tuple[str, bytes]]) -> None:
        raise NotImplementedError

    def load(self, threads: int) -> TruthEncoder:
        return (Disturbed if self.disturbed else TruthEncoder)(self.model, self.dimension, self._before_each)

    def _before_each(self, texts: Sequence[str]) -> None:
        if self.counts:
            with (self.folder / "encoded").open("a") as file:
                file.write("".join(f"{os.getpid()} {text}\n" for text in texts))
        time.sleep(self.seconds_each * len(texts))
        while (self.folder / "stall").exists():
            time.sleep(0.1)
        if (self.folder / "die").exists():
            (self.folder / "die").unlink()
            os._exit(1)

    def encoded(self) -> Counter[str]:
        """Return how often each text was given to a worker."""
        notes = self.folder / "encoded"
        return (
            Counter(line.partition(" ")[2] for line in notes.read_text().splitlines()) if notes.exists() else Counter()
        )
