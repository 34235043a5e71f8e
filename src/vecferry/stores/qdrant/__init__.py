"""Collections of Qdrant: a server's, or a folder's in the client's local mode.

The text is a field of the payload. The heads of BGE-M3 are two further named vectors, `sparse` and
`colbert`; those names are ours. With the cosine metric Qdrant keeps vectors at unit length, so that
is what comes back. Local mode is for trials: it searches without an index, and one process at a time
can have the folder; backends made by `another` share its client.
"""

from vecferry.errors import MissingExtra

try:
    import qdrant_client  # noqa: F401  # before the modules below need it
except ImportError as exc:
    raise MissingExtra("qdrant", "qdrant-client") from exc

from vecferry.stores.qdrant.backend import QdrantBackend

__all__ = ["QdrantBackend"]
