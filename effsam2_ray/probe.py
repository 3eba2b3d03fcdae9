"""Label a few images of a work list here and now, to learn what the whole list will take. No Ray."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from effsam2_ray.errors import ImageError, InputError
from effsam2_ray.inputs.reader import ImageRecord, read_unit
from effsam2_ray.inputs.work_list import WorkList
from effsam2_ray.labeller import Labeller
from effsam2_ray.planning import Rates, rates_from_steps
from effsam2_ray.results import LabelledImage
from effsam2_ray.schema import build_table, result_columns, run_schema
from effsam2_ray.storage import StorageOptions


@dataclass(frozen=True)
class Probe:
    """What some images took.

    Attributes:
        rates: what that makes for one segmenter.
        num_labelled: images that were labelled.
        num_failed: images that could not be read.
        prompts_per_image, masks_per_image: of the labelled ones.
    """

    rates: Rates
    num_labelled: int
    num_failed: int
    prompts_per_image: float
    masks_per_image: float


def probe(work_list: WorkList, labeller: Labeller, num_images: int, storage_options: StorageOptions = None) -> Probe:
    """Label images spread evenly over the list, the first of them twice, since a device is slow at first.

    Raises:
        InputError: none of the images could be read.
    """
    records = list(sample(work_list, num_images, storage_options))
    labelled: list[LabelledImage] = []
    for number, record in enumerate([records[0], *records]):
        try:
            if record.data is None:
                continue
            image = labeller.label(record.data)
        except ImageError:
            continue
        if number > 0:
            labelled.append(image)
    if not labelled:
        reasons = ", ".join(sorted({record.status for record in records}))
        raise InputError(f"none of {len(records)} images that were tried can be labelled ({reasons})")
    on_gpu = labeller.model.device.type != "cpu"
    return Probe(
        rates_from_steps([image.step_s for image in labelled], _bytes_per_image(labelled), on_gpu=on_gpu),
        len(labelled),
        len(records) - len(labelled),
        sum(len(image.prompts.point_coords) for image in labelled) / len(labelled),
        sum(len(image.masks) for image in labelled) / len(labelled),
    )


def sample(work_list: WorkList, num_images: int, storage_options: StorageOptions) -> Iterator[ImageRecord]:
    """Yield images spread evenly over a work list, read one by one."""
    wanted = min(num_images, work_list.num_images)
    places = [number * work_list.num_images // wanted for number in range(wanted)]
    first = 0
    for number, size in enumerate(work_list.unit_num_images):
        inside = [place - first for place in places if first <= place < first + size]
        if inside:
            unit = work_list.unit(number)
            yield from read_unit(
                dataclasses.replace(unit, images=tuple(unit.images[place] for place in inside)), storage_options
            )
        first += size


def _bytes_per_image(labelled: list[LabelledImage]) -> float:
    """Return the bytes that an image adds to a part; what every part holds once is not counted."""
    schema = run_schema({}, keep_candidates=False)
    rows = [
        {"image_uid": number, "status": "ok", **result_columns(image, keep_candidates=False)}
        for number, image in enumerate(labelled)
    ]
    return (_parquet_bytes(build_table(rows, schema)) - _parquet_bytes(build_table(rows[:0], schema))) / len(rows)


def _parquet_bytes(table: pa.Table) -> int:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return len(buffer.getvalue())
