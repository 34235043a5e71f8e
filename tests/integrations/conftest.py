"""The real frameworks, none of which may reach the network: what they would send or fetch is turned off."""

import os
import socket
from pathlib import Path

import pytest

from vecferry.conversion.convert import convert_checkpoint
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.integrations.connecting import Connection
from vecferry.model.artifact import Artifact
from vecferry.model.sources import open_source
from vecferry.model.spec import Overrides

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # posthog
os.environ["ANONYMIZED_TELEMETRY"] = "False"  # Chroma's
os.environ["LANGSMITH_TRACING"] = os.environ["LANGCHAIN_TRACING_V2"] = "false"

TEXTS = ["the harbour at night", "a ship leaves for Lisbon", "", "مرحبا بالعالم", "the harbour at night"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] == "127.0.0.1", f"a test wanted to connect to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def prefixed_artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Convert `tiny_checkpoint` with other prefixes for queries than for passages. Not to be written to."""
    prefixes = Overrides(query_prefix="query: ", passage_prefix="passage: ")
    folder = tmp_path_factory.mktemp("artifact") / "prefixed"
    return convert_checkpoint(open_source(str(tiny_checkpoint)), folder, overrides=prefixes, verified=False).artifact


@pytest.fixture(scope="session")
def encoder(prefixed_artifact: Artifact) -> Encoder:
    return load_encoder(EncoderOptions(artifact=prefixed_artifact.path)).encoder


@pytest.fixture(scope="session")
def plain_encoder(tiny_artifact: Artifact) -> Encoder:
    """Return an encoder without prefixes, as BGE-M3 is."""
    return load_encoder(EncoderOptions(artifact=tiny_artifact.path)).encoder


@pytest.fixture
def connection(prefixed_artifact: Artifact) -> Connection:
    """Return a connection to `encoder`'s artifact, for adapters that are written down."""
    return Connection(artifact=str(prefixed_artifact.path))
