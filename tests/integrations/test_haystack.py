import asyncio
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from tests.integrations.conftest import TEXTS
from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Encoder
from vecferry.errors import SettingsError
from vecferry.integrations.connecting import Connection
from vecferry.integrations.haystack import (
    VecferryDocumentEmbedder,
    VecferrySparseDocumentEmbedder,
    VecferrySparseTextEmbedder,
    VecferryTextEmbedder,
)

EMBEDDERS = [
    VecferryTextEmbedder,
    VecferryDocumentEmbedder,
    VecferrySparseTextEmbedder,
    VecferrySparseDocumentEmbedder,
]


def documents() -> list[Document]:
    return [Document(content=text, meta={"title": f"no. {i}", "none": None}) for i, text in enumerate(TEXTS)]


def test_dense_vectors_are_the_librarys(encoder: Encoder) -> None:
    given = documents()
    found = VecferryDocumentEmbedder(encoder).run(given)["documents"]
    assert np.array_equal(np.asarray([one.embedding for one in found], np.float32), encoder.encode(TEXTS).dense)
    assert [one.content for one in found] == TEXTS
    assert all(one.embedding is None for one in given)
    query = VecferryTextEmbedder(encoder).run("ship")["embedding"]
    assert np.array_equal(np.float32(query), encoder.encode(["ship"], role="query").dense[0])


def test_sparse_vectors_are_the_librarys(encoder: Encoder) -> None:
    found = VecferrySparseDocumentEmbedder(encoder).run(documents())["documents"]
    expected = encoder.encode(TEXTS, outputs=Outputs.SPARSE).sparse
    for row, one in enumerate(found):
        assert one.sparse_embedding is not None
        assert dict(zip(one.sparse_embedding.indices, one.sparse_embedding.values, strict=True)) == expected.row(row)
    query = VecferrySparseTextEmbedder(encoder).run("ship")["sparse_embedding"]
    weights = encoder.encode(["ship"], outputs=Outputs.SPARSE, role="query").sparse.row(0)
    assert (query.indices, query.values) == (list(weights), list(weights.values()))


def test_metadata_comes_before_the_content(encoder: Encoder) -> None:
    embedder = VecferryDocumentEmbedder(encoder, ["title", "none", "missing"], embedding_separator=" | ")
    (found,) = embedder.run(documents()[1:2])["documents"]
    expected = encoder.encode([f"no. 1 | {TEXTS[1]}"]).dense[0]
    assert np.array_equal(np.float32(found.embedding), expected)


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_the_wrong_kind_of_input_is_refused_and_none_at_all_is_not(embedder: Any, encoder: Encoder) -> None:
    if "Document" in embedder.__name__:
        assert embedder(encoder).run([]) == {"documents": []}
    for wrong in (["a text"], "a text" if "Document" in embedder.__name__ else [Document(content="a")]):
        with pytest.raises(TypeError, match=embedder.__name__):
            embedder(encoder).run(wrong)


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_a_component_is_rebuilt_from_its_dictionary(embedder: Any, connection: Connection, encoder: Encoder) -> None:
    one = embedder(connection)
    written = one.to_dict()
    assert written["init_parameters"]["encoder"] == {
        "artifact": connection.artifact,
        "api_key_env": "VECFERRY_API_KEYS",
    }
    again = embedder.from_dict(written)
    again.warm_up()
    given = documents() if "Document" in embedder.__name__ else "ship"
    assert again.run(given) == one.run(given) == embedder(encoder).run(given)
    assert again.to_dict() == written
    lost = embedder.from_dict(embedder(encoder).to_dict())
    with pytest.raises(SettingsError):
        lost.warm_up()


def pipelines(connection: Connection) -> tuple[Pipeline, Pipeline]:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine", index="vecferry")
    indexing, asking = Pipeline(), Pipeline()
    indexing.add_component("embedder", VecferryDocumentEmbedder(connection, embedding_separator=" "))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    asking.add_component("embedder", VecferryTextEmbedder(connection))
    asking.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    asking.connect("embedder.embedding", "retriever.query_embedding")
    allowed = ["vecferry.integrations.haystack"]
    both = [Pipeline.loads(one.dumps(), allowed_modules=allowed) for one in (indexing, asking)]
    return both[0], both[1]


def test_pipelines_from_their_files_find_the_text_itself(tiny_artifact: Any) -> None:
    indexing, asking = pipelines(Connection(str(tiny_artifact.path)))
    indexing.run({"embedder": {"documents": documents()[:4]}})
    (found,) = asking.run({"embedder": {"text": TEXTS[1]}})["retriever"]["documents"]
    assert found.content == TEXTS[1]
    later = asyncio.run(asking.run_async({"embedder": {"text": TEXTS[1]}}))
    assert later["retriever"]["documents"] == [found]
