"""Index files of FAISS with their documents beside them: LangChain's folders, and indexes with JSON lines.

FAISS has no server, and an index file has no second writer: the application is stopped while its files are written.
`index_files` reads and replaces those of the application as a whole; `staged` holds a collection that is being
made, to which batches are written; `docstore` knows the two forms of documents.
"""

from vecferry.errors import MissingExtra

try:
    import faiss  # noqa: F401
except ImportError as exc:
    raise MissingExtra("faiss", "faiss-cpu") from exc

from vecferry.stores.faiss.backend import FaissBackend

__all__ = ["FaissBackend"]
