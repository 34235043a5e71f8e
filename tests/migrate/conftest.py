from tests.postgres import connection, database_url, postgres_url
from tests.stores.conftest import collection, embed_missing

__all__ = ["collection", "connection", "database_url", "embed_missing", "postgres_url"]
