"""Unit -> encoded images, one record an image, whatever happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effsam2_ray.inputs.work_list import Unit
from effsam2_ray.storage import StorageOptions


@dataclass(frozen=True)
class ImageRecord:
    """One image of a unit: its identity, and its encoded bytes or a reason why there are none.

    Attributes:
        image_uid, image_uri, shard_uri, member, row: as in `ImageRef`.
        image_id: the user's own id, None where there is none.
        size_bytes: encoded bytes; None where unknown.
        etag: as listed or read; None where unknown.
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


def read_unit(unit: Unit, storage_options: StorageOptions = None) -> list[ImageRecord]:
    """Read every image of a unit, in the unit's order. One bad image or shard gives records with a status, never an error."""
    raise NotImplementedError
