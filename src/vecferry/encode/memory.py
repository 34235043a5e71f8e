"""What a run of an encoder takes beside its weights, known from its shape before it runs.

With T = rows x tokens, H the hidden size, F the feed-forward size and A the heads of attention, in fp32 numbers:

    attention     9·T·H             residual, query, key and value, the same per head, the result
    scores        (A + 1)·T·tokens  each pair of tokens, and the mask; only where there is padding
    feed-forward  5·T·H + 2·T·F     inner values before and after GELU, and what fragments leave unused
    returned      2·T·H             ColBERT: what the model gives, and the same without its padding

A run takes max(attention + scores, feed-forward) + returned: what a step has freed the next one takes. The
coefficients of H are measured (tests/test_memory.py).
"""

from __future__ import annotations

from vecferry.embeddings import Outputs
from vecferry.model.spec import EncoderSpec

FP32 = 4


def predicted_bytes(spec: EncoderSpec, rows: int, tokens: int, *, outputs: Outputs, padded: bool) -> int:
    """Predict the bytes of a run of `rows` texts, the longest of `tokens` tokens. padded: not all are that long."""
    in_all = rows * tokens
    attention = 9 * in_all * spec.hidden + (score_numbers(spec, in_all, tokens) if padded else 0)
    feed_forward = in_all * (5 * spec.hidden + 2 * spec.feed_forward)
    returned = 2 * in_all * spec.hidden if Outputs.COLBERT in outputs else 0
    return FP32 * (max(attention, feed_forward) + returned)


def score_numbers(spec: EncoderSpec, tokens: int, longest: int) -> int:
    return (spec.attention_heads + 1) * tokens * longest
