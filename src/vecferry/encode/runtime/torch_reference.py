"""The reference that a conversion is held against: the checkpoint as others read it, so that our misreading shows.

sentence-transformers reads it where it is installed and the checkpoint has its files, else transformers; from these
files alone, and without code of the checkpoint's. Where neither reads it, what stands here is our own reading, and
`describe()` says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vecferry.encode.runtime.torch import CLASSES, TorchRuntime
from vecferry.errors import ConfigMissing, MissingExtra
from vecferry.model.checkpoint import Model
from vecferry.model.layout import ADAPTER_CONFIG, read_layout
from vecferry.model.spec import Overrides, read_spec
from vecferry.model.weights import head_files

try:
    import torch
    import transformers
except ModuleNotFoundError as exc:
    raise MissingExtra("torch", exc.name or "torch") from exc

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
REFUSALS = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What the libraries of others raise for a checkpoint that they do not read."""


class ReferenceRuntime(TorchRuntime):
    """A checkpoint in PyTorch, of which others read the encoder, and, where pool is given, the pooling."""

    def __init__(self, model: Model, encoder: Any, pool: Pool | None, files_read_by: str) -> None:
        heads = {
            f"{path.stem}.{part}": tensor.float()
            for path in head_files(model.folder)
            for part, tensor in torch.load(path, map_location="cpu", weights_only=True).items()
        }
        super().__init__(model, encoder=encoder, heads=heads, files_read_by=files_read_by)
        self._pool = pool

    def _dense(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super()._dense(hidden, mask) if self._pool is None else self._pool(hidden, mask)


def open_reference(model: Model) -> TorchRuntime:
    """Return the checkpoint as others read it, or else as it was read here."""
    reason = _not_read_by_others(model)
    ways = (_by_sentence_transformers, _by_transformers) if _pooling_is_declared(model) else (_by_transformers,)
    for way in ways if reason is None else ():
        try:
            with _quiet():
                return way(model)
        except REFUSALS as exc:
            reason = f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
    return TorchRuntime(model, files_read_by=f"vecferry: {reason}")


def reference_ids(model: Model, texts: Sequence[str]) -> list[list[int]] | None:
    """Return the token ids that transformers gives the texts, or None where it has no tokenizer for the checkpoint."""
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(_inside(model), **LOCAL)
            encoded = tokenizer(list(texts), truncation=True, max_length=model.space.max_tokens)
    except REFUSALS:
        return None
    return [list(ids) for ids in encoded["input_ids"]]


def _not_read_by_others(model: Model) -> str | None:
    """Return why transformers would take other weights than those that were read, or None.

    It looks for a tensor under its own name and under that of its class; without peft it leaves an adapter out.
    """
    known = ("", f"{CLASSES[model.spec.family].base_model_prefix}.")
    if model.weights.prefix not in known:
        return f"transformers knows no tensors {model.weights.prefix}…"
    if (_inside(model) / ADAPTER_CONFIG).exists() and find_spec("peft") is None:
        return "transformers leaves an adapter out where peft is not installed"
    return None


def _pooling_is_declared(model: Model) -> bool:
    """Return whether pooling and normalisation are those of the checkpoint's own files, and no option's."""
    try:
        spec = read_spec(model.folder, replace(Overrides.of(model.spec), pooling=None, normalize=None))
    except ConfigMissing:
        return False
    return spec == model.spec and read_layout(model.folder).normalize is not None


def _by_sentence_transformers(model: Model) -> ReferenceRuntime:
    import sentence_transformers

    whole = sentence_transformers.SentenceTransformer(
        str(model.folder), **LOCAL, device="cpu", model_kwargs={"dtype": torch.float32}
    )
    first, *others = whole

    def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        features = {"token_embeddings": hidden, "attention_mask": mask}
        for module in others:
            features = module(features)
        return features["sentence_embedding"]

    name = f"sentence-transformers {sentence_transformers.__version__}"
    return ReferenceRuntime(model, first.auto_model, pool, name)


def _by_transformers(model: Model) -> ReferenceRuntime:
    encoder = transformers.AutoModel.from_pretrained(_inside(model), **LOCAL, dtype=torch.float32)
    return ReferenceRuntime(model, encoder.eval(), None, f"transformers {transformers.__version__}")


def _inside(model: Model) -> Path:
    return model.folder / read_layout(model.folder).transformer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep others from writing: what they leave out and make up, the pooler, is of no use here."""
    bars: Any = transformers.utils.logging
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels, has_bars = [logger.level for logger in loggers], bars.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if has_bars:
            bars.enable_progress_bar()
