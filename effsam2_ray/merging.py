"""Candidates to final masks by merging: masks that overlap enough become one.

`intersection(Mi, Mj) = |Mi ∩ Mj| / min(|Mi|, |Mj|)`. Pairs above the threshold are joined, joins chain, and the union
of each connected component is one final mask, so nested masks merge.

One candidate that covers the picture would join everything, at any threshold; a candidate larger than `max_area_frac`
of the picture therefore joins nothing and stays its own mask. At 1.0 the rule is the bare one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effsam2_ray.masks import Mask
from effsam2_ray.rle import common_size, intersection_areas, union


@dataclass(frozen=True)
class MergeResult:
    """Final masks and where each candidate went.

    Attributes:
        masks: largest area first; equal areas by their runs, then scores, points and members, so that the order does
            not depend on the order of the candidates.
        merged_into: for each candidate, its index in `masks`; -1 where it was dropped. `merged_into[i] == k` just
            where i is in `masks[k].members`.
        largest_share: share of the candidates that the mask with most members holds, in [0, 1]; 0 without candidates.
    """

    masks: tuple[Mask, ...]
    merged_into: tuple[int, ...]
    largest_share: float


def merge_masks(candidates: Sequence[Mask], *, thresh: float = 0.8, max_area_frac: float = 0.5) -> MergeResult:
    """Join candidates that overlap and return their unions.

    Args:
        candidates: masks of one picture; `area` and `bbox` are those of `segmentation`.
        thresh: pairs whose intersection over the smaller area is larger are joined; in [0, 1].
        max_area_frac: a candidate with more pixels than this share of the picture joins nothing.

    Returns:
        Masks as `combine` makes them; `members` are positions in `candidates`.

    Raises:
        MaskError: candidates of several sizes.
    """
    labels = _component_labels(candidates, thresh, max_area_frac)
    return combine(candidates, [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)])


def keep_all(candidates: Sequence[Mask]) -> MergeResult:
    """Return every candidate as a final mask of its own."""
    return combine(candidates, [[index] for index in range(len(candidates))])


def combine(candidates: Sequence[Mask], groups: Sequence[Sequence[int]]) -> MergeResult:
    """Return the union of each group of candidates; a candidate in no group is dropped.

    A union has its own area and box, the scores of its member with the highest predicted IoU (the more stable of
    equals), every point of its members once in ascending order, and as `members` the positions in `candidates`.

    Args:
        candidates: masks of one picture.
        groups: disjoint, non-empty groups of positions in `candidates`.
    """
    masks = sorted((_joined(candidates, group) for group in groups), key=_content)
    merged_into = [-1] * len(candidates)
    for index, mask in enumerate(masks):
        for member in mask.members:
            merged_into[member] = index
    largest = max((len(mask.members) for mask in masks), default=0)
    return MergeResult(tuple(masks), tuple(merged_into), largest / max(1, len(candidates)))


def _joined(candidates: Sequence[Mask], group: Sequence[int]) -> Mask:
    members = [candidates[index] for index in group]
    predicted_iou, stability_score = max((mask.predicted_iou, mask.stability_score) for mask in members)
    segmentation = union([mask.segmentation for mask in members])
    alone = len(members) == 1
    return Mask(
        segmentation=segmentation,
        area=members[0].area if alone else segmentation.area,
        bbox=members[0].bbox if alone else segmentation.bbox,
        predicted_iou=predicted_iou,
        stability_score=stability_score,
        point_coords=tuple(sorted({point for mask in members for point in mask.point_coords})),
        members=tuple(sorted(group)),
    )


def _content(mask: Mask) -> tuple[object, ...]:
    scores = (-mask.predicted_iou, -mask.stability_score)
    return (-mask.area, mask.segmentation.counts, *scores, mask.point_coords, mask.members)


def _component_labels(candidates: Sequence[Mask], thresh: float, max_area_frac: float) -> np.ndarray:
    """Return one label a candidate, equal for candidates that are joined, directly or through others."""
    labels = np.arange(len(candidates))
    if len(candidates) == 0:
        return labels
    rles = [mask.segmentation for mask in candidates]
    height, width = common_size(rles)
    area = np.array([mask.area for mask in candidates])
    box = np.array([mask.bbox for mask in candidates])
    low, high = box[:, :2], box[:, :2] + box[:, 2:]
    # Large masks first: one round of theirs joins most of what there is to join, and joined pairs are never compared.
    waiting = [i for i in np.argsort(-area, kind="stable").tolist() if 0 < area[i] <= max_area_frac * height * width]
    order = np.array(waiting, dtype=np.intp)
    for rank, i in enumerate(waiting):
        later = order[rank + 1 :]
        later = later[labels[later] != labels[i]]
        # No two masks share more pixels than their boxes do.
        overlap_wh = np.minimum(high[later], high[i]) - np.maximum(low[later], low[i])
        shared_at_most = overlap_wh.clip(min=0).prod(axis=1)
        later = later[shared_at_most / area[later] > thresh]  # sorted by area, so `later` holds the smaller ones
        if len(later) == 0:
            continue
        shared = intersection_areas([rles[i]], [rles[j] for j in later], area[i : i + 1])[0]
        is_joined = np.zeros(len(labels), bool)  # by label
        is_joined[labels[later[shared / area[later] > thresh]]] = True
        labels[is_joined[labels]] = labels[i]
    return labels
