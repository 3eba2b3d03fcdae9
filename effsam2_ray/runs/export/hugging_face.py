"""Parquet that Hugging Face `datasets` reads, pictures and all: `load_dataset("parquet", data_files=...)`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effsam2_ray.runs.export.items import ExportItem, FileWriter
from effsam2_ray.schema import run_schema

_COLUMNS = ("image_uid", "image_id", "width", "height", "preset", "weights", "num_prompts", "prompts", "masks")
# A few dozen pictures a row group, so that readers which want one need not fetch all.
_ROWS_A_GROUP = 100
_IMAGE: pa.DataType = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_hugging_face(
    items: Iterable[ExportItem], writer: FileWriter, kept: Mapping[str, pa.DataType], name: str
) -> None:
    """Write the images as one Parquet file; none where there is no image.

    Args:
        items: with their pictures.
        writer: where to.
        kept: the user's columns that go along, name to type.
        name: of the file.
    """
    schema = hugging_face_schema(kept)
    columns = [column for column in schema.names if column not in ("image", "file_name")]
    rows = [
        {
            "image": {"bytes": item.picture, "path": item.file_name},
            "file_name": item.file_name,
            **{column: item.row[column] for column in columns},
        }
        for item in items
    ]
    if not rows:
        return
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, row_group_size=_ROWS_A_GROUP, compression="zstd")
    writer.put(name, buffer.getvalue())


def hugging_face_schema(kept: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the columns of an export, with the metadata by which `datasets` knows that `image` holds pictures."""
    run = run_schema(kept, keep_candidates=False)
    fields = [("image", _IMAGE), ("file_name", pa.string())]
    fields += [(name, run.field(name).type) for name in (*_COLUMNS, *kept) if name not in ("image", "file_name")]
    features = {name: {"_type": "Image"} if name == "image" else _feature(kind) for name, kind in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> Any:
    """Return an Arrow type as `datasets` writes it; a list of one is a list of anything."""
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _feature(kind.field(i).type) for i in range(kind.num_fields)}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    names = {"float": "float32", "double": "float64"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}
