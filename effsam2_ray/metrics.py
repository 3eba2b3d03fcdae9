"""How well predicted masks match known objects, by two definitions of IoU that rank methods differently.

`best_iou` lets every predicted mask count on its own, so that more masks never hurt. `label_map_iou` first lets the
masks compete for pixels, so that clutter hurts. Both are means over the known objects of one picture; neither asks
whether a prediction that matches no object is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from effsam2_ray.errors import MaskError

# Bool masks (M, H, W), or COCO RLEs: {"size": [H, W], "counts": compressed str or bytes}.
Masks = np.ndarray | Sequence[dict[str, Any]]


def best_iou(predicted: Masks, truth: Masks) -> float:
    """Return the mean over the known objects of the best IoU that any predicted mask reaches.

    Args:
        predicted: M masks, which may overlap; none gives 0.0.
        truth: the known objects' masks, at least one, of the same size.

    Returns:
        A number in [0, 1].

    Raises:
        MaskError: there is no known object, sizes differ, or an array is not (M, H, W) bool.
    """
    predicted_rles, truth_rles, _ = _checked(predicted, truth)
    if not predicted_rles:
        return 0.0
    ious = coco.iou(predicted_rles, truth_rles, [0] * len(truth_rles))  # (M, objects)
    return float(ious.max(axis=0).mean())


def label_map_iou(predicted: Masks, truth: Masks) -> float:
    """Return the mean over the known objects of the best IoU with a segment of the predictions' label map.

    The label map gives each pixel the smallest predicted mask that covers it (see `paint_label_map`); a segment is
    what is left of a mask there, and may be empty. Arguments, result and errors are those of `best_iou`.

    Example: a mask of 6 pixels and one of 2 inside it. An object of those 6 pixels has best_iou 1.0, but only 4 of
    its pixels keep the larger mask's number: label_map_iou is 4/6.
    """
    predicted_rles, truth_rles, size = _checked(predicted, truth)
    if not predicted_rles:
        return 0.0
    segments = paint_label_map(predicted_rles, size)
    num_segments = len(predicted_rles) + 1
    areas = np.bincount(segments.ravel(), minlength=num_segments)
    scores = []
    for rle in truth_rles:
        known = coco.decode(rle).astype(bool)
        overlaps = np.bincount(segments[known], minlength=num_segments)
        unions = areas + np.count_nonzero(known) - overlaps
        ious = overlaps / np.maximum(unions, 1)
        scores.append(ious[1:].max())  # number 0 is no mask
    return float(np.mean(scores))


def paint_label_map(masks: Masks, size: tuple[int, int]) -> np.ndarray:
    """Paint masks from large to small, the later over the earlier.

    Args:
        masks: M masks; of equal ones the later wins.
        size: (height, width).

    Returns:
        (H, W) int32: 1 + the index of the smallest mask at each pixel, 0 where there is none.
    """
    label_map = np.zeros(size, np.int32)
    rles = _as_rles(masks)
    if not rles:
        return label_map
    # One at a time: pycocotools' area overflows on a list of more than 255.
    areas = np.array([int(coco.area(rle)) for rle in rles])
    for index in np.argsort(-areas, kind="stable"):
        label_map[coco.decode(rles[index]).astype(bool)] = index + 1
    return label_map


def object_masks(label_map: np.ndarray, min_area_frac: float = 0.0) -> np.ndarray:
    """Return the mask of every positive label of a label map that covers enough of the picture.

    Args:
        label_map: (H, W) integers, 0 is background.
        min_area_frac: smallest share of the picture, in [0, 1].

    Returns:
        (objects, H, W) bool, in the order of the labels.
    """
    areas = np.bincount(label_map.ravel())
    labels = np.flatnonzero(areas >= max(1.0, min_area_frac * label_map.size))
    return label_map[None] == labels[labels > 0][:, None, None]


def _checked(predicted: Masks, truth: Masks) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[int, int]]:
    predicted_rles, truth_rles = _as_rles(predicted), _as_rles(truth)
    if not truth_rles:
        raise MaskError("IoU needs at least one known object; got none")
    sizes = {tuple(rle["size"]) for rle in (*predicted_rles, *truth_rles)}
    if len(sizes) > 1:
        raise MaskError(f"masks must have one size; got {sorted(sizes)}")
    height, width = sizes.pop()
    return predicted_rles, truth_rles, (int(height), int(width))


def _as_rles(masks: Masks) -> list[dict[str, Any]]:
    if not isinstance(masks, np.ndarray):
        return list(masks)
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise MaskError(f"masks must be (M, H, W) bool; got shape {masks.shape}, {masks.dtype}")
    if len(masks) == 0:
        return []
    return coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
