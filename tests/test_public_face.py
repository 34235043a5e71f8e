"""What `import vecferry` offers: each name by itself in a fresh process, its kind, and how it is called."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

import vecferry
from vecferry import Embeddings, Encoder, Outputs
from vecferry.model.artifact import Artifact

NAMES = {
    "Artifact": "class (path, manifest)",
    "Checkpoint": "class (folder, kind, id, revision)",
    "Embeddings": "class",
    "Encoder": "class (tokenizer, runtime, limits, *, spec, cache, reopen, index)",
    "EncoderOptions": "class",
    "Limits": "class",
    "Migration": "class (store, *, new, old, serve, options)",
    "MigrationOptions": "class",
    "Outputs": "class",
    "RemoteEncoder": "class (url, *, api_key, model, timeout_s, reopen)",
    "Router": "class (store, *, old, new, max_age_s)",
    "VecferryError": "class",
    "colbert_scores": "function (queries, passages)",
    "convert_checkpoint": "function "
    "(checkpoint, output, *, overrides, precision, labelled, override, verified, progress)",
    "dense_scores": "function (queries, passages)",
    "hybrid_scores": "function (queries, passages, weights)",
    "lexical_scores": "function (queries, passages)",
    "load_encoder": "function (options)",
    "open_source": "function (source, *, revision, offline)",
    "open_store": "function (url, collection, *, text, vector, key, control, embed_missing, token, options, client)",
    "run_evaluation": "function",
}
"""Without a signature where it is made of what is documented elsewhere."""
EACH_IN_A_FORK = """
import inspect, json, os, sys
for name in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if os.fork() == 0:
        thing = getattr(__import__("vecferry", fromlist=[name]), name)
        kind = "class" if inspect.isclass(thing) else "function" if inspect.isfunction(thing) else type(thing).__name__
        parts, keyword_only = [], False
        signature = inspect.Signature() if issubclass(type(thing), type) and issubclass(thing, Exception) else None
        for each in (signature or inspect.signature(thing)).parameters.values():
            if each.kind is each.KEYWORD_ONLY and not keyword_only:
                keyword_only = True
                parts.append("*")
            parts.append(each.name)
        print(json.dumps([name, f"{kind} ({', '.join(parts)})"]))
        sys.stdout.flush()
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(f"from vecferry import {name} fails")
"""


def test_each_public_name_is_had_by_itself_and_is_called_as_it_says() -> None:
    assert sorted(vecferry.__all__) == sorted(NAMES)
    command = [sys.executable, "-c", EACH_IN_A_FORK, json.dumps(vecferry.__all__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    described = dict(json.loads(line) for line in done.stdout.splitlines())
    assert {name: text if "(" in NAMES[name] else text.split()[0] for name, text in described.items()} == NAMES


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {module.rpartition(".")[2] for module in sys.modules if module.startswith("vecferry.")}
    assert set(vecferry.__all__) & modules == set()


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    heavy = ("numpy", "onnxruntime", "onnx", "tokenizers", "pydantic", "torch")
    snippet = f"import sys, vecferry; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_encoder_is_opened_by_its_folder(tiny_artifact: Artifact) -> None:
    encoder = Encoder.open(str(tiny_artifact.path), threads=1)
    assert encoder.fingerprint == tiny_artifact.fingerprint
    assert encoder.encode(["one"]).dense.shape == (1, 64)


def test_values_over_arrays_are_compared_and_hashed_by_identity(tiny_artifact: Artifact) -> None:
    encoder = Encoder.open(tiny_artifact.path)
    first, same = (encoder.encode(["one"], outputs=Outputs.ALL) for _ in range(2))
    np.testing.assert_array_equal(first.dense, same.dense)
    assert first == first
    assert first != same
    assert len({first, same, first.sparse, first.colbert}) == 4
    assert isinstance(first, Embeddings)
