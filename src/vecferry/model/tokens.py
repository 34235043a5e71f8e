"""Text to token ids.

XLM-RoBERTa checkpoints carry a tokenizer.json whose pre-tokenizer differs from sentencepiece (and
from transformers 5) on texts that end in white space or in a zero-width character: it adds a lone
"▁" before the final </s>. `canonical_tokenizer` gives such a file the pre-tokenizer of the
reference, WhitespaceSplit and Metaspace, once, at conversion; the artifact carries the result.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from vecferry.embeddings import Int32, TokenBatch, indptr_of
from vecferry.errors import ArtifactDamaged, RuntimeUnavailable, cut_repr, reason_of
from vecferry.model.artifact import PIECES, TOKENIZER, Artifact, canonical_json
from vecferry.model.pieces import MappedPieces
from vecferry.model.text_parts import (
    MAX_PART_CHARS,
    MAX_RUN_CHARS,
    METASPACE,
    MIN_PART_CHARS,
    PART_CHARS_PER_TOKEN,
    WITHOUT_PREFIX,
    parts_of,
    split_then,
    splits_at_white_space,
)
from vecferry.model.texts import check_text, require_texts
from vecferry.portions import portions

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "[CLS]", "[PAD]", "[SEP]", "[UNK]")

EXPRESSIONS = (" {2,}", r"\s+")
"""Regular expressions of BERT and XLM-RoBERTa. Another could take time without end on somebody's text."""
TRIAL = Path(__file__).with_name("tokenizer_trial.py")
TRIAL_S = 300.0
BATCH_CHARS = 1 << 18
"""Characters that are tokenised by one call of the library, in its threads."""


def canonical_tokenizer(raw: bytes, tokenizer_class: str, *, prefix_space: bool = True) -> bytes:
    """Return tokenizer.json as the reference tokenises: no truncation, no padding, XLM-R's pre-tokenizer.

    prefix_space: whether that puts a space before each word.
    The same input gives the same bytes. Raises ValueError if `raw` is not a tokenizer, or has a regular expression that
    is not of `EXPRESSIONS`.
    """
    try:
        described: dict[str, Any] = json.loads(raw)
        model = described["model"]["type"]
        parts = [part for name, part in described.items() if name not in ("model", "added_tokens")]
        unknown = next((pattern for pattern in _expressions(parts) if pattern not in EXPRESSIONS), None)
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"not a tokenizer: {exc!r}") from exc
    if unknown is not None:
        raise ValueError(f"it has the regular expression {cut_repr(unknown)}")
    described["truncation"] = described["padding"] = None
    if model == "Unigram" and tokenizer_class.startswith("XLMRoberta"):
        metaspace = METASPACE if prefix_space else WITHOUT_PREFIX
        described["pre_tokenizer"], described["decoder"] = split_then(metaspace), metaspace
    return canonical_json(described)


def _expressions(part: Any) -> Iterator[Any]:
    """Yield each regular expression in a part of tokenizer.json."""
    if isinstance(part, list):
        for inner in part:
            yield from _expressions(inner)
    elif isinstance(part, dict):
        for name, inner in part.items():
            yield from [inner] if name == "Regex" else _expressions(inner)


@lru_cache(maxsize=1)
def try_tokenizer(canonical: bytes, num_ids: int) -> None:
    """Load a tokenizer and encode a few texts in a process of its own, with limits of memory and time.

    num_ids: the model's, which the tokenizer's must be among. Raises ValueError, with what it does wrong, and
    RuntimeUnavailable where there is no such process.
    """
    command = [sys.executable or "", "-I", str(TRIAL), json.dumps(sys.path), str(num_ids)]
    try:
        tried = subprocess.run(command, input=canonical, capture_output=True, timeout=TRIAL_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise ValueError(f"it was not loaded within {TRIAL_S:.0f} seconds") from exc
    except OSError as exc:
        reason = (
            f"a tokenizer is tried in a process of its own, and {sys.executable!r} is not started: {reason_of(exc)}"
        )
        raise RuntimeUnavailable("Python", reason, "Use an interpreter that this user may execute.") from exc
    if tried.returncode < 0:
        raise ValueError(f"the process that loaded it was ended by {signal.Signals(-tried.returncode).name}")
    if tried.returncode:
        raise ValueError((tried.stderr.decode(errors="replace").strip().splitlines() or ["it cannot be loaded"])[-1])


@dataclass(frozen=True)
class Piece:
    """place: first character and the one after the last, in the text; None of a special token."""

    id: int
    text: str
    place: tuple[int, int] | None


class Tokenizer:
    """Thread-safe: nothing is set on the tokenizer after it is built."""

    def __init__(self, canonical: bytes, max_tokens: int) -> None:
        """Load tokenizer.json as `canonical_tokenizer` returns it. Raises ValueError if it is not a tokenizer."""
        self._tokenizer = _built(canonical)
        self._max_tokens = max_tokens
        around = self._tokenizer.encode("").ids
        self._begin, self._end = around[:1], around[1:]
        self._part_chars = _part_chars(self._tokenizer, max_tokens)

    def with_max_tokens(self, max_tokens: int) -> Tokenizer:
        """Return the same tokenizer with another limit."""
        return Tokenizer(self._whole.to_str().encode(), max_tokens)

    @property
    def _whole(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, with its vocabulary."""
        return self._tokenizer

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the beginning, padding, end and unknown tokens, ascending: no lexical weight is theirs."""
        ids = (self._tokenizer.token_to_id(token) for token in SPECIAL)
        return tuple(sorted(i for i in ids if i is not None))

    def __call__(self, texts: Sequence[str], prefix: str = "") -> TokenBatch:
        """Return the token ids of each text, special tokens included; longer texts keep their beginning and end token.

        Raises as `require_texts`.
        """
        texts = require_texts(texts)
        rows, is_truncated = [], np.zeros(len(texts), bool)
        for row, inner in enumerate(self._read([prefix + text for text in texts])):
            ids = np.concatenate([self._begin, *inner, self._end]).astype(np.int32)
            if len(ids) > self._max_tokens:
                ids, is_truncated[row] = np.append(ids[: self._max_tokens - 1], ids[-1:]), True
            rows.append(ids)
        return TokenBatch(np.concatenate(rows), indptr_of([len(ids) for ids in rows]), is_truncated)

    def _read(self, texts: Sequence[str]) -> list[list[Int32]]:
        """Return the ids of each text, part by part and without special tokens; one over the limit is not read further.

        The next parts of all texts are tokenised together, `BATCH_CHARS` at a time.
        """
        read: list[list[Int32]] = [[] for _ in texts]
        num_ids = [len(self._begin) + len(self._end)] * len(texts)
        left = {row: parts_of(text, self._part_chars) for row, text in enumerate(texts)}
        while left:
            parts = {row: part[1] for row, each in left.items() if (part := next(each, None)) is not None}
            unread = list(parts)
            for batch in portions(map(len, parts.values()), BATCH_CHARS):
                rows = unread[batch]
                for row, ids in zip(rows, self._ids([parts[row] for row in rows]), strict=True):
                    read[row].append(np.asarray(ids, np.int32))
                    num_ids[row] += len(read[row][-1])
            left = {row: left[row] for row in parts if num_ids[row] <= self._max_tokens}
        return read

    def _ids(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """Return the ids of each text, without special tokens."""
        return (encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids that stand before and after every text."""
        return self._begin, self._end

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last id of every text."""
        return self._begin[0], self._end[-1]

    def pieces(self, text: str, *, with_ends: bool = True) -> Iterator[Piece]:
        """Yield a text's tokens, however many there are. Raises InvalidText."""
        check_text(text, 0)
        if with_ends:
            yield from map(self._special, self._begin)
        for at, part in parts_of(text, self._part_chars):
            encoding = self._whole.encode(part, add_special_tokens=False)
            for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                yield Piece(i, part[start:stop], (at + start, at + stop))
        if with_ends:
            yield from map(self._special, self._end)

    def _special(self, token_id: int) -> Piece:
        return Piece(token_id, self.text_of(token_id), None)

    def decode(self, ids: Sequence[int], *, without_special: bool = True) -> str:
        """Return a text that has these ids, nearly: white space is not kept. ids: below `vocabulary`."""
        return self._whole.decode(ids, skip_special_tokens=without_special)

    @property
    def vocabulary(self) -> int:
        """How many token ids there are, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def text_of(self, token_id: int) -> str:
        """Return the piece of text that a token id stands for."""
        return self._tokenizer.id_to_token(token_id) or ""


class MappedTokenizer(Tokenizer):
    """The same tokenizer over a vocabulary that is mapped: a few megabytes of its own, a third of the speed.

    `pieces` and `decode`, which no encoding needs, build the vocabulary with their first call.
    """

    def __init__(self, mapped: MappedPieces, canonical: Callable[[], bytes], max_tokens: int) -> None:
        """canonical: reads tokenizer.json as `canonical_tokenizer` returns it."""
        self._mapped, self._canonical, self._max_tokens = mapped, canonical, max_tokens
        self._begin, self._end = mapped.begin, mapped.end
        self._part_chars = _part_chars(mapped.splitter, max_tokens)

    def with_max_tokens(self, max_tokens: int) -> Tokenizer:
        return MappedTokenizer(self._mapped, self._canonical, max_tokens)

    @cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        return _built(self._canonical())

    @property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(sorted(i for token in SPECIAL if (i := self._mapped.id_of(token)) is not None))

    def _ids(self, texts: Sequence[str]) -> Iterable[list[int]]:
        return self._mapped.encode(texts)

    @property
    def vocabulary(self) -> int:
        return len(self._mapped)

    def text_of(self, token_id: int) -> str:
        return self._mapped.text_of(token_id) or ""


def _built(canonical: bytes) -> tokenizers.Tokenizer:
    """Return the library's tokenizer. Raises ValueError if it is not one."""
    try:
        return tokenizers.Tokenizer.from_str(canonical.decode())
    except BaseException as exc:  # the library raises plain Exception, and panics, which are none
        if isinstance(exc, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"not a tokenizer: {exc}") from exc


def _part_chars(tokenizer: tokenizers.Tokenizer, max_tokens: int) -> int:
    """Return how long a part of a text is."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if splits_at_white_space(_described(tokenizer.pre_tokenizer), _described(tokenizer.normalizer), added):
        return min(max(PART_CHARS_PER_TOKEN * max_tokens, MIN_PART_CHARS), MAX_PART_CHARS)
    return MAX_RUN_CHARS


def _described(component: Any) -> dict[str, Any] | None:
    """Return what tokenizer.json says of a normalizer or pre-tokenizer."""
    described: dict[str, Any] | None = None if component is None else json.loads(component.__getstate__())
    return described


def open_tokenizer(artifact: Artifact, *, mapped: bool = False) -> Tokenizer:
    """Load the tokenizer of an artifact. mapped: over a mapped vocabulary, where the artifact has one.

    Raises ArtifactDamaged if it is not that of the artifact's vector space.
    """
    space = artifact.manifest.space
    file = PIECES if mapped and PIECES in artifact.manifest.files else TOKENIZER
    try:
        tokenizer = _open_mapped(artifact) if file == PIECES else Tokenizer(artifact.read_tokenizer(), space.max_tokens)
    except (ValueError, LookupError, TypeError, OSError) as exc:
        raise ArtifactDamaged(artifact.path, f"{file}: {exc}") from exc
    if tokenizer.special_ids != space.special_ids:
        reason = f"{file} has the special ids {tokenizer.special_ids}, its vector space {space.special_ids}"
        raise ArtifactDamaged(artifact.path, reason)
    return tokenizer


def _open_mapped(artifact: Artifact) -> Tokenizer:
    space, record = artifact.manifest.space, artifact.manifest.files[PIECES]
    mapped = MappedPieces(artifact.path / PIECES, record.sha256)
    if mapped.tokenizer_sha256 != space.tokenizer:
        raise ValueError(f"it was made of another {TOKENIZER}")
    return MappedTokenizer(mapped, artifact.read_tokenizer, space.max_tokens)
