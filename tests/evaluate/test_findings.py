"""What is planted in a sample is found, and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vecferry.embeddings import Embeddings, Float32
from vecferry.errors import EmptyInput
from vecferry.evaluate.findings import ROWS_EACH, Sampled, look_at
from vecferry.evaluate.values import CorpusFinding


def unit(vectors: NDArray[np.floating[Any]]) -> Float32:
    scaled: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def scattered(count: int, seed: int) -> Float32:
    """Return vectors around one direction, so that each has its nearest at much the same cosine."""
    return unit(1 + 0.5 * np.random.default_rng(seed).normal(size=(count, 24)))


def embedded(vectors: Float32, tokens: Sequence[int] = (), truncated_rows: Sequence[int] = ()) -> Embeddings:
    """Return embeddings of these vectors. truncated_rows: rows that were longer than the model reads."""
    truncated = np.isin(np.arange(len(vectors)), truncated_rows)
    return Embeddings("", np.array(tokens or [8] * len(vectors), np.int64), truncated, vectors)


def sampled(old: Embeddings, new: Embeddings, texts: Sequence[str] = ()) -> Sampled:
    ids = tuple(f"p{number}" for number in range(len(old)))
    return Sampled(ids, tuple(texts) or tuple(f"text {i}" for i in ids), old, new, "small", "large", 10, 1000)


def findings_of(sample: Sampled) -> dict[str, CorpusFinding]:
    return {finding.name: finding for finding in look_at(sample)}


def circle() -> Float32:
    """Return 60 vectors, each found by exactly ten others.

    Neighbours on a plain circle have a cosine of cos(2π / 60) = 0.9945, too near to count as different, so every second
    one is lifted into a third dimension: 0.975.
    """
    number = np.arange(60)
    angle = number * 2 * np.pi / 60
    return unit(np.stack([np.cos(angle), np.sin(angle), np.where(number % 2, 0.2, 0.0)], axis=1))


def test_an_ordinary_sample_has_every_finding_with_nothing_in_it() -> None:
    findings = look_at(sampled(embedded(circle()), embedded(circle())))
    assert [(finding.name, finding.of) for finding in findings] == [
        ("hidden by truncation", 60),
        ("duplicates", 60),
        ("near duplicates", 60),
        ("outliers", 60),
        ("empty neighbourhoods", 60),
    ]
    for finding in findings:
        assert (finding.count, finding.examples) == (0, ())
        assert finding.message.startswith("None of 60 passages is ")


def test_what_the_old_model_cut_and_the_new_one_reads_is_told_with_the_part_never_seen() -> None:
    # Texts that both read whole have two new tokens to an old one: 40 new tokens are worth 20, of which 10 were read.
    texts = ("a" * 10, "b" * 10, "c" * 200, "d" * 300, "e" * 9000)
    old = embedded(scattered(5, 1), [5, 5, 10, 10, 10], truncated_rows=[2, 3, 4])
    new = embedded(scattered(5, 2), [10, 10, 40, 80, 1000], truncated_rows=[4])
    finding = findings_of(sampled(old, new, texts))["hidden by truncation"]
    assert (finding.count, finding.of) == (2, 5)
    assert finding.message == (
        "2 of 5 passages are cut by the old model and read whole by the new (small reads 10 tokens, large 1,000); "
        "1 is cut even by the new."
    )
    assert finding.examples == (
        ("p3", "d" * 300, "the old model never saw about 225 of 300 characters; 80 tokens to the new model"),
        ("p2", "c" * 200, "the old model never saw about 100 of 200 characters; 40 tokens to the new model"),
    )


def test_a_part_that_cannot_be_told_is_not_made_up() -> None:
    old, new = embedded(scattered(2, 1), [10, 10], truncated_rows=[0, 1]), embedded(scattered(2, 2), [40, 50])
    finding = findings_of(sampled(old, new, ("a" * 200, "b" * 300)))["hidden by truncation"]
    assert [note for _, _, note in finding.examples] == [
        "the old model never saw the end of 300 characters; 50 tokens to the new model",
        "the old model never saw the end of 200 characters; 40 tokens to the new model",
    ]


def test_equal_texts_are_duplicates_and_not_near_duplicates() -> None:
    vectors = scattered(5, 3)
    vectors[[2, 4]] = vectors[0]
    findings = findings_of(sampled(embedded(vectors), embedded(vectors), ("one", "two", " one\n", "three", "one")))
    finding = findings["duplicates"]
    assert (finding.count, finding.of) == (2, 5)
    assert finding.message == "2 of 5 passages are the same, word for word, as an earlier one."
    assert [(name, note) for name, _, note in finding.examples] == [
        ("p2", "the same text as p0"),
        ("p4", "the same text as p0"),
    ]
    assert (findings["near duplicates"].count, findings["near duplicates"].of) == (0, 3)


def test_near_duplicates_are_looked_for_in_the_new_space_and_a_pair_is_shown_once() -> None:
    old, new = scattered(6, 4), scattered(6, 5)
    old[3] = old[2]
    new[5] = unit(new[1:2] + 0.01)[0]
    finding = findings_of(sampled(embedded(old), embedded(new)))["near duplicates"]
    assert (finding.count, finding.of) == (2, 6)
    assert [(name, note) for name, _, note in finding.examples] == [("p1", f"cosine {new[1] @ new[5]:.3f} with p5")]


def test_outliers_are_told_farthest_first() -> None:
    vectors = scattered(80, 6)
    vectors[11] = unit(np.tile([[1, -1]], 12))[0]
    vectors[40] = -vectors[0]
    finding = findings_of(sampled(embedded(scattered(80, 7)), embedded(vectors)))["outliers"]
    cosines = vectors @ vectors.T - 2 * np.eye(80)
    assert (finding.count, finding.of) == (2, 80)
    assert [(name, note) for name, _, note in finding.examples] == [
        (f"p{row}", f"cosine {cosines[row].max():.3f} with the nearest, p{cosines[row].argmax()}") for row in (40, 11)
    ]


def test_templates_do_not_make_every_other_text_an_outlier() -> None:
    # 100 fillings of one template, all within a cosine of 0.999 of each other, beside 60 ordinary texts.
    templates = unit(np.array([0, 0, 1]) + 0.001 * np.random.default_rng(8).normal(size=(100, 3)))
    vectors = np.concatenate([templates, circle()])
    findings = findings_of(sampled(embedded(vectors), embedded(vectors)))
    assert findings["near duplicates"].count == 100
    assert findings["outliers"].count == 0


def test_outliers_are_not_looked_for_in_a_handful() -> None:
    vectors = scattered(49, 6)
    vectors[40] = -vectors[0]
    finding = findings_of(sampled(embedded(vectors), embedded(vectors)))["outliers"]
    assert finding.count == 0
    assert finding.message == "Outliers are not looked for in fewer than 50 passages that have no near duplicate."


def test_a_passage_that_no_other_leads_to_has_an_empty_neighbourhood() -> None:
    # Twelve that are near each other are each other's ten nearest, so nothing leads to the thirteenth in the new space.
    old, new = scattered(13, 10), scattered(13, 11)
    new[12] = -new[0]
    findings = findings_of(sampled(embedded(old), embedded(new)))
    finding = findings["empty neighbourhoods"]
    times_in_old, times_in_new = times_found(old), times_found(new)
    assert (finding.count, finding.of) == (1, 13)
    assert [name for name, _, _ in finding.examples] == ["p12"]
    assert finding.examples[0][2] == f"among the 10 nearest of {times_in_old[12]} others in the old space"
    assert finding.message == (
        "1 of 13 passages is among the 10 nearest of no other in the new space, and none is in the old; the passage "
        f"found most often, p{times_in_new.index(12)}, is among those of 12 others, "
        f"against {max(times_in_old)} in the old space."
    )


def times_found(vectors: Float32) -> list[int]:
    """Count by a loop over whole rows how often each vector is among the ten nearest of another."""
    times = [0] * len(vectors)
    for number, row in enumerate(vectors @ vectors.T):
        for other in [int(best) for best in np.argsort(-row) if best != number][:10]:
            times[other] += 1
    return times


def test_neighbours_found_block_by_block_are_those_of_the_whole() -> None:
    """The tenth neighbour and the next are 7e-6 apart at least, so that no rounding decides between them."""
    count = ROWS_EACH + 90
    distance = np.random.default_rng(16).uniform(0.3, 2, size=(count, 1))  # from the middle, where the hubs are
    old, new = (unit(1 + distance * np.random.default_rng(seed).normal(size=(count, 40))) for seed in (17, 25))
    finding = findings_of(sampled(embedded(old), embedded(new)))["empty neighbourhoods"]
    in_old, in_new = times_found(old), times_found(new)
    unreached = [number for number in range(count) if in_new[number] == 0]
    assert finding.count == len(unreached) > 5
    first = sorted(unreached, key=lambda number: -in_old[number])[:5]
    assert [name for name, _, _ in finding.examples] == [f"p{number}" for number in first]
    assert f"{in_old.count(0)} {'is' if in_old.count(0) == 1 else 'are'} in the old" in finding.message
    assert f"those of {max(in_new)} others, against {max(in_old)} in the old space" in finding.message


@pytest.mark.parametrize("count", [1, 2, 11])
def test_a_few_passages_are_looked_at_without_a_neighbourhood(count: int) -> None:
    findings = findings_of(sampled(embedded(scattered(count, 14)), embedded(scattered(count, 15))))
    assert {finding.count for finding in findings.values()} == {0}
    assert (
        findings["empty neighbourhoods"].message
        == "Empty neighbourhoods are not looked for in fewer than 12 distinct passages."
    )


def test_no_passages_are_refused() -> None:
    nothing = embedded(np.zeros((0, 24), np.float32))
    with pytest.raises(EmptyInput):
        look_at(sampled(nothing, nothing))
