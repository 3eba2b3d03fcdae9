"""Candidates to final masks by non-maximum suppression on boxes: the baseline that SAM's generators use.

Candidates are visited from the highest predicted IoU down (equals in their own order); one whose box overlaps the box
of a mask already kept by more than the threshold is dropped. The same candidates are kept as by
`torchvision.ops.batched_nms` on a CPU on the boxes of sam2's `batched_mask_to_box`, whose far edges are the last
pixels themselves: such a box is one pixel narrower and lower than the `bbox` of the mask, and that of a one-pixel line
is empty and overlaps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from effsam2_ray.masks import Mask
from effsam2_ray.merging import MergeResult, combine


def box_nms(candidates: Sequence[Mask], *, iou_thresh: float = 0.7) -> MergeResult:
    """Return the candidates that no better-scored one suppresses, largest first.

    Args:
        candidates: masks of one picture.
        iou_thresh: a box IoU above this suppresses; in [0, 1].

    Returns:
        Kept masks, each its own only member; a dropped candidate has `merged_into` -1, as no final mask holds it.
    """
    box_xywh = np.array([mask.bbox for mask in candidates], np.float32).reshape(-1, 4)
    box_xyxy = box_xywh.copy()
    box_xyxy[:, 2:] += box_xywh[:, :2] - 1
    scores = np.array([mask.predicted_iou for mask in candidates], np.float32)
    return combine(candidates, [[index] for index in _kept(box_xyxy, scores, iou_thresh)])


def _kept(box_xyxy: np.ndarray, scores: np.ndarray, iou_thresh: float) -> list[int]:
    """Return the indices that survive, best first; all arithmetic in float32 but the comparison, as in torchvision."""
    low, high = box_xyxy[:, :2], box_xyxy[:, 2:]
    area = (high - low).prod(axis=1)
    remaining = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(remaining):
        best, rest = remaining[0], remaining[1:]
        kept.append(int(best))
        shared = (np.minimum(high[rest], high[best]) - np.maximum(low[rest], low[best])).clip(min=0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0 is above no threshold
            iou = shared / (area[best] + area[rest] - shared)
        remaining = rest[~(iou.astype(np.float64) > iou_thresh)]
    return kept
