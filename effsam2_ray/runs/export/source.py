"""A run's part -> the images of it that can be handed over, with their pictures where they are wanted."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow.parquet as pq
from PIL import Image

from effsam2_ray.inputs.reader import read_unit
from effsam2_ray.inputs.work_list import Unit
from effsam2_ray.output import OutputFolder
from effsam2_ray.runs.export.items import ExportItem
from effsam2_ray.runs.export.turning import upright_picture
from effsam2_ray.runs.packed_masks import sound_rows
from effsam2_ray.runs.reading import open_part, part_batches
from effsam2_ray.storage import StorageOptions

BAD_MASK = "bad_mask"
"""Reason for an image whose masks are malformed or of another size; `effsam2 check` says which."""
NO_PICTURE = "no_picture"
"""Reason for an image whose file is gone, is no longer the one that was labelled, or cannot be written turned."""

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}
MAX_SKIPPED_NAMES = 1000


@dataclass(frozen=True)
class UnitTask:
    """A finished unit.

    Attributes:
        unit: what it holds.
        first_number: place in the work list of its first image, 1 for the first of all.
        names: (name, suffix) of each image.
    """

    unit: Unit
    first_number: int
    names: tuple[tuple[str, str], ...]


@dataclass
class ExportCounts:
    """What became of the rows of an export.

    Attributes:
        images, masks: handed over.
        skipped: rows that were not, by their status, `bad_mask` or `no_picture`.
        skipped_names: (reason, image_uri) of the first of them.
    """

    images: int = 0
    masks: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_names: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, reason: str, name: str) -> None:
        """Count a row that is not handed over."""
        self.skipped[reason] += 1
        if len(self.skipped_names) < MAX_SKIPPED_NAMES:
            self.skipped_names.append((reason, name))

    def add(self, other: ExportCounts) -> None:
        """Add the counts of other rows."""
        self.images += other.images
        self.masks += other.masks
        self.skipped += other.skipped
        room = MAX_SKIPPED_NAMES - len(self.skipped_names)
        self.skipped_names += other.skipped_names[:room]


def unit_items(
    task: UnitTask,
    folder: OutputFolder,
    columns: Sequence[str],
    counts: ExportCounts,
    *,
    with_pictures: bool,
    storage_options: StorageOptions,
) -> Iterator[ExportItem]:
    """Yield a unit's labelled images in order; the others are counted as skipped.

    Args:
        task: the unit.
        folder: the run's folder.
        columns: of the rows; `image_uid`, `image_uri`, `status`, `width`, `height` and `masks` among them.
        counts: is added to.
        with_pictures: read the pictures; they are held until the unit is done.
        storage_options: passed to fsspec, for the pictures.
    """
    places = {image.image_uid: place for place, image in enumerate(task.unit.images)}
    part = open_part(folder, task.unit.unit_id)
    pictures: dict[int, bytes] = {}
    if with_pictures:
        pictures = _pictures(task.unit, folder, part, storage_options)
    for batch in part_batches(folder, task.unit.unit_id, columns, part=part):
        for row, sound in zip(batch.to_pylist(), sound_rows(batch), strict=True):
            uid = row["image_uid"]
            picture = pictures.pop(uid, None)
            if picture is not None:
                picture = upright_picture(picture)
            reason = row["status"] if row["status"] != "ok" else "" if sound else BAD_MASK
            if not reason and with_pictures and picture is None:
                reason = NO_PICTURE
            if reason or uid not in places:
                counts.skip(reason or "foreign", row["image_uri"])
                continue
            name, suffix = task.names[places[uid]]
            if picture is not None and not suffix:
                suffix = _suffix(picture)
            counts.images += 1
            counts.masks += len(row["masks"])
            yield ExportItem(task.first_number + places[uid], name, suffix, row, picture)


def _pictures(
    unit: Unit, folder: OutputFolder, part: pq.ParquetFile, storage_options: StorageOptions
) -> dict[int, bytes]:
    """Return the encoded pictures of a unit's labelled images that are still what they were."""
    statuses = part_batches(folder, unit.unit_id, ["image_uid", "status"], part=part)
    labelled = {row["image_uid"] for batch in statuses for row in batch.to_pylist() if row["status"] == "ok"}
    wanted = dataclasses.replace(unit, images=tuple(image for image in unit.images if image.image_uid in labelled))
    return {
        record.image_uid: record.data
        for record in read_unit(wanted, storage_options, check_changed=True)
        if record.data is not None
    }


def _suffix(picture: bytes) -> str:
    try:
        with Image.open(io.BytesIO(picture)) as image:
            kind = image.format or ""
    except (OSError, Image.DecompressionBombError):
        return ""
    return _SUFFIXES.get(kind, f".{kind.lower()}" if kind else "")
