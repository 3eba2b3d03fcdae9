"""The user's own columns: which are taken along, as what type, and as what value.

A kept column has one of four types in the output: `int64`, `double`, `bool` or `string`. Whole numbers, floats,
booleans and texts of Parquet keep theirs; dates, decimals, lists and structs become text (ISO 8601 or JSON). CSV and
JSON lines give texts. A column that has different types in different inputs becomes text.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from effsam2_ray.errors import InputError

ARROW_TYPES: dict[str, pa.DataType] = {
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}

KeptTypes = tuple[tuple[str, str], ...]
"""(column, `int64` | `double` | `bool` | `string`) of every kept column."""


def kept_type(column: str, arrow_type: pa.DataType) -> str:
    """Return the type that a kept column of a Parquet file has in the output.

    Raises:
        InputError: the column holds bytes.
    """
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if is_binary(arrow_type):
        raise InputError(f"column {column!r} holds bytes and cannot be kept")
    if pa.types.is_boolean(arrow_type):
        return "bool"
    if pa.types.is_integer(arrow_type) and arrow_type != pa.uint64():
        return "int64"
    if pa.types.is_floating(arrow_type):
        return "double"
    return "string"


def merge_types(first: KeptTypes, second: KeptTypes) -> KeptTypes:
    """Return types that hold the kept columns of two inputs; the order is the first's."""
    merged = dict(first)
    for column, name in second:
        merged[column] = name if merged.get(column, name) == name else "string"
    return tuple(merged.items())


def convert(value: Any, type_name: str) -> Any:
    """Return a value as one of the four types; None stays None."""
    if value is None:
        return None
    if type_name == "string":
        if isinstance(value, str):
            return value
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        return json.dumps(value, default=str)
    return {"int64": int, "double": float, "bool": bool}[type_name](value)


def convert_all(values: Mapping[str, Any], types: KeptTypes) -> dict[str, Any]:
    """Return the value of every kept column, None where there is none."""
    return {column: convert(values.get(column), name) for column, name in types}


def is_binary(arrow_type: pa.DataType) -> bool:
    """Return whether a column holds byte strings."""
    return (
        pa.types.is_binary(arrow_type)
        or pa.types.is_large_binary(arrow_type)
        or pa.types.is_fixed_size_binary(arrow_type)
        or str(arrow_type) == "binary_view"
    )


def is_text(arrow_type: pa.DataType) -> bool:
    """Return whether a column holds texts."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    return pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) or str(arrow_type) == "string_view"


def need_columns(where: str, columns: Sequence[str], wanted: Iterable[str | None]) -> None:
    """Check that an input has the columns that the user named.

    Raises:
        InputError: it has not; the message lists those that it has.
    """
    for column in wanted:
        if column is not None and column not in columns:
            raise InputError(f"{where} has no column {column!r}; it has {', '.join(map(repr, columns)) or 'none'}")
