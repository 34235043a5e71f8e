"""Clients of other packages against the server, and the table of those that passed in docs/compatibility.md.

    make clients                               # the packages, in an environment of their own
    python -m tests.compatibility.clients      # runs the tests of all, and writes the table

Each client is a program of its own: it is given the server's address and texts, and prints vectors.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.applications.table import Passed
from tests.compatibility.page import replace_section

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
PROGRAMS = FOLDER / "programs"
ENVIRONMENT = ROOT / ".venv-clients"
REQUIREMENTS = FOLDER / "requirements.txt"
NODE_PACKAGES = ENVIRONMENT / "node_modules"
HEAD = ("client", "package", "endpoint", "what has to be said")
MODEL = "tiny"


class Program(Protocol):
    """How a client is run."""

    def missing(self) -> str | None:
        """Return what has to be installed before it can run; None if it can."""

    def package(self) -> str:
        """Return the package with its version, or what it is called without one."""

    def vectors(self, url: str, texts: Sequence[str]) -> Any:
        """Return what the client gives for these texts, by a server that has a model `tiny`."""


def _printed(command: Sequence[str | Path], body: bytes, **environment: str) -> str:
    """Return what a command prints for that input. Raises AssertionError with what it says if it fails."""
    done = subprocess.run(command, input=body, capture_output=True, env=os.environ | environment, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def _request(url: str, texts: Sequence[str]) -> bytes:
    return json.dumps({"url": url, "texts": list(texts)}).encode()


@dataclass(frozen=True)
class PythonProgram:
    """A function of `programs/python.py`, and the package that it is for.

    Runs in the environment of the tests if the package is part of that, else in `.venv-clients`.
    """

    name: str
    distribution: str

    @property
    def _pinned(self) -> str | None:
        return pins(REQUIREMENTS).get(self.distribution)

    def missing(self) -> str | None:
        if self._pinned is not None:
            return None if (ENVIRONMENT / "bin/python").exists() else f"{ENVIRONMENT.name}: make clients"
        try:
            version(self.distribution)
        except PackageNotFoundError:
            return self.distribution
        return None

    def package(self) -> str:
        return f"{self.distribution} {self._pinned or pins(ROOT / 'locks/dev.txt')[self.distribution]}"

    def vectors(self, url: str, texts: Sequence[str]) -> Any:
        python = sys.executable if self._pinned is None else ENVIRONMENT / "bin/python"
        command = [python, "-I", PROGRAMS / "python.py", self.name]
        return json.loads(_printed(command, _request(url, texts), LITELLM_LOCAL_MODEL_COST_MAP="True"))


@dataclass(frozen=True)
class NodeProgram:
    """A function of `programs/node.mjs`, and the package that it is for."""

    name: str
    distribution: str

    def missing(self) -> str | None:
        if shutil.which("node") is None:
            return "node"
        return None if (NODE_PACKAGES / self.distribution).exists() else f"{NODE_PACKAGES}: make clients"

    def package(self) -> str:
        pinned = json.loads((PROGRAMS / "package.json").read_text())["dependencies"]
        return f"npm {self.distribution} {pinned[self.distribution]}"

    def vectors(self, url: str, texts: Sequence[str]) -> Any:
        command: list[str | Path] = ["node", PROGRAMS / "node.mjs", self.name]
        return json.loads(_printed(command, _request(url, texts), NODE_PATH=str(NODE_PACKAGES)))


@dataclass(frozen=True)
class Curl:
    """curl with these options, for a path and the form of its requests and answers."""

    path: str
    options: tuple[str, ...] = ()
    is_compressed: bool = False

    def missing(self) -> str | None:
        return None if shutil.which("curl") else "curl"

    def package(self) -> str:
        return "curl"

    def vectors(self, url: str, texts: Sequence[str]) -> Any:
        fields = {"model": MODEL, "input": list(texts)} if self.path == "/v1/embeddings" else {"inputs": list(texts)}
        body = json.dumps(fields).encode()
        headers = ("-H", "Content-Type: application/json", *(("-H", "Content-Encoding: gzip") * self.is_compressed))
        command = ["curl", "-sSf", *self.options, *headers, "--data-binary", "@-", url + self.path]
        answer = json.loads(_printed(command, gzip.compress(body) if self.is_compressed else body))
        if isinstance(answer, list):
            return answer
        if self.path == "/v1/m3":
            return [row["dense"] for row in answer["embeddings"]]
        return [row["embedding"] for row in answer["data"]]


@dataclass(frozen=True)
class Java:
    """The JDK's own client, which offers HTTP/2 with each request; once with a length, once in chunks."""

    path: str

    def missing(self) -> str | None:
        return None if shutil.which("java") else "java: apt install default-jdk-headless"

    def package(self) -> str:
        return "JDK"

    def vectors(self, url: str, texts: Sequence[str]) -> Any:
        body = json.dumps({"inputs": list(texts)}).encode()
        command: list[str | Path] = ["java", FOLDER.parent / "server/JavaClient.java", url + self.path, "/dev/stdin"]
        first, second = map(json.loads, _printed(command, body).splitlines())
        assert first == second
        return first


@dataclass(frozen=True)
class Client:
    """A row of the table. endpoint: of its requests; remark: what a user has to say beside the address."""

    name: str
    program: Program
    endpoint: str
    remark: str = ""


OPENAI, TEI, HUB = "`POST /v1/embeddings`", "`POST /embed`", "`POST /`"
HUB_CLIENT = "`client = InferenceClient(model=URL)`: its own `model` takes no URL"
CLIENTS = (
    Client("`OpenAI`", PythonProgram("openai_client", "openai"), OPENAI),
    Client('`AsyncOpenAI`, `encoding_format="float"`', PythonProgram("openai_async", "openai"), OPENAI),
    Client("`InferenceClient`", PythonProgram("huggingface_hub", "huggingface-hub"), HUB),
    Client(
        "LangChain `OpenAIEmbeddings`",
        PythonProgram("langchain_openai", "langchain-openai"),
        OPENAI,
        "`check_embedding_ctx_length=False`",
    ),
    Client(
        "LangChain `HuggingFaceEndpointEmbeddings`",
        PythonProgram("langchain_huggingface", "langchain-huggingface"),
        HUB,
        HUB_CLIENT,
    ),
    Client(
        "LlamaIndex `OpenAIEmbedding`",
        PythonProgram("llama_index_openai", "llama-index-embeddings-openai"),
        OPENAI,
        "`model_name`, not `model`",
    ),
    Client(
        "LlamaIndex `OpenAILikeEmbedding`",
        PythonProgram("llama_index_openai_like", "llama-index-embeddings-openai-like"),
        OPENAI,
    ),
    Client(
        "LlamaIndex `TextEmbeddingsInference`",
        PythonProgram("llama_index_tei", "llama-index-embeddings-text-embeddings-inference"),
        TEI,
    ),
    Client("Haystack `OpenAIDocumentEmbedder`", PythonProgram("haystack_openai", "haystack-ai"), OPENAI),
    Client("Haystack `HuggingFaceAPIDocumentEmbedder`", PythonProgram("haystack_tei", "huggingface-api-haystack"), HUB),
    Client(
        "Haystack `HuggingFaceTEISparseTextEmbedder`",
        PythonProgram("haystack_tei_sparse", "huggingface-api-haystack"),
        "`POST /embed_sparse`",
    ),
    Client("Chroma `OpenAIEmbeddingFunction`", PythonProgram("chroma_openai", "chromadb"), OPENAI),
    Client("Chroma `HuggingFaceEmbeddingServer`", PythonProgram("chroma_tei", "chromadb"), TEI, "`url=URL/embed`"),
    Client("LiteLLM", PythonProgram("litellm", "litellm"), OPENAI, '`model="openai/NAME"`'),
    Client("JavaScript `OpenAI`", NodeProgram("openai", "openai"), OPENAI),
    Client("JavaScript `InferenceClient`", NodeProgram("huggingface", "@huggingface/inference"), HUB, "`endpointUrl`"),
    Client("LangChain.js `OpenAIEmbeddings`", NodeProgram("langchain", "@langchain/openai"), OPENAI),
    Client("AI SDK `embedMany`", NodeProgram("ai_sdk", "@ai-sdk/openai-compatible"), OPENAI),
    Client("`java.net.http.HttpClient`", Java("/embed"), TEI),
    Client("curl", Curl("/embed"), TEI),
    Client("curl `--http2`", Curl("/v1/embeddings", ("--http2",)), OPENAI),
    Client("curl, body by gzip", Curl("/v1/embeddings", is_compressed=True), OPENAI),
    Client("curl `--http1.0`", Curl("/v1/m3", ("--http1.0",)), "`POST /v1/m3`"),
)


def pins(file: Path) -> dict[str, str]:
    """Return the version of each package of a requirements file."""
    lines = (line.split()[0].partition("==") for line in file.read_text().splitlines() if "==" in line)
    return {name: pinned for name, _, pinned in lines}


def table(names: Sequence[str]) -> str:
    """Return the lines of the table, of the clients with these names."""
    rows = [HEAD, ("---",) * len(HEAD)]
    rows += [(c.name, c.program.package(), c.endpoint, c.remark) for c in CLIENTS if c.name in names]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    passed = Passed()
    status = pytest.main(["-m", "slow", "-q", str(FOLDER / "test_clients.py")], [passed])
    replace_section("clients", table([client.name for client in CLIENTS if client.name in passed.names]))
    return status


if __name__ == "__main__":
    sys.exit(main())
