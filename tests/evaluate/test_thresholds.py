"""Cut-offs of planted scores, mapped to scores that are distributed in another way."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vecferry.embeddings import Float32
from vecferry.evaluate.statistics import Resampling
from vecferry.evaluate.thresholds import BY_PRECISION, BY_QUANTILE, Scored, all_mapped, mapped
from vecferry.evaluate.values import Threshold

HOW = Resampling()
CUT = 0.6


def planted(seed: int = 0, queries: int = 200, k: int = 10) -> Scored:
    """Return planted hits: the higher the score, the likelier a hit is relevant."""
    random = np.random.default_rng(seed)
    scores = -np.sort(-random.uniform(0.2, 0.9, (queries, k)).astype(np.float32), axis=1)
    relevant = random.random(scores.shape) < (scores - 0.2) / 0.7
    return Scored(scores, np.ones(scores.shape, bool), relevant)


def unjudged(scored: Scored) -> Scored:
    return replace(scored, relevant=None)


def of_rows(*rows: list[float], relevant: list[list[bool]] | None = None) -> Scored:
    scores = np.array(rows, np.float32)
    return Scored(scores, np.isfinite(scores), None if relevant is None else np.array(relevant))


def gap(scores: Float32, at: float) -> float:
    """Return the distance between the scores on either side of a value, and the next ones to them."""
    ordered = np.sort(scores.ravel())
    place = int(np.searchsorted(ordered, at))
    near = ordered[max(place - 2, 0) : place + 2]
    return float(near.max() - near.min())


def image(score: Float32 | float) -> Float32 | float:
    return 0.5 * score + 0.3


@pytest.mark.parametrize("cut_off", [0.4, 0.6, 0.8])
def test_scores_that_are_only_moved_and_stretched_map_a_cut_off_to_its_image_by_quantile(cut_off: float) -> None:
    old = unjudged(planted())
    new = replace(old, scores=np.asarray(image(old.scores), np.float32))
    threshold = mapped("similar", cut_off, old, new, HOW)
    assert (threshold.name, threshold.old, threshold.method) == ("similar", cut_off, BY_QUANTILE)
    assert threshold.new == pytest.approx(image(cut_off), abs=gap(new.scores, float(image(cut_off))))
    assert threshold.new_share == threshold.old_share == old.share(cut_off)
    assert (threshold.old_precision, threshold.new_precision) == (None, None)


@pytest.mark.parametrize("cut_off", [0.4, 0.6, 0.8])
def test_the_same_hits_are_as_precise_at_the_image_by_precision(cut_off: float) -> None:
    """Below the image, a lower cut-off may be as precise by chance; precision falls with the score, so not much lower.

    With 2,000 hits the precision of the lowest tenth above a cut-off varies by about 0.03, which is 0.03 · 0.7 of a
    score before it is halved.
    """
    old = planted()
    new = replace(old, scores=np.asarray(image(old.scores), np.float32))
    threshold = mapped("similar", cut_off, old, new, HOW)
    assert threshold.method == BY_PRECISION
    one_gap = gap(new.scores, float(image(cut_off)))
    assert image(cut_off) - 0.02 <= threshold.new <= image(cut_off) + one_gap
    assert threshold.new_precision is not None
    assert threshold.old_precision is not None
    assert threshold.new_precision >= threshold.old_precision


def test_where_precision_falls_with_every_hit_the_image_is_found_exactly() -> None:
    old = of_rows([0.9, 0.8, 0.7], [0.6, 0.5, 0.4], relevant=[[True, True, True], [False, False, False]])
    new = replace(old, scores=np.asarray(image(old.scores), np.float32))
    threshold = mapped("similar", 0.55, old, new, HOW)  # 3 of 4
    assert threshold.new == pytest.approx(image(0.6))
    assert threshold.method == BY_PRECISION
    assert threshold.old_precision == threshold.new_precision == 0.75


def test_equal_scores_pass_together_and_count_together() -> None:
    """Were the tie cut in two, the first of it alone would seem precise."""
    old = of_rows([0.9, 0.2], [0.8, 0.1], relevant=[[True, False], [True, False]])
    new = of_rows([0.9, 0.5], [0.7, 0.5], relevant=[[True, True], [True, False]])
    threshold = mapped("similar", 0.5, old, new, HOW)
    assert threshold.method == BY_PRECISION
    assert threshold.new == pytest.approx(0.7)
    assert threshold.new_precision == threshold.old_precision == 1.0


def test_where_every_new_hit_is_precise_enough_the_quantile_stands_in() -> None:
    old = planted()
    assert old.relevant is not None
    threshold = mapped("similar", CUT, old, replace(old, relevant=np.ones_like(old.relevant)), HOW)
    assert threshold.method == BY_QUANTILE
    assert threshold.new == pytest.approx(CUT, abs=gap(old.scores, CUT))


def test_where_no_new_hit_is_precise_enough_the_quantile_stands_in() -> None:
    old = planted()
    assert old.relevant is not None
    threshold = mapped("similar", CUT, old, replace(old, relevant=np.zeros_like(old.relevant)), HOW)
    assert (threshold.method, threshold.new_precision) == (BY_QUANTILE, 0.0)


def test_a_cut_off_that_no_hit_passes_is_mapped_to_one_that_none_passes() -> None:
    threshold = mapped("duplicate", 0.95, planted(1), planted(2), HOW)
    highest = float(planted(2).scores.max())
    assert threshold.method == BY_QUANTILE
    assert highest < threshold.new < highest + 1e-6
    assert threshold.old_share == threshold.new_share == 0
    assert planted(2).share(threshold.new) == 0


def test_a_cut_off_that_every_hit_passes_is_mapped_to_one_that_all_pass() -> None:
    threshold = mapped("any", -1.0, unjudged(planted(1)), unjudged(planted(2)), HOW)
    assert threshold.new == planted(2).scores.min()
    assert threshold.old_share == threshold.new_share == 1


def test_hits_that_are_not_there_count_nowhere() -> None:
    nothing = -np.inf
    old = of_rows([0.9, 0.5, nothing], [nothing, nothing, nothing])
    new = of_rows([0.7, nothing, nothing], [0.6, 0.3, 0.2])
    threshold = mapped("similar", 0.6, old, new, HOW)
    assert (threshold.old_share, threshold.new_share) == (0.5, 0.5)
    assert 0.3 < threshold.new <= 0.6
    assert np.isfinite([threshold.new, threshold.low, threshold.high]).all()


def test_without_any_new_hit_the_cut_off_stays() -> None:
    nothing = of_rows([-np.inf])
    threshold = mapped("similar", CUT, of_rows([0.9]), nothing, HOW)
    assert (threshold.new, threshold.low, threshold.high, threshold.new_share) == (CUT, CUT, CUT, 0.0)


@pytest.mark.parametrize("cut_off", [0.3, 0.6, 0.88, 0.95])
@pytest.mark.parametrize("known", ["judged", "unjudged"])
def test_the_interval_holds_the_point_and_the_seed_alone_decides(cut_off: float, known: str) -> None:
    old, new = planted(3, queries=40), planted(4, queries=40)
    if known == "unjudged":
        old, new = unjudged(old), unjudged(new)
    threshold, again = (mapped("similar", cut_off, old, new, Resampling(seed=1)) for _ in range(2))
    assert threshold == again
    assert threshold.low <= threshold.new <= threshold.high
    assert threshold.low < threshold.high


def test_more_queries_narrow_the_interval() -> None:
    def width(threshold: Threshold) -> float:
        return threshold.high - threshold.low

    few, many = (mapped("similar", CUT, planted(5, n), planted(6, n), HOW) for n in (30, 1000))
    assert width(many) < width(few)


SCORES = arrays.arrays(np.float32, (5, 4), elements=st.floats(-1, 1, width=16))


@settings(max_examples=40)
@given(old=SCORES, new=SCORES, cuts=st.lists(st.floats(-1, 1), min_size=2, max_size=5))
def test_by_quantile_a_higher_cut_off_never_maps_to_a_lower_one(old: Float32, new: Float32, cuts: list[float]) -> None:
    is_hit = np.ones((5, 4), bool)
    mapped_cuts = [
        mapped("similar", cut_off, Scored(old, is_hit), Scored(new, is_hit), HOW).new for cut_off in sorted(cuts)
    ]
    assert mapped_cuts == sorted(mapped_cuts)


def test_by_precision_a_higher_cut_off_that_is_less_precise_maps_to_a_lower_one() -> None:
    """As precise as the old one is what was asked for, and the best old hit is not relevant."""
    old = of_rows([0.9, 0.8, 0.7, 0.6, 0.5], relevant=[[False, True, True, False, False]])
    new = of_rows([0.95, 0.85, 0.75, 0.65, 0.55], relevant=[[True, True, False, False, False]])
    lower, higher = (mapped("similar", cut_off, old, new, HOW) for cut_off in (0.65, 0.75))
    assert lower.method == higher.method == BY_PRECISION
    assert lower.old_precision == pytest.approx(2 / 3)
    assert lower.new == pytest.approx(0.75)
    assert higher.old_precision == pytest.approx(1 / 2)
    assert higher.new == pytest.approx(0.65)


def test_together_a_stricter_cut_off_never_becomes_a_looser_one() -> None:
    """The same scores, where the higher one alone would map to 0.65."""
    old = of_rows([0.9, 0.8, 0.7, 0.6, 0.5], relevant=[[False, True, True, False, False]])
    new = of_rows([0.95, 0.85, 0.75, 0.65, 0.55], relevant=[[True, True, False, False, False]])
    thresholds = all_mapped({"higher": 0.75, "lower": 0.65}, old, new, HOW)
    values = [(threshold.name, round(threshold.new, 6)) for threshold in thresholds]
    assert values == [("lower", 0.75), ("higher", 0.75)]
    assert thresholds[1].new_share == pytest.approx(3 / 5)
    assert all(threshold.low <= threshold.new <= threshold.high for threshold in thresholds)
