"""Try a tokenizer.json where it can bring nothing down: tokens.py runs this file as a script, in a process of its own.

Arguments: the folders of packages, as JSON; the number of the model's token ids. Standard input: tokenizer.json. It
ends with 0, or with a sentence on standard error. What may happen instead is that the library aborts, hangs or takes
all memory; the limits end that.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

ADDRESS_SPACE_BYTES = 4 << 30
CPU_S = 60
"""XLM-RoBERTa's 250,002 pieces take one."""
UNKNOWN = chr(0xF0000)
"""A character for private use, which no vocabulary has."""
TEXTS = (
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "été",
    "Съешь булок",
    "天地玄黄",
    "سلام",
    "0123",
    UNKNOWN,
)
CHARACTERS = (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200))
"""Those of all living scripts, and more; surrogates are none."""
EACH = 8
GROWTH = 16
"""A byte of text becomes at most so many: some characters stand for a whole phrase."""


def main() -> None:
    limit("RLIMIT_AS", ADDRESS_SPACE_BYTES)
    limit("RLIMIT_CPU", CPU_S)
    limit("RLIMIT_CORE", 0)
    sys.path[:] = json.loads(sys.argv[1])
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode())
    if reason := problem(tokenizer, int(sys.argv[2])):
        sys.exit(reason)


def limit(name: str, most: int) -> None:
    """Lower a limit of this process, where the system has it."""
    try:
        import resource
    except ImportError:
        return
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (lower, lower))


def problem(tokenizer: tokenizers.Tokenizer, num_ids: int) -> str | None:
    """Return why the tokenizer is of no use for a model with that many token ids, or None."""
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= num_ids:
        return f"it has the token id {highest}, and the model {num_ids} of them, from 0"
    ends = tokenizer.encode("").ids
    if len(ends) != 2:
        return f"an empty text has {len(ends)} tokens, not a beginning and an end"
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        if ids[:1] != ends[:1] or ids[-1:] != ends[1:] or not all(0 <= i < num_ids for i in ids):
            return f"the text {text!a} has no beginning and end, or a token id that the model does not have"
        if len(ids) > GROWTH * len(text.encode()) + len(ends):
            return f"the text {text!a} becomes {len(ids)} tokens"
        if ids != tokenizer.encode(text).ids:
            return f"the text {text!a} has other tokens each time"
    unknown = {*tokenizer.encode(UNKNOWN).ids}
    if len({i for text in TEXTS for i in tokenizer.encode(text).ids} - unknown) < 2:
        return "it has tokens of no text: they are deleted, unknown or all the same"
    return None if tokenizer.normalizer is None else growth(tokenizer.normalizer)


def growth(normalizer: tokenizers.normalizers.Normalizer) -> str | None:
    """Return which characters become far too many, or None."""
    for at in range(0, len(CHARACTERS), EACH):
        text = " ".join(map(chr, CHARACTERS[at : at + EACH]))
        if (size := len(normalizer.normalize_str(text).encode())) > GROWTH * len(text.encode()):
            return f"the characters {text!a} become {size} bytes"
    return None


if __name__ == "__main__":
    main()
