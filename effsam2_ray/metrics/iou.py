"""How well predicted masks match known objects, by two definitions of IoU that rank methods differently.

`best_iou` lets every predicted mask count on its own, so that more masks never hurt. `label_map_iou` first lets the
masks compete for pixels, so that clutter hurts. Both are means over the known objects of one picture; neither asks
whether a prediction that matches no object is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from effsam2_ray.errors import MaskError
from effsam2_ray.rle import Rle

Masks = np.ndarray | Sequence[Rle] | Sequence[Mapping[str, Any]]
"""Bool masks (M, H, W), `Rle`s, or COCO RLEs: {"size": [H, W], "counts": compressed str or bytes}."""


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
    ious = iou_matrix(predicted, truth)
    if ious.shape[1] == 0:
        raise MaskError("IoU needs at least one known object; got none")
    return float(ious.max(axis=0, initial=0.0).mean())


def label_map_iou(predicted: Masks, truth: Masks) -> float:
    """Return the mean over the known objects of the best IoU with a segment of the predictions' label map.

    The label map gives each pixel the smallest predicted mask that covers it (see `paint_label_map`); a segment is
    what is left of a mask there, and may be empty. Arguments, result and errors are those of `best_iou`.

    Example: a mask of 6 pixels and one of 2 inside it. An object of those 6 pixels has best_iou 1.0, but only 4 of
    its pixels keep the larger mask's number: label_map_iou is 4/6.
    """
    predicted_rles, truth_rles = coco_rles(predicted), coco_rles(truth)
    size = common_size(predicted_rles, truth_rles)
    if not truth_rles:
        raise MaskError("IoU needs at least one known object; got none")
    if not predicted_rles or size is None:
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


def iou_matrix(predicted: Masks, truth: Masks) -> np.ndarray:
    """Return the IoU of each pair, (M, objects) float64; 0 where both masks are empty.

    Raises:
        MaskError: sizes differ, or an array is not (M, H, W) bool.
    """
    predicted_rles, truth_rles = coco_rles(predicted), coco_rles(truth)
    common_size(predicted_rles, truth_rles)
    if not predicted_rles or not truth_rles:
        return np.zeros((len(predicted_rles), len(truth_rles)))
    return np.asarray(coco.iou(predicted_rles, truth_rles, [0] * len(truth_rles)), np.float64)


def coverage(predicted: Masks, size_hw: tuple[int, int]) -> float:
    """Return the share of a picture's pixels that lie under any mask, in [0, 1]; 0.0 for no masks.

    Args:
        predicted: M masks.
        size_hw: (height, width) of the picture.

    Raises:
        MaskError: a mask has another size.
    """
    rles = coco_rles(predicted)
    common_size(rles, (), size_hw)
    if not rles:
        return 0.0
    return float(int(coco.area(coco.merge(rles))) / (size_hw[0] * size_hw[1]))


def without_pixels(masks: Masks, removed: Rle) -> list[dict[str, Any]]:
    """Return COCO RLEs of the masks less some pixels; a mask may become empty.

    Raises:
        MaskError: a mask has another size than `removed`.
    """
    rles = coco_rles(masks)
    common_size(rles, (), removed.size)
    kept = coco.encode(np.asfortranarray(~removed.to_array()).view(np.uint8))
    return [coco.merge([rle, kept], intersect=True) for rle in rles]


def paint_label_map(masks: Masks, size: tuple[int, int]) -> np.ndarray:
    """Paint masks from large to small, the later over the earlier.

    Args:
        masks: M masks; of equal ones the later wins.
        size: (height, width).

    Returns:
        (H, W) int32: 1 + the index of the smallest mask at each pixel, 0 where there is none.
    """
    label_map = np.zeros(size, np.int32)
    rles = coco_rles(masks)
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


def coco_rles(masks: Masks) -> list[dict[str, Any]]:
    """Return masks as COCO's dictionaries, as pycocotools takes them.

    Raises:
        MaskError: an array is not (M, H, W) bool.
    """
    if not isinstance(masks, np.ndarray):
        return [_coco(mask) for mask in masks]
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise MaskError(f"masks must be (M, H, W) bool; got shape {masks.shape}, {masks.dtype}")
    if len(masks) == 0:
        return []
    rles: list[dict[str, Any]] = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return rles


def common_size(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], size_hw: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """Return the (height, width) of all the masks, None where there is none.

    Raises:
        MaskError: masks of several sizes, or of another than `size_hw`.
    """
    sizes = {(int(rle["size"][0]), int(rle["size"][1])) for rle in (*first, *second)}
    if size_hw is not None:
        sizes.add((int(size_hw[0]), int(size_hw[1])))
    if len(sizes) > 1:
        raise MaskError(f"masks must have one size; got {sorted(sizes)}")
    return sizes.pop() if sizes else None


def _coco(mask: Rle | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(mask, Rle):
        return {"size": list(mask.size), "counts": mask.counts}
    return dict(mask)
