"""Collections of Milvus: a server's, or those of Milvus Lite in a `.db` folder.

The text is a VARCHAR field, or an entry of the dynamic field; all other scalar fields and the rest of
the dynamic field are the payload. BGE-M3's lexical weights are a field `sparse`; that name is ours.
Every read has the consistency level "Strong". Milvus Lite runs inside the first process that opens a
folder, and keeps it to itself until that process ends. What it does otherwise than a server:

- an upsert keeps entries of the dynamic field that it does not name, so they are set to null here,
  and a null in the dynamic field reads as no entry;
- `max_length` counts characters, on a server bytes;
- the parameters of an HNSW index are neither used nor told;
- of writes that come at the same time some are lost at a crash (seen with milvus-lite 3.2.2), so that
  all calls of ours take turns. An application's own client in that process must not write meanwhile.
"""

from vecferry.errors import MissingExtra

try:
    import pymilvus  # noqa: F401  # before the modules below need it
except ImportError as exc:
    raise MissingExtra("milvus", "pymilvus") from exc

from vecferry.stores.milvus.backend import MilvusBackend

__all__ = ["MilvusBackend"]
