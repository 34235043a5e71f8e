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
from vecferry.precisions import Mark, Role

PROBE = "a probe"
log = logging.getLogger("vecferry.server")


class Served:
    """A model under its name. It works once a probe has passed, until one fails."""

    def __init__(self, name: str, loaded: Loaded, aliases: Sequence[str] = ()) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.encoder: Encoder = loaded.encoder
        self.mark = loaded.encoder.space.mark()  # which is computed each time
        self.reason, self.is_fallback = loaded.reason, loaded.is_fallback
        self._problem: str | None = "no run has succeeded yet"

    @property
    def problem(self) -> str | None:
        """The reason why the model cannot answer; None if it can."""
        return self._problem

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises BadRequest where there are no token ids."""
        tokenizer = self.encoder.tokenizer
        if not isinstance(tokenizer, Tokenizer):
            raise BadRequest("model", f"{self.name} has no token ids: it runs in lightweight mode")
        return tokenizer

    def require(self) -> None:
        """Raise NotReady unless the model works."""
        if self._problem is not None:
            raise NotReady(self.name, self._problem)

    def probe(self) -> None:
        """Run one text, and remember whether it worked."""
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
    """The served models by name or alias; the first is the default."""

    def __init__(self, served: Sequence[Served], *, any_name: bool = False) -> None:
        """Index the models. any_name: the only model has every name.

        Raises SettingsError where a name is given twice, or any to one of several.
        """
        assert served, "a server without a model"
        if any_name and len(served) > 1:
            raise SettingsError(
                "--any-model-name", f"{len(served)} models", "one model, or the names of each: NAME=MODEL"
            )
        self.all, self._any_name = tuple(served), any_name
        self._by_name: dict[str, Served] = {}
        for model in self.all:
            if model.name in self._by_name:
                raise SettingsError("MODEL", model.name, "names that differ: NAME=MODEL")
            self._by_name[model.name] = model
        for model in self.all:
            for alias in model.aliases:
                self._by_name.setdefault(alias, model)

    @property
    def default(self) -> Served:
        return self.all[0]

    def get(self, name: str | None) -> Served:
        """Return the model of that name or alias, the default for None. Raises ModelNotServed."""
        if name is None or self._any_name:
            return self.default
        if name not in self._by_name:
            raise ModelNotServed(name, list(self._by_name))
        return self._by_name[name]

    def has(self, name: str) -> bool:
        return name in self._by_name

    def of_space(self, mark: Mark, role: Role = "query") -> Served | None:
        """Return the model for an index of that mark, the same form first; None if none may be used in that role."""
        possible = [model for model in self.all if not model.mark.refusal(mark, role)]
        return min(possible, key=lambda model: model.mark.form != mark.form, default=None)


@dataclass(frozen=True)
class ModelChoice:
    """A model to serve: `NAME=MODEL`, or a folder under the name that its manifest or the folder itself gives."""

    folder: Path
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelChoice:
        name, equals, folder = text.partition("=")
        return cls(Path(folder), name) if equals else cls(Path(text))

    def load(self, options: EncoderOptions) -> Served:
        """Load the model. options: with this folder as its artifact. Raises as `load_encoder` does."""
        loaded = load_encoder(options)
        manifest = Artifact.peek(options.artifact)
        folder = options.artifact.absolute().name
        source = manifest.source.id if manifest is not None and manifest.source.kind == "hub" else None
        names = [name for name in (self.name, source, folder) if name]
        return Served(names[0], loaded, names[1:])


class Watch:
    """A thread that probes what does not work, now and then, until it is stopped."""

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
            for model in self._models.all:
                if model.problem is not None:
                    model.probe()
            if self._stopped.wait(self._every_s):
                return
