import asyncio

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore, RetrievalMode

from tests.integrations.conftest import TEXTS
from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Encoder
from vecferry.integrations.connecting import Connection
from vecferry.integrations.langchain import VecferryEmbeddings
from vecferry.integrations.langchain_qdrant import VecferrySparseEmbeddings


@pytest.fixture
def embeddings(connection: Connection) -> VecferryEmbeddings:
    return VecferryEmbeddings(connection)


def test_documents_and_queries_get_the_librarys_vectors(embeddings: VecferryEmbeddings, encoder: Encoder) -> None:
    assert np.array_equal(np.asarray(embeddings.embed_documents(TEXTS), np.float32), encoder.encode(TEXTS).dense)
    queries = [embeddings.embed_query(text) for text in TEXTS[:2]]
    expected = [encoder.encode([text], role="query").dense[0] for text in TEXTS[:2]]
    assert np.array_equal(np.asarray(queries, np.float32), expected)
    assert queries[0] != embeddings.embed_documents(TEXTS)[0]
    assert embeddings.embed_documents([]) == []


def test_the_asynchronous_forms_give_the_same(embeddings: VecferryEmbeddings, encoder: Encoder) -> None:
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == embeddings.embed_documents(TEXTS)
    assert asyncio.run(embeddings.aembed_query("ship")) == embeddings.embed_query("ship")
    sparse = VecferrySparseEmbeddings(encoder)
    assert asyncio.run(sparse.aembed_documents(TEXTS)) == sparse.embed_documents(TEXTS)
    assert asyncio.run(sparse.aembed_query("ship")) == sparse.embed_query("ship")


def test_sparse_vectors_are_the_librarys_weights(encoder: Encoder) -> None:
    sparse = VecferrySparseEmbeddings(encoder)
    expected = encoder.encode(TEXTS, outputs=Outputs.SPARSE).sparse
    for row, vector in enumerate(sparse.embed_documents(TEXTS)):
        assert dict(zip(vector.indices, vector.values, strict=True)) == expected.row(row)
    query = encoder.encode(["ship"], outputs=Outputs.SPARSE, role="query").sparse
    assert sparse.embed_query("ship").indices == query.indices.tolist()
    assert sparse.embed_documents([]) == []


def test_a_store_in_memory_finds_the_text_itself(plain_encoder: Encoder) -> None:
    store = InMemoryVectorStore(VecferryEmbeddings(plain_encoder))
    store.add_documents([Document(page_content=text, id=str(i)) for i, text in enumerate(TEXTS[:4])])
    (document, score), *_ = store.similarity_search_with_score(TEXTS[1])
    assert document.page_content == TEXTS[1]
    assert score == pytest.approx(1, abs=1e-6)


def test_hybrid_search_in_qdrant_finds_the_text_itself(plain_encoder: Encoder) -> None:
    store = QdrantVectorStore.from_texts(
        TEXTS[:4],
        embedding=VecferryEmbeddings(plain_encoder),
        sparse_embedding=VecferrySparseEmbeddings(plain_encoder),
        retrieval_mode=RetrievalMode.HYBRID,
        location=":memory:",
        collection_name="texts",
    )
    for text in (TEXTS[1], TEXTS[3]):
        assert store.similarity_search(text, k=1)[0].page_content == text
    store.client.close()
