"""The shape of sentence-transformers 5 and 6, without that library.

An argument of theirs that says how the work is done (batch_size, show_progress_bar, device, ...) is accepted and has
no effect: the encoder plans its own batches. One that says what comes out does as theirs does, or is refused by an
ArgumentRefused; docs/integrations.md lists every one. What theirs returns as a tensor is one here only where a tensor
was asked for or given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import DENSE, Float32
from vecferry.errors import ArgumentRefused, MissingExtra, SettingsError
from vecferry.integrations.connecting import EncoderLike, located, opened
from vecferry.integrations.foreign import (
    Deviations,
    MaxTokens,
    encode_within,
    max_tokens_of,
    normalized,
    require_count,
    truncated,
)
from vecferry.model.prompts import PROMPT_ROLES, Role
from vecferry.model.texts import as_texts

T = TypeVar("T")

IN_THIS_PROCESS = "one process encodes with all its processors"
DEVICE = "VECFERRY_DEVICE says where the model runs"
NO_MODULE = "No PyTorch module is behind this class: keep sentence-transformers for it."
NO_TRAINING = "Train with sentence-transformers, then convert the checkpoint."
NO_SAVING = "The converted folder is the model: copy it, or save the checkpoint with sentence-transformers."
TOKENIZER = "tokenizers.Tokenizer.from_file reads the tokenizer.json of the converted model's folder."
DEVIATIONS = Deviations(
    no_effect={
        "batch_size": "batches are planned by their tokens",
        "show_progress_bar": "there is no progress bar",
        "device": DEVICE,
        "chunk_size": IN_THIS_PROCESS,
        "pool": IN_THIS_PROCESS,
        "target_devices": IN_THIS_PROCESS,
        "start_multi_process_pool": IN_THIS_PROCESS,
        "stop_multi_process_pool": "there is no pool",
        "cache_folder": "nothing is downloaded",
        "local_files_only": "nothing is downloaded",
        "token": "nothing is downloaded",
        "use_auth_token": "nothing is downloaded",
        "trust_remote_code": "no code of a checkpoint is run",
        "model_kwargs": "the converted model has its precision, and ONNX Runtime its own kernels",
        "model_card_data": "no model card is written",
        "backend": "ONNX Runtime runs the model",
        "eval": "the model is never trained",
        "requires_grad_": "the model is never trained",
        "compile": "ONNX Runtime optimises the model when it is loaded",
        "share_memory": "a pickle has no weights",
        "clear_placement_cache": "there is no placement",
        **dict.fromkeys(("to", "cpu", "cuda", "xpu", "ipu", "mtia"), DEVICE),
        **dict.fromkeys(("half", "float", "double", "bfloat16", "type"), "the converted model has its precision"),
    },
    refused={
        "revision": "A folder has one revision: convert the checkpoint at that one, and open its folder.",
        "processor_kwargs": "Leave it out: the converted model has its tokenizer and its maximum length.",
        "tokenizer_kwargs": "Leave it out: the converted model has its tokenizer and its maximum length.",
        "config_kwargs": "Leave it out: the converted model has its configuration.",
        "output_value": "Leave it out; BGEM3FlagModel.encode(return_colbert_vecs=True) gives BGE-M3's token vectors.",
        "precision": "Leave it out; sentence_transformers.util.quantize_embeddings takes these vectors.",
        "processing_kwargs": "Leave it out: the converted model has its tokenizer and its maximum length.",
        **dict.fromkeys(("tokenizer", "processor", "tokenize", "preprocess", "get_sentence_features"), TOKENIZER),
        **dict.fromkeys(
            (
                "fit", "old_fit", "train", "smart_batching_collate", "gradient_checkpointing_enable", "zero_grad",
                "add_adapter", "load_adapter", "set_adapter", "active_adapter", "active_adapters", "delete_adapter",
                "disable_adapters", "enable_adapters", "get_adapter_state_dict", "check_peft_compatible_model",
                "has_peft_compatible_model",
            ),
            NO_TRAINING,
        ),
        **dict.fromkeys(
            (
                "save", "save_pretrained", "save_to_hub", "push_to_hub", "merge", "model_card_data_class",
                "default_huggingface_organization", "model_type",
            ),
            NO_SAVING,
        ),
        "evaluate": "docs/evaluate.md says how two models are compared.",
        "set_pooling_include_prompt": "Leave it out: the converted model has its pooling.",
        "dtype": "Vectors are float32; the converted model's manifest has its precision.",
        **dict.fromkeys(
            (
                "__call__", "__getitem__", "forward", "config", "transformers_model", "module_kwargs",
                "is_hpu_graph_enabled", "T_destination", "add_module", "append", "apply", "buffers", "call_super_init",
                "children", "dump_patches", "extend", "extra_repr", "get_buffer", "get_extra_state", "get_parameter",
                "get_submodule", "insert", "load_state_dict", "modules", "named_buffers", "named_children",
                "named_modules", "named_parameters", "parameters", "pop", "register_backward_hook", "register_buffer",
                "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
                "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
                "register_load_state_dict_pre_hook", "register_module", "register_parameter",
                "register_state_dict_post_hook", "register_state_dict_pre_hook", "set_extra_state", "set_submodule",
                "state_dict", "to_empty",
            ),
            NO_MODULE,
        ),
    },
)  # fmt: skip
REFUSED_ARGUMENTS = {
    "revision", "processor_kwargs", "tokenizer_kwargs", "config_kwargs", "processing_kwargs", "output_value",
    "precision",
}  # fmt: skip
REFUSED_MEMBERS = tuple(name for name in DEVIATIONS.refused if name not in REFUSED_ARGUMENTS)


@DEVIATIONS.applied_to(REFUSED_MEMBERS)
class SentenceTransformer:
    """Sentence-transformers' model, on an artifact's folder, a server's URL, or an encoder that is open already.

    prompts: by name; those of the model are "query" and "document", which other names of `PROMPT_ROLES` stand for too.
    default_prompt_name: what `encode` puts before a text where the call does not say; by default "document" if the
    model has such a prefix, else none.
    """

    SUPPORTED_SIMILARITY_FN_NAMES = ("cosine", "dot", "euclidean", "manhattan")

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | EncoderLike,
        modules: object = None,
        device: str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        truncate_dim: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        model_card_data: object = None,
        backend: str | None = None,
        *,
        processor_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Open the model; arguments stand in the order of version 5. Raises VecferryError, ArgumentRefused among them.

        truncate_dim: numbers of a vector that are kept. similarity_fn_name: of `similarity`, by default the cosine.
        """
        if modules is not None:
            remedy = "Convert the checkpoint, and open its folder; a device goes by its name: device=..."
            raise ArgumentRefused("modules", modules, remedy)
        DEVIATIONS.refuse(
            revision=revision, tokenizer_kwargs=tokenizer_kwargs or None,
            config_kwargs=config_kwargs or None, processor_kwargs=processor_kwargs or None,
        )  # fmt: skip
        DEVIATIONS.ignore(
            device=device, cache_folder=cache_folder, trust_remote_code=trust_remote_code,
            local_files_only=local_files_only, model_kwargs=model_kwargs, model_card_data=model_card_data,
            backend=backend, token=token and "(not shown)", use_auth_token=use_auth_token and "(not shown)",
        )  # fmt: skip
        self._encoder = opened(located(model_name_or_path))
        space = self._encoder.space
        self.prompts = {"query": space.query_prefix, "document": space.passage_prefix, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or ("document" if space.passage_prefix else None)
        if self.default_prompt_name is not None:
            _one_of("default_prompt_name", self.default_prompt_name, (*self.prompts, *PROMPT_ROLES))
        self.similarity_fn_name = similarity_fn_name
        self.truncate_dim = _dimension(truncate_dim)
        self.trust_remote_code, self.backend, self.model_card_data = trust_remote_code, "onnx", model_card_data
        self._limit: MaxTokens | None = None

    def encode(
        self,
        sentences: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: object = None,
        chunk_size: int | None = None,
        *,
        inputs: str | Sequence[str] | None = None,
        task: Literal["query", "document"] | None = None,
        processing_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Encode to float32 [dimension] for a string, [len(sentences), dimension] for a list, [0] for an empty one.

        convert_to_tensor: the same as a tensor. Neither that nor convert_to_numpy: a list of tensors. inputs: what
        version 6 calls sentences. Raises ArgumentRefused for another output_value or precision, SettingsError for an
        unknown prompt, MissingExtra for a tensor without PyTorch, and as the encoder does.
        """
        if output_value != "sentence_embedding":
            DEVIATIONS.refuse(output_value=str(output_value))
        if precision not in (None, "float32"):
            DEVIATIONS.refuse(precision=precision)
        DEVIATIONS.refuse(processing_kwargs=processing_kwargs or None)
        DEVIATIONS.ignore(
            batch_size=batch_size, show_progress_bar=show_progress_bar, device=device, pool=pool, chunk_size=chunk_size
        )
        value: Any = sentences if inputs is None else inputs
        texts = as_texts([value] if isinstance(value, str) else value)
        role, prefix = self._prompt(prompt, prompt_name, task)
        if prefix:
            texts = [prefix + text for text in texts]
        dimension = self.truncate_dim if truncate_dim is None else _dimension(truncate_dim)
        vectors = truncated(self._encode(texts, role), dimension)
        if normalize_embeddings:
            vectors = normalized(vectors)
        rows = _tensor(vectors) if convert_to_tensor or not convert_to_numpy else vectors
        rows = rows if convert_to_tensor or convert_to_numpy else list(rows)
        return rows[0] if isinstance(value, str) else rows

    def encode_multi_process(
        self,
        sentences: Sequence[str],
        pool: object,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        chunk_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: str | None = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Encode as `encode` does, in this process."""
        return self.encode(
            sentences, prompt_name, prompt, batch_size, show_progress_bar, precision=precision, pool=pool,
            normalize_embeddings=normalize_embeddings, truncate_dim=truncate_dim, chunk_size=chunk_size,
        )  # fmt: skip

    def encode_query(
        self,
        sentences: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: object = None,
        chunk_size: int | None = None,
        *,
        inputs: str | Sequence[str] | None = None,
        processing_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Encode with the prompt "query", where the call names none."""
        return self.encode(
            sentences, prompt_name, prompt, batch_size, show_progress_bar, output_value, precision, convert_to_numpy,
            convert_to_tensor, device, normalize_embeddings, truncate_dim, pool, chunk_size,
            inputs=inputs, task="query", processing_kwargs=processing_kwargs,
        )  # fmt: skip

    def encode_document(
        self,
        sentences: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: object = None,
        chunk_size: int | None = None,
        *,
        inputs: str | Sequence[str] | None = None,
        processing_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Encode with the prompt "document", where the call names none."""
        return self.encode(
            sentences, prompt_name, prompt, batch_size, show_progress_bar, output_value, precision, convert_to_numpy,
            convert_to_tensor, device, normalize_embeddings, truncate_dim, pool, chunk_size,
            inputs=inputs, task="document", processing_kwargs=processing_kwargs,
        )  # fmt: skip

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return float32 [len(embeddings1), len(embeddings2)], by `similarity_fn_name`; a tensor if the first are."""
        a, b = (np.atleast_2d(_array(part)) for part in (embeddings1, embeddings2))
        if self.similarity_fn_name == "cosine":
            return _as_given(normalized(a) @ normalized(b).T, embeddings1)
        if self.similarity_fn_name == "dot":
            return _as_given(a @ b.T, embeddings1)
        pairwise = _PAIRWISE[self.similarity_fn_name]
        return _as_given(np.stack([pairwise(row, b) for row in a]), embeddings1)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return float32 [len(embeddings1)], of pairs at the same place; a tensor if the first are."""
        a, b = _array(embeddings1), _array(embeddings2)
        return _as_given(_PAIRWISE[self.similarity_fn_name](a, b), embeddings1)

    @property
    def similarity_fn_name(self) -> str:
        """What `similarity` computes: the cosine, the dot product, or a distance with a minus before it."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: Any) -> None:
        name = getattr(value, "value", value)  # theirs may be a member of an enumeration
        self._similarity: str = _one_of("similarity_fn_name", name or "cosine", self.SUPPORTED_SIMILARITY_FN_NAMES)

    def get_embedding_dimension(self) -> int:
        return min(self._encoder.dimension, self.truncate_dim or self._encoder.dimension)

    def get_sentence_embedding_dimension(self) -> int:
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Keep that many numbers of each vector inside the block."""
        before, self.truncate_dim = self.truncate_dim, _dimension(truncate_dim)
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    @property
    def max_seq_length(self) -> int:
        """The limit in tokens. Above it a text is cut; where it was set below the model's, the text is refused."""
        return self._encoder.space.max_tokens if self._limit is None else self._limit.value

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._limit = max_tokens_of("max_seq_length", value, self._encoder)

    def get_max_seq_length(self) -> int:
        return self.max_seq_length

    @property
    def device(self) -> str:
        """Where vectors are."""
        return "cpu"

    @property
    def modalities(self) -> list[str]:
        return ["text"]

    def supports(self, modality: str) -> bool:
        return modality in self.modalities

    def is_singular_input(self, inputs: object) -> bool:
        """Return whether `encode` gives one vector for it, and not a matrix."""
        return isinstance(inputs, str)

    def get_backend(self) -> str:
        return "onnx"

    def get_model_kwargs(self) -> list[str]:
        return []

    @staticmethod
    def load(input_path: str) -> SentenceTransformer:
        """Open a model by its folder alone."""
        return SentenceTransformer(input_path)

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """Return a pool for form's sake: `encode` works in this process."""
        DEVIATIONS.ignore(target_devices=target_devices)
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: object) -> None:
        """Do nothing."""
        DEVIATIONS.ignore(pool=pool)

    def to(self, *args: object, **kwargs: object) -> Self:
        """Return the model as it is, as the methods below do."""
        DEVIATIONS.ignore(to=(*args, *kwargs.values()))
        return self

    cpu = cuda = xpu = ipu = mtia = half = float = double = bfloat16 = type = to
    eval = requires_grad_ = share_memory = to

    def compile(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""
        DEVIATIONS.ignore(compile=(*args, *kwargs.values()))

    def clear_placement_cache(self) -> None:
        """Do nothing."""

    def _prompt(self, prompt: str | None, prompt_name: str | None, task: str | None) -> tuple[Role, str]:
        """Split a prompt into the role whose prefix begins it, and the rest, which goes before the text.

        The encoder puts one of the two prefixes before every text: SettingsError for a prompt that begins with neither.
        """
        name, space = prompt_name or task or self.default_prompt_name, self._encoder.space
        if prompt is None and name is not None:
            known = {alias: space.prefix(role) for alias, role in PROMPT_ROLES.items()} | self.prompts
            prompt = known[_one_of("prompt_name", name, tuple(known))]
        prompt = prompt or ""
        prefixes: dict[Role, str] = {"passage": space.passage_prefix, "query": space.query_prefix}
        for role in sorted(prefixes, key=lambda role: role != task):
            if prompt.startswith(prefixes[role]):
                return role, prompt.removeprefix(prefixes[role])
        raise SettingsError("prompt", repr(prompt), f"it to begin with a prefix of the model: {prefixes}")

    def _encode(self, texts: list[str], role: Role) -> NDArray[Any]:
        if not texts:
            return np.array([])
        return encode_within(self._encoder, texts, self._limit, outputs=DENSE, role=role).dense


def _dimension(value: int | None) -> int | None:
    if value is not None:
        require_count("truncate_dim", value)
    return value


def _one_of(name: str, value: T, allowed: tuple[T, ...]) -> T:
    if value not in allowed:
        raise SettingsError(name, value, " or ".join(map(str, allowed)))
    return value


_PAIRWISE: dict[str, Callable[[Float32, Float32], Float32]] = {
    "cosine": lambda a, b: (normalized(a) * normalized(b)).sum(axis=-1),
    "dot": lambda a, b: (a * b).sum(axis=-1),
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=-1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(axis=-1),
}
"""Similarities of vectors at the same place, over the last axis."""


def _array(vectors: Any) -> Float32:
    """Convert an array, a tensor, or a list of either."""
    if isinstance(vectors, list):
        return np.stack([_array(vector) for vector in vectors])
    return np.asarray(vectors.detach().cpu() if hasattr(vectors, "detach") else vectors, np.float32)


def _as_given(scores: Float32, embeddings: Any) -> Any:
    first = embeddings[0] if isinstance(embeddings, list) else embeddings
    return _tensor(scores) if hasattr(first, "detach") else scores


def _tensor(array: NDArray[Any]) -> Any:
    try:
        import torch
    except ImportError as exc:
        raise MissingExtra("torch", "torch") from exc
    return torch.from_numpy(array.astype(np.float32))
