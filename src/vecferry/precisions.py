"""How exactly a function is computed, and which of its forms may meet in one index.

A fingerprint is of the function. A form is how exactly it was computed; a verdict says how a form compares to fp32. A
mark has all three, and is what an index is known by: `HEX` for fp32, else `HEX:fp16:interchangeable`. See
docs/decisions/0042-one-function-several-precisions.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from vecferry.errors import PrecisionMismatch, SpaceMismatch

Precision = Literal["fp32", "fp16", "int8"]
Verdict = Literal["interchangeable", "queries only", "apart"]
Role = Literal["query", "passage"]
Head = Literal["dense", "sparse", "colbert"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""From the most that is allowed to the least."""
INTERCHANGEABLE_COSINE = 0.9999
"""Of every text, or token, of a form that is interchangeable with fp32."""
ROUNDED = ("fp16",)
"""Forms that lose as much of any text. What int8 loses of a text outside the ranges it was calibrated on, no cosine of
other texts says."""
QUERIES_LOSS = 0.005
"""Of nDCG@10 by queries in a form that may ask an fp32 index; the whole 95% interval is below it."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the one that allows least; `apart` for none."""
    return max(verdicts, key=VERDICTS.index, default="apart")


@dataclass(frozen=True)
class Form:
    """How exactly a function was computed.

    name: the precision, or the recipe that quantized it, such as int8-1. verdict: how it compares to fp32; two forms of
    one name are the same, whatever was measured of them. heads: the beginning of the digest of the weights of sparse
    and ColBERT, where there are such vectors.
    """

    name: str = "fp32"
    verdict: Verdict = field(default="interchangeable", compare=False)
    heads: str = field(default="", compare=False)

    @property
    def precision(self) -> str:
        return self.name.partition("-")[0]

    @property
    def is_as_fp32(self) -> bool:
        """Whether its vectors may stand in an fp32 index, and fp32 vectors in one of this form."""
        return self == FP32 or self.verdict == "interchangeable"


FP32 = Form()


@dataclass(frozen=True)
class Mark:
    """A function and a form: what some vectors were made with. As text it is what an index is marked with."""

    fingerprint: str
    form: Form = FP32

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Return the mark that `str` has written; text of another shape is the fingerprint of a function in fp32."""
        fingerprint, name, verdict, heads, *_ = (*text.split(":"), "", "", "")
        known: dict[str, Verdict] = {each: each for each in VERDICTS}
        return cls(fingerprint, Form(name, known[verdict], heads)) if verdict in known else cls(text)

    def __str__(self) -> str:
        parts = (self.fingerprint, self.form.name, self.form.verdict, self.form.heads)
        if self.form.heads:
            return ":".join(parts)
        return self.fingerprint if self.form == FP32 else ":".join(parts[:3])

    @property
    def key(self) -> str:
        """What bytes are kept under, also as a folder's name: one for the same bytes, whatever was measured of them."""
        form, heads = self.form, self.form.heads
        return self.fingerprint + ("" if form == FP32 else f"-{form.name}") + (f"-{heads}" if heads else "")

    @property
    def without_heads(self) -> Mark:
        """The mark of the dense vectors alone."""
        return replace(self, form=replace(self.form, heads=""))

    def require(self, index: Mark, role: Role, where: str) -> None:
        """Raise SpaceMismatch for vectors of another function, and PrecisionMismatch if `refusal` has a reason."""
        if self.fingerprint != index.fingerprint:
            raise SpaceMismatch(expected=str(index), found=str(self), where=where)
        if reason := self.refusal(index, role):
            raise PrecisionMismatch(str(index), str(self), where, role, reason)

    def refusal(self, index: Mark, role: Role) -> str:
        """Say why vectors of this mark may not be used in that role with an index of another; empty if they may."""
        if self.fingerprint != index.fingerprint:
            return "they are of another function"
        if self.form.heads and index.form.heads and self.form.heads != index.form.heads:
            return "their sparse and ColBERT heads have other weights"
        if self.form == index.form:
            return ""
        if not index.form.is_as_fp32:
            return f"an index in {index.form.name} takes {index.form.name} alone, which is {index.form.verdict}"
        if self.form.is_as_fp32 or (role == "query" and self.form.verdict == "queries only"):
            return ""
        allowed = (
            "may be used for queries alone" if self.form.verdict == "queries only" else "must stay apart from fp32"
        )
        return f"{self.form.name} {allowed}, as far as was measured"


# --- evidence -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """Queries in one form on passages in one form, by one head.

    smallest_cosine, mean_cosine: to fp32, of each text or token that is not in fp32, of both sets of texts. agreement:
    nDCG@10 on the shipped texts, of which fp32's ten nearest are relevant. ndcg: nDCG@10 on the labelled set; loss: how
    much less that is than fp32 on fp32, with its 95% interval from `low` to `high`; None without a set.
    """

    head: Head
    queries: str
    passages: str
    smallest_cosine: float
    mean_cosine: float
    agreement: float
    ndcg: float | None = None
    loss: float | None = None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict_of(measured: Sequence[Pairing]) -> Verdict:
    """Return what the pairings of one head allow; one that is not among them allows nothing."""
    narrower = next((each for each in measured if each.queries == each.passages != "fp32"), None)
    asking = next((each for each in measured if each.queries != "fp32" == each.passages), None)
    if narrower is not None and narrower.queries in ROUNDED and narrower.smallest_cosine >= INTERCHANGEABLE_COSINE:
        return "interchangeable"
    is_measured = asking is not None and asking.high is not None and asking.high <= QUERIES_LOSS
    return "queries only" if is_measured else "apart"


def verdicts_of(measured: Sequence[Pairing]) -> dict[Head, Verdict]:
    """Return the verdict of each head."""
    heads = dict.fromkeys(pairing.head for pairing in measured)
    return {head: verdict_of([pairing for pairing in measured if pairing.head == head]) for head in heads}
