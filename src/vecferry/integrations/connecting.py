"""An encoder by its address, in plain strings, so that what a framework has written down finds it again."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vecferry.embeddings import DENSE, Embeddings, Outputs
from vecferry.encode.encoder import Role, SharedCopy, TextEncoder
from vecferry.encode.loading import LazyEncoder, load_encoder
from vecferry.errors import SecretNotPickled, SettingsError, without_secrets
from vecferry.model.artifact import Artifact, VectorSpace
from vecferry.precisions import Mark
from vecferry.settings import read_settings

_OPENING = threading.Lock()
"""functools.cache may call twice what two threads ask for at once."""


@dataclass(frozen=True)
class Connection(SharedCopy):
    """The address of an encoder.

    artifact: a converted model's folder, for an encoder in this process; threads, device, cache and the like are as
    the settings say. url: a server, and model: which of its models; api_key_env: the name of the environment variable
    that holds its key, never the key; of several the first is sent. fingerprint: the mark of the index that the vectors
    are for; a model of another space is refused, and one in another precision for each role in which it was not found
    to agree.
    With neither artifact nor url it says only which space is meant, and cannot be opened.
    """

    artifact: str | None = None
    url: str | None = None
    model: str | None = None
    api_key_env: str = "VECFERRY_API_KEYS"
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.artifact is not None and self.url is not None:
            raise SettingsError("url", self.url, "either an artifact or a url, not both")

    def __reduce__(self) -> tuple[Any, ...]:
        if self.url is not None and without_secrets(self.url) != self.url:
            raise SecretNotPickled(f"the URL {without_secrets(self.url)}")
        return Connection, tuple(asdict(self).values())

    def open(self) -> TextEncoder:
        """Open the encoder, one in this process for each address; a model is loaded on first use.

        Raises SpaceMismatch, SettingsError if there is no address, and as `load_encoder` and the client do.
        """
        folder = None if self.artifact is None else Path(self.artifact).absolute()
        with _OPENING:
            encoder = _encoder_at(folder, self.url, self.model, self.api_key_env)
        if self.fingerprint is None:
            return encoder
        where, index = f"the model at {self.artifact or self.url}", Mark.parse(self.fingerprint)
        mark = encoder.space.mark()
        mark.require(index, "query", where)
        return QueriesAlone(encoder, self, where) if mark.refusal(index, "passage") else encoder

    def pinned(self) -> Connection:
        """Return the same address, for its present vector space alone. Opens it if it is not yet pinned."""
        return self if self.fingerprint else replace(self, fingerprint=str(self.open().space.mark()))

    def to_dict(self) -> dict[str, str]:
        """Return the fields that are set: Connection(**connection.to_dict()) == connection."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class QueriesAlone(SharedCopy, TextEncoder):
    """An encoder in a precision that may ask an index, and not add to it."""

    def __init__(self, encoder: TextEncoder, connection: Connection, where: str) -> None:
        self._encoder, self._connection, self._where = encoder, connection, where

    def __reduce__(self) -> tuple[Any, ...]:
        return self._connection.open, ()

    @property
    def space(self) -> VectorSpace:
        return self._encoder.space

    def encode(self, texts: Sequence[str], *, outputs: Outputs = DENSE, role: Role = "passage") -> Embeddings:
        """Encode queries as `Encoder.encode` does. Raises PrecisionMismatch for passages."""
        self.space.mark(outputs).require(Mark.parse(str(self._connection.fingerprint)), role, self._where)
        return self._encoder.encode(texts, outputs=outputs, role=role)


EncoderLike = TextEncoder | Connection


def opened(encoder: EncoderLike) -> TextEncoder:
    """Return the encoder itself, or the one at a connection. Raises as `Connection.open`."""
    return encoder.open() if isinstance(encoder, Connection) else encoder


def located(address: str | os.PathLike[str] | EncoderLike) -> EncoderLike:
    """Turn a string into a connection: to a server's http(s) URL, or else to an artifact's folder.

    The name of a checkpoint stands for the folder of the settings (ONNX_MODEL_PATH), if that was converted from it: so
    `BGEM3FlagModel("BAAI/bge-m3")` need not be changed.
    """
    if not isinstance(address, str | os.PathLike):
        return address
    text = os.fspath(address)
    return Connection(url=text) if text.startswith(("http://", "https://")) else Connection(artifact=_converted(text))


def _converted(name: str) -> str:
    folder = read_settings().options().artifact
    manifest = None if Path(name).exists() else Artifact.peek(folder)
    return str(folder) if manifest is not None and manifest.source.id == name else name


def connection_to(encoder: EncoderLike) -> Connection:
    """Return what can be written down of an encoder: its address, or without one its vector space."""
    return encoder if isinstance(encoder, Connection) else Connection(fingerprint=str(encoder.space.mark()))


@cache
def _encoder_at(folder: Path | None, url: str | None, model: str | None, api_key_env: str) -> TextEncoder:
    reopen = Connection(None if folder is None else str(folder), url, model, api_key_env).open
    if folder is not None:
        return LazyEncoder(lambda: load_encoder(replace(read_settings().options(), artifact=folder)), reopen=reopen)
    if url is None:
        raise SettingsError("artifact", folder, "the folder of a converted model, or a server's url instead")
    from vecferry.encode.client import RemoteEncoder

    api_key, *_ = os.environ.get(api_key_env, "").split(",")
    return RemoteEncoder(url, api_key=api_key.strip() or None, model=model, reopen=reopen)
