"""Documents in a Parquet file: a row for each vector, in their order.

All is read and written by Arrow, with the file's own schema. Values that Arrow has as dates, times or decimals are
texts or numbers here, which are plain and become the same values again.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.backend import Fields
from vecferry.stores.faiss.docstore import Docstore, Entry, whole_number

FORM = "parquet "


@dataclass(frozen=True)
class ParquetDocuments:
    """A Parquet file with the key and the text by the names in `fields`. schema: the file's, once it is read."""

    fields: Fields
    schema: Any = None
    suffix: ClassVar[str] = ".parquet"

    @classmethod
    def named(cls, fields: Fields, name: str) -> ParquetDocuments:
        """Return the form of that name, with its schema."""
        import pyarrow as pa

        return cls(fields, pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(name.removeprefix(FORM)))))

    @property
    def name(self) -> str:
        return FORM + ("" if self.schema is None else self.schema.serialize().to_pybytes().hex())

    def read(self, file: Path) -> tuple[Docstore, list[Entry]]:
        import pyarrow as pa
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(file).read()
        except (pa.ArrowException, OSError) as exc:
            raise StoreFailed("faiss", f"{file} is no Parquet file that can be read: {exc!s:.300}") from exc
        self._check(table.schema, file)
        columns = {name: _plain(table[name], file, name) for name in table.column_names}
        keys, texts = columns.pop(self.fields.key), columns.pop(self.fields.text)
        if None in keys:
            raise StoreSchemaError(f"row {keys.index(None) + 1} of {file} has no key", "Give each row one of its own.")
        payloads = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        payloads = payloads or [{} for _ in keys]
        return replace(self, schema=table.schema), [
            Entry(str(k), t, p) for k, t, p in zip(keys, texts, payloads, strict=True)
        ]

    def written(self, entries: Sequence[Entry]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet

        own = {self.fields.key, self.fields.text}
        if strange := {name for entry in entries for name in entry.payload} - (set(self.schema.names) - own):
            raise StoreSchemaError(f"the Parquet file has no payload column {sorted(strange)}", "Add it to the file.")
        file = io.BytesIO()
        try:
            columns = [self._column(field, entries) for field in self.schema]
            pyarrow.parquet.write_table(pa.Table.from_arrays(columns, schema=self.schema), file)
        except (pa.ArrowException, OverflowError, TypeError, UnicodeError) as exc:
            what = f"a value does not fit into the Parquet file: {exc!s:.300}"
            raise StoreSchemaError(what, "Its schema says what does.") from exc
        return file.getvalue()

    def _check(self, schema: Any, file: Path) -> None:
        """Raise StoreSchemaError where key or text is not there or of another type, or the file has old vectors."""
        import pyarrow as pa

        for name, fits, expected in (
            (self.fields.key, lambda kind: _is_text(kind) or pa.types.is_integer(kind), "text or a whole number"),
            (self.fields.text, _is_text, "text"),
        ):
            kind = schema.field(name).type if name in schema.names else "not there"
            if kind == "not there" or not fits(kind):
                raise StoreSchemaError(f"column {name!r} of {file} is {kind}", f"It has to be {expected}.")
        vectors = self.fields.vector
        if vectors in schema.names and pa.types.is_nested(schema.field(vectors).type):
            what = f"{file} has vectors of its own in the column {vectors!r}, which would stay those of the old model"
            raise StoreSchemaError(what, "Write the file without them: the index has them.")

    def _column(self, field: Any, entries: Sequence[Entry]) -> Any:
        import pyarrow as pa

        if field.name == self.fields.text:
            return pa.array([entry.text for entry in entries], field.type)
        if field.name == self.fields.key:
            is_number = pa.types.is_integer(field.type)
            return pa.array([whole_number(e.id) if is_number else e.id for e in entries], field.type)
        return pa.array([e.payload.get(field.name) for e in entries], _plain_type(field.type)).cast(field.type)


def names_in(file: Path) -> Fields:
    """Return the likely names of key and text in a Parquet file: `id` and `text`, or the first columns that can be."""
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(file)
    key = "id" if "id" in schema.names else next(iter(schema.names), Fields.key)
    texts = [field.name for field in schema if field.name != key and _is_text(field.type)]
    return Fields(key, "text" if "text" in texts else next(iter(texts), Fields.text))


def _plain(column: Any, file: Path, name: str) -> list[Any]:
    """Return plain values. Raises StoreSchemaError for a type whose values would not come back."""
    import pyarrow as pa

    kind = _plain_type(column.type)
    try:
        plain = column.cast(kind)
        if kind == column.type or plain.cast(column.type).equals(column):
            return list(plain.to_pylist())
    except pa.ArrowException:
        pass
    raise StoreSchemaError(f"column {name!r} of {file} is {column.type}", "Leave it out of the file.")


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain_type(kind: Any) -> Any:
    """Return the type as which values are texts, numbers and lists of them."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        inner = _plain_type(kind.value_type)
        return kind if inner == kind.value_type else inner if pa.types.is_dictionary(kind) else pa.list_(inner)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    if pa.types.is_time32(kind):
        return pa.int32()
    if pa.types.is_time64(kind) or pa.types.is_duration(kind):
        return pa.int64()
    return pa.string() if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) else kind
