"""By whose layout a collection is made, and which text that framework or application embeds."""

from __future__ import annotations

from dataclasses import dataclass

from vecferry.stores.backend import VectorField
from vecferry.stores.text_source import HAYSTACK, LANGCHAIN, LLAMA_INDEX, NODE


@dataclass(frozen=True)
class Framework:
    """A layout that is known. text: as in migration.toml; empty where the layout does not say it.

    kinds: of stores, all where none is said. names: that lie beside the vectors; mark: of a `VectorField`, one of
    them where it is said; vector: the column's name, where it is always the same.
    """

    name: str
    text: str
    names: frozenset[str] = frozenset()
    kinds: tuple[str, ...] = ()
    mark: str = ""
    vector: str = ""

    def has_made(self, kind: str, field: VectorField) -> bool:
        """Return whether a field of a store of that kind has this layout."""
        return (
            (not self.kinds or kind in self.kinds)
            and self.names <= {*field.names, field.key}
            and (not self.mark or self.mark in field.marks)
            and self.vector in ("", field.vector)
        )


TABLES, QDRANT, CHROMA, LANCEDB = ("postgresql",), ("qdrant",), ("chroma",), ("lancedb",)
FRAMEWORKS = (
    Framework("LangChain PGVector", LANGCHAIN, frozenset({"collection_id", "document", "cmetadata"}), TABLES),
    Framework("LangChain PGVectorStore", LANGCHAIN, frozenset({"langchain_id", "content"}), TABLES),
    Framework("LlamaIndex PGVectorStore", LLAMA_INDEX, frozenset({"node_id", "metadata_", "text"}), TABLES),
    Framework("Haystack", HAYSTACK, frozenset({"content", "blob_data", "blob_meta", "meta"}), TABLES),
    Framework("mem0", "{payload.data}", frozenset({"payload"}), TABLES, vector="vector"),
    Framework("Open WebUI", "text", frozenset({"collection_name", "text", "vmetadata"}), TABLES),
    Framework("LlamaIndex", LLAMA_INDEX, frozenset({NODE}), (*QDRANT, *CHROMA, "milvus")),
    Framework("LangChain", LANGCHAIN, frozenset({"page_content", "metadata"}), QDRANT),
    Framework("Haystack", HAYSTACK, frozenset({"content", "meta", "blob"}), QDRANT),
    Framework("mem0", "data", frozenset({"data", "hash"}), QDRANT),
    Framework("mem0", "{data}", frozenset({"data", "hash"}), CHROMA),
    Framework("Open WebUI", "document", frozenset({"document", "embedding_config"}), CHROMA),
    Framework("AnythingLLM", "text", frozenset({"id", "title", "text"}), LANCEDB, vector="vector"),
    Framework("LangChain", LANGCHAIN, frozenset({"id", "text", "metadata"}), LANCEDB, vector="vector"),
    Framework("LangChain SQLiteVec", "text", frozenset({"rowid", "text", "metadata"}), ("sqlite",)),
    Framework("LangChain FAISS", "text", frozenset(), ("faiss",), mark="langchain"),
    Framework("Supabase", "", frozenset(), TABLES, mark="supabase"),
    Framework("Django", "", frozenset(), TABLES, mark="django"),
)
"""The first that fits is taken: those with marks alone come last."""


def framework_of(kind: str, field: VectorField) -> Framework | None:
    """Return whose layout it is; None where it is none that is known."""
    return next((each for each in FRAMEWORKS if each.has_made(kind, field)), None)
