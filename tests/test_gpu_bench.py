"""The benchmark of a GPU, as far as a processor can run it."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu import DRY, measured, mixed, of_length
from bench.make_checkpoint import tokenizer_json
from vecferry.model.tokens import Tokenizer, canonical_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(canonical_tokenizer(tokenizer_json(4000), "XLMRobertaTokenizer"), 8192)


@pytest.mark.parametrize("length", [16, 128, 8192])
def test_texts_have_the_tokens_that_are_named_and_differ(length: int, tokenizer: Tokenizer) -> None:
    texts = of_length(length, 4 * length)
    assert len(set(texts)) == 4
    assert tokenizer(texts).lengths.tolist() == [length] * 4


def test_the_mix_is_of_different_texts_of_the_tokens_that_are_asked_for(tokenizer: Tokenizer) -> None:
    texts = mixed(["a short one", "one that is a little longer than that"], tokenizer, 500)
    assert len(set(texts)) == len(texts)
    assert 500 <= tokenizer(texts).lengths.sum() <= 700


@pytest.mark.slow
def test_a_dry_run_fills_the_whole_table(tmp_path: Path) -> None:
    report = measured(replace(DRY, tokens=200, rows=40, folder=tmp_path), ["a text", "another one of some length"])
    here = {name: row["cases"] for name, row in report["contenders"].items() if "cases" in row}
    assert {"vecferry PyTorch packed fp16", "vecferry ONNX fp16"} <= set(here)
    assert all(row["tokens_per_s"] > 0 for cases in here.values() for row in cases.values())
    assert "no processor has kernels" in report["contenders"]["vecferry ONNX packed fp16"]["not_here"]
    assert report["fp16_against_fp32"]["lowest_cosine"] >= 0.999
    assert set(report["migration"]["rows_per_s"]) == {"end_to_end", "store_alone", "encoder_alone"}
    assert report["migration"]["bounded_by"] in ("store_alone", "encoder_alone")
