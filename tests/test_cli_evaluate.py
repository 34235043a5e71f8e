"""`vecferry eval` as a user meets it, on a folder with a model of random weights."""

import json
from pathlib import Path

import pytest

from tests.test_cli import vecferry
from vecferry.model.artifact import Artifact

COUNT = 24
WORDS = ("ferry", "harbour", "ticket", "island", "captain", "lantern", "winter", "bridge")
"""Each query is the text of a passage, which any model finds, that of random weights too."""


def sentences(number: int) -> str:
    """Return two sentences that no other number has."""
    first, second = WORDS[number % 8], WORDS[number // 8]
    return f"The {first} number {number} stands here alone. A {second} with the {first} comes {number} days later."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    (made / "qrels").mkdir(parents=True)
    for name, prefix in (("corpus", "p"), ("queries", "q")):
        records = [{"_id": f"{prefix}{n}", "text": sentences(n), "lang": "en" if n % 2 else "xx"} for n in range(COUNT)]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [f"q{n}\tp{n}\t1\n" for n in range(COUNT)]
    (made / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return made


@pytest.fixture
def models(tiny_artifact: Artifact) -> list[str]:
    """Return options that name the same model on both sides, so that nothing changes."""
    return ["--new-model", str(tiny_artifact.path), "--old-model", str(tiny_artifact.path)]


def test_tables_show_slices_methods_thresholds_and_the_verdict(folder: Path, models: list[str]) -> None:
    done = vecferry("eval", str(folder), *models, "--threshold", "related=0.9", "--sample", "10")
    for expected_words in (
        f"nDCG@10 by slice, of {COUNT} judged queries", "language: en", "language: xx", "by method", "R@100",
        "tiny sparse", "tiny colbert", "tiny hybrid", "thresholds", "related", "near duplicates",
        "The new model is not worse: nDCG@10 went from 1.000 to 1.000 (+0.000 to +0.000 at 95% confidence)",
    ):  # fmt: skip
        assert expected_words in done.stdout


def test_json_is_the_whole_evaluation(folder: Path, models: list[str]) -> None:
    done = vecferry("eval", str(folder), *models, "--outputs", "dense", "--max-queries", "20", "--seed", "3", "--json")
    evaluation = json.loads(done.stdout)
    assert (evaluation["gate"]["verdict"], evaluation["evidence"], evaluation["queries_asked"]) == (
        "passed",
        "judged queries",
        20,
    )
    assert (evaluation["passages"], evaluation["hybrid"], len(evaluation["systems"])) == (COUNT, None, 2)
    assert evaluation["old"]["fingerprint"] == evaluation["new"]["fingerprint"]
    assert evaluation["old"]["bytes"] > 0
    assert evaluation["provenance"]["seed"] == 3
    assert evaluation["provenance"]["command"].startswith(f"vecferry eval {folder} --new-model")


def test_too_few_queries_are_refused_with_exit_code_4(folder: Path, models: list[str]) -> None:
    done = vecferry("eval", str(folder), *models, "--outputs", "dense", "--max-queries", "19", "--sample", "0", code=4)
    assert "19 queries are too few to judge by; 20 are needed." in done.stdout
    assert "error" not in done.stderr


def test_without_judgements_sentences_ask_for_their_passages_and_a_log_is_replayed(
    folder: Path, models: list[str], tmp_path: Path
) -> None:
    for path in (folder / "qrels" / "test.tsv", folder / "queries.jsonl"):
        path.unlink()
    (folder / "qrels").rmdir()
    log = tmp_path / "log.txt"
    log.write_text("where is the ferry?\nan island\n")
    options = ["--outputs", "dense", "--sample", "0", "--json"]
    evaluation = json.loads(vecferry("eval", str(folder), *models, *options).stdout)
    assert (evaluation["evidence"], evaluation["queries_asked"], evaluation["replay"]) == (
        "pairs from the corpus",
        COUNT,
        None,
    )
    evaluation = json.loads(vecferry("eval", str(folder), *models, *options, "--queries", str(log)).stdout)
    assert (evaluation["evidence"], evaluation["replay"]["queries"]) == ("query log", 2)
    assert evaluation["replay"]["overlap"]["mean"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "expected_words"),
    [
        (["nowhere"], ["--old-model", "the folder of the old model"]),
        (["nowhere", "--old-model", "old"], ["the labelled set=nowhere"]),
        ([], ["FOLDER", "--config"]),
        (["nowhere", "--threshold", "related"], ["--threshold=related", "NAME=COSINE"]),
        (["nowhere", "--threshold", "related=1.5"], ["--threshold=related=1.5"]),
        (["nowhere", "--threshold", "=0.5"], ["--threshold==0.5"]),
        (["nowhere", "--outputs", "title"], ["outputs=title"]),
        (["nowhere", "--margin", "2"], ["--margin"]),
        (["nowhere", "--max-queries", "0"], ["--max-queries"]),
        (["nowhere", "--config", "none.toml"], ["--config none.toml cannot be read"]),
    ],
)
def test_what_is_wrong_is_named_with_exit_code_2(
    arguments: list[str], expected_words: list[str], tmp_path: Path
) -> None:
    done = vecferry("eval", *arguments, code=2)
    for word in expected_words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_is_named(folder: Path) -> None:
    done = vecferry("eval", str(folder), "--old-model", "/nowhere", "--new-model", "/nowhere", code=3)
    assert "no converted model at /nowhere" in done.stderr
