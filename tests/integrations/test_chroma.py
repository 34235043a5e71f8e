import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from chromadb.api.client import Client
from chromadb.api.types import Embeddable, EmbeddingFunction
from chromadb.config import Settings

from tests.integrations.conftest import TEXTS
from tests.stores.backends_chroma import persistent_client
from vecferry.encode.encoder import Encoder
from vecferry.errors import SettingsError, SpaceMismatch
from vecferry.integrations.chroma import VecferryEmbeddingFunction
from vecferry.integrations.connecting import Connection, EncoderLike
from vecferry.model.artifact import Artifact

REOPENED = """
import chromadb, json, sys
from chromadb.config import Settings
import vecferry.integrations.chroma
client = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False))
print(json.dumps(client.get_collection("texts").query(query_texts=[sys.argv[2]], n_results=1)["documents"]))
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with persistent_client(tmp_path / "chroma", Settings(anonymized_telemetry=False)) as client:
        yield client


def for_collection(encoder: EncoderLike) -> EmbeddingFunction[Embeddable]:
    """Return the function for a collection: Chroma's annotation wants images too, but it takes texts alone."""
    return cast(EmbeddingFunction[Embeddable], VecferryEmbeddingFunction(encoder))


def test_documents_and_queries_get_the_librarys_vectors(connection: Connection, encoder: Encoder) -> None:
    function = VecferryEmbeddingFunction(connection)
    assert np.array_equal(function(TEXTS), encoder.encode(TEXTS).dense)
    queries = function.embed_query(TEXTS)
    assert np.array_equal(queries, encoder.encode(TEXTS, role="query").dense)
    assert all(vector.dtype == np.float32 for vector in [*function(TEXTS), *queries])
    assert not np.array_equal(queries, function(TEXTS))


def test_a_collection_stores_passages_and_asks_with_queries(
    client: Client, connection: Connection, encoder: Encoder
) -> None:
    collection = client.create_collection("texts", embedding_function=for_collection(connection))
    collection.add(ids=["0", "1"], documents=TEXTS[:2])
    stored = collection.get(include=["embeddings"])["embeddings"]
    assert stored is not None
    # Chroma normalises again
    np.testing.assert_allclose(np.asarray(stored), encoder.encode(TEXTS[:2]).dense, atol=2e-7)
    (distances,) = collection.query(query_texts=["ship"], n_results=2)["distances"] or []
    query = encoder.encode(["ship"], role="query").dense[0]
    assert sorted(distances) == pytest.approx(sorted(1 - encoder.encode(TEXTS[:2]).dense @ query), abs=1e-6)


def test_a_collection_opened_again_knows_its_function(client: Client, tiny_artifact: Artifact, tmp_path: Path) -> None:
    function = for_collection(Connection(str(tiny_artifact.path)))
    client.create_collection("texts", embedding_function=function).add(ids=["0", "1"], documents=TEXTS[:2])
    (documents,) = client.get_collection("texts").query(query_texts=[TEXTS[1]], n_results=1)["documents"] or []
    assert documents == [TEXTS[1]]
    client.close()
    command = [sys.executable, "-W", "error", "-c", REOPENED, str(tmp_path / "chroma"), TEXTS[1]]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[TEXTS[1]]]


def test_a_function_is_rebuilt_from_its_configuration(connection: Connection, encoder: Encoder) -> None:
    function = VecferryEmbeddingFunction(connection)
    config = json.loads(json.dumps(function.get_config()))
    assert config == {
        "artifact": connection.artifact,
        "api_key_env": "VECFERRY_API_KEYS",
        "fingerprint": encoder.fingerprint,
    }
    VecferryEmbeddingFunction.validate_config(config)
    again = VecferryEmbeddingFunction.build_from_config(config)
    assert np.array_equal(again(TEXTS), function(TEXTS))
    assert again.get_config() == config
    assert (again.name(), again.default_space(), again.is_legacy()) == ("vecferry", "cosine", False)
    with pytest.raises(SettingsError):
        VecferryEmbeddingFunction.validate_config({**config, "url": "http://localhost"})


def test_a_model_of_another_space_in_the_same_folder_is_refused(
    client: Client, connection: Connection, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(tiny_artifact.path)
    function = VecferryEmbeddingFunction(Connection(str(folder)))
    config = function.get_config()
    other = VecferryEmbeddingFunction(connection)
    with pytest.raises(SpaceMismatch):
        VecferryEmbeddingFunction.build_from_config({**config, "artifact": connection.artifact})(TEXTS)
    with pytest.raises(SpaceMismatch, match="the new embedding function"):
        other.validate_config_update(config, other.get_config())
    VecferryEmbeddingFunction.build_from_config(config).validate_config_update(config, config)


def test_an_encoder_without_an_address_serves_until_the_process_ends(client: Client, encoder: Encoder) -> None:
    collection = client.create_collection("texts", embedding_function=for_collection(encoder))
    collection.add(ids=["0"], documents=["one"])
    with pytest.raises(SettingsError, match="the folder of a converted model"):
        client.get_collection("texts").query(query_texts=["one"])
    brought = client.get_collection("texts", embedding_function=for_collection(encoder))
    assert brought.query(query_texts=["one"])["ids"] == [["0"]]
