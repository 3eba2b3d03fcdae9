"""Runs for tests of what is done with a run: drawn scenes, with their true objects as masks, and no model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effsam2_ray import rle
from effsam2_ray.config import Config
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.fingerprint import fingerprint
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.inputs.work_list import ImageRef, Unit, WorkList, WorkListWriter, unit_id
from effsam2_ray.model.interface import ModelInfo
from effsam2_ray.output import OutputFolder
from effsam2_ray.runs import reading
from effsam2_ray.schema import build_table, run_schema
from effsam2_ray.storage import put_bytes

SIZE_HW = (72, 96)
INFO = ModelInfo("demo", "sam2", 512, 32, (5, 6, 7), (4, 4, 4), 32, 7, 0, "", 0.8, 0.95, "abc", True)
Row = dict[str, Any]


def mask_value(mask: rle.Rle | np.ndarray) -> Row:
    """Return a mask as it stands in a row."""
    if isinstance(mask, np.ndarray):
        mask = rle.encode(mask[None])[0]
    return {
        "segmentation": mask.to_coco(),
        "area": mask.area,
        "bbox": list(mask.bbox),
        "predicted_iou": 0.875,
        "stability_score": 0.96875,
        "point_coords": [[1.5, 2.5]],
        "members": [0],
    }


def image_row(image: ImageRef, masks: Sequence[np.ndarray], size_hw: tuple[int, int] = SIZE_HW) -> Row:
    """Return a labelled image's row."""
    return {
        "image_uid": image.image_uid,
        "image_uri": image.image_uri,
        "shard_uri": image.shard_uri,
        "member": image.member,
        "row": image.row,
        "height": size_hw[0],
        "width": size_hw[1],
        "status": "ok",
        "preset": "high_quality",
        "weights": "demo",
        "num_prompts": 2 * len(masks),
        "prompts": [],
        "num_candidates": len(masks),
        "masks": [mask_value(mask) for mask in masks],
    }


def failed_row(image: ImageRef, status: str = "corrupt") -> Row:
    """Return a failed image's row."""
    return {
        "image_uid": image.image_uid,
        "image_uri": image.image_uri,
        "status": status,
        "error": "made up",
        "num_prompts": 0,
        "prompts": [],
        "num_candidates": 0,
        "masks": [],
    }


def scene_masks(seed: int, size_hw: tuple[int, int] = SIZE_HW) -> list[np.ndarray]:
    """Return the objects of a drawn scene, each (H, W) bool."""
    label_map = draw_scene(seed, size_hw).label_map
    return [label_map == label for label in range(1, label_map.max() + 1) if (label_map == label).any()]


def draw_pictures(folder: Path, names: Sequence[str], size_hw: tuple[int, int] = SIZE_HW) -> str:
    """Write the scene of seed n as the n-th name."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(seed, size_hw).image).save(folder / name)
    return str(folder)


def cut_again(work_list: WorkList, unit_size: int) -> WorkList:
    """Return the images of a work list in units of another size."""
    units = list(work_list.units())
    images = [image for unit in units for image in unit.images]
    writer = WorkListWriter()
    starts = range(0, len(images), unit_size)
    for number, start in enumerate(starts):
        chosen = tuple(images[start : start + unit_size])
        new_id = unit_id(number, [image.image_uid for image in chosen])
        writer.add(Unit(new_id, units[0].kind, chosen, 0, units[0].shard, units[0].kept_types))
    summary = {**dataclasses.asdict(work_list.summary), "num_units": len(starts)}
    return writer.finish(summary)


def put_run(
    folder: Path | str, work_list: WorkList, make_row: Callable[[int, ImageRef], Row | None], **options: Any
) -> str:
    """Write a run; `make_row(number, image)` gives each row, None leaves it out."""
    output = OutputFolder(str(folder), **options)
    put_bytes(output.meta_uri("work_list.parquet"), work_list.to_bytes(), output.storage_options)
    output.put_json("job.json", {"fingerprint": job_fingerprint({"uris": list(work_list.summary.inputs)})})
    schema = run_schema(work_list.kept_schema, keep_candidates=False)
    number = 0
    for unit in work_list.units():
        rows = [make_row(number + place, image) for place, image in enumerate(unit.images)]
        number += len(rows)
        output.put_part(unit.unit_id, build_table([row for row in rows if row is not None], schema), {})
    return str(folder)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a counter that from now on counts how often each part is fetched."""
    counts: Counter[str] = Counter()
    read_bytes = reading.read_bytes

    def counted(uri: str, *arguments: Any) -> bytes:
        counts[uri.rsplit("/", 1)[-1]] += 1
        return read_bytes(uri, *arguments)

    monkeypatch.setattr(reading, "read_bytes", counted)
    return counts


def job_fingerprint(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what `job.json` of a real run says of its settings."""
    return fingerprint(
        Config(),
        INFO,
        dtype="float32",
        compiled=False,
        device_type="cpu",
        keep_candidates=False,
        model_config_sha256="",
        inputs=inputs,
    )


def scene_run(folder: Path, names: Sequence[str], unit_size: int = 3, failed: Sequence[int] = ()) -> str:
    """Return a run over drawn scenes, `folder/run`; the pictures are in `folder/pictures`, some of them failed."""
    pictures = draw_pictures(folder / "pictures", names)
    work_list = cut_again(build_work_list([pictures]), unit_size)
    order = {name: seed for seed, name in enumerate(names)}

    def make_row(number: int, image: ImageRef) -> Row:
        seed = order[image.image_uri.removeprefix(f"file://{pictures}/")]
        return failed_row(image) if seed in failed else image_row(image, scene_masks(seed))

    return put_run(folder / "run", work_list, make_row)
