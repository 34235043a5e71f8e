"""The schema of Supabase's guide."""

from __future__ import annotations

import psycopg

from tests.applications.application import Listing, encode_with
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder


class SupabaseApplication:
    """Title and content are embedded, rows have policies, a function searches."""

    listing = Listing(
        "The schema of Supabase's guide, with policies and `match_documents`",
        None,
        "documents",
        "# {title}{content}",
        layout="Supabase",
    )
    site = "postgres"
    SCHEMA = """
        CREATE TABLE documents (id uuid PRIMARY KEY, title text, content text, embedding vector(8));
        ALTER TABLE documents ENABLE ROW LEVEL SECURITY;
        DO $$ BEGIN CREATE ROLE web; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT SELECT, INSERT, UPDATE, DELETE ON documents TO web;
        CREATE POLICY everybody ON documents FOR ALL TO web USING (true) WITH CHECK (title IS NOT NULL);
        CREATE FUNCTION match_documents(query_embedding vector(8), match_count int)
        RETURNS TABLE (content text, similarity float) LANGUAGE sql STABLE AS $$
            SELECT content, 1 - (embedding <=> query_embedding) FROM documents
            ORDER BY embedding <=> query_embedding LIMIT match_count
        $$;
    """

    def __init__(self, site: UrlSite, encoder: TruthEncoder, collection: str) -> None:
        self._encode = encode_with(encoder)
        self._connection = psycopg.connect(site.url, autocommit=True)
        if self._connection.execute("SELECT to_regclass('documents')").fetchone() == (None,):
            self._connection.execute(self.SCHEMA)
        self._connection.execute("SET ROLE web")

    def add(self, key: str, text: str) -> None:
        title = f"Title of {text}. "
        self._connection.execute(
            "INSERT INTO documents (id, title, content, embedding)"
            " VALUES (%(id)s, %(title)s, %(content)s, %(vector)s::real[]) ON CONFLICT (id) DO UPDATE"
            " SET title = EXCLUDED.title, content = EXCLUDED.content, embedding = EXCLUDED.embedding",
            {"id": key, "title": title, "content": text, "vector": self._encode(f"# {title}{text}")},
        )

    def remove(self, key: str) -> None:
        self._connection.execute("DELETE FROM documents WHERE id = %s", [key])

    def read(self, key: str) -> str | None:
        row = self._connection.execute("SELECT content FROM documents WHERE id = %s", [key]).fetchone()
        return row[0] if row else None

    def first(self, text: str) -> str | None:
        vector = str(self._encode(f"# Title of {text}. {text}"))
        row = self._connection.execute("SELECT content FROM match_documents(%s, 1)", [vector]).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self._connection.close()
