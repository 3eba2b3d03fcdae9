"""COCO instance JSON, SA-1B JSON and COCO panoptic JSON with its PNGs.

Image ids are places in the work list, 1 for the first. The id of a mask is `image id * 100,000 + its place in the row's
list + 1`. So both stay what they are when failed images are taken up again, and agree between the files of one export
and between runs of one work list as far as they can.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import ndimage

from effsam2_ray.runs.export.items import ExportItem, ExportOptions, FileWriter
from effsam2_ray.runs.export.label_maps import item_label_map, png_bytes

MASK_IDS_AN_IMAGE = 100_000
CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}
_INFO = {"description": "Masks of effsam2; they have no classes", "version": "1.0"}


class CocoFile:
    """One COCO JSON file, built as its images come, as text: no object is kept.

    A file of 10,000 images with 50 masks each is about 350 MB.

    Args:
        categories: the `categories` list.
    """

    def __init__(self, categories: list[dict[str, Any]]):
        self._categories = categories
        self._images, self._annotations = io.BytesIO(), io.BytesIO()

    def add(self, image: dict[str, Any], annotations: Iterable[dict[str, Any]]) -> None:
        """Append an image and its annotations."""
        for values, buffer in (((image,), self._images), (annotations, self._annotations)):
            for value in values:
                buffer.write(b",\n" if buffer.tell() else b"")
                buffer.write(json.dumps(value, separators=(",", ":")).encode())

    def to_bytes(self) -> bytes:
        """Return the file."""
        head = json.dumps({"info": _INFO, "licenses": [], "categories": self._categories})[:-1]
        parts: list[bytes | memoryview] = [head.encode(), b',\n"images":[', self._images.getbuffer()]
        parts += [b'],\n"annotations":[', self._annotations.getbuffer(), b"]}\n"]
        return b"".join(parts)


def write_coco(items: Iterable[ExportItem], writer: FileWriter, options: ExportOptions, name: str) -> None:
    """Write the images as one COCO instance file, and `images/<name>` where pictures are copied."""
    file = CocoFile([CATEGORY])
    for item in items:
        file.add(image_entry(item), [coco_annotation(item, index) for index in range(len(item.masks))])
        if item.picture is not None:
            writer.put(f"images/{item.file_name}", item.picture)
    writer.put(name, file.to_bytes())


def image_entry(item: ExportItem) -> dict[str, Any]:
    """Return an image as COCO's `images` has it; `image_uid` is text: JavaScript would round it."""
    height, width = item.size_hw
    entry = {"id": item.number, "file_name": item.file_name, "width": width, "height": height}
    entry["image_uid"] = str(item.row["image_uid"])
    if item.row["image_id"] is not None:
        entry["source_id"] = item.row["image_id"]
    return entry


def coco_annotation(item: ExportItem, index: int) -> dict[str, Any]:
    """Return a mask as COCO's `annotations` has it, its pixels as compressed RLE."""
    mask = item.masks[index]
    return {
        "id": mask_id(item, index),
        "image_id": item.number,
        "category_id": CATEGORY["id"],
        "segmentation": mask["segmentation"],
        "area": mask["area"],
        "bbox": mask["bbox"],
        "iscrowd": 0,
        "predicted_iou": mask["predicted_iou"],
        "stability_score": mask["stability_score"],
    }


def mask_id(item: ExportItem, index: int) -> int:
    """Return the number of a mask, unique over the whole export."""
    return item.number * MASK_IDS_AN_IMAGE + index + 1


def write_sa1b(items: Iterable[ExportItem], writer: FileWriter, options: ExportOptions) -> None:
    """Write `<name>.json`, one a picture, with the keys of SA-1B; `<name>` beside it where pictures are copied."""
    for item in items:
        writer.put(f"{item.name}.json", json.dumps(sa1b_document(item), separators=(",", ":")).encode())
        if item.picture is not None:
            writer.put(item.file_name, item.picture)


def sa1b_document(item: ExportItem) -> dict[str, Any]:
    """Return an image and its masks as a file of SA-1B holds them; `crop_box` is the whole picture."""
    height, width = item.size_hw
    image = {"image_id": item.number, "width": width, "height": height, "file_name": item.file_name}
    keys = ("bbox", "area", "segmentation", "predicted_iou", "point_coords", "stability_score")
    annotations = [
        {
            **{key: mask[key] for key in keys},
            "crop_box": [0.0, 0.0, float(width), float(height)],
            "id": mask_id(item, k),
        }
        for k, mask in enumerate(item.masks)
    ]
    return {"image": image, "annotations": annotations}


def write_panoptic(items: Iterable[ExportItem], writer: FileWriter, options: ExportOptions, name: str) -> None:
    """Write `panoptic/<image>.png`, and the COCO panoptic file of all the images.

    A segment's id is its colour, red + 256 green + 65536 blue: 1 + the index of the mask in the row's list. A mask that
    others hide wholly is no segment.
    """
    file = CocoFile([{**CATEGORY, "isthing": 1, "color": [220, 20, 60]}])
    for item in items:
        label_map = item_label_map(item, options.full_coverage)
        rgb = np.stack([label_map & 255, label_map >> 8 & 255, label_map >> 16], axis=2).astype(np.uint8)
        writer.put(f"panoptic/{item.name}.png", png_bytes(rgb))
        segments = {
            "image_id": item.number,
            "file_name": f"{item.name}.png",
            "segments_info": panoptic_segments(label_map),
        }
        file.add(image_entry(item), [segments])
    writer.put(name, file.to_bytes())


def panoptic_segments(label_map: np.ndarray) -> list[dict[str, Any]]:
    """Return `segments_info` of a label map: what is to be seen of each mask."""
    areas = np.bincount(label_map.ravel())
    segments = []
    for label, place in enumerate(ndimage.find_objects(label_map), start=1):
        if place is None:
            continue
        rows, columns = place
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        segments.append(
            {"id": label, "category_id": CATEGORY["id"], "area": int(areas[label]), "bbox": box, "iscrowd": 0}
        )
    return segments
