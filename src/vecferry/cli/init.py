"""vecferry init."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.prompt import IntPrompt

from vecferry.cli.options import option
from vecferry.cli.output import Json, Rows, output, show, show_table, stages
from vecferry.encode.encoder import TextEncoder
from vecferry.encode.loading import load_encoder
from vecferry.errors import (
    MissingOption,
    OutputExists,
    OutputWriteFailed,
    reason_of,
)
from vecferry.migrate.config import DEFAULT_FILE, ModelsConfig, StoreConfig
from vecferry.migrate.config_file import OLD_MODEL_VERDICTS, Draft, StoreAddress
from vecferry.migrate.found import Found
from vecferry.migrate.provenance import Verdict
from vecferry.migrate.recipe import Recipe, recipe_of
from vecferry.settings import read_settings
from vecferry.stores.backend import ServerAccess, VectorField
from vecferry.stores.browsing import nearby_stores, open_browser

OLD_MODEL = Path("models/all-MiniLM-L6-v2-onnx")
OLD_DIMENSION = 384
"""Of all-MiniLM-L6-v2, which is taken for the old model where none is at hand."""
STANDARD_OUTPUT = Path("-")
Url = Annotated[
    str | None,
    typer.Argument(
        metavar="STORE",
        help="postgresql://..., chroma:..., lancedb:..., qdrant:..., milvus:..., sqlite:... or faiss:...; by default"
        " VECFERRY_STORE_URL, which keeps a password out of the process list.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    store: Url = None,
    collection: Annotated[str | None, option(StoreConfig, "collection")] = None,
    vector: Annotated[str | None, option(StoreConfig, "vector", note="Only where a collection has several.")] = None,
    old_model: Annotated[
        Path | None, option(ModelsConfig, "old", "--old-model", note=f"Default: {OLD_MODEL}, if it is there.")
    ] = None,
    new_model: Annotated[
        Path | None, option(ModelsConfig, "new", "--new-model", note="Default: ONNX_MODEL_PATH.")
    ] = None,
    tenant: Annotated[str | None, option(StoreConfig, "tenant")] = None,
    database: Annotated[str | None, option(StoreConfig, "database")] = None,
    file: Annotated[Path, typer.Option("--output", "-o", help="File to write; - is standard output.")] = DEFAULT_FILE,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a store, and write migration.toml for a collection in it. Nothing is written to the store.

    Finds the collections with vectors, who made them (LangChain, LlamaIndex, Haystack, Open WebUI, ...) and which text
    they embed. With the old model at hand a few stored vectors are compared with what it makes of their texts, which
    confirms that text, or finds the title, prefix or cut that explains them. The file says in comments what was found,
    and the next commands.

    Example: vecferry init chroma:data --old-model models/all-MiniLM-L6-v2-onnx
    """
    address = StoreAddress(store or _url_of_settings())
    token = read_settings().store_token
    access = ServerAccess(token.get_secret_value() if token else None, tenant, database)
    if file != STANDARD_OUTPUT and file.exists() and not force:
        raise OutputExists(file)
    with open_browser(address.url, access) as browser:
        with stages() as stage:
            stage("looking for vectors")
            fields = browser.vector_fields()
        found = Found(address.written, browser.kind, fields)
        candidates = found.candidates(collection, vector)
        if as_json and len(candidates) > 1:
            show(found.to_dict() | {"file": None}, as_json=True)
            return
        field = _chosen(found, candidates)
        with stages() as stage:
            stage(f"comparing vectors of {field.name} with what the old model makes of their texts")
            encoder = _old_encoder(old_model)
            recipe = recipe_of(browser, field, encoder)
    new, old = new_model or read_settings().options().artifact, old_model or OLD_MODEL
    draft = Draft(address, access, field, recipe, new, old, is_old_known=_is_known(recipe, encoder))
    if file != STANDARD_OUTPUT:
        _write(draft.text(file), file, force=force)
    elif not as_json:
        output.out(draft.text(DEFAULT_FILE), highlight=False, end="")
        return
    facts = found.to_dict() | _facts(draft, file)
    show(facts, as_json=as_json, title=f"{file} is written", rows=_rows(draft, file))


def _url_of_settings() -> str:
    """Return the URL of the environment. Raises MissingOption."""
    url = read_settings().store_url
    if url is None:
        examples = [f"vecferry init {shlex.quote(each)}" for each in nearby_stores(Path())]
        examples = examples or ["vecferry init postgresql://USER@HOST/DATABASE", "vecferry init chroma:FOLDER"]
        example = f"it: {', or '.join(examples)}; or VECFERRY_STORE_URL to the environment"
        raise MissingOption("the URL of the store", "where the vectors are", example)
    return url.get_secret_value()


def _chosen(found: Found, fields: Sequence[VectorField]) -> VectorField:
    """Return the only one, or the one that is chosen on a terminal. Raises MissingOption where nobody can be asked."""
    if len(fields) == 1:
        return fields[0]
    rows = [
        (number, each.part or each.collection, each.vector, f"{each.rows:,}", each.dimensions, found.framework(each))
        for number, each in enumerate(fields, 1)
    ]
    show_table("found", ("", "collection", "vector", "vectors", "dimension", "made by"), rows)
    if not (output.is_terminal and sys.stdin.isatty()):
        raise found.choice_missing(fields)
    numbers = [str(number) for number, *_ in rows]
    return fields[IntPrompt.ask("Which one", console=output, choices=numbers, show_choices=False) - 1]


def _old_encoder(asked_for: Path | None) -> TextEncoder | None:
    """Return the old model; None where none was asked for, and the usual one is not there. Raises ArtifactError."""
    folder = asked_for or OLD_MODEL
    if asked_for is None and not folder.is_dir():
        return None
    return load_encoder(replace(read_settings().options(), artifact=folder)).encoder


def _is_known(recipe: Recipe, encoder: TextEncoder | None) -> bool:
    """Return whether the old model is the one that has made the vectors, as far as anything says so."""
    if encoder is not None and recipe.provenance.verdict is not Verdict.NO_TEXTS:
        return recipe.provenance.verdict in OLD_MODEL_VERDICTS
    return recipe.dimension in (None, encoder.dimension if encoder else OLD_DIMENSION)


def _write(text: str, file: Path, *, force: bool) -> None:
    """Write the file. Raises OutputExists, OutputWriteFailed."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as exc:
        raise OutputExists(file) from exc
    except OSError as exc:
        raise OutputWriteFailed(file, reason_of(exc)) from exc


def _facts(draft: Draft, file: Path) -> dict[str, Any]:
    """Return what was decided, ready for JSON."""
    recipe = draft.recipe
    return {
        "collection": draft.field.collection,
        "vector": draft.field.vector,
        "framework": recipe.framework,
        "text": recipe.text,
        "other_texts": recipe.others,
        "old": {name: value for name, value in recipe.adaptation.to_dict().items() if value},
        "confirmed": recipe.is_confirmed,
        "provenance": recipe.provenance.to_dict(),
        "file": None if file == STANDARD_OUTPUT else str(file),
        "next": draft.commands(DEFAULT_FILE if file == STANDARD_OUTPUT else file),
    }


def _rows(draft: Draft, file: Path) -> Rows:
    """Return what was found and decided, and what to type next."""
    field, recipe = draft.field, draft.recipe
    lengths = " or ".join(f"{each:,}" for each in field.dimensions)
    return [
        ("found", f"{field.name}: {field.rows:,} vectors of {lengths} numbers"),
        *([("made by", recipe.framework)] if recipe.framework else []),
        ("text", f"{'✓' if recipe.is_confirmed else '?'} {json.dumps(recipe.text, ensure_ascii=False)}"),
        ("", draft.evidence),
        *([("password", "VECFERRY_STORE_URL has it; it is not in the file")] if draft.address.has_secret else []),
        *(("next" if number == 0 else "", command) for number, command in enumerate(draft.commands(file))),
    ]
