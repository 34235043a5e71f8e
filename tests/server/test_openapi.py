"""/openapi.json says what the server does: requests are made from it, and every answer is held against it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.server.conftest import Server

POSTS = {
    "/v1/embeddings", "/v1/m3", "/embed", "/embed_sparse", "/embed_all", "/similarity", "/vertex", "/tokenize",
    "/decode", "/search",
}  # fmt: skip
GETS = {"/v1/models", "/v1/models/{name}", "/info", "/health", "/metrics"}
UNSAYABLE = "positive_data_acceptance"
"""A check that is left out: no schema says that a text has too many tokens, or that a model has another dimension."""


def test_the_document_has_every_path_with_its_errors_and_the_keys(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    methods = {path: set(operations) for path, operations in document["paths"].items()}
    assert methods == {path: {"post"} for path in POSTS} | {path: {"get"} for path in GETS}
    for path, operations in document["paths"].items():
        (operation,) = operations.values()
        assert operation["description"], path
        assert {"200", "400", "401", "404", "408", "413", "421", "429", "500", "503", "504"} == set(
            operation["responses"]
        )
        form = "OpenAIError" if path.startswith("/v1/") else "TeiError"
        schema = operation["responses"]["400"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{form}"}
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert http.get("/docs").status_code == 404, "it would load scripts from elsewhere"


def test_answers_to_some_hundred_requests_are_as_described(server: Server, tmp_path: Path) -> None:
    schemathesis(server, tmp_path, max_examples=5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_answers_to_thousands_of_requests_are_as_described(server: Server, tmp_path: Path, seed: int) -> None:
    schemathesis(server, tmp_path, max_examples=400, seed=seed)


def schemathesis(server: Server, folder: Path, *, max_examples: int, seed: int) -> None:
    """Run schemathesis by its command line: its pytest plugin is not for the version of pytest in use."""
    options: dict[str, object] = {
        "--phases": "coverage,fuzzing", "--max-examples": max_examples, "--seed": seed,
        "--exclude-checks": UNSAYABLE, "--request-timeout": 60, "--generation-database": "none",
    }  # fmt: skip
    program = str(Path(sys.executable).parent / "schemathesis")
    flags = [str(word) for option in options.items() for word in option]
    command = [program, "run", f"{server.url}/openapi.json", "--continue-on-failure", *flags]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    tested = re.search(r"Tested: +(\d+)", ran.stdout)
    assert tested is not None
    assert int(tested[1]) == len(POSTS | GETS)
    assert server.process.poll() is None
