"""What a worker does with a range: rows in, the file that is to be staged out. Knows of no cluster."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

from vecferry.embeddings import Outputs, TextVectors
from vecferry.encode.encoder import TextEncoder
from vecferry.migrate.embed import Embedded, embed
from vecferry.migrate.staged_file import StagedRow, read, write
from vecferry.migrate.staging import staged_rows
from vecferry.stores.values import NewVector, Row


@dataclass(frozen=True)
class RangeTask:
    """rows: all of the range's. elsewhere: digests of texts whose vectors another file of the staging holds or will
    hold. staged: vectors that the file to be replaced holds, by digest.
    """

    rows: Sequence[Row]
    elsewhere: Collection[bytes]
    staged: Mapping[bytes, TextVectors]

    def to_bytes(self) -> bytes:
        """Write a task, to be read by `from_bytes`."""
        head = {
            "rows": [[row.key, row.text] for row in self.rows],
            "elsewhere": [digest.hex() for digest in sorted(self.elsewhere)],
        }
        file = BytesIO()
        if self.staged:
            write(file, [StagedRow((), digest, None, vectors) for digest, vectors in self.staged.items()])
        return json.dumps(head).encode() + b"\n" + file.getvalue()

    @classmethod
    def from_bytes(cls, stored: bytes) -> RangeTask:
        """Read a task. Raises NotReadable."""
        head, _, file = stored.partition(b"\n")
        fields = json.loads(head)
        staged = {row.digest: row.vectors for row in (read(BytesIO(file)) if file else ()) if row.vectors is not None}
        rows = [Row(tuple(key), text) for key, text in fields["rows"]]
        return cls(rows, {bytes.fromhex(digest) for digest in fields["elsewhere"]}, staged)

    def done(self, encoder: TextEncoder, outputs: Outputs) -> bytes:
        """Return the file to be staged. Raises what `embed` raises."""
        embedded = embed_unknown(encoder, self.rows, outputs, self.staged, self.elsewhere)
        file = BytesIO()
        write(file, staged_rows(embedded, outputs, self.elsewhere))
        return file.getvalue()


def embed_unknown(
    encoder: TextEncoder,
    rows: Sequence[Row],
    outputs: Outputs,
    staged: Mapping[bytes, TextVectors],
    elsewhere: Collection[bytes] = (),
) -> Embedded:
    """Embed as `embed`, but encode no text that is staged; a row of one that lies elsewhere has no vector."""
    digests = [row.digest for row in rows]
    unknown = [
        row for row, digest in zip(rows, digests, strict=True) if digest not in staged and digest not in elsewhere
    ]
    made = embed(encoder, unknown, outputs)
    fresh = iter(made.vectors)
    vectors = []
    for row, digest in zip(rows, digests, strict=True):
        if digest in elsewhere:
            vectors.append(NewVector(row.key, digest, None))
        elif (old := staged.get(digest)) is not None:
            vectors.append(NewVector(row.key, digest, old))
        else:
            vectors.append(next(fresh))
    return Embedded(tuple(vectors), made.dead_letters)
