"""What goes to another process by a pickle: an address and options, no weights, no keys."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest

from tests.integrations.conftest import TEXTS
from tests.server.inside import inside, unruly
from vecferry.embeddings import Float32
from vecferry.encode.adapted import Adaptation, adapted
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder, TextEncoder
from vecferry.encode.loading import EncoderOptions, load_encoder, load_runtime
from vecferry.errors import ArtifactNotFound, InvalidText, NotPicklable, SpaceMismatch, VecferryError
from vecferry.integrations.chroma import VecferryEmbeddingFunction
from vecferry.integrations.connecting import Connection, EncoderLike
from vecferry.integrations.flag_embedding import BGEM3FlagModel
from vecferry.integrations.haystack import VecferryDocumentEmbedder, VecferryTextEmbedder
from vecferry.integrations.langchain import VecferryEmbeddings
from vecferry.integrations.langchain_qdrant import VecferrySparseEmbeddings
from vecferry.integrations.llama_index import VecferryEmbedding, sparse_functions
from vecferry.integrations.sentence_transformers import SentenceTransformer
from vecferry.model.artifact import Artifact

KEY = "a-key-of-the-tests-1234"
FACES: dict[str, tuple[Callable[[EncoderLike], Any], Callable[[Any], Any]]] = {
    "SentenceTransformer": (SentenceTransformer, lambda model: model.encode_query(TEXTS)),
    "BGEM3FlagModel": (BGEM3FlagModel, lambda model: model.encode_queries(TEXTS)["dense_vecs"]),
    "LangChain": (VecferryEmbeddings, lambda model: np.array(model.embed_documents(TEXTS))),
    "LangChain, sparse": (VecferrySparseEmbeddings, lambda model: np.array(model.embed_query("ship").values)),
    "LlamaIndex": (VecferryEmbedding, lambda model: np.array(model.get_text_embedding_batch(TEXTS))),
    "LlamaIndex, sparse": (sparse_functions, lambda model: np.array(model[0](TEXTS[:1])[1])),
    "Haystack": (VecferryTextEmbedder, lambda model: np.array(model.run("ship")["embedding"])),
    "Haystack, documents": (VecferryDocumentEmbedder, lambda model: np.array(model.run([])["documents"])),
    "Chroma": (VecferryEmbeddingFunction, lambda model: np.array(model(TEXTS))),
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: pickle.loads(cloudpickle.dumps(value)),
    "twice": lambda value: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(value)))),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def dense(encoder: TextEncoder) -> Float32:
    return encoder.encode(TEXTS, role="query").dense


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("face", FACES)
def test_every_face_is_copied_with_the_same_vectors(
    face: str, way: str, connection: Connection, encoder: Encoder
) -> None:
    make, use = FACES[face]
    for source in (connection, connection.open(), encoder):
        original = make(source)
        assert np.array_equal(use(COPIES[way](original)), use(original))


@pytest.mark.parametrize("way", COPIES)
def test_an_encoder_is_copied_with_the_same_vectors_and_options(way: str, encoder: Encoder) -> None:
    again = COPIES[way](encoder)
    assert isinstance(again, Encoder)
    assert np.array_equal(dense(again), dense(encoder))
    assert again.limits == encoder.limits
    assert again.max_positions == encoder.max_positions
    assert np.array_equal(next(again.encode_iter(TEXTS)).dense, encoder.encode(TEXTS).dense)


@pytest.mark.parametrize("name", ["onnx", pytest.param("torch", marks=pytest.mark.slow), "lightweight"])
def test_every_runtime_is_opened_again(name: Any, tiny_artifact: Artifact) -> None:
    encoder = load_runtime(EncoderOptions(artifact=tiny_artifact.path), name)
    again = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(dense(again), dense(encoder))
    assert again.runtime.name == name


def test_an_adapted_encoder_is_pickled_with_its_adaptation(encoder: Encoder) -> None:
    cut = adapted(encoder, Adaptation(max_characters=3, prefix="a: "))
    again = pickle.loads(pickle.dumps(cut))
    assert again.fingerprint == cut.fingerprint
    assert np.array_equal(dense(again), dense(cut))


def test_a_pickle_is_small_and_nothing_is_opened_before_it_is_used(
    tiny_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(tiny_artifact.path)
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder(EncoderOptions(artifact=Path("model"))).encoder
    written = pickle.dumps(encoder)
    assert len(written) < 2000
    monkeypatch.chdir("/")
    assert np.array_equal(dense(pickle.loads(written)), dense(encoder))
    (tmp_path / "model").unlink()
    again = pickle.loads(written)
    with pytest.raises(ArtifactNotFound):
        again.encode(TEXTS)
    with pytest.raises(AttributeError, match="an Encoder has no attribute 'weights'"):
        _ = again.weights


def test_a_pickle_is_of_one_vector_space(tiny_artifact: Artifact, prefixed_artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(tiny_artifact.path)
    written = pickle.dumps(Encoder.open(folder))
    folder.unlink()
    folder.symlink_to(prefixed_artifact.path)
    with pytest.raises(SpaceMismatch, match="the model of a pickle"):
        pickle.loads(written).encode(TEXTS)


def test_an_encoder_of_parts_is_copied_and_not_pickled(encoder: Encoder) -> None:
    parts = Encoder(encoder.tokenizer, encoder.runtime)
    assert copy.deepcopy(parts) is parts
    with pytest.raises(NotPicklable, match=r"this Encoder cannot be pickled.*Encoder\.open") as refused:
        pickle.dumps(parts)
    assert isinstance(refused.value, TypeError)
    for make, _ in FACES.values():
        with pytest.raises(NotPicklable):
            pickle.dumps(make(parts))


def test_an_encoder_on_a_server_is_pickled_by_its_address(plain_encoder: Encoder) -> None:
    with inside(unruly(plain_encoder)) as server, RemoteEncoder(server.url, model="tiny", timeout_s=60) as remote:
        for copied in COPIES.values():
            with copied(remote) as again:
                assert np.array_equal(dense(again), dense(plain_encoder))
        connected = Connection(url=server.url, api_key_env="NOT_SET").open()
        assert pickle.loads(pickle.dumps(connected)) is connected
        connected.close()


def test_a_key_is_never_in_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9"
    monkeypatch.setenv("KEY_OF_THE_VECTORS", KEY)
    connection = Connection(url=url, api_key_env="KEY_OF_THE_VECTORS")
    for value in (connection, connection.open(), VecferryEmbeddings(connection), VecferryEmbeddings(connection.open())):
        assert KEY.encode() not in pickle.dumps(value)
    monkeypatch.setenv("KEY_OF_THE_VECTORS", "another-key-of-the-other-side")
    with RemoteEncoder(url, api_key=KEY) as remote:
        for keyed in (remote, VecferryEmbeddings(remote), VecferryEmbedding(remote)):
            with pytest.raises(NotPicklable, match=r"a RemoteEncoder with an api_key .*Connection\(url=URL"):
                pickle.dumps(keyed)
        with copy.deepcopy(remote) as again:
            assert again._http.headers["authorization"] == f"Bearer {KEY}"


def test_a_password_in_a_url_is_never_in_a_pickle() -> None:
    url = "http://user:hunter2@127.0.0.1:9"
    with RemoteEncoder(url) as remote:
        for value in (remote, Connection(url=url), Connection(url=url).open()):
            with pytest.raises(NotPicklable) as refused:
                pickle.dumps(value)
            assert "hunter2" not in str(refused.value)
            copy.deepcopy(value)


def errors_of_the_tree(base: type[VecferryError] = VecferryError) -> list[type[VecferryError]]:
    return [base, *(kind for each in base.__subclasses__() for kind in errors_of_the_tree(each))]


@pytest.mark.parametrize("kind", errors_of_the_tree(), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_from_another_process(kind: type[VecferryError]) -> None:
    error = kind.__new__(kind)
    vars(error).update(dict.fromkeys(getattr(kind, "__dataclass_fields__", {}), "value"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again)) == (kind, vars(error))


def test_an_error_keeps_its_message_in_a_pickle() -> None:
    error = InvalidText(row=3, reason="so")
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)


def query_vectors(model: SentenceTransformer) -> Float32:
    vectors: Float32 = model.encode_query(TEXTS)
    return vectors


@pytest.mark.slow
def test_a_spawned_process_gives_the_same_bits(connection: Connection, encoder: Encoder) -> None:
    expected = dense(encoder)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(query_vectors, (SentenceTransformer(connection),)), expected)
        assert np.array_equal(pool.apply(dense, (encoder,)), expected)
        for make, use in FACES.values():
            original = make(connection)
            vectors = pool.apply(used, (cloudpickle.dumps(use), original))
            assert np.array_equal(vectors, use(original))
        with pytest.raises(InvalidText, match="text 1 cannot be encoded"):
            pool.apply(encoder.encode, (["a", "\ud800"],))


@pytest.mark.slow
def test_joblib_gives_the_same_bits(connection: Connection, encoder: Encoder) -> None:
    jobs = [joblib.delayed(query_vectors)(SentenceTransformer(connection)) for _ in range(2)]
    for vectors in joblib.Parallel(n_jobs=2)(jobs):
        assert np.array_equal(vectors, dense(encoder))


def used(use: bytes, model: Any) -> Any:
    return pickle.loads(use)(model)
