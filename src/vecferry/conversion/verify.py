"""Is the converted model right? Checks, their tolerances, and a report that says what was not checked.

Probes are texts of several scripts and random token ids at the lengths that break things. The model
is compared with itself (alone, in a batch, padded, permuted), with PyTorch where that is installed
and the checkpoint at hand, and with BGE-M3's published values where the checkpoint is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vecferry.conversion.calibration import comparison_texts
from vecferry.conversion.onnx_file import external_weights
from vecferry.embeddings import Embeddings, Float32, Outputs, TokenBatch, colbert_scores, dense_scores, lexical_scores
from vecferry.encode.runtime import Runtime
from vecferry.encode.runtime.host import machine
from vecferry.errors import VerificationFailed, cut_repr
from vecferry.model.artifact import PIECES, Artifact
from vecferry.model.tokens import open_tokenizer
from vecferry.precisions import Precision

# What is allowed at most, and why.
TOLERANCES = {  # largest absolute differences
    "reference": 1e-4,  # fp32 both: order of summation and fused kernels; 24 layers were seen to stay far below
    "itself": 1e-4,  # the same, for kernels that differ with the shape of the batch
    "unit_norm": 1e-4,
    "published": 5e-3,  # published in fp16 and rounded to four digits
}
LOSSES: dict[Precision, dict[str, float]] = {  # of a narrower precision against fp32
    "int8": {"dense": 0.005, "sparse": 0.02, "colbert": 0.02, "ndcg": 0.005, "itself": 0.05},
    "fp16": {"dense": 0.0005, "sparse": 0.002, "colbert": 0.002, "ndcg": 0.002, "itself": 0.01},
}
"""dense: 1 - cosine, the worst text's. sparse: the same, the mean of the texts. colbert: the mean of the tokens. ndcg:
nDCG@10, absolute. itself: largest absolute difference; a sum that differs in its last digit may round to the next of
the few values."""
LENGTHS = (1, 2, 3, 8, 64, 512)  # and the model's maximum
TEXTS = (
    "",
    "a",
    "What is BGE M3?",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "ما هي عاصمة فرنسا؟",
    "如何把向量迁移到新的模型？",
    "שלום עולם",
    "👩‍👩‍👧‍👦 family 🚢",
    "  spaces before and after  ",
    "¿Dónde está la biblioteca? " * 12,
)
AS_FP32: dict[str, Any] = {"precision": "fp32", "recipe": None, "verdicts": {}}
READ_BY_OTHERS = "the reference was read by others"
PUBLISHED_WEIGHTS = "b5e0ce3470abf5ef3831aa1bd5553b486803e83251590ab7ff35a117cf6aad38"
"""SHA-256 of pytorch_model.bin of BAAI/bge-m3, the checkpoint that the published values belong to."""


@dataclass(frozen=True)
class ConversionCheck:
    """One check and its outcome. value: the figure that was measured; limit: what it may be at most.

    batch: of a question that is asked of several, the one that this is the answer for.
    """

    question: str
    status: Literal["passed", "failed", "skipped"]
    value: float | None = None
    limit: float | None = None
    note: str = ""
    batch: str = ""

    @property
    def name(self) -> str:
        """The question with its batch; no two checks of a report have the same."""
        return f"{self.question}, {self.batch}" if self.batch else self.question

    def to_dict(self) -> dict[str, Any]:
        facts = {"status": self.status, "value": self.value, "limit": self.limit, "note": self.note}
        return {"name": self.name, **facts}

    def __str__(self) -> str:
        figures = "" if self.value is None else f" {self.value:.2g} (at most {self.limit:.2g})"
        return f"{self.name}{figures}{': ' + self.note if self.note else ''}"


@dataclass(frozen=True)
class Report:
    """The checks of an artifact, as verification.json holds them."""

    fingerprint: str
    machine: dict[str, str]
    checks: tuple[ConversionCheck, ...]

    @property
    def failed(self) -> list[str]:
        return [str(check) for check in self.checks if check.status == "failed"]

    def with_checks(self, *more: ConversionCheck) -> Report:
        return replace(self, checks=(*self.checks, *more))

    def to_dict(self) -> dict[str, Any]:
        checks = [check.to_dict() for check in self.checks]
        return {"passed": not self.failed, "fingerprint": self.fingerprint, "machine": self.machine, "checks": checks}

    def gate(self, path: Path) -> None:
        """Raise VerificationFailed if a check failed."""
        if self.failed:
            raise VerificationFailed(path, self.failed)


@dataclass(frozen=True)
class Reference:
    """The reference runtime, opened when the converted model's own results are in (one model in memory at a time).

    open: None where it cannot be had, and `missing` says why.
    token_ids: returns those that it gives to texts, or None where it has no tokenizer.
    """

    open: Callable[[], Runtime] | None
    missing: str = ""
    token_ids: Callable[[Sequence[str]], list[list[int]] | None] = lambda _: None


Progress = Callable[[str], None]


def verify(
    artifact: Artifact, open_runtime: Callable[[], Runtime], reference: Reference, progress: Progress = lambda _: None
) -> Report:
    """Run every check that can be run; nothing is raised for one that fails (see `Report.gate`).

    An fp32 model must agree with the reference; one of a narrower precision must keep what `LOSSES` allow.
    """
    probes = _probes(artifact)
    progress("digests")
    checks = [_digests(artifact), _weights_are_finite(artifact), *_mapped_tokenizer(artifact)]
    runtime = open_runtime()
    results = {}
    for name, batch in probes.items():
        progress(f"running {name}")
        results[name] = runtime.run(batch, artifact.manifest.space.outputs)
    checks += _well_formed(artifact, results)
    progress("comparing the model with itself")
    checks += _agrees_with_itself(runtime, probes, results)
    if artifact.manifest.space.precision == "fp32":
        checks += _published_values(artifact, runtime)
        del runtime
        checks += _agrees_with_reference(probes, results, reference, progress)
    else:
        progress("encoding texts to compare with fp32")
        batches = _comparison(artifact)
        kept = [runtime.run(batch, artifact.manifest.space.outputs) for batch in batches]
        del runtime
        checks += _keeps_fp32(artifact, batches, kept, reference, progress)
    return Report(artifact.fingerprint, machine(), tuple(checks))


# --- probes ---------------------------------------------------------------------------------------


def _probes(artifact: Artifact) -> dict[str, TokenBatch]:
    """Return batches by name: the texts, then one text of random tokens per length."""
    manifest = artifact.manifest
    tokenizer = open_tokenizer(artifact)
    texts = tokenizer(TEXTS)
    random = np.random.default_rng(0)
    beginning, end = texts.ids[0], texts.ids[texts.indptr[1] - 1]
    probes = {"texts": texts}
    for length in sorted({min(n, manifest.space.max_tokens) for n in (*LENGTHS, manifest.space.max_tokens)}):
        inner = random.integers(5, manifest.encoder.vocabulary - 1, max(length - 2, 0))
        probes[f"{length} tokens"] = TokenBatch.from_lists([[beginning, *inner, end][:length]])
    return probes


def _comparison(artifact: Artifact) -> list[TokenBatch]:
    """Return the texts that were not calibrated with, in batches of equal length."""
    space = artifact.manifest.space
    tokens = open_tokenizer(artifact)(comparison_texts(), space.passage_prefix)
    return [tokens.take(np.flatnonzero(tokens.lengths == length)) for length in np.unique(tokens.lengths)]


# --- checks ---------------------------------------------------------------------------------------


def _digests(artifact: Artifact) -> ConversionCheck:
    damaged = list(artifact.damaged_files())
    return ConversionCheck(
        "files have the manifest's SHA-256", "failed" if damaged else "passed", note="; ".join(damaged)
    )


def _mapped_tokenizer(artifact: Artifact) -> Iterator[ConversionCheck]:
    """Compare the mapped form of the vocabulary, where the artifact has one, with tokenizer.json."""
    if PIECES in artifact.manifest.files:
        texts = [*TEXTS, *comparison_texts()]
        ours, theirs = (open_tokenizer(artifact, mapped=mapped)(texts) for mapped in (True, False))
        is_same = np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.indptr, theirs.indptr)
        yield ConversionCheck("the mapped tokenizer has tokenizer.json's token ids", "passed" if is_same else "failed")


def _weights_are_finite(artifact: Artifact) -> ConversionCheck:
    """Look at every number; a probe would not meet the one word whose embedding is damaged."""
    weights = external_weights(artifact.path)
    damaged = [name for name, array in weights if not all(np.isfinite(rows).all() for rows in _some_rows(array))]
    return ConversionCheck("every weight is finite", "failed" if damaged else "passed", note=", ".join(damaged))


def _some_rows(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the array in parts of about 16 MB."""
    return iter(np.array_split(array, -(-array.nbytes // (1 << 24)) or 1))


def at_most(question: str, value: float, limit: float, note: str = "", batch: str = "") -> ConversionCheck:
    """Return a check that passed if the value is within the limit."""
    if not np.isfinite(value):  # JSON has no NaN
        return ConversionCheck(question, "failed", None, limit, "the difference is not a finite number", batch)
    return ConversionCheck(question, "passed" if value <= limit else "failed", float(value), limit, note, batch)


def _well_formed(artifact: Artifact, results: dict[str, Embeddings]) -> Iterator[ConversionCheck]:
    space = artifact.manifest.space
    arrays = [array for embeddings in results.values() for array in _arrays(embeddings).values()]
    finite = all(np.isfinite(array).all() for array in arrays)
    yield ConversionCheck("every number is finite", "passed" if finite else "failed")
    shapes = {embeddings.dense.shape[1] for embeddings in results.values()}
    note = f"dimension {', '.join(map(str, sorted(shapes)))}"
    yield ConversionCheck(
        "dense has the manifest's dimension", "passed" if shapes == {space.dimension} else "failed", note=note
    )
    texts = results["texts"].dense  # [T, D]
    nearest = min(float(np.abs(texts[:i] - texts[i]).max(axis=1).min()) for i in range(1, len(texts)))
    yield ConversionCheck(
        "different texts have different vectors",
        "passed" if nearest > TOLERANCES["itself"] else "failed",
        note=f"the nearest two differ by {nearest:.2g}",
    )
    if space.normalize:
        norms = [np.linalg.norm(embeddings.dense, axis=1) for embeddings in results.values()]
        worst = max(float(np.abs(norm - 1).max()) for norm in norms)
        yield at_most("dense vectors have unit length", worst, TOLERANCES["unit_norm"])


def _agrees_with_itself(
    runtime: Runtime, probes: dict[str, TokenBatch], results: dict[str, Embeddings]
) -> Iterator[ConversionCheck]:
    """Compare the texts, run as one padded batch, with each alone and with the batch in another order."""
    outputs, texts, together = runtime.space.outputs, probes["texts"], results["texts"]
    precision = runtime.space.precision
    limit = TOLERANCES["itself"] if precision == "fp32" else LOSSES[precision]["itself"]
    alone = Embeddings.concat([runtime.run(texts.take(np.array([row])), outputs) for row in range(len(texts))])
    yield at_most("a text alone equals itself in a padded batch", difference(together, alone), limit)
    order = np.arange(len(texts))[::-1]
    reordered = runtime.run(texts.take(order), outputs).take(order)
    yield at_most("a permuted batch gives permuted results", difference(together, reordered), limit)
    if outputs != Outputs.DENSE:  # then the last layer is computed for one token of each text
        dense = runtime.run(texts, Outputs.DENSE).dense
        yield at_most("dense alone equals dense beside other outputs", _largest(dense, together.dense), limit)
    long = probes["512 tokens"] if "512 tokens" in probes else probes[list(probes)[-1]]
    beside = TokenBatch.from_lists([probes["8 tokens"].ids.tolist(), long.ids.tolist()])
    padded = runtime.run(beside, outputs).take(np.array([0]))
    yield at_most("8 tokens padded far equal themselves alone", difference(padded, results["8 tokens"]), limit)


def _agrees_with_reference(
    probes: dict[str, TokenBatch], results: dict[str, Embeddings], reference: Reference, progress: Progress
) -> Iterator[ConversionCheck]:
    if reference.open is None:
        yield ConversionCheck("agrees with PyTorch", "skipped", note=reference.missing)
        return
    runtime = reference.open()
    keys = {runtime.space.key, *(embeddings.mark.key for embeddings in results.values())}
    if len(keys) > 1:
        yield ConversionCheck("agrees with PyTorch", "failed", note="the checkpoint is not the one that was converted")
        return
    yield _read_by_others(runtime)
    yield _same_tokens(probes["texts"], reference)
    for name, batch in probes.items():
        progress(f"PyTorch, {name}")
        expected = runtime.run(batch, runtime.space.outputs)
        for output, worst in differences(results[name], expected).items():
            yield at_most(f"{output} agrees with PyTorch", worst, TOLERANCES["reference"], batch=name)


def _read_by_others(runtime: Runtime) -> ConversionCheck:
    """Say who read the checkpoint for the reference; where we did, it would share a misreading of ours."""
    reader = runtime.describe().get("files read by", "vecferry")
    return ConversionCheck(READ_BY_OTHERS, "skipped" if reader.startswith("vecferry") else "passed", note=reader)


def _same_tokens(texts: TokenBatch, reference: Reference) -> ConversionCheck:
    question = "texts have the reference's token ids"
    expected = reference.token_ids(TEXTS)
    if expected is None:
        return ConversionCheck(question, "skipped", note="transformers has no tokenizer for the checkpoint")
    ids = [texts.ids[start:stop].tolist() for start, stop in pairwise(texts.indptr)]
    differing = [text for text, ours, theirs in zip(TEXTS, ids, expected, strict=True) if ours != theirs]
    return ConversionCheck(question, "failed" if differing else "passed", note=", ".join(map(cut_repr, differing)))


def _keeps_fp32(
    artifact: Artifact, batches: list[TokenBatch], kept: list[Embeddings], reference: Reference, progress: Progress
) -> Iterator[ConversionCheck]:
    if reference.open is None:
        yield ConversionCheck("keeps what fp32 has", "skipped", note=reference.missing)
        return
    progress("encoding them in fp32")
    runtime = reference.open()
    if runtime.space.key != artifact.manifest.space.model_copy(update=AS_FP32).key:
        yield ConversionCheck("keeps what fp32 has", "failed", note="the checkpoint is not the one that was converted")
        return
    expected = Embeddings.concat([runtime.run(batch, runtime.space.outputs) for batch in batches])
    yield from _losses(Embeddings.concat(kept), expected, LOSSES[artifact.manifest.space.precision])


def _losses(kept: Embeddings, expected: Embeddings, limits: dict[str, float]) -> Iterator[ConversionCheck]:
    """Return 1 - cosine with fp32, of each text's dense and lexical vector and of each token's ColBERT vector."""
    lost = float((1 - cosines_of(kept.dense, expected.dense)).max())
    yield at_most("dense: 1 - cosine with fp32 at worst", lost, limits["dense"])
    if expected.sparse_or_none is not None:
        pairs = [(kept.sparse.row(i), expected.sparse.row(i)) for i in range(len(kept))]
        lost = float(np.mean([1 - lexical_cosine(*pair) for pair in pairs]))
        yield at_most("sparse: 1 - cosine with fp32 on average", lost, limits["sparse"])
    if expected.colbert_or_none is not None:
        lost = float((1 - cosines_of(kept.colbert.vectors, expected.colbert.vectors)).mean())
        yield at_most("colbert: 1 - cosine with fp32 by token on average", lost, limits["colbert"])


def _published_values(artifact: Artifact, runtime: Runtime) -> Iterator[ConversionCheck]:
    """Compare with BGE-M3's model card: scores of two queries and passages, lexical weights of the first query."""
    if artifact.manifest.source.files.get("pytorch_model.bin") != PUBLISHED_WEIGHTS:
        yield ConversionCheck("agrees with BGE-M3's published values", "skipped", note="these are not BGE-M3's weights")
        return
    tokenizer = open_tokenizer(artifact)
    queries = runtime.run(tokenizer(["What is BGE M3?", "Defination of BM25"]), Outputs.ALL)
    passages = runtime.run(
        tokenizer([
            "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
            "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms "
            "appearing in each document",
        ]),
        Outputs.ALL,
    )  # fmt: skip
    weights = {tokenizer.text_of(i).strip("▁"): w for i, w in queries.sparse.row(0).items()}
    published = {"What": 0.08356, "is": 0.0814, "B": 0.1296, "GE": 0.252, "M": 0.1702, "3": 0.2695, "?": 0.04092}
    comparisons = {
        "dense scores": (dense_scores(queries, passages), [[0.6265, 0.3477], [0.3499, 0.6780]]),
        "lexical score of the first pair": (lexical_scores(queries, passages)[0, 0], 0.1955),
        "lexical score of the two queries": (lexical_scores(queries, queries)[0, 1], 0.0),
        "ColBERT scores of the first query": (colbert_scores(queries, passages)[0], [0.7797, 0.4620]),
        "lexical weights": ([weights.get(token, 0.0) for token in published], list(published.values())),
    }
    for name, (values, expected) in comparisons.items():
        worst = float(np.abs(np.asarray(values) - np.asarray(expected)).max())
        yield at_most(f"BGE-M3's published {name}", worst, TOLERANCES["published"])


# --- differences ----------------------------------------------------------------------------------


def _arrays(embeddings: Embeddings) -> dict[str, Any]:
    arrays: dict[str, Any] = {"dense": embeddings.dense}
    if embeddings.sparse_or_none is not None:
        arrays["sparse"] = embeddings.sparse.weights
    if embeddings.colbert_or_none is not None:
        arrays["colbert"] = embeddings.colbert.vectors
    return arrays


def differences(a: Embeddings, b: Embeddings) -> dict[str, float]:
    """Return the largest absolute difference by output; a lexical weight that one side lacks counts as 0 there."""
    worst = {name: _largest(a_, b_) for (name, a_), b_ in zip(_arrays(a).items(), _arrays(b).values(), strict=True)}
    if "sparse" in worst:
        worst["sparse"] = max(_lexical_difference(a.sparse.row(i), b.sparse.row(i)) for i in range(len(a)))
    return worst


def difference(a: Embeddings, b: Embeddings) -> float:
    """Return the largest of `differences`, NaN if there is one."""
    return float(np.max(list(differences(a, b).values())))


def _largest(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max(initial=0)) if a.shape == b.shape else float("inf")


def _lexical_difference(a: dict[int, float], b: dict[int, float]) -> float:
    return max((abs(a.get(i, 0.0) - b.get(i, 0.0)) for i in a.keys() | b.keys()), default=0.0)


def cosines_of(a: Float32, b: Float32) -> Float32:
    """Return the cosines of rows: [N, D] twice -> [N]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("nd,nd->n", a, b) / norms, np.float32)


def lexical_cosine(a: dict[int, float], b: dict[int, float]) -> float:
    """Return the cosine of two sparse vectors; 1 for two that are empty."""
    norms = float(np.linalg.norm(list(a.values())) * np.linalg.norm(list(b.values())))
    return sum(a[i] * b[i] for i in a.keys() & b.keys()) / norms if norms else float(a == b)
