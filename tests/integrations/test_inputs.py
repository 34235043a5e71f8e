"""What each face takes as texts, and what it refuses: the same everywhere."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from backend.core.embedding_utils import encode_text, encode_texts
from tests.integrations.conftest import TEXTS
from tests.server.inside import inside, unruly
from vecferry import dropin
from vecferry.embeddings import Float32
from vecferry.encode.adapted import Adaptation, adapted
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import LazyEncoder, Loaded
from vecferry.encode.runtime.lightweight import LightweightTokenizer
from vecferry.errors import InvalidText, VecferryError, WrongInputType, WrongTextType
from vecferry.integrations.chroma import VecferryEmbeddingFunction
from vecferry.integrations.flag_embedding import BGEM3FlagModel
from vecferry.integrations.haystack import VecferryTextEmbedder
from vecferry.integrations.langchain import VecferryEmbeddings
from vecferry.integrations.langchain_qdrant import VecferrySparseEmbeddings
from vecferry.integrations.llama_index import VecferryEmbedding, sparse_functions
from vecferry.integrations.sentence_transformers import SentenceTransformer

Face = Callable[[Any], Any]


def iterated(encoder: Encoder, texts: Any) -> Float32:
    return np.concatenate([part.dense for part in encoder.encode_iter(texts, texts_each=2)])


LISTS: dict[str, Callable[[Encoder], Face]] = {
    "Encoder.encode": lambda encoder: lambda texts: encoder.encode(texts).dense,
    "Encoder.encode, queries": lambda encoder: lambda texts: encoder.encode(texts, role="query").dense,
    "Encoder.encode_iter": lambda encoder: partial(iterated, encoder),
    "Encoder.prepare": lambda encoder: lambda texts: next(encoder.compute([encoder.prepare(texts)]))[1].dense,
    "an adapted encoder": lambda encoder: (
        lambda texts: adapted(encoder, Adaptation(max_characters=10**6)).encode(texts).dense
    ),
    "encode_texts": lambda encoder: encode_texts,
    "LangChain": lambda encoder: VecferryEmbeddings(encoder).embed_documents,
    "LlamaIndex": lambda encoder: VecferryEmbedding(encoder, embed_batch_size=2).get_text_embedding_batch,
    "Chroma": VecferryEmbeddingFunction,
    "Chroma, queries": lambda encoder: VecferryEmbeddingFunction(encoder).embed_query,
}
LISTS_AND_STRINGS: dict[str, Callable[[Encoder], Face]] = {
    "encode_text": lambda encoder: encode_text,
    "SentenceTransformer": lambda encoder: SentenceTransformer(encoder).encode,
    "SentenceTransformer, queries": lambda encoder: SentenceTransformer(encoder).encode_query,
    "BGEM3FlagModel": lambda encoder: lambda texts: BGEM3FlagModel(encoder).encode(texts)["dense_vecs"],
    "BGEM3FlagModel, queries": lambda encoder: (
        lambda texts: BGEM3FlagModel(encoder).encode_queries(texts)["dense_vecs"]
    ),
}
SPARSE: dict[str, Callable[[Encoder], Face]] = {
    "LangChain, sparse": lambda encoder: VecferrySparseEmbeddings(encoder).embed_documents,
    "LlamaIndex, sparse": lambda encoder: sparse_functions(encoder)[1],
}
DENSE = LISTS | LISTS_AND_STRINGS
SEQUENCES: dict[str, Callable[[list[str]], Any]] = {
    "tuple": tuple,
    "deque": deque,
    "array": np.array,
    "array of objects": lambda texts: np.array(texts, object),
    "Series": lambda texts: pd.Series(texts, index=range(len(texts), 0, -1)),
    "Series of objects": lambda texts: pd.Series(texts, dtype=object, index=[0] * len(texts)),
    "categories": lambda texts: pd.Series(texts, dtype="category"),
    "column": lambda texts: pd.DataFrame({"text": texts})["text"],
    "Index": pd.Index,
    "Arrow array": pa.array,
    "Arrow column": lambda texts: pa.table({"text": texts})["text"],
}
NO_SEQUENCES: dict[str, tuple[Any, str]] = {
    "dict": ({"a": "text"}, r"not dict. Pass its values: list\(texts.values\(\)\)."),
    "mapping": (MappingProxyType({"a": "text"}), "not mappingproxy. Pass its values"),
    "DataFrame": (pd.DataFrame({"text": TEXTS}), r"not DataFrame. Pass one of its columns: texts\['COLUMN'\]."),
    "Arrow table": (pa.table({"text": TEXTS}), "not Table. Pass one of its columns"),
    "set": ({"a", "b"}, r"not set. It has no order of its own: pass sorted\(texts\)."),
    "keys": ({"a": 1}.keys(), "not dict_keys. It has no order of its own"),
    "bytes": (b"text", r"not bytes. Pass \[text.decode\(\)\]."),
    "None": (None, "not None. Pass a list of strings."),
    "number": (7, "not int. Pass a list of strings."),
    "nan": (float("nan"), "not float. Pass a list of strings."),
    "array of no dimension": (np.array("text"), "not ndarray. Pass list"),
}
NO_TEXTS: dict[str, tuple[Any, str]] = {
    "None": (["a", "b", None], "text 2 is None."),
    "nan": (pd.Series(["a", "b", "c", float("nan")], dtype=object), "text 3 is a float: nan."),
    "NA": (pd.Series(["a", None], dtype="string"), "text 1 is a "),
    "Arrow null": (pa.array(["a", None]), "text 1 is None."),
    "number": (["a", 7], "text 1 is an int: 7."),
    "bytes": (["a", b"b"], "text 1 is a bytes: b'b'."),
    "nested": (["a", ["b", "c"]], r"text 1 is a list: \['b', 'c'\]."),
    "matrix": (np.array([["a", "b"], ["c", "d"]]), r"text 0 is a list: \['a', 'b'\]."),
    "numbers": (np.zeros(3), "text 0 is a float: 0.0."),
}


@pytest.fixture(autouse=True)
def _the_settings_encoder_is(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropin, "_default", LazyEncoder(lambda: Loaded(encoder, "the tests'")))


@pytest.mark.parametrize("face", DENSE)
def test_every_face_takes_every_sequence_of_strings(face: str, encoder: Encoder) -> None:
    encode = DENSE[face](encoder)
    expected = np.asarray(encode(TEXTS), np.float32)
    for name, made in SEQUENCES.items():
        np.testing.assert_allclose(np.asarray(encode(made(TEXTS)), np.float32), expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("face", SPARSE)
def test_sparse_faces_take_every_sequence_of_strings(face: str, encoder: Encoder) -> None:
    encode = SPARSE[face](encoder)
    for made in SEQUENCES.values():
        assert encode(made(TEXTS)) == encode(TEXTS)


@pytest.mark.parametrize("face", DENSE | SPARSE)
def test_every_face_refuses_what_is_no_sequence_and_says_what_to_pass(face: str, encoder: Encoder) -> None:
    encode = (DENSE | SPARSE)[face](encoder)
    for value, message in NO_SEQUENCES.values():
        with pytest.raises(WrongInputType, match=f"^a list of strings was expected, {message}") as refused:
            encode(value)
        assert isinstance(refused.value, TypeError)
        assert isinstance(refused.value, VecferryError)


@pytest.mark.parametrize("face", DENSE | SPARSE)
def test_every_face_names_the_item_that_is_no_text(face: str, encoder: Encoder) -> None:
    encode = (DENSE | SPARSE)[face](encoder)
    for value, message in NO_TEXTS.values():
        with pytest.raises(WrongTextType, match=f"^{message}") as refused:
            encode(value)
        assert isinstance(refused.value, TypeError)
    with pytest.raises(InvalidText, match="text 2 cannot be encoded: lone surrogate"):
        encode(["a", "b", "\ud800"])


@pytest.mark.parametrize("face", LISTS | SPARSE)
def test_a_string_is_not_taken_for_its_characters(face: str, encoder: Encoder) -> None:
    with pytest.raises(WrongInputType, match=r"a list of strings was expected, not str. Pass \[text\]."):
        (LISTS | SPARSE)[face](encoder)("text")


@pytest.mark.parametrize("face", LISTS_AND_STRINGS)
def test_a_string_is_a_text_of_its_own_where_that_is_documented(face: str, encoder: Encoder) -> None:
    encode = LISTS_AND_STRINGS[face](encoder)
    assert np.array_equal(encode("text"), encode(["text"])[0])
    assert np.array_equal(encode(np.str_("text")), encode("text"))


def test_generators_are_for_the_iterator_alone(encoder: Encoder) -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS

    assert np.array_equal(iterated(encoder, texts()), iterated(encoder, TEXTS))
    assert np.array_equal(iterated(encoder, dict(enumerate(TEXTS)).values()), iterated(encoder, TEXTS))
    for face in (DENSE | SPARSE).keys() - {"Encoder.encode_iter"}:
        with pytest.raises(WrongInputType, match=r"not generator. Pass list\(texts\)."):
            (DENSE | SPARSE)[face](encoder)(texts())


def test_the_iterator_refuses_at_the_call(encoder: Encoder) -> None:
    with pytest.raises(WrongInputType, match="not dict"):
        encoder.encode_iter({"a": "b"})


@pytest.mark.parametrize("value", [None, 7, float("nan"), b"text", ["a"]])
def test_a_single_text_is_a_string_everywhere(value: Any, encoder: Encoder) -> None:
    for face in (
        VecferryEmbeddings(encoder).embed_query,
        VecferrySparseEmbeddings(encoder).embed_query,
        VecferryEmbedding(encoder).get_query_embedding,
        VecferryEmbedding(encoder).get_text_embedding,
    ):
        with pytest.raises(WrongTextType, match="text 0 is "):
            face(value)
    with pytest.raises(WrongInputType, match="a string for VecferryTextEmbedder was expected, not "):
        VecferryTextEmbedder(encoder).run(value)


@pytest.mark.parametrize(
    "pairs",
    [[("a", "b")], np.array([["a", "b"]]), pd.Series([("a", "b")]), (("a", "b"),)],
    ids=["list", "array", "Series", "tuple"],
)
def test_pairs_are_a_sequence_of_two_texts_each(pairs: Any, encoder: Encoder) -> None:
    model = BGEM3FlagModel(encoder)
    assert model.compute_score(pairs) == model.compute_score([["a", "b"]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"a": "b"}, "a list of strings was expected, not dict"),
        ([("a", "b"), ("a",)], "a query and a passage in pair 1 was expected, not 1 texts"),
        ([("a", None)], "text 1 is None"),
        (["a", "b", "c"], "a query and a passage in pair 0"),
        (["ab", ("a", "b")], "text 1 is a tuple"),
    ],
)
def test_what_is_no_pair_is_refused(pairs: Any, message: str, encoder: Encoder) -> None:
    with pytest.raises((WrongInputType, WrongTextType), match=message):
        BGEM3FlagModel(encoder).compute_score(pairs)


def test_an_encoder_on_a_server_takes_and_refuses_the_same(plain_encoder: Encoder) -> None:
    with inside(unruly(plain_encoder)) as server, RemoteEncoder(server.url) as remote:
        expected = remote.encode(TEXTS).dense
        for made in SEQUENCES.values():
            assert np.array_equal(remote.encode(made(TEXTS)).dense, expected)


@pytest.mark.parametrize(("values", "error"), [(NO_SEQUENCES, WrongInputType), (NO_TEXTS, WrongTextType)])
def test_a_client_refuses_before_anything_is_sent(values: dict[str, Any], error: type[VecferryError]) -> None:
    with RemoteEncoder("http://127.0.0.1:9") as remote:
        for value, message in values.values():
            with pytest.raises(error, match=message):
                remote.encode(value)


def test_the_lightweight_tokenizer_takes_the_same() -> None:
    tokenize: Callable[[Any], Any] = LightweightTokenizer()
    ids: Sequence[int] = tokenize(TEXTS).ids.tolist()
    assert all(tokenize(made(TEXTS)).ids.tolist() == ids for made in SEQUENCES.values())
