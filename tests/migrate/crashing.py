"""Run by test_pgvector.py as a process of its own: a migration that kills itself, or goes on until it is killed.

Arguments: database URL; the call of the encoder at which to die, 0 for never; a file in which each
encoded text is noted.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.migrate.doubles import TruthEncoder
from vecferry.migrate import Migration, MigrationOptions
from vecferry.stores.pgvector import PgVectorStore


def main(database_url: str, die_at_call: int, notes: Path) -> None:
    def note(texts: Sequence[str]) -> None:
        with notes.open("a") as file:
            file.writelines(f"{text}\n" for text in texts)
        if encoder.calls + 1 == die_at_call:
            os.kill(os.getpid(), signal.SIGKILL)

    encoder = TruthEncoder(before_each=note)
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        Migration(store, MigrationOptions(rows_per_range=10)).start(encoder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
