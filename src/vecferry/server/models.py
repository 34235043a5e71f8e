"""The models that are served, by name, and whether they work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vecferry.embeddings import DENSE
from vecferry.encode.encoder import Encoder
from vecferry.encode.loading import EncoderOptions, Loaded, load_encoder
from vecferry.errors import BadRequest, ModelNotServed, ModelRuntimeError, NotReady, SettingsError
from vecferry.model.artifact import Artifact
from vecferry.model.tokens import Tokenizer

PROBE = "a probe"
log = logging.getLogger("vecferry.server")


class Served:
    """A model under its name. It works once a probe has passed, until one fails."""

    def __init__(self, name: str, loaded: Loaded, aliases: Sequence[str] = ()) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.encoder: Encoder = loaded.encoder
        self.fingerprint = loaded.encoder.fingerprint  # which is computed each time
        self.reason = loaded.reason
        self._problem: str | None = "no run has succeeded yet"

    @property
    def problem(self) -> str | None:
        """Why it cannot answer; None if it can."""
        return self._problem

    @property
    def is_fallback(self) -> bool:
        return self.reason.startswith("fallback")

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises BadRequest where there are no token ids."""
        tokenizer = self.encoder.tokenizer
        if not isinstance(tokenizer, Tokenizer):
            raise BadRequest("model", f"{self.name} has no token ids: it runs in lightweight mode")
        return tokenizer

    def require(self) -> None:
        """Raises NotReady unless it works."""
        if self._problem is not None:
            raise NotReady(self.name, self._problem)

    def probe(self) -> None:
        """Run one text; whether it worked is known from then on."""
        try:
            list(self.encoder.compute([self.encoder.prepare([PROBE], outputs=DENSE)]))
        except ModelRuntimeError as exc:
            if self._problem is None or self._problem != exc.message:
                log.error("the model %s does not work: %s", self.name, exc)  # noqa: TRY400  # the message says it
            self._problem = exc.message
            return
        if self._problem is not None:
            log.info("the model %s works", self.name)
        self._problem = None


class ServedModels:
    """By name or alias; the first is meant where none is said."""

    def __init__(self, served: Sequence[Served]) -> None:
        """Raises SettingsError where a name is given twice."""
        assert served, "a server without a model"
        self.all = tuple(served)
        self._by_name: dict[str, Served] = {}
        for one in self.all:
            if one.name in self._by_name:
                raise SettingsError("MODEL", one.name, "names that differ: NAME=MODEL")
            self._by_name[one.name] = one
        for one in self.all:
            for alias in one.aliases:
                self._by_name.setdefault(alias, one)

    @property
    def default(self) -> Served:
        return self.all[0]

    def get(self, name: str | None) -> Served:
        """Raises ModelNotServed."""
        if name is None:
            return self.default
        if name not in self._by_name:
            raise ModelNotServed(name, list(self._by_name))
        return self._by_name[name]

    def of_space(self, fingerprint: str) -> Served | None:
        return next((one for one in self.all if one.fingerprint == fingerprint), None)


@dataclass(frozen=True)
class ModelChoice:
    """What is to be served: `NAME=MODEL`, or a folder under the name that its manifest or the folder itself gives."""

    folder: Path
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelChoice:
        name, equals, folder = text.partition("=")
        return cls(Path(folder), name) if equals else cls(Path(text))

    def load(self, options: EncoderOptions) -> Served:
        """options: with this folder as its artifact. Raises as `load_encoder` does."""
        loaded = load_encoder(options)
        manifest = Artifact.peek(options.artifact)
        folder = options.artifact.absolute().name
        source = manifest.source.id if manifest is not None and manifest.source.kind == "hub" else None
        names = [name for name in (self.name, source, folder) if name]
        return Served(names[0], loaded, names[1:])


class Watch:
    """Probes what does not work, now and then, until it is stopped; in a thread of its own."""

    def __init__(self, models: ServedModels, every_s: float = 5.0) -> None:
        self._models, self._every_s = models, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vecferry-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for one in self._models.all:
                if one.problem is not None:
                    one.probe()
            if self._stopped.wait(self._every_s):
                return
