"""Files of texts in, files of embeddings out.

In: one text per line, UTF-8, with or without a BOM, lines ended by LF or CRLF; blank lines are left out.
Lines are records `{"id": ..., "text": "..."}` in a file named .jsonl, plain texts in one named .txt;
elsewhere, standard input included, they are records if the first of them begins with "{". A record's
id is a string or a whole number; the id of a plain text is the number of its line, from 1. Ids are
strings from here on, and may repeat. A file named .parquet has the same two as columns; needs the `parquet` extra.

Out: .npz, .jsonl or .parquet, by the name. Each holds the ids, `num_tokens`, `truncated`, the outputs
that were asked for, and the fingerprint of their vector space:

    .npz      ids [N], dense [N, D], sparse_indptr [N + 1] / sparse_indices / sparse_weights (CSR),
              colbert_indptr [N + 1] / colbert [sum of tokens, D], num_tokens [N], truncated [N], fingerprint [],
              mark [] (fingerprint and precision). No pickles. Held in memory until the end, since its arrays have one
              piece each.
    .jsonl    one object per text: id, dense [D], sparse {token id: weight}, colbert [tokens][D], num_tokens,
              truncated, fingerprint, form (the precision). ASCII; nine digits per number, so that each reads back
              as the same float32. Streamed.
    .parquet  one row per text: id, dense, sparse_indices, sparse_weights, colbert, num_tokens, truncated;
              fingerprint and form are in the file's metadata. Streamed. Needs the `parquet` extra.

A file appears whole or not at all: it is written under a temporary name beside its place and renamed.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import tokenize
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from vecferry.embeddings import Embeddings, Float32, MultiVector, Sparse
from vecferry.errors import (
    EmptyInput,
    InvalidRecord,
    MissingExtra,
    OutputWriteFailed,
    SettingsError,
    reason_of,
)
from vecferry.model.files import replacing
from vecferry.precisions import Mark

Chunks = Iterable[tuple[list[str], Embeddings]]
"""Ids (without NUL, which NumPy drops at a string's end) and their embeddings, of one space, with the same outputs."""

STANDARD_INPUT = "-"
ROWS_READ = 1024
"""Of a Parquet file, at once."""
PARQUET_ROWS = 128
"""Rows written at once with ColBERT: 128 texts of 8,192 tokens of 1,024 numbers are 2**30, and offsets are int32."""


# --- reading --------------------------------------------------------------------------------------


class Records:
    """Pairs (id, text) of a file, or of standard input for "-". All are checked before the first is used.

    A file is read once to be checked and once more for each use, and is not held in memory; a pipe is.
    """

    def __init__(self, file: str) -> None:
        """Check all records. Raises InvalidRecord with the line, EmptyInput, SettingsError for an unreadable file."""
        self._file = file
        is_read_anew = file != STANDARD_INPUT and Path(file).is_file()
        self._held = None if is_read_anew else list(self._read())
        self._number = sum(1 for _ in self._again())
        if not self._number:
            raise EmptyInput

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Read the file again. Raises SettingsError at the end, where it has another number of records by now."""
        number = 0
        for record in self._again():
            number += 1
            yield record
        if number != self._number:
            expected = f"a file that nobody writes to meanwhile: it had {self._number} texts, and has {number}"
            raise SettingsError("FILE", self._file, expected)

    def _again(self) -> Iterable[tuple[str, str]]:
        return self._read() if self._held is None else self._held

    def _read(self) -> Iterator[tuple[str, str]]:
        if self._file == STANDARD_INPUT:
            yield from parse_lines(sys.stdin.buffer, "standard input")
            return
        parse = _parquet_records if Path(self._file).suffix.lower() == ".parquet" else parse_lines
        try:
            with Path(self._file).open("rb") as opened:
                yield from parse(opened, self._file)
        except OSError as exc:
            raise SettingsError("FILE", self._file, f"a file that can be read, or - ({exc.strerror or exc})") from exc


def parse_lines(lines: Iterable[bytes], path: str) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of each line that is not blank. Raises InvalidRecord, naming `path`."""
    are_records = {".jsonl": True, ".txt": False}.get(Path(path).suffix.lower())
    for number, line in enumerate(lines, start=1):
        text = _decoded(line, path, number).rstrip("\r\n")
        if number == 1:
            text = text.removeprefix("\ufeff")
        if not text.strip():
            continue
        if are_records is None:
            are_records = text.lstrip().startswith("{")
        yield _record(text, path, number) if are_records else (str(number), text)


def _parquet_records(file: IO[bytes], path: str) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of each row. Raises InvalidRecord by the row, from 1; SettingsError for another file."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as exc:
        raise MissingExtra("parquet", "pyarrow") from exc
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        if missing := {"id", "text"} - set(opened.schema_arrow.names):
            raise SettingsError("FILE", path, f"a Parquet file with a column {' and '.join(sorted(missing))}")
        batches = opened.iter_batches(ROWS_READ, columns=["id", "text"])
        records = (record for batch in batches for record in batch.to_pylist())
        for number, record in enumerate(records, start=1):
            yield _checked(record, path, number)
    except pyarrow.ArrowException as exc:
        raise SettingsError("FILE", path, f"a Parquet file ({exc})") from exc


def _decoded(line: bytes, path: str, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRecord(path, number, f"it is not UTF-8 (byte {exc.start} of the line)") from exc


def _record(line: str, path: str, number: int) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise InvalidRecord(path, number, f"it is not JSON ({exc})") from exc
    if not isinstance(record, dict):
        raise InvalidRecord(path, number, "it is not a JSON object")
    for key in ("id", "text"):
        if key not in record:
            raise InvalidRecord(path, number, f'it has no "{key}"')
    return _checked(record, path, number)


def _checked(record: dict[str, Any], path: str, number: int) -> tuple[str, str]:
    record_id, text = record["id"], record["text"]
    if not isinstance(record_id, str | int) or isinstance(record_id, bool):
        raise InvalidRecord(path, number, 'its "id" is neither a string nor a whole number')
    if not isinstance(text, str):
        raise InvalidRecord(path, number, 'its "text" is not a string')
    for key, value in (("id", str(record_id)), ("text", text)):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidRecord(path, number, f'its "{key}" holds a lone surrogate')
    if "\0" in str(record_id):
        raise InvalidRecord(path, number, 'its "id" holds a NUL character')
    return str(record_id), text


# --- writing --------------------------------------------------------------------------------------


@dataclass
class Written:
    """Counts of what was written: texts, tokens, truncated texts; and their vector space."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    fingerprint: str = ""
    key: str = ""

    def counting(self, chunks: Chunks) -> Iterator[tuple[list[str], Embeddings]]:
        """Yield the same chunks, counted. Raises SpaceMismatch, and EmptyInput at the end if there were none."""
        for ids, embeddings in chunks:
            assert len(ids) == len(embeddings), f"{len(ids)} ids for {len(embeddings)} texts"
            self.fingerprint, self.key = embeddings.fingerprint, self.key or embeddings.mark.key
            embeddings.require_key(self.key, "a part to be written")
            self.texts += len(embeddings)
            self.tokens += int(embeddings.num_tokens.sum())
            self.truncated += embeddings.num_truncated
            yield ids, embeddings
        if not self.texts:
            raise EmptyInput


def check_target(target: Path | None) -> None:
    """Check a target before the first text is encoded. Raises SettingsError, MissingExtra, OutputWriteFailed."""
    if target is None:
        return
    if target.suffix.lower() not in WRITERS:
        raise SettingsError("--output", target, f"a name that ends in {', '.join(WRITERS)}")
    if target.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtra("parquet", "pyarrow")
    if os.path.isdir(target):  # noqa: PTH112  # Path's raises where it may not look
        raise OutputWriteFailed(target, "there is a folder of that name")
    folder = target.resolve().parent
    if not os.path.isdir(folder):  # noqa: PTH112
        raise OutputWriteFailed(target, f"there is no folder {folder}, or none that may be looked into")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputWriteFailed(target, f"the folder {folder} cannot be written to, or is mounted read-only")


def write(target: Path | None, chunks: Chunks) -> Written:
    """Write embeddings in the format that the target's name says, or as JSON lines to standard output for None.

    Raises what `check_target` raises; SpaceMismatch, EmptyInput. After an error what was at `target` is
    as it was.
    """
    written = Written()
    if target is None:
        for line in _json_lines(written.counting(chunks)):
            sys.stdout.write(line)
        return written
    check_target(target)
    try:
        with replacing(target) as temporary:
            WRITERS[target.suffix.lower()](temporary, written.counting(chunks))
    except OSError as exc:
        raise OutputWriteFailed(target, reason_of(exc)) from exc
    return written


def _write_npz(path: Path, chunks: Chunks) -> None:
    ids, parts = [], []
    for some_ids, embeddings in chunks:
        ids.extend(some_ids)
        parts.append(embeddings)
    with path.open("wb") as file:
        _save_npz(file, ids, Embeddings.concat(parts))


def _save_npz(file: IO[bytes], ids: list[str], whole: Embeddings) -> None:
    arrays: dict[str, Any] = {"ids": np.array(ids), "num_tokens": whole.num_tokens, "truncated": whole.truncated}
    if whole.dense_or_none is not None:
        arrays |= {"dense": whole.dense}
    if whole.sparse_or_none is not None:
        sparse = whole.sparse
        arrays |= {"sparse_indptr": sparse.indptr, "sparse_indices": sparse.indices, "sparse_weights": sparse.weights}
    if whole.colbert_or_none is not None:
        arrays |= {"colbert_indptr": whole.colbert.indptr, "colbert": whole.colbert.vectors}
    arrays |= {"fingerprint": np.array(whole.fingerprint), "mark": np.array(str(whole.mark))}
    np.savez(file, allow_pickle=False, **arrays)


def as_npz(ids: list[str], embeddings: Embeddings) -> bytes:
    """Return what `write` puts into an .npz file."""
    file = BytesIO()
    _save_npz(file, ids, embeddings)
    return file.getvalue()


def as_arrow(ids: list[str], embeddings: Embeddings) -> bytes:
    """Return the rows of a .parquet file as a stream of Arrow's. Raises MissingExtra."""
    try:
        import pyarrow
    except ImportError as exc:
        raise MissingExtra("parquet", "pyarrow") from exc
    tables = list(_tables(ids, embeddings))
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, tables[0].schema) as stream:
        for table in tables:
            stream.write_table(table)
    stored: bytes = sink.getvalue().to_pybytes()
    return stored


def load_npz(path: Path | IO[bytes]) -> tuple[list[str], Embeddings]:
    """Return ids and embeddings of a file that `write` made. Raises OSError; ValueError for others.

    No array is made that is larger than the file; whether the arrays fit together is not checked.
    """
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            return _loaded(file)
    except NOT_NPZ as exc:
        raise ValueError(f"it is not a file of embeddings ({exc!s:.200})") from exc


NOT_NPZ = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, EOFError, SyntaxError,
    MemoryError, struct.error, tokenize.TokenError, zipfile.BadZipFile,
)  # fmt: skip
"""What zipfile and numpy raise on bytes that are not what they should be."""


def _loaded(file: Any) -> tuple[list[str], Embeddings]:
    sparse = [file[f"sparse_{part}"] for part in ("indptr", "indices", "weights") if "sparse_indptr" in file]
    colbert = [file[name] for name in ("colbert_indptr", "colbert") if "colbert" in file]
    mark = Mark.parse(str(file["mark"]))
    return file["ids"].tolist(), Embeddings(
        mark.fingerprint,
        file["num_tokens"],
        file["truncated"],
        file.get("dense"),
        Sparse(*sparse) if sparse else None,
        MultiVector(*colbert) if colbert else None,
        mark.form,
    )


def _check_sizes(path: Path | IO[bytes]) -> None:
    """Refuse arrays that are not stored as they are: what is compressed or said to be huge would take all memory."""
    num_bytes = path.stat().st_size if isinstance(path, Path) else path.seek(0, SEEK_END)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > num_bytes:
                raise ValueError(f"an array of {info.file_size} bytes in a file of {num_bytes}")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{info.filename!r:.80} is compressed")
            with archive.open(info) as entry:
                version = np.lib.format.read_magic(entry)
                if version not in HEADERS:
                    raise ValueError(f"an array of version {version}")
                shape, _, dtype = HEADERS[version](entry)
                if math.prod(shape) * dtype.itemsize != info.file_size - entry.tell():
                    raise ValueError(f"an array of {info.file_size - entry.tell()} bytes of another shape")
    if not isinstance(path, Path):
        path.seek(0)


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _write_jsonl(path: Path, chunks: Chunks) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_json_lines(chunks))


def _json_lines(chunks: Chunks) -> Iterator[str]:
    for ids, embeddings in chunks:
        for row, text_id in enumerate(ids):
            fields = {"id": json.dumps(text_id)}
            if embeddings.dense_or_none is not None:
                fields["dense"] = _numbers(embeddings.dense[row])
            if embeddings.sparse_or_none is not None:
                pairs = embeddings.sparse.row(row).items()
                fields["sparse"] = "{" + ", ".join(f'"{token}": {weight:.9g}' for token, weight in pairs) + "}"
            if embeddings.colbert_or_none is not None:
                fields["colbert"] = "[" + ", ".join(map(_numbers, embeddings.colbert[row])) + "]"
            fields["num_tokens"] = str(embeddings.num_tokens[row])
            fields["truncated"] = "true" if embeddings.truncated[row] else "false"
            fields["fingerprint"] = json.dumps(embeddings.fingerprint)
            fields["form"] = json.dumps(embeddings.form.name)
            yield "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}\n"


def _numbers(vector: Float32) -> str:
    return "[" + ", ".join(["%.9g"] * len(vector)) % tuple(vector.tolist()) + "]"


def _write_parquet(path: Path, chunks: Chunks) -> None:
    import pyarrow.parquet

    writer = None
    try:
        for ids, embeddings in chunks:
            for table in _tables(ids, embeddings):
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _tables(ids: list[str], embeddings: Embeddings) -> Iterator[Any]:
    step = len(embeddings) if embeddings.colbert_or_none is None else PARQUET_ROWS
    for start in range(0, len(embeddings), step):
        rows = np.arange(start, min(start + step, len(embeddings)))
        yield _table(ids[start : start + step], embeddings.take(rows))


def _table(ids: list[str], embeddings: Embeddings) -> Any:
    import pyarrow as pa

    columns = {"id": pa.array(ids, pa.string())}
    if embeddings.dense_or_none is not None:
        columns["dense"] = _vectors(embeddings.dense)
    if embeddings.sparse_or_none is not None:
        offsets = pa.array(embeddings.sparse.indptr, pa.int32())
        columns["sparse_indices"] = pa.ListArray.from_arrays(offsets, pa.array(embeddings.sparse.indices, pa.int32()))
        columns["sparse_weights"] = pa.ListArray.from_arrays(offsets, pa.array(embeddings.sparse.weights, pa.float32()))
    if embeddings.colbert_or_none is not None:
        offsets = pa.array(embeddings.colbert.indptr, pa.int32())
        columns["colbert"] = pa.ListArray.from_arrays(offsets, _vectors(embeddings.colbert.vectors))
    columns["num_tokens"] = pa.array(embeddings.num_tokens, pa.int64())
    columns["truncated"] = pa.array(embeddings.truncated, pa.bool_())
    return pa.table(columns).replace_schema_metadata(
        {"fingerprint": embeddings.fingerprint, "form": embeddings.form.name}
    )


def _vectors(matrix: Float32) -> Any:
    """Convert [N, D] to N lists of D numbers."""
    import pyarrow as pa

    offsets = pa.array(np.arange(len(matrix) + 1) * matrix.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.ravel(), pa.float32()))


WRITERS: dict[str, Callable[[Path, Chunks], None]] = {
    ".npz": _write_npz,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
