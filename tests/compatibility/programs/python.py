"""Embed texts with one client of a Python package: `python python.py NAME`, in whatever environment has that package.

Reads {"url": of the server, "texts": [...]} as JSON, and prints a list of vectors. Imports nothing of vecferry.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

Texts = list[str]
MODEL = "tiny"


def openai_client(url: str, texts: Texts) -> Any:
    from openai import OpenAI

    answer = OpenAI(base_url=f"{url}/v1", api_key="none").embeddings.create(model=MODEL, input=texts)
    return [row.embedding for row in answer.data]


def openai_async(url: str, texts: Texts) -> Any:
    from openai import AsyncOpenAI

    async def embed() -> Any:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answer = await client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
            return [row.embedding for row in answer.data]

    return asyncio.run(embed())


def huggingface_hub(url: str, texts: Texts) -> Any:
    from huggingface_hub import InferenceClient

    return InferenceClient(model=url).feature_extraction(texts).tolist()


def langchain_openai(url: str, texts: Texts) -> Any:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="none", model=MODEL, check_embedding_ctx_length=False)
    return embeddings.embed_documents(texts)


def langchain_huggingface(url: str, texts: Texts) -> Any:
    from huggingface_hub import InferenceClient
    from langchain_huggingface import HuggingFaceEndpointEmbeddings

    embeddings = HuggingFaceEndpointEmbeddings(model=MODEL)  # which takes a name of the hub, and no URL
    embeddings.client = InferenceClient(model=url)
    return embeddings.embed_documents(texts)


def llama_index_openai(url: str, texts: Texts) -> Any:
    from llama_index.embeddings.openai import OpenAIEmbedding

    embedding = OpenAIEmbedding(api_base=f"{url}/v1", api_key="none", model_name=MODEL)
    return embedding.get_text_embedding_batch(texts)


def llama_index_openai_like(url: str, texts: Texts) -> Any:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embedding = OpenAILikeEmbedding(api_base=f"{url}/v1", api_key="none", model_name=MODEL)
    return embedding.get_text_embedding_batch(texts)


def llama_index_tei(url: str, texts: Texts) -> Any:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    return TextEmbeddingsInference(base_url=url, model_name=MODEL).get_text_embedding_batch(texts)


def haystack_openai(url: str, texts: Texts) -> Any:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder
    from haystack.utils import Secret

    embedder = OpenAIDocumentEmbedder(
        api_base_url=f"{url}/v1", api_key=Secret.from_token("none"), model=MODEL, progress_bar=False
    )
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]


def haystack_tei(url: str, texts: Texts) -> Any:
    from haystack import Document
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder

    embedder = HuggingFaceAPIDocumentEmbedder(
        api_type="text_embeddings_inference", api_params={"url": url}, progress_bar=False
    )
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]


def haystack_tei_sparse(url: str, texts: Texts) -> Any:
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceTEISparseTextEmbedder

    embedder = HuggingFaceTEISparseTextEmbedder(api_base_url=url)
    weights = [embedder.run(text)["sparse_embedding"] for text in texts]
    return [dict(zip(map(str, each.indices), each.values, strict=True)) for each in weights]


def chroma_openai(url: str, texts: Texts) -> Any:
    from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

    return _lists(OpenAIEmbeddingFunction(api_key="none", api_base=f"{url}/v1", model_name=MODEL)(texts))


def chroma_tei(url: str, texts: Texts) -> Any:
    from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer

    return _lists(HuggingFaceEmbeddingServer(url=f"{url}/embed")(texts))


def litellm(url: str, texts: Texts) -> Any:
    import litellm as package

    answer = package.embedding(model=f"openai/{MODEL}", api_base=f"{url}/v1", api_key="none", input=texts)
    return [row["embedding"] for row in answer.data]


def _lists(vectors: Any) -> Any:
    return [[float(number) for number in vector] for vector in vectors]


CLIENTS: dict[str, Callable[[str, Texts], Any]] = {
    each.__name__: each
    for each in (
        openai_client,
        openai_async,
        huggingface_hub,
        langchain_openai,
        langchain_huggingface,
        llama_index_openai,
        llama_index_openai_like,
        llama_index_tei,
        haystack_openai,
        haystack_tei,
        haystack_tei_sparse,
        chroma_openai,
        chroma_tei,
        litellm,
    )
}

if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps(CLIENTS[sys.argv[1]](request["url"], request["texts"])))
