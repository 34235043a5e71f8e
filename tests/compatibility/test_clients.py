"""Clients of other packages, as they come: what they give for a text is what the library gives, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.compatibility.clients import CLIENTS, MODEL, Client, table
from tests.compatibility.page import section
from tests.server.conftest import Server, library, serving
from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Encoder
from vecferry.model.artifact import Artifact

__all__ = ["library"]

TEXTS = ["Where does oxygen come from?", "氧气从哪里来? 🌱", "مَرْكَب", "one", "a word " * 300]


def test_the_page_has_the_table_of_the_clients() -> None:
    """`python -m tests.compatibility.clients` writes it, of those that have passed."""
    assert section("clients") == table([client.name for client in CLIENTS])


@pytest.fixture(scope="module")
def served(tiny_artifact: Artifact) -> Iterator[Server]:
    with serving(f"{MODEL}={tiny_artifact.path}") as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_gets_what_the_library_gives(client: Client, served: Server, library: Encoder) -> None:
    if (missing := client.program.missing()) is not None:
        pytest.skip(f"missing: {missing}")
    vectors = client.program.vectors(served.url, TEXTS)
    if "sparse" in client.endpoint:
        weights = [{int(token): np.float32(weight) for token, weight in row.items()} for row in vectors]
        assert weights == [_sparse(library, text) for text in TEXTS]
    else:
        np.testing.assert_array_equal(np.asarray(vectors, np.float32), library.encode(TEXTS).dense)


def _sparse(library: Encoder, text: str) -> dict[int, float]:
    """Return the weights of a text that is encoded alone, as that client sends it."""
    sparse = library.encode([text], outputs=Outputs.SPARSE).sparse
    assert sparse is not None
    return sparse.row(0)
