"""The shape of FlagEmbedding's BGEM3FlagModel, without that library.

Differences, each on purpose:
- FlagEmbedding cuts every text at 512 tokens unless told otherwise; here a text is cut only where the model ends
  (8,192 tokens). A smaller `max_length` is accepted as long as no text is longer, and refused then, not ignored.
- Vectors are float32, in the artifact's precision; batch_size, devices and use_fp16 have no effect.
- `colbert_score` gives a NumPy number. In `compute_score` padding never counts; there it does, as a 0, where passages
  of several lengths share a batch and a query token has no positive similarity.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.embeddings import Embeddings, Float32, Outputs, colbert_scores, dense_scores, lexical_scores
from vecferry.encode.encoder import Role
from vecferry.errors import SettingsError, WrongInputType
from vecferry.integrations.connecting import Connection, EncoderLike, located, opened
from vecferry.model.artifact import Artifact
from vecferry.model.texts import as_items, as_texts
from vecferry.model.tokens import Tokenizer, open_tokenizer

Weights = dict[str, float]


class BGEM3FlagModel:
    """FlagEmbedding's model, on an artifact's folder, a server's URL, or an encoder that is open already."""

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | EncoderLike,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        *,
        devices: str | list[str] | None = None,
        batch_size: int = 256,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
    ) -> None:
        """Open the model. Raises SettingsError for normalize_embeddings unlike the model's, and as its opening."""
        self._source = located(model_name_or_path)
        self._encoder = opened(self._source)
        if normalize_embeddings != (normalizes := self._encoder.space.normalize):
            raise SettingsError("normalize_embeddings", normalize_embeddings, f"{normalizes}, as the model does")
        self._max_lengths: dict[Role, int | None] = {"query": query_max_length, "passage": passage_max_length}
        self._returned = (return_dense, return_sparse, return_colbert_vecs)

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        role: Role = "passage",
    ) -> dict[str, Any]:
        """Encode sentences, and return each output under its name in FlagEmbedding.

        dense_vecs: float32 [N, dimension]; lexical_weights: N dicts, of weights by token id as a string;
        colbert_vecs: N arrays, float32 [tokens - 1, dimension]. None for what was not requested; of a single string
        each is its own, not a list. Raises SettingsError for a text of more than max_length tokens, and as the encoder.
        """
        is_single = isinstance(sentences, str)
        flags = zip((return_dense, return_sparse, return_colbert_vecs), self._returned, strict=True)
        wanted = zip(Outputs, (usual if flag is None else flag for flag, usual in flags), strict=True)
        outputs = Outputs(sum(output.value for output, want in wanted if want))
        if not outputs:
            raise SettingsError("return_dense", value=False, expected="one of the three outputs at least")
        embeddings = self._embeddings(
            [sentences] if isinstance(sentences, str) else sentences, role, max_length, outputs
        )
        every: dict[str, Any] = {"dense_vecs": embeddings.dense_or_none, "lexical_weights": None, "colbert_vecs": None}
        if Outputs.SPARSE in outputs:
            every["lexical_weights"] = [_weights(embeddings, i) for i in range(len(embeddings))]
        if Outputs.COLBERT in outputs:
            every["colbert_vecs"] = [embeddings.colbert[i] for i in range(len(embeddings))]
        return {name: values[0] if is_single and values is not None else values for name, values in every.items()}

    def encode_queries(self, queries: str | Sequence[str], *arguments: Any, **named: Any) -> dict[str, Any]:
        """Encode as `encode` does, in the role of queries."""
        return self.encode(queries, *arguments, **named, role="query")

    def encode_corpus(self, corpus: str | Sequence[str], *arguments: Any, **named: Any) -> dict[str, Any]:
        """Encode as `encode` does."""
        return self.encode(corpus, *arguments, **named)

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
        pairs, is_single = _pairs(sentence_pairs)
        if not pairs:
            return []
        queries = self._embeddings([query for query, _ in pairs], "query", max_query_length, Outputs.ALL)
        passages = self._embeddings([passage for _, passage in pairs], "passage", max_passage_length, Outputs.ALL)
        dense, sparse, colbert = _pair_scores(queries, passages)
        of_dense, of_sparse, of_colbert = weights_for_different_modes or (1.0, 1.0, 1.0)
        both = dense * of_dense + sparse * of_sparse
        scores = {
            "colbert": colbert,
            "sparse": sparse,
            "dense": dense,
            "sparse+dense": both / (of_sparse + of_dense),
            "colbert+sparse+dense": (both + colbert * of_colbert) / (of_dense + of_sparse + of_colbert),
        }
        return {mode: values[0].item() if is_single else values.tolist() for mode, values in scores.items()}

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
        """Replace token ids by pieces of text. Raises SettingsError unless opened from an artifact's folder."""
        rows = [lexical_weights] if isinstance(lexical_weights, dict) else lexical_weights
        named = [{self._text_of(token_id): weight for token_id, weight in row.items()} for row in rows]
        return named[0] if len(named) == 1 else named

    def _embeddings(self, texts: Sequence[str], role: Role, max_length: int | None, outputs: Outputs) -> Embeddings:
        embeddings = self._encoder.encode(texts, outputs=outputs, role=role)
        limit, longest = max_length or self._max_lengths[role], int(embeddings.num_tokens.argmax())
        if limit is not None and embeddings.num_tokens[longest] > limit:
            expected = (
                f"{embeddings.num_tokens[longest]} or more, the tokens of text {longest}; only the model's end cuts"
            )
            raise SettingsError("max_length", limit, expected)
        return embeddings

    def _text_of(self, token_id: str) -> str:
        return self._tokenizer.text_of(int(token_id)).removeprefix("▁").replace("▁", " ")

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if not isinstance(self._source, Connection) or self._source.artifact is None:
            expected = "the folder of a converted model, whose tokenizer says what an id stands for"
            raise SettingsError("model_name_or_path", self._source, expected)
        return open_tokenizer(Artifact.open(Path(self._source.artifact)))


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
