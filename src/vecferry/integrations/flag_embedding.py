"""The shape of FlagEmbedding's BGEM3FlagModel, without that library.

Differences, each on purpose; docs/integrations.md lists every argument and method:
- FlagEmbedding cuts every text at 512 tokens unless told otherwise; here a text is cut only where the model ends
  (8,192 tokens). A smaller `max_length` is accepted as long as no text is longer, and refused then, not ignored.
- Vectors are float32, in the artifact's precision.
- `colbert_score` gives a NumPy number. In `compute_score` padding never counts; there it does, as a 0, where passages
  of several lengths share a batch and a query token has no positive similarity.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from vecferry.embeddings import Embeddings, Float32, Outputs, colbert_scores, dense_scores, lexical_scores
from vecferry.encode.encoder import Role
from vecferry.errors import ArgumentRefused, MemberRefused, WrongInputType
from vecferry.integrations.connecting import EncoderLike, located, opened
from vecferry.integrations.foreign import (
    Deviations,
    encode_within,
    max_tokens_of,
    normalized,
    require_count,
    tokenizer_of,
    truncated,
)
from vecferry.model.texts import as_items, as_texts
from vecferry.model.tokens import Tokenizer

Weights = dict[str, float]
MODES = ("dense", "sparse", "colbert")
NO_MODEL = "No PyTorch model is behind this class: keep FlagEmbedding for it."
DEVIATIONS = Deviations(
    no_effect={
        "use_fp16": "the converted model has its precision",
        "use_bf16": "the converted model has its precision",
        "devices": "VECFERRY_DEVICE says where the model runs",
        "device": "VECFERRY_DEVICE says where the model runs",
        "trust_remote_code": "no code of a checkpoint is run",
        "cache_dir": "nothing is downloaded",
        "batch_size": "batches are planned by their tokens",
        "convert_to_numpy": "vectors are arrays",
        "pool": "one process encodes with all its processors",
        "process_target_func": "one process encodes with all its processors",
        "start_multi_process_pool": "one process encodes with all its processors",
        "stop_multi_process_pool": "there is no pool",
        "stop_self_pool": "there is no pool",
    },
    refused={
        "model": NO_MODEL,
        "kwargs": NO_MODEL,
        "get_model_torch_dtype": NO_MODEL,
        "tokenizer": "tokenizers.Tokenizer.from_file reads the tokenizer.json of the converted model's folder.",
        "normalize_embeddings": "Leave it out: vectors are as the converted model makes them.",
        "pooling_method": "Leave it out: the converted model has its pooling.",
        "colbert_dim": "Leave it out: the converted model has its ColBERT dimension.",
    },
)
REFUSED_MEMBERS = ("model", "kwargs", "get_model_torch_dtype", "tokenizer")


@DEVIATIONS.applied_to(REFUSED_MEMBERS)
class BGEM3FlagModel:
    """FlagEmbedding's model, on an artifact's folder, a server's URL, or an encoder that is open already."""

    DEFAULT_POOLING_METHOD = "cls"

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | EncoderLike,
        normalize_embeddings: bool = True,
        use_fp16: bool | None = None,
        use_bf16: bool | None = None,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: str | int | list[str] | list[int] | None = None,
        pooling_method: str | None = None,
        trust_remote_code: bool | None = None,
        cache_dir: str | None = None,
        colbert_dim: int = -1,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        *,
        passage_instruction_for_retrieval: str | None = None,
        passage_instruction_format: str = "{}{}",
        convert_to_numpy: bool | None = None,
        device: str | None = None,
    ) -> None:
        """Open the model. Raises ArgumentRefused for what the model does otherwise, and as its opening.

        truncate_dim: numbers of a dense or ColBERT vector that are kept, of unit length again. Instructions stand
        before texts, after the model's own prefixes.
        """
        self._encoder = opened(located(model_name_or_path))
        space = self._encoder.space
        if normalize_embeddings != space.normalize:
            DEVIATIONS.refuse(normalize_embeddings=normalize_embeddings)
        if pooling_method not in (None, space.pooling):
            DEVIATIONS.refuse(pooling_method=pooling_method)
        if colbert_dim not in (-1, space.dimension):
            DEVIATIONS.refuse(colbert_dim=colbert_dim)
        DEVIATIONS.ignore(
            use_fp16=use_fp16, use_bf16=use_bf16, devices=devices, device=device, trust_remote_code=trust_remote_code,
            cache_dir=cache_dir, batch_size=batch_size, convert_to_numpy=convert_to_numpy,
        )  # fmt: skip
        if truncate_dim is not None:
            require_count("truncate_dim", truncate_dim)
        for name, value in {"query_max_length": query_max_length, "passage_max_length": passage_max_length}.items():
            max_tokens_of(name, value, self._encoder)
        self.model_name_or_path = model_name_or_path
        self.normalize_embeddings, self.pooling_method = normalize_embeddings, space.pooling
        self.use_fp16, self.use_bf16, self.batch_size, self.pool = use_fp16, use_bf16, batch_size, None
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_retrieval = passage_instruction_for_retrieval
        self.passage_instruction_format = passage_instruction_format
        self.query_max_length, self.passage_max_length = query_max_length, passage_max_length
        self.truncate_dim, self.convert_to_numpy = truncate_dim, True
        self.target_devices = self.get_target_devices(devices)
        self.return_dense, self.return_sparse = return_dense, return_sparse
        self.return_colbert_vecs = return_colbert_vecs

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        instruction: str | None = None,
        instruction_format: str = "{}{}",
        convert_to_numpy: bool | None = None,
        role: Role = "passage",
    ) -> dict[str, Any]:
        """Encode sentences, and return each output under its name in FlagEmbedding.

        dense_vecs: float32 [N, dimension]; lexical_weights: N dicts, of weights by token id as a string;
        colbert_vecs: N arrays, float32 [tokens - 1, dimension]. None for what was not requested; of a single string
        each is its own, not a list. Raises ArgumentRefused for a text of more than max_length tokens, before anything
        is computed, and as the encoder.
        """
        DEVIATIONS.ignore(batch_size=batch_size, convert_to_numpy=convert_to_numpy)
        is_single = isinstance(sentences, str)
        texts = as_texts([sentences] if isinstance(sentences, str) else sentences)
        if instruction is not None:
            texts = [self.get_detailed_instruct(instruction_format, instruction, text) for text in texts]
        outputs = self._outputs(return_dense, return_sparse, return_colbert_vecs)
        embeddings = self._embeddings(texts, role, max_length, outputs)
        every: dict[str, Any] = {"dense_vecs": None, "lexical_weights": None, "colbert_vecs": None}
        if Outputs.DENSE in outputs:
            every["dense_vecs"] = self._shortened(embeddings.dense)
        if Outputs.SPARSE in outputs:
            every["lexical_weights"] = [_weights(embeddings, i) for i in range(len(embeddings))]
        if Outputs.COLBERT in outputs:
            every["colbert_vecs"] = [self._shortened(embeddings.colbert[i]) for i in range(len(embeddings))]
        return {name: values[0] if is_single and values is not None else values for name, values in every.items()}

    def encode_queries(
        self,
        queries: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        convert_to_numpy: bool | None = None,
    ) -> dict[str, Any]:
        """Encode as `encode` does, in the role of queries, with their instruction."""
        return self.encode(
            queries, batch_size, max_length, return_dense, return_sparse, return_colbert_vecs,
            instruction=self.query_instruction_for_retrieval, instruction_format=self.query_instruction_format,
            convert_to_numpy=convert_to_numpy, role="query",
        )  # fmt: skip

    def encode_corpus(
        self,
        corpus: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        convert_to_numpy: bool | None = None,
    ) -> dict[str, Any]:
        """Encode as `encode` does, with the instruction of passages."""
        return self.encode(
            corpus, batch_size, max_length, return_dense, return_sparse, return_colbert_vecs,
            instruction=self.passage_instruction_for_retrieval, instruction_format=self.passage_instruction_format,
            convert_to_numpy=convert_to_numpy,
        )  # fmt: skip

    def encode_single_device(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        device: str | None = None,
    ) -> dict[str, Any]:
        """Encode as `encode` does."""
        DEVIATIONS.ignore(device=device)
        return self.encode(sentences, batch_size, max_length, return_dense, return_sparse, return_colbert_vecs)

    def encode_multi_process(
        self,
        sentences: Sequence[str],
        pool: object,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
    ) -> dict[str, Any]:
        """Encode as `encode` does, in this process."""
        DEVIATIONS.ignore(pool=pool)
        return self.encode(sentences, batch_size, max_length, return_dense, return_sparse, return_colbert_vecs)

    def compute_score(
        self,
        sentence_pairs: Sequence[tuple[str, str]] | tuple[str, str],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
    ) -> dict[str, Any] | list[Any]:
        """Score each pair (query, passage), by mode; numbers for a single pair, [] for none.

        weights_for_different_modes: of dense, sparse and colbert; by default equal.
        """
        DEVIATIONS.ignore(batch_size=batch_size)
        weights = (1.0, 1.0, 1.0) if weights_for_different_modes is None else tuple(weights_for_different_modes)
        if len(weights) != len(MODES):
            remedy = f"Give three weights: {', '.join(MODES)}."
            raise ArgumentRefused("weights_for_different_modes", weights, remedy)
        pairs, is_single = _pairs(sentence_pairs)
        if not pairs:
            return []
        queries = self._embeddings([query for query, _ in pairs], "query", max_query_length, Outputs.ALL)
        passages = self._embeddings([passage for _, passage in pairs], "passage", max_passage_length, Outputs.ALL)
        dense, sparse, colbert = _pair_scores(queries, passages)
        of_dense, of_sparse, of_colbert = weights
        both = dense * of_dense + sparse * of_sparse
        scores = {
            "colbert": colbert,
            "sparse": sparse,
            "dense": dense,
            "sparse+dense": both / (of_sparse + of_dense),
            "colbert+sparse+dense": (both + colbert * of_colbert) / (of_dense + of_sparse + of_colbert),
        }
        return {mode: values[0].item() if is_single else values.tolist() for mode, values in scores.items()}

    def compute_score_single_device(
        self,
        sentence_pairs: Sequence[tuple[str, str]] | tuple[str, str],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        device: str | None = None,
    ) -> dict[str, Any] | list[Any]:
        """Score as `compute_score` does."""
        DEVIATIONS.ignore(device=device)
        return self.compute_score(
            sentence_pairs, batch_size, max_query_length, max_passage_length, weights_for_different_modes
        )

    def compute_score_multi_process(
        self,
        sentence_pairs: Sequence[tuple[str, str]],
        pool: object,
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
    ) -> dict[str, Any] | list[Any]:
        """Score as `compute_score` does, in this process."""
        DEVIATIONS.ignore(pool=pool)
        return self.compute_score(
            sentence_pairs, batch_size, max_query_length, max_passage_length, weights_for_different_modes
        )

    def start_multi_process_pool(self, process_target_func: object = None) -> dict[str, Any]:
        """Return a pool for form's sake: `encode_multi_process` works in this process."""
        DEVIATIONS.ignore(process_target_func=process_target_func)
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: object) -> None:
        """Do nothing."""
        DEVIATIONS.ignore(pool=pool)

    def stop_self_pool(self) -> None:
        """Do nothing."""

    @staticmethod
    def get_target_devices(devices: str | int | list[str] | list[int] | None) -> list[str]:
        """Return the one device on which vectors are."""
        DEVIATIONS.ignore(devices=devices)
        return ["cpu"]

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        """Return the sentence with its instruction, in that format."""
        return instruction_format.replace("\\n", "\n").format(instruction, sentence)

    def compute_lexical_matching_score(
        self, lexical_weights_1: Weights | list[Weights], lexical_weights_2: Weights | list[Weights]
    ) -> Any:
        """Sum products of shared tokens' weights: a number of two dicts, an array [N, M] of two lists."""
        if isinstance(lexical_weights_1, dict) and isinstance(lexical_weights_2, dict):
            return sum(weight * lexical_weights_2.get(token, 0) for token, weight in lexical_weights_1.items())
        if isinstance(lexical_weights_1, list) and isinstance(lexical_weights_2, list):
            match = self.compute_lexical_matching_score
            return np.array([[match(weights, other) for other in lexical_weights_2] for weights in lexical_weights_1])
        raise ValueError("lexical weights are two dicts, or two lists of dicts")

    def colbert_score(self, q_reps: Float32, p_reps: Float32) -> np.float32:
        """Return the mean over query tokens of the best passage token."""
        score: np.float32 = (q_reps @ p_reps.T).max(axis=1).mean()
        return score

    def convert_id_to_token(self, lexical_weights: Weights | list[Weights]) -> Any:
        """Replace token ids by pieces of text. Raises MemberRefused for a model on a server."""
        tokenizer = tokenizer_of(self._encoder)
        if not isinstance(tokenizer, Tokenizer):
            remedy = "Open the folder of the converted model, whose tokenizer says what an id stands for."
            raise MemberRefused("BGEM3FlagModel", "convert_id_to_token", remedy)
        rows = [lexical_weights] if isinstance(lexical_weights, dict) else lexical_weights
        named = [{_text_of(tokenizer, token_id): weight for token_id, weight in row.items()} for row in rows]
        return named[0] if len(named) == 1 else named

    def _outputs(self, *flags: bool | None) -> Outputs:
        usual = (self.return_dense, self.return_sparse, self.return_colbert_vecs)
        wanted = (own if flag is None else flag for flag, own in zip(flags, usual, strict=True))
        outputs = Outputs(sum(output.value for output, want in zip(Outputs, wanted, strict=True) if want))
        if not outputs:
            raise ArgumentRefused("return_dense", value=False, remedy="Ask for one of the three outputs at least.")
        return outputs

    def _shortened(self, vectors: Float32) -> Float32:
        if self.truncate_dim is None:
            return vectors
        short = truncated(vectors, self.truncate_dim)
        return normalized(short) if self.normalize_embeddings else short

    def _embeddings(self, texts: list[str], role: Role, max_length: int | None, outputs: Outputs) -> Embeddings:
        usual = self.query_max_length if role == "query" else self.passage_max_length
        limit = max_tokens_of("max_length", usual if max_length is None else max_length, self._encoder)
        return encode_within(self._encoder, texts, limit, outputs=outputs, role=role)


def _text_of(tokenizer: Tokenizer, token_id: str) -> str:
    return tokenizer.text_of(int(token_id)).removeprefix("▁").replace("▁", " ")


def _pairs(sentence_pairs: object) -> tuple[list[tuple[str, str]], bool]:
    """Return the pairs, and whether it was a single one. Raises WrongInputType."""
    items = as_items(sentence_pairs)
    is_single = bool(items) and isinstance(items[0], str)
    pairs = [as_texts(pair) for pair in ([items] if is_single else items)]
    for number, pair in enumerate(pairs):
        if len(pair) != len(("query", "passage")):
            raise WrongInputType(f"a query and a passage in pair {number}", f"{len(pair)} texts", "Pass two texts.")
    return [(query, passage) for query, passage in pairs], is_single


def _weights(embeddings: Embeddings, row: int) -> Weights:
    """Return the weights by token id; 0 for a token that is not there, as in the original."""
    return defaultdict(int, {str(token_id): weight for token_id, weight in embeddings.sparse.row(row).items()})


def _pair_scores(queries: Embeddings, passages: Embeddings) -> Float32:
    """Return float32 [3, N]: dense, sparse and ColBERT score of each query and the passage at its place."""
    pairs = [(queries.take(np.array([i])), passages.take(np.array([i]))) for i in range(len(queries))]
    scorers = (dense_scores, lexical_scores, colbert_scores)
    return np.array([[score(query, passage)[0, 0] for query, passage in pairs] for score in scorers], np.float32)
