"""How far two sides give the same answers to the same queries, where nobody judged which are right."""

from __future__ import annotations

import numpy as np

from vecferry.embeddings import Int64
from vecferry.evaluate.metrics import Float64
from vecferry.evaluate.ranking import NONE

P = 0.9
"""The first ten answers then hold 86% of the weight."""


def overlap_at(a: Int64, b: Int64, k: int) -> Float64:
    """Return float64 [Q]: the share of the first k answers that both have.

    a and b: numbers of passages [Q, K], each once in a row, best first, -1 after the last. Where both have fewer than
    k, it is the share of the longer list; 1 where neither has any.
    """
    a, b = a[:, :k], b[:, :k]
    longer = np.maximum(_lengths(a), _lengths(b))
    common = _common_by_depth(a, b)[:, -1]
    return np.divide(common, longer, out=np.ones(len(a)), where=longer > 0)


def rank_biased_overlap(a: Int64, b: Int64, p: float = P) -> Float64:
    """Return float64 [Q], from 0 to 1: agreement of two rankings; depth d weighs p times as much as d - 1.

    Lists as in `overlap_at`. RBO_EXT of Webber, Moffat and Zobel, ACM TOIS 28(4), 2010, equation 32: beyond what is
    seen, the lists are taken to agree as much as at their ends. 1 where neither has any, 0 where one has none.
    """
    lengths_of_a, lengths_of_b = _lengths(a)[:, None], _lengths(b)[:, None]
    shorter, longer = np.minimum(lengths_of_a, lengths_of_b), np.maximum(lengths_of_a, lengths_of_b)  # [Q, 1]
    common = _common_by_depth(a, b)  # [Q, K]
    depth = np.arange(1, common.shape[1] + 1)
    at_shorter = np.take_along_axis(common, np.maximum(shorter - 1, 0), axis=1)  # [Q, 1]
    agreed = at_shorter / np.maximum(shorter, 1)
    shared = common + agreed * np.maximum(depth - shorter, 0)
    summed = (shared / depth * p**depth * (depth <= longer)).sum(axis=1, keepdims=True)
    beyond = (common[:, -1:] - at_shorter) / np.maximum(longer, 1) + agreed
    overlap = (1 - p) / p * summed + beyond * p**longer
    return np.where(longer > 0, overlap, 1.0)[:, 0].clip(0.0, 1.0)


def _lengths(answers: Int64) -> Int64:
    lengths: Int64 = (answers != NONE).sum(axis=1)
    return lengths


def _common_by_depth(a: Int64, b: Int64) -> Int64:
    """Return int64 [Q, K]: how many passages the first d of both have in common, for d from 1 to K."""
    new_at = np.zeros((len(a), max(a.shape[1], b.shape[1])), np.int64)
    for place in range(a.shape[1]):
        wanted = a[:, place, None]
        rows, places = np.nonzero((wanted == b) & (wanted != NONE))
        new_at[rows, np.maximum(place, places)] += 1
    common: Int64 = new_at.cumsum(axis=1)
    return common
