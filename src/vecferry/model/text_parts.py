"""Parts of a long text, and whether a tokenizer may read them one by one.

A tokenizer takes about 100 bytes for each byte of a text, and a model reads few of the tokens of a long one. So a
text is read part by part, until there are as many tokens as the model reads. Parts begin with white space, at which
both reference tokenizers split before they look for tokens: joined, the ids of the parts are those of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

METASPACE: dict[str, Any] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
WITHOUT_PREFIX = METASPACE | {"prepend_scheme": "never"}
"""For a tokenizer whose add_prefix_space is false."""


def split_then(metaspace: dict[str, Any]) -> dict[str, Any]:
    """Return XLM-RoBERTa's pre-tokenizer."""
    return {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}


SPLIT_AT_WHITE_SPACE = (split_then(METASPACE), split_then(WITHOUT_PREFIX), {"type": "BertPreTokenizer"})
"""The references' pre-tokenizers. What stands before white space does not depend on what stands after it, nor does this
on that."""
LOCAL_NORMALIZERS = {"BertNormalizer", "Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents"}
"""What changes single characters, or one with the marks after it, and leaves white space what it is."""
COLLAPSED_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
WHITE_SPACE = " \t\n\r"
PART_CHARS_PER_TOKEN, MIN_PART_CHARS, MAX_PART_CHARS = 8, 1 << 12, 1 << 16
"""How long a part is; of most texts that are cut, the first is enough."""
MAX_RUN_CHARS = 1 << 18
"""How long a part without white space may be. XLM-R's pieces have 16 characters at most, so that no more fit in 8,192
tokens; but for characters that are dropped, and those that are unknown, of which any number is one token."""


def part_end(text: str, start: int, size: int) -> int:
    """Return where a part of a text ends that begins at `start`, before white space or at the end of the text.

    That is the last white space within `size` characters, or else the next one, or else `MAX_RUN_CHARS` after `start`.
    """
    if len(text) - start <= size:
        return len(text)
    last = max(text.rfind(character, start + 1, start + size + 1) for character in WHITE_SPACE)
    if last > start:
        return last
    limit = min(start + max(size, MAX_RUN_CHARS), len(text))
    following = (text.find(character, start + size, limit) for character in WHITE_SPACE)
    return min((at for at in following if at >= 0), default=limit)


def parts_of(text: str, size: int) -> Iterator[tuple[int, str]]:
    """Yield (where it begins, part) of parts that together are the text; one at least."""
    start, end = 0, part_end(text, 0, size)
    yield start, text[:end]
    while end < len(text):
        start, end = end, part_end(text, end, size)
        yield start, text[start:end]


def splits_at_white_space(
    pre_tokenizer: Mapping[str, Any] | None, normalizer: Mapping[str, Any] | None, added: Iterable[str]
) -> bool:
    """Return whether the ids of a text that is cut before white space are those of its parts, one after the other.

    pre_tokenizer, normalizer: as tokenizer.json describes them. added: tokens that are looked for before all others.
    """
    return (
        pre_tokenizer in SPLIT_AT_WHITE_SPACE
        and _is_local(normalizer)
        and not any(character in token for token in added for character in WHITE_SPACE)
    )


def _is_local(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None or normalizer == COLLAPSED_SPACES:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_is_local, normalizer["normalizers"]))
    return normalizer["type"] in LOCAL_NORMALIZERS
