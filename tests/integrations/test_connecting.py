import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.integrations.conftest import TEXTS
from tests.server.conftest import KEY, serving
from vecferry.encode.client import RemoteEncoder
from vecferry.encode.encoder import Encoder
from vecferry.errors import ArtifactNotFound, ServerFailed, SettingsError, SpaceMismatch
from vecferry.integrations.connecting import Connection, connection_to, located, opened
from vecferry.integrations.flag_embedding import BGEM3FlagModel
from vecferry.integrations.sentence_transformers import SentenceTransformer
from vecferry.model.artifact import Artifact

ADAPTERS = {
    "langchain": ("langchain_core", "langchain"),
    "langchain_qdrant": ("langchain_qdrant", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "haystack": ("haystack", "haystack"),
    "chroma": ("chromadb", "chroma"),
}


def test_a_connection_gives_the_encoder_of_the_artifact(connection: Connection, encoder: Encoder) -> None:
    assert np.array_equal(connection.open().encode(TEXTS).dense, encoder.encode(TEXTS).dense)
    assert opened(encoder) is encoder


def test_threads_and_equal_connections_share_one_encoder(connection: Connection) -> None:
    again = Connection(**json.loads(json.dumps(connection.pinned().to_dict())))
    assert again == connection.pinned()
    with ThreadPoolExecutor(8) as pool:
        assert len({id(encoder) for encoder in pool.map(Connection.open, [connection, again] * 8)}) == 1


def test_opening_loads_nothing_until_it_is_used(tmp_path: Path) -> None:
    nowhere = Connection(artifact=str(tmp_path / "nowhere")).open()
    with pytest.raises(ArtifactNotFound):
        nowhere.encode(["a"])


def test_a_pinned_connection_refuses_another_space(tiny_artifact: Artifact, connection: Connection) -> None:
    moved = replace(connection.pinned(), artifact=str(tiny_artifact.path))
    with pytest.raises(SpaceMismatch, match=f"the model at {tiny_artifact.path}: vector space"):
        moved.open()


def test_an_encoder_without_an_address_is_written_down_by_its_space(encoder: Encoder) -> None:
    connection = connection_to(encoder)
    assert connection.to_dict() == {"api_key_env": "VECFERRY_API_KEYS", "fingerprint": encoder.fingerprint}
    with pytest.raises(SettingsError, match="the folder of a converted model, or a server's url"):
        connection.open()


def test_two_addresses_are_refused() -> None:
    with pytest.raises(SettingsError, match="url=http://b is not valid: expected either an artifact or a url"):
        Connection(artifact="a", url="http://b")


def test_a_string_is_a_url_or_a_folder() -> None:
    assert located("https://vectors.example/") == Connection(url="https://vectors.example/")
    assert located("models/bge-m3-onnx") == located(Path("models/bge-m3-onnx")) == Connection("models/bge-m3-onnx")


def test_the_name_of_a_checkpoint_stands_for_the_settings_artifact_that_was_made_of_it(
    tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_artifact.manifest.source.id
    monkeypatch.setenv("ONNX_MODEL_PATH", str(tiny_artifact.path))
    named = tiny_artifact.manifest.source.model_copy(update={"id": "BAAI/bge-m3"})
    manifest = tiny_artifact.manifest.model_copy(update={"source": named})
    monkeypatch.setattr(Artifact, "peek", lambda path: manifest if path == tiny_artifact.path else None)
    assert located("BAAI/bge-m3") == Connection(artifact=str(tiny_artifact.path))
    assert located("BAAI/another") == Connection(artifact="BAAI/another")
    assert located(source) == Connection(artifact=source)  # a folder that is there is itself


def test_a_relative_folder_is_found_from_where_the_process_is(
    connection: Connection, tiny_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, target in (("a", str(connection.artifact)), ("b", str(tiny_artifact.path))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(target)
        monkeypatch.chdir(tmp_path / name)
        assert Connection("model").open().fingerprint == Connection(target).open().fingerprint


def test_a_url_and_the_name_of_the_keys_variable_reach_a_server(
    tiny_artifact: Artifact, plain_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_THE_VECTORS", KEY)
    with serving(f"tiny={tiny_artifact.path}", env={"VECFERRY_API_KEYS": KEY}) as server:
        connection = Connection(url=server.url, model="tiny", api_key_env="KEY_OF_THE_VECTORS").pinned()
        expected = plain_encoder.encode(TEXTS).dense
        assert np.array_equal(connection.open().encode(TEXTS).dense, expected)
        assert np.array_equal(SentenceTransformer(connection).encode(TEXTS), expected)
        assert np.array_equal(BGEM3FlagModel(connection).encode(TEXTS)["dense_vecs"], expected)
        without_key = Connection(url=server.url, api_key_env="NOT_SET").open()
        with pytest.raises(ServerFailed, match="401"):
            _ = without_key.fingerprint
    for client in (connection.open(), without_key):
        assert isinstance(client, RemoteEncoder)
        client.close()
    assert KEY not in str(connection.to_dict())


def test_the_settings_say_how_an_artifact_is_loaded(
    connection: Connection, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECFERRY_FINGERPRINT", "0" * 64)
    elsewhere = tmp_path / "link"  # another address, so not the encoder that is loaded already
    elsewhere.symlink_to(str(connection.artifact))
    with pytest.raises(SpaceMismatch):
        Connection(str(elsewhere)).open().encode(["a"])


@pytest.mark.parametrize("module", ADAPTERS)
def test_a_framework_that_is_not_there_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, extra = ADAPTERS[module]
    program = f"import sys; sys.modules['{package}'] = None; import vecferry.integrations.{module}"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    expected = f"MissingExtra: the package '{package}' is not installed. pip install 'vecferry[{extra}]'"
    assert done.stderr.strip().splitlines()[-1].endswith(expected)


def test_the_shapes_of_other_libraries_import_neither_them_nor_pytorch() -> None:
    program = (
        "import sys, vecferry.integrations.flag_embedding, vecferry.integrations.sentence_transformers; "
        "print({'torch', 'sentence_transformers', 'FlagEmbedding', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr
