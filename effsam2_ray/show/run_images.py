"""A run's folder -> some of its images, each with its row's values and, where it still exists, its picture.

Which rows to show is decided from the work list alone. Of each part only the row groups that hold them are read, and
of each unit only their pictures, one unit at a time.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from effsam2_ray.errors import ImageError, InputError
from effsam2_ray.images import STATUSES, decode_image
from effsam2_ray.inputs.reader import ImageRecord, read_unit
from effsam2_ray.inputs.work_list import Unit, WorkList
from effsam2_ray.output import OutputFolder
from effsam2_ray.rle import Rle
from effsam2_ray.storage import StorageOptions, exists, open_seekable, read_bytes, stat
from effsam2_ray.uris import redact

_COLUMNS = [
    "image_uid",
    "image_uri",
    "shard_uri",
    "member",
    "width",
    "height",
    "status",
    "error",
    "preset",
    "weights",
    "prompts",
    "cluster_map",
    "masks",
]


@dataclass(frozen=True)
class ShownImage:
    """One image of a run, as it is drawn.

    Attributes:
        name: file or member name, without folders.
        uri: the whole name.
        status: `ok`, or why there are no masks.
        error: what went wrong, for people; "" when `ok`.
        preset, weights: what labelled it.
        size_hw: (height, width) in pixels; None where labelling failed.
        point_coords: (P, 2) float32, (x, y) of each prompt in pixels.
        cluster_map: (rows, columns) int16 cluster label of each patch, -1 for noise; None where prompts are no medoids.
        masks: the final masks, largest first.
        picture: (H, W, 3) uint8 RGB; None where it is gone, has changed, or labelling failed.
        note: why `picture` is None, for people; "" where there is one or labelling failed.
    """

    name: str
    uri: str
    status: str
    error: str
    preset: str
    weights: str
    size_hw: tuple[int, int] | None
    point_coords: np.ndarray
    cluster_map: np.ndarray | None
    masks: tuple[Rle, ...]
    picture: np.ndarray | None
    note: str


@dataclass(frozen=True)
class Run:
    """A run with at least one finished unit.

    Attributes:
        name: last part of the folder's name.
        folder: where the parts are.
        work_list: what was to be labelled.
        finished: positions in the work list of the units that have a part, ascending.
        storage_options: passed to fsspec, for the pictures.
    """

    name: str
    folder: OutputFolder
    work_list: WorkList
    finished: tuple[int, ...]
    storage_options: StorageOptions = None

    @property
    def num_images(self) -> int:
        """Images in finished units."""
        return sum(self.work_list.unit_num_images[number] for number in self.finished)

    def spread(self, num_images: int) -> Iterator[ShownImage]:
        """Yield images at even distances over the finished units, in the order of the work list."""
        ends = list(itertools.accumulate(self.work_list.unit_num_images[number] for number in self.finished))
        positions = spread_positions(ends[-1], num_images)
        for index, group in itertools.groupby(positions, key=lambda position: bisect.bisect_right(ends, position)):
            number = self.finished[index]
            first = ends[index] - self.work_list.unit_num_images[number]
            yield from self.unit_images(number, [position - first for position in group])

    def unit_images(self, number: int, places: Sequence[int]) -> Iterator[ShownImage]:
        """Yield the images at ascending places of a finished unit; `number` is its position in the work list."""
        unit = self.work_list.unit(number)
        rows = _read_rows(self.folder, unit, places)
        labelled = {row["image_uid"] for row in rows if row["status"] == "ok"}
        # A picture that failed is left alone: it may have killed the process that read it.
        wanted = tuple(image for image in unit.images if image.image_uid in labelled)
        records = {
            record.image_uid: record
            for record in read_unit(dataclasses.replace(unit, images=wanted), self.storage_options)
        }
        for row in rows:
            picture, note = None, ""
            if row["status"] == "ok":
                record = records.pop(row["image_uid"], None)
                picture, note = _decode(record, (row["height"], row["width"]))
            yield _shown_image(row, picture, note)


def open_run(run_uri: str, storage_options: StorageOptions = None) -> Run:
    """Open the output folder of `effsam2 label`.

    Raises:
        InputError: it holds no work list, or no finished unit.
    """
    folder = OutputFolder(run_uri, storage_options)
    work_list_uri = folder.meta_uri("work_list.parquet")
    if not exists(work_list_uri, storage_options):
        raise InputError(
            f"{redact(run_uri)} is not a run: it has no _meta/work_list.parquet; give an `effsam2 label` --output"
        )
    work_list = WorkList.from_bytes(read_bytes(work_list_uri, storage_options))
    parts = folder.finished_units()
    finished = tuple(
        number
        for number, unit_id in enumerate(work_list.unit_ids)
        if unit_id in parts and work_list.unit_num_images[number]
    )
    if not finished:
        raise InputError(f"{redact(run_uri)} has no image to show yet: none of its {len(work_list)} units is finished")
    return Run(run_uri.rstrip("/").rsplit("/", 1)[-1] or run_uri, folder, work_list, finished, storage_options)


def spread_positions(total: int, num: int) -> list[int]:
    """Return `min(num, total)` ascending numbers under `total`, each in the middle of its share.

    For example 3 of 10 gives [1, 5, 8].
    """
    num = min(num, total)
    return [(2 * i + 1) * total // (2 * num) for i in range(num)]


def _read_rows(folder: OutputFolder, unit: Unit, places: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows at ascending places of a unit's part."""
    uri = folder.part_uri(unit.unit_id)
    rows: list[dict[str, Any]] = []
    with open_seekable(uri, stat(uri, folder.storage_options).size_bytes, folder.storage_options) as stream:
        try:
            file = pq.ParquetFile(stream)
            if file.metadata.num_rows != unit.num_images:
                raise InputError(f"{uri} has {file.metadata.num_rows} rows for the unit's {unit.num_images} images")
            first = 0
            for group in range(file.metadata.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                inside = [place - first for place in places if first <= place < end]
                if inside:
                    rows += file.read_row_group(group, columns=_COLUMNS).take(inside).to_pylist()
                first = end
        except pa.ArrowException as error:
            raise InputError(f"{uri} is not a part of a run: {error}") from error
    return rows


def _decode(record: ImageRecord | None, size_hw: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """Return a picture and "", or None and why it cannot be shown."""
    if record is None or record.data is None:
        status = record.status if record else "missing"
        return None, f"no picture any more ({status}): {STATUSES.get(status, status)}"
    try:
        picture = decode_image(record.data)
    except ImageError as error:
        return None, f"no picture any more ({error.status}): {error}"
    if picture.shape[:2] != size_hw:
        return None, f"no picture any more (changed): it has {picture.shape[1]} x {picture.shape[0]} pixels now"
    return picture, ""


def _shown_image(row: Mapping[str, Any], picture: np.ndarray | None, note: str) -> ShownImage:
    prompts, masks, clusters = row["prompts"] or [], row["masks"] or [], row["cluster_map"]
    masks = sorted(masks, key=lambda mask: -mask["area"])
    points = np.array([(prompt["x"], prompt["y"]) for prompt in prompts], np.float32).reshape(-1, 2)
    return ShownImage(
        name=_short_name(row["member"] or row["image_uri"]),
        uri=row["image_uri"],
        status=row["status"],
        error=row["error"] or "",
        preset=row["preset"] or "",
        weights=row["weights"] or "",
        size_hw=(row["height"], row["width"]) if row["width"] and row["height"] else None,
        point_coords=points,
        cluster_map=np.array(clusters["labels"], np.int16).reshape(clusters["size"]) if clusters else None,
        masks=tuple(Rle.from_coco(mask["segmentation"]) for mask in masks),
        picture=picture,
        note=note,
    )


def _short_name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1] or uri
