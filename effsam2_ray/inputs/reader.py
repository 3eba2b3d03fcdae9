"""Unit -> encoded images: one record an image, in the unit's order, whatever happens.

Lone images are read side by side. Of a tar only the ranges that hold the unit's images are fetched. A shard that is no
longer the one that was listed gives rows with status `changed`, since what lies at an offset then is anything.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from effsam2_ray.errors import ImageError
from effsam2_ray.inputs.columns import KeptTypes, convert_all
from effsam2_ray.inputs.parquet import ParquetRow, read_rows
from effsam2_ray.inputs.tar import is_compressed, open_tar
from effsam2_ray.inputs.work_list import UNKNOWN_SIZE, ImageRef, Shard, Unit
from effsam2_ray.storage import (
    NO_CREDENTIALS,
    CredentialsError,
    FileInfo,
    StorageOptions,
    failure_status,
    read_bytes,
    read_range,
    stat,
)
from effsam2_ray.uris import has_secret, join_uri, parent_uri, redact_text, scheme_of

MAX_IMAGE_BYTES = 512 << 20
"""Largest encoded image that is read."""
READERS = 32
"""Requests at once for one unit of a remote store."""
_LOCAL_READERS = 4
# Images of a tar that lie closer than this are fetched in one request, of at most `_RANGE_BYTES`.
_GAP_BYTES = 1 << 18
_RANGE_BYTES = 16 << 20


@dataclass(frozen=True)
class ImageRecord:
    """One image of a unit: its identity, and its encoded bytes or a reason why there are none.

    Attributes:
        image_uid, image_uri, shard_uri, member, row: as in `ImageRef`.
        image_id: the user's own id, None where there is none.
        size_bytes: encoded bytes; None where unknown.
        etag: of a lone image, as listed or read; None where unknown.
        kept: the user's columns that go along, of the types in `WorkList.kept_schema`.
        data: the encoded file; None unless `status` is `ok`.
        status: `ok` or one of `effsam2_ray.images.STATUSES`.
        error: what went wrong, for people; None when `ok`.
    """

    image_uid: int
    image_uri: str
    shard_uri: str | None
    member: str | None
    row: int | None
    image_id: str | None
    size_bytes: int | None
    etag: str | None
    kept: Mapping[str, Any]
    data: bytes | None
    status: str
    error: str | None


def read_unit(unit: Unit, storage_options: StorageOptions = None, *, check_changed: bool = False) -> list[ImageRecord]:
    """Read every image of a unit, in the unit's order. One bad image or shard gives records with a status, no error.

    A unit of which nothing can be read because this machine has no valid credentials is another matter: rows that say
    so would be final, for every unit that comes here.

    Args:
        unit: what to read.
        storage_options: passed to fsspec.
        check_changed: compare lone images, too, with what was listed of them, at the price of a request each.

    Raises:
        CredentialsError: as said above.
    """
    records = _read_unit(unit, storage_options, check_changed)
    refusals = [record.error or "" for record in records if record.status == "denied"]
    if records and len(refusals) == len(records) and all(text.startswith(NO_CREDENTIALS) for text in refusals):
        raise CredentialsError(refusals[0])
    return records


def _read_unit(unit: Unit, storage_options: StorageOptions, check_changed: bool) -> list[ImageRecord]:
    try:
        if unit.kind == "files":
            return _read_files(unit, storage_options, check_changed)
        assert unit.shard is not None
        _check_shard(unit.shard, storage_options)
        if unit.kind == "tar":
            return _read_tar(unit, unit.shard, storage_options)
        return _read_table(unit, unit.shard, storage_options)
    except Exception as error:  # storage libraries raise far more than OSError; no image may be left without a record
        return [_record(image, unit.kept_types, error=error) for image in unit.images]


def _read_files(unit: Unit, storage_options: StorageOptions, check_changed: bool) -> list[ImageRecord]:
    def read(image: ImageRef) -> ImageRecord:
        size, etag = image.size_bytes, image.etag
        try:
            _check_listed(image)
            if scheme_of(image.image_uri) not in ("http", "https") and (check_changed or size == UNKNOWN_SIZE):
                found = stat(image.image_uri, storage_options)
                if check_changed and not _same(found, size, etag):
                    raise ImageError("changed", _difference(found, size, etag))
                size, etag = found.size_bytes, found.etag
            _check_size(size)
            data = read_bytes(image.image_uri, storage_options) if size else b""
            _check_size(len(data))
            return _record(image, unit.kept_types, data=data, etag=etag)
        except Exception as error:
            return _record(image, unit.kept_types, error=error, etag=etag)

    is_local = all(scheme_of(image.image_uri) == "file" for image in unit.images)
    with ThreadPoolExecutor(_LOCAL_READERS if is_local else READERS, thread_name_prefix="read") as pool:
        return list(pool.map(read, unit.images))


def _read_tar(unit: Unit, shard: Shard, storage_options: StorageOptions) -> list[ImageRecord]:
    wanted = [image for image in unit.images if _is_wanted(image)]
    if is_compressed(shard.uri):
        contents = _read_through(shard, wanted, storage_options)
    else:
        contents = _read_ranges(shard, wanted, storage_options)
    records = []
    for image in unit.images:
        found = contents.get(image.image_uid, b"")
        try:
            _check_listed(image)
            _check_size(image.size_bytes)
            if isinstance(found, BaseException):
                raise found
            if len(found) < image.size_bytes:
                raise ImageError("truncated", "the shard ends inside this image")
            records.append(_record(image, unit.kept_types, data=found))
        except Exception as error:
            records.append(_record(image, unit.kept_types, error=error))
    return records


def _read_ranges(
    shard: Shard, images: Sequence[ImageRef], storage_options: StorageOptions
) -> dict[int, bytes | BaseException]:
    """Fetch the images of an uncompressed tar, neighbours in one request."""

    def fetch(group: Sequence[ImageRef]) -> list[tuple[int, bytes | BaseException]]:
        start = group[0].offset
        end = max(image.offset + image.size_bytes for image in group)
        try:
            data = read_range(shard.uri, start, end, storage_options)
        except Exception as error:
            return [(image.image_uid, error) for image in group]
        places = ((image.image_uid, image.offset - start, image.size_bytes) for image in group)
        return [(uid, data[place : place + size]) for uid, place, size in places]

    workers = _LOCAL_READERS if scheme_of(shard.uri) == "file" else READERS
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        return {uid: data for found in pool.map(fetch, _neighbours(images)) for uid, data in found}


def _neighbours(images: Sequence[ImageRef]) -> Iterator[list[ImageRef]]:
    """Group images that lie close together in a tar."""
    group: list[ImageRef] = []
    end = 0
    for image in sorted(images, key=lambda image: image.offset):
        image_end = image.offset + image.size_bytes
        if group and (image.offset - end > _GAP_BYTES or image_end - group[0].offset > _RANGE_BYTES):
            yield group
            group = []
        group.append(image)
        end = max(end, image_end) if len(group) > 1 else image_end
    if group:
        yield group


def _read_through(
    shard: Shard, images: Sequence[ImageRef], storage_options: StorageOptions
) -> dict[int, bytes | BaseException]:
    """Read the images of a compressed tar, from its start to the last of them."""
    contents: dict[int, bytes | BaseException] = {}
    by_offset: dict[int, bytes] = {}  # a hard link has the place of an earlier member
    file = FileInfo(shard.uri, shard.size_bytes, shard.etag)
    todo = sorted(images, key=lambda image: image.offset)
    try:
        with open_tar(file, storage_options) as stream:
            for image in todo:
                if image.offset not in by_offset:
                    stream.seek(image.offset)
                    by_offset[image.offset] = stream.read(image.size_bytes)
                contents[image.image_uid] = by_offset[image.offset]
    except (OSError, EOFError, zlib.error) as error:
        contents.update((image.image_uid, error) for image in todo if image.image_uid not in contents)
    return contents


def _read_table(unit: Unit, shard: Shard, storage_options: StorageOptions) -> list[ImageRecord]:
    kept = tuple(name for name, _ in unit.kept_types)
    rows: list[ParquetRow] = []
    for first, end in _row_ranges(unit.images):
        rows += read_rows(shard, first, end, kept, storage_options)
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        folder = parent_uri(shard.uri)
        return list(
            pool.map(
                lambda pair: _table_record(pair[0], pair[1], folder, unit.kept_types, storage_options),
                zip(unit.images, rows, strict=True),
            )
        )


def _row_ranges(images: Sequence[ImageRef]) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each stretch of consecutive rows."""
    rows = [image.row for image in images if image.row is not None]
    assert len(rows) == len(images)
    cuts = [0, *(n for n in range(1, len(rows)) if rows[n] != rows[n - 1] + 1), len(rows)]
    for start, end in itertools.pairwise(cuts):
        if start < end:
            yield rows[start], rows[end - 1] + 1


def _table_record(
    image: ImageRef, row: ParquetRow, folder: str, types: KeptTypes, storage_options: StorageOptions
) -> ImageRecord:
    values: dict[str, Any] = {"image_id": row.image_id, "kept": row.kept or {}}
    try:
        if row.error is not None:
            raise ImageError("corrupt", row.error)
        cell = row.cell if isinstance(row.cell, Mapping) else {"bytes": row.cell}
        data, path = cell.get("bytes"), cell.get("path")
        if data is None and path:  # Hugging Face: the picture lies beside the table
            if has_secret(path):
                raise ImageError("denied", "the path carries credentials")
            data = read_bytes(join_uri(folder, path), storage_options)
        if data is None:
            raise ImageError("null", "the row holds no bytes")
        _check_size(len(data))
        return _record(image, types, data=bytes(data), **values)
    except Exception as error:
        return _record(image, types, error=error, **values)


def _record(
    image: ImageRef,
    types: KeptTypes,
    *,
    data: bytes | None = None,
    error: BaseException | None = None,
    image_id: str | None = None,
    etag: str = "",
    kept: Mapping[str, Any] | None = None,
) -> ImageRecord:
    if data is not None and not data:
        data, error = None, ImageError("empty", "the file has no bytes")
    try:
        columns = convert_all(json.loads(image.kept) if kept is None else kept, types)
    except (ValueError, TypeError, OverflowError) as unfit:  # the input changed since its types were read
        columns = convert_all({}, types)
        data, error = None, error or ImageError("changed", f"a kept column holds another type than before: {unfit}")
    size = len(data) if data is not None else image.size_bytes
    if error is None:
        status, text = "ok", None
    else:
        status = error.status if isinstance(error, ImageError) else _status(error)
        text = redact_text(str(error) or type(error).__name__)
    return ImageRecord(
        image_uid=image.image_uid,
        image_uri=image.image_uri,
        shard_uri=image.shard_uri,
        member=image.member,
        row=image.row,
        image_id=image.image_id if image_id is None else image_id,
        size_bytes=None if size == UNKNOWN_SIZE else size,
        etag=etag or image.etag or None,
        kept=columns,
        data=data,
        status=status,
        error=text,
    )


def _status(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "truncated"
    return "corrupt" if isinstance(error, zlib.error | pa.ArrowException) else failure_status(error)


def _is_wanted(image: ImageRef) -> bool:
    return image.status == "ok" and 0 < image.size_bytes <= MAX_IMAGE_BYTES


def _check_listed(image: ImageRef) -> None:
    if image.status != "ok":
        raise ImageError(image.status, image.error or image.status)


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_IMAGE_BYTES:
        raise ImageError("too_large", f"{size_bytes} bytes; at most {MAX_IMAGE_BYTES} are read")


def _check_shard(shard: Shard, storage_options: StorageOptions) -> None:
    found = stat(shard.uri, storage_options)
    if not _same(found, shard.size_bytes, shard.etag):
        raise ImageError(
            "changed", f"the shard changed since it was listed: {_difference(found, shard.size_bytes, shard.etag)}"
        )


def _same(found: FileInfo, size_bytes: int, etag: str) -> bool:
    return (size_bytes in (UNKNOWN_SIZE, found.size_bytes)) and (not etag or not found.etag or etag == found.etag)


def _difference(found: FileInfo, size_bytes: int, etag: str) -> str:
    return f"{size_bytes} bytes, version {etag}, when listed; now {found.size_bytes} bytes, version {found.etag}"
