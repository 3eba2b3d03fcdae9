"""YOLO segmentation labels: a text file an image, a polygon a line.

A line can hold one ring only, so holes and parts of a mask are tied into one (`polygons.join_rings`), as YOLO's own
converters do: one line is one object. As there, too, outlines run through the outermost pixels, since YOLO tools fill a
polygon and its line.

Ultralytics finds a picture's labels by putting `labels` for the last folder called `images` on its path. So that this
is the export's own, folders called `images` below it are called `images_`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from effsam2_ray.rle import Rle
from effsam2_ray.runs.export.items import ExportItem, ExportOptions, FileWriter
from effsam2_ray.runs.export.polygons import join_rings, pixel_rings, simplify, trace_rings

# Some tools round coordinates to pixels, others cut them off; both come to the same pixel a quarter beyond it.
_INTO_PIXEL = 0.25

# Without a `path`, Ultralytics looks beside the file itself; a relative one is looked for from the working directory.
DATA_YAML = """# Written by effsam2. One class: the masks have no names.
train: images
val: images
names:
  0: object
"""


def write_yolo(items: Iterable[ExportItem], writer: FileWriter, options: ExportOptions) -> None:
    """Write `labels/<name>.txt`, and `images/<name>` where pictures are copied."""
    for item in items:
        masks = [Rle(item.size_hw, mask["segmentation"]["counts"].encode()) for mask in item.masks]
        name = yolo_name(item.name)
        writer.put(f"labels/{name}.txt", "".join(mask_lines(masks, options.polygon_tolerance)).encode())
        if item.picture is not None:
            writer.put(f"images/{name}{item.suffix}", item.picture)


def yolo_name(name: str) -> str:
    """Return an image's path with no folder in it called `images`: `train/images/1` becomes `train/images_/1`.

    `images_` becomes `images__`, and so on, so that different paths stay different.
    """
    *folders, last = name.split("/")
    return "/".join([*(f"{part}_" if re.fullmatch("images_*", part) else part for part in folders), last])


def mask_lines(masks: Sequence[Rle], tolerance: float) -> list[str]:
    """Return the line of each mask, with its end: `0 x y x y ...`; an empty mask has none.

    Args:
        masks: of one picture.
        tolerance: pixels that the polygon may be off; 0 is exact.
    """
    rings = [_rings_of(mask) for mask in masks]
    simple = iter(simplify([ring for of_mask in rings for ring in of_mask], tolerance))
    lines = []
    for mask, of_mask in zip(masks, rings, strict=True):
        if of_mask:
            joined = join_rings(list(itertools.islice(simple, len(of_mask))))
            shares = (joined + _INTO_PIXEL) / (mask.size[1], mask.size[0])
            lines.append("0 " + " ".join(f"{value:.6f}" for value in np.ravel(shares).tolist()) + "\n")
    return lines


def _rings_of(mask: Rle) -> list[np.ndarray]:
    """Return a mask's outlines, columns and rows of the picture."""
    x, y, width, height = (int(value) for value in mask.bbox)
    if not width:
        return []
    rings = pixel_rings(trace_rings(mask.to_array()[y : y + height, x : x + width]))
    return [ring + (x, y) for ring in rings]
