"""Parquet files: tables that hold encoded images, and manifests that name them.

Which of the two a file is follows from its image column: bytes, or a struct with `bytes` and `path` as Hugging Face
data sets write it, make it a table of images; text makes it a manifest. Without `--image-column` the column is found by
its type and, among several, by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.columns import KeptTypes, is_binary, is_text, kept_type, need_columns
from effsam2_ray.inputs.work_list import Shard
from effsam2_ray.storage import FileInfo, StorageOptions, failure_status, is_transient, open_seekable
from effsam2_ray.uris import redact

# Names looked for, best first.
BYTES_COLUMNS = ("image", "img", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp", "content", "data")
URI_COLUMNS = "uri url path image_uri image_url image_path file_name filename file image img s3_uri s3_path".split()
_ROWS_AT_ONCE = 32
_WINDOW = 1 << 20


@dataclass(frozen=True)
class ParquetTable:
    """What the footer of a Parquet file says.

    Attributes:
        file: the file as listed.
        image_column: the column with images or URIs.
        is_manifest: whether that column holds URIs.
        id_column: the column with the user's ids, or None.
        kept_types: the kept columns.
        row_groups: (rows, uncompressed bytes of the image column) of each row group.
    """

    file: FileInfo
    image_column: str
    is_manifest: bool
    id_column: str | None
    kept_types: KeptTypes
    row_groups: tuple[tuple[int, int], ...]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(rows for rows, _ in self.row_groups)

    @property
    def shard(self) -> Shard:
        """The file as the shard of a unit."""
        return Shard(self.file.uri, self.file.size_bytes, self.file.etag, self.image_column, self.id_column)


@dataclass(frozen=True)
class ParquetRow:
    """One row: the image cell, the user's id, and the kept columns as Python values; or why it cannot be read."""

    number: int
    cell: Any = None
    image_id: str | None = None
    kept: dict[str, Any] | None = None
    error: str | None = None


def describe_parquet(
    file: FileInfo,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    keep_columns: tuple[str, ...] = (),
    storage_options: StorageOptions = None,
) -> ParquetTable:
    """Read the footer of a Parquet file and choose its image column.

    Raises:
        InputError: a named column is missing, or no column or several could be the images.
        pyarrow.ArrowException: the file is no Parquet file, or cut.
        OSError: the storage fails.
    """
    with open_seekable(file.uri, file.size_bytes, storage_options, _WINDOW) as stream:
        metadata = pq.read_metadata(stream)
    schema: Any = metadata.schema.to_arrow_schema()
    where = redact(file.uri)
    need_columns(where, schema.names, [image_column, id_column, *keep_columns])
    column = image_column or _find_column(schema, where)
    arrow_type = schema.field(column).type
    if not (_is_image_type(arrow_type) or is_text(arrow_type) or pa.types.is_null(arrow_type)):
        raise InputError(
            f"column {column!r} of {where} is {arrow_type}; images are bytes, structs of bytes and path, or text URIs"
        )
    return ParquetTable(
        file,
        column,
        is_text(arrow_type),
        id_column,
        tuple((name, kept_type(name, schema.field(name).type)) for name in keep_columns),
        tuple(_group_size(metadata.row_group(i), column) for i in range(metadata.num_row_groups)),
    )


def read_rows(
    shard: Shard, start: int, stop: int, kept: tuple[str, ...] = (), storage_options: StorageOptions = None
) -> Iterator[ParquetRow]:
    """Yield rows [start, stop) of a Parquet file, in order, holding a few of them at a time.

    A row group that cannot be decoded gives rows with an `error`.

    Raises:
        pyarrow.ArrowException: the footer cannot be read.
        OSError: the storage fails.
    """
    with open_seekable(shard.uri, shard.size_bytes, storage_options, _WINDOW) as stream:
        file = pq.ParquetFile(stream, buffer_size=_WINDOW, pre_buffer=False)
        first = 0
        for group in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            low, high = max(start, first), min(stop, first + num_rows)
            if low < high:
                yield from _group_rows(file, shard, group, first, low, high, kept)
            first += num_rows
        for number in range(max(start, first), stop):
            yield ParquetRow(number, error="the file has fewer rows than when it was listed")


def _group_rows(
    file: pq.ParquetFile, shard: Shard, group: int, first: int, low: int, high: int, kept: tuple[str, ...]
) -> Iterator[ParquetRow]:
    assert shard.image_column is not None
    columns = list(dict.fromkeys([shard.image_column, *([shard.id_column] if shard.id_column else []), *kept]))
    position, done = first, low
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
            if position + batch.num_rows > low:
                for row in batch.slice(max(0, low - position), high - max(low, position)).to_pylist():
                    image_id = row[shard.id_column] if shard.id_column else None
                    yield ParquetRow(
                        done,
                        row[shard.image_column],
                        None if image_id is None else str(image_id),
                        {name: row[name] for name in kept},
                    )
                    done += 1
            position += batch.num_rows
            if position >= high:
                break
    except (pa.ArrowException, ValueError, OSError) as error:
        # Arrow calls damaged pages an OSError as well.
        if isinstance(error, OSError) and (is_transient(error) or failure_status(error) != "unreadable"):
            raise
        text = f"row group {group} cannot be decoded: {error}"
        yield from (ParquetRow(number, error=text) for number in range(done, high))


def _find_column(schema: Any, where: str) -> str:
    """Return the image column: the only struct or binary one, else the best name of those, else a column of URIs."""
    images = [field.name for field in schema if _is_image_type(field.type)]
    structs = [name for name in images if pa.types.is_struct(schema.field(name).type)]
    for candidates in (structs, images):
        if len(candidates) == 1:
            return str(candidates[0])
    texts = {field.name.lower(): field.name for field in schema if is_text(field.type)}
    for names, columns in ((BYTES_COLUMNS, {name.lower(): name for name in images}), (URI_COLUMNS, texts)):
        if found := next((columns[name] for name in names if name in columns), None):
            return str(found)
    listing = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise InputError(f"which column of {where} holds the images? Name it with --image-column: {listing}")


def _is_image_type(arrow_type: pa.DataType) -> bool:
    if pa.types.is_struct(arrow_type):
        return any(field.name == "bytes" and is_binary(field.type) for field in arrow_type)
    return is_binary(arrow_type)


def _group_size(group: Any, column: str) -> tuple[int, int]:
    chunks = (group.column(i) for i in range(group.num_columns))
    of_column = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column.split(".")[0])
    return group.num_rows, sum(chunk.total_uncompressed_size for chunk in of_column)
