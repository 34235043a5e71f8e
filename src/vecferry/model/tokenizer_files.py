"""tokenizer.json and the files beside it, reconciled as transformers 5 reads them together.

Of a `BertTokenizer` and an `XLMRobertaTokenizer` it takes the pieces alone from tokenizer.json, and builds the rest as
the class and tokenizer_config.json say: the normalizer of BERT, the pre-tokenizer, the tokens around each text. Of a
class without a form of its own it takes tokenizer.json as it is. Tokens that one of the files adds are added to all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, RootModel

from vecferry.errors import CheckpointDamaged, UnsupportedModel, cut_repr
from vecferry.model.json_files import JsonFile, Text, checked, read_fields
from vecferry.model.layout import ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG
from vecferry.model.text_parts import COLLAPSED_SPACES

BERT, XLM_R = "BertTokenizer", "XLMRobertaTokenizer"
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""The classes that take tokenizer.json as it is."""
TokenId = Annotated[int, Field(strict=True, ge=0, le=1 << 24)]
MAX_TOKENS_ADDED = 100_000


class AddedToken(JsonFile):
    """A token that is looked for before all others. special, normalized: None where the file does not say."""

    content: Text
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None
    special: bool | None = None

    def described(self, token_id: int, *, special: bool) -> dict[str, Any]:
        """Return the token as tokenizer.json has it. special: of a token that does not say."""
        special = special if self.special is None else self.special
        normalized = not special if self.normalized is None else self.normalized
        flags = {"single_word": self.single_word, "lstrip": self.lstrip, "rstrip": self.rstrip}
        return {"id": token_id, "content": self.content, **flags, "normalized": normalized, "special": special}


SomeToken = Text | AddedToken
TokenList = Annotated[list[SomeToken], Field(max_length=MAX_TOKENS_ADDED)]
NamedTokens = Annotated[dict[Text, SomeToken], Field(max_length=MAX_TOKENS_ADDED)]


class SpecialTokens(JsonFile):
    """The tokens with a role, and others that are special as well; in tokenizer_config.json and a file of their own."""

    model_config = ConfigDict(extra="allow")

    bos_token: SomeToken | None = None
    eos_token: SomeToken | None = None
    unk_token: SomeToken | None = None
    sep_token: SomeToken | None = None
    pad_token: SomeToken | None = None
    cls_token: SomeToken | None = None
    mask_token: SomeToken | None = None
    additional_special_tokens: TokenList | None = None
    extra_special_tokens: TokenList | NamedTokens | None = None

    def named(self) -> dict[str, AddedToken]:
        """Return the tokens with a role, by role."""
        tokens = {role: getattr(self, role) for role in ROLES}
        return {role: _token(token) for role, token in tokens.items() if token is not None}

    def others(self) -> list[AddedToken]:
        """Return the tokens without a role; also those of another role than transformers knows."""
        extra = self.extra_special_tokens or self.additional_special_tokens or []
        unknown = {name: value for name, value in (self.model_extra or {}).items() if name.endswith("_token")}
        tokens = [*(extra.values() if isinstance(extra, dict) else extra), *unknown.values()]
        return [_token(token) for token in tokens if isinstance(token, str | AddedToken)]


ROLES = tuple(name for name in SpecialTokens.model_fields if name.endswith("_token"))
DEFAULTS = {
    BERT: {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    },
    XLM_R: {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
        "cls_token": "<s>", "mask_token": "<mask>",
    },
}  # fmt: skip
"""The tokens of a class where no file names others."""


class TokenizerConfig(SpecialTokens):
    """tokenizer_config.json. Defaults are transformers'."""

    tokenizer_class: Text | None = None
    model_max_length: int | float | None = None
    do_lower_case: bool | None = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = True
    add_prefix_space: bool | None = True
    split_special_tokens: bool | None = None
    truncation_side: Text | None = None
    added_tokens_decoder: Annotated[dict[Text, AddedToken], Field(max_length=MAX_TOKENS_ADDED)] | None = None


class _AddedTokens(RootModel[Annotated[dict[Text, TokenId], Field(max_length=MAX_TOKENS_ADDED)]]):
    """added_tokens.json: ids by content."""


class _WithId(AddedToken):
    id: TokenId


class _Described(JsonFile):
    added_tokens: list[_WithId] = Field(default_factory=list, max_length=MAX_TOKENS_ADDED)


def _defaults(name: str | None) -> dict[str, AddedToken]:
    return {} if name is None else {role: _token(content) for role, content in DEFAULTS[name].items()}


def _token(token: SomeToken) -> AddedToken:
    return AddedToken(content=token) if isinstance(token, str) else token


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read tokenizer_config.json. Raises CheckpointDamaged; UnsupportedModel for what cannot be done here."""
    config = read_fields(folder / TOKENIZER_CONFIG, TokenizerConfig)
    if config.split_special_tokens:
        raise UnsupportedModel("the option split_special_tokens =", config.split_special_tokens, "false")
    if config.truncation_side not in (None, "right"):
        raise UnsupportedModel(
            "the option truncation_side =", config.truncation_side, "right: texts keep their beginning"
        )
    return config


def class_of(declared: str) -> str | None:
    """Return the class whose form a tokenizer has, or None for one that has tokenizer.json's own.

    Raises UnsupportedModel for another class, of whose form nothing is known here.
    """
    name = declared.removesuffix("Fast")
    if declared in AS_IT_IS:
        return None
    if name not in (BERT, XLM_R):
        raise UnsupportedModel("the tokenizer class", declared, ", ".join((BERT, XLM_R, *AS_IT_IS)))
    return name


def reconciled(folder: Path, raw: bytes, declared_class: str) -> bytes:
    """Return the folder's tokenizer.json, given as `raw`, as its class and the files beside it have it.

    Raises ValueError for what is not a tokenizer; UnsupportedModel and CheckpointDamaged, with the file and its value.
    """
    try:
        described, name, config = json.loads(raw), class_of(declared_class), read_tokenizer_config(folder)
        ids = _ids(described["model"]["vocab"])
        added, roles = _added_tokens(folder, described, config, name)
        ids |= _numbered(added, ids)
        described["added_tokens"] = sorted(
            (token.described(ids[content], special=False) for content, token in added.items()),
            key=lambda token: token["id"],
        )
        if name == BERT:
            _as_bert(described, config, roles, ids)
        elif name == XLM_R:
            _as_xlm_r(described, roles, ids)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as exc:
        raise ValueError(f"not a tokenizer: {exc!r}") from exc
    return json.dumps(described).encode()


def _ids(vocabulary: Any) -> dict[str, int]:
    """Return the ids of a model's pieces; Unigram has them in their order."""
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {piece: i for i, (piece, _) in enumerate(vocabulary)}


def _added_tokens(
    folder: Path, described: dict[str, Any], config: TokenizerConfig, name: str | None
) -> tuple[dict[str, AddedToken], dict[str, str]]:
    """Return the added tokens by content, in the order in which they get their ids, and the content of each role.

    added_tokens_decoder takes the place of the files beside it and, for a class with a form of its own, of what
    tokenizer.json adds.
    """
    in_file = checked(folder / TOKENIZER, _Described, described).added_tokens
    by_role, others = {**_defaults(name), **config.named()}, config.others()
    if config.added_tokens_decoder is not None:
        by_id = {_token_id(folder, key): token for key, token in config.added_tokens_decoder.items()}
    else:
        beside = read_fields(folder / SPECIAL_TOKENS, SpecialTokens)
        by_role, others = {**by_role, **beside.named()}, [*others, *beside.others()]
        said = {token.content for token in [*config.named().values(), *beside.named().values(), *others]}
        by_id = {
            i: AddedToken(content=content, special=content in said)
            for content, i in read_fields(folder / ADDED_TOKENS, _AddedTokens).root.items()
        } | {token.id: token for token in in_file}
    ordered = [*(in_file if name is None else ()), *(by_id[i] for i in sorted(by_id))]
    tokens = {token.content: token for token in ordered if token.content}
    for token in by_role.values():
        tokens[token.content] = tokens.get(token.content, token).model_copy(update={"special": True})
    for token in others:
        tokens.setdefault(
            token.content, token if token.special is not None else token.model_copy(update={"special": True})
        )
    return tokens, {role: token.content for role, token in by_role.items()}


def _token_id(folder: Path, key: str) -> int:
    if not (key.isascii() and key.isdigit()):
        reason = f"its added_tokens_decoder has {cut_repr(key)} in the place of a token id"
        raise CheckpointDamaged(folder / TOKENIZER_CONFIG, reason)
    return int(key)


def _numbered(added: dict[str, AddedToken], ids: dict[str, int]) -> dict[str, int]:
    """Return the ids of added tokens: those of pieces that the model has, and further ones for the others."""
    numbered: dict[str, int] = {}
    for content in added:
        numbered[content] = ids.get(content, max(len(ids), max(numbered.values(), default=-1) + 1))
    return numbered


def _as_bert(described: dict[str, Any], config: TokenizerConfig, roles: dict[str, str], ids: dict[str, int]) -> None:
    model = described["model"]
    _check_model(model, "WordPiece", BERT)
    word_pieces = {"unk_token": roles["unk_token"], "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    described["model"] = {"type": "WordPiece", **word_pieces, "vocab": model["vocab"]}
    described["normalizer"] = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": bool(config.tokenize_chinese_chars),
        "strip_accents": config.strip_accents,
        "lowercase": bool(config.do_lower_case),
    }
    described["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    first, last = roles["cls_token"], roles["sep_token"]
    described["post_processor"] = _template(ids, first, last, [("B", 1), (last, 1)])


def _as_xlm_r(described: dict[str, Any], roles: dict[str, str], ids: dict[str, int]) -> None:
    """Keep the charsmap alone of the normalizer. The pre-tokenizer is `canonical_tokenizer`'s business."""
    _check_model(described["model"], "Unigram", XLM_R)
    described["model"] |= {"unk_id": 3, "byte_fallback": False}
    normalizer = described.get("normalizer") or {"type": "Sequence", "normalizers": []}
    parts = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    for part in parts:
        if part["type"] != "Precompiled" and part != COLLAPSED_SPACES:
            supported = f"Precompiled, which is all that transformers takes with {XLM_R}; {AS_IT_IS[0]} takes all of it"
            raise UnsupportedModel("the normalizer", part["type"], supported)
    first, last = roles["bos_token"], roles["eos_token"]
    described["post_processor"] = _template(ids, first, last, [(last, 0), ("B", 0), (last, 0)])


def _check_model(model: dict[str, Any], expected: str, name: str) -> None:
    if model.get("type") != expected:
        raise UnsupportedModel(f"with {name} the model", model.get("type"), expected)


def _template(ids: dict[str, int], first: str, last: str, second: list[tuple[str, int]]) -> dict[str, Any]:
    """Return the post-processor that puts a token before and one after each text. second: the other of a pair."""

    def item(name: str, type_id: int) -> dict[str, Any]:
        kind = "Sequence" if name in ("A", "B") else "SpecialToken"
        return {kind: {"id": name, "type_id": type_id}}

    single = [item(first, 0), item("A", 0), item(last, 0)]
    special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (first, last)}
    pair = [*single, *(item(*each) for each in second)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
