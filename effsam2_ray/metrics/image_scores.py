"""All figures of one picture, as one flat row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from effsam2_ray.errors import MaskError
from effsam2_ray.metrics.average_recall import RecallCounts, recall_counts
from effsam2_ray.metrics.iou import (
    Masks,
    best_iou,
    coco_rles,
    common_size,
    coverage,
    iou_matrix,
    label_map_iou,
    without_pixels,
)
from effsam2_ray.metrics.single_object import SingleObjectScores, single_object_scores
from effsam2_ray.metrics.truth import ImageTruth
from effsam2_ray.rle import Rle, union

_SINGLE = tuple(field.name for field in fields(SingleObjectScores))
SCORE_COLUMNS: dict[str, str] = {
    "num_masks": "int64",
    "num_objects": "int64",
    "best_iou": "double",
    "label_map_iou": "double",
    "coverage": "double",
    "recall_matched": "list<int64>",
    "recall_objects": "list<int64>",
    **{f"{which}_{name}": "double" for which in ("best_mask", "union") for name in _SINGLE},
}
"""Columns of `ImageScores.to_row` and their Arrow types; every one but the counts and coverage may be null."""


@dataclass(frozen=True)
class ImageScores:
    """Figures of one picture.

    Attributes:
        num_masks: predicted masks.
        num_objects: known objects, of all annotators together.
        best_iou, label_map_iou: as `effsam2_ray.metrics.iou` defines them, the mean over annotators; None where there
            is no object.
        coverage: share of the picture under any mask.
        recall: counts for average recall, summed over annotators.
        best_mask, union: figures of single-object sets, None elsewhere.
    """

    num_masks: int
    num_objects: int
    best_iou: float | None
    label_map_iou: float | None
    coverage: float
    recall: RecallCounts
    best_mask: SingleObjectScores | None = None
    union: SingleObjectScores | None = None

    def to_row(self) -> dict[str, Any]:
        """Return plain values under the names of `SCORE_COLUMNS`."""
        matched, objects = self.recall.to_lists()
        row: dict[str, Any] = {
            "num_masks": self.num_masks,
            "num_objects": self.num_objects,
            "best_iou": self.best_iou,
            "label_map_iou": self.label_map_iou,
            "coverage": self.coverage,
            "recall_matched": matched,
            "recall_objects": objects,
        }
        for which, scores in (("best_mask", self.best_mask), ("union", self.union)):
            values = dict.fromkeys(_SINGLE) if scores is None else asdict(scores)
            row.update({f"{which}_{name}": value for name, value in values.items()})
        return row


def score_image(
    predicted: Masks, predicted_ious: Sequence[float], truth: ImageTruth, *, with_single_object: bool = False
) -> ImageScores:
    """Compare the masks of one picture with what is known of it.

    Void pixels are taken away from the predictions first, for every figure but the number of masks and coverage. With
    several annotators each one's regions are the truth once: IoUs are means over annotators, average recall counts
    the objects of all. An annotator without objects does not count.

    Args:
        predicted: M masks in the frame of the picture as a viewer shows it.
        predicted_ious: M scores that rank them.
        truth: what is known.
        with_single_object: also compute the figures of `single_object`, where the truth is a single object.

    Raises:
        MaskError: a mask is not of the picture's size, or there is not one score a mask.
        ConfigError: pysodmetrics is asked for and not installed.
    """
    rles = coco_rles(predicted)
    common_size(rles, (), truth.size_hw)
    if len(predicted_ious) != len(rles):
        raise MaskError(f"there must be one score a mask; got {len(predicted_ious)} for {len(rles)} masks")
    covered = coverage(rles, truth.size_hw)
    if truth.void is not None:
        rles = without_pixels(rles, truth.void)
    marked = [annotator for annotator in truth.annotators if annotator.masks]
    recall = RecallCounts.zero()
    for annotator in marked:
        recall += recall_counts(rles, predicted_ious, annotator.masks, annotator.areas)
    best_mask = everything = None
    if with_single_object and truth.single_object and marked:
        true = union([mask for annotator in marked for mask in annotator.masks])
        best_mask = single_object_scores(_best_mask(rles, true), true.to_array())
        everything = single_object_scores(_union(rles, truth.size_hw), true.to_array())
    return ImageScores(
        num_masks=len(rles),
        num_objects=truth.num_objects,
        best_iou=_mean([best_iou(rles, annotator.masks) for annotator in marked]),
        label_map_iou=_mean([label_map_iou(rles, annotator.masks) for annotator in marked]),
        coverage=covered,
        recall=recall,
        best_mask=best_mask,
        union=everything,
    )


def _best_mask(rles: list[dict[str, Any]], true: Rle) -> np.ndarray:
    if not rles:
        return np.zeros(true.size, bool)
    return Rle.from_coco(rles[int(iou_matrix(rles, [true])[:, 0].argmax())]).to_array()


def _union(rles: list[dict[str, Any]], size_hw: tuple[int, int]) -> np.ndarray:
    if not rles:
        return np.zeros(size_hw, bool)
    return union([Rle.from_coco(rle) for rle in rles]).to_array()


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
