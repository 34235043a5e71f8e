"""What is said about where vectors come from."""

from __future__ import annotations

from vecferry.migrate.provenance.values import Provenance

FOREIGN = 0.4
"""A median below this is no variant of the text but another model: unrelated spaces meet at about 0."""
UNIT_TOLERANCE = 0.01


def confirmed(seen: Provenance) -> str:
    """Say that the vectors are as the file says."""
    return f"{_matching(seen.matching, seen.rows)} what the old model makes of their text.{_unusual(seen)}"


def explained(seen: Provenance, causes: str) -> str:
    """Say what fits instead. causes: what is different from the file, in words."""
    assert seen.explained is not None, "it was explained"
    return (
        f"The vectors were not made as migration.toml says (median cosine {seen.median:.3f}), but with {causes}: so"
        f" {seen.explained:.0%} of {seen.rows} rows match.{_unusual(seen)}"
    )


def mixed(seen: Provenance, others: float) -> str:
    """Say that a part is as the file says. others: the median cosine of the rest."""
    what = "of another model" if others < FOREIGN else "made from something else, or their texts were edited since"
    return (
        f"Only {_matching(seen.matching, seen.rows)} what the old model makes of their text; the others are {what}"
        f" (median cosine {others:.3f}).{_unusual(seen)}"
    )


def unexplained(seen: Provenance, dimension: int) -> str:
    """Say that nothing fits. dimension: of the old model's vectors."""
    if dimension not in seen.dimensions and seen.median == 0:
        lengths = ", ".join(f"{length:,}" for length in sorted(seen.dimensions))
        return f"The vectors have {lengths} numbers and those of the old model {dimension:,}: it is another model."
    if seen.median < FOREIGN:
        return (
            f"The vectors were made by another model than the old one that is named (median cosine {seen.median:.3f},"
            f" and vectors of the same model and text have 1).{_unusual(seen)}"
        )
    return (
        f"The vectors were made from something else than this text (median cosine {seen.median:.3f}): a longer text,"
        f" another version of the model, a prefix, a text cut elsewhere. None of the usual causes fits.{_unusual(seen)}"
    )


def _matching(share: float, rows: int) -> str:
    return f"{share:.0%} of {rows} sampled vectors are"


def _unusual(seen: Provenance) -> str:
    """Say what else is unusual about the vectors; begins with a space, or is empty."""
    notes = []
    if len(seen.dimensions) > 1:
        lengths = ", ".join(f"{count} of {length:,}" for length, count in sorted(seen.dimensions.items()))
        notes.append(f" The vectors have different lengths: {lengths} numbers.")
    if not 1 - UNIT_TOLERANCE <= seen.shortest <= seen.longest <= 1 + UNIT_TOLERANCE:
        notes.append(
            f" The vectors were not normalised (lengths {seen.shortest:.2f} to {seen.longest:.2f}); the new ones are,"
            " so search by cosine, not by inner product."
        )
    return "".join(notes)
