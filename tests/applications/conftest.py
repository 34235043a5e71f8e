"""A real PostgreSQL for the frameworks."""

from tests.postgres import connection, database_url, postgres_url

__all__ = ["connection", "database_url", "postgres_url"]
