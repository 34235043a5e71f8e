"""Where evaluated passages are: in a folder, or in a live store. Either is asked in the old and in the new space."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from vecferry.embeddings import DENSE, Embeddings, Int64, Outputs
from vecferry.encode.encoder import Encoder, Role, TextEncoder
from vecferry.encode.loading import LazyEncoder
from vecferry.encode.progress import ProgressLines
from vecferry.evaluate.ranking import NONE, Ranked, lexically_nearest, nearest
from vecferry.evaluate.values import Passage
from vecferry.stores.marks import side_asked
from vecferry.stores.protocol import Store
from vecferry.stores.values import Hit, Key

Side = Literal["old", "new"]
Stage = Callable[[str], None]
TOLD_EVERY_S = 5.0


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that is compared. bytes: of its files, where it has some here."""

    name: str
    encoder: TextEncoder
    runtime: str = ""
    bytes: int | None = None

    @classmethod
    def of_folder(cls, folder: Path, encoder: TextEncoder, runtime: str = "") -> EvaluatedModel:
        """Describe a model in a folder, under the folder's name."""
        size = sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else None
        return cls(folder.absolute().name, encoder, runtime, size)

    def encode(
        self, texts: Sequence[str], stage: Stage, label: str, *, outputs: Outputs = DENSE, role: Role = "passage"
    ) -> Embeddings:
        """Encode texts. stage: told what is done, and every five seconds how far it is, of a model in this process.

        Raises what the model raises.
        """
        stage(label)
        encoder = self._loaded()
        if not isinstance(encoder, Encoder):
            return encoder.encode(texts, outputs=outputs, role=role)
        return encoder.encode(texts, outputs=outputs, role=role, progress=ProgressLines(label, stage, TOLD_EVERY_S))

    def are_cut(self, texts: Sequence[str]) -> list[bool]:
        """Return which passages the model reads only a part of; one in this process has no vectors to make for that."""
        encoder = self._loaded()
        if isinstance(encoder, Encoder):
            truncated = encoder.tokenizer(texts, encoder.space.prefix("passage")).truncated
        else:
            truncated = encoder.encode(texts).truncated
        return list(map(bool, truncated))

    def _loaded(self) -> TextEncoder:
        return self.encoder.get().encoder if isinstance(self.encoder, LazyEncoder) else self.encoder


class Corpus(Protocol):
    """Passages by number, on both sides; `ids` grows as hits come in."""

    old: EvaluatedModel
    new: EvaluatedModel

    @property
    def target(self) -> str:
        """The corpus's name, for people."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def num_passages(self) -> int: ...
    @property
    def texts_per_s(self) -> tuple[float | None, float | None]:
        """Passages that each model has encoded a second; None where it encoded none."""

    def search(self, side: Side, queries: Embeddings, k: int) -> Ranked:
        """Search one side by dense vectors."""

    def search_words(self, queries: Embeddings, k: int) -> Ranked | None:
        """Search by the sparse vectors of the new model; None where these cannot be searched."""

    def texts(self, numbers: Sequence[int]) -> list[str]:
        """Return the texts of these passages; "" for one that has gone."""

    def embeddings(self, numbers: Int64, outputs: Outputs) -> Embeddings:
        """Return embeddings of these passages by the new model."""

    def are_cut(self, ids: Sequence[str]) -> dict[str, bool]:
        """Return whether the old model reads only a part of each; those that are not in the corpus are left out."""

    def sample(self, number: int, seed: int) -> PassageSample:
        """Draw random passages with both their vectors."""


@dataclass(frozen=True)
class PassageSample:
    """The same passages under both models."""

    passages: tuple[Passage, ...]
    old: Embeddings
    new: Embeddings


class FolderCorpus:
    """A corpus of passages that are encoded here, by both models, and searched exactly."""

    def __init__(
        self,
        target: str,
        passages: Sequence[Passage],
        old: EvaluatedModel,
        new: EvaluatedModel,
        outputs: Outputs,
        stage: Stage,
    ) -> None:
        """Encode the passages with both models. outputs: heads of the new model; ColBERT vectors are made on demand."""
        self.old, self.new, self.target, self._stage = old, new, target, stage
        self.ids = tuple(passage.id for passage in passages)
        self._passages = passages
        self._texts = [passage.full for passage in passages]
        self._old, old_rate = self._encoded(old, DENSE)
        self._new, new_rate = self._encoded(new, DENSE | outputs & new.encoder.space.outputs & ~Outputs.COLBERT)
        self.texts_per_s = (old_rate, new_rate)

    def _encoded(self, model: EvaluatedModel, outputs: Outputs) -> tuple[Embeddings, float]:
        began = time.perf_counter()
        label = f"encoding {len(self._texts):,} passages with {model.name}"
        embeddings = model.encode(self._texts, self._stage, label, outputs=outputs)
        return embeddings, len(self._texts) / (time.perf_counter() - began)

    @property
    def num_passages(self) -> int:
        return len(self._texts)

    def search(self, side: Side, queries: Embeddings, k: int) -> Ranked:
        return nearest(queries, self._old if side == "old" else self._new, k)

    def search_words(self, queries: Embeddings, k: int) -> Ranked | None:
        return lexically_nearest(queries, self._new, k)

    def texts(self, numbers: Sequence[int]) -> list[str]:
        return [self._texts[number] for number in numbers]

    def embeddings(self, numbers: Int64, outputs: Outputs) -> Embeddings:
        held = self._new.take(numbers)
        if Outputs.COLBERT not in outputs:
            return held
        texts = [self._texts[number] for number in numbers]
        label = f"encoding {len(texts):,} passages for their ColBERT vectors"
        made = self.new.encode(texts, self._stage, label, outputs=Outputs.COLBERT)
        return replace(held, colbert_or_none=made.colbert)

    def are_cut(self, ids: Sequence[str]) -> dict[str, bool]:
        is_truncated = dict(zip(self.ids, self._old.truncated.tolist(), strict=True))
        return {passage_id: is_truncated[passage_id] for passage_id in ids if passage_id in is_truncated}

    def sample(self, number: int, seed: int) -> PassageSample:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self._texts))[:number])
        passages = tuple(self._passages[i] for i in chosen)
        return PassageSample(passages, self._old.take(chosen), self._new.take(chosen))


class StoreCorpus:
    """A corpus of a collection's rows, searched through its own indexes, as by an application. Ids are keys."""

    def __init__(
        self,
        store: Store,
        old: EvaluatedModel,
        new: EvaluatedModel,
        slices: Mapping[str, Mapping[str, str]] | None = None,
        stage: Stage = lambda _: None,
    ) -> None:
        """Search a store. slices: what passages belong to, by id, where it is known; for the map."""
        self.old, self.new, self.target, self._stage = old, new, store.target, stage
        self._slices = slices or {}
        self.texts_per_s: tuple[float | None, float | None] = (None, None)
        self._store = store
        self._numbers: dict[Key, int] = {}
        self._keys: list[Key] = []
        self.ids: list[str] = []
        self._texts: dict[int, str] = {}
        self.num_passages = store.describe().rows

    def search(self, side: Side, queries: Embeddings, k: int) -> Ranked:
        model = self.old if side == "old" else self.new
        fingerprint = side_asked(self._store, model.encoder.space.mark())
        return self._ranked([self._store.search(vector, k, fingerprint=fingerprint) for vector in queries.dense], k)

    def _ranked(self, answers: Sequence[Sequence[Hit]], k: int) -> Ranked:
        passages = np.full((len(answers), k), NONE, np.int64)
        scores = np.full((len(answers), k), -np.inf, np.float32)
        for row, hits in enumerate(answers):
            for place, hit in enumerate(hits):
                passages[row, place] = self._number(hit.key)
                scores[row, place] = hit.score
        return Ranked(passages, scores)

    def _number(self, key: Key) -> int:
        """Return the row's number, a new one where it has none yet."""
        if key not in self._numbers:
            self._numbers[key] = len(self._keys)
            self._keys.append(key)
            self.ids.append(id_of(key))
        return self._numbers[key]

    def search_words(self, queries: Embeddings, k: int) -> Ranked | None:  # noqa: ARG002  # no store offers it to us
        return None

    def texts(self, numbers: Sequence[int]) -> list[str]:
        missing = [number for number in dict.fromkeys(numbers) if number not in self._texts]
        if missing:
            rows = self._store.rows([self._keys[number] for number in missing])
            self._texts |= dict.fromkeys(missing, "") | {self._numbers[row.key]: row.text or "" for row in rows}
        return [self._texts[number] for number in numbers]

    def embeddings(self, numbers: Int64, outputs: Outputs) -> Embeddings:
        texts = self.texts(numbers.tolist())
        return self.new.encode(texts, self._stage, f"encoding {len(texts):,} passages that were found", outputs=outputs)

    def are_cut(self, ids: Sequence[str]) -> dict[str, bool]:
        keys = {id_of(key): number for key, number in self._numbers.items()}
        numbers = {passage_id: keys[passage_id] for passage_id in ids if passage_id in keys}
        if not numbers:
            return {}
        cut = self.old.are_cut(self.texts(list(numbers.values())))
        return dict(zip(numbers, cut, strict=True))

    def sample(self, number: int, seed: int) -> PassageSample:  # noqa: ARG002  # the store chooses
        rows = sorted(self._store.sample(number), key=lambda row: row.key)
        ids = [id_of(row.key) for row in rows]
        passages = tuple(
            Passage(i, row.text or "", slices=self._slices.get(i, {})) for i, row in zip(ids, rows, strict=True)
        )
        texts = [passage.text for passage in passages]
        began = time.perf_counter()
        old = self.old.encode(texts, self._stage, f"encoding {len(texts):,} passages of a sample with {self.old.name}")
        between = time.perf_counter()
        new = self.new.encode(texts, self._stage, f"encoding {len(texts):,} passages of a sample with {self.new.name}")
        ended = time.perf_counter()
        self.texts_per_s = (len(texts) / (between - began), len(texts) / (ended - between))
        return PassageSample(passages, old, new)


def id_of(key: Key) -> str:
    """Return how judgements name a row: its key; where that has several parts, these joined by "/"."""
    return "/".join(key)
