"""Which forms of one function may meet, in which role, and what an index is marked with."""

from itertools import product

import numpy as np
import pytest

from vecferry.embeddings import Embeddings, dense_scores, lexical_scores
from vecferry.errors import PrecisionMismatch, SpaceMismatch
from vecferry.precisions import FP32, Form, Mark, Pairing, Role, Verdict, verdict_of, worst

F = "f" * 64
FP16, POOR_FP16 = Form("fp16", "interchangeable"), Form("fp16", "apart")
INT8, POOR_INT8, OTHER_INT8 = Form("int8-1", "queries only"), Form("int8-1", "apart"), Form("int8-2", "queries only")
FORMS = {"fp32": FP32, "fp16": FP16, "poor fp16": POOR_FP16, "int8": INT8, "poor int8": POOR_INT8, "int8-2": OTHER_INT8}
ALLOWED: dict[tuple[str, Role], set[str]] = {  # by the index and the role: whose vectors
    ("fp32", "query"): {"fp32", "fp16", "int8", "int8-2"},
    ("fp32", "passage"): {"fp32", "fp16"},
    ("fp16", "query"): {"fp32", "fp16", "poor fp16", "int8", "int8-2"},
    ("fp16", "passage"): {"fp32", "fp16", "poor fp16"},
    ("poor fp16", "query"): {"fp16", "poor fp16"},
    ("poor fp16", "passage"): {"fp16", "poor fp16"},
    ("int8", "query"): {"int8", "poor int8"},
    ("int8", "passage"): {"int8", "poor int8"},
    ("poor int8", "query"): {"int8", "poor int8"},
    ("poor int8", "passage"): {"int8", "poor int8"},
    ("int8-2", "query"): {"int8-2"},
    ("int8-2", "passage"): {"int8-2"},
}


@pytest.mark.parametrize(("index", "role"), ALLOWED)
def test_what_may_meet_an_index_in_a_role_is_what_was_measured(index: str, role: Role) -> None:
    marked = Mark(F, FORMS[index])
    allowed = {name for name, form in FORMS.items() if not Mark(F, form).refusal(marked, role)}
    assert allowed == ALLOWED[index, role]


@pytest.mark.parametrize(("one", "other"), list(product(FORMS, FORMS)))
def test_two_functions_never_meet(one: str, other: str) -> None:
    for role in ("query", "passage"):
        with pytest.raises(SpaceMismatch) as caught:
            Mark(F, FORMS[one]).require(Mark("e" * 64, FORMS[other]), role, "a search")
        assert not isinstance(caught.value, PrecisionMismatch)


def test_a_refusal_names_form_role_and_reason() -> None:
    with pytest.raises(PrecisionMismatch) as caught:
        Mark(F, INT8).require(Mark(F), "passage", "a write to docs")
    assert caught.value.message == (
        "a write to docs: not to be used for a passage: int8-1 may be used for queries alone, as far as was measured."
    )
    assert "vecferry convert" in caught.value.hint
    assert Mark(F).refusal(Mark(F, INT8), "query") == "an index in int8-1 takes int8-1 alone, which is queries only"


@pytest.mark.parametrize("form", [*FORMS.values(), Form(heads="abc"), Form("fp16", "interchangeable", "abc")])
def test_a_mark_is_read_back_with_its_verdict(form: Form) -> None:
    again = Mark.parse(str(Mark(F, form)))
    assert (again, again.form.verdict, again.form.heads) == (Mark(F, form), form.verdict, form.heads)


def test_fp32_is_marked_with_the_fingerprint_alone_and_other_text_is_a_fingerprint() -> None:
    assert str(Mark(F)) == F
    assert str(Mark(F, FP16)) == f"{F}:fp16:interchangeable"
    assert Mark.parse("unknown:space").fingerprint == "unknown:space"


def test_bytes_are_kept_by_form_and_heads_whatever_was_measured() -> None:
    keys = [Mark(F, form).key for form in (FP32, FP16, POOR_FP16, INT8, OTHER_INT8, Form(heads="abc"))]
    assert keys == [F, f"{F}-fp16", f"{F}-fp16", f"{F}-int8-1", f"{F}-int8-2", f"{F}-abc"]


def test_other_heads_may_meet_by_dense_vectors_alone() -> None:
    one, other = (made(Form(heads=heads)) for heads in ("abc", "def"))
    assert dense_scores(one, other).shape == (1, 1)
    with pytest.raises(PrecisionMismatch, match="heads have other weights"):
        lexical_scores(one, other)


def test_scores_across_forms_need_a_verdict_and_parts_are_never_joined() -> None:
    assert dense_scores(made(INT8), made(FP16)).shape == (1, 1)
    with pytest.raises(PrecisionMismatch):
        dense_scores(made(FP32), made(INT8))
    with pytest.raises(SpaceMismatch, match="a part to be joined"):
        Embeddings.concat([made(FP32), made(FP16)])
    assert Embeddings.concat([made(INT8), made(INT8)]).take(np.array([1])).form == INT8


def made(form: Form) -> Embeddings:
    one = np.ones(1, np.int64)
    return Embeddings(F, one, np.zeros(1, bool), np.ones((1, 2), np.float32), form=form)


# --- evidence -------------------------------------------------------------------------------------


def pairings(form: str, smallest: float, high: float | None) -> list[Pairing]:
    """Return the four of a head: queries that lose up to `high`, and passages that lose more."""
    loss = {("fp32", "fp32"): 0.0, (form, "fp32"): high, ("fp32", form): 0.1, (form, form): 0.1}
    return [
        Pairing("dense", *names, 1.0 if names == ("fp32", "fp32") else smallest, 1.0, 1.0, high=each)
        for names, each in loss.items()
    ]


@pytest.mark.parametrize(
    ("form", "smallest", "high", "expected"),
    [("fp16", 0.9999, None, "interchangeable"), ("fp16", 0.99989, 0.005, "queries only"),
     ("fp16", 0.99989, None, "apart"), ("fp16", float("nan"), float("nan"), "apart"),
     ("int8-1", 1.0, None, "apart"), ("int8-1", 0.99, 0.005, "queries only"), ("int8-1", 0.99, 0.0051, "apart")],
)  # fmt: skip
def test_a_verdict_needs_the_smallest_cosine_or_the_whole_interval(
    form: str, smallest: float, high: float | None, expected: Verdict
) -> None:
    assert verdict_of(pairings(form, smallest, high)) == expected


def test_pairings_that_are_missing_allow_nothing() -> None:
    assert verdict_of([]) == "apart"
    assert verdict_of(pairings("int8-1", 0.99, 0.0)[:1]) == "apart"


def test_several_heads_have_the_verdict_that_allows_least() -> None:
    assert worst(["interchangeable", "queries only"]) == "queries only"
    assert worst([]) == "apart"
