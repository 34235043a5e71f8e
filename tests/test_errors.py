"""What an error may show."""

import pytest

from vecferry.encode.client import RemoteEncoder
from vecferry.errors import InvalidStoreUrl, ServerFailed, printable, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("lancedb://user:pass@host/folder", "lancedb://…@host/folder"),
        ("postgresql://app:p@ss/word@host:5432/shop?sslmode=off", "postgresql://…@host:5432/shop?sslmode=…"),
        ("chroma+http://host?token=secret&a=b#c", "chroma+http://host?token=…&a=…#c"),
        ("user:pass@host/shop", "user:…@host/shop"),
        ("pass@host/shop", "…@host/shop"),
        ("qdrant:token@host", "qdrant:…@host"),
        ("lancedb:///an/absolute/path", "lancedb:///an/absolute/path"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
    assert InvalidStoreUrl(url, "another").message == f"{shown} is not the URL of a store: expected another."


def test_a_client_of_a_server_shows_its_url_without_the_password() -> None:
    with RemoteEncoder("http://user:hunter2@127.0.0.1:9/") as encoder, pytest.raises(ServerFailed) as caught:
        encoder.encode(["a"])
    assert "http://…@127.0.0.1:9/health" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_a_terminal_would_obey_is_printed_as_its_escape() -> None:
    assert printable("a\x1b[31m\r\t\x9b\u202e\ud800 é 氧\n") == "a\\x1b[31m\\r\\t\\x9b\\u202e\\ud800 é 氧\n"
