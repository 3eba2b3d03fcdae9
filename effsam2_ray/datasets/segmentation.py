"""COCO segmentations (polygons, compressed and uncompressed RLE) -> masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from effsam2_ray.errors import MaskError
from effsam2_ray.rle import Rle

_MOST_OUTSIDE_FRAC = 0.05
_MOST_OUTSIDE_PIXELS = 5.0


def segmentation_rle(segmentation: Any, size_hw: tuple[int, int]) -> Rle:
    """Return the mask of a COCO segmentation, as pycocotools' `annToRLE` does.

    Polygons are clipped at the border, since many tools let them reach a little over it.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...] in pixels, or `{"size": [h, w], "counts": ...}` with
            compressed (str) or uncompressed (list of run lengths) counts.
        size_hw: (height, width) of the picture that was annotated.

    Raises:
        MaskError: none of these; a size other than the picture's; runs that do not fill it; a polygon that lies outside
            the picture, or reaches out of it by more than 5 pixels and 5 % of the longer side.
    """
    if isinstance(segmentation, Mapping):
        return _from_rle(segmentation, size_hw)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str | bytes):
        return _from_polygons(segmentation, size_hw)
    raise MaskError(f"segmentation must be polygons or an RLE; got {type(segmentation).__name__}")


def _from_rle(segmentation: Mapping[str, Any], size_hw: tuple[int, int]) -> Rle:
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        size = segmentation.get("size")
        try:
            runs = np.array(counts, np.int64)
            height, width = (int(side) for side in size)  # type: ignore[union-attr]
        except (TypeError, ValueError, OverflowError) as error:
            raise MaskError("an uncompressed RLE needs size [height, width] and whole-numbered counts") from error
        if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != height * width:
            raise MaskError(
                f"the counts of an RLE must be 0 or more and sum to {height} * {width} = {height * width} pixels; "
                f"got a sum of {int(runs.sum())}"
            )
        packed = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        rle = Rle((height, width), packed["counts"])
    else:
        rle = Rle.from_coco(segmentation)
    if rle.size != size_hw:
        raise MaskError(
            f"the RLE is of {rle.size[1]} x {rle.size[0]} pixels (width x height), "
            f"the annotated picture {size_hw[1]} x {size_hw[0]}"
        )
    return rle


def _from_polygons(polygons: Sequence[Any], size_hw: tuple[int, int]) -> Rle:
    height, width = size_hw
    outlines = []
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError) as error:
            raise MaskError("a polygon must be a flat list of numbers [x, y, x, y, ...]") from error
        if points.ndim != 1 or points.size % 2 or not np.isfinite(points).all():
            raise MaskError("a polygon must be a flat list of x, y pairs, all of them finite")
        if points.size >= 6:  # of four numbers pycocotools would make a box
            outlines.append(points)
    if not outlines:
        raise MaskError("there is no polygon of three points or more")
    points = np.concatenate(outlines).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)  # (x, y)
    if (high < 0).any() or low[0] > width or low[1] > height:
        raise MaskError(f"it lies outside the picture of {width} x {height} pixels: {_box(low, high)}")
    over = max(float((-low).max()), float(high[0] - width), float(high[1] - height))
    if over > max(_MOST_OUTSIDE_PIXELS, _MOST_OUTSIDE_FRAC * max(height, width)):
        raise MaskError(f"it reaches {over:.1f} pixels out of the picture of {width} x {height}: {_box(low, high)}")
    merged = coco.merge(coco.frPyObjects([points.tolist() for points in outlines], height, width))
    return Rle(size_hw, merged["counts"])


def _box(low: np.ndarray, high: np.ndarray) -> str:
    return f"x {low[0]:.1f} to {high[0]:.1f}, y {low[1]:.1f} to {high[1]:.1f}"
