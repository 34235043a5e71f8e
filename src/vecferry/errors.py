"""Every error that vecferry raises on purpose, as one tree.

VecferryError                      exit  what happened
├── InvalidInput                   2     the caller's texts or arguments
│   ├── EmptyInput                       no texts at all
│   ├── WrongInputType                   what is no list of texts: a dict, a data frame; a TypeError too
│   ├── InvalidText                      one text, by its position
│   │   └── WrongTextType                one that is no string; a TypeError too
│   ├── InvalidRecord                    one line of an input file
│   ├── InvalidFilter                    of a search, by the place in it
│   ├── HeadUnavailable                  an output that this model does not have
│   ├── NotPicklable                     an object without an address; a TypeError too
│   │   └── SecretNotPickled
│   ├── MemberRefused                    a method of another library's class; an AttributeError too
│   ├── MissingModel                     a model that a verb of a migration needs
│   └── NotEncoded                       an output that was not asked for
├── SettingsError                  2     an environment variable, a `.env` line, an option
│   ├── MissingOption                    one that has no default was not given
│   ├── ArgumentRefused                  one of another library's class; a TypeError too
│   ├── UnreadableFile                   a file that was named
│   ├── UnknownSetting                   a section or key that there is not
│   ├── InvalidStoreUrl
│   └── AddressUnavailable               another process listens there, or this host has no such address
├── MissingExtra                   3     an optional dependency is not installed
├── ExtensionsDisabled             3     a SQLite that was built to load none
├── SourceError                    3     where a checkpoint comes from
│   ├── SourceNotFound
│   ├── DownloadFailed
│   ├── ConfigMissing                    a fact that must be said, never guessed
│   ├── UnsupportedModel                 architecture, activation, pooling, ...
│   ├── AdapterNotMerged                 a LoRA adapter that is not merged here
│   ├── UnsafePickle                     a pickle that asks for more than tensors
│   ├── CheckpointIncomplete             another form of a model, or a part of one
│   └── CheckpointDamaged                unreadable, truncated, a tensor missing
├── ArtifactError                  3     the converted model's folder
│   ├── ArtifactNotFound
│   ├── ArtifactDamaged
│   └── ArtifactWriteFailed
├── OutputWriteFailed              3     a file of results
│   ├── OutputExists                     one that is there already
│   └── StagingUnusable                  the folder where encoded vectors wait
├── ModelRuntimeError              3     what runs the model
│   ├── RuntimeUnavailable
│   ├── RuntimeFailed
│   ├── VectorUnusable                   of one text, by its position: not finite, or zero
│   └── OutOfMemory
│       └── OverMemoryBudget             foreseen, and not run
├── VerificationFailed             4     a check of the converted model failed
├── SpaceMismatch                  4     two vector spaces would have met
│   └── PrecisionMismatch                two precisions of one, which nobody has found to agree
├── ServingError                   3     a request to a server; `vecferry.server.answers` has their HTTP statuses
│   ├── BadRequest                       a request that is not as the interface says
│   ├── RequestTooLarge                  over one of the server's limits
│   ├── TextTooLong                      over the model's tokens, and not to be cut
│   ├── ReceiveTimeout                   a request that did not arrive in time
│   ├── NotAuthorized                    no key, or one that is not known
│   ├── UnknownHost                      a name that leads here and is not the server's
│   ├── RouteNotFound
│   ├── ModelNotServed
│   ├── TokenIdsRefused                  ids, which may be another tokenizer's
│   ├── Overloaded                       a queue is full, or what requests hold in memory
│   ├── DeadlineExceeded
│   ├── NotReady                         no run has succeeded, or the runtime broke
│   └── ServerFailed                     as a client sees it: what a server answered, or that it did not
├── StoreError                     3     the database that holds the vectors
│   ├── StoreUnreachable
│   ├── NothingFound                     no vectors that could be migrated
│   ├── StoreSchemaError                 table, column, key or type is not as needed
│   └── StoreFailed
├── EngineError                    3     the machines on which models run
│   ├── EngineUnreachable
│   ├── EngineStalled                    nothing came from the workers, several times
│   └── NodeRefused                      a machine whose vectors cannot be trusted
└── MigrationError                 4     the state of a migration
    ├── MigrationNotFound
    ├── IllegalTransition
    │   └── GateNotPassed                no pass of the gate, and no override of it
    ├── MigrationConflict                the same name, another plan
    ├── SameFunction                     the vectors are of the new model already, in another precision
    ├── MigrationsOpen                   what all of them share cannot go yet
    ├── DependentsInTheWay               what stands on the vectors and would be left on the old ones
    ├── VectorsUnconfirmed               what they were made from is not known, or not as the file says
    ├── CutoverRefused
    ├── PauseExceeded                    what others waited for took too long, and was undone
    ├── NotConfirmed                     a verb that drops vectors or does several steps, and nobody said yes
    ├── Interrupted                      a runner was asked to stop, or must not go on
    ├── LeaseLost                  5     somebody else took over meanwhile
    └── Locked                     5     somebody else is at work here

An error has fields; `message` is made from them, and `hint` can be typed. Exit codes are the command
line's: 0 is success, 1 a fault of our own, 130 an interrupt.
"""

from __future__ import annotations

import errno
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class VecferryError(Exception):
    """Base of all. Subclasses are dataclasses; `template` and `advice` name their fields."""

    exit_code: ClassVar[int] = 1
    template: ClassVar[str] = "an error of vecferry"
    advice: ClassVar[str] = ""

    @property
    def message(self) -> str:
        """What was wrong, and with what value."""
        return self.template.format(**self._shown())

    @property
    def hint(self) -> str:
        """What to do, or to type, next."""
        return self.advice.format(**self._shown())

    def _shown(self) -> dict[str, object]:
        return {k: ", ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in vars(self).items()}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        """Return what a pickle needs: an error comes back from another process with its fields."""
        return _restored, (type(self), vars(self))


def _restored(kind: type[VecferryError], fields: dict[str, object]) -> VecferryError:
    error = kind.__new__(kind)
    vars(error).update(fields)
    return error


def reason_of(exc: OSError) -> str:
    """Say why the system refused, in words."""
    reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
    return reasons.get(exc.errno or 0, exc.strerror or str(exc))


def cut_repr(value: object) -> str:
    """Return a short `repr` of any value, of which nothing long is built first."""
    return SHORT.repr(value)


MAX_PLACE = 100
"""Characters of a place that are shown, which may be what a client sent."""
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80


def printable(text: str) -> str:
    """Return a text in which a terminal finds nothing to obey: control characters and their like as escapes.

    Ends of lines stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def without_secrets(url: str) -> str:
    """Return a URL as it may be shown: with … for user and password, and for the values of its query."""
    without_user = re.sub(r"^([a-z0-9+.-]+:/*)?.*@", r"\1…@", url, flags=re.IGNORECASE | re.DOTALL)
    return re.sub(r"([?&;][^=&;]*)=[^&;#]*", r"\1=…", without_user)


# --- input and settings ---------------------------------------------------------------------------


class InvalidInput(VecferryError):
    """The caller's texts or arguments."""

    exit_code = 2


class EmptyInput(InvalidInput):
    """There was nothing to encode."""

    template = "no texts were given."
    advice = "Pass at least one text."


@dataclass(eq=False)
class InvalidText(InvalidInput):
    """One text cannot be encoded. row: its position in the input, from 0."""

    template = "text {row} cannot be encoded: {reason}."
    advice = "Repair or leave out that text."
    row: int
    reason: str

    def at(self, row: int) -> InvalidText:
        """Return the same error of the text at another position, as the caller counts."""
        return type(self)(row, self.reason)


@dataclass(eq=False)
class WrongTextType(InvalidText, TypeError):
    """One text is no string. reason: what it is."""

    template = "text {row} is {reason}."
    advice = "Texts are strings: convert it, or leave it out."


@dataclass(eq=False)
class WrongInputType(InvalidInput, TypeError):
    """What was given is not of the kind that was expected. remedy: what to give instead, as a sentence."""

    template = "{expected} was expected, not {kind}."
    advice = "{remedy}"
    expected: str
    kind: str
    remedy: str


@dataclass(eq=False)
class InvalidRecord(InvalidInput):
    """One line of an input file; lines count from 1."""

    template = "{path}, line {line}: {reason}."
    advice = 'Each line is {{"id": ..., "text": "..."}} or a plain text.'
    path: str
    line: int
    reason: str


@dataclass(eq=False)
class InvalidFilter(InvalidInput):
    """A filter of a search is none, or none for this store. where: its place in the filter; empty for the whole."""

    template = "the filter{place}: {reason}."
    advice = (
        'A filter is such as {{"lang": "en"}}, {{"year": {{"$gte": 2020}}}} or {{"$or": [..., ...]}}: docs/filters.md.'
    )
    where: str
    reason: str

    def _shown(self) -> dict[str, object]:
        place = ascii(self.where[:MAX_PLACE])[1:-1]
        return super()._shown() | {"place": f" at {place}" if place else ""}


@dataclass(eq=False)
class HeadUnavailable(InvalidInput):
    """The model does not have an output that was asked for."""

    template = "the output {requested!r} is not among this model's: {available}."
    advice = "Leave it out, or use a model that has it (BGE-M3 has dense, sparse and colbert)."
    requested: str
    available: Sequence[str]


@dataclass(eq=False)
class NotPicklable(InvalidInput, TypeError):
    """An object cannot go to another process or into a file. remedy: what can, as a sentence."""

    template = "{what} cannot be pickled: {reason}."
    advice = "{remedy}"
    what: str
    reason: str
    remedy: str


class SecretNotPickled(NotPicklable):
    """what: an object with a key or a password in it, shown without it."""

    def __init__(self, what: str) -> None:
        remedy = (
            "An adapter with vecferry.integrations.connecting.Connection(url=URL, api_key_env=NAME) can be: "
            "the other process reads the key from its own environment."
        )
        super().__init__(what, "a secret is never written down", remedy)


@dataclass(eq=False)
class MemberRefused(InvalidInput, AttributeError):
    """A method or attribute of another library's class is not there. remedy: what to do, as a sentence."""

    template = "{kind}.{member} is not supported."
    advice = "{remedy}"
    kind: str
    member: str
    remedy: str


@dataclass(eq=False)
class MissingModel(InvalidInput):
    """A migration was made without a model that this verb needs. side: "new" or "old"."""

    template = "{verb} needs the {side} model, and this migration was made without it."
    advice = "Migration(store, {side}=ENCODER)"
    verb: str
    side: str


@dataclass(eq=False)
class NotEncoded(InvalidInput, AttributeError):
    """An output was read that had not been asked for."""

    template = "{output} was not encoded."
    advice = "encode(texts, outputs=Outputs.parse('dense,{output}'))"
    output: str


@dataclass(eq=False)
class SettingsError(VecferryError):
    """A setting has a value that it cannot have."""

    exit_code = 2
    template = "{name}={value} is not valid: expected {expected}."
    advice = "Correct {name} where it was set: option, --config file, environment or .env (see .env.example)."
    name: str
    value: object
    expected: str


class MissingOption(SettingsError):
    """An option that has no default was not given. example: how to give it."""

    template = "{name} is missing: {expected}."
    advice = "Add {example}"

    def __init__(self, name: str, expected: str, example: str) -> None:
        super().__init__(name, "", expected)
        self.example = example


class ArgumentRefused(SettingsError, TypeError):
    """An argument of another library's class asks for what is not done here. remedy: what to do, as a sentence."""

    template = "{name}={value} is not supported."
    advice = "{remedy}"

    def __init__(self, name: str, value: object, remedy: str) -> None:
        super().__init__(name, cut_repr(value), "")
        self.remedy = remedy


class UnreadableFile(SettingsError):
    """A file that was named cannot be read. expected: why."""

    template = "{name} {value} cannot be read: {expected}."
    advice = "Give a file that is there and that this process may read."


class UnknownSetting(SettingsError):
    """A file has a section or key that there is not. meant: the known one that is spelt most like it, or empty."""

    template = "{name} is not known: expected {expected}."

    def __init__(self, name: str, value: object, expected: str, meant: str) -> None:
        super().__init__(name, value, expected)
        self.meant = meant

    @property
    def hint(self) -> str:
        return f"Did you mean {self.meant}?" if self.meant else super().hint


class InvalidStoreUrl(SettingsError):
    """value: the URL, shown without what may be a password."""

    template = "{value} is not the URL of a store: expected {expected}."
    advice = "Correct it where it was set: the command line, [store] url of the --config file, or VECFERRY_STORE_URL."

    def __init__(self, value: str, expected: str) -> None:
        super().__init__("url", without_secrets(value), expected)


class AddressUnavailable(SettingsError):
    """A server cannot listen there. expected: why."""

    template = "{value} cannot be listened on: {expected}."
    advice = "Choose another --host or --port; --port 0 takes a free one."


@dataclass(eq=False)
class MissingExtra(VecferryError):
    """An optional dependency is not installed."""

    exit_code = 3
    template = "the package {package!r} is not installed."
    advice = "pip install 'vecferry[{extra}]'"
    extra: str
    package: str


@dataclass(eq=False)
class ExtensionsDisabled(VecferryError):
    """The sqlite3 of this Python was built so that it loads no extensions, and there is no pysqlite3 either."""

    exit_code = 3
    template = "the sqlite3 of this Python cannot load extensions, and sqlite-vec is one."
    advice = "pip install pysqlite3, or use a Python whose sqlite3 loads extensions"


# --- checkpoints ----------------------------------------------------------------------------------


class SourceError(VecferryError):
    """What is wrong with where a checkpoint comes from. What a file of others says is cut to `MAX_SHOWN` characters."""

    exit_code = 3
    MAX_SHOWN: ClassVar[int] = 500

    def _shown(self) -> dict[str, object]:
        shown = super()._shown().items()
        return {k: v[: self.MAX_SHOWN] + "…" if isinstance(v, str) and len(v) > self.MAX_SHOWN else v for k, v in shown}


@dataclass(eq=False)
class SourceNotFound(SourceError):
    """There is no checkpoint of that name."""

    template = "no checkpoint at {source!r}: {reason}."
    advice = "Give a folder in Hugging Face layout, an installed package (package:NAME) or a hub id (BAAI/bge-m3)."
    source: str
    reason: str


@dataclass(eq=False)
class DownloadFailed(SourceError):
    """The hub could not be reached, or broke off."""

    template = "downloading {source!r} failed: {reason}."
    advice = "Run the same command again: what has arrived is kept. Without a network, give a folder as the source."
    source: str
    reason: str


@dataclass(eq=False)
class ConfigMissing(SourceError):
    """The checkpoint does not say something that must not be guessed. options: one for each fact in what."""

    template = "the checkpoint does not say its {what}."
    advice = "Say it: {options}"
    what: Sequence[str]
    options: Sequence[str]


@dataclass(eq=False)
class UnsupportedModel(SourceError):
    """The checkpoint asks for something that the graph cannot do."""

    template = "{what} {value!r} is not supported."
    advice = "Supported: {supported}."
    what: str
    value: object
    supported: str


@dataclass(eq=False)
class AdapterNotMerged(SourceError):
    """An adapter changes the checkpoint in a way that is not computed here; without it, it is another model."""

    template = "{path} is of an adapter, which cannot be merged here: {reason}."
    advice = (
        "Merge it first. With the base model in BASE and the adapter's two files in ADAPTER: "
        'pip install peft && python -c "from peft import PeftModel; from transformers import AutoModel; '
        "PeftModel.from_pretrained(AutoModel.from_pretrained('BASE'), 'ADAPTER').merge_and_unload()"
        ".save_pretrained('MERGED')\", then copy the other files of the checkpoint to MERGED."
    )
    path: Path
    reason: str


@dataclass(eq=False)
class UnsafePickle(SourceError):
    """A pickle asks for more than tensors and containers; it was not run."""

    template = "{path} was not read: it asks for {asks_for}, and only tensors are allowed."
    advice = "Do not load it with other tools; get the checkpoint from its publisher, as safetensors if offered."
    path: Path
    asks_for: str


@dataclass(eq=False)
class CheckpointIncomplete(SourceError):
    """What is there is another form of a model, or a part of one. remedy: what to do, or to type."""

    template = "{path} cannot be converted: {reason}."
    advice = "{remedy}."
    path: Path
    reason: str
    remedy: str


@dataclass(eq=False)
class CheckpointDamaged(SourceError):
    """A file of the checkpoint is missing, unreadable or contradicts itself."""

    template = "{path} cannot be used: {reason}."
    advice = "Fetch the checkpoint again and compare its SHA-256 with the publisher's."
    path: Path
    reason: str


# --- artifacts and runtimes -----------------------------------------------------------------------


class ArtifactError(VecferryError):
    """What is wrong with a converted model's folder."""

    exit_code = 3


@dataclass(eq=False)
class ArtifactNotFound(ArtifactError):
    """There is no converted model."""

    template = "no converted model at {path}."
    advice = "Convert one: vecferry convert BAAI/bge-m3 {path}"
    path: Path


@dataclass(eq=False)
class ArtifactDamaged(ArtifactError):
    """The folder does not hold what its manifest says."""

    template = "{path} is damaged: {reason}."
    advice = "Convert again: vecferry convert SOURCE {path}"
    path: Path
    reason: str


@dataclass(eq=False)
class ArtifactWriteFailed(ArtifactError):
    """The system refused to write; what was there before is untouched."""

    template = "{path} was not written: {reason}. What was there before is untouched."
    advice = "Free space or choose another --output, then run the same command again."
    path: Path
    reason: str


@dataclass(eq=False)
class OutputWriteFailed(VecferryError):
    """The system refused to write a file of embeddings; what was there before is untouched."""

    exit_code = 3
    template = "{path} was not written: {reason}. What was there before is untouched."
    advice = "Free space or choose another --output, then run the same command again."
    path: Path
    reason: str


class OutputExists(OutputWriteFailed):
    """There is a file of that name, which was not asked to be replaced."""

    template = "{path} was not written: {reason}."
    advice = "Add --force to replace it, or choose another --output."

    def __init__(self, path: Path) -> None:
        super().__init__(path, "it is there already")


class StagingUnusable(OutputWriteFailed):
    """The folder where a migration's encoded vectors wait cannot be written to, or has no room for them."""

    template = "nothing can be staged at {path}: {reason}."
    advice = "Free space there, or name another folder: [limits] staging in the --config file."


class ModelRuntimeError(VecferryError):
    """What runs the model cannot be had, or failed."""

    exit_code = 3


@dataclass(eq=False)
class RuntimeUnavailable(ModelRuntimeError):
    """A runtime cannot be used on this machine."""

    template = "the {runtime} runtime cannot be used: {reason}."
    advice = "{remedy}"
    runtime: str
    reason: str
    remedy: str


@dataclass(eq=False)
class RuntimeFailed(ModelRuntimeError):
    """A runtime failed on a batch of that shape."""

    template = "the {runtime} runtime failed on a batch of {rows} × {tokens} tokens: {reason}."
    advice = "Check the model: vecferry verify MODEL"
    runtime: str
    rows: int
    tokens: int
    reason: str


@dataclass(eq=False)
class VectorUnusable(ModelRuntimeError):
    """What a model made of one text is not a vector. row: the text's position in the input, from 0."""

    template = "text {row} was not encoded: {reason}."
    advice = "Check the model: vecferry verify MODEL; if it passes, repair or leave out that text."
    row: int
    reason: str


@dataclass(eq=False)
class OutOfMemory(ModelRuntimeError):
    """rows and tokens are 0 while the model is being loaded."""

    template = "out of memory in the {runtime} runtime on a batch of {rows} × {tokens} tokens."
    advice = "Give the process more memory (of a GPU: end others that hold it), or split the text."
    runtime: str
    rows: int
    tokens: int


@dataclass(eq=False)
class OverMemoryBudget(OutOfMemory):
    """One text would take more than a run may; nothing was run. In millions of bytes, without the weights."""

    template = "a text of {tokens} tokens would take {predicted_mb} MB in one run, and {allowed_mb} MB are allowed."
    advice = "Set VECFERRY_MEMORY_BUDGET_MB={predicted_mb} or more, or split the text."
    predicted_mb: int
    allowed_mb: int


@dataclass(eq=False)
class VerificationFailed(VecferryError):
    """Checks of the converted model failed; `failed` are their names with what was seen."""

    exit_code = 4
    template = "{path} failed verification: {failed}."
    advice = "Do not use it. Convert again from a checkpoint whose digests are known to be right."
    path: Path
    failed: Sequence[str]


@dataclass(eq=False)
class PrecisionRefused(VecferryError):
    """A narrower form would lose more than it may; `failed` are the checks with what was seen."""

    exit_code = 4
    template = "{precision} does not keep what fp32 has: {failed}."
    advice = "Convert with --precision fp32, or with auto, which then takes fp32 by itself."
    precision: str
    failed: Sequence[str]


@dataclass(eq=False)
class SpaceMismatch(VecferryError):
    """Vectors of two spaces would have met. Both are marks, which begin with the fingerprint."""

    exit_code = 4
    template = "{where}: vector space {found:.12}, expected {expected:.12}; their vectors cannot be compared."
    advice = "Use the model that made the stored vectors, or migrate them: vecferry migrate --help"
    expected: str
    found: str
    where: str


@dataclass(eq=False)
class PrecisionMismatch(SpaceMismatch):
    """Two precisions of one function would have met in a role in which nobody has measured that they may."""

    template = "{where}: not to be used for a {role}: {reason}."
    advice = (
        "Use the model in the precision of the stored vectors, or measure it: vecferry convert SOURCE OUTPUT"
        " --precision int8 --labelled FOLDER"
    )
    role: str
    reason: str


# --- serving --------------------------------------------------------------------------------------


class ServingError(VecferryError):
    """A request that a server did not do."""

    exit_code = 3


@dataclass(eq=False)
class BadRequest(ServingError):
    """A request is not as the interface says. where: the field, or what else was wrong."""

    template = "{where}: {reason}."
    advice = "The interface is described at /openapi.json."
    where: str
    reason: str


@dataclass(eq=False)
class RequestTooLarge(ServingError):
    """A request is over a limit; `option` is how the server's operator raises it."""

    template = "{what}: {value}, and {allowed} is allowed."
    advice = "Send it in parts; the server's operator can raise {option}."
    what: str
    value: object
    allowed: object
    option: str


@dataclass(eq=False)
class TextTooLong(ServingError):
    """A text has more tokens than the model reads, and the request does not allow to cut it. row: from 0."""

    template = "text {row} is longer than the {max_tokens} tokens that the model reads."
    advice = 'Split it, or allow to cut it with "truncate": true.'
    row: int
    max_tokens: int


@dataclass(eq=False)
class ReceiveTimeout(ServingError):
    """The rest of a request did not come."""

    template = "the request did not arrive within {seconds} seconds."
    advice = "Send it again, or in parts."
    seconds: float


class NotAuthorized(ServingError):
    """No API key, or one that this server does not know."""

    template = "the request has no API key that this server knows."
    advice = "Send the header Authorization: Bearer KEY."


@dataclass(eq=False)
class UnknownHost(ServingError):
    """Any name may be made to lead to a server (DNS rebinding); this one is not among its own."""

    template = "there is nothing under the name {host!r} here."
    advice = "Use an address or localhost; whoever runs it can allow a name: --host-name NAME"
    host: str


@dataclass(eq=False)
class RouteNotFound(ServingError):
    """There is nothing at a path. likely: what was perhaps meant."""

    template = "there is nothing at {path}."
    advice = "Perhaps {likely} was meant, by another base URL; there are {routes}."
    path: str
    likely: str
    routes: Sequence[str]


@dataclass(eq=False)
class ModelNotServed(ServingError):
    """No model of that name is here."""

    template = "the model {name!r} is not served here."
    advice = (
        "Served: {served}. Whoever runs the server can give a model that name (NAME=MODEL), or allow any name to one:"
        " --any-model-name"
    )
    name: str
    served: Sequence[str]


class TokenIdsRefused(ServingError):
    """Token ids instead of texts; nothing in them says whose they are."""

    template = "token ids are not taken: those of another tokenizer would give vectors of other texts."
    advice = (
        "Send texts, with LangChain by OpenAIEmbeddings(check_embedding_ctx_length=False); for clients that send this"
        " model's own ids (POST /tokenize) the server takes them with --token-ids."
    )


@dataclass(eq=False)
class Overloaded(ServingError):
    """As much waits, or is held, as may at a time. what: is counted in value and allowed."""

    template = "{what}: {value}, and {allowed} may be at a time."
    advice = "Try again in {retry_after_s} seconds."
    what: str
    value: int
    allowed: int
    retry_after_s: int


@dataclass(eq=False)
class DeadlineExceeded(ServingError):
    """A request waited for as long as it may; what was not computed by then was left out."""

    template = "the request was not answered within its {seconds} seconds."
    advice = "Send less at a time, or allow more: the header X-Request-Timeout, up to the server's --deadline-s."
    seconds: float


@dataclass(eq=False)
class NotReady(ServingError):
    """The model cannot answer now."""

    template = "the model {model!r} cannot answer now: {reason}."
    advice = "GET /health says when it can."
    model: str
    reason: str


@dataclass(eq=False)
class ServerFailed(ServingError):
    """What came instead of an answer. status: of HTTP; 0 if there was no answer at all."""

    template = "the server at {url} did not answer the request ({status}): {reason}."
    advice = "Whether it works is said by: curl {url}/health"
    url: str
    status: int
    reason: str


# --- stores and migrations ------------------------------------------------------------------------


class StoreError(VecferryError):
    """The database that holds the vectors."""

    exit_code = 3


@dataclass(eq=False)
class StoreUnreachable(StoreError):
    """The database did not answer, or went away."""

    template = "the {store} store cannot be reached: {reason}."
    advice = "Check --store, [store] url of the --config file, or VECFERRY_STORE_URL, and that the server runs."
    store: str
    reason: str


@dataclass(eq=False)
class StoreSchemaError(StoreError):
    """A table, column, key or type is not as a migration needs it."""

    template = "{what}."
    advice = "{expected}"
    what: str
    expected: str


@dataclass(eq=False)
class CaptureLost(StoreSchemaError):
    """What is written is not noted any more: somebody took a trigger away, or switched it off for a while."""

    template = "what is written to {what} is not noted any more: its triggers vecferry_* were dropped or disabled."
    advice = "{expected}"


@dataclass(eq=False)
class NothingFound(StoreError):
    """A store was looked at, and has no vectors that could be migrated. looked_at: at what, and what it is."""

    template = "no vectors to migrate are in {store}: {looked_at}."
    advice = "{remedy}"
    store: str
    looked_at: str
    remedy: str


@dataclass(eq=False)
class StoreFailed(StoreError):
    """The database refused a statement."""

    template = "the {store} store refused: {reason}."
    advice = "Nothing half-done was kept. Remove the cause and run the same command again."
    store: str
    reason: str


class EngineError(VecferryError):
    """The machines on which models run."""

    exit_code = 3


@dataclass(eq=False)
class EngineUnreachable(EngineError):
    """There is no cluster at that address, or it cannot be joined."""

    template = "no Ray cluster can be used at {address!r}: {reason}."
    advice = (
        "Begin one: ray start --head; and say its address: --ray-address HOST:6379. RAY_AUTH_MODE, and Ray's token "
        "where it is used, must be the same here as on the cluster."
    )
    address: str
    reason: str


@dataclass(eq=False)
class EngineStalled(EngineError):
    """causes: what came of each try, as far as anything was seen."""

    template = "the workers did nothing in {tries} tries: {causes}. Missing: {missing}."
    advice = (
        "What is done is kept; the same command goes on. A slow range wants fewer --rows-per-range or more stall_s."
    )
    tries: int
    causes: Sequence[str]
    missing: str


@dataclass(eq=False)
class NodeRefused(EngineError):
    """A machine of the cluster whose vectors would not be, or cannot be shown to be, those of this model."""

    template = "the node {node} was refused: {reason}."
    advice = "Take it out of the cluster (ray stop, on that machine) or repair it, then run the same command again."
    node: str
    reason: str


class MigrationError(VecferryError):
    """The state of a migration does not allow what was asked for."""

    exit_code = 4


@dataclass(eq=False)
class MigrationNotFound(MigrationError):
    """No migration was begun."""

    template = "there is no migration of {name!r} in this database."
    advice = "Begin one: vecferry migrate start"
    name: str


@dataclass(eq=False)
class IllegalTransition(MigrationError):
    """The verb is not possible in this state; `allowed` are those that are."""

    template = "{verb} is not possible in state {state!r}."
    advice = "Possible now: {allowed}."
    verb: str
    state: str
    allowed: Sequence[str]


@dataclass(eq=False)
class GateNotPassed(IllegalTransition):
    """verdict: the one of the gate, as a sentence."""

    template = "{verb} is not possible in state {state!r}, since the gate has not passed: {verdict}"
    advice = "Once that is better: vecferry migrate verify; or else: vecferry migrate override --reason REASON"
    verdict: str


@dataclass(eq=False)
class MigrationConflict(MigrationError):
    """A migration goes on as it was begun."""

    template = "the migration of {name!r} was begun with {field}={stored}, not {value}."
    advice = "Go on with {field}={stored}, or finish that migration first."
    name: str
    field: str
    stored: object
    value: object


@dataclass(eq=False)
class SameFunction(MigrationError):
    """The vectors are of the new model already, in another precision: nothing need be encoded again."""

    template = "the vectors of {target} are of the new model already, in {present}: none need be encoded in {wanted}."
    advice = (
        "Serve them with it as they are, if its verdict allows: [models] serve. To encode all of them again:"
        " reencode = true in [models]."
    )
    target: str
    present: str
    wanted: str


@dataclass(eq=False)
class MigrationsOpen(MigrationError):
    """What all migrations of a database share cannot go while one needs it. targets: of those that have not ended."""

    template = "not every migration of this database has ended: {targets}."
    advice = "End each first: vecferry migrate finalize, or abort"
    targets: str


@dataclass(eq=False)
class DependentsInTheWay(MigrationError):
    """names: of objects that would stand on the wrong vectors; dependents: these, and what would become of them."""

    template = "{dependents}."
    advice = (
        "Drop them for the time of the migration and make them again after the switch, or accept each by its name:"
        " vecferry migrate start --accept-dependent {names}"
    )
    dependents: str
    names: str


@dataclass(eq=False)
class VectorsUnconfirmed(MigrationError):
    """finding: what a sample shows, in sentences; remedy: what to do about it."""

    template = "{target} is not migrated on trust: {finding}"
    advice = "{remedy} Or say why you know better: vecferry migrate start --accept-unconfirmed REASON"
    target: str
    finding: str
    remedy: str


@dataclass(eq=False)
class CutoverRefused(MigrationError):
    """keys: the rows concerned, as far as a person can read them; none where it is not about rows."""

    template = "not switched: {reason}."
    advice = "{remedy}"
    reason: str
    remedy: str
    keys: Sequence[str] = ()

    @property
    def message(self) -> str:
        return f"{super().message} Rows: {', '.join(self.keys)}" if self.keys else super().message


@dataclass(eq=False)
class PauseExceeded(MigrationError):
    """What was done while others waited took longer than they may, and was undone as a whole."""

    template = (
        "{what} was let go: the work took longer than others may wait for it ({max_pause_s:g} s); all is as before."
    )
    advice = "Choose a time when nobody uses it, and allow more: --max-pause-s SECONDS."
    what: str
    max_pause_s: float


@dataclass(eq=False)
class NotConfirmed(MigrationError):
    """A verb that drops vectors or does several steps needs a yes. effect: what it would do; remedy: how to say so."""

    template = "{verb} {effect}; it was not confirmed."
    advice = "{remedy}"
    verb: str
    effect: str
    remedy: str


@dataclass(eq=False)
class Locked(MigrationError):
    """Somebody else is at work on `what`."""

    exit_code = 5
    template = "{what} is being worked on by {holder}."
    advice = "Wait for it to end, or stop it; a stopped run is resumed by the same command."
    what: str
    holder: str


@dataclass(eq=False)
class Interrupted(MigrationError):
    """A run ended before its work did, on purpose."""

    template = "the run ended before its work did: {reason}."
    advice = "Nothing is lost; the same command goes on where it ended."
    reason: str


@dataclass(eq=False)
class LeaseLost(MigrationError):
    """The lease on `target` ran out and somebody else has it; nothing more was written from here."""

    exit_code = 5
    template = "another runner has taken over {target}; this one wrote nothing since."
    advice = "This one may end. Look at the other: vecferry migrate status"
    target: str
