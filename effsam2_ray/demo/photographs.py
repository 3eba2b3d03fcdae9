"""Photographs with known objects, from folders as the public data sets publish them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from effsam2_ray.demo.measure import MIN_AREA_FRAC, Picture


def coco_pictures(folder: Path) -> Iterator[Picture]:
    """Read `annotations.json` and `images/` of a COCO sample, in the order of the image ids.

    Crowd regions and objects under `MIN_AREA_FRAC` are left out, then pictures without an object.
    """
    content = json.loads((folder / "annotations.json").read_text())
    by_image: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    for entry in sorted(content["images"], key=lambda item: item["id"]):
        height, width = entry["height"], entry["width"]
        masks = [_decode(a["segmentation"], height, width) for a in by_image.get(entry["id"], [])]
        yield from _picture(folder / "images" / entry["file_name"], masks)


def mask_folder_pictures(folder: Path) -> Iterator[Picture]:
    """Read `images/*.jpg` with one black-and-white `masks/*.png` of the same stem each, in the order of the names."""
    for path in sorted((folder / "images").glob("*.jpg")):
        mask_path = folder / "masks" / f"{path.stem}.png"
        if mask_path.exists():
            yield from _picture(path, [np.asarray(Image.open(mask_path).convert("L")) > 127])


def _picture(path: Path, masks: list[np.ndarray]) -> Iterator[Picture]:
    kept = [mask for mask in masks if mask.mean() >= MIN_AREA_FRAC]
    if kept and path.exists():
        yield Picture(np.array(Image.open(path).convert("RGB")), np.stack(kept))


def _decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Decode polygons, or runs packed or not."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str | bytes):
        return coco.decode(segmentation).astype(bool)
    return coco.decode(_merged(coco.frPyObjects(segmentation, height, width))).astype(bool)


def _merged(rles: list[dict] | dict) -> dict:
    return coco.merge(rles) if isinstance(rles, list) else rles
