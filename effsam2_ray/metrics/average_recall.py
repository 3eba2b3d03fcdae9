"""Class-agnostic average recall (AR) as COCO defines it, in counts that add up over pictures.

Predictions of a picture are ranked by predicted IoU, the first 1, 10, 100 or 1000 are kept, and each in turn takes the
free object with which its IoU is highest, if that reaches the threshold. Recall is matched objects over all objects of
all pictures; AR is its mean over the IoU thresholds 0.50, 0.55, ..., 0.95. An object counts as small up to 32 x 32
pixels, medium up to 96 x 96, large above; one of exactly that size counts in both, as in COCO.

The figures are those of pycocotools' `COCOeval` with `useCats = 0` and the same `maxDets`. A crowd region never takes a
prediction away from an object there, so leaving crowds out changes nothing. A prediction that matches no object
costs nothing but its rank, so objects that nobody labelled (LVIS) are no false positives.

Reference: pycocotools/cocoeval.py, evaluateImg and accumulate. One difference: an object with annotation id 0, which
COCOeval takes for unmatched, counts here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco

from effsam2_ray.errors import MaskError
from effsam2_ray.metrics.iou import Masks, coco_rles, iou_matrix

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's own numbers, which are not all the nearest to 0.55, 0.60, ..."""
MAX_DETS = (1, 10, 100, 1000)
AREA_RANGES: dict[str, tuple[float, float]] = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}
"""Smallest and largest area in pixels, both included."""
_SHAPE = (len(AREA_RANGES), len(MAX_DETS), len(IOU_THRESHOLDS))
# Name of the figure -> (area range, most predictions).
_FIGURES = {
    **{f"ar_{most}": (0, column) for column, most in enumerate(MAX_DETS)},
    **{f"ar_{name}": (row, len(MAX_DETS) - 1) for row, name in enumerate(AREA_RANGES) if name != "all"},
}
AR_NAMES = tuple(_FIGURES)
"""`ar_1`, `ar_10`, `ar_100`, `ar_1000`, and at 1000 predictions `ar_small`, `ar_medium`, `ar_large`."""


@dataclass(frozen=True)
class RecallCounts:
    """Matched and known objects, of one picture or of many: counts of pictures add up exactly.

    Attributes:
        matched: (area ranges 4, most predictions 4, IoU thresholds 10) int64, in the order of `AREA_RANGES`, `MAX_DETS`
            and `IOU_THRESHOLDS`.
        num_objects: (4,) int64, known objects in each area range.
    """

    matched: np.ndarray
    num_objects: np.ndarray

    @classmethod
    def zero(cls) -> RecallCounts:
        """Return the counts of no picture."""
        return cls(np.zeros(_SHAPE, np.int64), np.zeros(_SHAPE[0], np.int64))

    @classmethod
    def from_lists(cls, recall_matched: Sequence[int], recall_objects: Sequence[int]) -> RecallCounts:
        """Return counts from the flat lists of `to_lists` (160 and 4 numbers)."""
        return cls(np.array(recall_matched, np.int64).reshape(_SHAPE), np.array(recall_objects, np.int64))

    def to_lists(self) -> tuple[list[int], list[int]]:
        """Return `matched`, flat in C order, and `num_objects`."""
        return self.matched.ravel().tolist(), self.num_objects.tolist()

    def __add__(self, other: RecallCounts) -> RecallCounts:
        return RecallCounts(self.matched + other.matched, self.num_objects + other.num_objects)


def recall_counts(
    predicted: Masks, predicted_ious: Sequence[float], truth: Masks, areas: Sequence[float] | None = None
) -> RecallCounts:
    """Match the ranked predictions of one picture with its objects.

    Args:
        predicted: M masks.
        predicted_ious: M scores, the highest ranks first; of equal ones the earlier.
        truth: the objects' masks; none is allowed.
        areas: the objects' areas, which decide their range; by default their pixels.

    Raises:
        MaskError: sizes or lengths differ, or an array is not (M, H, W) bool.
    """
    predicted_rles, truth_rles = coco_rles(predicted), coco_rles(truth)
    if len(predicted_ious) != len(predicted_rles):
        raise MaskError(f"there must be one score a mask; got {len(predicted_ious)} for {len(predicted_rles)} masks")
    if areas is None:
        areas = [float(coco.area(rle)) for rle in truth_rles]
    elif len(areas) != len(truth_rles):
        raise MaskError(f"there must be one area an object; got {len(areas)} for {len(truth_rles)} objects")
    order = np.argsort(-np.asarray(predicted_ious, np.float64), kind="stable")[: MAX_DETS[-1]]
    ious = iou_matrix([predicted_rles[index] for index in order], truth_rles)  # (ranked, objects)
    counts = RecallCounts.zero()
    sizes = np.asarray(areas, np.float64)
    for row, (low, high) in enumerate(AREA_RANGES.values()):
        inside = (sizes >= low) & (sizes <= high)
        counts.num_objects[row] = np.count_nonzero(inside)
        for column, threshold in enumerate(IOU_THRESHOLDS):
            ranks = _matching_ranks(ious[:, inside], threshold)
            counts.matched[row, :, column] = np.searchsorted(ranks, MAX_DETS)
    return counts


def average_recall(counts: RecallCounts) -> dict[str, float | None]:
    """Return every figure of `AR_NAMES`, in [0, 1]; None where there is no object of that size."""
    figures: dict[str, float | None] = {}
    for name in AR_NAMES:
        recall, num_objects = image_recall(counts, name)
        figures[name] = recall if num_objects else None
    return figures


def image_recall(counts: RecallCounts, name: str) -> tuple[float, int]:
    """Return one figure and the number of objects that it is over; (nan, 0) where there is none.

    AR of a data set is the mean of its pictures' figures, each with that number as its weight.
    """
    row, column = _FIGURES[name]
    num_objects = int(counts.num_objects[row])
    if num_objects == 0:
        return float("nan"), 0
    return float(counts.matched[row, column].mean() / num_objects), num_objects


def _matching_ranks(ious: np.ndarray, threshold: float) -> np.ndarray:
    """Return the ranks (from 0, ascending) of the predictions that take an object each.

    Args:
        ious: (ranked, objects).
        threshold: IoU that a match must reach.
    """
    threshold = min(threshold, 1 - 1e-10)
    free = np.ones(ious.shape[1], bool)
    ranks = []
    for rank in np.flatnonzero((ious >= threshold).any(axis=1)):
        candidates = np.where(free, ious[rank], -1.0)
        best = len(candidates) - 1 - int(candidates[::-1].argmax())  # of equal ones the last, as COCOeval does
        if candidates[best] >= threshold:
            free[best] = False
            ranks.append(rank)
    return np.array(ranks, np.int64)
