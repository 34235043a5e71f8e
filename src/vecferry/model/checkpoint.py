"""A checkpoint, read: what a conversion writes and what the PyTorch runtime runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vecferry.errors import AdapterNotMerged, CheckpointDamaged
from vecferry.model.artifact import TOKENIZER, VectorSpace, canonical_json
from vecferry.model.completeness import files_in, without_tokenizer, without_weights
from vecferry.model.files import check_not_pointer, read_whole
from vecferry.model.layout import read_layout
from vecferry.model.lora import base_of, with_adapter
from vecferry.model.spec import MAX_TOKENIZER_BYTES, EncoderSpec, Overrides, read_spec
from vecferry.model.tokenizer_files import read_tokenizer_config, reconciled
from vecferry.model.tokens import Tokenizer, canonical_tokenizer, try_tokenizer
from vecferry.model.weights import Array, Weights, adapter_file, open_heads, open_weights, weight_files
from vecferry.precisions import Head

MAY_BE_ZERO = "token_type_embeddings.weight"
"""The only weight that says nothing where a model has one kind of token; biases may be zero too."""


@dataclass(frozen=True)
class Model:
    """Architecture, weights (not read yet), heads if it has them, tokenizer.json in canonical form, vector space."""

    folder: Path
    spec: EncoderSpec
    weights: Weights
    heads: Weights | None
    tokenizer: bytes
    space: VectorSpace


def read_model(folder: Path, overrides: Overrides | None = None) -> Model:
    """Read a checkpoint folder; every weight is read once, for the digest.

    Raises what spec.py, weights.py and lora.py raise, UnsupportedModel for weights that are no floats, and
    CheckpointDamaged for a tokenizer that is unreadable, with token ids that the model has not, or refused by
    a trial in another process (`tokens.try_tokenizer`), and for numbers that no model has: not finite, or all of a
    weight zero.
    """
    inside = folder / read_layout(folder).transformer
    _check_has_weights(inside)
    spec = read_spec(folder, overrides)
    weights, heads = with_adapter(inside, open_weights(inside)), open_heads(folder)
    canonical, tokenizer = _read_tokenizer(inside / TOKENIZER, spec)
    names: tuple[Head, ...] = ("dense",) if heads is None else ("dense", "sparse", "colbert")
    space = VectorSpace(
        weights=weights_digest(spec, weights),
        head_weights=None if heads is None else heads_digest(heads),
        tokenizer=hashlib.sha256(canonical).hexdigest(),
        special_ids=tokenizer.special_ids,
        dimension=spec.hidden,
        pooling=spec.pooling,
        normalize=spec.normalize,
        max_tokens=spec.max_tokens,
        query_prefix=spec.query_prefix,
        passage_prefix=spec.passage_prefix,
        precision="fp32",
        heads=names,
    )
    return Model(folder, spec, weights, heads, canonical, space)


def _check_has_weights(inside: Path) -> None:
    """Refuse what has no weights before anything is asked. Raises CheckpointIncomplete, AdapterNotMerged."""
    if weight_files(inside) or not inside.is_dir():
        return
    if adapter_file(inside) is not None:
        raise AdapterNotMerged(inside, f"the weights of its base model, {base_of(inside)}, are not beside it")
    raise without_weights(inside, files_in(inside))


def _read_tokenizer(path: Path, spec: EncoderSpec) -> tuple[bytes, Tokenizer]:
    try:
        content = read_whole(path, MAX_TOKENIZER_BYTES)
        check_not_pointer(path, content)
        raw = reconciled(path.parent, content, spec.tokenizer_class)
        prefix_space = read_tokenizer_config(path.parent).add_prefix_space is not False
        canonical = canonical_tokenizer(raw, spec.tokenizer_class, prefix_space=prefix_space)
        try_tokenizer(canonical, spec.vocabulary)
        tokenizer = Tokenizer(canonical, spec.max_tokens)
    except FileNotFoundError as exc:
        raise without_tokenizer(path.parent) from exc
    except (ValueError, KeyError, TypeError, OSError) as exc:
        raise CheckpointDamaged(path, f"it is not a tokenizer ({exc})") from exc
    return canonical, tokenizer


def weights_digest(spec: EncoderSpec, weights: Weights) -> str:
    """Return the SHA-256 over the architecture and every tensor that dense vectors depend on, as fp32.

    It is the same for every file format that holds the same numbers, and for every runtime. Raises CheckpointDamaged
    for a number that is not finite and a weight of zeros alone, UnsupportedModel for numbers that are no floats.
    """
    not_weights = {"tokenizer_class", "pooling", "normalize", "max_tokens", "query_prefix", "passage_prefix"}
    digest = hashlib.sha256(canonical_json(spec.model_dump(exclude=not_weights)))
    _add_tensors(digest, weights, ("embeddings.", "encoder."))
    return digest.hexdigest()


def heads_digest(heads: Weights) -> str:
    """Return the SHA-256 over the tensors of the sparse and the ColBERT head. Raises as `weights_digest`."""
    digest = hashlib.sha256()
    _add_tensors(digest, heads, ("sparse_linear.", "colbert_linear."))
    return digest.hexdigest()


def _add_tensors(digest: hashlib._Hash, source: Weights, used: tuple[str, ...]) -> None:
    for name in sorted(source):
        if name.startswith(used) and not name.endswith("position_ids"):
            digest.update(f"{name}{source[name].shape}".encode())
            for piece in _sound_pieces(source, name):
                digest.update(piece)


def _sound_pieces(source: Weights, name: str) -> Iterator[memoryview]:
    """Yield a tensor's bytes, as fp32. Raises CheckpointDamaged for numbers that no model has."""
    with np.errstate(over="ignore"):  # what fp32 cannot hold becomes infinite, and is named below
        array = source.floats(name).as_fp32()
    done, is_zero = 0, True
    for piece in in_pieces(array):
        numbers = np.frombuffer(piece, "<f4")
        is_finite = np.isfinite(numbers)
        if not is_finite.all():
            place = int(is_finite.argmin())
            index = ", ".join(map(str, np.unravel_index(done + place, array.shape)))
            raise source.damaged(f"tensor {name!r} has {numbers[place]} at [{index}], which is no finite number")
        done, is_zero = done + len(numbers), is_zero and not numbers.any()
        yield piece
    if is_zero and name.endswith(".weight") and not name.endswith(MAY_BE_ZERO):
        raise source.damaged(f"tensor {name!r} is all zeros")


def in_pieces(array: Array, bytes_each: int = 1 << 24) -> Iterator[memoryview]:
    """Yield the array's bytes, little-endian, in C order, without a second copy of the whole."""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), bytes_each):
        yield flat[start : start + bytes_each].data
