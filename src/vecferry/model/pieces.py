"""A Unigram vocabulary as a file that is mapped, not built: its pages are shared between processes and given back.

`tokenizers` makes objects of all pieces, 290 MB and half a second for XLM-RoBERTa's 250,002. Here they are a trie in
arrays, in breadth-first order, so that the children of a node are neighbours: those of node n are first[n] to
first[n + 1] - 1, each with the byte that leads to it. The normalizer, the pre-tokenizer and the added tokens stay those
of `tokenizers`: a tokenizer whose only piece is unknown returns a text's words, and what is done here is the search for
the likeliest pieces of a word, as in `tokenizers` (Unigram::encode_optimized), sums in float64 in the same order.

The file is of safetensors' format. Its metadata hold the splitter's description and the SHA-256 of tokenizer.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

Array = NDArray[Any]
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F64": np.dtype("<f8"),
}
NO_PIECE = -1
UNKNOWN = 0
"""What the splitter's ids have for a word; its added tokens are 1, 2 and so on, in the order of their own ids."""
UNKNOWN_TEXT = chr(0xF0000)
UNKNOWN_PENALTY = 10.0
"""By how much an unknown character is less likely than the least likely piece (tokenizers' K_UNK_PENALTY)."""
MAX_PIECE_BYTES, MAX_PIECES = 128, 1 << 20
CACHED_WORDS, MAX_CACHED_CHARS = 1 << 13, 24


def write_pieces(path: Path, canonical: bytes, around: tuple[list[int], list[int]]) -> bool:
    """Write the vocabulary of a tokenizer.json, as `canonical_tokenizer` returns it; False: it is of another kind.

    Mapped is a Unigram model that has an unknown piece, no piece twice, and no byte_fallback. around: the ids that
    stand before and after every text.
    """
    described = json.loads(canonical)
    model = described["model"]
    if not _is_mappable(model):
        return False
    texts = [piece.encode() for piece, _ in model["vocab"]]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.uint32)
    arrays = {
        "score": np.array([score for _, score in model["vocab"]], np.float64),
        **_trie(texts),
        "text_start": ends,
        "text": np.frombuffer(b"".join(texts), np.uint8),
    }
    added = sorted(described["added_tokens"], key=lambda token: token["id"])
    facts = {
        "tokenizer": hashlib.sha256(canonical).hexdigest(),
        "splitter": json.dumps(_splitter(described, added)),
        "unknown": str(model["unk_id"]),
        "added": json.dumps([token["id"] for token in added]),
        "around": json.dumps(around),
    }
    _write_arrays(path, arrays, facts)
    return True


def _is_mappable(model: dict[str, Any]) -> bool:
    if model["type"] != "Unigram" or model.get("byte_fallback") or model.get("unk_id") is None:
        return False
    texts, scores = zip(*model["vocab"], strict=True)
    unknown = texts[model["unk_id"]]
    return (
        len(texts) <= MAX_PIECES
        and len(set(texts)) == len(texts)
        and all(0 < len(text.encode()) <= MAX_PIECE_BYTES for text in texts)
        and all(math.isfinite(score) for score in scores)
        and min(scores) < UNKNOWN_PENALTY  # then a piece is always likelier than the same characters as unknown ones
        and sum(unknown in text for text in texts) == 1
    )


def _splitter(described: dict[str, Any], added: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the same tokenizer without pieces: each word is one unknown token that has the word's text."""
    model = {"type": "Unigram", "unk_id": UNKNOWN, "vocab": [[UNKNOWN_TEXT, 0.0]], "byte_fallback": False}
    numbered = [token | {"id": number} for number, token in enumerate(added, UNKNOWN + 1)]
    return described | {"model": model, "added_tokens": numbered, "post_processor": None, "decoder": None}


def _trie(texts: Sequence[bytes]) -> dict[str, Array]:
    """Return the trie: first uint32 [N + 1], label uint8 [N], piece int32 [N], of N nodes, the root among them."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    lengths = np.array([len(texts[i]) for i in order])
    longest = int(lengths.max())
    letters = np.frombuffer(b"".join(texts[i].ljust(longest, b"\0") for i in order), np.uint8)
    letters = letters.reshape(len(order), longest)  # [V, L]
    differs = np.ones((len(order), longest + 1), bool)
    differs[1:, :longest] = letters[1:] != letters[:-1]
    shared = np.concatenate([[0], np.minimum(differs[1:].argmax(axis=1), np.minimum(lengths[1:], lengths[:-1]))])
    node = np.zeros(len(order), np.int64)  # of each piece's prefix
    labels, parents, at = [np.zeros(1, np.uint8)], list[Array](), 1
    ends = list[tuple[Array, Array]]()
    for depth in range(1, longest + 1):
        rows = np.flatnonzero(lengths >= depth)
        is_new = shared[rows] < depth
        parents.append(node[rows[is_new]])
        labels.append(letters[rows[is_new], depth - 1])
        node[rows] = at + np.cumsum(is_new) - 1
        at += int(is_new.sum())
        whole = rows[lengths[rows] == depth]
        ends.append((node[whole], whole))
    pieces = np.full(at, NO_PIECE, np.int32)
    for nodes, rows in ends:
        pieces[nodes] = np.array(order)[rows]
    children = np.bincount(np.concatenate(parents), minlength=at)
    first = np.concatenate([[1], 1 + np.cumsum(children)]).astype(np.uint32)
    return {"first": first, "piece": pieces, "label": np.concatenate(labels)}


def _write_arrays(path: Path, arrays: dict[str, Array], facts: dict[str, str]) -> None:
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": facts}
    at = 0
    for name, array in arrays.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())


class MappedPieces:
    """The pieces of a vocabulary, in a mapped file. Thread-safe: nothing is set but a cache of short words."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Map what `write_pieces` wrote. Raises ValueError if these are not the bytes with that SHA-256; OSError."""
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if (digest := hashlib.sha256(mapped).hexdigest()) != sha256:
            raise ValueError(f"it has SHA-256 {digest[:12]}…, not {sha256[:12]}…")
        begin = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:begin])
        facts = header.pop("__metadata__")
        views = {name: _view(mapped, begin, entry) for name, entry in header.items()}
        self._first, self._piece, self._score = views["first"], views["piece"], views["score"]
        self._label = views["label"].tobytes()  # a megabyte: bytes are searched several times as fast as a mapped file
        self._text, self._text_start = views["text"], views["text_start"]
        self._unknown = int(facts["unknown"])
        self._unknown_score = float(np.min(np.asarray(self._score))) - UNKNOWN_PENALTY
        self._added: list[int] = json.loads(facts["added"])
        self.begin, self.end = json.loads(facts["around"])
        self._cached = lru_cache(CACHED_WORDS)(self._best)
        self.tokenizer_sha256: str = facts["tokenizer"]
        self.splitter = tokenizers.Tokenizer.from_str(facts["splitter"])

    def __len__(self) -> int:
        """Return how many token ids there are, added tokens included."""
        return len(self._score) + sum(i >= len(self._score) for i in self._added)

    def encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Yield the token ids of each text, without special tokens."""
        for encoding in self.splitter.encode_batch(texts, add_special_tokens=False):
            ids: list[int] = []
            for number, word in zip(encoding.ids, encoding.tokens, strict=True):
                if number != UNKNOWN:
                    ids.append(self._added[number - 1])
                elif len(word) <= MAX_CACHED_CHARS:
                    ids += self._cached(word)
                else:
                    ids += self._best(word)
            yield ids

    def text_of(self, token_id: int) -> str | None:
        """Return the text of a piece or an added token, or None where there is none."""
        if token_id in self._added:
            return self.splitter.id_to_token(self._added.index(token_id) + 1)
        if not 0 <= token_id < len(self._score):
            return None
        return bytes(self._text[self._text_start[token_id] : self._text_start[token_id + 1]]).decode()

    def id_of(self, text: str) -> int | None:
        """Return the id of an added token or a piece, or None where there is none."""
        if (number := self.splitter.token_to_id(text)) is not None and number != UNKNOWN:
            return self._added[number - 1]
        node, label = 0, text.encode()
        for at in range(len(label)):
            node = self._label.find(label[at : at + 1], self._first[node], self._first[node + 1])
            if node < 0:
                return None
        return None if (piece := self._piece[node]) == NO_PIECE else piece

    def _best(self, word: str) -> tuple[int, ...]:
        """Return the likeliest pieces of a word; neighbours that are unknown are one."""
        first, pieces, scores, find = self._first, self._piece, self._score, self._label.find
        text = word.encode()
        size = len(text)
        best = [-math.inf] * (size + 1)  # the score of the likeliest pieces up to each byte
        last = [(0, self._unknown)] * (size + 1)  # where the last of these begins, and its id
        start, best[0] = 0, 0.0
        while start < size:
            score_here, after = best[start], start + _width(text[start])
            is_known, node, at = False, 0, start
            while at < size:
                node = find(text[at : at + 1], first[node], first[node + 1])
                if node < 0:
                    break
                at += 1
                piece = pieces[node]
                if piece != NO_PIECE:
                    if (score := scores[piece] + score_here) > best[at]:
                        best[at], last[at] = score, (start, piece)
                    is_known = is_known or at == after
            if not is_known and (score := self._unknown_score + score_here) > best[after]:
                best[after], last[after] = score, (start, self._unknown)
            start = after
        return self._backwards(last)

    def _backwards(self, last: list[tuple[int, int]]) -> tuple[int, ...]:
        ids: list[int] = []
        at = len(last) - 1
        while at:
            at, piece = last[at]
            if piece != self._unknown or ids[-1:] != [self._unknown]:
                ids.append(piece)
        return tuple(reversed(ids))


def _view(mapped: mmap.mmap, begin: int, entry: dict[str, Any]) -> memoryview:
    """Return a one-dimensional array of the file, as a view whose items are Python's numbers."""
    start, stop = entry["data_offsets"]
    part: Any = memoryview(mapped)[begin + start : begin + stop]
    array: memoryview = part.cast(DTYPES[entry["dtype"]].char)
    return array


def _width(byte: int) -> int:
    """Return how many bytes the character has that begins with this one in UTF-8."""
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
