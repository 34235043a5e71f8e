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
    originals = documents()
    embedded = VecferryDocumentEmbedder(encoder).run(originals)["documents"]
    assert np.array_equal(
        np.asarray([document.embedding for document in embedded], np.float32), encoder.encode(TEXTS).dense
    )
    assert [document.content for document in embedded] == TEXTS
    assert all(document.embedding is None for document in originals)
    query = VecferryTextEmbedder(encoder).run("ship")["embedding"]
    assert np.array_equal(np.float32(query), encoder.encode(["ship"], role="query").dense[0])


def test_sparse_vectors_are_the_librarys(encoder: Encoder) -> None:
    embedded = VecferrySparseDocumentEmbedder(encoder).run(documents())["documents"]
    expected = encoder.encode(TEXTS, outputs=Outputs.SPARSE).sparse
    for row, document in enumerate(embedded):
        assert document.sparse_embedding is not None
        assert dict(
            zip(document.sparse_embedding.indices, document.sparse_embedding.values, strict=True)
        ) == expected.row(row)
    query = VecferrySparseTextEmbedder(encoder).run("ship")["sparse_embedding"]
    weights = encoder.encode(["ship"], outputs=Outputs.SPARSE, role="query").sparse.row(0)
    assert (query.indices, query.values) == (list(weights), list(weights.values()))


def test_metadata_comes_before_the_content(encoder: Encoder) -> None:
    embedder = VecferryDocumentEmbedder(encoder, ["title", "none", "missing"], embedding_separator=" | ")
    (embedded,) = embedder.run(documents()[1:2])["documents"]
    expected = encoder.encode([f"no. 1 | {TEXTS[1]}"]).dense[0]
    assert np.array_equal(np.float32(embedded.embedding), expected)


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_the_wrong_kind_of_input_is_refused_and_none_at_all_is_not(embedder: Any, encoder: Encoder) -> None:
    if "Document" in embedder.__name__:
        assert embedder(encoder).run([]) == {"documents": []}
    for wrong in (["a text"], "a text" if "Document" in embedder.__name__ else [Document(content="a")]):
        with pytest.raises(TypeError, match=embedder.__name__):
            embedder(encoder).run(wrong)


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_a_component_is_rebuilt_from_its_dictionary(embedder: Any, connection: Connection, encoder: Encoder) -> None:
    document = embedder(connection)
    written = document.to_dict()
    assert written["init_parameters"]["encoder"] == {
        "artifact": connection.artifact,
        "api_key_env": "VECFERRY_API_KEYS",
    }
    again = embedder.from_dict(written)
    again.warm_up()
    originals = documents() if "Document" in embedder.__name__ else "ship"
    assert again.run(originals) == document.run(originals) == embedder(encoder).run(originals)
    assert again.to_dict() == written
    lost = embedder.from_dict(embedder(encoder).to_dict())
    with pytest.raises(SettingsError):
        lost.warm_up()


def pipelines(connection: Connection) -> tuple[Pipeline, Pipeline]:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine", index="vecferry")
    indexing, searching = Pipeline(), Pipeline()
    indexing.add_component("embedder", VecferryDocumentEmbedder(connection, embedding_separator=" "))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    searching.add_component("embedder", VecferryTextEmbedder(connection))
    searching.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    searching.connect("embedder.embedding", "retriever.query_embedding")
    allowed = ["vecferry.integrations.haystack"]
    both = [Pipeline.loads(document.dumps(), allowed_modules=allowed) for document in (indexing, searching)]
    return both[0], both[1]


def test_pipelines_from_their_files_find_the_text_itself(tiny_artifact: Any) -> None:
    indexing, searching = pipelines(Connection(str(tiny_artifact.path)))
    indexing.run({"embedder": {"documents": documents()[:4]}})
    (embedded,) = searching.run({"embedder": {"text": TEXTS[1]}})["retriever"]["documents"]
    assert embedded.content == TEXTS[1]
    later = asyncio.run(searching.run_async({"embedder": {"text": TEXTS[1]}}))
    assert later["retriever"]["documents"] == [embedded]
