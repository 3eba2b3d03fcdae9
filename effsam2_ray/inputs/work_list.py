"""The frozen work list: which images there are, and the units in which they are read, labelled and written.

A unit holds lone images (`files`), members of one tar shard (`tar`) or rows of one Parquet shard (`parquet`). It is
stored as one Parquet row, compressed, and is turned into values only when it is asked for: a list of a million lone
images is some tens of megabytes in memory, and opening it costs nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from effsam2_ray.errors import InputError
from effsam2_ray.inputs.columns import ARROW_TYPES, KeptTypes
from effsam2_ray.storage import StorageOptions, exists, read_bytes
from effsam2_ray.uris import redact

Kind = Literal["files", "tar", "parquet"]
UNKNOWN_SIZE = -1
"""Value of `size_bytes` where the listing did not tell."""

UNITS_PER_ROW_GROUP = 16
_VERSION = "1"
_SUMMARY_KEY = b"effsam2_ray.work_list"


@dataclass(frozen=True)
class ImageRef:
    """Where one image is and what the listing knew of it.

    Attributes:
        image_uid: 64-bit hash of canonical URI, member name, and row number or ordinal among equal names (`image_uid`).
        image_uri: canonical URI of a lone image; `SHARD#MEMBER` or `SHARD#row=N` of one in a shard.
        shard_uri: canonical URI of its shard; None for a lone image.
        member: name inside a tar; None elsewhere, "" for what was lost of a shard.
        row: row number in a Parquet file, ordinal among equal names in a tar (0 is the first), line number of a
            manifest line that names no image; None for a lone image.
        image_id: the user's own id; in a Parquet shard it is known only after reading.
        size_bytes: encoded size, -1 where unknown.
        etag: ETag of a lone image (on a disk: its modification time); "" where unknown.
        kept: JSON object of the user's columns that go along, from a manifest.
        offset: first byte in the (uncompressed) tar; -1 elsewhere.
        status: `ok`, or why the listing already knows that there is no image (`effsam2_ray.images.STATUSES`).
        error: what went wrong, for people.
    """

    image_uid: int
    image_uri: str
    shard_uri: str | None = None
    member: str | None = None
    row: int | None = None
    image_id: str | None = None
    size_bytes: int = UNKNOWN_SIZE
    etag: str = ""
    kept: str = "{}"
    offset: int = -1
    status: str = "ok"
    error: str | None = None


@dataclass(frozen=True)
class Shard:
    """One tar or Parquet file as the listing found it.

    Attributes:
        uri: canonical URI.
        size_bytes, etag: as listed; a shard that differs when it is read gives rows with status `changed`.
        image_column, id_column: of a Parquet shard.
    """

    uri: str
    size_bytes: int = UNKNOWN_SIZE
    etag: str = ""
    image_column: str | None = None
    id_column: str | None = None


@dataclass(frozen=True)
class Unit:
    """Some images that are read together and become one output part.

    Attributes:
        unit_id: number in the list and hash of the images, `0000042-1f3a9c0b`; names the part.
        kind: what the images lie in.
        images: every image, in order; one output row each.
        size_bytes: encoded bytes of all images (an estimate where sizes are unknown).
        shard: the shard of `tar` and `parquet` units.
        kept_types: the user's columns that go along: (name, `string` | `int64` | `double` | `bool`).
    """

    unit_id: str
    kind: Kind
    images: tuple[ImageRef, ...]
    size_bytes: int
    shard: Shard | None = None
    kept_types: KeptTypes = ()

    @property
    def num_images(self) -> int:
        """Number of images, and of output rows."""
        return len(self.images)


@dataclass(frozen=True)
class WorkListSummary:
    """Counts of a work list.

    Attributes:
        num_images: output rows, listed losses among them.
        num_shards: tar and Parquet files.
        num_units: units.
        size_bytes: encoded bytes, estimated where unknown.
        num_duplicates: images and shards listed more than once, which count once.
        num_ignored: files of folders, globs and tars that are no images by name.
        num_lost: rows that the listing already gave a status other than `ok`.
        kept_types: the user's columns that go along, name to Arrow type name.
        inputs: the inputs as given, without secrets.
    """

    num_images: int = 0
    num_shards: int = 0
    num_units: int = 0
    size_bytes: int = 0
    num_duplicates: int = 0
    num_ignored: int = 0
    num_lost: int = 0
    kept_types: KeptTypes = ()
    inputs: tuple[str, ...] = ()


class WorkList:
    """Units, frozen, in compressed form.

    Iterate over `units()`; ask for one with `unit(number)`. `to_bytes` and `from_bytes` write and read the file
    `_meta/work_list.parquet`. Workers can be given the bytes once and a number a unit.
    """

    def __init__(self, data: bytes):
        """Open the bytes of a work list; `from_bytes` does so with a clear error."""
        self._data = data
        file = self._open()
        metadata = file.metadata.metadata or {}
        if _SUMMARY_KEY not in metadata:
            raise InputError("not a work list: a Parquet file without its summary")
        values = json.loads(metadata[_SUMMARY_KEY])
        if values.pop("version") != _VERSION:
            raise InputError("a work list of another version of effsam2-ray")
        values["kept_types"] = tuple(tuple(pair) for pair in values["kept_types"])
        values["inputs"] = tuple(values["inputs"])
        self.summary = WorkListSummary(**values)
        columns: dict[str, list[Any]] = file.read(columns=["unit_id", "num_images"], use_threads=False).to_pydict()
        self.unit_ids: tuple[str, ...] = tuple(columns["unit_id"])
        self.unit_num_images: tuple[int, ...] = tuple(columns["num_images"])

    @classmethod
    def from_bytes(cls, data: bytes) -> WorkList:
        """Open a work list that `to_bytes` gave.

        Raises:
            InputError: `data` is no work list.
        """
        try:
            return cls(data)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a work list: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the list as a Parquet file, one row a unit."""
        return self._data

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.unit_ids)

    @property
    def num_images(self) -> int:
        """Number of images of all units."""
        return self.summary.num_images

    @property
    def digest(self) -> str:
        """Names the list by its units and columns; two lists of one digest give the same parts."""
        text = json.dumps([self.unit_ids, self.summary.kept_types])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def kept_schema(self) -> dict[str, pa.DataType]:
        """The user's columns that go along, name to Arrow type."""
        return {column: ARROW_TYPES[name] for column, name in self.summary.kept_types}

    def unit(self, number: int) -> Unit:
        """Return the unit at a position in the list."""
        group, place = divmod(number, UNITS_PER_ROW_GROUP)
        row = self._open().read_row_group(group, use_threads=False).slice(place, 1).to_pylist()[0]
        return _unit_from_row(row, self.summary.kept_types)

    def units(self, skip: Container[str] = ()) -> Iterator[Unit]:
        """Yield the units in order, without those whose id is in `skip`; only what is yielded is unpacked."""
        file = self._open()
        for first in range(0, len(self), UNITS_PER_ROW_GROUP):
            ids = self.unit_ids[first : first + UNITS_PER_ROW_GROUP]
            places = [place for place, unit_id in enumerate(ids) if unit_id not in skip]
            if places:
                table = file.read_row_group(first // UNITS_PER_ROW_GROUP, use_threads=False)
                for place in places:
                    yield _unit_from_row(table.slice(place, 1).to_pylist()[0], self.summary.kept_types)

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(self._data))


def image_uid(uri: str, member: str | None = None, row: int | None = None) -> int:
    """Return the 64-bit identity of an image, signed.

    Args:
        uri: canonical URI of the image or of its shard.
        member: name inside a tar.
        row: row number in a Parquet file, or ordinal among equal names in a tar.
    """
    parts = (uri, "" if member is None else member, "" if row is None else str(row))
    # A NUL cannot occur in a URI or a member name, so the three parts cannot run into each other.
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def unit_id(number: int, image_uids: Sequence[int]) -> str:
    """Return the id of the unit at `number` with these images."""
    digest = hashlib.blake2b(digest_size=4)
    for uid in image_uids:
        digest.update(uid.to_bytes(8, "big", signed=True))
    return f"{number:07d}-{digest.hexdigest()}"


_IMAGE: pa.DataType = pa.struct(
    [
        ("uri", pa.string()),
        ("member", pa.string()),
        ("row", pa.int64()),
        ("image_id", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("kept", pa.string()),
        ("offset", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("unit_id", pa.string()),
    ("kind", pa.string()),
    ("num_images", pa.int32()),
    ("size_bytes", pa.int64()),
    ("shard_uri", pa.string()),
    ("shard_size_bytes", pa.int64()),
    ("shard_etag", pa.string()),
    ("image_column", pa.string()),
    ("id_column", pa.string()),
    ("first_row", pa.int64()),
    ("images", pa.list_(_IMAGE)),  # empty in a parquet unit
]
_SCHEMA = pa.schema(_FIELDS)


class WorkListWriter:
    """Packs units as they come, so that the whole list never exists as values."""

    def __init__(self) -> None:
        """Start an empty list."""
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, _SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, unit: Unit) -> None:
        """Append a unit; units must come in order of their numbers."""
        self._rows.append(_row_from_unit(unit))
        if len(self._rows) == UNITS_PER_ROW_GROUP:
            self._flush()

    def finish(self, summary: Mapping[str, Any]) -> WorkList:
        """Return the list of the units added.

        Args:
            summary: the fields of `WorkListSummary`.
        """
        self._flush()
        self._writer.add_key_value_metadata({_SUMMARY_KEY.decode(): json.dumps({"version": _VERSION, **summary})})
        self._writer.close()
        return WorkList(self._buffer.getvalue())

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
            self._rows = []


def shard_image_uri(shard_uri: str, member: str | None, row: int | None) -> str:
    """Return the name that an image inside a shard has in the output's `image_uri`."""
    if member is None:
        return f"{shard_uri}#row={row}"
    return f"{shard_uri}#{member}" if member else shard_uri


def _row_from_unit(unit: Unit) -> dict[str, Any]:
    shard = unit.shard
    row: dict[str, Any] = {
        "unit_id": unit.unit_id,
        "kind": unit.kind,
        "num_images": unit.num_images,
        "size_bytes": unit.size_bytes,
    }
    if shard is not None:
        row |= {
            "shard_uri": shard.uri,
            "shard_size_bytes": shard.size_bytes,
            "shard_etag": shard.etag,
            "image_column": shard.image_column,
            "id_column": shard.id_column,
        }
    if unit.kind == "parquet":  # consecutive rows of which the listing knows nothing more
        return row | {"first_row": unit.images[0].row, "images": []}
    row["images"] = [
        {
            "uri": image.image_uri if image.shard_uri is None else image.shard_uri,
            "member": image.member,
            "row": image.row,
            "image_id": image.image_id,
            "size_bytes": image.size_bytes,
            "etag": image.etag,
            "kept": image.kept,
            "offset": image.offset,
            "status": image.status,
            "error": image.error,
        }
        for image in unit.images
    ]
    return row


def _unit_from_row(row: Mapping[str, Any], kept_types: KeptTypes) -> Unit:
    shard = None
    if row["shard_uri"] is not None:
        shard = Shard(
            row["shard_uri"], row["shard_size_bytes"], row["shard_etag"], row["image_column"], row["id_column"]
        )
    if row["kind"] == "parquet":
        assert shard is not None
        images = tuple(parquet_ref(shard.uri, row["first_row"] + i) for i in range(row["num_images"]))
    else:
        images = tuple(_image_from_row(image) for image in row["images"])
    return Unit(row["unit_id"], row["kind"], images, row["size_bytes"], shard, kept_types)


def _image_from_row(image: Mapping[str, Any]) -> ImageRef:
    uri, member, row = image["uri"], image["member"], image["row"]
    in_shard = member is not None or row is not None
    return ImageRef(
        image_uid=image_uid(uri, member, row),
        image_uri=shard_image_uri(uri, member, row) if in_shard else uri,
        shard_uri=uri if in_shard else None,
        member=member,
        row=row,
        **{name: image[name] for name in ("image_id", "size_bytes", "etag", "kept", "offset", "status", "error")},
    )


def parquet_ref(shard_uri: str, row: int) -> ImageRef:
    """Return what the listing knows of one row of a Parquet shard."""
    return ImageRef(image_uid(shard_uri, None, row), shard_image_uri(shard_uri, None, row), shard_uri, None, row)


def load_work_list(uri: str, storage_options: StorageOptions = None) -> WorkList:
    """Open the work list of an earlier run, or a work list file.

    Args:
        uri: the output folder of a run, or a Parquet file of `effsam2 manifest`.
        storage_options: passed to fsspec.

    Raises:
        InputError: there is no work list.
    """
    path = uri if uri.endswith(".parquet") else f"{uri.rstrip('/')}/_meta/work_list.parquet"
    if not exists(path, storage_options):
        raise InputError(f"{redact(uri)} is no run with a frozen work list and no work list file")
    return WorkList.from_bytes(read_bytes(path, storage_options))
