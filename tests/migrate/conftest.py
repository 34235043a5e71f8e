from tests.postgres import connection, database_url, postgres_url
from tests.stores.conftest import collection

__all__ = ["collection", "connection", "database_url", "postgres_url"]
