"""What a collection consists of, and how its rows become points."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymilvus import CollectionSchema, DataType

from vecferry.embeddings import Float32, Outputs, SparseVector, TextVectors
from vecferry.errors import StoreSchemaError
from vecferry.stores.backend import Fields, Point, VectorField, is_made_by_migration

SPARSE = "sparse"
DYNAMIC = "$meta"
PARTITION = "$partition"
"""Where a point's payload has the name of its partition here, if it is not in the default one."""
DEFAULT_PARTITION = "_default"
KEPT = "vecferry.kept"
"""A property of collections that were made here: the field `sparse` is the application's own vector in them."""
TAKES_IDS = "allow_insert_auto_id"
"""A property of Milvus by which a collection that makes its ids takes given ones too."""
NO_WEIGHTS = {0: 1e-30}
"""For a text without lexical weights, since a sparse field cannot be empty everywhere; 0 is no piece of a text."""
INT64 = range(-(2**63), 2**63)

_VECTORS = {kind for kind in DataType if "VECTOR" in kind.name}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


@dataclass(frozen=True)
class MilvusLayout:
    """described: what the store says of the collection. fields: its own fields by name, the dynamic one aside.

    partitions: those that the application has made, the default one among them; none where there is only that one, or
    where a partition key divides the points.
    """

    described: Mapping[str, Any]
    fields: Mapping[str, Mapping[str, Any]]
    names: Fields
    made_by_functions: frozenset[str]
    partitions: tuple[str, ...]

    @classmethod
    def of(cls, described: Mapping[str, Any], names: Fields, partitions: Sequence[str] = ()) -> MilvusLayout:
        """Read a layout. Raises StoreSchemaError if key, text or vector is not there, or of another type."""
        fields = {field["name"]: field for field in described["fields"] if not field.get("is_dynamic")}
        made = frozenset(name for function in described["functions"] for name in function["output_field_names"])
        layout = cls(described, fields, names, made, tuple(partitions))
        layout._check_names()
        return layout

    @property
    def collection(self) -> str:
        return str(self.described["collection_name"])

    @property
    def is_dynamic(self) -> bool:
        return bool(self.described["enable_dynamic_field"])

    @property
    def dimension(self) -> int:
        return int(self.fields[self.names.vector]["params"]["dim"])

    @property
    def has_sparse(self) -> bool:
        """Return whether the field `sparse` is for the weights of the model, and not the application's own."""
        kind = self.fields.get(SPARSE, {}).get("type")
        is_ours = is_made_by_migration(self.collection) and KEPT not in self.described["properties"]
        return is_ours and kind == DataType.SPARSE_FLOAT_VECTOR and SPARSE not in self.made_by_functions

    @property
    def num_key_partitions(self) -> int | None:
        """Return over how many partitions a partition key divides the points; None without one."""
        return int(self.described.get("num_partitions", 1)) if has_partition_key(self.described) else None

    @property
    def makes_ids(self) -> bool:
        return bool(self.described["auto_id"] or self.fields[self.names.key].get("auto_id"))

    @property
    def takes_ids(self) -> bool:
        """Return whether ids can be given all the same."""
        return str(self.described["properties"].get(TAKES_IDS)).lower() == "true"

    def _check_names(self) -> None:
        """Check key, text and vector; the text may be an entry of the dynamic field."""
        names, known = self.names, ", ".join(self.fields)
        if not self.fields.get(names.key, {}).get("is_primary"):
            raise StoreSchemaError(f"{self.collection} has no primary key {names.key!r}", f"Its fields: {known}.")
        if self._type(names.vector) != DataType.FLOAT_VECTOR:
            raise StoreSchemaError(f"{self.collection} has no float vector {names.vector!r}", f"Its fields: {known}.")
        if self._type(names.text) != DataType.VARCHAR and (names.text in self.fields or not self.is_dynamic):
            raise StoreSchemaError(f"{self.collection} has no text {names.text!r}", f"Its fields: {known}.")

    def _type(self, name: str) -> DataType | None:
        return self.fields.get(name, {}).get("type")

    def check(self, outputs: Outputs) -> None:
        """Raise StoreSchemaError if there can be no collection like this one with other vectors and these heads."""
        if Outputs.SPARSE in outputs and SPARSE in self.fields and not self.has_sparse:
            raise StoreSchemaError(f"{self.collection} has a field {SPARSE!r} of its own", "Leave that head out.")
        if self.names.vector in self.made_by_functions:
            raise StoreSchemaError(f"the store itself makes {self.names.vector}", "Its function cannot be migrated.")
        if structs := [field["name"] for field in self.described.get("struct_array_fields") or ()]:
            what = f"{self.collection} has arrays of structs: {', '.join(structs)}"
            raise StoreSchemaError(what, "Only collections without such fields can be migrated.")

    def copied(self, dimension: int, outputs: Outputs) -> CollectionSchema:
        """Return the schema of a collection like this one."""
        raw = copy.deepcopy(dict(self.described))
        raw["fields"] = [field for field in raw["fields"] if field["name"] != SPARSE or not self.has_sparse]
        for field in raw["fields"]:
            if field["name"] == self.names.vector:
                field["params"]["dim"] = dimension
        if Outputs.SPARSE in outputs:
            raw["fields"].append({"name": SPARSE, "type": DataType.SPARSE_FLOAT_VECTOR})
        return CollectionSchema.construct_from_dict(raw)

    def new_properties(self, outputs: Outputs) -> dict[str, Any]:
        """Return the properties of a collection like this one."""
        properties = {name: value for name, value in self.described["properties"].items() if name != KEPT}
        if SPARSE in self.fields and not self.has_sparse and Outputs.SPARSE not in outputs:
            properties[KEPT] = SPARSE
        return properties | ({TAKES_IDS: "true"} if self.makes_ids else {})

    # --- rows -------------------------------------------------------------------------------------

    def read_fields(self, *, vectors: bool) -> list[str]:
        """Return the fields to ask for."""
        left_out = {self.names.vector, *((SPARSE,) if self.has_sparse else ())} if not vectors else set()
        names = [name for name in self.fields if name not in self.made_by_functions | left_out]
        return [*names, DYNAMIC] if self.is_dynamic else names

    def dynamic(self, row: Mapping[str, Any]) -> set[str]:
        """Return the names of the row's entries in the dynamic field."""
        return {name for name in row if name not in self.fields}

    def point(self, row: Mapping[str, Any], partition: str, *, keeps_nulls: bool) -> Point:
        """Read a row. A null in a field of the schema is no entry. keeps_nulls: one in the dynamic field is."""
        payload = {
            name: _plain(value)
            for name, value in row.items()
            if name not in self.made_by_functions and (value is not None or (keeps_nulls and name not in self.fields))
        }
        key, text = payload.pop(self.names.key), payload.pop(self.names.text, None)
        vector = payload.pop(self.names.vector, None)
        sparse = _sparse(payload.pop(SPARSE, None)) if self.has_sparse else None
        if text is not None and not isinstance(text, str):
            what = f"{self.names.text} of point {key} is no text but {type(text).__name__}"
            raise StoreSchemaError(what, "Name the field that holds the text.")
        if partition not in ("", DEFAULT_PARTITION):
            payload[PARTITION] = partition
        vectors = None if vector is None else TextVectors(np.asarray(vector, np.float32), sparse)
        return Point(str(key), text, vectors, payload)

    def row(self, point: Point) -> dict[str, Any]:
        """Return the row of a point. Raises StoreSchemaError for what the schema does not allow."""
        assert point.vectors is not None, "every point that is put has a vector"
        optional = (name for name, field in self.fields.items() if field.get("nullable") or "default_value" in field)
        row = {name: None for name in optional if name not in self.made_by_functions} | dict(point.payload)
        row.pop(PARTITION, None)
        row |= {self.names.key: self.key(point.id), self.names.vector: np.asarray(point.vectors.dense, np.float32)}
        if point.text is not None:
            row[self.names.text] = point.text
        elif self.names.text in self.fields and not self.fields[self.names.text].get("nullable"):
            what = f"point {point.id} has no text, and {self.names.text} of {self.collection} is not nullable"
            raise StoreSchemaError(what, "An empty text can be stored.")
        if self.has_sparse:
            row[SPARSE] = _weights(point.vectors.sparse)
        elif point.vectors.sparse is not None:
            raise StoreSchemaError(f"{self.collection} has no field {SPARSE}", "Its migration was begun without it.")
        return row

    def key(self, id_: str) -> str | int:
        """Return the id as the primary key has it. Raises StoreSchemaError for no whole number where one is needed."""
        if self._type(self.names.key) == DataType.VARCHAR:
            return id_
        number = int(id_) if id_.removeprefix("-").isdecimal() and id_.isascii() and len(id_) <= 20 else None
        if number is None or str(number) != id_ or number not in INT64:
            what = f"{id_!r} is not an id of {self.collection}"
            raise StoreSchemaError(what, f"{self.names.key} is a whole number of 64 bits.")
        return number

    # --- filters ----------------------------------------------------------------------------------

    def is_in(self, keys: Sequence[str | int]) -> str:
        return f"{self.names.key} in [{', '.join(map(_literal, keys))}]"

    def is_above(self, key: str | int | None) -> str:
        """Return a filter; None: every key. The client's own iterator misses "" and 2^63 - 1, and does not quote."""
        if key is not None:
            return f"{self.names.key} > {_literal(key)}"
        is_text = self._type(self.names.key) == DataType.VARCHAR
        return f'{self.names.key} >= ""' if is_text else f"{self.names.key} <= {INT64[-1]}"


def has_partition_key(described: Mapping[str, Any]) -> bool:
    """Return whether a field says in which partition a point is."""
    return any(field.get("is_partition_key") for field in described["fields"])


def vector_fields(described: Mapping[str, Any], called: str, rows: int) -> list[VectorField]:
    """Return the dense vectors of a collection. described: as the store does. called: the name that is used for it."""
    fields = {field["name"]: field for field in described["fields"] if not field.get("is_dynamic")}
    key = next((name for name, field in fields.items() if field.get("is_primary")), Fields.key)
    names = tuple(name for name, field in fields.items() if name != key and field["type"] not in _VECTORS)
    text = next((name for name in names if fields[name]["type"] == DataType.VARCHAR), "text")
    return [
        VectorField(called, name, (int(field["params"]["dim"]),), rows, names, text, key)
        for name, field in fields.items()
        if field["type"] == DataType.FLOAT_VECTOR
    ]


def quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def _literal(key: str | int) -> str:
    """Write a literal. Control characters but for these need no escape, and Milvus Lite knows none for them."""
    return str(key) if isinstance(key, int) else quoted(key)


def _plain(value: Any) -> Any:
    """Return a value as it is written: an array comes as a container of the protocol's own, a byte vector in a list."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        return value
    return value[0] if len(value) == 1 and isinstance(value[0], bytes) else list(value)


def _weights(sparse: SparseVector | None) -> dict[int, float]:
    return NO_WEIGHTS if sparse is None or not len(sparse.indices) else sparse.as_dict()


def _sparse(weights: Mapping[int, float] | None) -> SparseVector | None:
    if weights is None or max(weights.values(), default=0) < 2 * NO_WEIGHTS[0]:
        return None
    ids = sorted(weights)
    values: Float32 = np.array([weights[id_] for id_ in ids], np.float32)
    return SparseVector(np.array(ids, np.int32), values)
