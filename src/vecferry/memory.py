"""What a run of an encoder takes beside its weights, known from its shape before it runs.

With T = rows x tokens, H the hidden size, F the feed-forward size and A the heads of attention, in fp32 numbers:

    layer         14·T·H            residual, query, key and value (their product, its split, per head), results
    scores        (A + 1)·T·tokens  each pair of tokens, and the mask; only where there is padding
    feed-forward  2·T·F             the inner values before and after GELU
    returned      2·T·H             ColBERT: what the model gives, and the same without its padding

A run takes layer + max(scores, feed-forward) + returned: the runtime's arena keeps what a layer has freed, and
what comes after goes into it only where it fits. The coefficients of H are measured (tests/test_memory.py).
"""

from __future__ import annotations

from vecferry.embeddings import Outputs
from vecferry.spec import EncoderSpec

FP32 = 4


def predicted_bytes(spec: EncoderSpec, rows: int, tokens: int, *, outputs: Outputs, padded: bool) -> int:
    """Bytes of a run of `rows` texts, the longest of `tokens` tokens. padded: not all are of that length."""
    in_all = rows * tokens
    scores = score_numbers(spec, in_all, tokens) if padded else 0
    returned = returned_numbers(spec, in_all) if Outputs.COLBERT in outputs else 0
    return FP32 * (layer_numbers(spec, in_all) + max(scores, feed_forward_numbers(spec, in_all)) + returned)


def layer_numbers(spec: EncoderSpec, tokens: int) -> int:
    return 14 * tokens * spec.hidden


def score_numbers(spec: EncoderSpec, tokens: int, longest: int) -> int:
    return (spec.attention_heads + 1) * tokens * longest


def feed_forward_numbers(spec: EncoderSpec, tokens: int) -> int:
    return 2 * tokens * spec.feed_forward


def returned_numbers(spec: EncoderSpec, tokens: int) -> int:
    return 2 * tokens * spec.hidden
