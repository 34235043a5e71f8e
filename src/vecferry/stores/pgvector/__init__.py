"""A PostgreSQL table with a pgvector column.

Names of columns, for a vector column `embedding`:

    before the switch   embedding (old), embedding_vecferry_new
    after it            embedding (new), embedding_vecferry_old
    finalized           embedding (new)

so where the sides are is read from the catalogue and never remembered. Beside them stand
`embedding_vecferry_new_sha256` and `embedding_vecferry_old_sha256`, the checksums of text and vector by
which a row is known to be current (`checksum.py`). The space of new vectors is in a comment on their
column. Keys travel as text and are cast back to the type of their column.
"""

from vecferry.errors import MissingExtra

try:
    import psycopg  # noqa: F401  # before the modules below need it
except ImportError as exc:  # the package, or the libpq that it needs
    raise MissingExtra("pgvector", "psycopg") from exc

from vecferry.stores.pgvector.group import GroupOptions, PgGroupStore
from vecferry.stores.pgvector.store import PgVectorStore

__all__ = ["GroupOptions", "PgGroupStore", "PgVectorStore"]
