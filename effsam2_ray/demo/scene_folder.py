"""Held-out procedural scenes as a data set on disk, in COCO form: `images/*.png` and `annotations.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from effsam2_ray.demo.measure import MIN_AREA_FRAC
from effsam2_ray.demo.scenes import draw_scene, held_out_seed
from effsam2_ray.metrics import object_masks
from effsam2_ray.rle import encode


def write_scenes(
    folder: Path, num: int, size: int | tuple[int, int], *, first: int = 0, min_area_frac: float = MIN_AREA_FRAC
) -> None:
    """Draw held-out scenes and what is in them; the same arguments write the same pixels and objects.

    Args:
        folder: made where it is not there.
        num: scenes.
        size: (height, width) in pixels, or one number for a square.
        first: number of the first scene (`scenes.held_out_seed`).
        min_area_frac: objects that cover less of their picture are left out.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(first, first + num):
        scene = draw_scene(held_out_seed(number), size)
        name = f"scene-{number:05d}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        height, width = scene.label_map.shape
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for rle in encode(object_masks(scene.label_map, min_area_frac)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": rle.to_coco(),
                    "area": rle.area,
                    "bbox": list(rle.bbox),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 1, "name": "object"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "annotations.json").write_text(text)
