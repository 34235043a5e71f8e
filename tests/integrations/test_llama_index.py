import asyncio
import pickle

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from tests.integrations.conftest import TEXTS
from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Encoder, Role
from vecferry.errors import SettingsError, SpaceMismatch
from vecferry.integrations.connecting import Connection
from vecferry.integrations.llama_index import VecferryEmbedding, sparse_functions
from vecferry.model.artifact import Artifact


@pytest.fixture
def model(connection: Connection) -> VecferryEmbedding:
    return VecferryEmbedding(connection)


@pytest.fixture
def nodes() -> list[TextNode]:
    return [TextNode(text=text) for text in TEXTS[:4]]


def test_texts_and_queries_get_the_librarys_vectors(model: VecferryEmbedding, encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS).dense
    assert np.array_equal(np.asarray(model.get_text_embedding_batch(TEXTS), np.float32), expected)
    text = model.get_text_embedding(TEXTS[0])
    assert np.array_equal(np.asarray(text, np.float32), encoder.encode(TEXTS[:1]).dense[0])
    query = model.get_query_embedding(TEXTS[0])
    assert np.array_equal(np.asarray(query, np.float32), encoder.encode(TEXTS[:1], role="query").dense[0])
    assert query != text


def test_the_asynchronous_forms_give_the_same(model: VecferryEmbedding) -> None:
    assert asyncio.run(model.aget_text_embedding_batch(TEXTS)) == model.get_text_embedding_batch(TEXTS)
    assert asyncio.run(model.aget_text_embedding("ship")) == model.get_text_embedding("ship")
    assert asyncio.run(model.aget_query_embedding("ship")) == model.get_query_embedding("ship")


def test_a_model_is_rebuilt_from_its_dictionary_and_from_a_pickle(model: VecferryEmbedding, encoder: Encoder) -> None:
    written = model.to_dict()
    assert written["connection"]["fingerprint"] == encoder.fingerprint
    for again in (VecferryEmbedding.from_dict(written), pickle.loads(pickle.dumps(model))):
        assert again.get_query_embedding("ship") == model.get_query_embedding("ship")
        assert again.embed_batch_size == 256


def test_a_dictionary_is_of_one_vector_space(model: VecferryEmbedding, tiny_artifact: Artifact) -> None:
    written = model.to_dict()
    written["connection"]["artifact"] = str(tiny_artifact.path)
    with pytest.raises(SpaceMismatch):
        VecferryEmbedding.from_dict(written).get_query_embedding("ship")


def test_an_encoder_without_an_address_cannot_be_found_again(encoder: Encoder) -> None:
    again = VecferryEmbedding.from_dict(VecferryEmbedding(encoder).to_dict())
    with pytest.raises(SettingsError):
        again.get_query_embedding("ship")


def test_a_retriever_finds_the_text_itself(plain_encoder: Encoder, nodes: list[TextNode]) -> None:
    index = VectorStoreIndex(nodes, embed_model=VecferryEmbedding(plain_encoder))
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve(TEXTS[1])
    assert hit.text == TEXTS[1]
    assert hit.score == pytest.approx(1, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")  # which LlamaIndex creates
def test_hybrid_search_in_qdrant_finds_the_text_itself(plain_encoder: Encoder, nodes: list[TextNode]) -> None:
    sparse_doc_fn, sparse_query_fn = sparse_functions(plain_encoder)
    client = QdrantClient(":memory:")
    store = QdrantVectorStore(
        "texts", client=client, enable_hybrid=True, sparse_doc_fn=sparse_doc_fn, sparse_query_fn=sparse_query_fn
    )
    model = VecferryEmbedding(plain_encoder)
    store.add([node.model_copy(update={"embedding": model.get_text_embedding(node.text)}) for node in nodes])
    retriever = VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever(
        similarity_top_k=1, vector_store_query_mode=VectorStoreQueryMode.HYBRID
    )
    assert [node.text for node in retriever.retrieve(TEXTS[3])] == [TEXTS[3]]
    client.close()


def test_the_sparse_functions_give_the_librarys_weights(encoder: Encoder) -> None:
    roles: tuple[Role, Role] = ("passage", "query")
    for function, role in zip(sparse_functions(encoder), roles, strict=True):
        indices, values = function(TEXTS)
        expected = encoder.encode(TEXTS, outputs=Outputs.SPARSE, role=role).sparse
        rows = [dict(zip(*row, strict=True)) for row in zip(indices, values, strict=True)]
        assert rows == [expected.row(i) for i in range(len(TEXTS))]
